"""What a bundle and a partial hold: their tensors, and the fields of their header.

Readers' checks (bundle_faults.py, header.py, shard_file.py), the selection of units, `clip-view --check`, the manual page
cliptools-stream(5) and the tables of the documents are all made from these tables. A bundle may hold further tensors and fields,
which every command passes on. By hand, because no schema library relates the axes of several arrays by name.
"""

from typing import Annotated, Any, NamedTuple

import msgspec

CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""numpy's names of types -> those of safetensors, for the types of real numbers that both have."""
AXES = {
    "U": "units", "d": "joint dimensions", "c": "components", "T": "top images", "e": "numbers of a head", "m": "texts",
    "s": "texts", "p": "prefixes", "j": "joint dimensions of the judge",
}  # fmt: skip
"""Axes that have the same size in all tensors of a bundle; other names of axes, and numbers, stand for themselves."""


class TensorField(NamedTuple):
    """A tensor by name."""

    name: str
    dtype: str
    """numpy's name of the type."""
    axes: str
    """Names of the axes, as `U d`; a number is a fixed size. A selection of units selects along a first axis U."""
    meaning: str
    when: str = ""
    """The bundles that hold it; empty for all bundles of clip-effects."""
    low: float | None = None
    high: float | None = None
    """Smallest and largest value, for units and lists of full length. Every reader checks whole numbers, --check all numbers."""
    unit_length: bool = False
    """True if the last axis is a vector of length 1, or of zeros."""
    descending: bool = False
    """True if each row is sorted, largest first."""
    index_of: str = ""
    """JSON tensor into whose list it points; -1 ends a row of fewer indices."""
    along: str = ""
    """Tensor of indices to whose entries its entries belong."""
    zero_after_end: bool = False
    """True if its entries are 0 where the row of `along` has ended."""

    @property
    def has_unit_rows(self) -> bool:
        """Return whether it has one row per unit."""
        return self.axes.split()[0] == "U"

    @property
    def values(self) -> str:
        """Its permitted values, in words for documents; empty if any finite number is permitted."""
        parts = [f"an index into `{self.index_of}`, or −1 after the last"] if self.index_of else []
        parts += ["length 1, or 0"] if self.unit_length else []
        if self.low is not None:
            parts.append(f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}".replace("-", "−"))
        parts += ["largest first"] if self.descending else []
        parts += [f"0 where `{self.along}` is −1"] if self.zero_after_end else []
        return ", ".join(parts)


COMPONENTS, THUMBNAILS, WORDS = "only with `--components c`", "only with `--thumbnails`", "only from clip-decompose"
VERIFIED = "only from clip-decompose with `--verify`"
SEEN = "only from clip-decompose and clip-judge"
JUDGED = "only from clip-judge"
PAIRS, NOT_PAIRS = "only for neuron-head pairs", "not for neuron-head pairs"

_TENSORS = (
    TensorField("unit", "int32", "U 3", "layer, neuron, head; −1 where not applicable"),
    TensorField(
        "direction", "float32", "U d",
        "r: first principal direction of the effects on the top images; its sign makes the sum of the cubed projections of these "
        "effects positive; zeros if the unit never acted",
        NOT_PAIRS, unit_length=True,
    ),
    TensorField(
        "component", "float32", "U c d", "the first c principal directions, of which the first is `direction`",
        COMPONENTS, unit_length=True,
    ),
    TensorField(
        "component_explained", "float32", "U c", "share of the squared centred norm along each component, over the top images",
        COMPONENTS, 0.0, 1.0,
    ),
    TensorField("mean", "float32", "U d", "b: mean effect over all images", NOT_PAIRS),
    TensorField(
        "top_norm", "float32", "U T",
        "largest centred norms ‖φ − b‖; T is 2 % of the images, but at least 10 and at most 100, unless `--top-images` sets it",
        low=0.0, descending=True, along="top_image",
    ),
    TensorField("top_image", "int32", "U T", "the images of these norms", index_of="images"),
    TensorField(
        "threshold", "float32", "U",
        "τ: the centred norm that a share 1 − q of all images reaches; q is 0.98 unless `--quantile` sets it", low=0.0
    ),
    TensorField(
        "threshold_bound", "float32", "U", "largest possible difference to the true threshold; 0 where the threshold is exact",
        low=0.0,
    ),
    TensorField(
        "explained", "float32", "U", "share of the squared centred norm along r, over the top images", NOT_PAIRS, 0.0, 1.0
    ),
    TensorField("explained_all", "float32", "U", "the same share over all images", NOT_PAIRS, 0.0, 1.0),
    TensorField(
        "sign", "int8", "U", "in place of `direction`: r is `sign` · w/‖w‖, with w from the model's weights; 0 if the pair never "
        "acted", PAIRS, -1.0, 1.0,
    ),
    TensorField("mean_scalar", "float32", "U", "in place of `mean`: b is `mean_scalar` · w", PAIRS),
    TensorField(
        "rest_mean", "float32", "d",
        "mean over the images of the summed effects of the units that were dropped", "only with `--keep`"
    ),
    TensorField("token_mean", "float32", "U tokens", "mean activation at each token", "only for indirect effects"),
    TensorField(
        "moment", "float32", "U e e",
        "mean of (S − S̄)(S − S̄)ᵀ over all images; S are the e numbers that a head's output matrix maps to the head's output",
        "only with `--units heads`",
    ),
    TensorField("deviation", "float32", "U", "root mean square over all images of the activity a = ⟨φ − b, r⟩", low=0.0),
    TensorField(
        "read", "float32", "U d",
        "q: covariance of a and the images' unit embeddings, from the top images, without the unit's own share of these",
        "not for neuron-head pairs without `--keep`",
    ),
    TensorField("embedding_mean", "float32", "d", "mean of the images' unit embeddings M(I)/‖M(I)‖"),
    TensorField("embedding_covariance", "float32", "d d", "their covariance"),
    TensorField(
        "uncertain", "int32", "R 3", "units, as in `unit`, whose list of top images is not certain",
        "only from clip-merge without `--images`",
    ),
    TensorField("images", "uint8", "bytes", "JSON list of the names of the images in `top_image`"),
    TensorField("thumbnails", "uint8", "bytes", "small JPEGs of these images, one after another", THUMBNAILS),
    TensorField(
        "thumbnail_offsets", "int64", "images+1", "start of each JPEG in `thumbnails`, and the end of the last; an image without "
        "a JPEG has none of its bytes", THUMBNAILS,
    ),
    TensorField("word", "int32", "U m", "texts in the order in which the pursuit chose them", WORDS, index_of="words"),
    TensorField(
        "coefficient", "float32", "U m", "coefficients of these texts; with TextSpan, shares of the variance", WORDS,
        along="word", zero_after_end=True,
    ),
    TensorField(
        "residual", "float32", "U", "‖r − r̂‖ for the sum r̂ of all m texts; with TextSpan, √(1 − Σ shares)", WORDS, 0.0, 1.0
    ),
    TensorField(
        "prefix_residual", "float32", "U p", "the same for fewer texts", "only from clip-decompose with `--prefix`", 0.0, 1.0
    ),
    TensorField(
        "overlap", "int32", "U s", "texts of largest ⟨r, t⟩, t centred as in the pursuit, of unit norm; −1 if r is 0",
        WORDS, index_of="words",
    ),
    TensorField(
        "overlap_cosine", "float32", "U s", "⟨r, t⟩ of these texts", WORDS, -1.0, 1.0, descending=True, along="overlap",
        zero_after_end=True,
    ),
    TensorField(
        "seen", "int32", "U s", "texts of largest correlation between the activity a and the similarity of image and text",
        SEEN, index_of="words",
    ),
    TensorField(
        "seen_correlation", "float32", "U s",
        "correlations of these texts; from the top images alone they are too small, from clip-judge they are of images that did "
        "not choose the texts",
        SEEN, -1.0, 1.0, along="seen", zero_after_end=True,
    ),
    TensorField(
        "agreement", "float32", "U", "the same correlation for the text of largest coefficient; 0 if no coefficient is positive",
        SEEN, -1.0, 1.0,
    ),
    TensorField(
        "verified", "int32", "U s", "words of the three lists above that correlate most with the activity on other images",
        VERIFIED, index_of="words",
    ),
    TensorField(
        "verified_correlation", "float32", "U s", "correlations of these texts on images that did not choose them",
        VERIFIED, -1.0, 1.0, along="verified", zero_after_end=True,
    ),
    TensorField(
        "judged_read", "float32", "U 2 j",
        "covariance of a and the unit embeddings of the judge, without the unit's own share of these, on the half of other "
        "images that chose words and on the half that scored them", JUDGED,
    ),
    TensorField("judged_deviation", "float32", "U 2", "standard deviation of a on these halves", JUDGED, low=0.0),
    TensorField(
        "judged_share", "float32", "U 2",
        "regression slope of the unit's own share of these embeddings, along r, on a, on these halves; 0 for another model",
        JUDGED,
    ),
    TensorField("judged_covariance", "float32", "2 j j", "covariance of the embeddings on these halves", JUDGED),
    TensorField(
        "words", "uint8", "bytes",
        "JSON object: `texts`, a list of the texts in `word`, `overlap` and `seen`; `pool`, the name of the vocabulary; `digest` "
        "of all its texts",
        WORDS,
    ),
)  # fmt: skip
TENSORS = {field.name: field for field in _TENSORS}
"""Tensors of a bundle by name, in the order of the documents."""

_PARTIAL = (
    TensorField("centre", "float64", "n k", "c0: the provisional centre, which all shards share"),
    TensorField("scale", "float32", "n", "root mean square of the norms in the sample"),
    TensorField("spread", "float32", "n", "largest root mean square of a column in the sample"),
    TensorField("length", "float32", "n k", "norms of the vectors of the weights"),
    TensorField("sum", "float64", "n k", "sum of x = S − c0"),
    TensorField("moment", "float64", "n m", "sum of xᵀx, on and above the diagonal; m = k(k + 1)/2"),
    TensorField("norm", "float32", "n f", "norms of the kept images, largest first"),
    TensorField("image", "int64", "n f", "numbers of these images, −1 for empty places"),
    TensorField("x", "float32", "n f k", "x of these images"),
    TensorField("near_norm", "float32", "n t", "norms of the next images"),
    TensorField("near_image", "int64", "n t", "numbers of these images, −1 for empty places"),
    TensorField("lost", "float32", "n", "bound on the norms of all other images"),
    TensorField("histogram", "int32", "n b", "counts of norms by bin"),
    TensorField("histogram_top", "int32", "n", "the largest bin of the histogram"),
    TensorField("histogram_reach", "float32", "n", "largest error of the centre about which norms were counted"),
)
PARTIAL = {field.name: field for field in _PARTIAL}
"""Tensors of each layer of a partial: n units, k factored effects, f kept images, t = T next images, b bins."""

_PARTIAL_IMAGES = (
    TensorField("images", "uint8", "bytes", "JSON list of the names of the images in the lists of top images"),
    TensorField("image_number", "int64", "names", "numbers of these images"),
    TensorField("embedding", "float32", "i d", "M(I) of all images of the shards, in the order of their numbers"),
    TensorField("embedding_number", "int64", "i", "numbers of these images, ascending"),
)
PARTIAL_IMAGES = {field.name: field for field in _PARTIAL_IMAGES}
"""Tensors of a partial that belong to no layer."""

TEXT, COUNT, NUMBER, COUNTS = "a text", "a number from 0 on", "a number", "a list of numbers from 0 on"
TEXTS, OBJECT = "a text or a list of texts", "an object"
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
TYPES: dict[str, Any] = {TEXT: str, COUNT: Count, NUMBER: float, COUNTS: list[Count], TEXTS: str | list[str], OBJECT: dict}
"""The types of fields, as documents name them -> as msgspec checks them."""


class HeaderField(NamedTuple):
    """A field of a part of the header."""

    name: str
    type: str
    meaning: str
    allowed: tuple[str, ...] = ()
    """Its allowed values; empty for all of its type."""
    null: bool = False
    """True if it may be null."""
    required: str = ""
    """`always`, or `partial` if only partials need it; other fields may be missing."""


HEADER: dict[str, tuple[HeaderField, ...]] = {
    "model": (
        HeaderField("name", TEXT, "open_clip's name of the model, or the embedded model", required="always"),
        HeaderField("sha256", TEXT, "sha256 of the names, types and bytes of all weights", required="always"),
        HeaderField("pretrained", TEXT, "tag or file of the weights; null for models that contain their weights", null=True),
        HeaderField("precision", TEXT, "precision of the computation", ("fp32", "bf16", "fp16")),
        HeaderField("preprocessing", OBJECT, "preprocessing of images in open_clip's terms"),
        HeaderField("text_from", TEXT, "source of the text tower, if `--text-from` named one"),
        HeaderField("activation", OBJECT, "activation function of each tower"),
        HeaderField("grid", COUNTS, "rows and columns of patches"),
        HeaderField("architecture", TEXT, "sha256 of everything except the weights that determines the computation"),
        HeaderField("sources", OBJECT, "where preprocessing, activation and grid come from"),
        HeaderField("parent", OBJECT, "the model from which clip-edit made this one: name, pretrained, sha256"),
    ),
    "images": (
        HeaderField("count", COUNT, "number of images measured", required="partial"),
        HeaderField("skipped", COUNT, "number of images that could not be read", required="partial"),
        HeaderField("listed", COUNT, "number of images of all shards", required="partial"),
        HeaderField("digest", TEXT, "sha256 of the list of their names", required="partial"),
    ),
    "settings": (
        HeaderField("effect", TEXT, "kind of effect", ("second", "first", "indirect", "pooled"), required="partial"),
        HeaderField("units", TEXT, "kind of units", ("neurons", "pairs", "heads", "latents"), required="partial"),
        HeaderField(
            "dictionary",
            OBJECT,
            "where units are latents: `file` as --units named it, `sha256` of its tensors and settings, number "
            "of `latents`, what it `reads` and `writes`, and its `activation`",
        ),
        HeaderField("layers", COUNTS, "layers of the units", required="partial"),
        HeaderField(
            "scale", TEXT, "`unit` if effects are multiplied by 100/‖M(I)‖ of their image", ("unit", "raw"), required="partial"
        ),
        HeaderField("quantile", NUMBER, "q of `threshold`", required="partial"),
        HeaderField("top_images", COUNT, "T, the number of top images per unit", required="partial"),
        HeaderField("top_share", NUMBER, "share of the images from which T was computed, unless `--top-images` set it"),
        HeaderField("components", COUNT, "number of principal directions per unit"),
        HeaderField("keep", NUMBER, "share of the units that `--keep` kept"),
        HeaderField("measured", COUNT, "number of units before `--keep`"),
        HeaderField("seed", COUNT, "seed of the order of reading and of `--sample`"),
        HeaderField("words", OBJECT, "how words were chosen (below)"),
        HeaderField("verified", COUNT, "number of images of `--verify`"),
        HeaderField("judged", TEXT, "source of `seen` and `agreement`: `own` for the model itself, `truth`, or another model"),
        HeaderField(
            "judged_read",
            OBJECT,
            "how `judged_read` was measured: `images` of the halves, and the `model` of the embeddings if it is another one",
        ),
        HeaderField("judged_images", COUNT, "number of images by which clip-judge chose `seen`"),
        HeaderField("kept", COUNT, "images per unit in a partial", required="partial"),
        HeaderField("shards", COUNT, "number of shards of the run", required="partial"),
        HeaderField("have", COUNTS, "shards that a partial contains, from 1", required="partial"),
        HeaderField("tensors", TEXT, "sha256 of the tensors of a partial"),
    ),
    "words": (
        HeaderField("method", TEXT, "how texts were chosen: matching pursuit or TextSpan"),
        HeaderField("pool", TEXT, "name of the vocabulary"),
        HeaderField("digest", TEXT, "sha256 of the vocabulary's texts"),
        HeaderField("m", COUNT, "largest number of texts per unit"),
        HeaderField("prefix", COUNTS, "numbers of texts of `prefix_residual`"),
        HeaderField("center", TEXT, "mean that was subtracted from the texts"),
        HeaderField("normalize", TEXT, "vectors that were scaled to length 1"),
        HeaderField("templates", TEXTS, "name of a set of templates, or the templates"),
    ),
    "history": (
        HeaderField("command", TEXT, "name of the command"),
        HeaderField("version", TEXT, "its version"),
        HeaderField("arguments", OBJECT, "its arguments that change the result"),
    ),
}
"""Fields of the parts of a header; `words` is the part of that name in `settings`, `history` each step in the history."""


def required_fields(part: str, *kinds: str) -> list[str]:
    """Return the names of the fields of a part of the header that are required in one of these cases."""
    return [field.name for field in HEADER[part] if field.required in kinds]
