"""Classes, their synonyms, and the forms in which texts name them."""

from pathlib import Path

import pytest

from cliptools.errors import TextError
from cliptools.text.classes import CIFAR10, ClassName, load_classes, names_pattern, parse_class


def test_a_line_is_a_name_and_its_synonyms() -> None:
    assert parse_class(" sofa , couch,sofa") == ClassName("sofa", ("couch",))
    assert parse_class("fox").synonyms == ("fox face",)  # the embedded world knows it
    assert parse_class("fox, vixen").synonyms == ("vixen",)
    assert parse_class("zeppelin-like") == ClassName("zeppelin-like")


def test_presets() -> None:
    assert tuple(each.name for each in load_classes("cifar10")) == CIFAR10
    assert len(load_classes("emoji")) > 500
    assert len(load_classes("imagenet")) > 990


def test_a_file_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("# pets\ncat, kitty\n\ndog  # man's best friend\n", encoding="utf-8")
    assert next(each.names[:2] for each in load_classes(str(file))) == ("cat", "kitty")
    assert load_classes(str(file))[1].name == "dog"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"caf\xe9\n", "expected UTF-8"), (b" , \n", "expected a name")],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(content)
    with pytest.raises(TextError, match=message):
        load_classes(str(file))
    with pytest.raises(TextError, match="neither a file nor one of"):
        load_classes(str(tmp_path / "none.txt"))


@pytest.mark.parametrize("text", ["Two wolves howl", "a WOLF.", "wolf"])
def test_plurals_and_case_are_found(text: str) -> None:
    assert names_pattern(["wolf"]).search(text)


@pytest.mark.parametrize("text", ["wolfram", "werewolf", "a cat"])
def test_parts_of_words_are_not(text: str) -> None:
    assert not names_pattern(["wolf"]).search(text)
