"""Data sets: frames of points with the cameras that saw them, all FLU, in metres, with intensity in [0, 1]."""

from __future__ import annotations

import contextlib
import difflib
import re
from pathlib import Path

from clever3d.datasets.argoverse2 import Argoverse2
from clever3d.datasets.base import Dataset, Frame, Sweep
from clever3d.datasets.boxes import Boxes
from clever3d.datasets.camera import Camera, Distortion
from clever3d.datasets.kitti import KittiObject
from clever3d.datasets.kitti_raw import KittiRaw
from clever3d.datasets.labels import IGNORE, LabelSpec, PointLabels
from clever3d.datasets.nuscenes import NuScenes
from clever3d.datasets.pandaset import PandaSet
from clever3d.datasets.rellis3d import Rellis3D
from clever3d.datasets.rig import Rig
from clever3d.datasets.semantickitti import SemanticKitti
from clever3d.datasets.waymo import Waymo
from clever3d.errors import DataError, InputError, UnknownNameError

__all__ = [
    "DATASETS",
    "IGNORE",
    "Argoverse2",
    "Boxes",
    "Camera",
    "Dataset",
    "Distortion",
    "Frame",
    "KittiObject",
    "KittiRaw",
    "LabelSpec",
    "NuScenes",
    "PandaSet",
    "PointLabels",
    "Rellis3D",
    "Rig",
    "SemanticKitti",
    "Sweep",
    "Waymo",
    "open_dataset",
]

#: By the name in `NAME:PATH`. A plain path is that of the first whose layout its folders have.
DATASETS: dict[str, type[Dataset]] = {
    "rig": Rig,  # first: a rig.yaml is explicit, and its folders may resemble another layout's
    "nuscenes": NuScenes,
    "kitti_raw": KittiRaw,
    "semantickitti": SemanticKitti,
    "kitti": KittiObject,
    "av2": Argoverse2,
    "rellis3d": Rellis3D,
    "pandaset": PandaSet,
    "waymo": Waymo,
}


_LOOK_AT_MOST = 100  # folders below one that is no data set (our choice)


def open_dataset(spec: str | Path) -> Dataset:
    """The data set that `spec` names: `kitti:/path`, `nuscenes:/path#version=v1.0-mini&split=mini_train`, `/path`.

    Options follow after `#`, separated by `&`; they are the keyword arguments of the data set's class. The data set of
    a plain path is guessed from its folders.

    Raises UnknownNameError for a data set it does not know, InputError for a bad option, DataError if the folders are
    missing or incomplete.
    """
    given, root, options = split_spec(spec)
    name = given or _guess(root)
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"no data set is called {name!r} (known: {', '.join(DATASETS)}){hint}")
    kind = DATASETS[name]
    return kind(root, **_options(name, options))  # type: ignore[call-arg]


def split_spec(spec: str | Path) -> tuple[str | None, Path, str]:
    """The name (None where there is none), the folder and the options (text after ``#``) of `NAME:PATH#options`."""
    named = re.match(r"(\w\w+):", str(spec))  # two characters at least: C:/ is a drive
    location = str(spec)[named.end() :] if named else str(spec)
    optional = re.search(r"#(\w+=[^/#]*)$", location)
    root = Path(location[: optional.start()] if optional else location).expanduser()
    return named[1] if named else None, root, optional[1] if optional else ""


def guess_dataset(root: Path) -> str | None:
    """The name of the data set whose layout the folder `root` has, or None."""
    return next((name for name, kind in DATASETS.items() if kind.looks_like(root)), None)


def _guess(root: Path) -> str:
    if not root.is_dir():
        raise DataError(f"{root} is no folder; pass the data set's folder, or NAME:PATH (names: {', '.join(DATASETS)})")
    name = guess_dataset(root)
    if name is None:
        raise DataError(f"cannot tell which data set {root} is; {_advice(root)}")
    return name


def _advice(root: Path) -> str:
    below: dict[str, Path] = {}  # name -> the first folder that has its layout
    with contextlib.suppress(OSError):
        for folder in sorted(path for path in root.iterdir() if path.is_dir())[:_LOOK_AT_MOST]:
            if (name := guess_dataset(folder)) is not None:
                below.setdefault(name, folder)
    if not below:
        return f"check the path, or say it as NAME:PATH (names: {', '.join(DATASETS)})"
    name, folder = next(iter(below.items()))
    return f"below it lie {', '.join(below)}: try {name}:{folder}"


def _options(name: str, text: str) -> dict[str, object]:
    known = DATASETS[name].OPTIONS
    options: dict[str, object] = {}
    for item in filter(None, text.split("&")):
        key, _, value = item.partition("=")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{name} has no option {key!r} (it has: {', '.join(known) or 'none'}){hint}")
        try:
            options[key] = known[key](value)
        except ValueError as error:
            example = "3" if known[key] is int else "NAME"
            hint = str(error) if isinstance(error, InputError) else f"write it like {key}={example}"
            raise InputError(f"{name}: {key}={value!r} cannot be read; {hint}") from error
    return options
