"""Outputs that are not plain files."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cliptools.errors import CliptoolsError
from cliptools.io.files import put_whole, whole_file, whole_folder


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


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    with whole_file(tmp_path / ("a" * longest)) as stream:
        stream.write(b"a")
    put_whole(tmp_path / ("b" * longest), b"b")
    with whole_folder(tmp_path / ("c" * longest)) as folder:
        (folder / "file").write_bytes(b"c")
    assert sorted(name[0] for name in os.listdir(tmp_path)) == ["a", "b", "c"]
