"""Words for a few units of a bundle: those that it has, else the texts that overlap most with what units write or see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.pursuit import text_space
from cliptools.analysis.seen import ReadDirections, overlapping_texts, seen_texts
from cliptools.front.unit_records import positive_and_negative, seen_words, signed_words, weight_name, word_records
from cliptools.front.vocabulary import Vocabulary, default_vocabulary, vocabulary
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel
from cliptools.models.text_encoder import encode_named
from cliptools.text.vocabularies import Pool
from cliptools.unit_effects.pairs import unit_directions
from cliptools.unit_effects.select import pair_effect

COUNT = 3
READ = ("read", "deviation", "embedding_covariance")
Words = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class UnitWords:
    """Words of single units of a bundle."""

    bundle: Bundle
    model: LoadedModel
    pool: Pool | None = None
    """The vocabulary for a bundle without words."""
    atoms: Float[Tensor, "text d"] | None = None
    """Its texts less their mean, at unit norm."""

    def of(self, rows: Sequence[int]) -> list[dict[str, Words]]:
        """Return for each unit what it writes and what it sees, as fields of a record."""
        if self.pool is not None and self.atoms is not None:
            return self._closest(rows, self.pool, self.atoms)
        texts, weight = self.bundle.text_list("words")["texts"], weight_name(self.bundle)
        fields = []
        for row in rows:
            written = positive_and_negative(signed_words(self.bundle, row), COUNT)
            seen = seen_words(self.bundle, row)[:COUNT]
            fields.append(
                {
                    "writes": [{"word": texts[j], weight: rounded(c)} for j, c in written],
                    "sees": [{"word": texts[j], "correlation": rounded(c)} for j, c in seen],
                }
            )
        return fields

    def _closest(self, rows: Sequence[int], pool: Pool, atoms: Float[Tensor, "text d"]) -> list[dict[str, Words]]:
        """Return the texts of largest overlap with the directions and, with read directions, of largest correlation."""
        index = list(rows)
        overlap = overlapping_texts(self._directions(index).to(atoms), atoms, COUNT)
        fields: list[dict[str, Words]] = []
        for text, value in zip(overlap.text.tolist(), overlap.value.tolist(), strict=True):
            fields.append({"writes": word_records(pool.texts, text, value, "overlap"), "sees": []})
        if all(name in self.bundle for name in READ):
            q, deviation = (torch.from_numpy(self.bundle[name][index]).double() for name in READ[:2])
            read = ReadDirections(q, deviation, torch.from_numpy(self.bundle[READ[2]]).double())
            seen = seen_texts(read, atoms.cpu().double(), COUNT)
            for field, text, value in zip(fields, seen.text.tolist(), seen.value.tolist(), strict=True):
                field["sees"] = word_records(pool.texts, text, value, "correlation")
        return fields

    def _directions(self, rows: list[int]) -> Float[Tensor, "unit d"]:
        """Return the directions of some units; those of pairs follow from the weights."""
        if "sign" not in self.bundle:
            return torch.from_numpy(self.bundle["direction"][rows])
        unit, sign = torch.from_numpy(self.bundle["unit"][rows]).long(), torch.from_numpy(self.bundle["sign"][rows])
        return unit_directions(pair_effect(self.model.clip), unit, sign)


def unit_words(bundle: Bundle, model: LoadedModel, texts: Vocabulary, cache: bool) -> UnitWords:
    """Return the words of a bundle's units; for a bundle without words, encode a vocabulary.

    Args:
        texts: The vocabulary. None: the default of the bundle's model.
    """
    if "word" in bundle:
        return UnitWords(bundle, model)
    pool = default_vocabulary(bundle) if texts is None else vocabulary(texts)
    return UnitWords(bundle, model, pool, text_space(encode_named(model, pool, (), use_cache=cache), "pool", "texts"))
