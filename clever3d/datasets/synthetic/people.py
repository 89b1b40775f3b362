"""People, bicycles, motorcycles and their riders.

Own axes: x ahead, y left, z up, the origin on the ground below the middle. Body proportions after the usual eight heads
of figure drawing; everything else is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.materials import Color, Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, box, ellipsoid, loft, merge, shifted, tube
from clever3d.datasets.synthetic.vehicles import CHROME, DARK, HEADLIGHT, RUBBER, TAILLIGHT

_SKIN: tuple[Color, ...] = ((0.55, 0.34, 0.24), (0.42, 0.24, 0.16), (0.2, 0.11, 0.07), (0.62, 0.42, 0.32))
_HAIR: tuple[Color, ...] = ((0.02, 0.015, 0.01), (0.08, 0.045, 0.02), (0.25, 0.16, 0.06), (0.35, 0.34, 0.33))
_TOPS: tuple[Color, ...] = (
    (0.03, 0.03, 0.035), (0.5, 0.5, 0.48), (0.45, 0.04, 0.03), (0.04, 0.08, 0.25), (0.1, 0.22, 0.1), (0.6, 0.45, 0.08),
    (0.2, 0.2, 0.21), (0.35, 0.12, 0.25), (0.1, 0.3, 0.42), (0.55, 0.25, 0.08),
)  # fmt: skip
_TROUSERS: tuple[Color, ...] = (
    (0.03, 0.045, 0.1),
    (0.02, 0.02, 0.022),
    (0.28, 0.22, 0.14),
    (0.12, 0.12, 0.13),
    (0.06, 0.1, 0.2),
)


@dataclass(frozen=True)
class Looks:
    """One person: rows of the material table, height in metres, and how broad they are."""

    skin: int
    hair: int
    top: int
    trousers: int
    shoes: int
    tall: float
    broad: float
    bag: bool
    helmet: bool


def looks(rng: np.random.Generator, palette: Palette, helmet: bool = False) -> Looks:
    """A person by chance."""

    def cloth(colors: tuple[Color, ...], reflectance: float) -> int:
        return palette(Material(colors[int(rng.integers(len(colors)))], reflectance, tile="cloth", tile_size=0.5))

    return Looks(
        skin=palette(Material(_SKIN[int(rng.integers(len(_SKIN)))], 0.45)),
        hair=palette(Material(_HAIR[int(rng.integers(len(_HAIR)))], 0.25)),
        top=cloth(_TOPS, 0.42),
        trousers=cloth(_TROUSERS, 0.35),
        shoes=palette(Material((0.05, 0.05, 0.05), 0.25)),
        tall=float(np.clip(rng.normal(1.73, 0.07), 1.55, 1.92)),
        broad=float(rng.uniform(0.92, 1.12)),
        bag=bool(rng.random() < 0.35),
        helmet=helmet,
    )


def _limb(points: list[Matrix], radii: list[float], material: int, label: int) -> Mesh:
    return tube(np.array(points), radii, material, label, 7)


def _torso(look: Looks, hip: Matrix, shoulder: Matrix, label: int) -> Mesh:
    """From the hips to the neck, oval, leaning along hip -> shoulder."""
    levels = [
        (-0.06, 0.1, 0.13),
        (0.1, 0.115, 0.165),
        (0.4, 0.105, 0.15),
        (0.75, 0.125, 0.195),
        (0.95, 0.1, 0.2),
        (1.06, 0.05, 0.07),
    ]
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    lean = shoulder - hip
    rings = []
    for share, depth, breadth in levels:
        circle = np.column_stack([depth * np.cos(angle), breadth * np.sin(angle) * look.broad, np.zeros(12)])
        rings.append(circle + hip + lean * share)
    return loft(np.array(rings), look.top, label)


def _head(look: Looks, neck: Matrix, label: int) -> list[Mesh]:
    middle = shifted(neck, 0.03, 0, 0.165)
    cover = look.hair
    parts = [
        _limb([shifted(neck, 0, 0, -0.04), shifted(neck, 0.015, 0, 0.1)], [0.062, 0.055], look.skin, label),
        ellipsoid((0.1, 0.08, 0.125), middle, look.skin, label, 10, 8),
        ellipsoid((0.102, 0.09, 0.1), shifted(middle, -0.022, 0, 0.045), cover, label, 10, 7),
    ]
    if look.helmet:
        parts.append(ellipsoid((0.14, 0.105, 0.1), shifted(middle, 0, 0, 0.07), look.top, label, 10, 6).tinted(1.2))
    return parts


def person(look: Looks, phase: float, label: int, stride: float = 1.0) -> Mesh:
    """A person standing (stride 0) or walking, `phase` of the gait in turns."""
    h = look.tall
    hip, shoulder = np.array([0, 0, 0.53 * h]), np.array([0.015 * stride, 0, 0.82 * h])
    parts = [_torso(look, hip, shoulder, label), *_head(look, shifted(shoulder, 0.005, 0, 0.02), label)]
    for sign in (-1, 1):
        swing = stride * 0.42 * np.sin(2 * np.pi * phase + (np.pi if sign > 0 else 0))
        bend = stride * 0.5 * max(0.0, np.cos(2 * np.pi * phase + (np.pi if sign > 0 else 0))) + 0.03
        top = shifted(hip, 0, sign * 0.09 * look.broad, -0.01)
        thigh, shin = 0.255 * h, 0.25 * h
        knee = top + thigh * np.array([np.sin(swing), 0, -np.cos(swing)])
        ankle = knee + shin * np.array([np.sin(swing - bend), 0, -np.cos(swing - bend)])
        parts.append(_limb([top, knee, ankle], [0.092, 0.062, 0.048], look.trousers, label))
        parts.append(ellipsoid((0.13, 0.048, 0.045), shifted(ankle, 0.06, 0, -0.025), look.shoes, label, 8, 5))
        arm = -swing * 0.85
        root = shifted(shoulder, 0, sign * 0.215 * look.broad, -0.03)
        elbow = root + 0.165 * h * np.array([np.sin(arm), sign * 0.12, -np.cos(arm)])
        hand = elbow + 0.155 * h * np.array([np.sin(arm + 0.35), 0, -np.cos(arm + 0.35)])
        parts.append(_limb([root, elbow, hand], [0.06, 0.046, 0.038], look.top, label))
        parts.append(ellipsoid((0.072, 0.075, 0.075), shifted(root, 0, -sign * 0.015, 0), look.top, label, 8, 5))
        parts.append(ellipsoid((0.045, 0.03, 0.06), shifted(hand, 0.01, 0, -0.04), look.skin, label, 6, 5))
    if look.bag:
        parts.append(box((0.15, 0.3, 0.42), shifted(shoulder, -0.19, 0, -0.2), look.trousers, label, (0.8, 0.85)))
    return merge(parts)


def _wheel(middle: Matrix, radius: float, thick: float, tyre: int, label: int) -> list[Mesh]:
    angle = np.linspace(0, 2 * np.pi, 21)
    circle = np.column_stack([np.cos(angle), np.zeros(21), np.sin(angle)]) * radius + middle
    parts = [tube(circle, thick, tyre, label, 5, caps=False)]
    for a in np.linspace(0, np.pi, 4, endpoint=False):
        tip = np.array([np.cos(a), 0, np.sin(a)]) * radius
        parts.append(tube([middle - tip, middle + tip], 0.006, tyre, label, 3, caps=False))
    return parts


def bicycle(rng: np.random.Generator, palette: Palette, label: int) -> Mesh:
    """A bicycle standing upright."""
    color = _TOPS[int(rng.integers(len(_TOPS)))]
    frame, tyre, dark = palette(Material(color, 0.3, mirror=0.05)), palette(RUBBER), palette(DARK)
    radius, half = 0.34, 0.52
    back, front = np.array([-half, 0, radius]), np.array([half, 0, radius])
    pedals, seat, head = np.array([-0.08, 0, 0.29]), np.array([-0.24, 0, 0.86]), np.array([0.34, 0, 0.82])
    parts = [*_wheel(back, radius, 0.022, tyre, label), *_wheel(front, radius, 0.022, tyre, label)]
    for a, b in (
        (pedals, seat),
        (pedals, shifted(head, 0, 0, -0.08)),
        (shifted(seat, 0, 0, -0.12), head),
        (back, pedals),
        (back, shifted(seat, 0, 0, -0.1)),
        (front, head),
    ):
        parts.append(tube([a, b], 0.02, frame, label, 5))
    parts += [
        tube([head, shifted(head, -0.03, 0, 0.2)], 0.016, frame, label, 5),
        tube(
            [shifted(head, 0.03, -0.29, 0.21), shifted(head, -0.02, 0, 0.19), shifted(head, 0.03, 0.29, 0.21)],
            0.016,
            dark,
            label,
            5,
        ),
        box((0.26, 0.14, 0.06), shifted(seat, 0, 0, 0.05), dark, label, (0.9, 0.7)),
        box((0.03, 0.05, 0.05), shifted(front, -0.13, 0, 0.4), palette(HEADLIGHT), label),
        box((0.03, 0.05, 0.05), shifted(back, -0.05, 0, 0.42), palette(TAILLIGHT), label),
        ellipsoid((0.09, 0.02, 0.09), pedals, palette(CHROME), label, 8, 5),
    ]
    return merge(parts)


def motorcycle(rng: np.random.Generator, palette: Palette, label: int) -> Mesh:
    """A motorcycle standing upright."""
    color = _TOPS[int(rng.integers(len(_TOPS)))]
    body, tyre, dark, chrome = (
        palette(Material(color, 0.35, mirror=0.08)),
        palette(RUBBER),
        palette(DARK),
        palette(CHROME),
    )
    radius = 0.31
    back, front = np.array([-0.68, 0, radius]), np.array([0.7, 0, radius])
    parts = []
    for middle in (back, front):
        parts += _wheel(middle, radius - 0.06, 0.065, tyre, label)
        parts.append(ellipsoid((0.17, 0.045, 0.17), middle, chrome, label, 10, 5))
    parts += [
        ellipsoid((0.34, 0.16, 0.15), (0.14, 0, 0.82), body, label),
        box((0.75, 0.26, 0.1), (-0.42, 0, 0.8), dark, label, (0.85, 0.8)),
        ellipsoid((0.26, 0.17, 0.2), (0.02, 0, 0.5), dark, label),
        ellipsoid((0.22, 0.16, 0.14), (-0.68, 0, 0.76), body, label),
        ellipsoid((0.14, 0.17, 0.17), (0.5, 0, 0.95), body, label),
        tube([front, np.array((0.47, 0, 0.98))], 0.045, chrome, label, 6),
        tube([(0.4, -0.36, 1.05), (0.45, 0, 1.0), (0.4, 0.36, 1.05)], 0.02, dark, label, 5),
        tube([(-0.1, -0.16, 0.3), (-0.8, -0.18, 0.42)], 0.05, chrome, label, 7),
        ellipsoid((0.05, 0.09, 0.09), (0.63, 0, 0.93), palette(HEADLIGHT), label, 8, 5),
        box((0.04, 0.14, 0.07), (-0.9, 0, 0.74), palette(TAILLIGHT), label),
    ]
    return merge(parts)


def rider(look: Looks, label: int, *, motor: bool, phase: float = 0.0) -> Mesh:
    """Who sits on a bicycle or a motorcycle (without the vehicle)."""
    hip = np.array([-0.3, 0, 0.92]) if motor else np.array([-0.22, 0, 0.96])
    shoulder = hip + (np.array([0.2, 0, 0.5]) if motor else np.array([0.24, 0, 0.47]))
    grip = np.array([0.38, 0.33, 1.08]) if motor else np.array([0.34, 0.27, 1.04])
    parts = [_torso(look, hip, shoulder, label), *_head(look, shifted(shoulder, 0.01, 0, 0.02), label)]
    for sign in (-1, 1):
        turned = 2 * np.pi * phase + (np.pi if sign > 0 else 0)
        foot = (
            np.array([-0.05, sign * 0.17, 0.34])
            if motor
            else np.array([-0.08 + 0.16 * np.cos(turned), sign * 0.11, 0.3 + 0.16 * np.sin(turned)])
        )
        top = shifted(hip, 0, sign * 0.1, -0.02)
        knee = (top + foot) / 2 + [0.2, sign * (0.1 if motor else 0.02), 0.1]
        parts.append(_limb([top, knee, foot], [0.09, 0.065, 0.05], look.trousers, label))
        parts.append(ellipsoid((0.13, 0.045, 0.045), shifted(foot, 0.05, 0, -0.02), look.shoes, label, 8, 5))
        root = shifted(shoulder, 0, sign * 0.2, -0.03)
        hand = grip * [1, sign, 1]
        elbow = (root + hand) / 2 + [-0.04, sign * 0.06, -0.08]
        parts.append(_limb([root, elbow, hand], [0.058, 0.045, 0.036], look.top, label))
        parts.append(ellipsoid((0.05, 0.035, 0.04), hand, look.skin, label, 6, 5))
    return merge(parts)
