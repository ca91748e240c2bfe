"""Inputs and checks of test_indirect.py that other tests share."""

from collections.abc import Collection

import torch

from cliptools.streaming.vit_indirect import Indirect, draw_sample, token_means


def hooked_output(visual: torch.nn.Module, images: torch.Tensor, layer: int, hook) -> torch.Tensor:
    handle = visual.transformer.resblocks[layer].mlp.gelu.register_forward_hook(hook)
    try:
        return visual(images)
    finally:
        handle.remove()


def indirect_effects(visual: torch.nn.Module, images: torch.Tensor, layer: int, neurons: list[int]) -> torch.Tensor:
    """Return phi [image, neuron, d]: the output minus that of a full pass in which one neuron has its mean at each token."""
    seen = []
    hooked_output(visual, images, layer, lambda _, __, p: seen.append(p.clone()))
    phi = []
    for n in neurons:

        def replaced(_, __, p, n=n):
            p = p.clone()
            p[:, :, n] = seen[0][:, :, n].mean(0)
            return p

        phi.append(visual(images) - hooked_output(visual, images, layer, replaced))
    return torch.stack(phi, 1)


def in_batches(images: torch.Tensor, size: int, only: Collection[int] | None = None) -> list[tuple[list[int], torch.Tensor]]:
    wanted = [i for i in range(len(images)) if only is None or i in only]
    return [(wanted[i : i + size], images[wanted[i : i + size]]) for i in range(0, len(wanted), size)]


def prepared(visual: torch.nn.Module, images: torch.Tensor, layers: list[int], count: int | None) -> Indirect:
    sample = draw_sample(visual, layers, count, seed=3)
    return Indirect(visual, sample, token_means(visual, iter(in_batches(images, 4)), sample, len(images)), len(images))
