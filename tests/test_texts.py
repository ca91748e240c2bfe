"""Text pools: exact counts, files in several forms, and one clear line for a missing pool."""

from pathlib import Path

import pytest

from cliptools.errors import TextError
from cliptools.io.header import digest
from cliptools.text.emoji_concepts import concepts
from cliptools.text.vocabularies import load_pool


@pytest.mark.parametrize(("name", "count"), [("words10k", 10_000), ("words30k", 30_000)])
def test_words_are_plain_and_exactly_as_many_as_said(name: str, count: int) -> None:
    pool = load_pool(name)
    assert len(pool.texts) == len(set(pool.texts)) == count
    assert all(word.isascii() and word.isalpha() and word.islower() and len(word) > 1 for word in pool.texts)
    assert pool.texts[:3] == ("the", "to", "and")
    assert pool == load_pool(name)


def test_ten_thousand_are_the_first_of_thirty() -> None:
    assert load_pool("words30k").texts[:10_000] == load_pool("words10k").texts


def test_emoji_has_names_and_synonyms() -> None:
    texts = load_pool("emoji").texts
    assert all(text in texts for concept in concepts() for text in (concept.name, *concept.synonyms))
    assert len(texts) == len(set(texts))


def test_imagenet_is_open_clips() -> None:
    texts = load_pool("imagenet").texts
    assert texts[:2] == ("tench", "goldfish")
    assert 990 <= len(texts) <= 1000


def test_a_file_loses_blank_lines_and_repetitions_only(tmp_path: Path) -> None:
    path = tmp_path / "pool.txt"
    path.write_bytes("\ufeffred car\r\n\n  Zürich \nred car\na {brace}\n漢字".encode())
    pool = load_pool(str(path))
    assert pool.texts == ("red car", "Zürich", "a {brace}", "漢字")
    assert pool.name == str(path)
    assert pool.digest == digest(*pool.texts)


def test_digest_knows_where_one_text_ends(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("red car\nsky")
    (tmp_path / "b").write_text("red\ncar sky")
    assert load_pool(str(tmp_path / "a")).digest != load_pool(str(tmp_path / "b")).digest


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b" \n\n", "empty"), (b"good\nb\xff\xfed\n", r"expected UTF-8, found byte 0xff in line 2")],
)
def test_a_file_that_is_no_pool(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "pool.txt"
    path.write_bytes(content)
    with pytest.raises(TextError, match=said) as caught:
        load_pool(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_such_pool_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="neither a file nor one of emoji, scenes, imagenet, words10k, words30k"):
        load_pool(str(tmp_path / "words20k"))
    with pytest.raises(TextError, match="Is a directory"):
        load_pool(str(tmp_path))
    with pytest.raises(TextError, match="cannot be read"):
        load_pool("nul\0byte")


def test_names_for_help_and_completion_are_those_of_the_lists() -> None:
    from cliptools import text
    from cliptools.text.classes import CLASS_LISTS, PAIR_LISTS
    from cliptools.text.vocabularies import POOLS

    assert tuple(map(tuple, (POOLS, CLASS_LISTS, PAIR_LISTS))) == (
        text.VOCABULARY_NAMES,
        text.CLASS_LIST_NAMES,
        text.PAIR_LIST_NAMES,
    )
