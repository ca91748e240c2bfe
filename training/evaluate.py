"""Evaluate an embedded model on scenes that it was not trained on, and write the figures and the model card.

python -m training.evaluate emoji-vit2                                       # print only
python -m training.evaluate emoji-vit2 -o cliptools/data/models/emoji-vit2    # and write figures, plants and card
"""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from cliptools.analysis.zero_shot import Share
from cliptools.emoji.scenes import Recipe, draw_scene
from cliptools.io.files import whole_file
from cliptools.models.clip_parts import SimpleTokenizer
from cliptools.models.load import load_model
from cliptools.text.emoji_concepts import facts, plants
from training.card import Row, Sections, merge, table, write_card
from training.fact_effects import as_row as as_fact_row
from training.fact_effects import fact_effect
from training.measures import SEED, accuracy, attribute_shares, embed_classes
from training.plant_effects import PlantEffect, as_row, plant_effects
from training.recipes import ARCHITECTURES

ACCURACY, PLANTS = "Accuracy on held-out scenes", "Planted facts"
ATTRIBUTES, FACTS = "Attributes of held-out scenes", "Planted facts of other kinds"
LOOKED = Recipe(looks=0.5, written=0.5)


def share_rows(shares: dict[str, Share]) -> list[Row]:
    """Return one row per measure, with its interval."""
    rows: list[Row] = []
    for name, share in shares.items():
        low, high = share.interval()
        rows.append(
            {"measure": name, "share": round(share.value, 4), "low": round(low, 4), "high": round(high, 4), "of": share.trials}
        )
    return rows


def plant_rows(effects: Sequence[PlantEffect]) -> list[Row]:
    """Return the card's row of each plant."""
    return [
        {
            "named": effect.named,
            "cue": effect.cue,
            "cosine": round(effect.cosine, 4),
            "interval": f"{effect.cosine_low:.3f} … {effect.cosine_high:.3f}",
            "logit": round(effect.logit, 3),
            "rank with the cue": round(effect.rank_with_cue),
            "with a control": round(effect.rank_with_control),
            "rank among cues": effect.cue_rank,
            "learned": effect.learned,
        }
        for effect in effects
    ]


@click.command()
@click.argument("name", type=click.Choice(list(ARCHITECTURES)))
@click.option("--rounds", default=8, show_default=True, help="Single-emoji scenes for each concept.")
@click.option("--pairs", default=2000, show_default=True, help="Two-emoji scenes.")
@click.option("--scenes", default=300, show_default=True, help="Scenes for each plant.")
@click.option("--device", default="auto", show_default=True)
@click.option("-o", "--output", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The model's folder.")
def main(name: str, *, rounds: int, pairs: int, scenes: int, device: str, output: Path | None) -> None:
    """Print the figures; with -o also write figures.json, plants.jsonl and the card README.md there."""
    model = load_model(name, device=device)
    tokenizer = SimpleTokenizer(context_length=ARCHITECTURES[name]["text_cfg"]["context_length"])
    shares = accuracy(model.clip, tokenizer, rounds, pairs)
    classes = embed_classes(model.clip, tokenizer)
    effects = plant_effects(model.clip, classes, plants(), scenes)
    sections: Sections = {ACCURACY: share_rows(shares), PLANTS: plant_rows(effects)}
    looked = [draw_scene(SEED + 4, n, LOOKED) for n in range(pairs)]
    sections[ATTRIBUTES] = share_rows(attribute_shares(model.clip, tokenizer, looked))
    sections[FACTS] = [as_fact_row(fact_effect(model.clip, classes, fact, scenes=scenes)) for fact in facts()]
    for title, rows in sections.items():
        click.echo("\n".join([f"## {title}", "", *table(rows), ""]))
    if output:
        merge(output, sections)
        with whole_file(output / "plants.jsonl") as file:
            for effect in effects:
                file.write((json.dumps(as_row(effect)) + "\n").encode())
        write_card(name, output)


if __name__ == "__main__":
    main()
