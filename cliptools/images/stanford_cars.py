"""Stanford Cars (Krause et al. 2013) as unpacked: pictures of cars whose class names end in the model year.

The data set comes in two layouts: cars_annos.mat beside car_ims/, or devkit/cars_meta.mat and devkit/cars_train_annos.mat beside
cars_train/. The images of cars_test/ have classes only where cars_test_annos_withlabels.mat is there as well, in devkit/ or
beside it. All of these are MATLAB files of version 5, which contain no code; `read_variables` reads any such file.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cliptools.errors import StreamError
from cliptools.library_patches import import_scipy_io

YEAR = re.compile(r"\b(\d{4})$")
DATASET = "Stanford Cars"
TEST_LABELS = "cars_test_annos_withlabels.mat"


class Car(NamedTuple):
    """A picture's path in the data set's folder, and the name of its class, for example `Acura Integra Type R 2001`."""

    file: str
    name: str

    @property
    def year(self) -> str:
        """The model year at the end of the class name.

        Raises:
            StreamError: the class name does not end in a year.
        """
        if match := YEAR.search(self.name):
            return match[1]
        raise StreamError(f"class {self.name!r}: expected a model year at its end, as in 'Acura Integra Type R 2001'")


def is_cars(folder: Path) -> bool:
    """Return True if the folder is a copy of the data set."""
    return (folder / "cars_annos.mat").is_file() or (folder / "devkit" / "cars_meta.mat").is_file()


def read_cars(folder: Path) -> list[Car]:
    """Return all pictures with a class, in the order of the data set.

    Raises:
        StreamError: an annotation file is invalid, or no file has classes.
    """
    if (folder / "cars_annos.mat").is_file():
        names, annotations = read_variables(folder / "cars_annos.mat", DATASET, "class_names", "annotations")
        return _cars(folder / "cars_annos.mat", names, annotations, "relative_im_path", "")
    (names,) = read_variables(folder / "devkit" / "cars_meta.mat", DATASET, "class_names")
    lists = [(folder / "devkit" / "cars_train_annos.mat", "cars_train")]
    lists += [(place / TEST_LABELS, "cars_test") for place in (folder / "devkit", folder)]
    cars = []
    for path, pictures in lists:
        if path.is_file():
            (annotations,) = read_variables(path, DATASET, "annotations")
            nested = f"{pictures}/{pictures}"  # some copies have a folder within a folder of the same name
            cars += _cars(path, names, annotations, "fname", nested if (folder / nested).is_dir() else pictures)
    if not cars:
        raise StreamError(f"{folder}: expected devkit/cars_train_annos.mat or {TEST_LABELS} beside devkit/cars_meta.mat")
    return cars


def _cars(path: Path, names: np.ndarray, annotations: np.ndarray, field: str, pictures: str) -> list[Car]:
    """Return the pictures and classes of one annotation list."""
    if not {field, "class"} <= set(annotations.dtype.names or ()):
        raise StreamError(f"{path}: annotations without {field} and class, expected a file of Stanford Cars")
    cars = []
    for file, number in zip(annotations[field], annotations["class"], strict=True):
        if not 1 <= int(number) <= len(names):
            raise StreamError(f"{path}: {file} is of class {number}, expected 1 to {len(names)}")
        cars.append(Car(f"{pictures}/{file}" if pictures else str(file), str(names[int(number) - 1])))
    return cars


def read_variables(path: Path, dataset: str, *names: str) -> list[np.ndarray]:
    """Return the named variables of a MATLAB 5 file, each as an array of at least one dimension.

    Args:
        dataset: Name of the data set that the file belongs to, for messages.

    Raises:
        StreamError: the file does not exist, is not a MATLAB 5 file, or has no such variable.
    """
    try:
        variables: dict[str, Any] = import_scipy_io().loadmat(path, variable_names=names, squeeze_me=True, chars_as_strings=True)
    except Exception as error:  # scipy's reader raises nearly any exception on damaged data
        raise StreamError(f"{path}: expected a MATLAB file of {dataset} ({error or type(error).__name__})") from None
    if missing := [name for name in names if name not in variables]:
        raise StreamError(f"{path}: no variable {missing[0]}, expected a file of {dataset}")
    return [np.atleast_1d(variables[name]) for name in names]
