"""What a command says when its device has not the memory."""

import click
import pytest
import torch

from cliptools.commands.base import command


def greedy(name: str, *options) -> click.Command:
    def main(**_) -> None:
        """Ask for a petabyte."""
        torch.empty(10**15)

    for option in options:
        main = option(main)
    return command(name)(main)


def test_it_says_what_to_lower(capsys: pytest.CaptureFixture[str]) -> None:
    batches = click.option("--batch-size", default=8, type=int)
    for made, said in ((greedy("clip-x", batches), "out of memory; lower --batch-size"), (greedy("clip-x"), "out of memory")):
        with pytest.raises(SystemExit) as ended:
            made.main([])
        assert ended.value.code == 1 and capsys.readouterr().err == f"clip-x: {said}\n"


def test_other_failures_are_not_hidden() -> None:
    @command("clip-x")
    def main() -> None:
        """Multiply what does not fit."""
        torch.ones(2, 3) @ torch.ones(2, 3)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        main.main([])
