"""Names in texts: the longest name first, complete words only; and texts as scenes show them."""

import pytest
from helpers.advgen_input import model

from cliptools.emoji.words import in_words, names_of, parse_text, plural, with_article
from cliptools.generate.captions import Requirements, requirements_of
from cliptools.generate.records import Task, WordList
from cliptools.text.classes import Names, word_forms
from cliptools.text.emoji_concepts import concept_index, concepts


@pytest.mark.parametrize(
    ("names", "text", "named"),
    [
        (["bear", "teddy bear"], "a panda with a teddy bear", ["teddy bear"]),
        (["bear", "teddy bear"], "a bear, a Teddy  Bear and two bears", ["bear", "teddy bear", "bear"]),
        (["bear"], "a teddy bear", []),
        (["bear"], "a polar bear", ["bear"]),
        (["dog"], "a hot dog, a hot-dog and hot dogs", []),
        (["dog"], "a hot and tired dog", ["dog"]),
        (["fire", "bus"], "a fire engine at a bus stop", []),
        (["car"], "a police car", ["car"]),
        (["cat"], "a catamaran, a cat-like robot, a bobcat and a cat.", ["cat"]),
        (["lion", "pig"], "a sea lion and a guinea pig", []),
        (["Mouse"], "three mice beside a computer mouse", ["mouse"]),
        (["ice cream", "cream"], "an ice-cream with cream", ["ice cream", "cream"]),
        (["new york", "york"], "from York to New\nYork", ["york", "new york"]),
        (["c++", "t-shirt"], "c++ on T-shirts, a c", ["c++", "t-shirt"]),
        ([], "a cat", []),
    ],
)
def test_the_longest_name_is_meant(names: list[str], text: str, named: list[str]) -> None:
    assert [place.name for place in Names(names, concept_index()).mentions(text)] == named


def wanted(*words: str, depict: str = "panda", predict: str = "cat") -> Requirements:
    return requirements_of(WordList(Task(f"{depict}->{predict}", depict, predict, "effect", "second", 0, model(), None), words))


@pytest.mark.parametrize(
    ("text", "shown", "unread"),
    [
        ("a dog but no cat or bird", ["dog"], ["but"]),
        ("neither a dog nor a cat, but a bird", ["bird"], ["but"]),
        ("without cats or birds and a dog", ["dog"], []),
        ("zero dogs and a cat", ["cat"], []),
        ("a dog or a cat", ["dog", "cat"], ["or"]),
        ("no dog and a cat or a bird", ["cat", "bird"], ["or"]),
    ],
)
def test_what_a_text_denies_is_not_shown(text: str, shown: list[str], unread: list[str]) -> None:
    reading = parse_text(text)
    assert [concepts()[concept].name for concept in reading.concepts] == shown and list(reading.unread) == unread


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("a panda with a teddy bear, a rocket and a key", ("teddy bear", "rocket", "key")),
        ("a panda with a bear and two Keys", ("bear", "key")),
        ("a panda with a polar bear", ("bear",)),
        ("a panda in a hot dog stand", ("hot dog",)),
        ("a panda in a rocketry keyboard", ()),
    ],
)
def test_words_of_a_description_are_those_it_names(text: str, used: tuple[str, ...]) -> None:
    assert wanted("bear", "teddy bear", "rocket", "key", "hot dog").used_words(text) == used


def test_a_description_has_to_name_the_depicted_class_itself() -> None:
    dog = wanted("rocket", "hot dog", depict="dog", predict="deer")
    assert dog.words == ("rocket",)
    assert dog.fault("a hot dog and a rocket") == "does not name dog"
    assert dog.fault("a dog, a hot dog and a rocket") is None and dog.fault("dogs beside a rocket") is None
    assert dog.fault("a dog and a deer with a rocket") == "names deer"
    assert wanted("rocket", depict="cat", predict="dog").fault("a black cat and a rocket") is None
    assert wanted("rocket", "hot dog", depict="cat", predict="dog").words == ("rocket",), "a word with the class in it"


@pytest.mark.parametrize(
    ("text", "names", "unread"),
    [
        ("two dogs and a red pizza", ["dog", "dog", "pizza"], ["red"]),
        ("a dog and a dog", ["dog", "dog"], []),
        ("A dog. The dog sees another dog", ["dog", "dog"], ["sees"]),
        ("dogs", ["dog", "dog"], []),
        ("the two dogs beside the cat", ["dog", "dog", "cat"], []),
        ("2 hot dogs", ["hot dog", "hot dog"], []),
        ("a picture of two houses", ["house", "house"], []),
        ("houses", ["houses"], []),
        ("three stars", ["star", "star", "star"], []),
        ("a pair of scissors, a pair of owls", ["scissors", "owl", "owl"], []),
        ("a dog, no cat and a key without a lemon", ["dog", "key"], []),
        ("a cat on a boat", ["cat", "boat"], ["on"]),
        ("a boat left of several cats", ["boat", "cat", "cat"], ["left", "several"]),
        ("two people ride a dog", ["dog"], ["two", "people", "ride"]),
        ("a red and a white dog", ["dog"], ["red", "white"]),
        ("a photo of a framed picture", ["framed picture"], []),
        ("a close view of an owl surrounded by a rocket, a crown and a key", ["owl", "rocket", "crown", "key"], []),
        ("a cat-like robot", [], ["cat-like", "robot"]),
        ("a teddy-bear", ["teddy bear"], []),
        ("a dog's bone", ["dog"], ["'s", "bone"]),
        ("1000000 dogs", ["dog", "dog"], ["1000000"]),
        ("two", [], ["two"]),
        ("", [], []),
    ],
)
def test_texts_are_read_as_scenes_show_them(text: str, names: list[str], unread: list[str]) -> None:
    reading = parse_text(text)
    assert (list(reading.names), list(reading.unread)) == (names, unread)
    assert reading.concepts == tuple(concept_index()[name] for name in names)


def test_a_reading_in_words_is_read_again_as_the_same() -> None:
    plurals = {form for name in concept_index() for form in word_forms(name)[1:]}
    for number, concept in enumerate(concepts()):
        for name in map(str.lower, names_of(concept)):
            count = 1 + number % 4
            if count > 1 and plural(name) in plurals and plural(name) in concept_index():
                continue  # two `houses` are two of the emoji house
            reading = parse_text(with_article(name) if count == 1 else f"{in_words(count)} {plural(name)}")
            assert reading.concepts == (number,) * count and not reading.unread, name
            assert parse_text(reading.phrase) == reading, reading.phrase


@pytest.mark.parametrize(
    ("name", "several"),
    [("cat", "cats"), ("fox", "foxes"), ("ox", "oxen"), ("mouse", "mice"), ("wolf", "wolves"), ("maple leaf", "maple leaves"),
     ("kitchen knife", "kitchen knives"), ("snowman", "snowmen"), ("giraffe", "giraffes"), ("strawberry", "strawberries"),
     ("monkey", "monkeys"), ("bus", "buses"), ("grapes", "grapes"), ("lunchbox", "lunchboxes"), ("torch", "torches")],
)  # fmt: skip
def test_plurals(name: str, several: str) -> None:
    assert plural(name) == several and several in (name, *word_forms(name))


def test_copies_give_way_where_there_is_no_room() -> None:
    reading = parse_text("three dogs, two cats and a key")
    assert reading.limited_to(4).names == ("dog", "dog", "cat", "key") and reading.limited_to(3).names == ("dog", "cat", "key")
    assert reading.limited_to(6) == reading and reading.limited_to(2).names == ("dog", "cat", "key"), "no kind is left out"
    assert reading.phrase == "three dogs, two cats and a key"
