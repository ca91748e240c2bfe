"""clip-texts: asks a language model for texts of every class, keeps those of finished classes, and writes the vocabulary."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, NamedTuple

from cliptools.cli.app import Output
from cliptools.console import count_of, note, progress, summarise, warn
from cliptools.errors import CliptoolsError, UsageError
from cliptools.generate.class_descriptions import Chat, characteristics
from cliptools.generate.llm import check_chat, open_chat
from cliptools.io.cache import KeptRecords, is_kept, kept_records
from cliptools.io.files import text_output
from cliptools.io.jsonl import write_record
from cliptools.text.classes import ClassName, distinct_classes, load_classes

TOOL = "clip-texts"


@dataclass(frozen=True, kw_only=True)
class TextsOptions(Output):
    """Options of clip-texts."""

    classes: str
    per_class: int
    limit: int | None
    llm: str
    seed: int
    resume: bool
    device: str


class ClassTexts(NamedTuple):
    """Texts of a class, and the number of dropped answers by fault."""

    texts: list[str]
    faults: dict[str, int]


def run(options: TextsOptions) -> None:
    """Run clip-texts.

    Raises:
        UsageError: --resume without an output file.
        CliptoolsError: the language model gave no usable text.
    """
    if options.resume and not is_kept(options.output):
        raise UsageError("--resume needs -o FILE")
    class_list = load_classes(options.classes)[: options.limit]
    classes = distinct_classes(class_list)  # a second class with the same name would get the same texts
    first_place = {item.name: number for number, item in reversed(list(enumerate(class_list)))}
    check_chat(options.llm, otherwise="")
    with kept_records(options.output, options.resume) as part_file:
        chat = open_chat(options.llm, on_gpu=options.device != "cpu", otherwise="")
        model = chat.identity
        earlier_texts = _earlier_texts(part_file, classes, {"per_class": options.per_class, "seed": options.seed, "model": model})
        total, faults = 0, Counter[str]()
        with text_output(options.output) as stream:
            for number, text in _texts(chat, classes, options, earlier_texts, part_file, faults):
                name = classes[number].name
                fields = {"class": name, "number": first_place[name], "seed": options.seed, "model": model}
                _write(stream, {"text": text} | fields, _writes_records(options))
                total += 1
            chat.close()
            if not total:
                raise CliptoolsError(f"no usable text for {count_of(len(classes), 'class')} (dropped: {_fault_list(faults)})")
    dropped = f"{count_of(sum(faults.values()), 'answer')} dropped ({_fault_list(faults)})"
    summarise(f"{TOOL}: {count_of(len(classes), 'class')}, {count_of(total, 'text')}, {dropped}")


def _writes_records(options: TextsOptions) -> bool:
    """Return whether the output has records instead of plain lines, by -f, else by the name of the output file."""
    if options.output_format is None:
        return options.output is not None and options.output.suffix == ".jsonl"
    return options.output_format == "jsonl"


def _earlier_texts(part_file: KeptRecords | None, classes: Sequence[ClassName], settings: dict[str, Any]) -> list[ClassTexts]:
    """Return the texts of the first classes, which an interrupted run has finished.

    Args:
        settings: Settings on which the texts depend.

    Raises:
        CliptoolsError: the run had other settings or classes, or its file is damaged.
    """
    class_texts: list[ClassTexts] = []
    if part_file is None:
        return class_texts
    for item, record in zip(classes, part_file.records(settings), strict=False):
        if record.get("class") != item.name:
            raise CliptoolsError(
                f"{part_file.path}: holds texts of class {record.get('class')!r}, expected {item.name!r}; "
                "use the same --classes or another output file"
            )
        if not isinstance(record.get("texts"), list) or not isinstance(record.get("faults"), dict):
            raise CliptoolsError(
                f"{part_file.path}: damaged (a line without `texts` and `faults`); remove the file, or use another output file"
            )
        class_texts.append(ClassTexts(record["texts"], record["faults"]))
    if class_texts:
        note(f"{TOOL}: {len(class_texts)} of {count_of(len(classes), 'class')} taken from the interrupted run")
    return class_texts


def _texts(
    chat: Chat,
    classes: Sequence[ClassName],
    options: TextsOptions,
    earlier_texts: Sequence[ClassTexts],
    part_file: KeptRecords | None,
    faults: Counter[str],
) -> Iterator[tuple[int, str]]:
    """Yield every text with the number of its class, as soon as it exists.

    Args:
        faults: Counts of dropped answers by fault, to which those of every class are added.
    """
    used_texts = set[str]()
    for number, item in enumerate(progress(classes, "classes", len(classes))):
        class_faults = Counter[str]()
        if number < len(earlier_texts):
            texts, class_faults = earlier_texts[number].texts, Counter(earlier_texts[number].faults)
            used_texts.update(text.lower() for text in texts)
            yield from ((number, text) for text in texts)
        else:
            texts = []
            for text in characteristics(chat, item, used_texts, class_faults, count=options.per_class, seed=options.seed):
                texts.append(text)
                yield number, text
            if part_file is not None:
                part_file.append({"class": item.name, "texts": texts, "faults": dict(class_faults)})
        faults.update(class_faults)
        if len(texts) < options.per_class:
            expected = count_of(options.per_class, "text")
            warn(f"{item.name}: {len(texts)} of {expected}; dropped: {_fault_list(class_faults)}")


def _write(stream: BufferedIOBase, record: dict[str, Any], as_records: bool) -> None:
    """Write a record, or its text as a plain line, and flush."""
    if as_records:
        write_record(stream, record)
    else:
        stream.write(record["text"].encode() + b"\n")
        stream.flush()


def _fault_list(faults: Counter[str]) -> str:
    """Return the faults as a text, the most frequent first: `3 naming the class, 1 unfinished`."""
    return ", ".join(f"{count} {fault}" for fault, count in faults.most_common()) or "none"
