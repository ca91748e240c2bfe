"""Work of clip-spurious: reads the bundle and the pairs of classes, has the words found, and writes records or a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table
from rich.text import Text

from cliptools.analysis.selection import by_layers
from cliptools.analysis.spurious import PairWords, Search, Settings, Texts, Words
from cliptools.analysis.spurious_pairs import clearest_pairs
from cliptools.cli.app import Output, choose_format, parse_layers
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.console import count_of, note, verb_form
from cliptools.errors import StreamError, TextError, UsageError
from cliptools.front.tables import rendered
from cliptools.front.unit_records import record_source, unit_keys
from cliptools.io.bundle import Bundle
from cliptools.io.files import text_output
from cliptools.io.header import digest
from cliptools.io.jsonl import rounded, unit_name, write_record
from cliptools.io.text_file import read_lines
from cliptools.models.load import RecordedModel
from cliptools.models.text_encoder import check_template_options, encode_named, recorded_templates
from cliptools.text.classes import ClassName, ClassPair, distinct_classes, load_classes, load_pairs, make_pair
from cliptools.text.vocabularies import Pool, recorded_pool

TOOL = "clip-spurious"
PAIRS = 10  # pairs of --classes by default
WORDS, NEURONS = 25, 100  # defaults of the paper
SINGLE_WORDS, SINGLE_NEURONS = 20, 50  # defaults of the paper's public code, with --by single
UNKNOWN_NAMES = 3  # names that the note on names outside the vocabulary lists
TABLE_NEURONS = 3


@dataclass(frozen=True, kw_only=True)
class SpuriousOptions(Output):
    """Options of clip-spurious."""

    bundle: Path | None
    depict: str | None
    predict: str | None
    pairs_file: str | None
    classes: str | None
    head: int | None
    words: int | None
    neurons: int | None
    layers: str | None
    by: Literal["effect", "single", "overlap", "random", "random-overlap", "similar"]
    seed: int
    exclude: tuple[str, ...]
    near: float
    block_list: Path | None
    templates: tuple[str, ...]
    no_cache: bool
    device: str


def run(options: SpuriousOptions) -> None:
    """Run clip-spurious.

    Raises:
        UsageError: invalid options.
        StreamError: the bundle has no neurons.
    """
    pairs, classes = _pairs(options)
    single = options.by == "single"
    words = options.words or (SINGLE_WORDS if single else WORDS)
    neurons = options.neurons or (SINGLE_NEURONS if single else NEURONS)
    settings = Settings(options.by, neurons, words, options.seed, options.near)
    blocked = [line for _, line in read_lines(options.block_list, "block list")] if options.block_list else []
    bundle = read_neurons(options.bundle, "word", "coefficient", "words", device=options.device)
    if not bundle.units:
        raise StreamError("the bundle has no neurons; was an earlier selection too narrow?")
    source = record_source(bundle)
    if options.layers:
        bundle = bundle.select(by_layers(bundle, parse_layers(options.layers)))
    search = _open_search(bundle, _class_names(pairs, classes, options.exclude), settings, blocked, options)
    results = _clearest(search, classes, options.head or PAIRS) if classes else [_words_of_pair(search, pair) for pair in pairs]
    records = (record | source for record in _records(results, search, bundle, options))
    with text_output(options.output) as stream:
        if choose_format(options.output_format, options.output, "jsonl") == "jsonl":
            for record in records:
                write_record(stream, record)
        else:
            _write_table(list(records), stream)


def _pairs(options: SpuriousOptions) -> tuple[Sequence[ClassPair], Sequence[ClassName]]:
    """The pairs that the options name, or the classes whose pairs are all wanted; the other one is empty.

    Raises:
        UsageError: not exactly one of the ways to name pairs.
    """
    one_pair = options.depict is not None or options.predict is not None
    if one_pair + (options.pairs_file is not None) + (options.classes is not None) != 1:
        raise UsageError("expected exactly one of: --depict with --predict, --pairs-file, --classes")
    if options.head and not options.classes:
        raise UsageError(f"--head {options.head} needs --classes; pairs that are named are all written")
    if options.classes is not None:
        classes = distinct_classes(load_classes(options.classes))
        if len(classes) < 2:
            raise UsageError(f"--classes {options.classes}: expected at least two classes, found {len(classes)}")
        return (), classes
    if options.pairs_file is not None:
        return load_pairs(options.pairs_file), ()
    if options.depict is None or options.predict is None:
        raise UsageError("--depict (the class shown) and --predict (the class to predict instead) need each other")
    return (make_pair(options.depict, options.predict),), ()


def _class_names(pairs: Sequence[ClassPair], classes: Sequence[ClassName], excluded: Sequence[str]) -> list[str]:
    """All names of classes and all excluded texts, without duplicates."""
    items = [item for pair in pairs for item in (pair.depict, pair.predict)] + list(classes)
    return list(dict.fromkeys([name for item in items for name in item.names] + list(excluded)))


def _open_search(
    bundle: Bundle, names: list[str], settings: Settings, blocked: Sequence[str], options: SpuriousOptions
) -> Search:
    """Load the model and embed every text once."""
    check_template_options(options.templates)
    pool = recorded_pool(bundle)
    row_of = {text: row for row, text in enumerate(pool.texts)}
    if unknown := [name for name in names if name not in row_of]:
        more = f" and {len(unknown) - UNKNOWN_NAMES} more" if len(unknown) > UNKNOWN_NAMES else ""
        note(
            f"{TOOL}: {', '.join(unknown[:UNKNOWN_NAMES])}{more}: not among the {count_of(len(row_of), 'text')} of vocabulary "
            f"{pool.name}; used as written"
        )
    rows = np.array([*(row_of[text] for text in bundle.text_list("words")["texts"]), -1])  # the last row is for words of -1
    texts = _embed(RecordedModel(bundle.header.model, options.device), pool, names, options)
    words = Words(rows[bundle["word"]], bundle["coefficient"])
    return Search(bundle["direction"], words, texts, settings, options.exclude, blocked)


def _embed(model: RecordedModel, pool: Pool, names: list[str], options: SpuriousOptions) -> Texts:
    """Return the embeddings of the vocabulary and of the names."""
    classes = Pool("classes", tuple(names), digest(*names))
    t, c = (encode_named(model, texts, options.templates, use_cache=not options.no_cache) for texts in (pool, classes))
    return Texts(pool.texts, t.cpu().double().numpy(), dict(zip(names, c.cpu().double().numpy(), strict=True)))


def _words_of_pair(search: Search, pair: ClassPair) -> PairWords:
    """Words of a pair that the options name.

    Raises:
        TextError: the pair has no words.
    """
    result = search.find(pair)
    if not len(result.word):
        count = len(result.removed)
        if count:
            texts = verb_form(count, "the only text with a positive score is", f"all {count} texts with a positive score are")
            why = f"{texts} excluded; see --near, --exclude, --block-list"
        else:
            why = "no text has a positive score; use more --neurons or --layers, or a bundle with more words (clip-decompose --m)"
        raise TextError(f"pair {pair.name}: no words left: {why}")
    return result


def _clearest(search: Search, classes: Sequence[ClassName], count: int) -> list[PairWords]:
    """Words of the ordered pairs whose words have the largest total scores.

    Raises:
        TextError: no pair has words.
    """
    best = clearest_pairs(search, classes, count)
    if not best:
        pairs = count_of(len(classes) * (len(classes) - 1), "pair")
        raise TextError(f"--classes: none of {pairs} has a word left; see --near, --exclude, --block-list")
    return best


def _records(results: Sequence[PairWords], search: Search, bundle: Bundle, options: SpuriousOptions) -> Iterator[dict[str, Any]]:
    """Yield one record per word, without the fields of its source."""
    unit, pool = bundle["unit"], search.texts.pool
    settings = {
        "neurons": search.settings.neurons, "words": search.settings.words, "layers": options.layers,
        "templates": recorded_templates(options.templates),
    }  # fmt: skip
    for result in results:
        pair = result.pair
        named = {"pair": pair.name, "depict": pair.depict.name, "predict": pair.predict.name}
        exclusions = {
            "names": [*pair.predict.names, *options.exclude],
            "near": options.near,
            "block_list": str(options.block_list) if options.block_list else None,
            "removed": [pool[j] for j in result.removed],
        }
        fields: dict[str, Any] = {"clearness": rounded(result.clearness), "by": options.by, "seed": options.seed}
        fields["effect"] = bundle.header.settings.get("effect")
        for rank, (j, score) in enumerate(zip(result.word.tolist(), result.score.tolist(), strict=True), 1):
            shares = [unit_keys(*unit[n].tolist()) | {"share": rounded(share)} for n, share in search.shares(pair, j)]
            ranked = named | {"rank": rank, "word": pool[j], "score": rounded(score)}
            yield ranked | fields | {"neurons": shares, "settings": settings, "exclusions": exclusions}


def _write_table(records: Sequence[dict[str, Any]], stream: BufferedIOBase) -> None:
    """Write the words of all pairs, each with its strongest neurons."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("pair", "rank", "score", "word", "neurons"):
        table.add_column(title, justify="right" if title in ("rank", "score") else "left", overflow="fold")
    for record in records:
        shares = [
            f"{unit_name(item['layer'], item.get('neuron', -1), item.get('head', -1))} {item['share']:.0%}"
            for item in record["neurons"][:TABLE_NEURONS]
        ]
        cells = (record["pair"] if record["rank"] == 1 else "", str(record["rank"]), f"{record['score']:.3g}", record["word"])
        table.add_row(*map(Text, cells), Text("  ".join(shares)))
    stream.write(rendered(table))
