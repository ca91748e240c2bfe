"""Margins and the judge compared with their explicit definitions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from cliptools.analysis.zero_shot import among_closest, class_difference, margin


@given(st.integers(0, 2**31))
def test_margin_is_a_difference_of_cosines(seed: int) -> None:
    torch.manual_seed(seed)
    images, predict, depict = torch.randn(5, 7).double(), torch.randn(7).double(), torch.randn(7).double()
    found = margin(images, class_difference(predict, depict))
    for image, value in zip(images, found, strict=True):
        cosines = [torch.cosine_similarity(image, text, dim=0) for text in (predict, depict)]
        assert abs(float(value) - float(cosines[0] - cosines[1])) < 1e-9
        assert (value > 0) == (cosines[0] > cosines[1])


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_the_judge_sees_the_closest_classes(seed: int, k: int) -> None:
    torch.manual_seed(seed)
    images, names = torch.randn(6, 5).double(), torch.randn(9, 5).double()
    classes = [[0, 1], [2], [3, 4, 5], [6], [7, 8]]
    of_class = torch.tensor([[name in members for name in range(9)] for members in classes])
    found = among_closest(images, names, of_class, k)
    for image, seen in zip(images, found, strict=True):
        best = [max(float(torch.cosine_similarity(image, names[n], dim=0)) for n in members) for members in classes]
        closest = sorted(range(5), key=lambda c: -best[c])[:k]
        assert {c for c in range(5) if seen[c]} == set(closest)
