"""KITTI's calibration for a synthetic rig: four rectified cameras in a row, of which 2 and 3 take the pictures.

Source of the formulas: the KITTI object development kit, pixel = P2 * R0_rect * Tr_velo_to_cam * X. Camera 2 sits 6 cm
left of camera 0 and R0_rect is no identity, as in the real cars: a reader that leaves one of them out is found out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clever3d.datasets.geometry import Matrix, inverse, rigid
from clever3d.datasets.synthetic.layouts.base import camera_to_world, lidar_to_world
from clever3d.datasets.synthetic.truth import CameraShot, WorldFrame

#: x of cameras 0..3 in camera 0's axes, metres (KITTI, 2011_09_26, rounded).
_PLACES = (0.0, 0.54, -0.06, 0.48)
#: Largest difference between where P3 says that camera 3 is and where a camera is that may be it, and between their
#: intrinsics (metres, pixels).
_EXACT = 1e-5
#: R0_rect: half a degree about x, then about y, then about z (our choice, KITTI's is as large).
_RECTIFYING = np.deg2rad((-0.25, 0.4, 0.5))


@dataclass(frozen=True, eq=False)
class Calibration:
    """projections [4, 3, 4]: P0..P3. rectification [3, 3]. velo_to_cam, velo_to_rect [4, 4]: to camera 0 before and
    after rectification."""

    projections: Matrix
    rectification: Matrix
    velo_to_cam: Matrix
    velo_to_rect: Matrix

    @classmethod
    def of(cls, frame: WorldFrame, shot: CameraShot) -> Calibration:
        """`shot` as camera 2. The vehicle's motion between scan and picture, if any, is in the transforms."""
        to_camera_2 = inverse(camera_to_world(shot)) @ lidar_to_world(frame)
        projections = np.stack([np.column_stack([shot.intrinsics, shot.intrinsics @ [-x, 0, 0]]) for x in _PLACES])
        velo_to_rect = rigid(np.eye(3), [_PLACES[2], 0, 0]) @ to_camera_2
        rectification = _rectification()
        return cls(projections, rectification, inverse(rigid(rectification, np.zeros(3))) @ velo_to_rect, velo_to_rect)

    def images(self, frame: WorldFrame, shots: Sequence[CameraShot]) -> Iterator[tuple[str, CameraShot]]:
        """`image_2`, which is the first of `shots`, and `image_3` if another one is where P3 says."""
        yield "image_2", shots[0]
        to_camera_3 = rigid(np.eye(3), [-_PLACES[3], 0, 0]) @ self.velo_to_rect
        for shot in shots[1:]:
            place = inverse(camera_to_world(shot)) @ lidar_to_world(frame) - to_camera_3
            same = shot.size == shots[0].size and np.abs(shot.intrinsics - shots[0].intrinsics).max() < _EXACT
            if same and np.abs(place).max() < _EXACT:
                yield "image_3", shot
                return

    def projection_lines(self) -> list[str]:
        """`P0:` ... `P3:`."""
        return [line(f"P{number}", projection) for number, projection in enumerate(self.projections)]


def line(key: str, values: Matrix) -> str:
    """A line of KITTI's calibration files, `key: numbers`."""
    return f"{key}: {numbers(values)}"


def numbers(values: Iterable[float] | Matrix) -> str:
    """Numbers with 12 digits behind the point, as KITTI's calibrations have them, 4x4 matrices without the last row."""
    array = np.asarray(values)
    flat = array[:3].ravel() if array.shape == (4, 4) else array.ravel()
    return " ".join(f"{value:.12e}" for value in flat)


def _rectification() -> Matrix:
    rotation = np.eye(3)
    for axis, angle in enumerate(_RECTIFYING):
        one, other = (index for index in range(3) if index != axis)
        turn = np.eye(3)
        turn[[one, other], [one, other]] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    return rotation
