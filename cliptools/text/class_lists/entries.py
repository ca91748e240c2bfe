"""Entries of a class list (name, id, number), and the parsing of JSON, Python literals and YAML into one kind of tree.

Objects of the tree keep duplicate keys, so that a message can name them.
"""

import ast
import io
import itertools
import json
import re
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml  # type: ignore[import-untyped]

from cliptools.console import count_of, verb_form
from cliptools.errors import TextError
from cliptools.io.jsonl import TOO_DEEP
from cliptools.text.vocabularies import name_of_id

ID = r"n\d{8}|/[mgt]/\w+|\d{8}-n"
"""Ids of WordNet, in two spellings, and of Open Images."""
WHOLE_ID = re.compile(ID, re.ASCII)
NUMBER = re.compile(r"\d{1,9}", re.ASCII)
STRAY = re.compile(
    r"[\[\]{}<>|\t]|^['\"`“„«]|\.[nvars]\.\d\d\b|^\.{1,2}(?:/|$)|(?<![0-9A-Za-z])n\d{8}(?![0-9A-Za-z])|[\x00-\x1f\x7f]"
)
"""Characters that no name contains: left over from an unknown form."""
INSIDE = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?![0-9A-Za-z])|[\x00-\x1f\x7f]")
"""The same for names in quotes."""


@dataclass(frozen=True)
class Entry:
    """A class of a list."""

    name: str
    """The name, followed by synonyms after commas."""
    place: str
    """Place in the file for messages: `line 3`."""
    id: str | None = None
    number: int | None = None
    folders: tuple[str, ...] = ()
    """Texts with an id or a number before the name, which may be names of folders."""


@dataclass(frozen=True)
class ParsedList:
    """The classes of a list in order, and the form of the list in a few words."""

    entries: tuple[Entry, ...]
    form: str


def spelled_id(text: str) -> str:
    """Return an id as folders and files write it: `n01440764` for `01440764-n`."""
    return f"n{text[:8]}" if text.endswith("-n") else text


def row_class(atoms: Sequence[str], place: str, source: str) -> Entry:
    """Return the class of a row of texts: an id, a number, and names.

    Raises:
        TextError: the row has several ids or numbers, or neither a name nor an id.
    """
    ids = [spelled_id(text) for text in atoms if WHOLE_ID.fullmatch(text)]
    numbers = [text for text in atoms if NUMBER.fullmatch(text)]
    names = [text for text in atoms if not WHOLE_ID.fullmatch(text) and not NUMBER.fullmatch(text)]
    if not names and len(numbers) == 2 and not ids:  # digits may be names: {0: "zero"} and {0: "0"}
        names = [numbers.pop()]
    if len(ids) > 1 or len(numbers) > 1 or not (names or ids):
        raise TextError(f"{source}: {place} is {', '.join(atoms)[:60]!r}; expected a name, and at most one id and one number")
    return Entry(", ".join(names), place, ids[0] if ids else None, int(numbers[0]) if numbers else None)


def atom_text(value: Any, place: str, source: str) -> str:
    """Return a name, an id or a whole number as text.

    Raises:
        TextError: the value is of another kind.
    """
    if isinstance(value, float) and value.is_integer():  # as pandas writes numbers of a column with gaps
        value = int(value)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value).strip()
    raise TextError(f"{source}: {place} holds {str(value)[:40]!r}; expected a name, a number or an id")


def ordered_list(entries: Iterable[Entry], form: str, source: str) -> ParsedList:
    """Return the classes sorted by their numbers, if they have some, with names as prompts use them.

    Raises:
        TextError: two classes share a number or an id, only some have one, or a class has no name.
    """
    entries = list(entries)
    parts = [form]
    for kind in ("id", "number"):
        values = [getattr(entry, kind) for entry in entries]
        with_value = [entry for entry, value in zip(entries, values, strict=True) if value is not None]
        if with_value and len(with_value) < len(entries):
            lacking = next(entry for entry, value in zip(entries, values, strict=True) if value is None)
            raise TextError(
                f"{source}: {len(with_value)} of {len(entries)} classes "
                f"{verb_form(len(with_value), 'has', 'have')} a{'n id' if kind == 'id' else ' number'}, "
                f"{lacking.place} {lacking.name[:40]!r} has none; expected one for every class, or for none"
            )
        by_value: dict[Any, Entry] = {}
        for entry, value in zip(entries, values, strict=True):
            if value is not None and by_value.setdefault(value, entry) is not entry:
                pair = f"{by_value[value].name[:40]!r} ({by_value[value].place}) and {entry.name[:40]!r} ({entry.place})"
                raise TextError(f"{source}: {kind} {value} stands for both {pair}; expected one class")
    if entries and entries[0].id is not None:
        parts.append("with ids")
    if entries and entries[0].number is not None:
        entries.sort(key=lambda entry: entry.number or 0)
        numbers = [entry.number or 0 for entry in entries]
        gaps = "" if numbers[-1] - numbers[0] + 1 == len(numbers) else ", with gaps"
        parts.append(f"by their numbers from {numbers[0]} to {numbers[-1]}{gaps}")
    if any("_" in entry.name for entry in entries):
        parts.append("underscores read as spaces")
    return ParsedList(tuple(_with_prompt_name(entry, source) for entry in entries), ", ".join(parts))


def _with_prompt_name(entry: Entry, source: str) -> Entry:
    """Return the entry with spaces for underscores, and with WordNet's name if it has only an id."""
    name = re.sub(r"\s*;\s*", ", ", entry.name)
    name = re.sub(r"[ _]*_[ _]*", " ", name).strip() or name
    if not name and entry.id is not None:
        if (wordnet_name := name_of_id(entry.id)) is None:
            raise TextError(
                f"{source}: {entry.place} is the id {entry.id} alone, which is not one of ImageNet's; expected a name after it"
            )
        name = wordnet_name
    return replace(entry, name=name)


def refuse_strays(entries: Iterable[Entry], source: str, delimited: bool) -> None:
    """Refuse names with characters that show an unknown form of the list.

    Args:
        delimited: The names were in quotes and may contain more characters.

    Raises:
        TextError: a name contains such characters.
    """
    for entry in entries:
        if (stray := (INSIDE if delimited else STRAY).search(entry.name)) is not None:
            raise TextError(
                f"{source}: {entry.place} is {entry.name[:60]!r}, with {stray[0]!r}; expected a class a line, `number: name`, "
                "`id name`, a table with a header, or JSON (in whose quotes a name may hold anything)"
            )


DEEPEST = 12  # levels of YAML
LONGEST_LITERAL = 1 << 23  # characters that are read as a program's text
CALLS = frozenset({"OrderedDict", "dict", "list", "tuple", "array", "Index", "dict_keys", "dict_values"})
"""Types and functions whose printed form has a list or a dictionary in parentheses."""
ASSIGNED = re.compile(r"^\s*\w+\s*(?::[^=\n]+)?=\s*(?:\w+\()?[\[{(]", re.MULTILINE)
PRINTED = re.compile(r"\s*(?:\w+\(\s*[\[{(]|\(\s*[\[{('\"])")
MEANT = re.compile("class|name|label|categor", re.IGNORECASE)
"""Name of the right list among several in a program."""
YAML_KEY = re.compile(r"^(?:names|classes|class_names|classnames|categories|labels|id2label)\s*:\s*(?:[\[{#].*)?$", re.MULTILINE)


class Pairs(list[tuple[Any, Any]]):
    """Keys and values of an object, in order, duplicates included."""


def parse_tree(text: str, suffix: str, source: str) -> tuple[Any, str] | None:
    """Parse a text and return its tree and form; None for a text of another form.

    Args:
        suffix: Ending of the file in lower case.

    Raises:
        TextError: the text starts like one of the forms but is invalid.
    """
    start = text.lstrip()[:1]
    if start in tuple("{["):
        return _parse_json(text) or _parse_json_lines(text) or _parse_literal(text, source)
    if suffix == ".json":
        raise TextError(f"{source}: neither an array nor an object, expected JSON by its ending")
    if (PRINTED.match(text) and text.rstrip().endswith((")", "),"))) or ASSIGNED.search(text):
        return _parse_literal(text, source)
    return _parse_yaml(text, source) if suffix in (".yaml", ".yml") or YAML_KEY.search(text) else None


def _parse_json(text: str) -> tuple[Any, str] | None:
    try:
        tree = json.loads(text, object_pairs_hook=Pairs)
    except RecursionError:
        return None
    except ValueError:
        return None
    return tree, "JSON object" if isinstance(tree, Pairs) else "JSON array"


def _parse_json_lines(text: str) -> tuple[Any, str] | None:
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        return [json.loads(line, object_pairs_hook=Pairs) for line in lines], "JSON lines"
    except (ValueError, RecursionError):
        return None


def _parse_literal(text: str, source: str) -> tuple[Any, str]:
    """Parse a literal of Python.

    Raises:
        TextError: the text is neither JSON nor a literal, or an ambiguous one.
    """
    if len(text) > LONGEST_LITERAL:
        raise TextError(f"{source}: {count_of(len(text), 'character')} that are not JSON; expected a list of classes")
    try:
        strings = [token.type for token in tokenize.generate_tokens(io.StringIO(text.strip() + "\n").readline)]
        body = ast.parse(text.strip(), mode="exec").body
    except (SyntaxError, ValueError, MemoryError, RecursionError, tokenize.TokenError) as error:
        line = getattr(error, "lineno", None)
        position = f" (line {line})" if line else ""
        raise TextError(
            f"{source}: begins like JSON or a literal of Python and is neither{position}: {_json_fault(text)}"
        ) from None
    tokens = [kind for kind in strings if kind not in (tokenize.NL, tokenize.COMMENT)]
    if any(pair == (tokenize.STRING, tokenize.STRING) for pair in itertools.pairwise(tokens)):
        raise TextError(f"{source}: two names without a comma between them, expected 'cat', 'dog' (was it printed by numpy?)")
    values = {}
    for statement in body:
        if isinstance(statement, ast.Expr):
            values[f"in line {statement.lineno}"] = statement.value
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            values[ast.unparse(target)] = statement.value
    kinds = ast.List | ast.Tuple | ast.Dict | ast.Set | ast.Call
    lists = {name: value for name, value in values.items() if isinstance(value, kinds)}
    if len(lists) > 1:
        lists = {name: value for name, value in lists.items() if MEANT.search(name)} or lists
    if len(lists) != 1:
        raise TextError(f"{source}: {len(lists)} lists ({', '.join(lists)[:60]}), expected one")
    return _convert(next(iter(lists.values())), source), "literal of Python"


def _json_fault(text: str) -> str:
    try:
        json.loads(text)
    except RecursionError:
        return TOO_DEEP
    except ValueError as error:
        return str(error)
    return "no list"


def _convert(node: ast.AST, source: str) -> Any:
    """Return the tree of a literal.

    Raises:
        TextError: the expression is not a literal.
    """
    if isinstance(node, ast.Dict):
        return Pairs(
            (_convert(key, source) if key is not None else None, _convert(value, source))
            for key, value in zip(node.keys, node.values, strict=True)
        )
    if isinstance(node, ast.List | ast.Tuple):
        return [_convert(item, source) for item in node.elts]
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).rpartition(".")[2] in CALLS:
        tree = _convert(node.args[0], source)
        of_pairs = isinstance(tree, list) and tree and all(isinstance(item, list) and len(item) == 2 for item in tree)
        return Pairs((key, value) for key, value in tree) if of_pairs and "ict" in ast.unparse(node.func) else tree
    if isinstance(node, ast.Set):
        raise TextError(f"{source}: a set, which has no order; expected a list, or numbers with the names")
    raise TextError(f"{source}: line {getattr(node, 'lineno', 1)} holds {ast.unparse(node)[:40]!r}; expected names and numbers")


def _parse_yaml(text: str, source: str) -> tuple[Any, str]:
    """Parse YAML.

    Raises:
        TextError: the text is not YAML.
    """
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)  # all nodes are texts, so that `no` does not become False
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TextError(f"{source}: not YAML ({reason})") from None
    return _convert_yaml(root, yaml), "YAML"


def _convert_yaml(node: Any, yaml: Any, depth: int = 0) -> Any:
    if node is None or depth > DEEPEST:
        return None
    if isinstance(node, yaml.MappingNode):
        return Pairs((_convert_yaml(key, yaml, depth + 1), _convert_yaml(value, yaml, depth + 1)) for key, value in node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_convert_yaml(item, yaml, depth + 1) for item in node.value]
    return node.value
