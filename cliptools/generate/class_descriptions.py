"""General characteristics of classes by a language model that never names the class, for a vocabulary (paper 1, section 4)."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cliptools.emoji.words import with_article
from cliptools.generate.captions import seed_of
from cliptools.generate.llm import quoted
from cliptools.text.classes import ClassName, names_pattern

TEMPERATURE, TOP_P = 0.7, 0.95
LONGEST = 32  # most tokens of an answer
WORDS = range(2, 13)  # number of words that a text may have
ROUNDS = 4  # most questions per requested text

INSTRUCTIONS = (
    "You say what is generally true of a thing, in one short sentence of plain words: what it looks like, what parts it has, "
    "where it is, what it does."
)


@dataclass(frozen=True)
class Question:
    """A question about a class, and the opening of the answer."""

    text: str
    opening: str
    """The words after the class's name. A model that has just named the class need not name it again in the rest."""
    prefix: str = ""
    """The part of the opening that belongs to the text."""


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
ANOTHER = re.compile(r",? (?:and |but )?it(?:'s)? .*")  # a second statement in the same sentence


@runtime_checkable
class Chat(Protocol):
    """A language model, as llm.py opens it."""

    def forget(self) -> None:
        """Make the next answers independent of all earlier questions."""

    def answer(
        self, messages: list[dict[str, str]], grammar: str, seed: int, *, temperature: float, top_p: float, longest: int
    ) -> str:
        """Return the model's answer, constrained by a grammar."""
        ...


def characteristics(
    chat: Chat, class_name: ClassName, existing: set[str], faults: Counter[str], *, count: int, seed: int
) -> Iterator[str]:
    """Yield up to `count` characteristics of a class; fewer if ROUNDS questions per text do not give enough.

    One question is asked at a time, the kinds in turn, each with its own seed, because a small model repeats itself if it is
    asked for a list.

    Args:
        existing: Texts that exist already, in lower case; new texts are added.
        faults: Counts the rejected answers by reason.
        seed: Random seed, together with the class's name and the number of the question.
    """
    chat.forget()
    class_names, accepted = names_pattern(class_name.names), 0
    copied = {f"{question.prefix} {answer}".strip() for _, question, answer in EXAMPLES}
    for number in range(count * ROUNDS):
        if accepted == count:
            return
        question = QUESTIONS[number % len(QUESTIONS)]
        answer = chat.answer(
            question_messages(class_name.name, question),
            grammar_of(class_name.name, question),
            seed_of(class_name.name, seed, number),
            temperature=TEMPERATURE,
            top_p=TOP_P,
            longest=LONGEST,
        )
        text = clean_answer(answer, class_name.name, question)
        fault = "unfinished" if not answer.endswith(".") else fault_of(text, class_names)
        fault = fault or ("copied from the question" if text in copied else "there already" if text.lower() in existing else None)
        if fault:
            faults[fault] += 1
            continue
        existing.add(text.lower())
        accepted += 1
        yield text


def fault_of(text: str, class_names: re.Pattern[str]) -> str | None:
    """Return the reason for rejecting a text, or None.

    Args:
        class_names: Matches the names of the class.
    """
    words = re.findall(r"[^\W\d_][\w'-]*", text.lower())
    if class_names.search(text):
        return "naming the class"
    if len(words) not in WORDS:
        return "too short or too long"
    repeated = [word for word, count in Counter(words).items() if count > 1 and not JOINTS.fullmatch(word)]
    return "repeating a word" if repeated else None


def clean_answer(answer: str, name: str, question: Question) -> str:
    """Return the first statement of an answer without its opening, with single spaces."""
    statement = ANOTHER.sub("", answer.removeprefix(_opening(name, question)).rstrip(". "))
    return " ".join(f"{question.prefix} {statement}".split()).strip(" ,-'")


def question_messages(name: str, question: Question) -> list[dict[str, str]]:
    """Return the messages of a question, after fixed examples with answers, which the model then needs to read only once."""
    messages = [{"role": "system", "content": INSTRUCTIONS}]
    for thing, example, answer in EXAMPLES:
        messages += [{"role": "user", "content": example.text.format(with_article(thing))}]
        messages += [{"role": "assistant", "content": f"{_opening(thing, example)}{answer}."}]
    return [*messages, {"role": "user", "content": question.text.format(with_article(name))}]


def grammar_of(name: str, question: Question) -> str:
    """Return the GBNF grammar of a sentence that begins with the question's opening."""
    return f'root ::= {quoted(_opening(name, question))} [a-z] [a-zA-Z ,\'-]+ "."\n'


def _opening(name: str, question: Question) -> str:
    thing = with_article(name)
    return f"{thing[0].upper()}{thing[1:]} {question.opening} "
