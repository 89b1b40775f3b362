"""How things move: paths over ground, distances over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clever3d.datasets.geometry import Matrix

_STEP = 0.02  # s
#: Seconds before the first and after the last frame that motions are known for.
MARGIN = 2.0
#: Half of the distance over which a heading is taken, about a wheelbase, in metres.
_HALF_BASE = 1.4


@dataclass(frozen=True, eq=False)
class Path:
    """A line over ground: points [M, 2] and the distance of each from the first [M]. Both ends go on straight."""

    points: Matrix
    distance: Matrix

    @classmethod
    def through(cls, points: ArrayLike) -> Path:
        """Along a polyline [M, 2]."""
        line = np.asarray(points, dtype=np.float64)
        steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
        line = line[np.concatenate([[True], steps > 1e-9])]
        return cls(line, np.concatenate([[0.0], np.cumsum(steps[steps > 1e-9])]))

    def position(self, d: float) -> Matrix:
        """World xy [2] after d metres."""
        end = self.distance[-1]
        inside = min(max(d, 0.0), end)
        at: Matrix = np.array([np.interp(inside, self.distance, self.points[:, k]) for k in range(2)])
        if d < 0:
            return np.asarray(at + d * _unit(self.points[1] - self.points[0]))
        if d > end:
            return np.asarray(at + (d - end) * _unit(self.points[-1] - self.points[-2]))
        return at

    def heading(self, d: float) -> float:
        """Radians after d metres, smoothed over a wheelbase."""
        ahead = self.position(d + _HALF_BASE) - self.position(d - _HALF_BASE)
        return float(np.arctan2(ahead[1], ahead[0]))


def _unit(vector: Matrix) -> Matrix:
    unit: Matrix = vector / np.linalg.norm(vector)
    return unit


@dataclass(frozen=True, eq=False)
class Motion:
    """Metres driven [K] at times [K]."""

    times: Matrix
    driven: Matrix

    @classmethod
    def of(cls, speed: Callable[[float, float], float], duration: float) -> Motion:
        """The integral of speed(metres driven, seconds) from 0 at time 0, by Heun's method."""
        times = np.arange(-MARGIN, duration + MARGIN, _STEP)
        driven = np.zeros(len(times))
        zero = int(np.argmin(np.abs(times)))
        for k in range(zero, len(times) - 1):
            first = speed(driven[k], times[k])
            second = speed(driven[k] + first * _STEP, times[k] + _STEP)
            driven[k + 1] = driven[k] + (first + second) / 2 * _STEP
        for k in range(zero, 0, -1):
            driven[k - 1] = driven[k] - speed(driven[k], times[k]) * _STEP
        return cls(times, driven)

    @classmethod
    def steady(cls, speed: float) -> Motion:
        """The same speed for ever."""
        return cls(np.array([-1e3, 1e3]), np.array([-1e3, 1e3]) * speed)

    def __call__(self, time: float) -> float:
        """Metres driven at a time."""
        return float(np.interp(time, self.times, self.driven))


def swinging(rng: np.random.Generator, speed: float, swing: float) -> Callable[[float, float], float]:
    """A speed that swings slowly about `speed` by the share `swing`."""
    period, phase = rng.uniform(7, 14), rng.uniform(0, 2 * np.pi)

    def at(_: float, time: float) -> float:
        return speed * (1 + swing * float(np.sin(2 * np.pi * time / period + phase)))

    return at


def arc(start: Matrix, heading: float, angle: float, radius: float) -> Matrix:
    """Points [M, 2] of a turn by `angle` radians (left positive) from a start along a heading, about 0.5 m apart."""
    count = max(4, int(abs(angle) * radius / 0.5))
    turned = np.linspace(0, angle, count + 1)
    side = np.sign(angle)
    center = start + side * radius * np.array([-np.sin(heading), np.cos(heading)])
    out = heading + turned - side * np.pi / 2
    points: Matrix = center + radius * np.stack([np.cos(out), np.sin(out)], axis=1)
    return points
