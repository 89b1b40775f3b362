"""What points alone tell about their axes and their unit: a LiDAR turns around an upright axis and sees the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clever3d.evaluate.calibration.edges import Array

#: Median ranges of LiDAR scans in metres lie between these (our choice; 5 to 25 m in all sets at hand). Beyond, the
#: unit is the one that brings it inside.
_MEDIAN_RANGE = (0.7, 200.0)
UNITS = {"m": 1.0, "cm": 100.0, "mm": 1000.0}
#: The points' elevation over the spin axis: 90 % lie within this of the plane across it (LiDARs with beams up to 45
#: degrees keep it; radians), and the other axes are clearly worse.
_FLAT = np.radians(40.0)
_CLEARER = 1.35
#: Height of a slice of points that may be the ground, metres.
_SLICE = 0.3


@dataclass(frozen=True)
class CloudFacts:
    """up: index of the axis the sensor turns around and its sign, such as (2, 1.0); None where it is not clear.
    ground: height of the ground over the sensor along `up` (negative), None if unclear. unit: ``m``, ``cm``, ``mm``, or
    ``?`` where none fits. median_range: in the points' own unit."""

    up: tuple[int, float] | None
    ground: float | None
    unit: str
    median_range: float

    @property
    def per_metre(self) -> float:
        """How many of the points' units are a metre."""
        return UNITS.get(self.unit, 1.0)


def cloud_facts(xyz: NDArray[np.floating]) -> CloudFacts:
    """Facts of points [N, 3], finite and none at the origin."""
    distance = np.linalg.norm(xyz, axis=1)
    median = float(np.median(distance))
    fitting = [name for name, factor in UNITS.items() if _MEDIAN_RANGE[0] <= median / factor <= _MEDIAN_RANGE[1]]
    # Metres if they are possible at all; of cm and mm, the one with which the median range is nearer to 10 m.
    nearest = min(fitting, key=lambda name: abs(np.log(median / UNITS[name] / 10.0)), default="?")
    unit = "m" if "m" in fitting else nearest
    metres = xyz / UNITS.get(unit, 1.0)
    axis = _spin_axis(metres)
    if axis is None:
        return CloudFacts(None, None, unit, median)
    sign, ground = _ground_side(metres, axis)
    return CloudFacts(None if sign == 0 else (axis, sign), ground, unit, median)


def spin_axes(up: tuple[int, float] | None) -> Array:
    """Right-handed axes [3, 3], one a row, whose third one is `up` (z where it is None)."""
    axis, sign = up or (2, 1.0)
    third = sign * np.eye(3)[axis]
    first = np.eye(3)[(axis + 1) % 3]
    return np.stack([first, np.cross(third, first), third])


def _spin_axis(xyz: NDArray[np.floating]) -> int | None:
    distance = np.linalg.norm(xyz, axis=1)
    spread = [float(np.quantile(np.abs(np.arcsin(np.clip(xyz[:, k] / distance, -1, 1))), 0.9)) for k in range(3)]
    best, second = sorted(spread)[:2]
    return int(np.argmin(spread)) if best < _FLAT and second > _CLEARER * best else None


def _ground_side(xyz: NDArray[np.floating], axis: int) -> tuple[float, float | None]:
    """On which side of the sensor along `axis` the ground is: (1, height) if below; (-1, ...) if above; (0, None).

    The ground is the fullest slice within 25 m; walls and trees fill many slices a little, the ground one.
    """
    along = xyz[:, axis]
    around = np.delete(xyz, axis, axis=1)
    near = along[(np.hypot(around[:, 0], around[:, 1]) < 25.0) & (np.abs(along) < 6.0)]
    if len(near) < 200:
        return 0.0, None
    counts, borders = np.histogram(near, bins=np.arange(-6.0, 6.0 + _SLICE, _SLICE))
    middle = (borders[:-1] + borders[1:]) / 2
    below = int(np.where(middle < -0.15, counts, 0).max())
    above = int(np.where(middle > 0.15, counts, 0).max())
    if below > 1.3 * above:
        return 1.0, float(middle[np.where(middle < -0.15, counts, -1).argmax()])
    if above > 1.3 * below:
        return -1.0, -float(middle[np.where(middle > 0.15, counts, -1).argmax()])
    return 0.0, None
