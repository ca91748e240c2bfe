"""Compare the findings of both papers with the tables of results/ for the embedded models: claims.py RESULTS > claims.csv

result_tables.py describes the intervals.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from result_tables import Share, TableError, Tables, difference, points

from cliptools.embedded_models import EMBEDDED

HOLDS, NOT, PARTLY = "yes", "no", "in part"
FEW = 0.1  # "few units carry the output" holds if the loss of accuracy is smaller than this
EVEN = 0.02  # accuracies are called equal if the whole interval of their difference is within two points

BASELINES = ("rollout", "chefer", "textspan", "attention", "gradcam")
NEURONS = ("active", "random")


class Claim(NamedTuple):
    """One line of the table."""

    claim: str
    source: str
    paper: str
    here: str
    holds: str
    table: str


def equal(d: Share) -> str:
    """Return whether two accuracies are equal to within two points."""
    return HOLDS if d.low > -EVEN and d.high < EVEN else PARTLY if abs(d.value) < EVEN else NOT


def more(d: Share) -> str:
    """Return whether the first accuracy is significantly larger."""
    return HOLDS if d.low > 0 else NOT if d.high < 0 else PARTLY


def second_order(tables: Tables) -> Iterator[Claim]:
    """Yield the claims of "Interpreting the Second-Order Effects of Neurons in CLIP"."""
    ablated_layers = [row.text("layers") for row in tables.rows("ablation", change="all")]
    layers = sorted({name for name in ablated_layers if name.isdigit()}, key=int)
    gain = {layer: tables.gain("ablation", change="all", layers=layer) for layer in layers}
    together = tables.layers_together("ablation")
    late = together.split()  # those of the default range
    early = min(layers[: len(layers) // 2], key=lambda layer: gain[layer].value)
    certain = [gain[layer].high < gain[early].low for layer in late]
    yield Claim(
        "late layers matter most", "paper 1, Fig. 3", "mean-ablated one by one, layers 8 to 10 of 12 lose most",
        "; ".join(f"layer {layer}: {points(gain[layer])}" for layer in late)
        + f"; of the first half {early} loses most: {points(gain[early])}",
        HOLDS if all(certain) else PARTLY if any(certain) else NOT, "ablation.csv",
    )  # fmt: skip
    ablated = tables.top1("ablation", change="all", layers=together)
    small, large, pc = (tables.gain("ablation", change=kind, layers=together) for kind in ("small", "large", "pc"))
    yield Claim(
        "effects are selective: those below τ do little", "paper 1, Fig. 3", "≈ untouched; the few effects above τ carry a layer",
        f"layers {together}, small effects ablated: {points(small)}; large (one image in fifty): {points(large)}; all: {ablated}",
        HOLDS if equal(small) == HOLDS else PARTLY if small.low > large.high else NOT, "ablation.csv",
    )  # fmt: skip
    yield Claim(
        "one direction per neuron suffices", "paper 1, Fig. 3", "PC 1 ≈ untouched", f"layers {together}: {points(pc)}", equal(pc),
        "ablation.csv",
    )  # fmt: skip
    yield _indirect(tables)
    yield _reconstruction(tables)


def _reconstruction(tables: Tables) -> Claim:
    told, verdicts = [], []
    for pool in dict.fromkeys(row.text("pool") for row in tables.rows("reconstruction", change="words")):
        rows = sorted(tables.rows("reconstruction", change="words", pool=pool), key=lambda row: row.number("m"))
        few, many = (tables.top1("reconstruction", change="words", pool=pool, m=rows[end].text("m")) for end in (0, -1))
        told.append(f"{pool}, m = {rows[0].text('m')}: {few}, m = {rows[-1].text('m')}: {many}")
        verdicts.append(more(difference(many, few)))
    whole = tables.top1("reconstruction", change="pc", pool=pool)
    return Claim(
        "more words reconstruct better", "paper 1, Fig. 4", "accuracy rises with m, almost to the untouched",
        f"{'; '.join(told)}; PC 1 itself {whole}",
        verdicts[0] if len(set(verdicts)) == 1 else PARTLY, "reconstruction.csv",
    )  # fmt: skip


def _indirect(tables: Tables) -> Claim:
    untouched = tables.top1("indirect", change="untouched")
    second, joint = tables.top1("indirect", effect="second"), tables.top1("indirect", effect="indirect")
    rows = {effect: tables.row("indirect", effect=effect) for effect in ("second", "indirect")}
    share = {effect: 100 * row.number("explained") for effect, row in rows.items()}
    return Claim(
        "second-order effects do more than indirect ones, along one direction", "paper 1, Table 1",
        "accuracy once ablated 29.6 against 52.3 %; PC 1 explains 48.2 against 11.0 % of the variance",
        f"untouched {untouched}, ablated {second} against {joint}; PC 1 {share['second']:.0f} against {share['indirect']:.0f} %",
        more(difference(joint, second)) if share["second"] > share["indirect"] else NOT, "indirect.csv",
    )  # fmt: skip


def neuron_attention(tables: Tables) -> Iterator[Claim]:
    """Yield the claims of "Interpreting ResNet-based CLIP via Neuron-Attention Decomposition"."""
    untouched = tables.top1("pcs", change="untouched")
    pairs = tables.gain("pcs", change="pc", units="pairs")
    yield Claim(
        "a pair has one direction", "paper 2, Fig. 1", "70.7 % from one PC, as untouched", points(pairs), equal(pairs), "pcs.csv"
    )
    neurons = {c: tables.gain("pcs", change="pc", units="neurons", components=c) for c in ("1", "2", "4")}
    yield Claim(
        "a neuron has several directions", "paper 2, Fig. 1", "66.9, 69.0, 70.0 % from 1, 2, 4 PCs",
        f"untouched {untouched}; " + ", ".join(f"{c}: {points(gain)}" for c, gain in neurons.items()),
        HOLDS if neurons["1"].high < 0 else PARTLY if neurons["1"].value < 0 else NOT, "pcs.csv",
    )  # fmt: skip
    share = {units: tables.top1("sparsity", change="rest", units=units, keep="0.2") for units in ("pairs", "neurons")}
    fall = {units: tables.gain("sparsity", change="rest", units=units, keep="0.2") for units in share}
    yield Claim(
        "few pairs carry the output", "paper 2, Sec. 3", "a fifth of the pairs: about −5 points; of the neurons: about −25",
        f"pairs {points(fall['pairs'])}, neurons {points(fall['neurons'])}",
        NOT if difference(share["pairs"], share["neurons"]).low < 0 else HOLDS if fall["pairs"].low > -FEW else PARTLY,
        "sparsity.csv",
    )  # fmt: skip
    words = {
        m: {units: tables.top1("pair-words", change="words", units=units, m=m) for units in ("pairs", "neurons")}
        for m in dict.fromkeys(row.text("m") for row in tables.rows("pair-words", change="words"))
    }
    certain = [m for m, share in words.items() if difference(share["pairs"], share["neurons"]).low > 0]
    yield Claim(
        "pairs in words beat neurons in words", "paper 2, Fig. 2", "at every m",
        f"significant at m = {', '.join(certain) or 'none'} of {', '.join(words)}; "
        + "; ".join(f"m = {m}: {words[m]['pairs']} against {words[m]['neurons']}" for m in (next(iter(words)), list(words)[-1])),
        HOLDS if len(certain) == len(words) else PARTLY if certain else NOT, "pair-words.csv",
    )  # fmt: skip
    below = tables.row("polysemy", inertia_below="0.50")
    all_pairs, strongest, neuron = (100 * below.number(key) for key in ("pairs", "strongest_pairs", "neurons"))
    yield Claim(
        "neurons are polysemantic, their pairs less so", "paper 2, Sec. 4", "many more pairs than neurons have low inertia",
        f"inertia below 0.5: {all_pairs:.0f} % of pairs, {strongest:.0f} % of each neuron's strongest pair, "
        f"{neuron:.0f} % of neurons",
        HOLDS if all_pairs > neuron else PARTLY if strongest > neuron else NOT, "polysemy.csv",
    )  # fmt: skip


def applications(tables: Tables) -> Iterator[Claim]:
    """Yield the claims of both papers on applications."""
    fooled = {words: tables.row("adversarial", pair="all", words=words) for words in ("second-order", "similar", "random")}
    rate = {words: (row.number("mean"), row.number("sd")) for words, row in fooled.items()}
    margin = 2 * max(sd for _, sd in rate.values())
    beats = [words for words in ("similar", "random") if rate["second-order"][0] > rate[words][0] + margin]
    yield Claim(
        "pictures of the neurons' words fool the model", "paper 1, Table 3", "more than with similar words and random neurons",
        ", ".join(f"{words} {mean:.1f} ± {sd:.1f} %" for words, (mean, sd) in rate.items()),
        HOLDS if len(beats) == 2 else PARTLY if beats else NOT, "adversarial.csv",
    )  # fmt: skip
    yield _segmentation(tables)
    concepts = {"by": "words", "score": "norm", "m": "32", "quantile": "0.98"}
    recall = {kind: tables.row("concepts", neurons=kind, **concepts).share("recall") for kind in NEURONS}
    yield Claim(
        "the words of active neurons name what an image shows", "paper 1, Fig. 8", "shown by examples",
        f"objects named among ten words: {recall['active']}; with as many random neurons: {recall['random']}",
        more(difference(recall["active"], recall["random"])), "concepts.csv",
    )  # fmt: skip
    rows = tables.rows("resnet-segmentation", scenes="several", background="left out")
    maps = {row.text("method"): 100 * row.number("miou_true") for row in rows if row.text("method") != "values"}
    second = max((method for method in maps if method != "pairs"), key=maps.__getitem__)
    yield Claim(
        "the pairs' label maps segment best", "paper 2, Fig. 3", "mIoU 26.2 against 24.7 (heads), 22.8 (MaskCLIP)",
        f"without background {maps['pairs']:.1f} against {maps[second]:.1f} ({second}); no interval was measured",
        PARTLY if maps["pairs"] > maps[second] else NOT, "resnet-segmentation.csv",
    )  # fmt: skip
    rows = tables.rows("shift", model=EMBEDDED[1], by="norm", choose="overlap", units="5")
    r = [row.number("correlation") for row in rows]
    yield Claim(
        "five pairs follow a concept", "paper 2, Sec. 5", "correlation with the ground truth 0.85 (yellow), 0.71 (convertible)",
        f"mean {sum(r) / len(r):.2f} ({min(r):.2f} to {max(r):.2f}) of {len(r)} concepts",
        HOLDS if min(row.number("low") for row in rows) > 0 else PARTLY, "shift.csv",
    )  # fmt: skip


def _segmentation(tables: Tables) -> Claim:
    masks = {row.text("method"): row for row in tables.rows("segmentation", scenes="one", size="128", threshold="0.5")}
    parts, ahead = [], []
    for key, name in (("miou", "mIoU"), ("map", "mAP")):
        value = {method: 100 * row.number(key) for method, row in masks.items() if method in (*BASELINES, "neurons")}
        best = max(BASELINES, key=value.__getitem__)
        parts.append(f"{name} {value['neurons']:.1f} against {value[best]:.1f} ({best})")
        ahead.append(value["neurons"] > value[best])
    return Claim(
        "the neurons' heat maps segment best", "paper 1, Table 4",
        "mIoU 59.0 against 58.1, mAP 84.9 against 84.1 of the next best",
        f"one emoji: {', '.join(parts)}", HOLDS if all(ahead) else PARTLY if any(ahead) else NOT, "segmentation.csv",
    )  # fmt: skip


def main(folder: Path) -> None:
    """Write one line per claim to stdout."""
    tables = Tables(folder)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    sys.stdout.write("# make -C examples -f claims.mk\n")
    writer.writerow(Claim._fields)
    writer.writerows([*second_order(tables), *neuron_attention(tables), *applications(tables)])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except TableError as error:
        sys.exit(str(error))
