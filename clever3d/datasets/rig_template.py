"""The `rig.yaml` that `clever3d rig new` writes: every key explained, what the folder shows filled in."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from clever3d.datasets.rig_config import FILE_NAME
from clever3d.datasets.rig_files import IMAGE_SUFFIXES, LABEL_SUFFIXES, SCAN_SUFFIXES, stem
from clever3d.datasets.rig_yaml import PLACEHOLDER
from clever3d.errors import DataError
from clever3d.io import atomic_path

#: Folders looked into, and files looked at in each: enough to see what is there, quick in a large one (our choice).
_DEPTH = 4
_MOST_FOLDERS = 500
_LABEL_WORD = re.compile(r"label|sem", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """Files of one kind in one folder. pattern: relative to the rig's folder. size: (W, H) of images."""

    name: str
    pattern: str
    stems: frozenset[str]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Contents:
    """What a folder holds: at most one folder of scans, some of images, at most one of labels.

    scenes: the pattern of folders that each hold a recording; the other patterns are then relative to these.
    """

    scans: Found | None
    images: tuple[Found, ...]
    labels: Found | None
    scenes: str | None = None


def look_around(folder: Path) -> Contents:
    """What scans, images and labels are below `folder`: names are read, and the header of one image a folder."""
    scans: list[Found] = []
    images: list[Found] = []
    labels: list[Found] = []
    for below in _folders(folder):
        by_suffix: dict[str, list[Path]] = {}
        for path in below.iterdir():
            if path.is_file() and not path.name.startswith("."):
                by_suffix.setdefault(path.suffix, []).append(path)
        for suffix, paths in sorted(by_suffix.items()):
            place = (below / f"*{suffix}").relative_to(folder).as_posix()
            name = re.sub(r"\W+", "_", below.relative_to(folder).as_posix()).strip("_")
            found = Found(name or "camera", place, frozenset(stem(path) for path in paths))
            kind = suffix.lower()
            if kind in LABEL_SUFFIXES and (kind == ".label" or _LABEL_WORD.search(place)):
                labels.append(found)
            elif kind in SCAN_SUFFIXES:
                scans.append(found)
            elif kind in IMAGE_SUFFIXES and (size := _size(min(paths))) is not None:
                images.append(Found(found.name, place, found.stems, size))
    scenes = _scenes(folder, scans, images)
    if scenes is not None:
        scans, images, labels = (_in_scenes(scenes, found) for found in (scans, images, labels))
    fullest = max(scans, key=lambda one: len(one.stems), default=None)
    return Contents(fullest, tuple(images), labels[0] if labels else None, scenes)


def _scenes(folder: Path, scans: list[Found], images: list[Found]) -> str | None:
    """The pattern of the folders that each hold scans and images of a recording; None unless there are several."""
    paths = [PurePosixPath(one.pattern).parts for one in scans]
    if len({len(path) for path in paths}) != 1 or len(paths) < 2:
        return None
    differing = [level for level, names in enumerate(zip(*paths, strict=True)) if len(set(names)) > 1]
    if len(differing) != 1 or differing[0] == len(paths[0]) - 1:
        return None
    (level,) = differing
    recordings = {path[: level + 1] for path in paths}
    with_images = {PurePosixPath(one.pattern).parts[: level + 1] for one in images}
    pattern = "/".join([*paths[0][:level], f"{_common([path[level] for path in paths])}*"])
    matching = {path.relative_to(folder).parts for path in folder.glob(pattern) if path.is_dir()}
    # Scans without images of their own are those of several LiDARs.
    return pattern if recordings == with_images == matching else None


def _common(names: list[str]) -> str:
    """What names begin with, without the first digits of their numbers."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same).rstrip("0123456789")


def _in_scenes(scenes: str, found: list[Found]) -> list[Found]:
    """Files of one kind in all scenes together, their patterns relative to a scene."""
    depth = len(PurePosixPath(scenes).parts)
    merged: dict[str, Found] = {}
    for one in found:
        parts = PurePosixPath(one.pattern).parts
        place, scene = "/".join(parts[depth:]), "/".join(parts[:depth])
        stems = frozenset(f"{scene}/{name}" for name in one.stems)
        name = re.sub(r"\W+", "_", "/".join(parts[depth:-1])).strip("_") or "camera"
        before = merged.get(place)
        size = one.size if before is None else before.size
        merged[place] = Found(name, place, stems | (before.stems if before else frozenset()), size)
    return list(merged.values())


def _folders(folder: Path) -> list[Path]:
    found, level = [folder], [folder]
    for _ in range(_DEPTH):
        level = [
            path for one in level for path in sorted(one.iterdir()) if path.is_dir() and not path.name.startswith(".")
        ]
        found += level
        if len(found) > _MOST_FOLDERS:
            break
    return found[:_MOST_FOLDERS]


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            width, height = image.size
            return width, height
    except (OSError, Image.DecompressionBombError):
        return None


def write_template(folder: Path, *, replace: bool = False) -> tuple[Path, Contents]:
    """Writes `rig.yaml` into `folder`, which is made if it is missing; gives its path and what was found.

    Raises DataError if there is one already and `replace` is False, or if it cannot be written.
    """
    path = folder / FILE_NAME
    if path.exists() and not replace:
        raise DataError(f"{path} exists; edit it, or replace it with --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contents = look_around(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be used: {error.strerror or error}") from error
    with atomic_path(path) as draft:
        draft.write_text(template(contents), encoding="utf-8")
    return path, contents


def template(contents: Contents) -> str:
    """The text of the file."""
    cameras = contents.images or (Found("front", f"{PLACEHOLDER}/*.jpg", frozenset()),)
    scans = contents.scans
    by = "stem"
    if scans is not None and contents.images and not all(scans.stems & one.stems for one in contents.images):
        by = "number"
    scenes = f'scenes: "{contents.scenes}"' if contents.scenes else '# scenes: "recording_*"'
    text = _HEAD.format(fill=PLACEHOLDER, scans=scans.pattern if scans else f"{PLACEHOLDER}/*.bin", scenes=scenes)
    text += "".join(_camera(camera) for camera in cameras)
    text += _MATCHING.format(by=by)
    if contents.labels is None:
        return text + _LABELS_HINT
    return text + _LABELS.format(pattern=contents.labels.pattern, fill=PLACEHOLDER)


def _camera(found: Found) -> str:
    width, height = found.size or (PLACEHOLDER, PLACEHOLDER)
    return _CAMERA.format(name=found.name, files=found.pattern, width=width, height=height, fill=PLACEHOLDER)


_HEAD = """\
# A rig of your own sensors, for clever3d: scans, images, and how the sensors are mounted.
# Put a value wherever {fill} stands, then run   clever3d rig check FOLDER
# It shows the points on the images, and says which line is wrong where they do not fit.
# Lengths are metres. Patterns are relative to this folder.

version: 1

# Several recordings with one calibration, each in a folder of its own? Then patterns are relative to these folders:
{scenes}

lidar:
  files: {scans}
  # Where the x, y and z axes of the numbers in the files point: f(orward) or b(ack), l(eft) or r(ight), u(p) or d(own).
  # flu: KITTI, ROS. rfu: raw nuScenes.
  axes: {fill}
  # Numbers a point in .bin files (x y z intensity: 4). Without it, it is found from the values.
  # columns: 4
  # The largest intensity that the sensor can give; the files' are divided by it. Without it: 1 or 255, from the values.
  # intensity_scale: 255
  # unit: m                   # or cm, mm
  # min_range: 0.5            # points nearer than this are left out: no returns, or the vehicle itself
  # ground_height: -1.8       # height of the ground over the sensor; a note, for clever3d-train --student.ground
  # timestamps: names         # the last number in each file's name; or a text file of `NAME TIME` lines
  # time_unit: s              # or ms, us, ns
  # Only if the extrinsics below are not in the axes of the scan files:
  # extrinsics_axes: flu

cameras:
"""

_CAMERA = """\
  {name}:
    files: {files}
    image_size: [{width}, {height}]   # width, height for which the intrinsics hold
    intrinsics: {{fx: {fill}, fy: {fill}, cx: {fill}, cy: {fill}}}   # pixels; or a 3x3 matrix
    # Without `distortion`, the images are taken for rectified. Coefficients in OpenCV's order:
    # pinhole: k1, k2, p1, p2[, k3[, k4, k5, k6]]; fisheye: k1, k2, k3, k4.
    # distortion: {{model: pinhole, coefficients: [0, 0, 0, 0]}}
    # Rename the next key to camera_to_lidar if your numbers lead that way.
    # The camera's axes: x right, y down, z forward.
    lidar_to_camera:
      rotation: {fill}          # 3x3: [[.., .., ..], [.., .., ..], [.., .., ..]]; or `quaternion: [w, x, y, z]`
      translation: {fill}       # [x, y, z]; or, instead of both, `matrix:` with four rows of four numbers
    # timestamps: names
    # time_unit: s
    # time_offset: 0.0          # seconds to add to this camera's timestamps

"""

_MATCHING = """\
matching:
  # Which image goes with which scan: stem (equal names), number (equal last number in the names), time (the nearest
  # timestamps; both sensors then need `timestamps`).
  by: {by}
  # max_time_difference: 0.05
  # missing_images: error       # or skip: a frame may then lack cameras

# Where the LiDAR was, for the motion between scan and image. TUM format, a line each: time x y z qx qy qz qw
# poses:
#   file: poses.txt
#   lidar_to_body: {{rotation: [[1, 0, 0], [0, 1, 0], [0, 0, 1]], translation: [0, 0, 0]}}   # if of another body
"""

_LABELS = """
labels:
  files: {pattern}              # uint32 a point (low 16 bits: the class), or .npy of whole numbers
  names: {fill}                 # {{0: unlabeled, 1: road, 2: car}}
  # ignore: [0]
"""

_LABELS_HINT = """
# labels:
#   files: labels/*.label       # uint32 a point (low 16 bits: the class), or .npy of whole numbers
#   names: {0: unlabeled, 1: road, 2: car}
#   ignore: [0]
"""
