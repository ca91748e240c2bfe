"""Accuracy with effects changed, by clip-ablate, against the transcription's sums over full effects."""

import numpy as np

from . import study
from .agreement import ablation_of, ablations_agree, quoted
from .reading import Bundle, Held, Pipeline, Within


def strongest_are_clear(expected: study.Results, prefix: str) -> None:
    """The last unit kept is clearly stronger than the first that is not."""
    strength = np.sort(expected[f"{prefix}.top_norm"].mean(1))[::-1]
    count = round(study.KEPT * len(strength))
    assert strength[count - 1] / strength[count] > 1 + 1e-5


def test_second_order(vit_neurons: Bundle, pipeline: Pipeline, within: Within, held: Held) -> None:
    expected = study.results("vit")
    settings = ("--ablate", "all,large,small,none", "--reconstruct", "pc,words", "--components", "1,2", "--m", ",".join(map(str, study.WORDS)))  # fmt: skip  # noqa: E501
    names = {"none", "all", "large", "small", "pc 1", "pc 2", *(f"words {m}" for m in study.WORDS)}
    data = pipeline(f"clip-ablate {quoted(ablation_of('vit', *settings))} < neurons")
    ablations_agree(held, "ablation, second order", data, expected, "ablate", names, 2)
    data = within("ablate", *ablation_of("vit", "--layers", 0, "--layers", 1, "--bundle", "neurons", "-q"))
    ablations_agree(held, "ablation, second order, by layer", data, expected, "ablate", {"none", "all of 0", "all of 1"}, 2)
    strongest_are_clear(expected, "second")
    for more, name in (((), "keep"), (("--reconstruct", "pc"), "keep pc")):
        data = within("ablate", *ablation_of("vit", "--keep", f"{study.KEPT:.0%}", *more, "--bundle", "neurons", "-q"))
        ablations_agree(held, "ablation, second order, 20 % kept", data, expected, "ablate", {"none", name}, 2)


def test_joint(vit_indirect: Bundle, within: Within, held: Held) -> None:
    data = within("ablate", *ablation_of("vit", "--ablate", "joint", "--bundle", "indirect", "-q"))
    ablations_agree(held, "ablation of activations", data, study.results("vit"), "ablate", {"none", "joint"}, 2)


def test_pairs(resnet_pairs: Bundle, within: Within, held: Held) -> None:
    expected = study.results("resnet")
    settings = ablation_of("resnet", "--ablate", "all,large,small", "--reconstruct", "pc", "--bundle", "pairs", "-q")
    ablations_agree(
        held, "ablation, pairs", within("ablate", *settings), expected, "ablate", {"none", "all", "large", "small", "pc 1"}
    )
    strongest_are_clear(expected, "pairs")
    kept = within("ablate", *ablation_of("resnet", "--keep", f"{study.KEPT:.0%}", "--bundle", "pairs", "-q"))
    ablations_agree(held, "ablation, pairs, 20 % kept", kept, expected, "ablate", {"none", "keep"})


def test_neurons(resnet_neurons: Bundle, within: Within, held: Held) -> None:
    expected = study.results("resnet")
    settings = ablation_of(
        "resnet", "--ablate", "all,large,small", "--reconstruct", "pc", "--components", "1,2", "--bundle", "whole", "-q"
    )
    names = {"none", "all", "large", "small", "pc 1", "pc 2"}
    ablations_agree(held, "ablation, neurons of a ResNet", within("ablate", *settings), expected, "ablate_neurons", names)
    strongest_are_clear(expected, "neurons")
    kept = within("ablate", *ablation_of("resnet", "--keep", f"{study.KEPT:.0%}", "--bundle", "whole", "-q"))
    ablations_agree(held, "ablation, neurons of a ResNet, 20 % kept", kept, expected, "ablate_neurons", {"none", "keep"})
