"""What a gallery says of units: columns of numbers and words, as its page's script reads them."""

from typing import TYPE_CHECKING, Any

from cliptools.commands.drawing import heading
from cliptools.commands.present import ORDERS, order_units, signed_words, strength, weight_name
from cliptools.ground.errors import StreamError
from cliptools.ground.progress import progress
from cliptools.ground.records import rounded

if TYPE_CHECKING:
    import numpy as np

    from cliptools.commands.exhibiting.shelf import Shelf
    from cliptools.ground.bundle import Bundle

CURVE_POINTS = 40
DIGITS = 3  # of numbers that are only shown
SHARES = ("explained", "explained_all", "residual")


def check_units(bundle: "Bundle", name: str) -> None:
    """Whether the bundle holds what is shown.

    Raises:
        StreamError: a tensor is missing, or its shape does not go with another's.
    """
    for tensor in ("top_norm", "top_image", "images", "explained"):
        if tensor not in bundle:
            raise StreamError(f"{name}: a bundle without `{tensor}`; run clip-effects first")
    for one, other in (("top_norm", "top_image"), ("word", "coefficient")):
        if one in bundle and (other not in bundle or bundle[one].ndim != 2 or bundle[one].shape != bundle[other].shape):
            raise StreamError(f"{name}: `{one}` and `{other}` should be tables of one shape")


def said_of_units(bundle: "Bundle", shelf: "Shelf", options: dict[str, Any]) -> dict[str, Any]:
    """Units in rows, in the order of the bundle, and the orders in which they can be shown; words and images by number."""
    import numpy as np

    rows = np.sort(order_units(bundle, options["sort"])[: options["head"]])
    title, notes = heading(bundle, len(rows))
    data: dict[str, Any] = {"title": title, "notes": notes, "kind": str(bundle.header.settings.get("units", "neurons"))}
    data |= {"weight": weight_name(bundle), "unit": bundle["unit"][rows].tolist()}
    for share in SHARES:
        if share in bundle and share not in bundle.derived:
            data[share] = [rounded(value, DIGITS) for value in bundle[share][rows]]
    data["strength"] = [rounded(value, DIGITS) for value in strength(bundle)[rows]]
    if "threshold" in bundle:
        data["threshold"] = [rounded(value, DIGITS) for value in bundle["threshold"][rows]]
    if "threshold_bound" in bundle and bundle["threshold_bound"][rows].any():
        data["threshold_bound"] = [rounded(value, DIGITS) for value in bundle["threshold_bound"][rows]]
    return data | _words(bundle, rows, options["words"]) | _tops(bundle, rows, shelf, options) | _orders(bundle, rows, options)


def _orders(bundle: "Bundle", rows: "np.ndarray", options: dict[str, Any]) -> dict[str, Any]:
    """The orders of clip-view among the rows, the one asked for first."""
    place = {int(row): number for number, row in enumerate(rows)}
    known = [order for order in ORDERS if order != "residual" or "residual" in bundle]
    known.sort(key=lambda order: order != options["sort"])
    return {"orders": {name: [place[row] for row in order_units(bundle, name).tolist() if row in place] for name in known}}


def _words(bundle: "Bundle", rows: "np.ndarray", most: int) -> dict[str, Any]:
    """The largest words of each row, and the texts that appear."""
    if "word" not in bundle:
        return {}
    texts = bundle.text_list("words")["texts"]
    number: dict[int, int] = {}
    words, weights = [], []
    for row in rows:
        said = signed_words(bundle, row)[:most]
        words.append([number.setdefault(j, len(number)) for j, _ in said])
        weights.append([rounded(weight, DIGITS) for _, weight in said])
    return {"texts": [str(texts[j]) for j in number], "word": words, "coefficient": weights}


def _tops(bundle: "Bundle", rows: "np.ndarray", shelf: "Shelf", options: dict[str, Any]) -> dict[str, Any]:
    """The top images of each row with their norms, and how the norms of all that the bundle lists fall."""
    import numpy as np

    listed, count = bundle.text_list("images"), options["images_per_unit"]
    across = bundle["top_norm"].shape[1]
    points = np.unique(np.linspace(0, max(across - 1, 0), min(across, CURVE_POINTS)).round().astype(int))
    images, norms, curves = [], [], []
    for row in progress(rows, "units", len(rows)):
        shown = [(int(i), norm) for i, norm in zip(bundle["top_image"][row], bundle["top_norm"][row], strict=True) if i >= 0]
        images.append([shelf.image(str(listed[i])) for i, _ in shown[:count]])
        norms.append([rounded(norm, DIGITS) for _, norm in shown[:count]])
        there = points[points < len(shown)]
        curves.append([rounded(shown[i][1], DIGITS) for i in there])
    return {"image": images, "norm": norms, "curve": curves, "ranks": (points + 1).tolist()}
