"""Evaluation of the second-order lens on an embedded model, by the suite's own commands.

python -m training.lens emoji-vit2                                     # print only
python -m training.lens emoji-vit2 -o cliptools/data/models/emoji-vit2  # and add to the figures and the card
"""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch

from cliptools.analysis.ablation import Ablation, Change, ChangedOutputs, Units
from cliptools.analysis.zero_shot import Share
from cliptools.emoji.render import SceneSource, render
from cliptools.emoji.scenes import Scene
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.models.clip_parts import SimpleTokenizer
from cliptools.models.load import LoadedModel, load_model
from cliptools.text.emoji_concepts import concept_index, concepts
from cliptools.towers.kinds import supported_tower
from cliptools.unit_effects.vit_second_order import SecondOrder, choose_layers
from training.batches import normalise
from training.card import Row, Sections, merge, table, write_card
from training.measures import canvas_of, embed_classes, single_scenes
from training.recipes import ARCHITECTURES
from training.word_score import WordScore, strongest_positive, word_score

ABLATION, WORDS = "Second-order effects carry the answer", "Words name what neurons look at"
TOP, STRONGEST, M = 10, 8, 32
SETTINGS = ("untouched", "mean", "pc")


def decomposed(name: str, units: Sequence[str], images: int, seed: int) -> Bundle:
    """Return the bundle of `clip-effects | clip-decompose`, run as commands; `units` are the options that select the units."""
    first = ["effects", "--model", name, *units, "--limit", str(images), "--seed", str(seed)]
    data = b""
    for command in (first, ["decompose", "--m", str(M)]):
        words = [sys.executable, "-m", f"cliptools.cli.{command[0]}", *command[1:], "-q"]
        data = subprocess.run(words, input=data or None, stdout=subprocess.PIPE, check=True).stdout
    return read_bundle(io.BytesIO(data), "clip-decompose")


def layer_score(bundle: Bundle, source: SceneSource, layer: int) -> WordScore:
    """Return the word score of the upper half of one layer's units by effect norm."""
    part = bundle.select((bundle["unit"][:, 0] == layer).nonzero()[0])
    strength = part["top_norm"].mean(1)
    part = part.select((strength >= np.median(strength)).nonzero()[0])
    index = concept_index()
    texts = bundle.text_list("words")["texts"]
    concept_of = np.array([index.get(text.lower(), -1) for text in texts])
    number = {name: i for i, name in enumerate(source.names)}
    shown = np.zeros((len(bundle.text_list("images")), len(concepts())), dtype=bool)
    for row, name in enumerate(bundle.text_list("images")):
        shown[row, [sprite.concept for sprite in source.scene(number[name]).sprites]] = True
    words = strongest_positive(part["word"], part["coefficient"], STRONGEST)
    return word_score(words, concept_of, shown[part["top_image"][:, :TOP]])


def replacement(paths: SecondOrder, bundle: Bundle, layers: Sequence[int]) -> ChangedOutputs:
    """Return the original output, and the output with the effects of all neurons of these layers replaced (mean, PC 1)."""
    part = bundle.select(np.isin(bundle["unit"][:, 0], layers).nonzero()[0])
    unit, mean, direction, threshold = (torch.from_numpy(part[name]) for name in ("unit", "mean", "direction", "threshold"))
    all_units = torch.ones(part.units, dtype=torch.bool)
    settings = [[(Change("mean"), all_units)], [(Change("pc"), all_units)]]
    ablation = Ablation(paths, Units(unit.long(), mean, direction[:, None], threshold), settings)
    return ChangedOutputs(paths.visual, [(ablation, True)], [])


@torch.inference_mode()
def accuracies(model: LoadedModel, replaced: ChangedOutputs, classes: torch.Tensor, scenes: Sequence[Scene]) -> dict[str, Share]:
    """Return the zero-shot top-1 accuracy on single-emoji scenes: untouched, mean-ablated, from PC 1."""
    hits = dict.fromkeys(SETTINGS, 0)
    for start in range(0, len(scenes), 64):
        batch = scenes[start : start + 64]
        image = (render(batch, canvas_of(model.clip)).image * 255).round() / 255  # (b, 3, y, x)
        label = torch.tensor([scene.named[0] for scene in batch])
        for setting, z in zip(SETTINGS, replaced(normalise(image)), strict=True):
            hits[setting] += int(((z @ classes.T.double()).argmax(1) == label).sum())
    return {setting: Share(count, len(scenes)) for setting, count in hits.items()}


def ablation_row(layers: str, shares: dict[str, Share]) -> Row:
    """Return accuracies with intervals, the loss in points, and the share of it that PC 1 restores."""
    row: dict[str, str | float] = {"layers": layers}
    for setting, title in zip(SETTINGS, ("untouched", "mean-ablated", "from PC 1"), strict=True):
        low, high = shares[setting].interval()
        row[title] = f"{shares[setting].value:.3f} ({low:.3f}–{high:.3f})"
    loss = shares["untouched"].value - shares["mean"].value
    restored = shares["pc"].value - shares["mean"].value
    return row | {"loss, points": round(100 * loss, 1), "brought back": f"{restored / loss:.0%}" if loss > 0.005 else "–"}


def word_row(layer: int, score: WordScore, explained: float, explained_all: float) -> Row:
    """Return the row of one layer's word score, compared with chance."""
    return {
        "layer": layer,
        "share of top images named": f"{score.share:.3f} ± {score.share_half:.3f}",
        "words dealt at random": f"{score.shuffled:.3f} ± {score.shuffled_half:.3f}",
        "ratio": f"{score.ratio:.1f}×",
        "neurons": score.neurons,
        "explained by PC 1 (top images)": round(explained, 3),
        "(all images)": round(explained_all, 3),
    }


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--images", default=2000, show_default=True, help="Scenes the effects are measured on.")
@click.option("--seed", default=11, show_default=True, help="Random seed of these scenes.")
@click.option("--rounds", default=4, show_default=True, help="Single-emoji scenes for each concept, for accuracy.")
@click.option("-o", "--output", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The model's folder.")
def main(name: str, images: int, seed: int, rounds: int, output: Path | None) -> None:
    """Print both tables; with -o also add them to figures.json and the card."""
    model = load_model(name, device="cpu")
    tower = supported_tower(model.clip)
    default, every = choose_layers(tower, None), range(tower.depth - 1)
    bundle = decomposed(name, ["--layers", ",".join(map(str, every))], images, seed)
    tokenizer = SimpleTokenizer(context_length=ARCHITECTURES[name]["text_cfg"]["context_length"])
    classes = embed_classes(model.clip, tokenizer)
    paths, scenes = SecondOrder(tower), single_scenes(rounds)
    groups = {f"{default[0]}–{default[-1]} together (the default)": default}
    groups |= {str(layer): (layer,) for layer in every} | {"all": tuple(every)}
    ablation = [
        ablation_row(title, accuracies(model, replacement(paths, bundle, layers), classes, scenes))
        for title, layers in groups.items()
    ]
    source = SceneSource(images, seed)
    words = []
    for layer in every:
        rows = bundle["unit"][:, 0] == layer
        shares = (float(bundle[key][rows].mean()) for key in ("explained", "explained_all"))
        words.append(word_row(layer, layer_score(bundle, source, layer), *shares))
    sections: Sections = {ABLATION: ablation, WORDS: words}
    for title, rows in sections.items():
        click.echo("\n".join([f"## {title}", "", *table(rows), ""]))
    if output:
        merge(output, sections)
        write_card(name, output)


if __name__ == "__main__":
    main()
