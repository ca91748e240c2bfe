"""diffusers and transformers without their own words while a pipeline is loaded or paints."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cliptools.ground.shared_change import SharedChange

LIBRARIES = ("diffusers", "transformers")


@contextmanager
def _quiet() -> Iterator[None]:
    import diffusers
    import transformers
    from huggingface_hub import utils

    hub: Any = utils

    with ExitStack() as stack:
        for name in LIBRARIES:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        stack.callback(
            hub.disable_progress_bars if hub.are_progress_bars_disabled() else hub.enable_progress_bars
        )  # last of all: transformers' switch also turns the hub's
        for library in (diffusers.utils.logging, transformers.utils.logging):
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
            library.disable_progress_bar()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of diffusers about its own calls of the hub's library
        yield


quiet_libraries = SharedChange(_quiet)
"""While this context lasts, both log errors only and show no progress bars."""
