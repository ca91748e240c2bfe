"""Bundles as the Python front returns them: read, checked, saved, and shown as records, tables or data frames."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cliptools.arguments import checked
from cliptools.errors import CliptoolsError, StreamError
from cliptools.front.tables import data_frame, rendered
from cliptools.front.unit_records import unit_records, units_table
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.io.files import whole_file
from cliptools.io.header import Header

TABLE_ROWS = 20


class UnitBundle(Bundle):
    """A bundle with methods to save and to show it."""

    def save(self, path: str | Path) -> None:
        """Write the bundle as a safetensors file, which appears whole or not at all.

        Raises:
            CliptoolsError: the file cannot be written, or a tensor holds NaN or infinity.
        """
        with whole_file(Path(path)) as stream:
            stream.write(self.to_bytes())

    def records(self) -> list[dict[str, Any]]:
        """Return a record for each unit: its words, shares, threshold and top images."""
        return list(unit_records(self))

    def table(self, rows: int = TABLE_ROWS) -> str:
        """Return a table, as text.

        Args:
            rows: Number of units, the first ones; 20 if it is not given.
        """
        return rendered(units_table(self, rows), terminal=False).decode("utf-8").rstrip("\n")

    def to_frame(self) -> Any:
        """Return a pandas.DataFrame with a row for each unit.

        Raises:
            CliptoolsError: pandas is not installed.
        """
        return data_frame(unit_records(self))


def unit_bundle(bundle: Bundle) -> UnitBundle:
    """Return a bundle with the methods of UnitBundle and the same tensors."""
    return UnitBundle(bundle.header, bundle.tensors, bundle.derived)


@checked
def read(path: str | Path) -> UnitBundle:
    """Read a bundle and check that it is complete and consistent.

    Args:
        path: A file that `save` or a command has written.

    Raises:
        CliptoolsError: the file cannot be opened.
        StreamError: it is damaged, or not a bundle.
    """
    try:
        with Path(path).open("rb") as stream:
            return unit_bundle(read_bundle(stream, str(path)))
    except OSError as error:
        raise CliptoolsError(f"{path}: {error.strerror}") from None


def with_step(bundle: UnitBundle, earlier: Header | None, command: str, arguments: Mapping[str, Any]) -> UnitBundle:
    """Return a new bundle whose history ends with this step, after the history of the bundle that it was made from.

    Args:
        earlier: Header of that bundle; None for a bundle made from images.
        arguments: Arguments that change the result.
    """
    history = [] if earlier is None else earlier.history
    return replace(bundle, header=replace(bundle.header, history=history).after(command, dict(arguments)))


def require_neurons(bundle: Bundle, *required: str, name: str = "the bundle", device: str = "auto") -> Bundle:
    """Return the bundle, with the directions that its model's weights give if its units are pairs.

    Args:
        required: Tensors that it must hold in addition to `direction`, such as `word`, which clip-decompose adds.
        name: Name of the bundle in messages.
        device: Device for the model, if it is loaded here.

    Raises:
        StreamError: The bundle lacks a tensor (the message names the command that adds it); or `coefficient` is required, and
            the bundle has TextSpan's shares.
        ModelError: The model of a bundle of pairs is not available.
    """
    if "sign" in bundle and any(name not in bundle for name in ("direction", *({"mean"} & {*required}))):
        # Inside, because it imports torch and open_clip, which commands can do without for bundles of other units.
        from cliptools.front.effects_bundle import with_directions

        bundle = with_directions(bundle, "mean" in required, device)
    for tensor in ("direction", *required):
        if tensor not in bundle:
            source = "clip-decompose" if tensor in ("word", "coefficient", "words") else "clip-effects"
            raise StreamError(f"{name}: a bundle without `{tensor}`; run {source} first")
    if "coefficient" in required and bundle.header.settings.get("words", {}).get("method") == "textspan":
        raise StreamError(
            f"{name}: its words are TextSpan's, with shares of the variance; expected a sum of texts (--method pursuit)"
        )
    return bundle
