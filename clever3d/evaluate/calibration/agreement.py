"""How well the edges of scans fall on the edges of images, here and a little beside: a score with its own controls.

The score at a shift is how much stronger the image's gradient is at the shifted edges than at shifted points of any
kind. A right calibration has a sharp peak at no shift; a wrong one is as good beside as it is there. What is beside,
1.2 to 3 degrees away, is therefore the control, and the score is given in its standard deviations (`Evidence.z`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.camera import Camera
from clever3d.evaluate.calibration.edges import KINDS, Array, ImageEdges, ScanEdges

#: Nearest depth that counts, metres: what is nearer is seen at too different a place by both sensors.
MIN_DEPTH = 1.5
#: A calibration is right to about this, degrees: rays are no denser, and KITTI's own is off by 0.1 to 0.2.
CENTER = 0.35
_CONTROL = (1.2, 3.0)  # degrees
#: A kind of edges takes part from this sum of weights on.
_LEAST_WEIGHT = 5.0
#: The controls' standard deviation is at least this over the root of the weight, and at least 1 for all kinds together:
#: controls that agree by chance, as in a corner of an image, are no certainty. A gradient's own is about 0.6.
_LEAST_SPREAD = 0.3
#: Points of any kind that are drawn for comparison, per scan and camera.
_COMPARED = 2000


@dataclass(frozen=True, eq=False)
class Shifts:
    """Shifts [S, 2] of the picture of the points, degrees (right, down), and which of them are centre and control."""

    degrees: Array
    center: NDArray[np.bool_]
    control: NDArray[np.bool_]


def few_shifts() -> Shifts:
    """13 about the centre and 60 controls: enough to compare calibrations."""
    near = np.array([(x, y) for x in range(-2, 3) for y in range(-2, 3) if x * x + y * y <= 4]) * 0.15
    rings = [
        (radius * np.cos(angle), radius * np.sin(angle))
        for ring, radius in enumerate(np.linspace(*_CONTROL, 4))
        for angle in 2 * np.pi * (np.arange(15) + ring / 4) / 15
    ]
    return _shifts(np.concatenate([near, np.array(rings)]))


def grid_shifts(reach: float = 3.0, step: float = 0.15) -> Shifts:
    """A square of shifts around none, row by row."""
    axis = np.arange(-round(reach / step), round(reach / step) + 1) * step
    right, down = np.meshgrid(axis, axis)
    return _shifts(np.stack([right.ravel(), down.ravel()], axis=1))


def _shifts(degrees: Array) -> Shifts:
    radius = np.hypot(degrees[:, 0], degrees[:, 1])
    return Shifts(degrees, radius <= CENTER, (radius >= _CONTROL[0] - 1e-9) & (radius <= _CONTROL[1] + 1e-9))


@dataclass(frozen=True, eq=False)
class Evidence:
    """Sums over frames, [KINDS, S] each: gradients at edges, what they would be at points of any kind, weights.

    in_view: points of the scans in the images. It adds up over frames with `+`.
    """

    shifts: Shifts
    found: Array
    expected: Array
    weight: Array
    in_view: int

    def __add__(self, other: Evidence) -> Evidence:
        return replace(
            self,
            found=self.found + other.found,
            expected=self.expected + other.expected,
            weight=self.weight + other.weight,
            in_view=self.in_view + other.in_view,
        )

    def scores(self) -> Array:
        """Standard deviations [S] of the controls above their mean, all kinds together; 0 where nothing is known."""
        total = np.zeros(self.found.shape[1])
        control = self.shifts.control
        for found, expected, weight in zip(self.found, self.expected, self.weight, strict=True):
            if weight[self.shifts.center].min() < _LEAST_WEIGHT:
                continue
            score = (found - expected) / np.maximum(weight, 1e-9)
            score[weight < 0.5 * weight.max()] = np.nan  # shifted out of the picture
            if np.isfinite(score[control]).sum() >= control.sum() / 2:
                least = _LEAST_SPREAD / np.sqrt(weight.max())
                total += np.nan_to_num(_standard(score, control, least))
        return np.nan_to_num(_standard(total, control, 1.0)) if total.any() else total

    @property
    def z(self) -> float:
        """The best score at the centre: about 0 to 2 for a wrong calibration, 4 and more for a right one."""
        return float(self.scores()[self.shifts.center].max())

    def peak(self) -> tuple[tuple[float, float], float]:
        """The shift (right, down; degrees) with the best score, or the middle of several, and that score."""
        scores = self.scores()
        # Shifts finer than a pixel have equal scores.
        best = self.shifts.degrees[scores >= scores.max() - 1e-9].mean(axis=0)
        return (float(best[0]), float(best[1])), float(scores.max())


def _standard(score: Array, control: NDArray[np.bool_], least: float) -> Array:
    middle = np.nanmedian(score[control])
    spread = 1.4826 * np.nanmedian(np.abs(score[control] - middle))  # as the standard deviation of a normal one
    standard: Array = (score - middle) / max(float(spread), least)
    return standard


@dataclass(frozen=True, eq=False)
class Scene:
    """One scan, ready to be compared: its edges and a sample of its points [C, 3], in the axes of the frame."""

    edges: ScanEdges
    sample: Array
    count: int

    def moved(self, matrix: Array) -> Scene:
        """Points and edges turned (or mirrored, scaled) by a matrix [3, 3]."""
        edges = replace(self.edges, first=self.edges.first @ matrix.T, second=self.edges.second @ matrix.T)
        return replace(self, edges=edges, sample=self.sample @ matrix.T)


def make_scene(xyz: NDArray[np.floating], edges: ScanEdges) -> Scene:
    """A scan with its edges; every n-th point is kept for comparison."""
    every = max(1, len(xyz) // (8 * _COMPARED))
    return Scene(edges, xyz[::every].astype(np.float64), len(xyz))


def measure(scene: Scene, camera: Camera, image: ImageEdges, shifts: Shifts, roll: float = 0.0) -> Evidence:
    """The evidence of one image. roll: degrees by which the picture of the points is turned about the middle."""
    first, first_depth = camera.project(scene.edges.first)
    second, second_depth = camera.project(scene.edges.second)
    sample, sample_depth = camera.project(scene.sample)
    middle = (first + second) / 2
    if roll:
        center = np.array([camera.intrinsics[0, 2], camera.intrinsics[1, 2]])
        middle, sample = _turned(middle, center, roll), _turned(sample, center, roll)
    reach = float(np.abs(shifts.degrees).max())
    per_degree = np.radians(1) * camera.intrinsics[0, 0] * image.scale
    margin = int(np.ceil(reach * per_degree)) + 1
    offsets = np.rint(shifts.degrees * per_degree).astype(np.intp)  # [S, 2]

    seen = (first_depth > MIN_DEPTH) & (second_depth > MIN_DEPTH)
    edge_pixels, edge_rows = _inside(middle, seen, image, margin)
    point_pixels, point_rows = _inside(sample, sample_depth > MIN_DEPTH, image, margin)
    thinning = max(1, len(point_rows) // _COMPARED)
    direction = np.abs(first - second)[edge_rows]
    lies = direction[:, 0] >= direction[:, 1]  # from side to side: the border between them is upright
    weight, kind = scene.edges.weight[edge_rows], scene.edges.kind[edge_rows]

    found, expected, total = (np.zeros((KINDS, len(offsets))) for _ in range(3))
    inside = _padded(np.ones_like(image.across), margin)
    for gradients, chosen in ((image.across, lies), (image.down, ~lies)):
        padded = _padded(gradients, margin)
        usual = _summed(padded, point_pixels[::thinning], None, offsets) / np.maximum(
            _summed(inside, point_pixels[::thinning], None, offsets), 1
        )
        for one in range(KINDS):
            rows = chosen & (kind == one)
            weights = _summed(inside, edge_pixels[rows], weight[rows], offsets)
            found[one] += _summed(padded, edge_pixels[rows], weight[rows], offsets)
            expected[one] += weights * usual
            total[one] += weights
    share = scene.count / max(len(scene.sample), 1)
    unshifted = _count_inside(point_pixels, image, margin)
    return Evidence(shifts, found, expected, total, round(unshifted * share))


def _turned(pixels: Array, center: Array, degrees: float) -> Array:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned: Array = (pixels - center) @ np.array([[cos, sin], [-sin, cos]]) + center
    return turned


def _inside(
    pixels: Array, seen: NDArray[np.bool_], image: ImageEdges, margin: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places [M, 2] in the padded picture, and which rows they are, of what a shift may bring into the picture."""
    height, width = image.across.shape
    small = (pixels + 0.5) * image.scale - 0.5
    with np.errstate(invalid="ignore"):
        near = seen & (small > -margin).all(axis=1) & (small < np.array([width, height]) - 1 + margin).all(axis=1)
    rows = np.flatnonzero(near)
    return np.rint(small[rows]).astype(np.intp) + 2 * margin, rows


def _padded(values: NDArray[np.float32], margin: int) -> NDArray[np.float32]:
    return np.pad(values, 2 * margin)


def _summed(
    values: NDArray[np.float32], places: NDArray[np.intp], weight: Array | None, offsets: NDArray[np.intp]
) -> Array:
    """For each offset [S, 2], the sum of `values` at the places [M, 2] plus the offset."""
    width = values.shape[1]
    flat = values.ravel()
    start = places[:, 1] * width + places[:, 0]  # [M]
    steps = offsets[:, 1] * width + offsets[:, 0]  # [S]
    sums = np.empty(len(steps))
    for number, step in enumerate(steps):
        taken = flat[start + step]
        sums[number] = taken.sum() if weight is None else taken @ weight
    return sums


def _count_inside(places: NDArray[np.intp], image: ImageEdges, margin: int) -> int:
    height, width = image.across.shape
    column, row = places[:, 0] - 2 * margin, places[:, 1] - 2 * margin
    return int(((column >= 0) & (column < width) & (row >= 0) & (row < height)).sum())
