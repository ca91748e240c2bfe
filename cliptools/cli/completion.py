"""Shell completion of the values of options.

COMPLETED lists the values of each parameter by its name, which has the same meaning in every command. Models, tags, layers and
lists are read from files, so that completion imports neither torch nor open_clip. click asks for these values; only its scripts
for shells are replaced (tools/manual/completion.py gives the reasons).
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

from cliptools.embedded_models import embedded_names
from cliptools.errors import StreamError
from cliptools.models.names import architecture_names, layer_count, pretrained_tags
from cliptools.text import CLASS_LIST_NAMES, PAIR_LIST_NAMES, VOCABULARY_NAMES

PREPROCESSINGS = (
    *(f"{key}={value}" for key in ("mean", "std") for value in ("openai", "imagenet", "inception")),
    *(f"interpolation={value}" for value in ("bicubic", "bilinear")),
    *(f"resize={value}" for value in ("shortest", "longest", "squash")),
)
FILE, FOLDER = "file", "dir"  # click's names for completion by the shell itself
Offer = Callable[[click.Context, str], Iterable[str]]
"""A function that returns the possible values, given the context and the typed part of a value."""


class Completed(StringParamType):
    """A text option whose values a shell can complete.

    Args:
        offer: Possible values.
        place: FILE or FOLDER if paths are possible as well.
    """

    def __init__(self, offer: Offer | None = None, place: str | None = None) -> None:
        self.offer = offer
        self.place = place

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the values that begin with the typed part."""
        values = self.offer(ctx, incomplete) if self.offer else ()
        items = [CompletionItem(value) for value in values if value.startswith(incomplete)]
        return [*items, CompletionItem(incomplete, type=self.place)] if self.place else items


def complete_by_name(command: click.Command) -> None:
    """Add completion to the text parameters listed in COMPLETED."""
    for parameter in command.params:
        if parameter.type is click.STRING and parameter.name in COMPLETED:
            parameter.type = COMPLETED[parameter.name]


def words(*choices: str) -> Offer:
    """Offer these words."""
    return lambda context, typed: choices


def listed(*choices: str) -> Offer:
    """Offer a list separated by commas: the typed values and one more of these words."""

    def offer(context: click.Context, typed: str) -> list[str]:
        before, comma, _ = typed.rpartition(",")
        return [f"{before}{comma}{word}" for word in choices if word not in before.split(",")]

    return offer


def _models(context: click.Context, typed: str) -> Iterable[str]:
    header = _bundle_header(context)
    return [header["model"]["name"]] if header else (*embedded_names(), *architecture_names())


def _tags(context: click.Context, typed: str) -> Iterable[str]:
    return (*pretrained_tags(str(context.params.get("model"))), "random")


def _text_sources(context: click.Context, typed: str) -> Iterable[str]:
    return pretrained_tags(str(context.params.get("model")))


def _preprocessings(context: click.Context, typed: str) -> Iterable[str]:
    """Offer the model's tags, and the settings that are not typed yet."""
    before, comma, _ = typed.rpartition(",")
    keys = {part.partition("=")[0] for part in before.split(",")}
    settings = [f"{before}{comma}{value}" for value in PREPROCESSINGS if value.partition("=")[0] not in keys]
    model = str(context.params.get("model") or context.params.get("judge") or "").partition(":")[0]
    return settings if comma else [*pretrained_tags(model), *settings]


def _layers(context: click.Context, typed: str) -> list[str]:
    """Offer the layers of the bundle on the command line, else of the model; after `8-`, the ends of a range."""
    header = _bundle_header(context)
    numbers = header["settings"].get("layers", []) if header else range(layer_count(str(context.params.get("model", ""))))
    layers = [str(layer) for layer in numbers]
    before, _, last = typed.rpartition(",")
    first, dash, _ = last.partition("-")
    if dash:
        start = f"{before}," if before else ""
        return [f"{start}{first}-{layer}" for layer in layers if first.isdecimal() and int(layer) > int(first)]
    return list(listed(*layers)(context, typed))


def _pools(context: click.Context, typed: str) -> Iterable[str]:
    return VOCABULARY_NAMES


def _classes(context: click.Context, typed: str) -> Iterable[str]:
    return CLASS_LIST_NAMES


def _writers(context: click.Context, typed: str) -> Iterable[str]:
    """Offer `template` to clip-advgen only: it writes descriptions of pictures without a language model."""
    return ("smollm2", "template") if context.command.name == "clip-advgen" else ("smollm2",)


def _pairs(context: click.Context, typed: str) -> Iterable[str]:
    return PAIR_LIST_NAMES


def _bundle_header(context: click.Context) -> dict[str, Any] | None:
    """Return the header of the bundle on the command line; None without a bundle that can be read."""
    values = context.params.get("bundle") or context.params.get("bundles") or ()
    # When the value to be completed is still empty, click stops before it assigns arguments to parameters.
    for path in map(Path, (*(values if isinstance(values, tuple) else (values,)), *context.args)):
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
    "groups": Completed(words("folders", "scenes"), FILE),
    "against": Completed(place=FILE),
    "above": Completed(words("threshold")),
    "truth": Completed(words("scenes"), FILE),
    "llm": Completed(_writers, FILE),
    "painter": Completed(words("emoji"), FOLDER),
    "upscaler": Completed(place=FOLDER),
    "threshold": Completed(words("mean")),
    "thresholds": Completed(words("mean")),
    "background": Completed(words("none")),
    "backgrounds": Completed(words("none")),
}
"""Completion by the parameter's name; parameters with a type of their own (choices, paths, Completed) are not listed."""
