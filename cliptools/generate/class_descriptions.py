"""General characteristics of classes, by a language model that never names the class: a pool of texts (paper 1, section 4)."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cliptools.emoji.captions import with_article
from cliptools.generate.captions import seed_of
from cliptools.generate.llm import quoted
from cliptools.text.classes import ClassName, names_pattern

TEMPERATURE, TOP_P = 0.7, 0.95
LONGEST = 32  # tokens of an answer
WORDS = range(2, 13)  # how many a text may have
ROUNDS = 4  # at most so many questions for each text wanted

INSTRUCTIONS = (
    "You say what is generally true of a thing, in one short sentence of plain words: what it looks like, what parts it has, "
    "where it is, what it does."
)


@dataclass(frozen=True)
class Question:
    """What is asked, and how the answer begins."""

    text: str
    opening: str
    """After the class's name. The rest is what is wanted: a model that has just named the class need not name it again."""
    said: str = ""
    """What of the opening belongs to the text."""


QUESTIONS = (
    Question("What does {} look like?", "has"),
    Question("What parts has {}?", "has"),
    Question("What is {} made of?", "is made of", "made of"),
    Question("Where is {} found?", "is found", "found"),
    Question("What is seen near {}?", "is near", "near"),
    Question("What does {} do?", "can", "can"),
    Question("What is {} used for?", "is used", "used"),
    Question("What colour and shape is {}?", "is"),
)
EXAMPLES = (
    ("owl", QUESTIONS[0], "two large round eyes"),
    ("cake", QUESTIONS[2], "flour, eggs and sugar"),
    ("bus", QUESTIONS[5], "carry many people to work"),
    ("owl", QUESTIONS[3], "in dark forests and old barns"),
)
JOINTS = re.compile(r"an?|and|are|as|at|be|by|for|from|in|is|its?|of|on|or|that|the|their|to|with")
ANOTHER = re.compile(r",? (?:and |but )?it(?:'s)? .*")  # a second statement, which begins anew


@runtime_checkable
class Chat(Protocol):
    """A language model, as ground/language opens it."""

    def forget(self) -> None:
        """Nothing of what was asked before may be felt in what comes."""

    def answer(
        self, messages: list[dict[str, str]], grammar: str, seed: int, *, temperature: float, top_p: float, longest: int
    ) -> str:
        """What it says, held to a grammar."""
        ...


def characteristics(chat: Chat, of: ClassName, taken: set[str], faults: Counter[str], *, count: int, seed: int) -> Iterator[str]:
    """So many characteristics of a class, as they are found; fewer where the model has been asked ROUNDS times for each.

    One question is asked at a time, the kinds in turn, each with a seed of its own: a small model that is asked for a list
    repeats itself.

    Args:
        taken: Texts that are there already, in small letters; those found are added.
        faults: Answers that could not be used, counted by kind.
        seed: Decides the texts, together with the class's name and the texts before.
    """
    chat.forget()
    named, found = names_pattern(of.names), 0
    copied = {f"{question.said} {answer}".strip() for _, question, answer in EXAMPLES}
    for number in range(count * ROUNDS):
        if found == count:
            return
        question = QUESTIONS[number % len(QUESTIONS)]
        answer = chat.answer(
            asked(of.name, question),
            grammar_of(of.name, question),
            seed_of(of.name, seed, number),
            temperature=TEMPERATURE,
            top_p=TOP_P,
            longest=LONGEST,
        )
        text = cleaned(answer, of.name, question)
        fault = "unfinished" if not answer.endswith(".") else fault_of(text, named)
        fault = fault or ("copied from the question" if text in copied else "there already" if text.lower() in taken else None)
        if fault:
            faults[fault] += 1
            continue
        taken.add(text.lower())
        found += 1
        yield text


def fault_of(text: str, named: re.Pattern[str]) -> str | None:
    """Why a text cannot stay, or None.

    Args:
        named: Where it names the class.
    """
    words = re.findall(r"[^\W\d_][\w'-]*", text.lower())
    if named.search(text):
        return "naming the class"
    if len(words) not in WORDS:
        return "too short or too long"
    repeated = [word for word, count in Counter(words).items() if count > 1 and not JOINTS.fullmatch(word)]
    return "repeating a word" if repeated else None


def cleaned(answer: str, name: str, question: Question) -> str:
    """What the first statement of an answer says of the class, without its opening, in single spaces."""
    rest = ANOTHER.sub("", answer.removeprefix(_opening(name, question)).rstrip(". "))
    return " ".join(f"{question.said} {rest}".split()).strip(" ,-'")


def asked(name: str, question: Question) -> list[dict[str, str]]:
    """The question, after some that are answered; these come first and stay the same, so that they are read once."""
    messages = [{"role": "system", "content": INSTRUCTIONS}]
    for thing, other, answer in EXAMPLES:
        messages += [{"role": "user", "content": other.text.format(with_article(thing))}]
        messages += [{"role": "assistant", "content": f"{_opening(thing, other)}{answer}."}]
    return [*messages, {"role": "user", "content": question.text.format(with_article(name))}]


def grammar_of(name: str, question: Question) -> str:
    """GBNF of a sentence that begins as the question has it."""
    return f'root ::= {quoted(_opening(name, question))} [a-z] [a-zA-Z ,\'-]+ "."\n'


def _opening(name: str, question: Question) -> str:
    thing = with_article(name)
    return f"{thing[0].upper()}{thing[1:]} {question.opening} "
