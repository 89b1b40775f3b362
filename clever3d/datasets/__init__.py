"""Data sets: frames of points with the cameras that saw them, all FLU, in metres, with intensity in [0, 1]."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from clever3d.datasets.base import Camera, Dataset, Frame
from clever3d.datasets.kitti import KittiObject
from clever3d.datasets.kitti_raw import KittiRaw
from clever3d.datasets.nuscenes import NuScenes
from clever3d.errors import DataError, InputError, UnknownNameError

__all__ = ["DATASETS", "Camera", "Dataset", "Frame", "KittiObject", "KittiRaw", "NuScenes", "open_dataset"]

# name -> the option names its spec may carry after '#'
DATASETS: dict[str, tuple[str, ...]] = {"kitti": ("scene",), "kitti_raw": (), "nuscenes": ("version",)}


def open_dataset(spec: str | Path) -> Dataset:
    """The data set that `spec` names: `kitti:/path`, `kitti_raw:/path/2011_09_26`, `nuscenes:/path`.

    Options follow after `#`, separated by `&`: `kitti:/path#scene=3` takes the first three characters of the frame's
    id as its scene; `nuscenes:/path#version=v1.0-mini` chooses the tables. A plain path is guessed from its folders.

    Raises UnknownNameError for a data set it does not know, InputError for a bad option, DataError if the folders are
    missing or incomplete.
    """
    named = re.match(r"(\w\w+):", str(spec))  # two characters at least: C:/ is a drive
    location = str(spec)[named.end() :] if named else str(spec)
    optional = re.search(r"#(\w+=[^/#]*)$", location)
    root = Path(location[: optional.start()] if optional else location).expanduser()
    name = named[1] if named else _guess(root)
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"no data set is called {name!r} (known: {', '.join(DATASETS)}){hint}")
    options = _options(name, optional[1] if optional else "")
    if name == "kitti":
        return KittiObject(root, scene=_number("scene", options.get("scene")))
    if name == "kitti_raw":
        return KittiRaw(root)
    return NuScenes(root, version=options.get("version"))


def _guess(root: Path) -> str:
    """The data set whose folders lie in `root`."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder; pass the data set's folder, or NAME:PATH (names: {', '.join(DATASETS)})")
    if any(path.is_dir() for path in root.glob("v1.0-*")):
        return "nuscenes"
    if (root / "calib_cam_to_cam.txt").is_file() or any(root.glob("*/calib_cam_to_cam.txt")):
        return "kitti_raw"
    if any((folder / "calib").is_dir() and (folder / "image_2").is_dir() for folder in (root / "training", root)):
        return "kitti"
    raise DataError(
        f"cannot tell which data set {root} is: no v1.0-* (nuscenes), no calib_cam_to_cam.txt (kitti_raw), no "
        f"training/{{velodyne,image_2,calib}} (kitti); check the path, or say it as NAME:PATH"
    )


def _options(name: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in text.split("&"):
        key, _, value = item.partition("=")
        if item and key not in DATASETS[name]:
            known = ", ".join(DATASETS[name]) or "none"
            raise InputError(f"{name} has no option {key!r} (it has: {known})")
        if item:
            options[key] = value
    return options


def _number(key: str, value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdecimal():
        raise InputError(f"{key}={value}: expected a whole number, such as {key}=3")
    return int(value)
