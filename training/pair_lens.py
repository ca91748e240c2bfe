"""Word scores of a ResNet's units, for neurons and for neuron-head pairs, by the suite's own commands.

python -m training.pair_lens emoji-rn2                                    # print only
python -m training.pair_lens emoji-rn2 -o cliptools/data/models/emoji-rn2  # and add to the figures and the card
"""

from pathlib import Path

import click

from cliptools.emoji.render import SceneSource
from cliptools.unit_effects.resnet_pooling import LAYER
from training.card import Row, merge, table, write_card
from training.lens import decomposed, layer_score
from training.recipes import ARCHITECTURES

WORDS = "Words name what units look at"


def unit_row(name: str, units: str, images: int, seed: int) -> Row:
    """Return the row of one kind of unit's word score, compared with chance."""
    side = ARCHITECTURES[name]["vision_cfg"]["image_size"]
    score = layer_score(decomposed(name, ["--units", units], images, seed), SceneSource(images, seed, size=side), LAYER)
    return {
        "units": units,
        "share of top images named": f"{score.share:.3f} ± {score.share_half:.3f}",
        "words dealt at random": f"{score.shuffled:.3f} ± {score.shuffled_half:.3f}",
        "ratio": f"{score.ratio:.1f}×",
        "how many": score.neurons,
    }


@click.command()
@click.argument("name", type=click.Choice([name for name in ARCHITECTURES if name.endswith("-rn")]))
@click.option("--images", default=2000, show_default=True, help="Scenes the effects are measured on.")
@click.option("--seed", default=11, show_default=True, help="Random seed of these scenes.")
@click.option("-o", "--output", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The model's folder.")
def main(name: str, images: int, seed: int, output: Path | None) -> None:
    """Print the table; with -o also add it to figures.json and the card."""
    rows = [unit_row(name, units, images, seed) for units in ("pairs", "neurons")]
    click.echo("\n".join(table(rows)))
    if output:
        merge(output, {WORDS: rows})
        write_card(name, output)


if __name__ == "__main__":
    main()
