"""Where a scan and an image have edges: jumps of range and of intensity between neighbouring rays, and grey gradients.

The idea, that range edges fall on image edges where the calibration is right, is that of Levinson and Thrun,
"Automatic online calibration of cameras and lasers" (RSS 2013). The neighbours, the kinds of edges, the normalisation
and every threshold here are our choice, made on KITTI, nuScenes, SUSTechPOINTS and RELLIS-3D frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clever3d.errors import DataError

Array = NDArray[np.float64]

#: Kinds of edges: of an object seen from the side, of its top, of what is painted on a surface.
SIDE, TOP, PAINT = 0, 1, 2
KINDS = 3

#: Rays are sorted into rows of this height and columns of this width around the spin axis (radians); inside a row the
#: next point is the next ray of the same beam (or of one so near that it does not matter).
_ROW = np.radians(0.2)
_COLUMN = np.radians(0.3)
#: Rays further apart than this are no neighbours.
_SIDE_GAP = np.radians(1.2)
_TOP_GAP = np.radians(2.0)
#: A jump of range: at least so many metres, and at least this share of the nearer range.
_SIDE_JUMP, _SIDE_SHARE = 0.5, 0.07
_TOP_JUMP, _TOP_SHARE = 0.7, 0.15
#: A step of intensity: this much of the scan's ranks between the means of three rays on both sides, the range being
#: nearly the same.
_PAINT_STEP, _PAINT_SHARE = 0.35, 0.03
#: At most so many edges of one kind are kept of a scan, evenly thinned: enough, and quick.
_MOST = 12_000

#: Images are brought to this focal length: 0.15 degrees a pixel. Finer gains nothing, because rays are not denser.
WORK_FOCAL = 382.0
_SURROUNDINGS = 12  # half width, in pixels, of what a gradient is compared with
_STRONGEST = 3.0  # gradients count at most so many times their surroundings' mean


@dataclass(frozen=True, eq=False)
class ScanEdges:
    """M edges of one scan, each between two directions. first, second [M, 3]: points in the scan's axes on both sides
    of it, at the nearer range. weight [M]; kind [M]: SIDE, TOP or PAINT."""

    first: Array
    second: Array
    weight: Array
    kind: NDArray[np.int8]


def scan_edges(xyz: NDArray[np.floating], intensity: NDArray[np.floating] | None, up: Array) -> ScanEdges:
    """The edges of a scan [N, 3] (metres, finite, none at the origin) whose beams turn around the axis `up` [3, 3]:
    the rows are unit vectors, the third one up (see `cloud.spin_axes`)."""
    points = xyz.astype(np.float64)
    turned = points @ up.T
    distance = np.linalg.norm(turned, axis=1)
    azimuth = np.arctan2(turned[:, 1], turned[:, 0])
    elevation = np.arcsin(np.clip(turned[:, 2] / distance, -1, 1))
    found = []

    row = np.floor(elevation / _ROW)
    order = np.lexsort((azimuth, row))
    i, j = _neighbours(order, row, azimuth, _SIDE_GAP)
    near, far, jump = _jumps(i, j, distance, _SIDE_JUMP, _SIDE_SHARE)
    found.append((near, far, np.sqrt(jump / distance[near]), SIDE))
    if intensity is not None and np.ptp(intensity) > 0:
        found.append(_paint(order, row, azimuth, distance, intensity))

    column = np.floor(azimuth / _COLUMN)
    i, j = _neighbours(np.lexsort((elevation, column)), column, elevation, _TOP_GAP)
    near, far, jump = _jumps(i, j, distance, _TOP_JUMP, _TOP_SHARE)
    top = (elevation[far] > elevation[near]) & ~_ground_goes_on(turned, elevation, distance, near, far)
    found.append((near[top], far[top], np.sqrt(jump[top] / distance[near[top]]), TOP))

    parts = [_thinned(*one) for one in found]
    first, second, weight, kind = (np.concatenate(column) for column in zip(*parts, strict=True))
    scale = distance[first] / distance[second]
    return ScanEdges(points[first], points[second] * scale[:, None], np.minimum(weight, 1.0), kind.astype(np.int8))


def _neighbours(order: NDArray[np.intp], group: Array, angle: Array, gap: float) -> tuple[NDArray[np.intp], ...]:
    """Pairs of points that follow each other in `order`, in one group, nearer than `gap`."""
    i, j = order[:-1], order[1:]
    near = (group[i] == group[j]) & (angle[j] - angle[i] < gap)
    return i[near], j[near]


def _jumps(
    i: NDArray[np.intp], j: NDArray[np.intp], distance: Array, metres: float, share: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    swap = distance[i] > distance[j]
    near, far = np.where(swap, j, i), np.where(swap, i, j)
    jump = distance[far] - distance[near]
    large = (jump > metres) & (jump > share * distance[near])
    return near[large], far[large], jump[large]


def _ground_goes_on(
    turned: Array, elevation: Array, distance: Array, near: NDArray[np.intp], far: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Whether the farther point is about where the ground through the nearer one would be: no edge, a flat angle."""
    below = -turned[near, 2]
    expected = below / np.sin(np.maximum(-elevation[far], 0.003))
    level = np.abs(turned[far, 2] - turned[near, 2]) < 0.4
    goes_on: NDArray[np.bool_] = (below > 0) & level & (distance[far] < 1.3 * expected)
    return goes_on


def _paint(
    order: NDArray[np.intp], row: Array, azimuth: Array, distance: Array, intensity: NDArray[np.floating]
) -> tuple[NDArray[np.intp], NDArray[np.intp], Array, int]:
    """Steps between the mean ranks of the intensity of three rays before and three rays after."""
    ranks = np.empty(len(intensity))
    ranks[np.argsort(intensity, kind="stable")] = np.linspace(0, 1, len(intensity))
    line, groups, range_, angle = ranks[order], row[order], distance[order], azimuth[order]
    count = len(order) - 5
    if count < 1:
        nothing = np.zeros(0, dtype=np.intp)
        return nothing, nothing, np.zeros(0), PAINT
    before = sum(line[k : k + count] for k in range(3)) / 3
    after = sum(line[k : k + count] for k in range(3, 6)) / 3
    whole = (groups[:count] == groups[5 : 5 + count]) & (angle[5 : 5 + count] - angle[:count] < 3 * _SIDE_GAP)
    smooth = np.ones(count, dtype=bool)
    for k in range(5):
        smooth &= np.abs(range_[k + 1 : k + 1 + count] - range_[k : k + count]) < _PAINT_SHARE * range_[k : k + count]
    step = np.abs(after - before)
    # Of the steps that one border gives to neighbouring places, the largest is the border.
    peak = np.ones(count, dtype=bool)
    peak[1:] &= step[1:] >= step[:-1]
    peak[:-1] &= step[:-1] > step[1:]
    place = np.flatnonzero(whole & smooth & peak & (step > _PAINT_STEP))
    return order[place + 2], order[place + 3], step[place], PAINT


def _thinned(
    first: NDArray[np.intp], second: NDArray[np.intp], weight: Array, kind: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], Array, NDArray[np.int8]]:
    every = slice(None, None, max(1, -(-len(first) // _MOST)))
    return first[every], second[every], weight[every], np.full(len(first[every]), kind, dtype=np.int8)


@dataclass(frozen=True, eq=False)
class ImageEdges:
    """Gradients of a picture: across [H, W] of vertical lines, down [H, W] of horizontal ones, each relative to its
    surroundings. scale: pixels here for one of the file; size: (W, H) of the file."""

    across: NDArray[np.float32]
    down: NDArray[np.float32]
    scale: float
    size: tuple[int, int]


def image_edges(path: Path, focal: float, width: int | None = None) -> ImageEdges:
    """The gradients of an image with a focal length of `focal` pixels, where images have `width` pixels if it is given.

    Raises DataError if the image cannot be read.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes); copy it again")
        with Image.open(path) as image:
            size = image.size
            scale = min(1.0, WORK_FOCAL / focal * (1.0 if width is None else width / size[0]))
            small = (max(16, round(size[0] * scale)), max(16, round(size[1] * scale)))
            image.draft("L", (2 * small[0], 2 * small[1]))  # JPEGs are decoded at a half or a quarter where that does
            grey = image.convert("L").resize(small, Image.Resampling.BOX)
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); copy it again") from error
    light = np.log1p(np.asarray(grey, dtype=np.float32))  # a shadow's border is as strong in the dark as in the light
    down, across = (np.abs(gradient) for gradient in np.gradient(_mean(light, 1)))
    strength = np.hypot(across, down)
    usual = _mean(strength, _SURROUNDINGS) + 0.3 * strength.mean() + 1e-6
    return ImageEdges(
        across=np.minimum(across / usual, _STRONGEST).astype(np.float32),
        down=np.minimum(down / usual, _STRONGEST).astype(np.float32),
        scale=small[0] / size[0],
        size=size,
    )


def _mean(values: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """The mean over a square of 2 radius + 1 pixels, by summed areas; the border is repeated."""
    side = 2 * radius + 1
    padded = np.pad(values.astype(np.float64), radius, mode="edge")
    sums = np.pad(padded, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    area = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    mean: NDArray[np.float32] = (area / side**2).astype(np.float32)
    return mean
