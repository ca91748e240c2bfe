"""What contact sheets say of units, for the commands that draw them."""

from collections.abc import Sequence
from io import BytesIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cliptools.cli.run.bundle_output import signed_words
from cliptools.io.bundle import Bundle
from cliptools.io.header import KEY
from cliptools.render.contact_sheet import SheetRow, words_in_row

FACTS = 2  # there is room for
KINDS = {"pairs": "pairs of a neuron and a head", "heads": "heads"}


def unit_row(
    bundle: Bundle, row: int, pictures: Sequence[Image.Image | None], facts: Sequence[str] = (), inner: bool = False
) -> SheetRow:
    """A unit's name, facts, strongest words and pictures.

    Args:
        facts: What else is known of it, to stand before the shares that the bundle knows.
        inner: Whether it belongs to the row above.
    """

    layer, neuron, head = (int(v) for v in bundle["unit"][row])
    title = f"layer {layer}" + (f" neuron {neuron}" if neuron >= 0 else "") + (f" head {head}" if head >= 0 else "")
    known = [(name, bundle[name][row]) for name in ("explained", "residual") if name in bundle and name not in bundle.derived]
    said = [*facts, *(f"{name} {value:.2f}" for name, value in known)][:FACTS]
    words: list[tuple[str, float]] = []
    if "word" in bundle:
        texts = bundle.text_list("words")["texts"]
        words = [(texts[j], c) for j, c in signed_words(bundle, row)[: words_in_row()]]
    return SheetRow(title, " · ".join(said), words, pictures, inner)


def heading(bundle: Bundle, shown: int) -> tuple[str, str]:
    """The model, and what was measured."""
    header = bundle.header
    pretrained = header.model.get("pretrained")
    model = str(header.model.get("name")) + (f" ({pretrained})" if pretrained else "")
    words = "" if "word" in bundle else " · no words yet: clip-decompose finds them"
    kind = KINDS.get(str(header.settings.get("units")), "neurons")
    return model, f"{shown} of {bundle.units} {kind} · top images of {header.images.get('count')}{words}"


def png_bytes(sheet: Image.Image, bundle: Bundle) -> bytes:
    """The PNG, with the bundle's header in a text chunk so that a picture says where it comes from."""

    said = PngInfo()
    said.add_itxt(KEY, bundle.header.to_json())
    buffer = BytesIO()
    sheet.save(buffer, "PNG", pnginfo=said)
    return buffer.getvalue()
