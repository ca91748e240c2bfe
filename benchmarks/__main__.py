"""List the benchmarks with their purpose and duration: `make bench`."""

import ast
from pathlib import Path


def scripts_with_minutes() -> list[tuple[str, str, float]]:
    """Return command, purpose and minutes of every script that defines MINUTES."""
    scripts = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        minutes = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MINUTES"]
        if minutes:
            purpose = (ast.get_docstring(tree) or "").partition("\n")[0]
            scripts.append((f"benchmarks/{path.name}", purpose, ast.literal_eval(minutes[0])))
    return scripts


def main() -> None:
    print(
        "Each script prints the machine and tables and writes benchmarks/results/NAME.json; see --help; --quick is a small run.\n"
    )
    print("minutes on two idle cores")
    for command, purpose, minutes in scripts_with_minutes():
        print(f"{minutes:7g}  python {command:27} {purpose}")


if __name__ == "__main__":
    main()
