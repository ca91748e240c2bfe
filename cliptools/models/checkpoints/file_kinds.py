"""Kinds of files given as weights, recognised by their content: those that can be read, and messages for the others."""

import io
import re
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

from cliptools.console import escape
from cliptools.errors import ModelError

Kind = Literal["safetensors", "torch", "torch-legacy", "torchscript", "index"]
HEAD = 4096  # bytes from which a file is recognised
MOST_HEADER = 100_000_000  # bytes, as safetensors allows
FETCH_AGAIN = "fetch it again"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
EXPECTED = "expected .safetensors, or .pt, .pth, .bin of torch.save"


class Signature(NamedTuple):
    """First bytes of a kind of file that cannot be read as weights, and the reason."""

    start: bytes
    reason: str


WEB_PAGE = "a web page, not weights: its address was that of a page about the file; take the address of the file itself"
UNREADABLE = (
    Signature(b"version https://git-lfs", "a Git LFS pointer, not the weights themselves: run `git lfs pull` in its folder"),
    Signature(b"GGUF", f"a GGUF file (llama.cpp): {EXPECTED}"),
    Signature(b"ggml", f"a GGML file: {EXPECTED}"),
    Signature(b"\x89HDF\r\n\x1a\n", f"an HDF5 file (TensorFlow's or Keras's weights): {EXPECTED}"),
    Signature(b"\x93NUMPY", f"a numpy array: {EXPECTED}"),
    Signature(b"\x1f\x8b", "a gzip archive: unpack it first"),
    Signature(b"BZh", "a bzip2 archive: unpack it first"),
    Signature(b"\xfd7zXZ\x00", "an xz archive: unpack it first"),
    Signature(b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    Signature(b"Rar!", "a RAR archive: unpack it first"),
    Signature(b"\xff\xd8\xff", "a picture (JPEG), not weights"),
    Signature(b"\x89PNG", "a picture (PNG), not weights"),
    Signature(b"%PDF", "a PDF document, not weights"),
)
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--", b"<body")
ONNX = re.compile(rb"\x08[\x01-\x20](\x12|\x1a|\x3a|\x42)", re.DOTALL)
MSGPACK = re.compile(rb"[\x81-\x8f][\xa1-\xbf][A-Za-z_]{2}", re.DOTALL)


def file_kind(path: Path) -> Kind:
    """Return the kind of a weights file from its content.

    Raises:
        ModelError: the file is of another kind, or it cannot be opened.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError as error:
        raise ModelError(f"{escape(str(path))}: {error.strerror or error}") from None
    if path.name.endswith(".index.json"):
        return "index"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= MOST_HEADER:
        if 8 + length > size:
            raise unreadable(path, f"a safetensors file that is cut short (its header alone has {length} bytes): {FETCH_AGAIN}")
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "torch-legacy"
    raise unreadable(path, _reason(path, head))


def unreadable(path: Path, reason: str) -> ModelError:
    """Return the error for a weights file that cannot be read."""
    return ModelError(f"{escape(path.name)}: {reason}")


def _zip_kind(path: Path) -> Kind:
    """Return the kind of a zip file.

    Raises:
        ModelError: it has no tensors of torch.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise unreadable(path, f"a zip file (.pt, .bin) that is cut short or damaged: {FETCH_AGAIN}") from None
    members = {name.partition("/")[2] for name in names}
    if "data.pkl" in members:
        return "torchscript" if "constants.pkl" in members else "torch"
    if any(name.endswith(".npy") for name in names):
        raise unreadable(path, f"an archive of numpy arrays (.npz; SigLIP's are of this kind): {EXPECTED}")
    contents = ", ".join(map(escape, names[:3])) or "nothing"
    raise unreadable(path, f"a zip file that is not a checkpoint (it holds {contents}): unpack it, and name the weights in it")


def _reason(path: Path, head: bytes) -> str:
    """Return the kind of a file that cannot be read, and what is expected."""
    if not head:
        return f"an empty file: {FETCH_AGAIN}"
    for signature in UNREADABLE:
        if head.startswith(signature.start):
            return signature.reason
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:10].lower().startswith(PAGES):
        return WEB_PAGE
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if path.suffix == ".msgpack" or MSGPACK.match(head):
        return f"a msgpack file (flax's weights): {EXPECTED}"
    if path.suffix == ".onnx" or ONNX.match(head):
        return f"an ONNX graph: {EXPECTED}"
    if path.suffix in (".pb", ".tflite") or (".ckpt" in path.name and path.suffix in (".index", ".meta")):
        return f"a file of TensorFlow's: {EXPECTED}"
    if not head.strip(b"\x00"):
        return f"nothing but zeros (a download that broke off): {FETCH_AGAIN}"
    start = escape(text[:24].decode("utf-8", "replace"))
    if text[:1] in (b"{", b"["):
        return f"a JSON text, not weights (it begins with {start!r}): {EXPECTED}"
    try:
        io.TextIOWrapper(io.BytesIO(head[:-4] or head), "utf-8").read()
    except UnicodeDecodeError:
        return f"not a known weights file (it begins with {head[:8]!r}): {EXPECTED}"
    return f"a text, not weights (it begins with {start!r}): {EXPECTED}"
