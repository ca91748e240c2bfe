"""Outputs that are not plain files."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cliptools.errors import CliptoolsError
from cliptools.io.files import whole_file


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        with whole_file(pipe) as stream:
            stream.write(b"lines")
        assert read.result(10) == b"lines"
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"before")
    with pytest.raises(ValueError), whole_file(target) as stream:
        stream.write(b"half")
        raise ValueError
    assert target.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]
    with whole_file(target) as stream:
        stream.write(b"after")
    assert target.read_bytes() == b"after"
    with pytest.raises(CliptoolsError, match="could not be written"), whole_file(tmp_path):
        pass
