"""Variables of MATLAB files of version 5, which hold no code.

Stanford Cars (Krause et al. 2013) as it is unpacked: pictures of cars whose classes end in the model year.

Either cars_annos.mat beside car_ims/, or devkit/cars_meta.mat and devkit/cars_train_annos.mat beside cars_train/; cars_test/ has
classes only where cars_test_annos_withlabels.mat is there too, in devkit/ or beside it. All are MATLAB files of version 5,
which hold no code.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cliptools.errors import StreamError


def read_variables(path: Path, of: str, *wanted: str) -> list[np.ndarray]:
    """Variables of a file, each as a list.

    Args:
        of: What the file is of, for messages.

    Raises:
        StreamError: no such file, not of MATLAB 5, or one of them is missing.
    """
    from scipy.io import loadmat

    try:
        held: dict[str, Any] = loadmat(path, variable_names=wanted, squeeze_me=True, chars_as_strings=True)
    except Exception as error:  # scipy's reader raises nearly anything on damaged data
        raise StreamError(f"{path}: expected a MATLAB file of {of} ({error or type(error).__name__})") from None
    if missing := [name for name in wanted if name not in held]:
        raise StreamError(f"{path}: no variable {missing[0]}, expected a file of {of}")
    return [np.atleast_1d(held[name]) for name in wanted]


YEAR = re.compile(r"\b(\d{4})$")
OF = "Stanford Cars"
TEST_LABELS = "cars_test_annos_withlabels.mat"


class Car(NamedTuple):
    """A picture, relative to the data set's folder, and what it shows, as `Acura Integra Type R 2001`."""

    file: str
    name: str

    @property
    def year(self) -> str:
        """The model year.

        Raises:
            StreamError: the class does not end in one.
        """
        if found := YEAR.search(self.name):
            return found[1]
        raise StreamError(f"class {self.name!r}: expected a model year at its end, as in 'Acura Integra Type R 2001'")


def is_cars(folder: Path) -> bool:
    """Whether this is the folder of the data set."""
    return (folder / "cars_annos.mat").is_file() or (folder / "devkit" / "cars_meta.mat").is_file()


def read_cars(folder: Path) -> list[Car]:
    """All pictures that the data set tells the class of, in its own order.

    Raises:
        StreamError: a file that is not what it should be, or none that says which car a picture shows.
    """
    if (folder / "cars_annos.mat").is_file():
        names, annotations = read_variables(folder / "cars_annos.mat", OF, "class_names", "annotations")
        return _cars(folder / "cars_annos.mat", names, annotations, "relative_im_path", "")
    (names,) = read_variables(folder / "devkit" / "cars_meta.mat", OF, "class_names")
    lists = [(folder / "devkit" / "cars_train_annos.mat", "cars_train")]
    lists += [(place / TEST_LABELS, "cars_test") for place in (folder / "devkit", folder)]
    found = []
    for path, pictures in lists:
        if path.is_file():
            (annotations,) = read_variables(path, OF, "annotations")
            nested = f"{pictures}/{pictures}"  # as some copies are packed
            found += _cars(path, names, annotations, "fname", nested if (folder / nested).is_dir() else pictures)
    if not found:
        raise StreamError(f"{folder}: expected devkit/cars_train_annos.mat or {TEST_LABELS} beside devkit/cars_meta.mat")
    return found


def _cars(path: Path, names: np.ndarray, annotations: np.ndarray, field: str, pictures: str) -> list[Car]:
    """Pictures and classes of one list."""
    if not {field, "class"} <= set(annotations.dtype.names or ()):
        raise StreamError(f"{path}: annotations without {field} and class, expected a file of Stanford Cars")
    cars = []
    for file, number in zip(annotations[field], annotations["class"], strict=True):
        if not 1 <= int(number) <= len(names):
            raise StreamError(f"{path}: {file} is of class {number}, there are classes 1 to {len(names)}")
        cars.append(Car(f"{pictures}/{file}" if pictures else str(file), str(names[int(number) - 1])))
    return cars
