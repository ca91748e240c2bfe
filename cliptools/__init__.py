"""Descriptions of single neurons of CLIP in words: the library under the clip-* commands.

The names in `__all__` are the Python front: the work of the commands as functions, their results and errors. They are imported
when they are first used, because torch takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cliptools.errors import CliptoolsError, ImageError, ModelError, StreamError, TextError, UsageError
    from cliptools.front.ablate import ablate
    from cliptools.front.bundles import UnitBundle, read
    from cliptools.front.concepts import concepts
    from cliptools.front.decompose import decompose
    from cliptools.front.edit import edit
    from cliptools.front.edited import Edited
    from cliptools.front.effects import effects
    from cliptools.front.explain import explain
    from cliptools.front.explained import Explanation, Explanations
    from cliptools.front.judge import judge
    from cliptools.front.judge_records import Judged
    from cliptools.front.mismatch import mismatch
    from cliptools.front.segment import segment
    from cliptools.front.segmented import HeatMaps, LabelMap
    from cliptools.front.segments import Segments
    from cliptools.front.spurious import spurious
    from cliptools.front.tables import Records
    from cliptools.front.top import top
    from cliptools.models.load import LoadedModel, load_model

__version__ = "0.1.0"
__all__ = [
    "CliptoolsError",
    "Edited",
    "Explanation",
    "Explanations",
    "HeatMaps",
    "ImageError",
    "Judged",
    "LabelMap",
    "LoadedModel",
    "ModelError",
    "Records",
    "Segments",
    "StreamError",
    "TextError",
    "UnitBundle",
    "UsageError",
    "ablate",
    "concepts",
    "decompose",
    "edit",
    "effects",
    "explain",
    "judge",
    "load_model",
    "mismatch",
    "read",
    "segment",
    "spurious",
    "top",
]
HOME = {
    "CliptoolsError": "errors",
    "Edited": "front.edited",
    "Explanation": "front.explained",
    "Explanations": "front.explained",
    "HeatMaps": "front.segmented",
    "ImageError": "errors",
    "Judged": "front.judge_records",
    "LabelMap": "front.segmented",
    "LoadedModel": "models.load",
    "ModelError": "errors",
    "Records": "front.tables",
    "Segments": "front.segments",
    "StreamError": "errors",
    "TextError": "errors",
    "UnitBundle": "front.bundles",
    "UsageError": "errors",
    "ablate": "front.ablate",
    "concepts": "front.concepts",
    "decompose": "front.decompose",
    "edit": "front.edit",
    "effects": "front.effects",
    "explain": "front.explain",
    "judge": "front.judge",
    "load_model": "models.load",
    "mismatch": "front.mismatch",
    "read": "front.bundles",
    "segment": "front.segment",
    "spurious": "front.spurious",
    "top": "front.top",
}
"""The module of each name of the front."""


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'cliptools' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cliptools.{HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
