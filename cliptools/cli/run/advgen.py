"""clip-advgen: descriptions with misleading words, from a language model, and the counts of pictures that fool the model.

advgen_pictures.py paints and judges the pictures.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from cliptools.analysis.zero_shot import Share
from cliptools.cli.app import Output, choose_format, open_input
from cliptools.cli.run.advgen_pictures import EMOJI, PictureOptions, load_evaluation, picture_records
from cliptools.cli.surroundings import refuse_idle
from cliptools.console import count_of, note, progress
from cliptools.embedded_models import EMBEDDED
from cliptools.errors import CliptoolsError, UsageError
from cliptools.front.tables import rendered
from cliptools.generate.captions import Requirements, TemplateWriter, Writer, requirements_of, write_descriptions
from cliptools.generate.llm import MOST_WORDS, TEMPLATE, LlamaWriter, check_chat, open_chat
from cliptools.generate.painters import Painter
from cliptools.generate.painters.diffusion import check_painter
from cliptools.generate.records import Description, PictureFolder, Task, WordList, read_descriptions, read_word_lists
from cliptools.io.files import only_writer, stdout_is_terminal, text_output
from cliptools.io.header import digest, model_key
from cliptools.io.jsonl import write_record
from cliptools.io.text_file import file_beside
from cliptools.models.unusable import Screen

WRITING = ("llm", "grammar", "descriptions", "take", "words_per_caption")
PAINTING = ("painter", "images", "upscaler", "size", "steps", "guidance", "dtype", "offload")
JUDGING = ("judge_preprocess", "judge_classes", "judge_top")
"""Parameters of the three parts of the work."""
LEFT_OUT_WORDS = 8  # the most frequent words that the note on undrawn words lists
NONE_PASSED = "no description passed for any pair: all of them lack the depicted class or name the predicted one"


@dataclass(frozen=True, kw_only=True)
class AdvgenOptions(PictureOptions, Output):
    """Options of clip-advgen."""

    words: Path | None
    llm: str
    grammar: Literal["shape", "line"]
    descriptions: int
    take: int
    words_per_caption: int
    captions_only: bool
    images_only: bool
    out_dir: Path | None
    resume: bool
    max_pixels: int | None


def run(options: AdvgenOptions) -> None:
    """Run clip-advgen.

    Raises:
        UsageError: options that exclude each other, or lines of several models.
        CliptoolsError: no description passed.
    """
    _check_options(options)
    word_lists, descriptions, source = _read_input(options)
    model_name = _single_model([*(item.task for item in descriptions), *(item.task for item in word_lists)], source)
    options = replace(options, painter=_choose_painter(options, descriptions, model_name))
    with _picture_folder(options) as folder:
        new_descriptions = _write_descriptions(word_lists, options, folder)
        if options.captions_only:
            _write_captions(new_descriptions, options.output)
            return
        descriptions = descriptions or list(new_descriptions)
        if not descriptions:
            raise CliptoolsError(NONE_PASSED)
        _judge_pictures(descriptions, options, folder)


def _check_options(options: AdvgenOptions) -> None:
    """Reject invalid combinations of options before any input is read.

    Raises:
        UsageError: options that exclude each other, or that need another one.
    """
    if options.captions_only and options.images_only:
        raise UsageError("--captions-only and --images-only exclude each other: leave out both for descriptions and pictures")
    if options.resume and options.out_dir is None:
        raise UsageError("--resume needs --out-dir")
    if options.captions_only and options.out_dir is not None:
        raise UsageError("--captions-only paints nothing, so --out-dir does not apply: leave one of them out")
    _check_effects(options)
    if not options.images_only and options.llm != TEMPLATE:
        check_chat(options.llm)
        if options.grammar == "shape" and options.words_per_caption > MOST_WORDS:
            raise UsageError(f"--words-per-caption {options.words_per_caption}: at most {MOST_WORDS} with --grammar shape")


def _check_effects(options: AdvgenOptions) -> None:
    """Reject options of a part of the work that is not done.

    Raises:
        UsageError: there is one.
    """
    if options.images_only:
        refuse_idle(WRITING, "with --images-only, which writes no descriptions")
    if options.llm == TEMPLATE:
        refuse_idle(("grammar",), "with --llm template")
    if options.captions_only:
        refuse_idle((*PAINTING, *JUDGING, "judge"), "with --captions-only, which paints nothing")
        if options.output_format == "table":
            raise UsageError("--captions-only writes JSON lines, which --images-only reads: leave out -f table")
    if options.judge is None:
        refuse_idle(JUDGING, "without --judge")


def _read_input(options: AdvgenOptions) -> tuple[list[WordList], list[Description], str]:
    """Return word lists, or with --images-only descriptions, and the name of the input for messages."""
    expected = "descriptions of clip-advgen --captions-only" if options.images_only else "words of clip-spurious"
    stream, name = open_input(options.words, expected, "WORDS")
    with stream:
        if not options.images_only:
            return read_word_lists(stream, name), [], name
        descriptions = [
            replace(item, file=file_beside(item.file, options.words, options.out_dir)) if item.file else item
            for item in read_descriptions(stream, name)
        ]
    return [], descriptions, name


def _single_model(tasks: Sequence[Task], source: str) -> str:
    """Return the name of the model of all tasks.

    Raises:
        UsageError: tasks of several models.
    """
    models = {model_key(task.model): task.model for task in tasks}
    if len(models) > 1:
        names = ", ".join(f"{model['name']} {' '.join(f'{part[:12]}…' for part in key if part)}" for key, model in models.items())
        raise UsageError(f"{source}: lines of {len(models)} models ({names}); pass the lines of one model at a time")
    name: str = next(iter(models.values()))["name"]
    return name


def _choose_painter(options: AdvgenOptions, descriptions: Sequence[Description], model_name: str) -> str | None:
    """Return the painter of --painter, or the default painter; check it before the language model starts its long work.

    Raises:
        UsageError: a painter must be named because the model has no default, or options that do not apply to the emoji painter.
    """
    if options.captions_only or (descriptions and all(item.file for item in descriptions)):
        return options.painter
    if options.painter is None and model_name not in EMBEDDED:
        raise UsageError(f"--painter: no default for the model {model_name}; name a diffusers pipeline, or emoji")
    painter = options.painter or EMOJI
    if painter != EMOJI:
        check_painter(painter, options.upscaler)
        return painter
    diffusion_only = {
        "--upscaler": options.upscaler, "--steps": options.steps, "--guidance": options.guidance, "--dtype": options.dtype,
    }  # fmt: skip
    for option, value in diffusion_only.items():
        if value is not None:
            raise UsageError(f"{option} does not apply to the emoji painter; name a diffusers pipeline with --painter")
    refuse_idle(("offload",), "with the emoji painter")
    return painter


@contextmanager
def _picture_folder(options: AdvgenOptions) -> Iterator[PictureFolder | None]:
    """Yield the folder of --out-dir, locked until the run ends; None without --out-dir."""
    if options.out_dir is None:
        yield None
        return
    with only_writer(options.out_dir):
        yield PictureFolder(options.out_dir, options.resume)


def _write_descriptions(
    word_lists: Sequence[WordList], options: AdvgenOptions, folder: PictureFolder | None
) -> Iterator[Description]:
    """Yield the descriptions of all tasks, task by task. The writer is loaded when a task needs it, and freed at the end."""
    settings: dict[str, str | int] = {
        "llm": options.llm, "words_per_caption": options.words_per_caption, "seed": options.seed,
    }  # fmt: skip
    if options.llm != TEMPLATE:
        settings["grammar"] = options.grammar
    folder_settings = settings | {"descriptions": options.descriptions, "take": options.take}
    writer: Writer | None = None
    for word_list in word_lists:
        requirements = requirements_of(word_list)
        key = digest(word_list.task.key, *word_list.words)
        texts = folder.descriptions(key, folder_settings) if folder else None
        if texts is None:
            writer = writer or _open_writer(options)
            texts = _describe(writer, requirements, options)
            if folder:
                folder.add_descriptions(key, texts, folder_settings)
        for number, text in enumerate(texts):
            yield Description(word_list.task, number, text, requirements.used_words(text), settings)
    if writer is not None:
        writer.close()


def _open_writer(options: AdvgenOptions) -> Writer:
    """Return the language model of --llm, or the writer of fixed sentences."""
    if options.llm == TEMPLATE:
        return TemplateWriter()
    return LlamaWriter(open_chat(options.llm, on_gpu=options.device != "cpu"), options.grammar)


def _describe(writer: Writer, requirements: Requirements, options: AdvgenOptions) -> list[str]:
    """Return the descriptions of one task that pass."""
    return write_descriptions(
        writer,
        requirements,
        questions=options.descriptions,
        take=options.take,
        words_each=options.words_per_caption,
        seed=options.seed,
        watch=lambda numbers, total: progress(numbers, f"describing {requirements.task.pair}", total),
    )


def _write_captions(descriptions: Iterator[Description], output: Path | None) -> None:
    """Write one line per description, in the form that --images-only reads.

    Raises:
        CliptoolsError: no descriptions.
    """
    count = 0
    with text_output(output) as stream:
        for item in descriptions:
            count += 1
            record = {"caption": item.number, "description": item.text, "words": list(item.words), "settings": item.settings}
            write_record(stream, item.task.fields | record | item.task.source)
        if not count:
            raise CliptoolsError(NONE_PASSED)


@dataclass
class Tally:
    """Counts of a task's pictures and of those that fool the model: among all, and among those that pass the check."""

    images: int = 0
    fooled: int = 0
    checked: bool = False
    sound: int = 0
    sound_fooled: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Count the picture of a record."""
        self.images += 1
        self.fooled += record["fooled"]
        if check := record.get("check"):
            sound = check["depicted"] and not check["predicted"]
            self.checked = True
            self.sound += sound
            self.sound_fooled += sound and record["fooled"]


def _judge_pictures(descriptions: Sequence[Description], options: AdvgenOptions, folder: PictureFolder | None) -> None:
    """Paint or read every picture, write its record, and report how many fool the model.

    Raises:
        CliptoolsError: no picture could be painted or read, or none is usable; with --strict, a single such picture.
    """
    output_format = choose_format(options.output_format, options.output, "jsonl")
    tasks = {item.task.key: item.task for item in descriptions}
    evaluation = load_evaluation(descriptions, list(tasks.values()), options)
    tallies = {key: Tally() for key in tasks}
    total = sum(1 if item.file else options.images for item in descriptions)
    screen = Screen[tuple[int, str]](lambda picture: picture[1], strict=options.strict)
    with text_output(options.output) as stream:
        for record, task in progress(picture_records(descriptions, options, folder, evaluation, screen), "pictures", total):
            tallies[task.key].add(record)
            if output_format == "jsonl":
                write_record(stream, record)
        rows = [(tasks[key], tally) for key, tally in tallies.items()]
        count = sum(tally.images for _, tally in rows)
        if not count and not len(screen):
            raise CliptoolsError(f"none of {count_of(total, 'picture')} could be painted or read")
        screen.require(count)
        if output_format == "table":
            stream.write(_table(rows, options.output is None and stdout_is_terminal()))
    for task, tally in rows:
        note(_result_text(task, tally))
    if evaluation.painter is not None:
        painted = [item for item in descriptions if not item.file]
        if text := _left_out_text(painted, evaluation.painter):
            note(text)


def _result_text(task: Task, tally: Tally) -> str:
    """Return a sentence with the counts of a task."""
    rate = _rate(tally.fooled, tally.images)
    text = f"{task.title}: {tally.fooled} of {count_of(tally.images, 'picture')} fool {task.model['name']}: {rate}"
    if not tally.checked:
        return f"{text}; unchecked"
    rate = _rate(tally.sound_fooled, tally.sound)
    return f"{text}; of the {tally.sound} that show {task.depict} and no {task.predict}, {tally.sound_fooled}: {rate}"


def _left_out_text(descriptions: Sequence[Description], painter: Painter) -> str:
    """Return a sentence with the words that the painter does not draw, the most frequent first; an empty text without any."""
    readings = [understood for item in descriptions if (understood := painter.depiction(item.text, item.words)) is not None]
    counts = Counter(word for understood in readings for word in understood.left_out)
    if not counts:
        return ""
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    word_list = ", ".join(f"{word} {count}" for word, count in ranked[:LEFT_OUT_WORDS])
    more_text = ", …" if len(ranked) > LEFT_OUT_WORDS else ""
    incomplete = sum(bool(understood.left_out) for understood in readings)
    return (
        f"some words are not drawn in {incomplete} of {count_of(len(readings), 'description')} ({word_list}{more_text}); "
        f"`drawn` lists what the pictures show"
    )


def _rate(part: int, total: int) -> str:
    """Return a share with Wilson's 95 % interval: `33.3 % (13.8–60.9)`."""
    if not total:
        return "none"
    share = Share(part, total)
    low, high = share.interval()
    return f"{100 * share.value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _table(rows: Sequence[tuple[Task, Tally]], terminal: bool) -> bytes:
    """Return the table of the counts, with one row per task."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("pair", "by"):
        table.add_column(title)
    for title in ("seed", "pictures", "fooled", "share (95 %)", "sound", "fooled of these", "share (95 %)"):
        table.add_column(title, justify="right")
    for task, tally in rows:
        sound = ("–",) * 3
        if tally.checked:
            sound = (str(tally.sound), str(tally.sound_fooled), _rate(tally.sound_fooled, tally.sound))
        rate = _rate(tally.fooled, tally.images)
        table.add_row(Text(task.pair), Text(task.kind), str(task.seed), str(tally.images), str(tally.fooled), rate, *sound)
    return rendered(table, terminal=terminal)
