"""Cars, vans, trucks and buses: side views swept across their width, with panes, wheels, lamps and plates.

Own axes: x ahead, y left, z up, the origin on the ground below the middle. Proportions and colours are our choice,
after common European vehicles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.materials import Color, Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, box, extrude, fan, merge, quads, tube

GLASS = Material((0.025, 0.03, 0.035), 0.05, mirror=0.14, shine=0.5)
RUBBER = Material((0.018, 0.018, 0.018), 0.07)
DARK = Material((0.03, 0.03, 0.032), 0.12, mirror=0.03)
RIM = Material((0.42, 0.43, 0.45), 0.35, mirror=0.25)
HEADLIGHT = Material((0.75, 0.77, 0.8), 0.6, mirror=0.3, glow=0.35)
TAILLIGHT = Material((0.45, 0.015, 0.01), 0.9, mirror=0.12, glow=0.25)
INDICATOR = Material((0.8, 0.3, 0.02), 0.8, mirror=0.1)
PLATE = Material((0.75, 0.75, 0.7), 1.6, tile="plate", tile_size=0)
CHROME = Material((0.5, 0.5, 0.52), 0.4, mirror=0.4)

#: Paints with their share of the traffic and their reflectance in the near infrared: black and dark paints mirror the
#: beam away (our choice).
PAINTS: tuple[tuple[float, Color, float], ...] = (
    (0.20, (0.62, 0.62, 0.60), 0.62),
    (0.17, (0.02, 0.02, 0.022), 0.07),
    (0.16, (0.20, 0.21, 0.22), 0.30),
    (0.13, (0.40, 0.41, 0.42), 0.42),
    (0.10, (0.03, 0.06, 0.18), 0.16),
    (0.08, (0.34, 0.02, 0.02), 0.38),
    (0.04, (0.04, 0.14, 0.08), 0.18),
    (0.04, (0.45, 0.36, 0.24), 0.40),
    (0.04, (0.60, 0.28, 0.03), 0.45),
    (0.04, (0.10, 0.30, 0.55), 0.30),
)


def paint(rng: np.random.Generator, palette: Palette) -> int:
    """The material of a car body, drawn by its share of the traffic."""
    share = np.array([row[0] for row in PAINTS])
    _, color, reflectance = PAINTS[int(rng.choice(len(PAINTS), p=share / share.sum()))]
    shade = rng.uniform(0.85, 1.15)
    red, green, blue = (round(float(np.clip(c * shade, 0, 0.85)), 4) for c in color)
    return palette(Material((red, green, blue), reflectance, mirror=0.06, shine=0.5))


@dataclass(frozen=True)
class CarShape:
    """Metres. hood, deck: where the windscreen and the rear window begin, from the middle; roof: where they end."""

    length: float
    width: float
    height: float
    belt: float
    hood: float
    roof_front: float
    roof_back: float
    deck: float
    hood_height: float
    deck_height: float
    wheel: float


def car_shape(rng: np.random.Generator) -> CarShape:
    """A hatchback, a saloon, an estate or an SUV, each a little different."""
    kind = rng.choice(["hatchback", "saloon", "estate", "suv"], p=[0.36, 0.22, 0.17, 0.25])
    length, height = {"hatchback": (4.0, 1.47), "saloon": (4.65, 1.44), "estate": (4.6, 1.48), "suv": (4.45, 1.66)}[
        kind
    ]
    length, height = length * rng.uniform(0.95, 1.05), height * rng.uniform(0.98, 1.04)
    half, belt = length / 2, height * 0.62
    roof_back = {"hatchback": -0.30, "saloon": -0.15, "estate": -0.42, "suv": -0.38}[kind] * length
    deck = {"hatchback": -0.455, "saloon": -0.33, "estate": -0.475, "suv": -0.46}[kind] * length
    deck_height = belt + (0.03 if kind == "saloon" else 0.02)
    return CarShape(
        length=length,
        width=float(rng.uniform(1.72, 1.88)),
        height=height,
        belt=belt,
        hood=half * 0.46,
        roof_front=half * 0.12,
        roof_back=roof_back,
        deck=deck,
        hood_height=belt * 0.93,
        deck_height=deck_height,
        wheel=0.37 if kind == "suv" else 0.32,
    )


def car(rng: np.random.Generator, palette: Palette, label: int) -> Mesh:
    """One car."""
    shape, body = car_shape(rng), paint(rng, palette)
    half, w = shape.length / 2, shape.width / 2
    axles = (half - 0.19 * shape.length, -half + 0.2 * shape.length)
    sill = 0.19 if shape.wheel < 0.35 else 0.24
    hood, deck, arch = shape.hood_height, shape.deck_height, shape.wheel * 1.13
    outline = [
        (-half + 0.06, sill + 0.06), *_arch(axles[1], arch, sill), *_arch(axles[0], arch, sill), (half - 0.1, sill),
        (half, sill + 0.2), (half - 0.02, hood * 0.72), (half - 0.16, hood - 0.1), (half - 0.3, hood - 0.05),
        (shape.hood, hood + 0.04), (shape.hood - 0.1, shape.belt), (shape.deck + 0.05, shape.belt),
        (shape.deck - 0.02, deck), (-half + 0.08, deck - 0.03), (-half, deck - 0.18), (-half, sill + 0.25),
    ]  # fmt: skip
    lower = extrude(outline, _flanks(w, 0.955), body, label, (0.0, 0.55))
    parts = [lower, *_greenhouse(shape, body, palette(GLASS), label)]
    for axle in axles:
        parts += wheels(palette, label, axle, w - 0.02, shape.wheel, 0.2)
    parts += _car_details(shape, palette, label, axles)
    return merge(parts)


def _arch(axle: float, radius: float, sill: float) -> list[tuple[float, float]]:
    """A wheel arch in the lower edge of an outline that runs forward."""
    rise = max(radius * 0.98 - sill, 0.05)
    angle = np.linspace(np.pi, 0, 8)
    arc = [(axle + radius * np.cos(a), sill + 0.02 + (rise + sill * 0.86) * np.sin(a)) for a in angle]
    return [(axle - radius - 0.01, sill), *arc, (axle + radius + 0.01, sill)]


def _flanks(half_width: float, factor: float) -> list[tuple[float, float]]:
    """Stations of `extrude` for a body with rounded sides."""
    outer, inner = half_width, half_width - 0.07
    right = [(-outer, factor), (-outer + 0.02, (1 + factor) / 2), (-inner, 1.0)]
    return right + [(-y, share) for y, share in right[::-1]]


def _greenhouse(shape: CarShape, body: int, glass: int, label: int) -> list[Mesh]:
    """The cabin: a tapering shell in the body's colour, panes just outside it."""
    low, high = shape.width / 2 - 0.06, shape.width / 2 - 0.26
    z0, z1 = shape.belt - 0.01, shape.height
    xs = (shape.hood, shape.roof_front, shape.roof_back, shape.deck)
    mid = (shape.roof_front * 0.4 + shape.roof_back * 0.6, z1 + 0.0)
    side = [(xs[0], z0), (xs[1], z1 - 0.03), (mid[0], mid[1]), (xs[2], z1 - 0.04), (xs[3], z0)]
    left, right = [], []
    for x, z in side:
        y = low + (high - low) * (z - z0) / (z1 - z0)
        left.append((x, y, z))
        right.append((x, -y, z))
    shell = []
    for k in range(4):  # windscreen, two pieces of the roof, rear window
        shell.append((right[k], left[k], left[k + 1], right[k + 1]))
    cabin = [quads(shell, body, label)]
    for flank, sign in ((left, 1), (right, -1)):
        points = np.array(flank)
        cabin.append(fan(points, body, label, flip=sign > 0))
    front = np.array([right[0], left[0], left[1], right[1]])
    back = np.array([left[4], right[4], right[3], left[3]])
    cabin.append(quads([_inset(front, 0.07, 0.06), _inset(back, 0.09, 0.12)], glass, label))
    for sign, flank in ((1, left), (-1, right)):
        cabin.append(_side_panes(np.array(flank), sign, glass, label))
    return cabin


def _inset(quad: Matrix, across: float, along: float) -> Matrix:
    """A pane [4, 3] within a quadrilateral, drawn in by a share of its sides and 8 mm outside it."""
    a, b, c, d = quad
    normal = np.cross(b - a, d - a)
    normal /= np.linalg.norm(normal)

    def at(s: float, t: float) -> Matrix:
        inside: Matrix = (a * (1 - s) + b * s) * (1 - t) + (d * (1 - s) + c * s) * t
        return inside

    return (
        np.array([at(across, along), at(1 - across, along), at(1 - across, 1 - along), at(across, 1 - along)])
        + normal * 0.008
    )


def _side_panes(flank: Matrix, sign: int, glass: int, label: int) -> Mesh:
    """Two panes on one flank, with the pillar between them."""
    front_low, front_high, _, back_high, back_low = flank
    middle = (front_high[0] + back_high[0]) / 2 - 0.05
    panes = []
    for begin, end in ((0.09, 0.5), (0.53, 0.93)):

        def at(share: float, top: bool) -> Matrix:
            lows = front_low + (back_low - front_low) * share
            x_high = front_high[0] - 0.04 + (back_high[0] - front_high[0] + 0.1) * np.clip((share - 0.08) / 0.84, 0, 1)
            level = 0.9 if top else 0.08
            y = lows[1] + (front_high[1] - lows[1]) * level
            z = lows[2] + (front_high[2] - lows[2]) * level
            x = lows[0] + (x_high - lows[0]) * level
            return np.array([x, y + sign * 0.01, z])

        corner = [at(begin, False), at(end, False), at(end, True), at(begin, True)]
        panes.append(corner if sign < 0 else corner[::-1])
    del middle
    return quads(panes, glass, label)


def wheels(palette: Palette, label: int, axle: float, outer: float, radius: float, width: float) -> list[Mesh]:
    """The two wheels of an axle at x = `axle`, their outer faces at y = +-`outer`."""
    parts = []
    angle = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.zeros_like(angle), np.sin(angle)])
    spokes = np.where(np.arange(18) % 4 < 2, 1.0, 0.18)
    for sign in (-1, 1):
        hub = np.array([axle, sign * outer, radius])
        line = [hub - [0, sign * width, 0], hub - [0, sign * width * 0.05, 0], hub]
        parts.append(tube(line, [radius, radius, radius * 0.93], palette(RUBBER), label, 18))
        face = hub + ring * radius * 0.66 + [0, sign * 0.006, 0]
        parts.append(fan(face, palette(RIM), label, flip=sign < 0).tinted(spokes))
        cap = hub + ring * radius * 0.16 + [0, sign * 0.012, 0]
        parts.append(fan(cap, palette(RIM), label, flip=sign < 0))
    return parts


def _car_details(shape: CarShape, palette: Palette, label: int, axles: tuple[float, float]) -> list[Mesh]:
    half, w = shape.length / 2, shape.width / 2
    lamp, rear, dark = palette(HEADLIGHT), palette(TAILLIGHT), palette(DARK)
    nose, tail = shape.hood_height * 0.76, shape.deck_height - 0.14
    parts = [
        box((0.08, w * 1.0, 0.12), (half - 0.025, 0, nose * 0.83), dark, label),  # grille
        box((0.08, w * 1.5, 0.1), (half - 0.035, 0, 0.31), dark, label),
        box((0.04, w * 1.5, 0.14), (-half + 0.005, 0, 0.34), dark, label),
        panel((half + 0.022, 0, nose * 0.62), (0.52, 0.11), 1, palette(PLATE), label),
        panel((-half - 0.022, 0, tail - 0.17), (0.52, 0.11), -1, palette(PLATE), label),
    ]
    for sign in (-1, 1):
        parts += [
            box((0.2, 0.34, 0.12), (half - 0.13, sign * (w - 0.25), nose + 0.0), lamp, label),
            box((0.14, 0.26, 0.15), (-half + 0.06, sign * (w - 0.2), tail), rear, label),
            box((0.16, 0.15, 0.11), (shape.hood - 0.3, sign * (w + 0.06), shape.belt + 0.06), dark, label),  # mirror
        ]
        for x in (shape.hood - 0.25, (shape.hood + shape.deck) / 2 - 0.1):  # door gaps and handles
            parts.append(
                box((0.014, 0.012, shape.belt - 0.38), (x, sign * (w + 0.001), shape.belt / 2 + 0.16), dark, label)
            )
            parts.append(box((0.16, 0.02, 0.025), (x - 0.75, sign * (w + 0.004), shape.belt - 0.12), dark, label))
    middle = sum(axles) / 2
    parts.append(box((axles[0] - axles[1] - 0.75, 2 * w - 0.02, 0.07), (middle, 0, 0.2), dark, label))  # sills
    return parts


def panel(center: ArrayLike, size: tuple[float, float], facing: int, material: int, label: int) -> Mesh:
    """An upright plate that faces ahead (1) or back (-1), its texture stretched over it once."""
    x, y, z = np.asarray(center, dtype=np.float64)
    a, b = facing * size[0] / 2, size[1] / 2
    corner = [(x, y - a, z - b), (x, y + a, z - b), (x, y + a, z + b), (x, y - a, z + b)]
    return quads([corner], material, label, uv=[[(0, 0), (1, 0), (1, 1), (0, 1)]])
