"""Things that a model takes for other things: pairs of texts such that units that see the first write the second.

The equations are in analysis/mismatch.py. No classes and no pictures are needed beyond the bundle of clip-effects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cliptools.analysis.mismatch import Mismatch, Pairs
from cliptools.analysis.seen import ReadDirections
from cliptools.analysis.selection import by_layers
from cliptools.arguments import checked, chosen_layers, chosen_templates, require_number
from cliptools.console import count_of, front_call, note, warn
from cliptools.console import progress as shown
from cliptools.errors import StreamError, TextError, UsageError
from cliptools.front.bundles import require_neurons
from cliptools.front.models import model_of
from cliptools.front.tables import Records
from cliptools.front.unit_records import ENOUGH_IMAGES, record_source, unit_keys
from cliptools.front.vocabulary import Vocabulary, default_vocabulary, vocabulary, vocabulary_of
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.io.jsonl import rounded, unit_name
from cliptools.models.load import LoadedModel
from cliptools.models.templates import check_template_options, recorded_templates
from cliptools.models.text_encoder import encode_named
from cliptools.text.vocabularies import Pool

NEEDED_TENSORS = ("read", "deviation", "embedding_covariance")
HEAD = 20
SHOWN_UNITS = 5
TABLE_UNITS = 3


@dataclass(frozen=True, kw_only=True)
class MismatchRequest:
    """Arguments of `mismatch`, which describes them."""

    cues: Sequence[str] = ()
    texts: Vocabulary = None
    head: int = HEAD
    units: int = SHOWN_UNITS
    alike: bool = False
    near: float = 0.7
    layers: Sequence[int] | None = None
    templates: Sequence[str] = ()
    model: LoadedModel | str | None = None
    device: str = "auto"
    cache: bool = True


@checked
def mismatch(
    bundle: Bundle,
    cue: str | Sequence[str] = (),
    *,
    texts: Vocabulary = None,
    head: int = HEAD,
    units: int = SHOWN_UNITS,
    alike: bool = False,
    near: float = 0.7,
    layers: Sequence[int] | None = None,
    templates: Sequence[str] = (),
    model: LoadedModel | str | None = None,
    device: str = "auto",
    cache: bool = True,
    progress: bool = False,
) -> Records:
    """Find things that units see and other things that the same units write, as clip-spurious --mismatch and --cue do.

    Args:
        bundle: Units, with or without words.
        cue: Things that images may show: for each, the texts that it calls up most. Empty: the pairs of texts of largest score.
        texts: Vocabulary: emoji, scenes, imagenet, words10k, words30k, the path of a file with one text per line, or the texts
            themselves. None: that of the bundle's words; without words scenes for the embedded models, else words30k.
        head: Number of pairs, or of texts for each cue.
        units: Number of units listed for each pair, those of the largest shares, which `edit` takes from the records.
        alike: List pairs of things that look alike too.
        near: Cosine of two texts, less the mean of the vocabulary, from which on they are alike.
        layers: Layers of the units. None: all.
        templates: Sentences with {} in place of the text, whose embeddings are averaged; imagenet or emoji for a set of them.
        model: The bundle's model, if it is loaded already, or the name that it must have.
        device: auto, cpu, cuda, cuda:1 or mps.
        cache: Read text embeddings from the cache, and write them to it.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        A record for each pair: sees, writes, rank, score, G, the signs that both look alike, the control by the model's own
        similarities, and the units behind the pair.

    Raises:
        UsageError: an argument is invalid.
        StreamError: the bundle has no units or no read directions.
        TextError: the vocabulary is unknown, unreadable or has fewer than two texts.
        ModelError: the model is not available, or not the bundle's.
    """
    require_number("head", head, 1)
    require_number("units", units, 1)
    require_number("near", near, 1e-9, 1)
    with front_call(progress):
        request = MismatchRequest(
            cues=(cue,) if isinstance(cue, str) else tuple(cue), texts=texts, head=head, units=units, alike=alike, near=near,
            layers=chosen_layers(layers), templates=chosen_templates(templates), model=model, device=device, cache=cache,
        )  # fmt: skip
        records = mismatch_records(require_neurons(require_read(bundle), device=device), request)
        return Records(records, lambda rows: [mismatch_table(rows)])


def require_read(bundle: Bundle, name: str = "the bundle") -> Bundle:
    """Return the bundle, which has read directions and the covariance of the embeddings.

    Raises:
        StreamError: it has none: it is of an older version, or of pairs without --keep.
    """
    for tensor in NEEDED_TENSORS:
        if tensor not in bundle:
            kind = "neuron-head pairs without --keep" if "sign" in bundle else "an older version"
            remedy = "with --keep, as 20% or 100%" if "sign" in bundle else "with clip-effects"
            raise StreamError(f"{name}: a bundle without `{tensor}`, of {kind}; make it again {remedy}")
    return bundle


def read_directions(bundle: Bundle) -> ReadDirections:
    """Return the read directions of a bundle's units, in its types."""
    return ReadDirections(*(torch.from_numpy(bundle[name]) for name in NEEDED_TENSORS))


def mismatch_records(bundle: Bundle, request: MismatchRequest) -> Iterator[dict[str, Any]]:
    """Yield a record for each pair; every record can be read alone.

    Raises:
        UsageError: a cue is an empty text.
        StreamError: the bundle has no units.
        TextError: the vocabulary has fewer than two texts.
    """
    if not all(cue.strip() for cue in request.cues):
        raise UsageError("--cue: found an empty text; expected a thing, as in --cue mountain")
    if not bundle.units:
        raise StreamError("the bundle has no units; was an earlier selection too narrow?")
    source = record_source(bundle)
    if request.layers is not None:
        bundle = bundle.select(by_layers(bundle, request.layers))
    check_template_options(request.templates)
    pool = _pool(bundle, request)
    if len(pool.texts) < 2:
        raise TextError(f"--pool {pool.name}: expected at least two texts, found {len(pool.texts)}")
    if (count := bundle.header.images.get("count", ENOUGH_IMAGES)) < ENOUGH_IMAGES:
        warn(f"{count_of(count, 'image')} only in this bundle: what units see is uncertain with fewer than {ENOUGH_IMAGES}")
    model = model_of(bundle, request.model, request.device)
    t = encode_named(model, pool, request.templates, use_cache=request.cache)
    c = t[:0]
    if request.cues:
        cues = Pool("cues", tuple(request.cues), digest(*request.cues))
        c = encode_named(model, cues, request.templates, use_cache=request.cache)
    search = _open_search(bundle, t, request)
    for record in _records(search, bundle, pool, c, request):
        yield record | source


def _pool(bundle: Bundle, request: MismatchRequest) -> Pool:
    """Return the vocabulary: the requested one, that of the bundle's words, or the default of its model."""
    if request.texts is not None:
        return vocabulary(request.texts)
    return vocabulary_of(bundle, None) if "words" in bundle else default_vocabulary(bundle)


def _open_search(bundle: Bundle, t: Float[Tensor, "t d"], request: MismatchRequest) -> Mismatch:
    """Return the search over the units of a bundle, on the device of the texts."""
    read = ReadDirections(*(x.to(t) for x in read_directions(bundle)))
    return Mismatch(read, torch.from_numpy(bundle["direction"]).to(t), t, request.near, request.alike)


def _records(
    search: Mismatch, bundle: Bundle, pool: Pool, c: Float[Tensor, "c d"], request: MismatchRequest
) -> Iterator[dict[str, Any]]:
    """Yield a record for each pair, without the fields of its source."""
    number = {text: j for j, text in enumerate(pool.texts)}
    settings = {
        "pool": pool.name, "digest": pool.digest, "near": request.near, "with_alike": request.alike,
        "layers": None if request.layers is None else list(request.layers), "templates": recorded_templates(request.templates),
    }  # fmt: skip
    more = {"effect": bundle.header.settings.get("effect"), "settings": settings}
    for cue, embedding in zip(request.cues, c, strict=True):
        pairs = search.of_cue(embedding, number.get(cue), request.head)
        _note_none(pairs, repr(cue))
        things = [(cue, embedding)] * len(pairs.t)
        yield from (record | more for record in _pair_records(search, bundle, pool, pairs, things, request.units))
    if not request.cues:
        pairs = search.largest(request.head, partial(shown, label="rows of texts", total=2 * len(search.row_blocks)))
        _note_none(pairs, "one thing")
        things = [(pool.texts[s], search.t[s] + search.mean) for s in pairs.s.tolist()]
        yield from (record | more for record in _pair_records(search, bundle, pool, pairs, things, request.units))


def _note_none(pairs: Pairs, thing: str) -> None:
    """Say so if there are no pairs."""
    if not len(pairs.t):
        note(f"no unit of the bundle sees {thing} and writes another that is not like it")


def _pair_records(
    search: Mismatch, bundle: Bundle, pool: Pool, pairs: Pairs, things: Sequence[tuple[str, Tensor]], units: int
) -> Iterator[dict[str, Any]]:
    """Yield the fields of each pair; `things` are the names and embeddings of what is seen."""
    alike = search.alike(pairs.scores).tolist()
    for p, ((name, embedding), t) in enumerate(zip(things, pairs.t.tolist(), strict=True)):
        score = {key: rounded(float(column[p])) for key, column in pairs.scores._asdict().items()}
        yield {
            "sees": name,
            "writes": pool.texts[t],
            "rank": p + 1,
            "score": score["z"],
            "G": score["G"],
            "alike": alike[p],
            "together": score["together"],
            "similarity": score["similarity"],
            "own": score["own"],
            "own_score": score["own_z"],
            "own_rank": int(pairs.own_rank[p]),
            "units": _unit_records(search, bundle, embedding, t, units),
        }


def _unit_records(search: Mismatch, bundle: Bundle, s: Float[Tensor, " d"], t: int, count: int) -> list[dict[str, Any]]:
    """Return the units of the largest shares of G: the correlation with which each sees s, <r, t>, and its share."""
    see, write = search.parts(s, t)
    product = see * write
    total = float(product.sum())
    order: Int[Tensor, " n"] = product.argsort(descending=True, stable=True)[:count]
    units = []
    for n in order.tolist():
        if product[n] > 0:
            correlation = float(see[n]) / float(bundle["deviation"][n])
            parts = {"see": rounded(correlation), "write": rounded(float(write[n]))}
            share = rounded(float(product[n]) / total)
            units.append(unit_keys(*bundle["unit"][n].tolist()) | parts | {"share": share})
    return units


def mismatch_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return a table of the pairs, each with its strongest units."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("rank", "sees", "writes", "score", "together", "own rank", "units"):
        table.add_column(title, justify="left" if title in ("sees", "writes", "units") else "right", overflow="fold")
    for record in records:
        units = [
            f"{unit_name(item['layer'], item.get('neuron', -1), item.get('head', -1))} {item['share']:.0%}"
            for item in record["units"][:TABLE_UNITS]
        ]
        together = f"{record['together']:.2f}{' alike' if record['alike'] else ''}"
        cells = (str(record["rank"]), record["sees"], record["writes"], f"{record['score']:.1f}", together)
        table.add_row(*map(Text, (*cells, str(record["own_rank"]))), Text("  ".join(units)))
    return table
