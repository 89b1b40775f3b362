"""Which points a camera cannot see, because others stand before them: the sensors are not in one place.

A z-buffer of the scan itself: the depth of the nearest point in every cell of the image. A scan is sparse, and between
two of its rows on a near thing the buffer would let far points through, so gaps are closed: what lies between two near
cells of one column, at most a row's distance from each, is near too (a morphological closing of the depth image, as
Ku et al., "In Defense of Classical Image Processing: Fast Depth Completion on the CPU", CRV 2018, densify scans). A
nearer point on one side alone hides nothing: the road in front of a point is always nearer, and always below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix
from clever3d.errors import InputError


@dataclass(frozen=True)
class OcclusionConfig:
    """Cells and tolerance of the test (our choice, set on synthetic streets where the truth is known)."""

    width: float = 0.4
    """Width of a cell, degrees: a little more than the step from shot to shot (HDL-32E at 20 Hz: 0.33)."""
    height: float = 0.1
    """Height of a cell, degrees: a row of the scan each, so that a slanting road stays below itself."""
    gap: float | None = None
    """Distance of the scan's rows, degrees. None takes it from the scan: the upper quartile of the gaps in a column."""
    relative: float = 0.1
    """A point is hidden if it is farther than what stands before it by this share of that depth ..."""
    absolute: float = 0.5
    """... and by so many metres more."""

    def __post_init__(self) -> None:
        sizes = (self.gap or 0.0, self.relative, self.absolute)
        if not (self.width > 0 and self.height > 0 and min(sizes) >= 0):
            raise InputError(f"occlusion test: cells must be positive, the rest 0 or more; got {self}")


def hidden(
    pixels: Matrix, depth: NDArray[np.floating], camera: Camera, config: OcclusionConfig | None = None
) -> NDArray[np.bool_]:
    """Which of M points in view are hidden behind others of them: bool [M].

    pixels [M, 2] and depth [M] are as `camera.project` gives them, all finite. Angles become pixels by the focal
    length, as near the axis.
    """
    config = config or OcclusionConfig()
    if not len(pixels):
        return np.zeros(0, dtype=bool)
    edges = np.tan(np.deg2rad([config.width, config.height])) * np.diag(camera.intrinsics)[:2]  # [2] pixels
    cells = np.floor(pixels / edges).astype(np.int64)  # [M, 2]
    cells -= cells.min(axis=0)
    columns, rows = cells.max(axis=0) + 1
    flat = cells[:, 1] * columns + cells[:, 0]
    nearest = np.full(rows * columns, np.inf)
    order = np.argsort(-depth, kind="stable")  # of equal cells the last one written stays: the nearest
    nearest[flat[order]] = depth[order]
    buffer = nearest.reshape(rows, columns)
    reach = _row_distance(buffer) if config.gap is None else round(config.gap / config.height)
    limit = _close_columns(buffer, reach) * (1 + config.relative) + config.absolute
    behind: NDArray[np.bool_] = depth > limit.reshape(-1)[flat]
    return behind


def _row_distance(buffer: Matrix) -> int:
    """Upper quartile of the steps, in cells, from one occupied cell [R, C] of a column to the next."""
    column, row = np.nonzero(np.isfinite(buffer).T)
    steps = np.diff(row)[np.diff(column) == 0]
    return int(np.quantile(steps, 0.75)) if len(steps) else 0


def _close_columns(buffer: Matrix, reach: int) -> Matrix:
    """For each cell [R, C]: the larger of the nearest depths within `reach` cells above and below, itself included."""
    above, below = buffer.copy(), buffer.copy()
    for step in range(1, min(reach, len(buffer) - 1) + 1):
        np.minimum(above[step:], buffer[:-step], out=above[step:])
        np.minimum(below[:-step], buffer[step:], out=below[:-step])
    closed: Matrix = np.maximum(above, below)
    return closed
