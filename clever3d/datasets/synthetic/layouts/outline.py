"""How an object shows in a picture: the rectangle of its box, and how much of it something nearer hides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clever3d.datasets.boxes import Boxes
from clever3d.datasets.geometry import Matrix, apply, inverse, rigid
from clever3d.datasets.synthetic.layouts.base import camera_to_world
from clever3d.datasets.synthetic.truth import CameraShot, Object, Picture

#: What is nearer to the camera than this is cut off (metres, our choice).
_NEAREST = 0.1
#: Something hides a box where it is nearer than the box's front by this (metres, our choice).
_HIDES = 0.1
#: Rays per side of the rectangle at most (our choice).
_RAYS = 32
# Corners as Boxes.corners has them: a ring below, a ring above.
_EDGES = (
    [(i, (i + 1) % 4) for i in range(4)] + [(4 + i, 4 + (i + 1) % 4) for i in range(4)] + [(i, i + 4) for i in range(4)]
)


@dataclass(frozen=True)
class Outline:
    """rectangle: left, top, right, bottom of the projected box in pixels, cut where the image ends.
    truncated: share of the whole rectangle's area that lies outside the image. pixels: about how many of the image's
    pixels the box covers. visible: share of them where nothing is in front of the box. drawn: pixels of the object."""

    rectangle: tuple[float, float, float, float]
    truncated: float
    pixels: float
    visible: float
    drawn: int


def outline(shot: CameraShot, picture: Picture, item: Object, seconds: float) -> Outline | None:
    """How `item`, moved on for `seconds`, shows in the picture of a camera without distortion; None if it does not."""
    to_camera = inverse(camera_to_world(shot))
    center = apply(to_camera, (item.center + item.velocity * seconds)[None])
    rotation = to_camera[:3, :3] @ item.rotation
    whole = rectangle(Boxes(center, item.size[None], rotation[None], ("",)), shot.intrinsics)
    if whole is None:
        return None
    width, height = shot.size
    left, top, right, bottom = whole
    cut = (max(left, 0.0), max(top, 0.0), min(right, width - 1.0), min(bottom, height - 1.0))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        return None
    area = (cut[2] - cut[0]) * (cut[3] - cut[1])
    hit, hidden = _cast(shot, picture, rigid(rotation, center[0]), item.size, cut)
    if not hit:
        return None
    columns = slice(int(cut[0]), int(np.ceil(cut[2])) + 1)
    drawn = picture.instance[int(cut[1]) : int(np.ceil(cut[3])) + 1, columns] == item.instance
    return Outline(
        rectangle=cut,
        truncated=1 - area / ((right - left) * (bottom - top)),
        pixels=hit * area,
        visible=1 - hidden / hit,
        drawn=int(np.count_nonzero(drawn)),
    )


def rectangle(box: Boxes, intrinsics: Matrix) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom in pixels of one box in camera axes, not cut by an image; None if it is all behind."""
    corners = box.corners()[0]  # [8, 3]
    points = [corner for corner in corners if corner[2] >= _NEAREST]
    for one, other in _EDGES:
        a, b = corners[one], corners[other]
        if (a[2] - _NEAREST) * (b[2] - _NEAREST) < 0:
            points.append(a + (b - a) * (_NEAREST - a[2]) / (b[2] - a[2]))
    if not points:
        return None
    stacked = np.stack(points)
    pixels = stacked[:, :2] / stacked[:, 2:] @ intrinsics[:2, :2].T + intrinsics[:2, 2]
    (left, top), (right, bottom) = pixels.min(axis=0), pixels.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _cast(
    shot: CameraShot, picture: Picture, box_to_camera: Matrix, size: Matrix, cut: tuple[float, float, float, float]
) -> tuple[float, float]:
    """Shares of a grid of pixels over `cut` whose ray meets the box, and where something nearer is in the picture."""
    columns, rows = (
        np.unique(np.round(np.linspace(low, high, _RAYS)).astype(int))
        for low, high in ((cut[0], cut[2]), (cut[1], cut[3]))
    )
    v, u = (grid.ravel() for grid in np.meshgrid(rows, columns, indexing="ij"))  # [R]
    rays = np.linalg.solve(shot.intrinsics, np.stack([u, v, np.ones(len(u))])).T  # [R, 3], depth 1
    origin = -box_to_camera[:3, :3].T @ box_to_camera[:3, 3]
    ways = rays @ box_to_camera[:3, :3]  # [R, 3] in the box's axes
    with np.errstate(divide="ignore", invalid="ignore"):
        slabs = (np.stack([-size / 2, size / 2])[:, None] - origin) / ways  # [2, R, 3]
    enter, leave = np.fmin(*slabs).max(axis=1), np.fmax(*slabs).min(axis=1)  # [R], depths along the camera's axis
    hit = (enter < leave) & (leave > 0)
    hidden = hit & (picture.depth[v, u] < np.maximum(enter, 0) - _HIDES)
    return float(hit.mean()), float(hidden.mean())
