"""JSON, literals of Python and YAML as one kind of tree, in which objects keep keys that stand twice."""

import ast
import io
import itertools
import json
import re
import tokenize
from typing import Any

from cliptools.ground.counted import count_of
from cliptools.ground.errors import TextError
from cliptools.ground.strict_json import TOO_DEEP

DEEPEST = 12  # levels of YAML
LONGEST_LITERAL = 1 << 23  # characters that are read as a program's text
CALLS = frozenset({"OrderedDict", "dict", "list", "tuple", "array", "Index", "dict_keys", "dict_values"})
"""Names of what prints a list or a dictionary in parentheses."""
ASSIGNED = re.compile(r"^\s*\w+\s*(?::[^=\n]+)?=\s*(?:\w+\()?[\[{(]", re.MULTILINE)
PRINTED = re.compile(r"\s*(?:\w+\(\s*[\[{(]|\(\s*[\[{('\"])")
MEANT = re.compile("class|name|label|categor", re.IGNORECASE)
"""Of several lists in a program, the name of the one that is meant."""
YAML_KEY = re.compile(r"^(?:names|classes|class_names|classnames|categories|labels|id2label)\s*:\s*(?:[\[{#].*)?$", re.MULTILINE)


class Pairs(list[tuple[Any, Any]]):
    """Keys and values of an object, in order."""


def tree_of(text: str, suffix: str, source: str) -> tuple[Any, str] | None:
    """The tree, and what it was written in; None of text that is none of these.

    Args:
        suffix: The ending of the file, lower case.

    Raises:
        TextError: it begins like one of them and cannot be read.
    """
    start = text.lstrip()[:1]
    if start in tuple("{["):
        return _json(text) or _json_lines(text) or _literal(text, source)
    if suffix == ".json":
        raise TextError(f"{source}: neither an array nor an object, expected JSON by its ending")
    if (PRINTED.match(text) and text.rstrip().endswith((")", "),"))) or ASSIGNED.search(text):
        return _literal(text, source)
    return _yaml(text, source) if suffix in (".yaml", ".yml") or YAML_KEY.search(text) else None


def _json(text: str) -> tuple[Any, str] | None:
    try:
        tree = json.loads(text, object_pairs_hook=Pairs)
    except RecursionError:
        return None
    except ValueError:
        return None
    return tree, "JSON object" if isinstance(tree, Pairs) else "JSON array"


def _json_lines(text: str) -> tuple[Any, str] | None:
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        return [json.loads(line, object_pairs_hook=Pairs) for line in lines], "JSON lines"
    except (ValueError, RecursionError):
        return None


def _literal(text: str, source: str) -> tuple[Any, str]:
    """
    Raises:
        TextError: neither JSON nor a literal, or one that says less than it seems to.
    """
    if len(text) > LONGEST_LITERAL:
        raise TextError(f"{source}: {count_of(len(text), 'character')} that are no JSON; expected a list of classes")
    try:
        strings = [token.type for token in tokenize.generate_tokens(io.StringIO(text.strip() + "\n").readline)]
        body = ast.parse(text.strip(), mode="exec").body
    except (SyntaxError, ValueError, MemoryError, RecursionError, tokenize.TokenError) as error:
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        raise TextError(f"{source}: begins like JSON or a literal of Python and is neither{where}: {_json_fault(text)}") from None
    meant = [kind for kind in strings if kind not in (tokenize.NL, tokenize.COMMENT)]
    if any(pair == (tokenize.STRING, tokenize.STRING) for pair in itertools.pairwise(meant)):
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
    return _converted(next(iter(lists.values())), source), "literal of Python"


def _json_fault(text: str) -> str:
    try:
        json.loads(text)
    except RecursionError:
        return TOO_DEEP
    except ValueError as error:
        return str(error)
    return "no list"


def _converted(node: ast.AST, source: str) -> Any:
    """Raises TextError of what is no literal."""
    if isinstance(node, ast.Dict):
        return Pairs(
            (_converted(key, source) if key is not None else None, _converted(value, source))
            for key, value in zip(node.keys, node.values, strict=True)
        )
    if isinstance(node, ast.List | ast.Tuple):
        return [_converted(item, source) for item in node.elts]
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).rpartition(".")[2] in CALLS:
        tree = _converted(node.args[0], source)
        of_pairs = isinstance(tree, list) and tree and all(isinstance(item, list) and len(item) == 2 for item in tree)
        return Pairs((key, value) for key, value in tree) if of_pairs and "ict" in ast.unparse(node.func) else tree
    if isinstance(node, ast.Set):
        raise TextError(f"{source}: a set, which has no order; expected a list, or numbers with the names")
    raise TextError(f"{source}: line {getattr(node, 'lineno', 1)} holds {ast.unparse(node)[:40]!r}; expected names and numbers")


def _yaml(text: str, source: str) -> tuple[Any, str]:
    """Raises TextError where the file is no YAML."""
    import yaml  # type: ignore[import-untyped]

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)  # nodes: of texts, of which no `no` becomes a truth value
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TextError(f"{source}: no YAML ({reason})") from None
    return _composed(root, yaml), "YAML"


def _composed(node: Any, yaml: Any, depth: int = 0) -> Any:
    if node is None or depth > DEEPEST:
        return None
    if isinstance(node, yaml.MappingNode):
        return Pairs((_composed(key, yaml, depth + 1), _composed(value, yaml, depth + 1)) for key, value in node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_composed(item, yaml, depth + 1) for item in node.value]
    return node.value
