"""clip-merge: partials of clip-effects --shard in, the bundle of one run out."""

from pathlib import Path
from typing import Any

import click

from cliptools.cli.app import FORMATS, command, device_option, measuring_options, output_options

PARTIAL_HELP = "Write a partial again, made from some or all of the shards."
IMAGES_HELP = "Images of the shards (PATH as for clip-effects), to read those in doubt again; repeatable."
KEEP_HELP = (
    "Keep this share of the units, those of largest top norms, and the mean of the sum of all other effects [default: all]."
)
THUMBNAILS_HELP = (
    "Keep JPEGs of the top images in the bundle, with a longer side of this many pixels; needs --images [default: none]."
)


@command("clip-merge")
@click.argument(
    "parts", nargs=-1, required=True, type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), metavar="PARTIAL..."
)
@click.option("--partial", is_flag=True, help=PARTIAL_HELP)
@click.option("--images", multiple=True, metavar="PATH", help=IMAGES_HELP)
@click.option("--keep", metavar="PERCENT", help=KEEP_HELP)
@click.option("--thumbnails", type=click.IntRange(16, 512), metavar="PIXELS", help=THUMBNAILS_HELP)
@measuring_options
@device_option
@output_options(*FORMATS)
def main(**options: Any) -> None:
    """Join partials of clip-effects --shard into the bundle that one run over all images gives.

    PARTIALs may come in any order (one as - on standard input), and may be merged partials themselves. The bundle has the
    means, directions, thresholds and top images of one run over all images. A missing shard is an error that names it; with
    --partial, the named shards become a partial again, so that shards can be merged step by step, in several places.

    All shards measure norms about the same provisional mean. The true mean is known only after the merge, and about the true
    mean a different image may be among the top images of a unit. If that cannot be ruled out for a unit, a warning names it
    and the bundle lists it (`uncertain`). With --images, the few images in doubt are read again, and all top images are exact.
    Rendered scenes need no --images.

    \b
    Examples:
      for i in 1 2 3; do clip-effects photos/ --shard $i/3 -o part-$i.safetensors; done
      clip-merge part-*.safetensors --images photos/ -o effects.safetensors
      clip-merge part-*.safetensors | clip-decompose --m 32 > neurons.safetensors
      clip-merge part-[1-4].safetensors --partial -o left.safetensors
      clip-merge left.safetensors right.safetensors --keep 20% -o pairs.safetensors
      make -j 4 part-1.safetensors part-2.safetensors   # with  part-%.safetensors: ; clip-effects ... --shard $*/2 -o $@
    """
    from cliptools.cli.run.merge import MergeOptions, run

    run(MergeOptions(**options))


if __name__ == "__main__":
    main()
