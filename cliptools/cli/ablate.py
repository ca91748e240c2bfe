"""clip-ablate: zero-shot accuracy while effects are changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cliptools.cli.app import (
    CLASS_TEMPLATES,
    batch_option,
    choose_format,
    command,
    device_option,
    output_options,
    reading_options,
    template_option,
)
from cliptools.cli.completion import Completed, listed
from cliptools.cli.run.ablate import TOOL, ablate_table, measure
from cliptools.cli.run.ablate_settings import ABLATE, RECONSTRUCT, WORDS_ALONG, open_bundles, parse_changes
from cliptools.errors import UsageError
from cliptools.io.files import text_output
from cliptools.io.jsonl import write_record

if TYPE_CHECKING:
    from cliptools.images.classification import ClassifiedImages

SCENES = 1052  # rendered when no images are named: two of every concept
SEED = 5_000_000  # of scenes that neither training nor clip-effects by default draws
BUNDLE_HELP = "Of clip-effects or clip-decompose; repeatable, of one model [default: stdin]."
LABELS_HELP = "Which class an image is: folders, scenes, or a file (see above) [default: as it looks there]."
COLUMN_HELP = "Of --labels, where that is a CSV file."
CLASSES_HELP = (
    "The classes: imagenet, imagenet-r, emoji, cifar10, or a file: lines, JSON or CSV [default: what the labels are of]."
)
ABLATE_HELP = f"Any of {', '.join(ABLATE)}, by commas [default: all, if nothing else is asked]."
RECONSTRUCT_HELP = f"Any of {', '.join(RECONSTRUCT)}, by commas."
COMPONENTS_HELP = "Principal directions for pc, as 1,2,4."
ALONG_HELP = "What words are projected on (below): direction, texts or unit-texts, by commas [default: direction]."
M_HELP = "Texts for words, as 4,8,16 [default: all the bundle has]."
KEEP_HELP = "Shares of a group's units, those of largest mean top norm, as 20%,50%: all others become their means."
LAYERS_HELP = "Layers changed together, as 8-10,11; repeatable [default: all of the bundle]."
EFFECT_HELP = "What the bundles must be of; else a usage error."
LIMIT_HELP = f"Only the first N images [scenes, where no PATH is given: {SCENES}]."


@command(TOOL)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--bundle", "bundles", multiple=True, type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help=BUNDLE_HELP
)
@click.option("--labels", metavar="folders|scenes|FILE", help=LABELS_HELP)
@click.option("--image-column", default="image", show_default=True, metavar="NAME", help=COLUMN_HELP)
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help=COLUMN_HELP)
@click.option("--classes", metavar="NAME|FILE", help=CLASSES_HELP)
@template_option("class", CLASS_TEMPLATES, "--templates")
@click.option("--ablate", type=Completed(listed(*ABLATE)), metavar="KINDS", help=ABLATE_HELP)
@click.option("--reconstruct", type=Completed(listed(*RECONSTRUCT)), metavar="KINDS", help=RECONSTRUCT_HELP)
@click.option("--components", default="1", show_default=True, metavar="NUMBERS", help=COMPONENTS_HELP)
@click.option("--m", metavar="NUMBERS", help=M_HELP)
@click.option("--words-along", type=Completed(listed(*WORDS_ALONG)), metavar="KINDS", help=ALONG_HELP)
@click.option("--keep", metavar="PERCENTS", help=KEEP_HELP)
@click.option("--layers", multiple=True, help=LAYERS_HELP)
@click.option("--each-layer", is_flag=True, help="And every layer of the bundle by itself.")
@click.option("--effect", type=click.Choice(["second", "first", "indirect", "pooled"]), help=EFFECT_HELP)
@click.option("--units", type=click.Choice(["pairs", "neurons", "heads"]), help=EFFECT_HELP)
@click.option("--limit", type=click.IntRange(1), help=LIMIT_HELP)
@click.option("--sample", type=click.IntRange(1), help="N images drawn over the whole list.")
@click.option("--seed", default=SEED, show_default=True, type=click.IntRange(0), help="Of the sample, or the scenes.")
@click.option("--strict", is_flag=True, help="An unreadable or unusable image is an error, not a warning.")
@reading_options
@batch_option
@click.option("--workers", type=click.IntRange(0), help="Threads that decode images [default: the number of cores, at most 8].")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="The model's arithmetic [default: the bundle's].")
@device_option
@output_options("jsonl", "table")
def main(paths: tuple[str, ...], output_format: str | None, output: Path | None, **options: Any) -> None:
    """Measure zero-shot accuracy while the effects of neurons are changed.

    Reads a bundle (standard input or --bundle) and labelled images, and writes a line for each setting: the share of images
    whose class is the best (top1) or among the best five (top5), with Wilson's 95 % interval; the untouched model first. All
    settings are measured in one pass over the images, all effects of a setting are changed together, and nothing else of
    the model changes. Without a PATH, an embedded model looks at scenes of one emoji each, rendered on the spot.

    \b
    --ablate: effects become their means over the bundle's images (arXiv 2406.04341, section 3.3)
      all      on every image            none   nowhere
      large    where they are further from the mean than the bundle's threshold      small  where they are not
      joint    (indirect effects) the neurons' activations themselves are their means at every token, all at once
    --reconstruct: effects become what is known of them
      pc       mean + projection on the first --components principal directions
      words    mean + projection on the first direction r, along the sum r^ of its first --m texts; by --words-along:
               direction (phi-b)·r r^    texts (phi-b)·r^ r^, as paper 1's public code    unit-texts, the same with r^ at
               unit length, as paper 2's
    --keep alone leaves the strongest units as they are; with --reconstruct they are reconstructed. The rest become means,
    as do in every setting the units that clip-effects --keep has left out.

    \b
    The class of an image is, unless --labels says otherwise, what its archive says (WebDataset's KEY.cls, or KEY.json with
    label, class or names; CLIP_benchmark's classnames.txt gives the classes), what clip-scenes --single wrote beside it, or
    the folder it lies in: a name of a class in any spelling, a WordNet id of ImageNet, or a number from 0. --labels FILE:
      CSV      columns image and label; without PATH, its images are taken, relative to the file
      ImageNet its flat folder by Caffe's val.txt, Kaggle's LOC_val_solution.csv, or the kit's
               ILSVRC2012_validation_ground_truth.txt with meta.mat beside it
    A run in which the untouched model is at chance ends with 1: then labels and classes do not match.

    \b
    Examples:
      clip-effects | clip-ablate --ablate all,large,small --reconstruct pc
      clip-ablate imagenet/val/ --each-layer --sample 5000 < effects.safetensors
      clip-ablate ILSVRC2012_img_val.tar --labels LOC_val_solution.csv < effects.safetensors
      clip-ablate --reconstruct words --m 4,8,16 < neurons.safetensors
      clip-ablate --reconstruct words --words-along direction,texts,unit-texts < neurons.safetensors
      clip-ablate imagenet-r/ --bundle pairs.safetensors --bundle neurons.safetensors --reconstruct pc --keep 20%,100%
      clip-ablate --ablate all,joint --bundle second.safetensors --bundle indirect.safetensors -f jsonl > table1.jsonl
    """
    chosen = choose_format(output_format, output, "jsonl")
    changes = parse_changes(options)
    if "-" in paths and ("-" in map(str, options["bundles"]) or not options["bundles"]):
        raise UsageError("- reads images from standard input, so the bundle needs a file: --bundle FILE")
    if options["templates"]:
        from cliptools.models.text_encoder import check_template_options

        check_template_options(options["templates"])
    bundles = open_bundles(changes, options)
    images = _images(paths, bundles[0].bundle.header.model["name"], options)
    with text_output(output) as stream:
        records = measure(bundles, images, options)
        if chosen == "table":
            stream.write(ablate_table(records))
            return
        for record in records:
            write_record(stream, record)


def _images(paths: Sequence[str], model: str, options: dict[str, Any]) -> "ClassifiedImages":
    """The images named, or rendered scenes for an embedded model."""
    from cliptools.embedded_models import EMBEDDED
    from cliptools.images.classification import classified_scenes, is_label_file, open_classified
    from cliptools.images.groups import Columns

    if paths or is_label_file(options["labels"]):
        columns = Columns(options["image_column"], options["label_column"])
        return open_classified(paths, options["labels"], options["classes"], columns)
    if model not in EMBEDDED:
        raise UsageError(f"no images named: {model} needs a PATH (scenes are rendered for {', '.join(EMBEDDED)} only)")
    if options["sample"] is not None:
        raise UsageError("--sample draws from images that are given; for another set of rendered scenes use --seed")
    if options["labels"] or options["classes"]:
        raise UsageError("--labels and --classes are for images that are given: name a PATH")
    return classified_scenes(model, options["limit"] or SCENES, options["seed"])


if __name__ == "__main__":
    main()
