"""What clip-ablate is asked to change: settings from options, and what each bundle needs for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cliptools.commands.base import open_input, parse_layers, parse_percentage
from cliptools.ground.counted import count_of
from cliptools.ground.errors import StreamError, UsageError
from cliptools.ground.model_identity import model_difference, reason_of

if TYPE_CHECKING:
    import numpy as np

    from cliptools.ground.bundle import Bundle

ABLATE = ("all", "large", "small", "none", "joint")
RECONSTRUCT = ("pc", "words")
WORDS_ALONG = ("direction", "texts", "unit-texts")
REST = "rest"  # what records call the ablation of all units but those kept


class Change(NamedTuple):
    """What a setting makes of its units."""

    kind: str
    """One of ABLATE and RECONSTRUCT, or REST."""
    size: int | None = None
    """Of pc, components; of words, texts: None for all."""
    keep: float | None = None
    """Share of the units that is not just the mean."""
    along: str | None = None
    """Of words, one of WORDS_ALONG."""

    def said(self) -> dict[str, Any]:
        """As records say it."""
        verb = "reconstruct" if self.kind in RECONSTRUCT else "ablate"
        size = {} if self.size is None else {"components" if self.kind == "pc" else "m": self.size}
        along = {} if self.along is None else {"along": self.along}
        return {verb: self.kind} | size | along | ({} if self.keep is None else {"keep": self.keep})


class Setting(NamedTuple):
    """A change of the units of some layers."""

    layers: tuple[int, ...]
    change: Change


class Asked(NamedTuple):
    """A bundle, and its settings."""

    bundle: "Bundle"
    settings: list[Setting]

    @property
    def effect(self) -> str:
        """As bundles record it."""
        return str(self.bundle.header.settings["effect"])

    @property
    def units(self) -> str:
        """As bundles record it."""
        return str(self.bundle.header.settings.get("units", "neurons"))

    def rows(self, layers: Sequence[int]) -> "np.ndarray":
        """Which units [units] lie in these layers."""
        import numpy as np

        return np.isin(self.bundle["unit"][:, 0], layers)


def parse_changes(options: dict[str, Any]) -> list[Change]:
    """What is asked of every group of layers, in order.

    Raises:
        UsageError: not so written.
    """
    keeps: list[float | None] = [*(parse_percentage(part, "--keep") for part in _parts(options["keep"]))]
    ablate = _kinds(options["ablate"], "--ablate", ABLATE)
    reconstruct = _kinds(options["reconstruct"], "--reconstruct", RECONSTRUCT)
    if options["m"] and "words" not in reconstruct:
        raise UsageError("--m is for --reconstruct words")
    along: list[str | None] = [*_kinds(options["words_along"], "--words-along", WORDS_ALONG)]
    if along and "words" not in reconstruct:
        raise UsageError("--words-along is for --reconstruct words")
    alongs: dict[str, list[str | None]] = {"pc": [None], "words": along or [WORDS_ALONG[0]]}
    sizes: dict[str, list[int | None]] = {
        "pc": [*_numbers(options["components"], "--components")],
        "words": [*_numbers(options["m"], "--m")] or [None],
    }
    asked = [Change(kind) for kind in ablate]
    asked += [
        Change(kind, size, keep, along)
        for kind in reconstruct
        for along in alongs[kind]
        for size in sizes[kind]
        for keep in keeps or [None]
    ]
    asked += [Change(REST, None, keep) for keep in keeps] if not reconstruct else []
    return list(dict.fromkeys(asked)) or [Change("all")]


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else []


def _kinds(text: str | None, option: str, known: Sequence[str]) -> list[str]:
    parts = _parts(text)
    if strange := [part for part in parts if part not in known]:
        raise UsageError(f"{option} {text}: expected some of {', '.join(known)}, found {strange[0]!r}")
    return parts


def _numbers(text: str | None, option: str) -> list[int]:
    parts = _parts(text)
    if strange := [part for part in parts if not part.isdigit() or int(part) < 1]:
        raise UsageError(f"{option} {text}: expected numbers from 1 on, as 1,2,4, found {strange[0]!r}")
    return [int(part) for part in parts]


def open_bundles(changes: Sequence[Change], options: dict[str, Any]) -> list[Asked]:
    """The bundles named, or the one on standard input, each with its settings.

    Raises:
        StreamError: no bundle, not all of one model, or one that lacks what is asked.
        UsageError: a bundle of others than --effect or --units says, or layers that it has not.
    """
    from cliptools.ground.bundle import read_bundle

    paths: Sequence[Path | None] = options["bundles"] or [None]
    if sum(path is None or str(path) == "-" for path in paths) > 1:
        raise UsageError("--bundle -: standard input holds one bundle")
    found: list[Asked] = []
    for path in paths:
        stream, name = open_input(path, "a bundle of clip-effects", "--bundle FILE")
        with stream:
            bundle = read_bundle(stream, name)
        if found and (difference := model_difference(bundle.header.model, found[0].bundle.header.model)):
            names = found[0].bundle.header.model["name"], bundle.header.model["name"]
            than = f"of another model ({names[1]}) than the first bundle ({names[0]})"
            raise StreamError(f"{name}: {than}; compare one model's{reason_of(difference)}")
        _check_effect(bundle, name, options)
        groups = _groups(bundle, options)
        indirect = bundle.header.settings["effect"] == "indirect"
        own = [_sized(change, bundle) for change in changes if indirect or change.kind != "joint"]
        asked = Asked(bundle, [Setting(group, change) for group in groups for change in own])
        for change in own:
            _check_held(change, asked, name)
        found.append(asked)
    if any(change.kind == "joint" for change in changes) and all(asked.effect != "indirect" for asked in found):
        raise UsageError("--ablate joint sets activations themselves, and is for a bundle of indirect effects; none is given")
    return found


def _check_effect(bundle: "Bundle", name: str, options: dict[str, Any]) -> None:
    settings = bundle.header.settings
    if "effect" not in settings or "threshold" not in bundle or not {"direction", "sign"} & set(bundle.tensors):
        raise StreamError(f"{name}: a bundle without effects; run clip-effects first")
    for key, default in (("effect", None), ("units", "neurons")):
        if options[key] and settings.get(key, default) != options[key]:
            raise UsageError(f"--{key} {options[key]}: {name} is of {settings.get(key, default)}")


def _groups(bundle: "Bundle", options: dict[str, Any]) -> list[tuple[int, ...]]:
    """Layers whose units are changed together."""
    groups = [parse_layers(text) for text in options["layers"]]
    if groups:
        from cliptools.methods.selection import by_layers

        _ = [by_layers(bundle, group) for group in groups]
    held = sorted(set(bundle["unit"][:, 0].tolist()))
    if not held:
        raise StreamError("a bundle without units: nothing to change")
    groups = groups or [tuple(held)]
    return list(dict.fromkeys([*groups, *([(layer,) for layer in held] if options["each_layer"] else [])]))


def _sized(change: Change, bundle: "Bundle") -> Change:
    """With all words a bundle has, where no number is asked."""
    if change.kind != "words" or change.size is not None or "word" not in bundle:
        return change
    return change._replace(size=bundle["word"].shape[1])


def _check_held(change: Change, asked: Asked, name: str) -> None:
    """What the bundle must hold for a change."""
    bundle = asked.bundle
    if asked.effect == "indirect" and "token_mean" not in bundle:
        raise StreamError(f"{name}: indirect effects without `token_mean`, of an earlier version; run clip-effects anew")
    if change.kind == "pc":
        held = bundle["component"].shape[1] if "component" in bundle else 1
        if (change.size or 1) > held:
            more = "a pair acts along one direction" if asked.units == "pairs" else f"clip-effects --components {change.size}"
            raise UsageError(f"--components {change.size}: {name} holds {held} a unit ({more})")
    if change.kind == "words":
        if "word" not in bundle:
            raise StreamError(f"{name}: a bundle without `word`; run clip-decompose first")
        if bundle.header.settings.get("words", {}).get("method") == "textspan":
            raise StreamError(f"{name}: its words are TextSpan's, shares of what heads write; a sum of texts is wanted")
        if (change.size or 1) > (held := bundle["word"].shape[1]):
            raise UsageError(
                f"--m {change.size}: {name} holds {count_of(held, 'word')} a unit (clip-decompose --m {change.size})"
            )
