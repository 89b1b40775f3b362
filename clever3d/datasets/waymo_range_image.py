"""From a Waymo range image to points.

Source of the formulas: waymo-research/waymo-open-dataset, `utils/range_image_utils.py` (compute_inclination,
compute_range_image_polar, compute_range_image_cartesian) and `utils/transform_utils.py` (get_rotation_matrix).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix, apply, inverse


@dataclass(frozen=True, eq=False)
class Laser:
    """extrinsic [4, 4]: LiDAR to vehicle. inclinations: of the beams, radians, from the lowest up, or None where they
    are spread evenly between `lowest` and `highest`."""

    extrinsic: Matrix
    lowest: float
    highest: float
    inclinations: Matrix | None

    def rows(self, height: int) -> Matrix:
        """The inclination of each of the image's rows [H], from the top down."""
        if self.inclinations is not None:
            return self.inclinations[::-1]
        upward: Matrix = self.lowest + (np.arange(height) + 0.5) / height * (self.highest - self.lowest)
        return upward[::-1]

    def columns(self, width: int) -> Matrix:
        """The azimuth of each of the image's columns [W] in the LiDAR's own axes, radians.

        The middle column looks along the vehicle's x, the first one behind it, and they go clockwise.
        """
        ratio = (width - np.arange(width) - 0.5) / width
        azimuths: Matrix = (2 * ratio - 1) * np.pi - np.arctan2(self.extrinsic[1, 0], self.extrinsic[0, 0])
        return azimuths


def to_vehicle(
    ranges: NDArray[np.floating], laser: Laser, pixel_poses: NDArray[np.floating] | None, vehicle_to_world: Matrix
) -> Matrix:
    """The points [N, 3] of the pixels with range > 0, row by row, in the vehicle's axes at the frame's time.

    ranges [H, W]: metres. pixel_poses [H, W, 6]: roll, pitch, yaw, x, y, z of the vehicle in the world at each pixel's
    own time; without them the vehicle counts as standing for the tenth of a second that the turn takes.
    vehicle_to_world [4, 4]: at the frame's time.
    """
    row, column = np.nonzero(ranges > 0)
    reach = ranges[row, column].astype(np.float64)
    inclination, azimuth = laser.rows(ranges.shape[0])[row], laser.columns(ranges.shape[1])[column]  # [N]
    flat = reach * np.cos(inclination)
    sensor = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), reach * np.sin(inclination)], axis=1)
    points = apply(laser.extrinsic, sensor)  # vehicle axes at the pixel's time
    if pixel_poses is None:
        return points
    poses = pixel_poses[row, column].astype(np.float64)  # [N, 6]
    world = np.einsum("nij,nj->ni", _rotations(poses[:, :3]), points) + poses[:, 3:]
    return apply(inverse(vehicle_to_world), world)


def _rotations(angles: Matrix) -> Matrix:
    """Rz(yaw) Ry(pitch) Rx(roll) [N, 3, 3] of (roll, pitch, yaw) [N, 3]."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles).T, np.sin(angles).T
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)
