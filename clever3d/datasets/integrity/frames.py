"""The check of one frame, alone: its files, points, labels, boxes, calibration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clever3d.datasets.base import Frame
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import check_transform
from clever3d.datasets.integrity.contents import check_boxes, check_labels, check_values, check_view, finite_rows
from clever3d.datasets.integrity.files import Fault, File, absence, file_state, files_of, missing_files, says
from clever3d.datasets.integrity.images import check_image
from clever3d.datasets.integrity.sequence import ENOUGH, FEW
from clever3d.errors import DataError, MissingExtraError
from clever3d.io import PointCloud

OFF_CENTRE = 0.3  # of the image's size, from its middle to the principal point (our choice; KITTI at half size: 0.48)
CAMERA_LAG = 0.5  # seconds between scan and image (our choice; a turn takes 0.05 to 0.1)


@dataclass(frozen=True)
class Checked:
    """What the check of one frame gives: its faults; the number of points, None where they could not be read; the size
    of each camera's image, None where it has none; all files it looked at; how many labels, boxes (0 or 1 each) and
    sweeps were read."""

    faults: tuple[Fault, ...]
    points: int | None
    sizes: tuple[tuple[int, int] | None, ...]
    files: tuple[File, ...]
    looked_at: tuple[int, int, int]


def check_frame(frame: Frame, *, fast: bool = False, sweeps: tuple[int, ...] | None = None) -> Checked:
    """Read everything that the frame has and say what is wrong with it.

    fast: do not decode the images. sweeps: places of those to read, None for all.
    Nothing in the files makes it raise, except MissingExtraError: what cannot be read here can be read in no frame.
    """
    files = tuple(file_state(path) for path in files_of(frame))  # before they are read: a change meanwhile is a change
    faults: list[Fault] = []
    cloud = _read_points(frame, faults)
    sizes = tuple(_image_size(camera, faults, fast) for camera in frame.cameras)
    usable = [
        _check_calibration(camera, size, frame, faults) for camera, size in zip(frame.cameras, sizes, strict=True)
    ]
    _check_poses(frame, faults)
    read = _check_sweeps(frame, range(len(frame.sweeps)) if sweeps is None else sweeps, cloud, faults)
    if cloud is None:
        faults += missing_files(frame.read_labels) + missing_files(frame.read_boxes)
        return Checked(tuple(dict.fromkeys(faults)), None, sizes, files, (0, 0, read))
    rows = finite_rows(cloud.xyz)
    finite = cloud.xyz if rows.all() else cloud.xyz[rows]
    check_values(cloud, frame.points_path, faults)
    labels = check_labels(frame, len(cloud.xyz), faults)
    boxes = check_boxes(frame, finite, faults)
    if len(finite):
        check_view(frame, finite, sizes, usable, faults)
    return Checked(tuple(dict.fromkeys(faults)), len(cloud.xyz), sizes, files, (int(labels), int(boxes), read))


def _check_sweeps(frame: Frame, places: Iterable[int], cloud: PointCloud | None, faults: list[Fault]) -> int:
    """Read the sweeps at these places; how many could be. Their points are compared with those of each other."""
    counts: dict[Path, int] = {}
    for place in places:
        sweep = frame.sweeps[place]
        points = _read_points(replace(frame, points_path=sweep.points_path, read=sweep.read or frame.read), faults)
        if points is not None:
            counts[sweep.points_path] = len(points.xyz)
            check_values(points, sweep.points_path, faults)
    values = [*counts.values(), *([] if cloud is None else [len(cloud.xyz)])]
    if len(values) >= ENOUGH:
        median = float(np.median(values))
        for path, count in counts.items():
            if 0 < count < FEW * median:
                message = f"{path} has {count} points, the scan and the sweeps around have {median:.0f}"
                faults.append(("few-points", str(path), message))
    return len(counts)


def _read_points(frame: Frame, faults: list[Fault]) -> PointCloud | None:
    path = frame.points_path
    try:
        if absent := absence(path):
            faults.append(absent)
            return None
        cloud = frame.points()
        if cloud.xyz.ndim != 2 or cloud.xyz.shape[1] != 3:
            raise DataError(f"{path}: points of shape {cloud.xyz.shape}, expected [N, 3]")
        if cloud.intensity is not None and cloud.intensity.shape != cloud.xyz.shape[:1]:
            raise DataError(f"{path}: {len(cloud.xyz)} points, intensities of shape {cloud.intensity.shape}")
    except MissingExtraError:
        raise
    except Exception as error:
        faults.append(("unreadable-points", str(path), says(error)))
        return None
    return cloud


def _image_size(camera: Camera, faults: list[Fault], fast: bool) -> tuple[int, int] | None:
    path = camera.image_path
    try:
        if absent := absence(path):
            faults.append(absent)
            return None
        return check_image(path, fast=fast)
    except Exception as error:
        faults.append(("unreadable-image", str(path), f"{path}: {says(error)}"))
        return None


def _check_calibration(camera: Camera, size: tuple[int, int] | None, frame: Frame, faults: list[Fault]) -> bool:
    """Whether points can be projected with it."""
    path, (k, name) = str(camera.image_path), (camera.intrinsics, f"frame {frame.id}, camera {camera.name}")
    lag = None if None in (camera.timestamp, frame.timestamp) else camera.timestamp - frame.timestamp  # type: ignore
    if lag is not None and not abs(lag) <= CAMERA_LAG:
        faults.append(("camera-time", path, f"{name}: its timestamp is {lag:+.3f} s from the scan's"))
    try:
        if k.shape != (3, 3) or not np.isfinite(k).all() or not (k[0, 0] > 0 and k[1, 1] > 0 and k[2, 2] == 1):
            raise DataError(f"{name}: intrinsics {k.tolist()} are no [fx s cx; 0 fy cy; 0 0 1] with fx, fy above 0")
        check_transform(camera.points_to_camera, f"{name}: points_to_camera")
    except DataError as error:
        faults.append(("bad-calibration", path, says(error)))
        return False
    if size is None:
        return True
    if camera.image_size is not None and tuple(camera.image_size) != size:
        (w, h), (width, height) = size, camera.image_size
        faults.append(("image-size", path, f"{path} has {w} x {h} pixels, the calibration is for {width} x {height}"))
    elif (np.abs((k[:2, 2] + 0.5) / size - 0.5) > OFF_CENTRE).any():
        centre = f"({k[0, 2]:.1f}, {k[1, 2]:.1f})"
        faults.append(
            ("principal-point", path, f"{name}: the principal point {centre} in {size[0]} x {size[1]} pixels")
        )
    return True


def _check_poses(frame: Frame, faults: list[Fault]) -> None:
    path = str(frame.points_path)
    transforms = [("points_to_world", frame.points_to_world)] if frame.points_to_world is not None else []
    transforms += [(f"sweep {sweep.points_path.name}", sweep.to_frame) for sweep in frame.sweeps]
    for name, matrix in transforms:
        try:
            check_transform(matrix, f"frame {frame.id}: {name}")
        except DataError as error:
            faults.append(("bad-pose", path, says(error)))
    faults += [absent for sweep in frame.sweeps if (absent := absence(sweep.points_path))]
