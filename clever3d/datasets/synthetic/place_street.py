"""A street: parked vehicles on one or both sides, gardens behind fences or shops at the pavement, traffic both ways.

Widths, distances and speeds are our choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic import furniture, plants
from clever3d.datasets.synthetic.ground import KERB, Course
from clever3d.datasets.synthetic.roadside import (
    Side,
    backdrop,
    column,
    furnish,
    gardens,
    groves,
    lane,
    park,
    patches,
    riders,
    terrace,
    walkers,
)
from clever3d.datasets.synthetic.scene import Builder
from clever3d.datasets.synthetic.traffic import Motion, swinging

_BEGIN, _END = -130.0, 380.0
_STRIP = 1.7  # m: between kerb and pavement, for trees, lamps and signs
_MIX = {"car": 0.75, "van": 0.12, "bus": 0.06, "truck": 0.07}


def street(b: Builder) -> Callable[[float], Matrix]:
    """Builds the street; the way of the vehicle."""
    rng = b.rng
    bend, wavelength, phase = (float(rng.uniform(*span)) for span in ((-0.22, 0.22), (260, 420), (0, 2 * np.pi)))
    course = Course.bending(_BEGIN - 20, _END + 20, bend, wavelength, phase)
    urban, cycle, width = rng.random() < 0.5, rng.random() < 0.4, float(rng.uniform(3.1, 3.5))
    layouts = {sign: _cross_section(b, course, sign, width, urban, cycle) for sign in (1, -1)}
    (left, left_lines, left_kinds), (right, right_lines, right_kinds) = layouts[1], layouts[-1]
    lines = [-x for x in right_lines[::-1]] + [0.0, *left_lines]
    s = np.arange(_BEGIN, _END + 1, 2.5)
    kinds = np.tile(np.array(right_kinds[::-1] + left_kinds, dtype="<U8"), (len(s) - 1, 1))
    b.still.append(b.paver.lay(course, s, lines, kinds))
    b.still.append(b.paver.dashes(course, (_BEGIN, _END), 0.0, 3.0, 4.5, 0.13))
    patches(b, course, (_BEGIN, _END), width)
    zebra = float(rng.uniform(25, 90))
    reach = min(left.kerb, right.kerb)
    for at in np.arange(-reach + 0.3, reach - 0.5, 1.0):
        b.still.append(b.paver.paint(course, (zebra - 1.6, zebra + 1.6), (at, at + 0.5)))
    trees, garden_trees = groves(b, 3, 0.0, (6.5, 10), 0.75), groves(b, 4, 0.35, (5, 11), 1.1)
    for side, side_kinds in ((left, left_kinds), (right, right_kinds)):
        parking = bool({"parking", "bays"} & set(side_kinds))
        edge = side.sign * width
        if cycle:
            b.still.append(b.paver.dashes(course, (_BEGIN, _END), edge, 1.0, 1.0, 0.12))
        elif parking:
            b.still.append(b.paver.paint(course, (_BEGIN, _END), (edge, edge + side.sign * 0.1)))
        if urban:
            terrace(b, side, (2, 5), 0.25, 0.55)
        else:
            gardens(b, side, garden_trees)
            _tufts(b, side)
        furnish(b, side, trees, tree_gap=(8, 15) if rng.random() < 0.75 else None)
        if parking:
            park(b, side, float(rng.uniform(0.5, 0.85)), (zebra - 4, zebra + 4))
        walkers(b, side, int(rng.integers(14, 26)))
        sign = furniture.sign(b.palette, "crossing")
        turned = 0.0 if side.sign < 0 else np.pi
        b.put(sign, course, zebra - side.sign * 2.2, side.sign * (side.kerb + 0.4), turned, KERB)
    backdrop(b, (120.0, 0.0), 330.0, urban)
    return _traffic(b, course, width, cycle)


def _cross_section(
    b: Builder, course: Course, sign: int, width: float, urban: bool, cycle: bool
) -> tuple[Side, list[float], list[str]]:
    """One side of the street: what it is, the l where surfaces change (without 0), and the surfaces from 0 outwards."""
    rng, lines, kinds = b.rng, [width], ["road"]
    if cycle:
        lines, kinds = [*lines, lines[-1] + 1.6], [*kinds, "cycle"]
    if rng.random() < (0.75 if sign > 0 else 0.6):
        lines, kinds = [*lines, lines[-1] + 2.2], [*kinds, "parking" if rng.random() < 0.5 else "bays"]
    kerb, walk = lines[-1], float(rng.uniform(2.0, 3.6))
    edge = kerb + _STRIP + walk
    houses = edge + (0.2 if urban else float(rng.uniform(5, 8)))
    side = Side(course, sign, _BEGIN, _END, kerb, (kerb + _STRIP, edge), houses)
    lines += [kerb + 0.15, kerb + _STRIP, edge, edge + 4, edge + 14, 60.0, 110.0]
    kinds += ["kerb", "sidewalk", "sidewalk", "sidewalk"] if urban else ["kerb", "verge", "sidewalk", "lawn"]
    return side, lines, [*kinds, "lawn", "lawn", "field"]


def _tufts(b: Builder, side: Side) -> None:
    """Longer grass here and there on the strip along the kerb."""
    s = b.rng.uniform(-40, 260, 400)
    xy = side.course(s, side.sign * b.rng.uniform(side.kerb + 0.25, side.walk[0] - 0.1, 400))
    b.still.append(plants.tufts(b.rng, b.palette, np.column_stack([xy, b.land.height(xy) + KERB - 0.03])))


def _traffic(b: Builder, course: Course, width: float, cycle: bool) -> Callable[[float], Matrix]:
    """What moves on the road. The vehicle keeps to the right; all on its lane move as it does."""
    rng = b.rng
    mine = lane(course, -width / 2, -100.0, _END)
    motion = Motion.of(swinging(rng, float(rng.uniform(6.5, 9.5)), 0.3), b.duration)
    column(b, mine, motion, 100 + float(rng.uniform(14, 26)), 330, (12, 40), _MIX)
    column(b, mine, motion, -60, 82, (14, 40), {"car": 0.9, "van": 0.1})
    oncoming = lane(course, width / 2, _END, _BEGIN)
    meeting = Motion.of(swinging(rng, float(rng.uniform(7, 11)), 0.15), b.duration)
    column(b, oncoming, meeting, 0, 490, (9, 45), _MIX)
    riders(b, oncoming, [508.0], meeting, "motorcyclist")
    for sign in (1, -1) if cycle else ():
        path = lane(course, sign * (width + 0.8), *((_BEGIN, _END) if sign < 0 else (_END, _BEGIN)))
        places = sorted(rng.choice(np.arange(20, 480, 9.0), 12, replace=False).tolist())
        riders(b, path, places, Motion.steady(float(rng.uniform(4.0, 6.5))), "bicyclist")
    return b.drive(mine, motion, 100.0)
