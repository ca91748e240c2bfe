"""The sentences in which a model is told of a concept, where no templates are given."""

from collections.abc import Sequence

from cliptools.ground.models import EMBEDDED, LoadedModel
from cliptools.ground.text_tower import SLOT


def concept_sentences(model: LoadedModel, concepts: Sequence[str], templates: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What to put into templates, and the templates: those given, the embedded models' own, or CLIP's 80 of ImageNet."""
    if templates:
        return list(concepts), tuple(templates)
    if model.name in EMBEDDED:
        from cliptools.ground.emoji.captions import ZERO_SHOT_TEMPLATES, with_article

        return [with_article(name) for name in concepts], ZERO_SHOT_TEMPLATES
    from cliptools.ground.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    import open_clip

    return list(concepts), tuple(template(SLOT) for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def templates_name(model: str, templates: Sequence[str]) -> str | list[str]:
    """What records call the templates that `concept_sentences` takes."""
    return list(templates) or ("emoji" if model in EMBEDDED else "imagenet")
