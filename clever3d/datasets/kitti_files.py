"""The kinds of files that KITTI and the data sets in its format share: scans, calibrations, poses, times, labels."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.base import gaps_are_allowed
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, check_rotation, rigid
from clever3d.datasets.labels import LabelSpec, PointLabels
from clever3d.errors import DataError
from clever3d.io import PointCloud, read_bin, read_points

IMAGE_SUFFIXES = (".png", ".jpg")
#: Bytes of one point of a .bin scan: x, y, z, reflectance as float32.
BYTES_PER_POINT = 16


def read_kitti_points(path: Path) -> PointCloud:
    """A KITTI scan: x, y, z (already FLU, metres) and reflectance in [0, 1]; a PCD as `read_points` reads it."""
    if path.suffix == ".pcd":
        return read_points(path)
    values = read_bin(path, 4)  # [N, 4]
    return PointCloud(
        xyz=np.ascontiguousarray(values[:, :3]),
        intensity=np.ascontiguousarray(values[:, 3]),
        source="KITTI .bin: float32 x y z reflectance, x forward, y left, z up",
    )


def count_points(path: Path) -> int:
    """Number of points of a scan, from the size of a .bin; other files are read. Raises DataError if it is missing."""
    if path.suffix != ".bin":
        return len(read_kitti_points(path).xyz)
    try:
        return path.stat().st_size // BYTES_PER_POINT
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}), so its labels cannot be checked") from error


def read_point_labels(path: Path, scan: Path, spec: LabelSpec) -> PointLabels:
    """Labels of a scan in SemanticKITTI's format: uint32, the low 16 bits the class, the high 16 bits the instance.

    Source: semantic-kitti.org, "Data format". An instance number counts within its class: two points are of one
    object where both the class and the number agree.

    Raises DataError if the file is missing, or its length is not that of the scan.
    """
    raw = read_label_values(path, scan, "<u4")  # [N]
    semantic = (raw & 0xFFFF).astype(np.int32)
    return PointLabels(semantic, spec, instance=(raw >> 16).astype(np.int32), path=str(path))


def read_label_values(path: Path, scan: Path, dtype: str) -> NDArray[np.integer]:
    """The values [N] of a headerless label file, one for each point of `scan`; DataError if their number differs."""
    try:
        size = path.stat().st_size
        values = np.fromfile(path, dtype=dtype)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); download the labels again") from error
    points = count_points(scan)
    if size != points * values.itemsize:
        raise DataError(
            f"{path} has {size / values.itemsize:g} labels, but {scan} has {points} points; "
            "one of the two files is truncated, or they are of different scans: download both again"
        )
    return values


def kitti_camera(
    image: Path,
    *,
    projection: Matrix,
    velo_to_rectified: Matrix,
    name: str = "image_2",
    image_size: tuple[int, int] | None = None,
    timestamp: float | None = None,
) -> Camera:
    """The camera whose pixel is `projection` [3, 4] * `velo_to_rectified` [4, 4] * X.

    The projection is K [I | t] with t = K^-1 p4: its fourth column is the baseline from camera 0, folded into
    `points_to_camera`, so that depth is measured from this camera.
    """
    intrinsics = projection[:, :3]
    baseline = np.linalg.solve(intrinsics, projection[:, 3])
    to_camera = rigid(np.eye(3), baseline) @ velo_to_rectified
    return Camera(name, image, np.array(intrinsics), to_camera, image_size=image_size, timestamp=timestamp)


def read_calibration(path: Path) -> dict[str, Matrix]:
    """The `KEY: number number ...` lines of a KITTI calibration file; lines that hold no numbers (dates) are left out.

    Raises DataError if the file is missing or no text.
    """
    values: dict[str, Matrix] = {}
    for line in read_lines(path, "every frame needs its calibration"):
        key, _, numbers = line.partition(":")
        try:
            values[key.strip()] = np.array([float(number) for number in numbers.split()])
        except ValueError:
            continue
    return values


def matrix_entry(values: dict[str, Matrix], key: str, shape: tuple[int, ...], path: Path) -> Matrix:
    """Entry `key` of the calibration file `path` in the given shape, or a DataError that names both."""
    if key not in values:
        found = ", ".join(values) or "none"
        raise DataError(f"{path} has no numeric entry {key!r} (it has: {found}); use KITTI's own file")
    entry = values[key]
    size = math.prod(shape)
    if entry.size != size or not np.isfinite(entry).all():
        raise DataError(f"{path}: {key} has {entry.size} values, expected {size} finite ones; download the file again")
    return entry.reshape(shape)


def rotation_entry(values: dict[str, Matrix], key: str, path: Path) -> Matrix:
    """Entry `key` as a rotation [3, 3], or a DataError if it is none."""
    return check_rotation(matrix_entry(values, key, (3, 3), path), f"{path}: {key}")


def rigid_entry(values: dict[str, Matrix], key: str, path: Path) -> Matrix:
    """Entry `key`, 12 numbers [R | t], as a rigid transform [4, 4], or a DataError if R is no rotation."""
    entry = matrix_entry(values, key, (3, 4), path)
    return rigid(check_rotation(entry[:, :3], f"{path}: {key}"), entry[:, 3])


def projection_entry(values: dict[str, Matrix], key: str, path: Path) -> Matrix:
    """Entry `key` as a rectified camera's projection [3, 4], or a DataError if it cannot be one."""
    projection = matrix_entry(values, key, (3, 4), path)
    if not (projection[0, 0] > 0 and projection[1, 1] > 0 and np.array_equal(projection[2, :3], (0, 0, 1))):
        raise DataError(f"{path}: {key} is no projection to pixels ({projection.tolist()}); download the file again")
    return projection


def read_poses(path: Path) -> Matrix:
    """The poses [F, 4, 4] of a KITTI poses file: a line of 12 numbers [R | t] a frame, row by row.

    Raises DataError for a missing file, a line of another length, or a line that is no rigid transform.
    """
    rows = read_numbers(path, 12, "poses")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    rotations = poses[:, :3, :3]
    errors = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    suspect = int(np.argmax(np.where(np.linalg.det(rotations) > 0, errors, np.inf))) if len(rows) else 0
    if len(rows):
        check_rotation(rotations[suspect], f"{path}: line {suspect + 1}")
    return poses


def read_numbers(path: Path, columns: int, what: str) -> Matrix:
    """A text file of `columns` finite numbers a line: [lines, columns]. Raises DataError that names the line."""
    rows: list[list[float]] = []
    for number, line in enumerate(read_lines(path, f"it holds the {what}"), start=1):
        try:
            row = [float(value) for value in line.split()]
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no {what}: {line[:60]!r}; download the file again") from error
        if len(row) != columns or not np.isfinite(row).all():
            raise DataError(f"{path}: line {number} has {len(row)} values, expected {columns} finite ones ({what})")
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def read_lines(path: Path, why: str) -> list[str]:
    """The lines of an ASCII file without the empty ones at its end; DataError, with `why` it is needed, otherwise."""
    try:
        return path.read_text(encoding="ascii").rstrip().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {why}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no KITTI text; download it again") from error


def of_frame(rows: Matrix, number: int, path: Path) -> Matrix:
    """Row `number`, counted from 0, of a file with one line for each frame; DataError if the file is too short."""
    if number >= len(rows):
        raise DataError(f"{path} has {len(rows)} lines, but there is a scan {number}; the file is truncated")
    row: Matrix = rows[number]
    return row


def frame_files(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Files of `folder` by frame number. Public copies pad the number differently from folder to folder.

    Raises DataError if a name is no number, if two files share one, or if there is no file at all.
    """
    files: dict[int, Path] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208  (a data set has ten thousands: text sorts faster than paths)
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if suffix not in suffixes:
            continue
        path = folder / name
        if not stem.isdecimal():
            raise DataError(f"{path}: the name is no frame number; keep only KITTI's own files in {folder.name}")
        number = int(stem)
        if number in files:
            raise DataError(f"{path} and {files[number].name} have the same frame number; remove one")
        files[number] = path
    if not files:
        raise DataError(f"{folder} holds no {' or '.join(suffixes)} file; check the path and the download")
    return files


def without_scan(scans: Mapping[int, Path], others: Iterable[Mapping[int, Path]]) -> list[tuple[Path, Path]]:
    """(file, where its scan should be) of each frame number that is in one of `others` and not in `scans`."""
    lone: dict[int, Path] = {}
    for files in others:
        for number in files.keys() - scans.keys():
            lone.setdefault(number, files[number])
    if not lone:
        return []
    like = next(iter(scans.values()))
    return [(lone[n], like.with_name(f"{n:0{len(like.stem)}d}{like.suffix}")) for n in sorted(lone)]


def partner(files: dict[int, Path], number: int, folder: Path, suffix: str, scan: Path) -> Path:
    """The file of frame `number`, or a DataError: it is missing in `folder` though `scan` is there.

    Inside `gaps_allowed` the path where it should be, which fails when it is read.
    """
    if number not in files and gaps_are_allowed():
        return folder / f"{scan.stem}{suffix}"
    if number not in files:
        raise DataError(f"{folder / scan.stem}{suffix} is missing, but {scan} exists; download it, or remove the scan")
    return files[number]
