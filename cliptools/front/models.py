"""The model that a bundle names, for the functions of the front: loaded when it is needed, or given by the caller."""

from cliptools.errors import ModelError
from cliptools.io.bundle import Bundle
from cliptools.io.header import model_difference
from cliptools.models.load import LoadedModel, Precision, RecordedModel, drop_text_tower, load_recorded_model


def model_of(bundle: Bundle, model: LoadedModel | str | None, device: str) -> LoadedModel | RecordedModel:
    """Return the bundle's model, with weights that are loaded when they are first needed.

    Args:
        model: The loaded model; or the name that the bundle's model must have; or None.
        device: Device to load the model on.

    Raises:
        UsageError: the bundle's model has another name.
        ModelError: the model that is given is not the bundle's.
    """
    if not isinstance(model, LoadedModel):
        return RecordedModel(bundle.header.model, device, name=model)
    check_given(model, bundle)
    return model


def loaded_model_of(bundle: Bundle, model: LoadedModel | None, device: str, precision: Precision | None = None) -> LoadedModel:
    """Return the bundle's model with its weights.

    Raises:
        ModelError: the model that is given is not the bundle's, or the bundle's model cannot be loaded.
    """
    if model is None:
        return load_recorded_model(bundle.header.model, device, precision)
    check_given(model, bundle)
    return model


def image_model_of(bundle: Bundle, model: LoadedModel | None, device: str) -> LoadedModel:
    """Return the bundle's model for work on images alone; a model that is loaded here has no text tower.

    Raises:
        ModelError: the model that is given is not the bundle's, or the bundle's model cannot be loaded.
    """
    loaded = loaded_model_of(bundle, model, device)
    if loaded is not model:
        drop_text_tower(loaded)
    return loaded


def check_given(model: LoadedModel, bundle: Bundle) -> None:
    """Check that a loaded model is the one of the bundle.

    Raises:
        ModelError: it is another one.
    """
    if difference := model_difference(model.identity, bundle.header.model):
        raise ModelError(f"the model that is given, {model.name!r}, is not the bundle's: {difference}")
