"""Options and inputs that clip-segment and clip-segment-eval share.

front/segment_setup.py has the settings that both pass on, and opens the bundle's model.
"""

from dataclasses import dataclass
from pathlib import Path

from cliptools.cli.app import Output, Reading
from cliptools.cli.run.bundle_output import read_neurons
from cliptools.errors import UsageError
from cliptools.front.segment_setup import MapSettings, OpenedBundle, opened_bundle
from cliptools.models.load import load_recorded_model
from cliptools.models.text_encoder import check_template_options


@dataclass(frozen=True, kw_only=True)
class CommonOptions(MapSettings, Output, Reading):
    """Options of both commands: the images, the classes, the method and its settings, the bundle and the device."""

    paths: tuple[str, ...]
    classes: str | None
    bundle: Path | None


def check_inputs(options: CommonOptions) -> None:
    """Reject invalid images and templates before any input is read.

    Raises:
        UsageError: no images, two inputs on standard input, or invalid templates.
    """
    if not options.paths:
        raise UsageError("no images named: give files, folders, tar archives, or - for a tar on standard input")
    if "-" in options.paths and (options.bundle is None or str(options.bundle) == "-"):
        raise UsageError("images (-) and the bundle cannot both come from standard input: name the bundle by --bundle FILE")
    check_template_options(options.templates)


def open_bundle(options: CommonOptions) -> OpenedBundle:
    """Read the bundle of --bundle or standard input, and load its model.

    Raises:
        CliptoolsError: the bundle cannot be read, its model is not available, or the model does not have the method.
    """
    bundle = read_neurons(options.bundle, option="--bundle", device=options.device)
    return opened_bundle(bundle, load_recorded_model(bundle.header.model, options.device), options.method)
