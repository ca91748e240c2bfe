"""Forward hooks that collect what effects need, for one thread and as long as a block lasts."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cliptools.unit_effects.factored import Hooks

__all__ = ["Hooks", "hooked", "keep_output"]


def keep_output(store: dict[int, Tensor], layer: int) -> Callable[..., None]:
    """A hook that keeps a module's output by the number of its layer."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        store[layer] = output

    return hook


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
