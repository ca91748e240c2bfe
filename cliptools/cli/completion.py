"""What a shell offers for an option's value: by the option's name, which means the same in every command."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.types import StringParamType

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PREPROCESSINGS = (
    *(f"{key}={value}" for key in ("mean", "std") for value in ("openai", "imagenet", "inception")),
    *(f"interpolation={value}" for value in ("bicubic", "bilinear")),
    *(f"resize={value}" for value in ("shortest", "longest", "squash")),
)
FILE, FOLDER = "file", "dir"  # click's names for what the shell itself completes
Offer = Callable[[click.Context, str], Iterable[str]]
"""Words for what has been typed of a value."""


class Completed(StringParamType):
    """A text of which a shell knows words, or that may name a file."""

    def __init__(self, offer: Offer | None = None, place: str | None = None) -> None:
        self.offer = offer
        self.place = place

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """See click."""
        from click.shell_completion import CompletionItem

        words = self.offer(ctx, incomplete) if self.offer else ()
        items = [CompletionItem(word) for word in words if word.startswith(incomplete)]
        return [*items, CompletionItem(incomplete, type=self.place)] if self.place else items


def complete_by_name(command: click.Command) -> None:
    """Let texts that stand in COMPLETED be completed."""
    for parameter in command.params:
        if parameter.type is click.STRING and parameter.name in COMPLETED:
            parameter.type = COMPLETED[parameter.name]


def words(*known: str) -> Offer:
    """Always the same words."""
    return lambda context, typed: known


def listed(*known: str) -> Offer:
    """Any of these, by commas: the list so far and one more."""

    def offer(context: click.Context, typed: str) -> list[str]:
        before, comma, _ = typed.rpartition(",")
        return [f"{before}{comma}{word}" for word in known if word not in before.split(",")]

    return offer


def _models(context: click.Context, typed: str) -> Iterable[str]:
    from cliptools.embedded_models import embedded_names
    from cliptools.models.names import architecture_names

    said = _bundle_header(context)
    return [said["model"]["name"]] if said else (*embedded_names(), *architecture_names())


def _tags(context: click.Context, typed: str) -> Iterable[str]:
    from cliptools.models.names import pretrained_tags

    return (*pretrained_tags(str(context.params.get("model"))), "random")


def _text_sources(context: click.Context, typed: str) -> Iterable[str]:
    from cliptools.models.names import pretrained_tags

    return pretrained_tags(str(context.params.get("model")))


def _preprocessings(context: click.Context, typed: str) -> Iterable[str]:
    """Tags of the model, and of the settings those that have not been given."""
    from cliptools.models.names import pretrained_tags

    before, comma, _ = typed.rpartition(",")
    given = {part.partition("=")[0] for part in before.split(",")}
    settings = [f"{before}{comma}{value}" for value in PREPROCESSINGS if value.partition("=")[0] not in given]
    model = str(context.params.get("model") or context.params.get("judge") or "").partition(":")[0]
    return settings if comma else [*pretrained_tags(model), *settings]


def _layers(context: click.Context, typed: str) -> list[str]:
    """Layers of the bundle named before, else of the model, as far as one is known; after `8-` those that end a range."""
    from cliptools.models.names import layer_count

    said = _bundle_header(context)
    known = said["settings"].get("layers", []) if said else range(layer_count(str(context.params.get("model", ""))))
    layers = [str(layer) for layer in known]
    before, _, last = typed.rpartition(",")
    first, dash, _ = last.partition("-")
    if dash:
        start = f"{before}," if before else ""
        return [f"{start}{first}-{layer}" for layer in layers if first.isdecimal() and int(layer) > int(first)]
    return list(listed(*layers)(context, typed))


def _pools(context: click.Context, typed: str) -> Iterable[str]:
    from cliptools.text.vocabularies import POOLS

    return POOLS


def _classes(context: click.Context, typed: str) -> Iterable[str]:
    from cliptools.text.classes import CLASS_LISTS

    return CLASS_LISTS


def _writers(context: click.Context, typed: str) -> Iterable[str]:
    """Plain sentences without a model are for descriptions of pictures only."""
    return ("smollm2", "template") if context.command.name == "clip-advgen" else ("smollm2",)


def _pairs(context: click.Context, typed: str) -> Iterable[str]:
    from cliptools.text.classes import PAIR_LISTS

    return PAIR_LISTS


def _bundle_header(context: click.Context) -> dict[str, Any] | None:
    """What the header of the bundle named on the command line says; None without one that can be read."""
    from cliptools.errors import StreamError

    named = context.params.get("bundle") or context.params.get("bundles") or ()
    # Where the value to be completed is not there yet, click stops before it gives arguments their names.
    for path in map(Path, (*(named if isinstance(named, tuple) else (named,)), *context.args)):
        if not path.is_file():
            continue
        from cliptools.io.bundle import cliptools_header, read_header

        try:
            with path.open("rb") as stream:
                return cliptools_header(read_header(stream, str(path)), str(path)).__dict__
        except (OSError, StreamError):
            continue
    return None


COMPLETED = {
    "model": Completed(_models),
    "judge": Completed(_models),
    "pretrained": Completed(_tags, FILE),
    "text_from": Completed(_text_sources, FILE),
    "preprocess": Completed(_preprocessings),
    "judge_preprocess": Completed(_preprocessings),
    "layers": Completed(_layers),
    "pool": Completed(_pools, FILE),
    "classes": Completed(_classes, FILE),
    "judge_classes": Completed(_classes, FILE),
    "pairs_file": Completed(_pairs, FILE),
    "device": Completed(words("auto", "cpu", "cuda", "mps")),
    "paths": Completed(place=FILE),
    "images": Completed(place=FILE),
    "images_from": Completed(place=FILE),
    "labels": Completed(words("folders", "scenes"), FILE),
    "truth": Completed(words("scenes"), FILE),
    "llm": Completed(_writers, FILE),
    "painter": Completed(words("emoji"), FOLDER),
    "upscaler": Completed(place=FOLDER),
    "threshold": Completed(words("mean")),
    "thresholds": Completed(words("mean")),
    "background": Completed(words("none")),
    "backgrounds": Completed(words("none")),
}
"""By the parameter's name. Parameters of other types (choices, paths, a Completed of a command's own) complete themselves."""
