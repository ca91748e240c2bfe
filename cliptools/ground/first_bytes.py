"""What a file is that is handed in as something else, by its first bytes: for messages only."""

import re

HEAD = 512  # bytes that are looked at
SIGNATURES = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file it stands for (git lfs pull)"),
    (b"\x1f\x8b", "gzip data (gunzip it)"),
    (b"BZh", "bzip2 data (bunzip2 it)"),
    (b"\xfd7zXZ\0", "xz data (unxz it)"),
    (b"\x28\xb5\x2f\xfd", "zstd data (unzstd it)"),
    (b"PK\x03\x04", "a zip archive, as .xlsx and .npz are too (unpack or export it)"),
    (b"7z\xbc\xaf", "a 7z archive (unpack it)"),
    (b"Rar!", "a RAR archive (unpack it)"),
    (b"PAR1", "a Parquet table (write it as CSV, its images as files)"),
    (b"ARROW1", "an Arrow table (write it as CSV, its images as files)"),
    (b"\x93NUMPY", "a numpy array"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"SQLite format", "an SQLite database"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x80\x04\x95", "pickled data of Python"),
    (b"\x80\x05\x95", "pickled data of Python"),
    (b"Obj\x01", "an Avro file"),
)
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)", re.IGNORECASE)
VECTORS = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", re.IGNORECASE | re.DOTALL
)
ANSWER = re.compile(rb"\s*(404: not found|access denied|<\?xml[^>]*>\s*<error>)", re.IGNORECASE)
MAC = b"\0\x05\x16\x07"  # of AppleDouble, the `._NAME` beside a file of macOS
TAR = slice(257, 262)


def kind_of(head: bytes) -> str | None:
    r"""What a file or stream that begins so is, with an article; None of one that is not known.

    >>> kind_of(b"\x1f\x8b\x08"), kind_of(b"<!DOCTYPE html>"), kind_of(b"cat dog")
    ('gzip data (gunzip it)', "a web page (a site's link to the raw file gives the file)", None)
    """
    if (kind := next((kind for start, kind in SIGNATURES if head.startswith(start)), None)) is not None:
        return kind
    if PAGE.match(head):
        return "a web page (a site's link to the raw file gives the file)"
    if ANSWER.match(head):
        return "a server's answer that there is no such file"
    if VECTORS.match(head):
        return "vector graphics (draw them to PNG first)"
    if head.startswith(MAC):
        return "what macOS keeps beside a file (._NAME), not the file"
    return "a tar archive" if head[TAR] == b"ustar" else None


def is_text(head: bytes) -> bool:
    """Whether a file that begins so may be text in UTF-8: some bytes, none of them a control's, the last character cut or not."""
    if not head or any(byte < 9 or 13 < byte < 32 for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4 and error.start > 0
    return True
