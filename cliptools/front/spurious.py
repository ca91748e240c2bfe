"""Words that push an image of one class towards another (paper 1, section 5.1).

Eq. 6 is in analysis/spurious.py; the search over all pairs of a list of classes is in analysis/spurious_pairs.py.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from cliptools.analysis.selection import by_layers
from cliptools.analysis.spurious import By, PairWords, Search, Settings, Texts, Words
from cliptools.analysis.spurious_pairs import clearest_pairs
from cliptools.arguments import checked, chosen_layers, chosen_templates, require_number
from cliptools.console import count_of, front_call, note, verb_form
from cliptools.errors import StreamError, TextError, UsageError
from cliptools.front.bundles import require_neurons
from cliptools.front.models import model_of
from cliptools.front.tables import Records
from cliptools.front.unit_records import record_source, unit_keys
from cliptools.front.vocabulary import Vocabulary, vocabulary_of
from cliptools.io.bundle import Bundle
from cliptools.io.header import digest
from cliptools.io.jsonl import rounded, unit_name
from cliptools.io.text_file import read_lines
from cliptools.models.load import LoadedModel, RecordedModel
from cliptools.models.templates import check_template_options, recorded_templates
from cliptools.models.text_encoder import encode_named
from cliptools.text.classes import (
    ClassName,
    ClassPair,
    distinct_classes,
    load_classes,
    load_pairs,
    make_pair,
    parse_class,
    refuse_duplicates,
)
from cliptools.text.vocabularies import Pool

TOOL = "clip-spurious"
NEEDED_TENSORS = ("word", "coefficient", "words")
PAIRS = 10  # pairs of `classes` by default
WORDS, NEURONS = 25, 100  # defaults of the paper
SINGLE_WORDS, SINGLE_NEURONS = 20, 50  # defaults of the paper's public code, for `by` single
UNKNOWN_NAMES = 3  # names that the note on names outside the vocabulary lists
TABLE_NEURONS = 3
Pairs = str | os.PathLike[str] | Sequence[tuple[str, str]] | None
"""The name of a list of pairs, a file, or pairs of a depicted and a predicted class."""
Classes = str | os.PathLike[str] | Sequence[str] | None
"""The name of a list of classes, a file, or classes."""


@dataclass(frozen=True, kw_only=True)
class NamedPairs:
    """The pairs that are named, or the classes whose ordered pairs are all searched; the other one is empty."""

    pairs: Sequence[ClassPair] = ()
    classes: Sequence[ClassName] = ()

    @property
    def names(self) -> list[str]:
        """Return all names of the classes, without duplicates."""
        items = [item for pair in self.pairs for item in (pair.depict, pair.predict)] + list(self.classes)
        return list(dict.fromkeys(name for item in items for name in item.names))


@dataclass(frozen=True, kw_only=True)
class SpuriousRequest:
    """Arguments of `spurious`, which describes them."""

    named: NamedPairs
    head: int | None = None
    words: int | None = None
    neurons: int | None = None
    layers: Sequence[int] | None = None
    layers_text: str | None = None
    """The layers as records name them."""
    by: By = "effect"
    seed: int = 0
    exclude: Sequence[str] = ()
    near: float = 0.7
    blocked: Sequence[str] = ()
    """Texts of the block list."""
    block_list: str | list[str] | None = None
    """The block list as records name it."""
    templates: Sequence[str] = ()
    texts: Vocabulary = None
    model: LoadedModel | str | None = None
    device: str = "auto"
    cache: bool = True

    @property
    def settings(self) -> Settings:
        """Return the settings of the search, with the paper's numbers, or for `by` single those of its public code."""
        words, neurons = (SINGLE_WORDS, SINGLE_NEURONS) if self.by == "single" else (WORDS, NEURONS)
        return Settings(self.by, self.neurons or neurons, self.words or words, self.seed, self.near)


@checked
def spurious(
    bundle: Bundle,
    depict: str | None = None,
    predict: str | None = None,
    *,
    pairs: Pairs = None,
    classes: Classes = None,
    head: int | None = None,
    words: int | None = None,
    neurons: int | None = None,
    layers: Sequence[int] | None = None,
    by: By = "effect",
    seed: int = 0,
    exclude: str | Sequence[str] = (),
    near: float = 0.7,
    block_list: str | os.PathLike[str] | Sequence[str] | None = None,
    templates: Sequence[str] = (),
    texts: Vocabulary = None,
    model: LoadedModel | str | None = None,
    device: str = "auto",
    cache: bool = True,
    progress: bool = False,
) -> Records:
    """Find words that push an image of one class towards another (paper 1, Eq. 6), as clip-spurious does.

    Classes are named by `depict` and `predict`, by `pairs`, or by `classes`: exactly one of the three ways.

    Args:
        bundle: Units with words.
        depict: Class that the pictures show: a name, or a name and its synonyms, as `sofa, couch`.
        predict: Class that the model should predict instead, in the same form.
        pairs: Pairs of a depicted and a predicted class; the path of a file with `depicted,predicted` on each line; or cifar10
            (the paper's five pairs).
        classes: Classes whose ordered pairs are all ranked by the total score of their words: names, the path of a file with a
            class on each line, or cifar10, emoji or imagenet.
        head: Number of pairs of `classes`. None: 10.
        words: Largest number of words per pair. None: 25; 20 by single.
        neurons: Number of neurons to use, those of largest |⟨v, r⟩|. None: 100; 50 by single.
        layers: Layers of the neurons. None: all.
        by: Score of a word: effect (Eq. 6), single (the largest summand of Eq. 6), overlap (Eq. 6 with ⟨text, r⟩ as the
            coefficient), random or random-overlap (random neurons), or similar (cosine of the text with v).
        seed: Random seed for random neurons.
        exclude: Names to exclude for every pair, with their plurals and the texts near them.
        near: Cosine from which on a text is near a name of the predicted class or an excluded name, and is excluded.
        block_list: Texts to exclude, in any case; or the path of a file with one text per line.
        templates: Sentences with {} in place of the text, whose embeddings are averaged; imagenet or emoji for a set of them.
        texts: The vocabulary of the bundle's words, if it was a list of texts. None: the one that the bundle names.
        model: The bundle's model, if it is loaded already, or the name that it must have.
        device: auto, cpu, cuda, cuda:1 or mps.
        cache: Read text embeddings from the cache, and write them to it.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        A record for each pair and word: pair, depict, predict, rank, word, score, and the neurons with their shares of the score.

    Raises:
        UsageError: an argument is invalid, or the classes are not named in exactly one way.
        StreamError: the bundle has no words or no units.
        TextError: a list of classes, pairs or texts is unknown or invalid, or a pair has no words.
        ModelError: the model is not available, or not the bundle's.
    """
    for name, number in (("head", head), ("words", words), ("neurons", neurons)):
        require_number(name, number, 1)
    require_number("seed", seed, 0)
    require_number("near", near, 1e-9, 1)
    excluded = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    layers_text = None if layers is None else ",".join(map(str, layers))
    with front_call(progress):
        blocked, block_name = _blocked(block_list)
        request = SpuriousRequest(
            named=name_pairs(depict, predict, pairs, classes, head), head=head, words=words, neurons=neurons,
            layers=chosen_layers(layers),
            layers_text=layers_text, by=by, seed=seed, exclude=excluded, near=near, blocked=blocked, block_list=block_name,
            templates=chosen_templates(templates), texts=texts, model=model, device=device, cache=cache,
        )  # fmt: skip
        records = spurious_records(require_neurons(bundle, *NEEDED_TENSORS, device=device), request)
        return Records(records, lambda rows: [spurious_table(rows)])


def name_pairs(depict: str | None, predict: str | None, pairs: Pairs, classes: Classes, head: int | None) -> NamedPairs:
    """Return the pairs that are named, or the classes whose pairs are all searched.

    Raises:
        UsageError: not exactly one of the ways to name pairs, `head` without `classes`, or fewer than two classes.
        TextError: a list is unknown or invalid.
    """
    one_pair = depict is not None or predict is not None
    if one_pair + (pairs is not None) + (classes is not None) != 1:
        raise UsageError("expected exactly one of: --depict with --predict, --pairs-file, --classes")
    if head and not classes:
        raise UsageError(f"--head {head} needs --classes; pairs that are named are all written")
    if classes is not None:
        return NamedPairs(classes=_classes(classes))
    if pairs is not None:
        return NamedPairs(pairs=_pairs(pairs))
    if depict is None or predict is None:
        raise UsageError("--depict (the class shown) and --predict (the class to predict instead) need each other")
    return NamedPairs(pairs=(make_pair(depict, predict),))


def _classes(classes: str | os.PathLike[str] | Sequence[str]) -> Sequence[ClassName]:
    """Return the classes of a list, each name once.

    Raises:
        UsageError: there are fewer than two.
        TextError: the list is unknown or invalid.
    """
    if isinstance(classes, str | os.PathLike):
        listed, source = load_classes(os.fspath(classes)), f" {os.fspath(classes)}"
    else:
        listed, source = tuple(map(parse_class, classes)), ""
    distinct = distinct_classes(listed)
    if len(distinct) < 2:
        raise UsageError(f"--classes{source}: expected at least two classes, found {len(distinct)}")
    return distinct


def _pairs(pairs: str | os.PathLike[str] | Sequence[tuple[str, str]]) -> Sequence[ClassPair]:
    """Return the pairs of a list.

    Raises:
        UsageError: an item is not a pair, or there is none.
        TextError: the list is unknown or invalid, or a pair is listed twice.
    """
    if isinstance(pairs, str | os.PathLike):
        return load_pairs(os.fspath(pairs))
    for number, item in enumerate(pairs):
        if isinstance(item, str) or len(item) != 2:
            raise UsageError(f"pairs: item {number} is {item!r}, expected a depicted and a predicted class, as ('cat', 'dog')")
    if not pairs:
        raise UsageError("pairs: an empty list")
    made = tuple(make_pair(depict, predict) for depict, predict in pairs)
    refuse_duplicates((pair.name for pair in made), "pairs")
    return made


def read_block_list(path: str | os.PathLike[str]) -> list[str]:
    """Return the texts of a file.

    Raises:
        TextError: the file does not exist or cannot be read.
    """
    return [line for _, line in read_lines(Path(path), "block list")]


def _blocked(block_list: str | os.PathLike[str] | Sequence[str] | None) -> tuple[Sequence[str], str | list[str] | None]:
    """Return the texts to exclude, and what records say of them: the file, the texts themselves, or None."""
    if block_list is None:
        return (), None
    if isinstance(block_list, str | os.PathLike):
        return read_block_list(block_list), os.fspath(block_list)
    return block_list, list(block_list)


def spurious_records(bundle: Bundle, request: SpuriousRequest) -> Iterator[dict[str, Any]]:
    """Yield a record for each pair and word.

    Raises:
        StreamError: the bundle has no units.
        TextError: a pair has no words.
    """
    if not bundle.units:
        raise StreamError("the bundle has no neurons; was an earlier selection too narrow?")
    source = record_source(bundle)
    if request.layers is not None:
        bundle = bundle.select(by_layers(bundle, request.layers))
    search, named = _open_search(bundle, request), request.named
    results = (
        _clearest(search, named.classes, request.head or PAIRS)
        if named.classes
        else [_words_of_pair(search, pair) for pair in named.pairs]
    )
    return (record | source for record in _records(results, search, bundle, request))


def _open_search(bundle: Bundle, request: SpuriousRequest) -> Search:
    """Embed every text once, with the model if the cache lacks one."""
    check_template_options(request.templates)
    pool = vocabulary_of(bundle, request.texts)
    names = list(dict.fromkeys([*request.named.names, *request.exclude]))
    row_of = {text: row for row, text in enumerate(pool.texts)}
    if unknown := [name for name in names if name not in row_of]:
        more = f" and {len(unknown) - UNKNOWN_NAMES} more" if len(unknown) > UNKNOWN_NAMES else ""
        note(
            f"{TOOL}: {', '.join(unknown[:UNKNOWN_NAMES])}{more}: not among the {count_of(len(row_of), 'text')} of vocabulary "
            f"{pool.name}; used as written"
        )
    rows = np.array([*(row_of[text] for text in bundle.text_list("words")["texts"]), -1])  # the last row is for words of -1
    texts = _embed(model_of(bundle, request.model, request.device), pool, names, request)
    words = Words(rows[bundle["word"]], bundle["coefficient"])
    return Search(bundle["direction"], words, texts, request.settings, request.exclude, request.blocked)


def _embed(model: LoadedModel | RecordedModel, pool: Pool, names: list[str], request: SpuriousRequest) -> Texts:
    """Return the embeddings of the vocabulary and of the names."""
    classes = Pool("classes", tuple(names), digest(*names))
    t, c = (encode_named(model, texts, request.templates, use_cache=request.cache) for texts in (pool, classes))
    return Texts(pool.texts, t.cpu().double().numpy(), dict(zip(names, c.cpu().double().numpy(), strict=True)))


def _words_of_pair(search: Search, pair: ClassPair) -> PairWords:
    """Return the words of a pair that is named.

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
    """Return the words of the ordered pairs whose words have the largest total scores.

    Raises:
        TextError: no pair has words.
    """
    best = clearest_pairs(search, classes, count)
    if not best:
        pairs = count_of(len(classes) * (len(classes) - 1), "pair")
        raise TextError(f"--classes: none of {pairs} has a word left; see --near, --exclude, --block-list")
    return best


def _records(results: Sequence[PairWords], search: Search, bundle: Bundle, request: SpuriousRequest) -> Iterator[dict[str, Any]]:
    """Yield a record for each pair and word, without the fields of its source."""
    unit, pool = bundle["unit"], search.texts.pool
    settings = {
        "neurons": search.settings.neurons, "words": search.settings.words, "layers": request.layers_text,
        "templates": recorded_templates(request.templates),
    }  # fmt: skip
    for result in results:
        pair = result.pair
        named = {"pair": pair.name, "depict": pair.depict.name, "predict": pair.predict.name}
        exclusions = {
            "names": [*pair.predict.names, *request.exclude],
            "near": request.near,
            "block_list": request.block_list,
            "removed": [pool[j] for j in result.removed],
        }
        fields: dict[str, Any] = {"clearness": rounded(result.clearness), "by": request.by, "seed": request.seed}
        fields["effect"] = bundle.header.settings.get("effect")
        for rank, (j, score) in enumerate(zip(result.word.tolist(), result.score.tolist(), strict=True), 1):
            shares = [unit_keys(*unit[n].tolist()) | {"share": rounded(share)} for n, share in search.shares(pair, j)]
            ranked = named | {"rank": rank, "word": pool[j], "score": rounded(score)}
            yield ranked | fields | {"neurons": shares, "settings": settings, "exclusions": exclusions}


def spurious_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return a table of the words of all pairs, each with its strongest neurons."""
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
    return table
