"""Templates that put texts into sentences.

A template is a sentence with `{}` for the text, or the name of a set: `imagenet` stands for the 80 templates of CLIP's zero-shot
evaluation, `emoji` for those of the embedded models, which put an article before names, and `none` for the bare text.
"""

from collections.abc import Sequence

from cliptools.embedded_models import EMBEDDED
from cliptools.emoji.words import ZERO_SHOT_TEMPLATES, with_article
from cliptools.errors import TextError, UsageError
from cliptools.library_patches import imagenet_lists
from cliptools.models.load import LoadedModel, RecordedModel
from cliptools.text import BARE, EMOJI, IMAGENET, TEMPLATE_SETS

SLOT = "{}"


def check_template_options(templates: Sequence[str]) -> None:
    """Check that templates are the name of one set, or sentences with a place for the text.

    Raises:
        UsageError: a name is combined with other templates.
        TextError: a sentence has no `{}`.
    """
    if set_name := next((template for template in templates if template in TEMPLATE_SETS), None):
        if len(templates) > 1:
            raise UsageError(f"--template {set_name}: is a set of templates; leave out the other --template")
        return
    check_templates(templates)


def check_templates(templates: Sequence[str]) -> None:
    """Check that every template has a place for the text.

    Raises:
        TextError: a template has none.
    """
    for template in templates:
        if SLOT not in template:
            names = ", ".join(TEMPLATE_SETS)
            raise TextError(f"template {template!r}: expected {SLOT} where the text goes, as in 'a photo of {SLOT}', or {names}")


def class_templates(model: str, templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates for names of classes and concepts: the requested ones, else CLIP's 80, as in the papers.

    The default of the embedded models is their own set.
    """
    return tuple(templates) or ((EMOJI,) if model in EMBEDDED else (IMAGENET,))


def text_sentences(texts: Sequence[str], templates: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the texts to put into templates, and the templates; no templates for bare texts."""
    if tuple(templates) == (EMOJI,):
        return [with_article(text) for text in texts], ZERO_SHOT_TEMPLATES
    if tuple(templates) == (IMAGENET,):
        return list(texts), imagenet_templates()
    return list(texts), () if tuple(templates) == (BARE,) else tuple(templates)


def concept_sentences(
    model: LoadedModel | RecordedModel, concepts: Sequence[str], templates: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the texts of classes or concepts and their templates; see `text_sentences` and `class_templates`."""
    return text_sentences(concepts, class_templates(model.name, templates))


def imagenet_templates() -> tuple[str, ...]:
    """Return CLIP's 80 templates, with `{}` for the class."""
    return tuple(template(SLOT) for template in imagenet_lists().OPENAI_IMAGENET_TEMPLATES)


def templates_name(model: str, templates: Sequence[str]) -> str | list[str]:
    """Return the name or the sentences by which records refer to the templates of classes and concepts."""
    return recorded_templates(class_templates(model, templates))


def recorded_templates(templates: Sequence[str]) -> str | list[str]:
    """Return templates as records and headers store them: the name of a set, else sentences; empty for the bare text."""
    if tuple(templates) in ((IMAGENET,), (EMOJI,)):
        return templates[0]
    return [] if tuple(templates) == (BARE,) else list(templates)


def template_options(recorded: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates that a record or header stores, in the form of --template."""
    return (recorded,) if isinstance(recorded, str) else tuple(recorded)
