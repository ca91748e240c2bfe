"""Forward hooks that collect what effects need, for one thread and as long as a block lasts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from cliptools.unit_effects.factored import Hooks, wide

__all__ = ["Hooks", "deviation", "divide_by_deviation", "hooked", "keep_output", "of_class_token"]


def keep_output(store: dict[int, Tensor], layer: int) -> Callable[..., None]:
    """A hook that keeps a module's output by the number of its layer."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        store[layer] = output

    return hook


def deviation(x: Float[Tensor, "*b width"], norm: nn.LayerNorm) -> Float[Tensor, "*b"]:
    """A LayerNorm's sigma of each token, epsilon included."""
    return (wide(x).var(-1, unbiased=False) + norm.eps).sqrt()


def divide_by_deviation(store: dict[int, Tensor], layer: int) -> Callable[..., None]:
    """A hook on a LayerNorm that divides what is kept by the class token's deviation."""

    def hook(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        store[layer] = store[layer] / of_class_token(inputs[0], norm)

    return hook


def of_class_token(x: Float[Tensor, "b token width"], norm: nn.LayerNorm) -> Float[Tensor, "b 1 1"]:
    """A LayerNorm's sigma of the class token."""
    return deviation(x[:, 0], norm)[:, None, None]


@contextmanager
def hooked(hooks: Hooks) -> Iterator[None]:
    """Register the hooks until the block ends; they run only in this thread, though others may use the same modules."""
    handles = [module.register_forward_hook(_in_this_thread(hook)) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, without effect in calls from other threads."""
    thread = threading.get_ident()

    def guarded(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == thread else None

    return guarded
