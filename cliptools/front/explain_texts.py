"""The two texts of a margin: given, or for each image its best classes; or one text less the mean of a vocabulary."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.explanation import cosines
from cliptools.errors import TextError, UsageError
from cliptools.front.vocabulary import Vocabulary, default_vocabulary, vocabulary, vocabulary_of
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.models.load import LoadedModel
from cliptools.models.templates import class_templates, recorded_templates, template_options
from cliptools.models.text_encoder import encode_named
from cliptools.text.classes import distinct_classes, load_classes
from cliptools.text.vocabularies import Pool

SMALLEST = 1e-6  # length of t_A - t_B below which the texts are equal up to rounding
Classes = str | os.PathLike[str] | Sequence[str] | None
"""The name of a list of classes, a file, or the classes themselves."""


class Target(NamedTuple):
    """Two texts A and B, or a text and the mean of a vocabulary."""

    a: str
    b: str | None
    """None for the mean of the vocabulary."""
    t: Float[Tensor, "2 d"]
    """t_A and t_B."""

    @property
    def v(self) -> Float[Tensor, " d"]:
        """t_A - t_B."""
        return self.t[0] - self.t[1]

    @property
    def title(self) -> str:
        """The target as in `cat − dog`."""
        return f"{self.a} − {self.b or 'mean of the vocabulary'}"


@dataclass(frozen=True, eq=False)
class Targets:
    """Texts, of which two are chosen for each image."""

    names: tuple[str | None, ...]
    t: Float[Tensor, "text d"]
    a: int | None = None
    """Row of text A; None for the class of largest cosine with the image."""
    b: int | None = None
    """Row of text B; None for the class of largest cosine among all others."""
    settings: dict[str, object] = field(default_factory=dict)
    """Fields of every record: the classes or the vocabulary, and the templates."""
    chosen: dict[tuple[int, int], Target] = field(default_factory=dict)

    def of(self, embedding: Float[Tensor, "b d"]) -> list[Target]:
        """Return the target of each image; equal pairs of texts are the same object.

        Raises:
            TextError: all classes equal text A.
        """
        targets = []
        for row in cosines(embedding, self.t):  # (text,)
            a = int(row.argmax()) if self.a is None else self.a
            b = self.b
            if b is None:
                other = (self.t - self.t[a]).norm(dim=1).cpu() > SMALLEST
                if not bool(other.any()):
                    raise TextError(f"--classes: all have the embedding of {self.names[a]!r}; expected another class")
                b = int(torch.where(other, row, -torch.inf).argmax())
            if (a, b) not in self.chosen:
                self.chosen[a, b] = Target(str(self.names[a]), self.names[b], self.t[[a, b]])
            targets.append(self.chosen[a, b])
        return targets


def check_texts(texts: Sequence[str], classes: Classes) -> None:
    """Reject invalid combinations of texts before any input is read.

    Raises:
        UsageError: there is nothing to explain, or the texts are blank, equal, or more than two.
    """
    if any(not text.strip() for text in texts):
        raise UsageError("--text: found an empty text; expected a class or a thing, as in --text cat")
    if not texts and classes is None:
        raise UsageError("no texts: give --text A --text B, --text A alone, or --classes")
    if len(texts) > (2 if classes is None else 1):
        expected = "--text A --text B" if classes is None else "--classes with one --text or none"
        raise UsageError(f"--text: found {len(texts)} texts; expected {expected}")
    if len(texts) == 2 and texts[0].strip().casefold() == texts[1].strip().casefold():
        raise UsageError(f"--text: both texts are {texts[0]!r}, so that the margin is 0 on every image; give another text B")


def open_targets(
    texts: Sequence[str], classes: Classes, pool: Vocabulary, templates: Sequence[str], bundle: Bundle, model: LoadedModel,
    cache: bool,
) -> Targets:  # fmt: skip
    """Encode the texts.

    Raises:
        TextError: the classes or the vocabulary are unknown or too few, or both texts have the same embedding.
    """
    if classes is None and len(texts) == 1:
        return _against_mean(texts[0], pool, templates, bundle, model, cache)
    given = class_templates(model.name, templates)
    names = tuple(dict.fromkeys((*texts, *_class_names(classes))))
    if len(names) < 2:
        raise TextError(f"--classes {classes}: expected at least two classes, found {len(names)}")
    t = encode_named(model, Pool("texts", names, digest(*names)), given, use_cache=cache)
    settings: dict[str, object] = {"templates": recorded_templates(given)}
    if classes is None:
        _check_different(t[0] - t[1], f"{texts[0]!r} and {texts[1]!r}")
        return Targets(names, t, 0, 1, settings)
    title = os.fspath(classes) if isinstance(classes, str | os.PathLike) else "classes"
    settings |= {"classes": title, "class_count": len(names)}
    return Targets(names, t, 0 if texts else None, None, settings)


def _against_mean(
    text: str, pool: Vocabulary, templates: Sequence[str], bundle: Bundle, model: LoadedModel, cache: bool
) -> Targets:
    """Return a text and the mean of a vocabulary, which is that of the bundle's words by default, with their templates."""
    if pool is not None:
        texts = vocabulary(pool)
    else:
        texts = vocabulary_of(bundle, None) if "words" in bundle else default_vocabulary(bundle)
    recorded = bundle.header.settings.get("words", {}).get("templates", ())
    given = tuple(templates) or template_options(recorded)
    mean = encode_named(model, texts, given, use_cache=cache).mean(0)
    t = encode_named(model, Pool("texts", (text,), digest(text)), given, use_cache=cache)[0]
    _check_different(t - mean, f"{text!r} and the mean of {texts.name}")
    settings: dict[str, object] = {"templates": recorded_templates(given), "pool": texts.name, "pool_digest": texts.digest}
    return Targets((text, None), torch.stack([t, mean]), 0, 1, settings)


def _class_names(classes: Classes) -> tuple[str, ...]:
    """Return the names of the classes without duplicates."""
    if classes is None:
        return ()
    if isinstance(classes, str | os.PathLike):
        return tuple(row.name for row in distinct_classes(load_classes(os.fspath(classes))))
    return tuple(dict.fromkeys(classes))


def _check_different(v: Float[Tensor, " d"], texts: str) -> None:
    """Check that a difference of embeddings is not 0.

    Raises:
        TextError: it is.
    """
    if float(v.norm()) < SMALLEST:
        raise TextError(f"--text: {texts} have the same embedding, so that the margin is 0 on every image")
