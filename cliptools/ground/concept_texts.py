"""The sentences in which a model is told of a text: templates as --template gives them, or by the name of a set of them.

`imagenet` is CLIP's 80 of its zero-shot evaluation, `emoji` the embedded models' own, in which names have their article, `none`
the bare text. A name stands alone; anything else has `{}` where the text goes.
"""

from collections.abc import Sequence

from torch import Tensor

from cliptools.ground.errors import UsageError
from cliptools.ground.models import EMBEDDED, LoadedModel
from cliptools.ground.provenance import digest
from cliptools.ground.template_names import BARE, EMOJI, IMAGENET, TEMPLATE_SETS
from cliptools.ground.text_tower import SLOT, check_templates, encode_pool
from cliptools.ground.texts import Pool


def check_template_options(given: Sequence[str]) -> None:
    """Templates are one name, or sentences with a place for the text.

    Raises:
        UsageError: a name among others.
        TextError: a sentence without `{}`.
    """
    if named := next((template for template in given if template in TEMPLATE_SETS), None):
        if len(given) > 1:
            raise UsageError(f"--template {named}: stands for templates of its own, leave out the other --template")
        return
    check_templates(given)


def class_templates(model: str, given: Sequence[str]) -> tuple[str, ...]:
    """The templates given, or where there are none those in which the papers name classes and concepts: CLIP's 80.

    For the embedded models their own stand for the 80.
    """
    return tuple(given) or ((EMOJI,) if model in EMBEDDED else (IMAGENET,))


def text_sentences(texts: Sequence[str], given: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What to put into templates, and the templates; none for the bare texts."""
    if tuple(given) == (EMOJI,):
        from cliptools.ground.emoji.captions import ZERO_SHOT_TEMPLATES, with_article

        return [with_article(text) for text in texts], ZERO_SHOT_TEMPLATES
    if tuple(given) == (IMAGENET,):
        return list(texts), imagenet_templates()
    return list(texts), () if tuple(given) == (BARE,) else tuple(given)


def concept_sentences(model: LoadedModel, concepts: Sequence[str], templates: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The same for classes and concepts, which are named in `class_templates`."""
    return text_sentences(concepts, class_templates(model.name, templates))


def encode_named(model: LoadedModel, pool: Pool, given: Sequence[str], *, use_cache: bool = True) -> Tensor:
    """The pool's unit embeddings [text, d] in templates as given, names among them; kept in the user's cache."""
    sentences, templates = text_sentences(pool.texts, given)
    if tuple(sentences) != pool.texts:
        pool = Pool(pool.name, tuple(sentences), digest(*sentences))
    return encode_pool(model, pool, templates, use_cache=use_cache)


def imagenet_templates() -> tuple[str, ...]:
    """CLIP's 80, with `{}` where the class goes."""
    from cliptools.ground.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    import open_clip

    return tuple(template(SLOT) for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def templates_name(model: str, templates: Sequence[str]) -> str | list[str]:
    """What records call the templates of classes and concepts."""
    return recorded(class_templates(model, templates))


def recorded(given: Sequence[str]) -> str | list[str]:
    """What records and headers call templates: the name of a set, else a list of sentences, empty for the bare text."""
    if tuple(given) in ((IMAGENET,), (EMOJI,)):
        return given[0]
    return [] if tuple(given) == (BARE,) else list(given)


def as_given(recorded: str | Sequence[str]) -> tuple[str, ...]:
    """The templates that a record or header names, as --template gives them."""
    return (recorded,) if isinstance(recorded, str) else tuple(recorded)
