"""clip-spurious: words that push an image of one class towards another."""

from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import choose_format, command, device_option, output_options, parse_layers, template_option
from cliptools.cli.run.bundle_output import read_neurons, record_source, rendered, unit_keys
from cliptools.console import agreeing, count_of, note
from cliptools.errors import StreamError, TextError, UsageError
from cliptools.io.files import text_output
from cliptools.io.jsonl import rounded, unit_name, write_record

if TYPE_CHECKING:
    from cliptools.analysis.spurious import Found, Search, Settings, Texts
    from cliptools.io.bundle import Bundle
    from cliptools.models.load import LoadedModel
    from cliptools.text.classes import ClassName, ClassPair
    from cliptools.text.vocabularies import Pool

PAIRS = 10  # of --classes, unless --head says otherwise
TOOL = "clip-spurious"
DEPICT_HELP = "What the pictures will show: a name, or a name and its synonyms as 'sofa, couch'."
PREDICT_HELP = "What the model is to take them for, written likewise."
PAIRS_HELP = "Many pairs: a file with depicted,predicted a line, or cifar10, the paper's five."
CLASSES_HELP = "All ordered pairs of cifar10, emoji, imagenet or a file's classes, one a line; the clearest first."
WAYS = ("effect", "single", "overlap", "random", "random-overlap", "similar")
BY_HELP = (
    "effect: Eq. 6. single: its largest summands, as the paper's public code. overlap: with <text, r> for the coefficient. "
    "random: Eq. 6, random neurons. similar: texts closest to v."
)
WORDS, NEURONS = 25, 100  # the paper's
SINGLE_WORDS, SINGLE_NEURONS = 20, 50  # its public code's
NEURONS_HELP = f"Neurons of largest |<v, r>| asked [default: {NEURONS}, of single {SINGLE_NEURONS}]."
EXCLUDE_HELP = "Leave out texts that name this, plurals included, or are near it, for every pair."
NEAR_HELP = (
    "Leave out texts of this cosine or more with a name of the predicted class or an --exclude, the pool's mean taken off."
)
BLOCK_HELP = "Leave out the texts of this file, one a line, just as they are written."


@command(TOOL)
@click.argument("bundle", required=False, type=click.Path(path_type=Path, allow_dash=True), metavar="[BUNDLE]")
@click.option("--depict", metavar="CLASS", help=DEPICT_HELP)
@click.option("--predict", metavar="CLASS", help=PREDICT_HELP)
@click.option("--pairs-file", "--pairs", "pairs_file", metavar="FILE|NAME", help=PAIRS_HELP)
@click.option("--classes", metavar="FILE|NAME", help=CLASSES_HELP)
@click.option("--head", type=click.IntRange(1), help=f"How many pairs of --classes [default: {PAIRS}].")
@click.option("--words", type=click.IntRange(1), help=f"Words a pair, at most [default: {WORDS}, of single {SINGLE_WORDS}].")
@click.option("--neurons", type=click.IntRange(1), help=NEURONS_HELP)
@click.option("--layers", help="Only neurons of these layers, as 8-10,11 [default: all of the bundle].")
@click.option("--by", type=click.Choice(WAYS), default="effect", show_default=True, help=BY_HELP)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of random neurons.")
@click.option("--exclude", multiple=True, metavar="TEXT", help=EXCLUDE_HELP)
@click.option("--near", default=0.7, show_default=True, type=click.FloatRange(0, 1, min_open=True), help=NEAR_HELP)
@click.option("--block-list", type=click.Path(path_type=Path), metavar="FILE", help=BLOCK_HELP)
@template_option("text, of all texts", "none")
@click.option("--no-cache", is_flag=True, help="Neither read nor keep text embeddings [default: keep them].")
@device_option
@output_options("jsonl", "table")
def main(bundle: Path | None, output: Path | None, output_format: str | None, **options: Any) -> None:
    """Find words that push an image of one class towards another.

    Reads a BUNDLE of clip-decompose (a file, or standard input). With v = M(predicted) - M(depicted), texts without their
    mean, the neurons of largest |<v, r>| vote for their words: w_j = sum of coefficient times <v, r>. Written are the words
    of the largest positive w_j, with the neurons behind each and their shares of w_j (which sum to 1 over all neurons; a
    neuron that pulls the other way has a negative share). In a neuron's sparse sum a text can take the credit of
    another like it, the predicted class that of its own cue; --by overlap scores every text of the pool by itself.
    The paper's public code ranks the single summands instead, of 50 neurons, and takes the words of the largest 20, each
    once: --by single. There the depicted class is not left out.

    Left out are texts that name the predicted class or its synonyms (emoji and files know some), texts near them, and
    the depicted class itself, which the pictures show anyway. The default of --near lies between what the embedded
    model makes of synonyms (0.92 and more) and of any two other names (at most 0.64).

    --classes ranks pairs by the total score of their words.

    \b
    Examples:
      clip-spurious --depict cat --predict violin neurons.safetensors
      clip-effects | clip-decompose | clip-spurious --depict cat --predict dog -f jsonl | jq -r .word
      clip-spurious --pairs-file cifar10 --by random --seed 1 -f jsonl < neurons.safetensors > random.jsonl
      clip-spurious --depict cat --predict violin --by single neurons.safetensors
      clip-spurious --classes emoji --head 20 --words 5 neurons.safetensors
    """
    from cliptools.analysis.spurious import Settings
    from cliptools.io.text_file import read_lines

    pairs, classes = _pairs(options)
    single = options["by"] == "single"
    options["words"] = options["words"] or (SINGLE_WORDS if single else WORDS)
    options["neurons"] = options["neurons"] or (SINGLE_NEURONS if single else NEURONS)
    blocked = [line for _, line in read_lines(options["block_list"], "block list")] if options["block_list"] else []
    neurons = read_neurons(bundle, "word", "coefficient", "words", device=options["device"])
    if not neurons.units:
        raise StreamError("the bundle holds no neurons: nothing to ask (was the selection before it too narrow?)")
    source = record_source(neurons)
    if options["layers"]:
        from cliptools.analysis.selection import by_layers

        neurons = neurons.select(by_layers(neurons, parse_layers(options["layers"])))
    settings = Settings(options["by"], options["neurons"], options["words"], options["seed"], options["near"])
    search = _search(neurons, _names(pairs, classes, options["exclude"]), settings, blocked, options)
    found = _clearest(search, classes, options["head"] or PAIRS) if classes else [_words(search, pair) for pair in pairs]
    records = (record | source for record in _records(found, search, neurons, options))
    with text_output(output) as stream:
        if choose_format(output_format, output, "jsonl") == "jsonl":
            for record in records:
                write_record(stream, record)
        else:
            _write_table(list(records), stream)


def _pairs(options: dict[str, Any]) -> "tuple[Sequence[ClassPair], Sequence[ClassName]]":
    """The pairs named, or the classes of which all pairs are wanted.

    Raises:
        UsageError: not exactly one of the ways to name them.
    """
    from cliptools.text.classes import distinct_classes, load_classes, load_pairs, make_pair

    single = options["depict"] is not None or options["predict"] is not None
    if single + (options["pairs_file"] is not None) + (options["classes"] is not None) != 1:
        raise UsageError("expected one of --depict with --predict, --pairs-file, or --classes")
    if options["head"] and not options["classes"]:
        raise UsageError("--head takes the clearest pairs of --classes; it says nothing about pairs that are named")
    if options["classes"] is not None:
        classes = distinct_classes(load_classes(options["classes"]))
        if len(classes) < 2:
            raise UsageError(f"--classes {options['classes']}: expected two classes or more, found {len(classes)}")
        return (), classes
    if options["pairs_file"] is not None:
        return load_pairs(options["pairs_file"]), ()
    if options["depict"] is None or options["predict"] is None:
        raise UsageError("--depict and --predict go together: the class shown, and the class it is to be taken for")
    return (make_pair(options["depict"], options["predict"]),), ()


def _names(pairs: "Sequence[ClassPair]", classes: "Sequence[ClassName]", excluded: Sequence[str]) -> list[str]:
    """Everything that is named beside the pool, once."""
    named = [each for pair in pairs for each in (pair.depict, pair.predict)] + list(classes)
    return list(dict.fromkeys([name for each in named for name in each.names] + list(excluded)))


def _search(
    neurons: "Bundle", names: list[str], settings: "Settings", blocked: Sequence[str], options: dict[str, Any]
) -> "Search":
    """The model loaded, every text embedded once."""
    import numpy as np

    from cliptools.analysis.spurious import Search, Words
    from cliptools.models.load import load_recorded_model
    from cliptools.models.text_encoder import check_template_options
    from cliptools.text.vocabularies import recorded_pool

    check_template_options(options["templates"])
    pool = recorded_pool(neurons)
    row = {text: i for i, text in enumerate(pool.texts)}
    if strange := [name for name in names if name not in row]:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        note(
            f"{TOOL}: {', '.join(strange[:3])}{more}: not among the {count_of(len(row), 'text')} of pool "
            f"{pool.name}; taken as written"
        )
    place = np.array([*(row[text] for text in neurons.text_list("words")["texts"]), -1])  # the last for words that are -1
    loaded = load_recorded_model(neurons.header.model, options["device"])
    texts = _embedded(loaded, pool, names, options)
    words = Words(place[neurons["word"]], neurons["coefficient"])
    return Search(neurons["direction"], words, texts, settings, options["exclude"], blocked)


def _embedded(loaded: "LoadedModel", pool: "Pool", names: list[str], options: dict[str, Any]) -> "Texts":
    from cliptools.analysis.spurious import Texts
    from cliptools.models.text_encoder import encode_named, encode_texts, text_sentences

    t = encode_named(loaded, pool, options["templates"], use_cache=not options["no_cache"])
    c = encode_texts(loaded, *text_sentences(names, options["templates"]))
    return Texts(pool.texts, t.cpu().double().numpy(), dict(zip(names, c.cpu().double().numpy(), strict=True)))


def _words(search: "Search", pair: "ClassPair") -> "Found":
    """The words of a pair that was named.

    Raises:
        TextError: there are none.
    """
    found = search.find(pair)
    if not len(found.word):
        gone = len(found.removed)
        why = (
            f"{agreeing(gone, 'the only text', f'all {gone} texts')} of a positive score {agreeing(gone, 'is', 'are')} "
            "left out; see --near, --exclude, --block-list"
            if gone
            else (
                "no text has a positive score; take more --neurons or --layers, or a bundle with more words (clip-decompose --m)"
            )
        )
        raise TextError(f"pair {pair.name}: no word is left: {why}")
    return found


def _clearest(search: "Search", classes: "Sequence[ClassName]", count: int) -> "list[Found]":
    """Of all ordered pairs, those whose words push furthest together."""
    from cliptools.analysis.spurious_pairs import clearest_pairs

    best = clearest_pairs(search, classes, count)
    if not best:
        pairs = count_of(len(classes) * (len(classes) - 1), "pair")
        raise TextError(f"classes: of {pairs} none has a word left; see --near, --exclude, --block-list")
    return best


def _records(found: "Sequence[Found]", search: "Search", neurons: "Bundle", options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record a word, as it stands but for where it came from."""
    from cliptools.models.text_encoder import recorded

    unit, pool = neurons["unit"], search.texts.pool
    settings = {key: options[key] for key in ("neurons", "words", "layers")} | {"templates": recorded(options["templates"])}
    for each in found:
        named = {"pair": each.pair.name, "depict": each.pair.depict.name, "predict": each.pair.predict.name}
        exclusions = {
            "names": [*each.pair.predict.names, *options["exclude"]],
            "near": options["near"],
            "block_list": str(options["block_list"]) if options["block_list"] else None,
            "removed": [pool[j] for j in each.removed],
        }
        said = {"clearness": rounded(each.clearness), "by": options["by"], "seed": options["seed"]}
        said["effect"] = neurons.header.settings.get("effect")
        for rank, (j, score) in enumerate(zip(each.word.tolist(), each.score.tolist(), strict=True), 1):
            shares = [unit_keys(*unit[n].tolist()) | {"share": rounded(share)} for n, share in search.shares(each.pair, j)]
            ranked = named | {"rank": rank, "word": pool[j], "score": rounded(score)}
            yield ranked | said | {"neurons": shares, "settings": settings, "exclusions": exclusions}


def _write_table(records: list[dict[str, Any]], stream: BufferedIOBase) -> None:
    """The words pair after pair, each with its three strongest neurons."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (("pair", "left"), ("rank", "right"), ("score", "right"), ("word", "left"), ("neurons", "left")):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for record in records:
        shares = [
            f"{unit_name(n['layer'], n.get('neuron', -1), n.get('head', -1))} {n['share']:.0%}" for n in record["neurons"][:3]
        ]
        cells = (record["pair"] if record["rank"] == 1 else "", str(record["rank"]), f"{record['score']:.3g}", record["word"])
        table.add_row(*map(Text, cells), Text("  ".join(shares)))
    stream.write(rendered(table))


if __name__ == "__main__":
    main()
