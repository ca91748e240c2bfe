"""Bundles as streams: equal bytes, and incomplete input is rejected."""

import io
import json
import struct

import numpy as np
import pytest
from helpers.bundle import read, small_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cliptools.errors import CliptoolsError, StreamError
from cliptools.io.bundle import read_header
from cliptools.io.bundle_schema import HEADER, NUMBER, HeaderField
from cliptools.io.header import Header, canonical, digest


def test_round_trip_and_equal_bytes() -> None:
    bundle = small_bundle(words=True)
    data = bundle.to_bytes()
    again = read(data)
    assert again.header == bundle.header
    assert all(np.array_equal(again[name], bundle[name]) for name in bundle.tensors)
    assert again.to_bytes() == data and again.digest == bundle.digest
    assert again.text_list("images")[1] == "ä b.png"


def test_history_grows_by_one_step_a_command() -> None:
    header = small_bundle().header.after("clip-decompose", {"m": 4})
    assert [step["command"] for step in header.history] == ["clip-effects", "clip-decompose"]
    assert Header.from_json(header.to_json(), "it") == header


def test_every_truncation_is_noticed() -> None:
    data = small_bundle().to_bytes()
    for length in range(len(data)):
        with pytest.raises(StreamError, match=r"it: (truncated|empty)"):
            read(data[:length])


def test_what_follows_a_bundle_is_noticed() -> None:
    with pytest.raises(StreamError, match="after the end"):
        read(small_bundle().to_bytes() + b"x")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(StreamError) as caught:
        read(data)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_headers_are_refused_or_read_but_never_crash(data: st.DataObject) -> None:
    whole = bytearray(small_bundle(words=True).to_bytes())
    (length,) = struct.unpack("<Q", whole[:8])
    at = data.draw(st.integers(0, 8 + length - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        read(bytes(whole))
    except StreamError as error:
        assert "\n" not in str(error)


def test_a_header_that_asks_for_too_much_costs_nothing() -> None:
    for length in (2**63, 99_999_999):
        with pytest.raises(StreamError):
            read(struct.pack("<Q", length) + b"{}")
    lie = json.dumps(
        {"unit": {"dtype": "I32", "shape": [2**40, 3], "data_offsets": [0, 2**42]}, "__metadata__": {"cliptools": "{}"}}
    )
    with pytest.raises(StreamError):
        read(struct.pack("<Q", len(lie)) + lie.encode())


def test_plain_safetensors_are_not_bundles() -> None:
    with pytest.raises(StreamError, match="not a bundle"):
        read(save({"x": np.zeros(3)}))
    assert "x" in read_header(io.BytesIO(save({"x": np.zeros(3)})), "it")


def test_numbers_that_are_not_finite_are_neither_written_nor_read() -> None:
    bundle = small_bundle()
    with pytest.raises(CliptoolsError, match="`mean` would hold NaN"):
        bundle.with_tensors(bundle.header, mean=np.full((3, 4), np.nan, np.float32)).to_bytes()
    marked = np.full((3, 4), 7.25, np.float32)
    data = bundle.with_tensors(bundle.header, mean=marked).to_bytes()
    with pytest.raises(StreamError, match="`mean` holds NaN"):
        read(data.replace(marked.tobytes(), np.full((3, 4), np.nan, np.float32).tobytes()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mean": np.zeros((2, 4), np.float32)}, "`mean` has 2 rows"),
        ({"top_image": np.full((3, 2), 3, np.int32)}, "outside the 3 entries"),
        ({"top_image": np.full((3, 2), -2, np.int32)}, "outside the 3 entries"),
        ({"top_image": np.zeros((3, 2), np.int64)}, "expected int32"),
        ({"unit": np.zeros((3, 2), np.int32)}, "shape"),
        ({"images": np.frombuffer(b"[", np.uint8)}, "JSON list"),
    ],
)
def test_inconsistent_bundles_are_refused(change: dict, reason: str) -> None:
    bundle = small_bundle()
    with pytest.raises(StreamError, match=reason):
        read(bundle.with_tensors(bundle.header, **change).to_bytes())


@pytest.mark.parametrize(
    ("part", "field"),
    [pytest.param(part, field, id=f"{part}.{field.name}") for part, fields in HEADER.items() for field in fields],
)
def test_a_field_of_the_wrong_type_or_value_is_refused(part: str, field: HeaderField) -> None:
    header = json.loads(small_bundle().header.to_json())
    places = {"words": header["settings"].setdefault("words", {}), "history": header["history"][0]}
    fields = places.get(part, header.get(part))
    fields[field.name] = "x" if field.type == NUMBER else -1.5
    with pytest.raises(StreamError, match=f"it: the bundle's header has {part} `{field.name}` '.*', expected {field.type}"):
        Header.from_json(json.dumps(header), "it")
    if field.allowed:
        fields[field.name] = "x"
        with pytest.raises(StreamError, match=f"`{field.name}` 'x', expected one of {', '.join(field.allowed)}"):
            Header.from_json(json.dumps(header), "it")


def test_a_later_format_is_refused() -> None:
    bundle = small_bundle()
    text = bundle.header.to_json().replace('"format":1', '"format":2')
    with pytest.raises(StreamError, match="format 2"):
        read(save(bundle.tensors, metadata={"cliptools": text}))


def test_selection_keeps_what_is_not_a_row() -> None:
    part = small_bundle(words=True).select(np.array([2, 0]))
    assert part["unit"][:, 1].tolist() == [2, 0] and part.text_list("images") == ["a.png", "ä b.png", "c.png"]
    assert read(part.to_bytes()).units == 2


def test_canonical_json_and_digests() -> None:
    assert canonical({"b": 1, "a": [1.5, "ü"]}) == '{"a":[1.5,"ü"],"b":1}'
    assert digest("ab", "c") != digest("a", "bc")
