"""Painter by pipelines of diffusers: Stable Diffusion, SDXL, FLUX, and DeepFloyd IF in two stages.

`DiffusionPainter` loads and runs a pipeline. `loading_options` chooses the weights in a pipeline's folder, which may lack
optional parts. `quiet_libraries` silences diffusers and transformers while a pipeline is loaded or paints.
"""

import importlib.util
import inspect
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import utils as hub_utils
from PIL import Image

from cliptools.devices import Limit, in_halves, release_cached_memory
from cliptools.errors import CliptoolsError, UsageError, first_line, out_of_memory
from cliptools.generate.painters import Painting
from cliptools.library_patches import SharedChange
from cliptools.models.hub import no_foreign_code, quiet_hub, reason
from cliptools.models.load import DTYPE, pick_device

Offload = Literal["none", "model", "sequential"]
SPARING = "lower --size, or try --dtype fp16 or --offload model"
NEEDED = ("diffusers", "transformers", "accelerate")


class DiffusionPainter:
    """A Painter by a text-to-image pipeline, optionally followed by an upscaler.

    Weights are read only from safetensors files, so that no pickle runs. Every picture has its own generator on the CPU, so that
    a seed means the same on every device.

    Args:
        name: A hub's id, or a folder in the form of save_pretrained.
        upscaler: The second stage, likewise; DeepFloyd's uses the first stage's text embeddings.
        dtype: fp32, bf16 or fp16; None for fp32 on a CPU and bf16 elsewhere.
        offload: Keep parts of the pipeline in the CPU's memory until they are needed.
        steps, guidance, size: None for the pipeline's defaults.

    Raises:
        CliptoolsError: a package is missing, or a pipeline cannot be loaded.
        UsageError: the pipeline or the device does not support an option.
    """

    def __init__(
        self,
        name: str,
        *,
        upscaler: str | None = None,
        device: str = "auto",
        dtype: str | None = None,
        offload: Offload = "none",
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
    ) -> None:
        check_painter(name, upscaler)
        self.device = pick_device(device)
        if offload != "none" and self.device.type == "cpu":
            raise UsageError(f"--offload {offload}: the painter is on the CPU already; leave it out")
        self.dtype = dtype or ("fp32" if self.device.type == "cpu" else "bf16")
        self.name, self.upscaler_name, self.limit = name, upscaler, Limit()
        self.pipeline = self._place(_load(name, "--painter", self.dtype, text_to_image=True), offload)
        self.upscaler = self._place(_load(upscaler, "--upscaler", self.dtype), offload) if upscaler else None
        self.arguments = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
        self.arguments = {key: value for key, value in self.arguments.items() if value is not None}
        parameters = inspect.signature(self.pipeline.__call__).parameters
        for key in self.arguments:
            if key not in parameters:
                raise UsageError(f"--painter {name}: {type(self.pipeline).__name__} takes no {key}; leave its option out")

    @property
    def settings(self) -> dict[str, Any]:
        """Implements Painter.settings."""
        fields = {
            "painter": self.name,
            "pipeline": type(self.pipeline).__name__,
            "upscaler": self.upscaler_name,
            "dtype": self.dtype,
        }
        arguments = {"steps": "num_inference_steps", "guidance": "guidance_scale", "size": "height"}
        return fields | {name: self.arguments.get(argument) for name, argument in arguments.items()}

    def depiction(self, text: str, words: Sequence[str]) -> None:
        """Implements Painter.depiction: returns None, since a diffusion model cannot tell."""

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Painting]:
        """Implements Painter.paint."""
        orders = list(zip(texts, seeds, strict=True))
        batches = in_halves([(orders, None)], self._paint_batch, "pictures", self.limit)
        reason = "the pipeline's safety checker withholds the picture"
        return [
            Painting(None, refusal=reason) if withheld else Painting(image)
            for _, (images, flagged) in batches
            for image, withheld in zip(images, flagged, strict=True)
        ]

    def _paint_batch(self, orders: Sequence[tuple[str, int]], _: torch.Tensor | None) -> tuple[list[Image.Image], list[bool]]:
        try:
            with torch.inference_mode(), quiet_libraries():
                return self._run_stages([text for text, _ in orders], [seed for _, seed in orders])
        except (RuntimeError, ValueError, MemoryError) as error:
            if not out_of_memory(error):
                raise CliptoolsError(f"--painter {self.name}: {first_line(error)}") from None
            if len(orders) > 1:
                raise
            release_cached_memory()
            raise CliptoolsError(f"--painter {self.name}: out of memory painting 1 at a time; {SPARING}") from None

    def _run_stages(self, texts: list[str], seeds: Sequence[int]) -> tuple[list[Image.Image], list[bool]]:
        options = self.arguments | {"generator": _generators(seeds)}
        if self.upscaler is None:
            return _pictures(self.pipeline(prompt=texts, **options))
        if not type(self.pipeline).__name__.startswith("IF"):
            first_stage = self.pipeline(prompt=texts, **options)
            return _pictures(self.upscaler(prompt=texts, image=first_stage.images, generator=_generators(seeds)))
        positive, negative = self.pipeline.encode_prompt(texts)  # both (text, token, width); T5 runs once for both stages
        embedded = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        first_stage = self.pipeline(**embedded, **options, output_type="pt")
        return _pictures(self.upscaler(image=first_stage.images, **embedded, generator=_generators(seeds)))

    def _place(self, pipeline: Any, offload: Offload) -> Any:
        pipeline.set_progress_bar_config(disable=True)
        try:
            if offload == "none":
                return pipeline.to(self.device)
            (pipeline.enable_model_cpu_offload if offload == "model" else pipeline.enable_sequential_cpu_offload)(
                device=self.device
            )
        except torch.OutOfMemoryError:
            raise CliptoolsError(f"--painter {self.name}: out of memory loading it; {SPARING}") from None
        return pipeline


def check_painter(name: str, upscaler: str | None = None) -> None:
    """Check the names of painter and upscaler before anything is loaded.

    Raises:
        CliptoolsError: a package is missing; the message says what to install.
        UsageError: a name is neither a folder with a pipeline nor a valid hub id.
    """
    if missing := [package for package in NEEDED if importlib.util.find_spec(package) is None]:
        raise CliptoolsError(
            f"--painter {name}: {', '.join(missing)} missing; pip install 'cliptools[paint]', or --painter emoji"
        )
    for option, value in (("--painter", name), ("--upscaler", upscaler)):
        if value is None:
            continue
        if Path(value).is_dir():
            if not (Path(value) / "model_index.json").is_file():
                raise UsageError(f"{option} {value}: a folder without model_index.json, so it is not a pipeline of diffusers")
        elif not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            raise UsageError(f"{option} {value}: no such folder; expected emoji, a pipeline's folder, or a hub's OWNER/NAME")


def _load(name: str, option: str, dtype: str, text_to_image: bool = False) -> Any:
    import diffusers

    kind = diffusers.AutoPipelineForText2Image if text_to_image else diffusers.DiffusionPipeline
    try:
        with no_foreign_code(), quiet_hub(), quiet_libraries():
            options = loading_options(Path(name)) if Path(name).is_dir() else {}
            try:
                return kind.from_pretrained(name, dtype=DTYPE[dtype], use_safetensors=True, **options)
            except (OSError, ValueError) as error:
                if Path(name).is_dir() or not re.search(r"variant|safetensors|no file named", str(error)):
                    raise
                return kind.from_pretrained(name, dtype=DTYPE[dtype], use_safetensors=True, variant="fp16")
    except Exception as error:
        text = reason(error)
        if "safetensors" in str(error):
            text = f"no safetensors weights there, and others are not read ({text})"
        if not Path(name).is_dir():
            text += "; else name the folder of a pipeline, or emoji"
        raise CliptoolsError(f"{option} {name}: cannot be loaded ({text})") from None


def _pictures(output: Any) -> tuple[list[Image.Image], list[bool]]:
    """Return the pictures, and for each True if a safety checker has blackened it."""
    flagged = getattr(output, "nsfw_content_detected", None) or getattr(output, "nsfw_detected", None)
    return output.images, [bool(flag) for flag in flagged] if flagged else [False] * len(output.images)


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


SPARED = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")
"""Optional parts of a pipeline, which check finished pictures or read input pictures; painting from a text needs neither."""
VARIANT = re.compile(r"\.(\w+?)(?:-\d{5}-of-\d{5})?\.safetensors|-\d{5}-of-\d{5}\.(\w+)\.safetensors")
PREFERRED = ("bf16", "fp16")


def loading_options(folder: Path) -> dict[str, Any]:
    """Return the arguments of from_pretrained for a folder: the variant of its weights, and None for missing optional parts.

    Raises:
        ValueError: a required part is missing, or model_index.json is damaged.
    """
    parts = _parts(folder)
    missing = [name for name in parts if not (folder / name).is_dir()]
    if required := [name for name in missing if name not in SPARED]:
        raise ValueError(f"model_index.json names {', '.join(required)}, which the folder lacks")
    options: dict[str, Any] = dict.fromkeys(missing)
    if "safety_checker" in missing:
        options["requires_safety_checker"] = False
    variants = [names for name in parts if (folder / name).is_dir() and (names := _only_variants(folder / name))]
    if variants:
        shared = set.intersection(*variants)
        if not shared:
            raise ValueError(f"its weights are of different variants ({', '.join(sorted(set.union(*variants)))})")
        options["variant"] = next((name for name in PREFERRED if name in shared), min(shared))
    return options


def _parts(folder: Path) -> list[str]:
    """Return the names of the pipeline's parts from model_index.json."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError("model_index.json holds no JSON object")
    return [name for name, classes in index.items() if isinstance(classes, list) and len(classes) == 2 and classes[1] is not None]


def _only_variants(part: Path) -> set[str]:
    """Return the variants of a part's weights; empty if it has weights without a variant."""
    names = [path.name for path in part.glob("*.safetensors")]
    matches = [VARIANT.search(name) for name in names]
    if not matches or None in matches:
        return set()
    return {match[1] or match[2] for match in matches if match is not None}


LIBRARIES = ("diffusers", "transformers")


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    import diffusers
    import transformers

    hub: Any = hub_utils

    with ExitStack() as stack:
        for name in LIBRARIES:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        stack.callback(
            hub.disable_progress_bars if hub.are_progress_bars_disabled() else hub.enable_progress_bars
        )  # restored last, because transformers' switch also changes the hub's
        for library in (diffusers.utils.logging, transformers.utils.logging):
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
            library.disable_progress_bar()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # diffusers warns about its own calls of the hub's library
        yield


quiet_libraries = SharedChange(_quiet_libraries)
"""Context in which diffusers and transformers log only errors and show no progress bars."""
