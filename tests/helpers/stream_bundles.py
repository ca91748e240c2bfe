"""Bad bundles made from a valid one: wrong headers and invalid tensors."""

import hashlib
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from helpers.stream_bytes import flipped, noise, spliced, truncated

Header = dict[str, Any]
Damage = Callable[[random.Random, Header, bytes], bytes]

NO_SIZES = (-1, 1.5, "3", None, True, [], {}, 1 << 63, 1 << 64, -(1 << 63), 10**30, float("nan"), float("inf"))
NO_VALUES = (None, 5, -1, 1.5, "x", "", [], {}, True, [1, 2], {"a": 1}, "\ud800", "\0", 10**40, float("nan"))
NO_JSON = (
    b"", b"[", b"{", b"null", b"5", b'"a"', b"[1, 2]", b'["a", null]', b"[" * 5000, b'{"texts": 5}', b'{"texts": "abcdef"}',
    b'{"texts": {"a": 1}}', b'["\\ud800"]', b'{"texts": ["\\udfff"]}', b"\xff\xfe[]", b"[NaN]",
    b'{"texts": [], "texts": ["a"]}', b"[]",
    b'["a", "b", "c"', b"1e999", b"\xef\xbb\xbf[]",
)  # fmt: skip
TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "", "f32", "X" * 1000)


def apart(data: bytes) -> tuple[Header, bytes]:
    """Return header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def together(header: Header | str, body: bytes) -> bytes:
    """Return the file of a header and tensors."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def tensors_of(header: Header, body: bytes) -> dict[str, tuple[Header, bytes]]:
    """Return each tensor's entry and bytes."""
    return {
        key: (entry, body[entry["data_offsets"][0] : entry["data_offsets"][1]])
        for key, entry in header.items()
        if key != "__metadata__"
    }


def laid_out(metadata: Any, tensors: dict[str, tuple[Header, bytes]]) -> bytes:
    """Return a file in which these tensors follow one another without gaps."""
    header, body = {"__metadata__": metadata}, b""
    for key, (entry, data) in tensors.items():
        header[key] = entry | {"data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return together(header, body)


def name_of(draw: random.Random, header: Header, *among: str) -> str:
    """Return the name of a random tensor."""
    return draw.choice([key for key in header if key != "__metadata__" and (not among or key in among)])


def wrong_length(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set a wrong length in the first 8 bytes."""
    data = together(header, body)
    (true,) = struct.unpack("<Q", data[:8])
    lie = draw.choice((0, 1, 2, true - draw.randint(1, true - 1), true + draw.randint(1, 1000), 10**8, 1 << 63, (1 << 64) - 1))
    return struct.pack("<Q", lie) + data[8:]


def shifted(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Make tensors overlap or leave holes between them."""
    entry = header[name_of(draw, header)]
    which, by = draw.randrange(2), draw.choice((-8, -4, -1, 1, 4, 8, 1000, 1 << 40))
    entry["data_offsets"][which] = entry["data_offsets"][which] + by
    return together(header, body)


def moved(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Move one tensor to the place of another, which leaves a hole unless both are equal."""
    one, other = draw.sample([key for key in header if key != "__metadata__" and header[key]["data_offsets"][1]], 2)
    header[one] = dict(header[other])
    return together(header, body)


def hole(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Remove the entry of a tensor and keep its bytes."""
    del header[name_of(draw, header)]
    return together(header, body + b"\0")


def twice(draw: random.Random, header: Header, body: bytes) -> bytes:
    """List a tensor twice, with the same or another entry."""
    key, other = name_of(draw, header), name_of(draw, header)
    return together(json.dumps(header)[:-1] + f", {json.dumps(key)}: {json.dumps(header[other])}}}", body)


def no_entry(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Replace an entry by an invalid one."""
    key = name_of(draw, header)
    header[key] = draw.choice((*NO_VALUES, {}, {"dtype": "F32"}, header[key] | {"more": 1}))
    return together(header, body)


def no_size(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Replace a shape or an offset by an invalid one."""
    entry = header[name_of(draw, header)]
    part = draw.choice(("shape", "data_offsets"))
    if draw.random() < 0.3 or not entry[part]:
        entry[part] = draw.choice((*NO_VALUES[:8], [[]], [None], "[0, 4]", {"0": 1}, [0] * 65, [1 << 40, 1 << 40, 3]))
    else:
        entry[part][draw.randrange(len(entry[part]))] = draw.choice(NO_SIZES)
    return together(header, body)


def other_type(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set another type of a tensor, with an adapted shape if the number of bytes allows it."""
    entry = header[name_of(draw, header)]
    before = entry["dtype"]
    entry["dtype"] = draw.choice([each for each in (*TYPES, 5, None, ["F32"]) if each != before])
    return together(header, body)


def other_shape(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set another shape with the same number of elements."""
    entry = header[name_of(draw, header)]
    shape = entry["shape"]
    count = int(np.prod(shape))
    made = draw.choice(([count], [1, *shape], [*shape, 1], [count, 1], [1, count], [*shape, 1, 1], [], [1] * 70 + shape))
    entry["shape"] = made if made != shape else [*shape, 1]
    return together(header, body)


def other_rows(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set a tensor with another number of units, or with none."""
    metadata, tensors = header["__metadata__"], tensors_of(header, body)
    key = name_of(
        draw, header, "unit", "top_norm", "top_image", "threshold", "explained", "word", "coefficient", "residual", "sign"
    )
    entry, data = tensors[key]
    rows, row = entry["shape"][0], len(data) // entry["shape"][0]
    count = draw.choice([each for each in (0, 1, rows - 1, rows + 1, 2 * rows) if each != rows])
    tensors[key] = entry | {"shape": [count, *entry["shape"][1:]]}, (data * 2)[: count * row]
    return laid_out(metadata, tensors)


def not_finite(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set NaN or infinity in a tensor of real numbers."""
    places = [
        entry for key, entry in header.items() if key != "__metadata__" and entry["dtype"] == "F32" and np.prod(entry["shape"])
    ]
    start, stop = draw.choice(places)["data_offsets"]
    at = draw.randrange(start, stop, 4)
    return together(header, body[:at] + struct.pack("<f", draw.choice((np.nan, np.inf, -np.inf))) + body[at + 4 :])


def bad_index(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set an index outside its list, or an invalid unit."""
    key = name_of(draw, header, "top_image", "word", "unit")
    start, stop = header[key]["data_offsets"]
    at = draw.randrange(start, stop, 4)
    value = draw.choice((-2, -(1 << 31), -5)) if key == "unit" else draw.choice((-2, -(1 << 31), (1 << 31) - 1, 1000, 3))
    return together(header, body[:at] + struct.pack("<i", value) + body[at + 4 :])


def bad_list(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set a list that is not JSON, has no texts, or has fewer texts than indices."""
    metadata, tensors = header["__metadata__"], tensors_of(header, body)
    key = name_of(draw, header, "images", "words")
    data = draw.choice(NO_JSON)
    tensors[key] = {"dtype": "U8", "shape": [len(data)]}, data
    return laid_out(metadata, tensors)


def bad_thumbnails(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set offsets that do not divide the pictures."""
    start, stop = header["thumbnail_offsets"]["data_offsets"]
    at = draw.randrange(start, stop, 8)
    value = draw.choice((-1, 1 << 62, -(1 << 63), (1 << 63) - 1))
    return together(header, body[:at] + struct.pack("<q", value) + body[at + 8 :])


def bad_metadata(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Remove the suite's own metadata, or replace them by another value."""
    said = header["__metadata__"]["cliptools"]
    deep = '{"a":' * 3000 + "1" + "}" * 3000
    fields = json.loads(said)
    header["__metadata__"] = draw.choice((
        None, 5, [], {}, {"cliptools": 5}, {"cliptools": fields}, {"cliptools": ""}, {"cliptools": said[:-1]},
        {"cliptools": said + " 1"}, {"cliptools": said, "other": 5}, {"cliptools": deep}, {"cliptools": "[" * 100_000},
        {"cliptools": said[:-1] + ', "kind": "again"}'}, {"cliptools": said.replace("{", '{"x": NaN, ', 1)},
        {"cliptools": json.dumps(fields | {"more": 1})}, {"cliptools": json.dumps(fields | {"model": {}})},
        {"cliptools": json.dumps({key: value for key, value in fields.items() if key != "model"})},
        {"cliptools": json.dumps(fields | {"format": draw.choice((0, 2, "1", True, None, 1.0, 10**30))})},
        {"cliptools": json.dumps(fields | {"settings": {"a": "\ud800"}})}, {"cliptools": json.dumps(fields | {"a\nb": 1})},
    ))  # fmt: skip
    return together(header, body)


def bad_field(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Remove a field of the suite's own metadata, or replace its value."""
    fields = json.loads(header["__metadata__"]["cliptools"])
    part = draw.choice(("model", "images", "settings", "history", "kind"))
    if part == "history":
        fields[part] = draw.choice((*NO_VALUES, [5], [None], [[]], [{"arguments": 5}], [{"command": 5}], [{}]))
    elif part == "kind" or draw.random() < 0.2:
        fields[part] = draw.choice(NO_VALUES)
    else:
        key = draw.choice((*fields[part], "name", "count", "effect", "units", "words", "layers", "have", "shards", "kept"))
        fields[part][key] = draw.choice(NO_VALUES)
        if draw.random() < 0.2:
            del fields[part][key]
    header["__metadata__"]["cliptools"] = json.dumps(fields)
    return together(header, body)


def reordered(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Reorder entries and tensors, which keeps the bundle valid."""
    tensors = list(tensors_of(header, body).items())
    draw.shuffle(tensors)
    return laid_out(header["__metadata__"], dict(tensors))


def left_out(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Remove a tensor without leaving a hole."""
    tensors = tensors_of(header, body)
    del tensors[name_of(draw, header)]
    return laid_out(header["__metadata__"], tensors)


def renamed(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Rename a tensor."""
    tensors = tensors_of(header, body)
    names = ("ü\u2028\u202e", "a\nb\x1b[2J", "x" * 10_000, "", "\0", "мир", "direction", "sign", "moment", "words", "component")
    tensors[draw.choice(names)] = tensors.pop(name_of(draw, header))
    return laid_out(header["__metadata__"], tensors)


def raw(change: Callable[[random.Random, bytes], bytes]) -> Damage:
    """Return damage of bytes as damage of a bundle."""
    return lambda draw, header, body: change(draw, together(header, body))


def flipped_header(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Flip bits in the header."""
    data = together(header, body)
    return flipped(draw, data, 0, len(data) - len(body))


def more_behind(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Append bytes after the end."""
    return together(header, body + draw.randbytes(draw.randint(1, 9)))


REFUSED: dict[str, Damage] = {
    "truncated": raw(truncated),
    "more behind": more_behind,
    "noise": raw(noise),
    "wrong length": wrong_length,
    "shifted": shifted,
    "moved": moved,
    "hole": hole,
    "twice": twice,
    "no entry": no_entry,
    "no size": no_size,
    "other type": other_type,
    "other shape": other_shape,
    "other rows": other_rows,
    "not finite": not_finite,
    "bad index": bad_index,
    "bad list": bad_list,
    "bad thumbnails": bad_thumbnails,
    "bad metadata": bad_metadata,
}
"""What has to be refused, whatever the bundle."""
PERHAPS: dict[str, Damage] = {
    "flipped": raw(flipped),
    "flipped header": flipped_header,
    "spliced": raw(spliced),
    "bad field": bad_field,
    "left out": left_out,
    "renamed": renamed,
}
"""What need not be seen: a turned bit of a number gives another number."""


def signed(damage: Damage) -> Damage:
    """Return damage of a partial's tensors with a new, matching digest."""

    def signed_damage(draw: random.Random, header: Header, body: bytes) -> bytes:
        changed, tensors = apart(damage(draw, header, body))
        said = json.loads(changed["__metadata__"]["cliptools"])
        said["settings"]["tensors"] = hashlib.sha256(tensors).hexdigest()
        return together(changed | {"__metadata__": {"cliptools": json.dumps(said)}}, tensors)

    return signed_damage


def flipped_body(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Flip bits in the tensors."""
    return together(header, flipped(draw, body))


def image_outside(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set the number of an image that is not listed."""
    start, stop = header[name_of(draw, header, "5.image", "6.image", "5.near_image", "6.near_image")]["data_offsets"]
    at = draw.randrange(start, stop, 8)
    return together(header, body[:at] + struct.pack("<q", draw.choice((-2, 10, 1 << 40, -(1 << 63)))) + body[at + 8 :])


def other_names(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set names of images that are invalid, or not as many as their numbers."""
    metadata, tensors = header["__metadata__"], tensors_of(header, body)
    data = draw.choice((*NO_JSON, b'["a", "b"]', b'["a", "b", "c", "d", 5]'))
    tensors["images"] = {"dtype": "U8", "shape": [len(data)]}, data
    return laid_out(metadata, tensors)


def more_rows(draw: random.Random, header: Header, body: bytes) -> bytes:
    """Set one field of a layer with more or fewer units."""
    metadata, tensors = header["__metadata__"], tensors_of(header, body)
    key = name_of(draw, header, *(key for key in header if "." in key))
    entry, data = tensors[key]
    rows, row = entry["shape"][0], len(data) // entry["shape"][0]
    count = draw.choice((0, rows - 1, rows + 1, 2 * rows))
    tensors[key] = entry | {"shape": [count, *entry["shape"][1:]]}, (data * 2)[: count * row]
    return laid_out(metadata, tensors)


OF_HEADERS = (
    "truncated",
    "more behind",
    "noise",
    "wrong length",
    "shifted",
    "moved",
    "hole",
    "twice",
    "no entry",
    "no size",
    "other type",
    "other shape",
    "bad metadata",
)
PARTIALS_REFUSED = {kind: REFUSED[kind] for kind in OF_HEADERS} | {
    "flipped tensors": flipped_body,
    "not finite": signed(not_finite),
    "image outside": signed(image_outside),
    "other names": signed(other_names),
    "other rows": signed(more_rows),
    "left out": signed(left_out),
    "renamed": signed(renamed),
}
PARTIALS_PERHAPS = {kind: PERHAPS[kind] for kind in ("flipped", "flipped header", "spliced", "bad field")}
