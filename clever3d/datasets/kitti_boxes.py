"""KITTI's 3D boxes: label_2 of the object benchmark and the tracklets of the raw recordings, in velodyne axes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from clever3d.datasets.boxes import Boxes
from clever3d.datasets.geometry import Matrix, apply, inverse, rotation_about_z
from clever3d.datasets.kitti_files import read_lines
from clever3d.errors import DataError

#: Lines of this type mark parts of the image that nobody annotated; their 3D columns are -1 and -1000.
DONT_CARE = "DontCare"


def read_object_boxes(path: Path, velo_to_rectified: Matrix) -> Boxes:
    """The boxes of a label_2 file, without `DontCare`.

    A line is `type truncated occluded alpha left top right bottom h w l x y z ry`, sometimes with a score behind it:
    (x, y, z) is the middle of the box's bottom in rectified camera 0 (x right, y down, z forward), and ry turns the
    heading from the camera's x about its y (source: readme.txt of the object development kit). The boxes stand upright
    in the camera's axes, which are tilted against the velodyne's by a degree or so, so they carry whole rotations. Only
    objects in the image of camera 2 are annotated.

    velo_to_rectified [4, 4]: R0_rect * Tr_velo_to_cam.

    Raises DataError for a missing file, or a line that is no such object.
    """
    lines = [(number, line.split()) for number, line in enumerate(read_lines(path, "it holds the boxes"), start=1)]
    kept = [(number, words) for number, words in lines if words and words[0] != DONT_CARE]
    if not kept:
        return Boxes.empty()
    table = np.array([_numbers(words, f"{path}: line {number}") for number, words in kept])  # [B, 7]
    height, width, length, x, y, z, ry = table.T
    cos, sin, zero, one = np.cos(ry), np.sin(ry), np.zeros(len(ry)), np.ones(len(ry))
    # columns, in camera axes: heading (cos, 0, -sin), its left (sin, 0, cos), up (0, -1, 0)
    rotations = np.array([[cos, sin, zero], [zero, zero, -one], [-sin, cos, zero]]).transpose(2, 0, 1)  # [B, 3, 3]
    to_velo = inverse(velo_to_rectified)
    return Boxes(
        centers=apply(to_velo, np.stack([x, y - height / 2, z], axis=1)),
        sizes=np.stack([length, width, height], axis=1),
        rotations=to_velo[:3, :3] @ rotations,
        names=tuple(words[0] for _, words in kept),
    )


def _numbers(words: list[str], where: str) -> list[float]:
    """Columns h w l x y z ry of one line."""
    if len(words) not in (15, 16):
        raise DataError(f"{where} has {len(words)} columns, expected 15 (16 with a score); use KITTI's label_2")
    try:
        values = [float(word) for word in words[8:15]]
    except ValueError as error:
        raise DataError(f"{where} has something that is no number: {' '.join(words[8:15])}") from error
    if not np.isfinite(values).all() or min(values[:3]) <= 0:
        raise DataError(f"{where}: {words[0]} has h w l = {' '.join(words[8:11])}; sizes have to be above 0")
    return values


def read_tracklet_boxes(path: Path, number: int) -> Boxes:
    """The boxes of frame `number` from a drive's tracklet_labels.xml, `track_ids` being the object's place in it.

    An object has h, w, l for the whole drive and, for each frame from first_frame on, (tx, ty, tz), the middle of its
    bottom, and rz, its heading about z, both in velodyne axes (source: the raw development kit, readme.txt and
    run_demoTracklets.m, which uses rz alone: rx and ry are 0).

    Raises DataError if the file is missing or not such a file.
    """
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); it holds the boxes") from error
    rows = _tracklets(path, stamp).get(number)
    if not rows:
        return Boxes.empty()
    table = np.array([values for _, _, values in rows])  # [B, 7]: h w l tx ty tz rz
    height = table[:, 0]
    return Boxes(
        centers=table[:, 3:6] + np.stack([np.zeros_like(height), np.zeros_like(height), height / 2], axis=1),
        sizes=table[:, [2, 1, 0]],
        rotations=np.array([rotation_about_z(float(yaw)) for yaw in table[:, 6]]),
        names=tuple(name for _, name, _ in rows),
        track_ids=tuple(track for track, _, _ in rows),
    )


@lru_cache(maxsize=8)
def _tracklets(path: Path, stamp: int) -> dict[int, list[tuple[str, str, list[float]]]]:
    """Frame number -> (track, name, h w l tx ty tz rz). `stamp`, the file's time, keeps the cache honest."""
    try:
        items = ElementTree.parse(path).getroot().findall("tracklets/item")
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} is no readable XML ({error}); download the drive's tracklets again") from error
    frames: dict[int, list[tuple[str, str, list[float]]]] = {}
    for track, item in enumerate(items):
        where = f"{path}: object {track}"
        name = item.findtext("objectType") or ""
        size = [_value(item, key, where) for key in ("h", "w", "l")]
        first = int(_value(item, "first_frame", where))
        for offset, pose in enumerate(item.findall("poses/item")):
            place = [_value(pose, key, f"{where}, pose {offset}") for key in ("tx", "ty", "tz", "rz")]
            frames.setdefault(first + offset, []).append((str(track), name, [*size, *place]))
    return frames


def _value(item: ElementTree.Element, key: str, where: str) -> float:
    text = item.findtext(key)
    try:
        value = float(text or "nothing")
    except ValueError as error:
        raise DataError(f"{where}: {key} is {text!r}, no number; download the drive's tracklets again") from error
    if not np.isfinite(value):
        raise DataError(f"{where}: {key} is {text}; download the drive's tracklets again")
    return value
