"""What is in a frame: the values of its points, its labels, its boxes, and whether the cameras see any of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.base import Frame
from clever3d.datasets.boxes import Boxes
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import ROTATION_TOLERANCE, check_rotation
from clever3d.datasets.integrity.files import Fault, absent_files, file_in, own_file, says
from clever3d.errors import DataError, MissingExtraError
from clever3d.io import PointCloud

# Bounds of what is taken for right: our choice, so wide that no real frame at hand is blamed.
FAR = 2000.0  # metres; the LiDARs of vehicles are rated for less than 1000
AT_ORIGIN = 0.01  # metres; no LiDAR measures as near as that
BOX_SLACK = (10, 0.5)  # points, and share of them, that a box's recount may differ by
_VIEW_STRIDE = 8  # every so many points are projected first; all only where none of those is in view


def check_values(cloud: PointCloud, path: Path, faults: list[Fault]) -> None:
    xyz, intensity, where, total = cloud.xyz, cloud.intensity, str(path), len(cloud.xyz)
    if total == 0:
        faults.append(("empty-scan", where, f"{path} has no points"))
        return
    kept = finite_rows(xyz)  # [N]
    lost = np.isnan(xyz).all(axis=1) if path.suffix == ".pcd" and not kept.all() else np.zeros(total, dtype=bool)  # [N]
    if lost.all():
        faults.append(("empty-scan", where, f"{path}: none of its {total} points has a return"))
        return
    if lost.any():
        faults.append(("no-returns", where, f"{path}: {lost.sum()} of {total} points have no return (NaN)"))
    if wrong := int((~kept & ~lost).sum()):
        faults.append(("non-finite", where, f"{path}: {wrong} of {total} points have NaN or infinite coordinates"))
    _check_distances(xyz[kept] if not kept.all() else xyz, total, path, faults)
    if intensity is None:
        return
    if wrong := int((~np.isfinite(intensity) & ~lost).sum()):
        faults.append(("non-finite", where, f"{path}: {wrong} of {total} intensities are NaN or infinite"))
    known = intensity[np.isfinite(intensity)]
    if len(known) and (known.min() < 0 or known.max() > 1):
        span = f"{known.min():g} to {known.max():g}"
        faults.append(("intensity-range", where, f"{path}: intensities from {span}, expected 0 to 1"))


def _check_distances(xyz: NDArray[np.float32], total: int, path: Path, faults: list[Fault]) -> None:
    """Finite points [N, 3] at the origin, and far away."""
    if len(xyz) == 0:
        return
    x, y, z = xyz.T
    origin = int(((np.abs(x) < AT_ORIGIN) & (np.abs(y) < AT_ORIGIN) & (np.abs(z) < AT_ORIGIN)).sum())
    if origin == total:
        faults.append(("empty-scan", str(path), f"{path}: all of its {total} points are at the origin"))
    elif origin:
        faults.append(("origin-points", str(path), f"{path}: {origin} of {total} points are at the origin"))
    farthest = max(float(xyz.max()), -float(xyz.min()))
    if farthest > FAR:
        far = int((np.abs(xyz).max(axis=1) > FAR).sum())
        message = f"{path}: {far} of {total} points are over {FAR:g} m away, up to {farthest:.3g} m"
        faults.append(("far-points", str(path), message))


def finite_rows(xyz: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which points [N, 3] have no NaN and no infinity: bool [N]. Quick where all are so, the usual case."""
    # NaN comes through the smallest and the largest value; a reduction over rows of three takes ten times as long.
    if len(xyz) == 0 or (np.isfinite(xyz.min()) and np.isfinite(xyz.max())):
        return np.ones(len(xyz), dtype=bool)
    rows: NDArray[np.bool_] = np.asarray(np.isfinite(xyz).all(axis=1))
    return rows


def check_labels(frame: Frame, total: int, faults: list[Fault]) -> bool:
    """Whether there are labels that could be read."""
    if frame.read_labels is None:
        return False
    path = own_file(frame, frame.read_labels)
    try:
        labels = frame.labels()
        if labels is None:
            return False
        path = labels.path or path
        for values, what in ((labels.semantic, "labels"), (labels.instance, "instances")):
            if values is not None and len(values) != total:
                raise DataError(f"{path}: {len(values)} {what} for {total} points")
    except MissingExtraError:
        raise
    except Exception as error:
        faults += absent_files(frame.read_labels) or [("bad-labels", path or file_in(says(error)), says(error))]
        return False
    try:
        labels.train_ids  # noqa: B018  (raises for an id that the spec does not have)
    except Exception as error:
        faults.append(("unknown-label", path, says(error)))
    return True


def check_boxes(frame: Frame, xyz: NDArray[np.float32], faults: list[Fault]) -> bool:
    """Whether there are boxes, of which the frame may have none, that could be read."""
    if frame.read_boxes is None:
        return False
    path = own_file(frame, frame.read_boxes)
    try:
        boxes = frame.boxes()
        good = None if boxes is None else _good_boxes(boxes, f"frame {frame.id}", path, faults)
    except MissingExtraError:
        raise
    except Exception as error:
        faults += absent_files(frame.read_boxes) or [("bad-boxes", path or file_in(says(error)), says(error))]
        return False
    if boxes is None or good is None:
        return False
    if boxes.track_ids is not None and len(set(boxes.track_ids)) < len(boxes.track_ids):
        double = next(track for track in boxes.track_ids if boxes.track_ids.count(track) > 1)
        faults.append(("same-track", path, f"frame {frame.id}: two boxes have the track id {double!r}"))
    if boxes.num_points is not None:
        _recount(boxes.select(good), xyz, f"frame {frame.id}", path, faults)
    return True


def _good_boxes(boxes: Boxes, where: str, path: str, faults: list[Fault]) -> NDArray[np.bool_]:
    """Which boxes [B] can be; one fault a reason for the others."""
    r = boxes.rotations  # [B, 3, 3]
    finite = np.isfinite(boxes.centers).all(axis=1) & np.isfinite(boxes.sizes).all(axis=1)
    finite &= np.isfinite(r).all(axis=(1, 2))
    if boxes.velocities is not None:
        finite &= ~np.isinf(boxes.velocities).any(axis=1)  # NaN is an unknown velocity
    sized = (boxes.sizes > 0).all(axis=1)
    with np.errstate(invalid="ignore"):
        skew = np.abs(r @ r.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2)) if len(boxes) else np.zeros(0)
        turned = (skew <= ROTATION_TOLERANCE) & (np.linalg.det(r) > 0)
    for wrong, reason in ((~finite, "not finite"), (finite & ~sized, "without size")):
        for row in np.flatnonzero(wrong)[:1]:
            what = f"{wrong.sum()} of {len(boxes)} boxes are {reason}, the first: box {row}, {boxes.names[row]}"
            size, centre = boxes.sizes[row].tolist(), boxes.centers[row].tolist()
            faults.append(("bad-boxes", path, f"{where}: {what}, size {size}, centre {centre}"))
    for row in np.flatnonzero(finite & ~turned)[:1]:
        try:
            check_rotation(r[row], f"{where}: rotation of box {row}, {boxes.names[row]}")
        except DataError as error:
            faults.append(("bad-boxes", path, says(error)))
    good: NDArray[np.bool_] = finite & sized & turned
    return good


def _recount(boxes: Boxes, xyz: NDArray[np.float32], where: str, path: str, faults: list[Fault]) -> None:
    """Compare the points [N, 3] in each box with the number that the data set gives."""
    assert boxes.num_points is not None
    xyz = xyz[np.argsort(xyz[:, 0])]  # so that the points near a box are one run of rows
    off: list[str] = []
    for row, (center, size, listed) in enumerate(zip(boxes.centers, boxes.sizes, boxes.num_points, strict=True)):
        reach = float(np.linalg.norm(size)) / 2
        low, high = np.searchsorted(xyz[:, 0], (center[0] - reach, center[0] + reach))
        counted = int(boxes.select(np.array([row])).contains(xyz[low : high + 1]).sum())
        if abs(counted - listed) > BOX_SLACK[0] + BOX_SLACK[1] * listed:
            off.append(f"box {row}, {boxes.names[row]}, holds {counted} points instead of {listed}")
    if off:
        faults.append(("box-recount", path, f"{where}: {len(off)} of {len(boxes)} boxes; {off[0]}"))


def check_view(
    frame: Frame,
    xyz: NDArray[np.float32],
    sizes: tuple[tuple[int, int] | None, ...],
    usable: list[bool],
    faults: list[Fault],
) -> None:
    """Whether the cameras see any of the points [N, 3]; those whose size or calibration is not known are left out."""
    blind: list[Camera] = []
    tested = 0
    for camera, size, can in zip(frame.cameras, sizes, usable, strict=True):
        size = camera.image_size or size
        if not can or size is None:
            continue
        tested += 1
        if not (_sees(camera, size, xyz[::_VIEW_STRIDE]) or _sees(camera, size, xyz)):
            blind.append(camera)
    if tested and len(blind) == len(frame.cameras):
        names = ", ".join(camera.name for camera in blind)
        message = f"{frame.points_path}: none of its {len(xyz)} points is in view of {names}"
        faults.append(("none-in-view", str(frame.points_path), message))
    else:
        faults += [
            ("camera-blind", str(camera.image_path), f"{camera.image_path}: no point of frame {frame.id} is in view")
            for camera in blind
        ]


def _sees(camera: Camera, size: tuple[int, int], xyz: NDArray[np.float32]) -> bool:
    pixels, _ = camera.project(xyz)
    return bool(((pixels >= -0.5) & (pixels < np.array(size) - 0.5)).all(axis=1).any())
