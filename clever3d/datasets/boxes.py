"""Annotated boxes of one frame, in the axes of its points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix
from clever3d.errors import InputError


@dataclass(frozen=True, eq=False)
class Boxes:
    """B oriented boxes in the frame's points' axes (FLU, metres).

    centers [B, 3]: float64, the middle of the box (not of its bottom).
    sizes [B, 3]: float64, length (along the box's own x, its heading), width (own y), height (own z).
    rotations [B, 3, 3]: float64, whose columns are the box's own axes. Whole rotations, because a box that stands
    upright in the world is tilted in the axes of a tilted sensor; `yaws` is the heading alone.
    names: B class names as the data set has them.
    velocities [B, 3]: float64, m/s over ground, in the points' axes; NaN where unknown, None where there are none.
    track_ids: B names that are the same for one object in all frames of its scene; None where there are none.
    num_points: [B] how many points of the scan the data set says are inside, or None.
    """

    centers: Matrix
    sizes: Matrix
    rotations: Matrix
    names: tuple[str, ...]
    velocities: Matrix | None = None
    track_ids: tuple[str, ...] | None = None
    num_points: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        shapes = {"centers": (count, 3), "sizes": (count, 3), "rotations": (count, 3, 3)}
        if self.velocities is not None:
            shapes["velocities"] = (count, 3)
        for field, shape in shapes.items():
            if getattr(self, field).shape != shape:
                raise InputError(f"boxes: {field} has shape {getattr(self, field).shape}, expected {shape}")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def empty(cls) -> Boxes:
        """No boxes."""
        return cls(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3, 3)), ())

    @property
    def yaws(self) -> Matrix:
        """Heading [B], radians in (-pi, pi]: the angle of each box's x axis in the xy plane, 0 forward, pi/2 left."""
        angles: Matrix = np.arctan2(self.rotations[:, 1, 0], self.rotations[:, 0, 0])
        return angles

    def corners(self) -> Matrix:
        """The corners [B, 8, 3]: bottom four, then top four, counter-clockwise from front left, seen from above."""
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        unit = np.array([[*xy, z] for z in (-1, 1) for xy in signs]) / 2  # [8, 3]
        local = unit * self.sizes[:, None]  # [B, 8, 3]
        corners: Matrix = local @ self.rotations.transpose(0, 2, 1) + self.centers[:, None]
        return corners

    def contains(self, xyz: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which points [N, 3] lie in which box, the surface included: bool [B, N]."""
        inside = np.zeros((len(self), len(xyz)), dtype=bool)
        for row, (center, size, rotation) in enumerate(zip(self.centers, self.sizes, self.rotations, strict=True)):
            near = np.flatnonzero(np.abs(xyz - center).max(axis=1) <= np.linalg.norm(size) / 2)
            local = (xyz[near] - center) @ rotation
            inside[row, near] = (np.abs(local) <= size / 2).all(axis=1)
        return inside

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Boxes:
        """The boxes of a mask [B] or of row numbers."""
        numbers = np.arange(len(self))[rows]
        return Boxes(
            centers=self.centers[numbers],
            sizes=self.sizes[numbers],
            rotations=self.rotations[numbers],
            names=tuple(self.names[i] for i in numbers),
            velocities=None if self.velocities is None else self.velocities[numbers],
            track_ids=None if self.track_ids is None else tuple(self.track_ids[i] for i in numbers),
            num_points=None if self.num_points is None else self.num_points[numbers],
        )
