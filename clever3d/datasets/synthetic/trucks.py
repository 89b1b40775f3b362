"""Vans, trucks and buses, as in vehicles.py."""

from __future__ import annotations

import itertools

import numpy as np

from clever3d.datasets.synthetic.materials import Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, box, extrude, merge, quads
from clever3d.datasets.synthetic.vehicles import (
    DARK,
    GLASS,
    HEADLIGHT,
    PLATE,
    TAILLIGHT,
    _arch,
    _flanks,
    paint,
    panel,
    wheels,
)

_COVER = (
    ((0.65, 0.65, 0.62), 0.6), ((0.55, 0.55, 0.5), 0.5), ((0.05, 0.12, 0.35), 0.3), ((0.5, 0.06, 0.04), 0.4),
    ((0.04, 0.25, 0.12), 0.3), ((0.65, 0.45, 0.05), 0.5),
)  # fmt: skip
_BUS = (((0.55, 0.04, 0.03), 0.4), ((0.7, 0.6, 0.1), 0.5), ((0.05, 0.25, 0.45), 0.3), ((0.6, 0.6, 0.58), 0.6))


def van(rng: np.random.Generator, palette: Palette, label: int) -> Mesh:
    """A delivery van: short bonnet, high closed body."""
    length, width, height = rng.uniform(5.0, 6.0), rng.uniform(1.9, 2.02), rng.uniform(2.1, 2.6)
    body = (
        palette(Material((0.62, 0.62, 0.6), 0.6, mirror=0.05, shine=0.3)) if rng.random() < 0.6 else paint(rng, palette)
    )
    half, w = length / 2, width / 2
    axles = (half - 0.95, -half + 1.05)
    outline = [
        (-half, 0.3), *_arch(axles[1], 0.38, 0.26), *_arch(axles[0], 0.38, 0.26), (half - 0.08, 0.26), (half, 0.5),
        (half - 0.05, 0.95), (half - 0.75, 1.2), (half - 1.35, height - 0.12), (half - 1.7, height),
        (-half + 0.1, height), (-half, height - 0.12),
    ]  # fmt: skip
    glass = palette(GLASS)
    parts = [extrude(outline, _flanks(w, 0.965), body, label, (0.0, 1.1))]
    a, b = half - 0.75, half - 1.25
    top = height - 0.24
    screen = [(a, -w + 0.16, 1.25), (a, w - 0.16, 1.25), (b, w - 0.22, top), (b, -w + 0.22, top)]
    parts.append(quads([screen], glass, label))
    for sign in (-1, 1):
        y = sign * (w + 0.006)
        pane = [
            (half - 0.95, y, 1.25),
            (half - 1.9, y, 1.25),
            (half - 1.9, y, height - 0.5),
            (half - 1.42, y, height - 0.5),
        ]
        parts.append(quads([pane if sign > 0 else pane[::-1]], glass, label))
    for axle in axles:
        parts += wheels(palette, label, axle, w - 0.02, 0.35, 0.22)
    parts += _ends(palette, label, half, w, 0.78, 1.0)
    parts.append(box((0.02, w * 1.5, 0.5), (-half + 0.006, 0, height - 0.6), glass, label))
    return merge(parts)


def truck(rng: np.random.Generator, palette: Palette, label: int) -> Mesh:
    """A lorry: a tall cab, a box or a flat bed behind it."""
    cab_length, width = 1.9, 2.45
    body_length = rng.uniform(4.5, 7.6)
    length, height = cab_length + 0.35 + body_length, rng.uniform(3.1, 3.7)
    half, w = length / 2, width / 2
    color, reflectance = _COVER[int(rng.integers(len(_COVER)))]
    cover, glass, dark = palette(Material(color, reflectance)), palette(GLASS), palette(DARK)
    cab = paint(rng, palette)
    front, cab_top = half, rng.uniform(2.6, 3.0)
    outline = [
        (front - cab_length, 0.55), (front - 0.05, 0.45), (front, 0.7), (front, 1.4),
        (front - 0.12, cab_top - 0.25), (front - 0.35, cab_top), (front - cab_length, cab_top),
    ]  # fmt: skip
    parts = [
        extrude(outline, _flanks(w - 0.02, 0.97), cab, label, (front - 0.9, 1.5)),
        quads([[(front + 0.012, -w + 0.2, 1.5), (front + 0.012, w - 0.2, 1.5), (front - 0.1, w - 0.25, cab_top - 0.35),
                (front - 0.1, -w + 0.25, cab_top - 0.35)]], glass, label),
        box((0.05, w * 1.3, 0.5), (front, 0, 1.05), dark, label),
        box((length - 0.4, 0.9, 0.3), (0, 0, 0.75), dark, label),
    ]  # fmt: skip
    middle = front - cab_length - 0.35 - body_length / 2
    if rng.random() < 0.75:
        parts.append(box((body_length, width, height - 1.0), (middle, 0, (height + 1.0) / 2), cover, label))
        parts.append(box((body_length + 0.02, width + 0.02, 0.14), (middle, 0, 1.0), dark, label))
    else:
        parts.append(box((body_length, width, 0.2), (middle, 0, 1.1), dark, label))
        for y in (-w + 0.03, w - 0.03):
            parts.append(box((body_length, 0.05, 0.5), (middle, y, 1.45), cover, label))
        load = (body_length * 0.8, width * 0.8, rng.uniform(0.4, 1.2))
        parts.append(
            box(load, (middle, 0, 1.2 + load[2] / 2), palette(Material((0.3, 0.22, 0.12), 0.4, "planks")), label)
        )
    for sign in (-1, 1):
        y = sign * (w + 0.004)
        pane = [
            (front - 0.25, y, 1.55),
            (front - 1.3, y, 1.55),
            (front - 1.3, y, cab_top - 0.4),
            (front - 0.4, y, cab_top - 0.4),
        ]
        parts.append(quads([pane if sign > 0 else pane[::-1]], glass, label))
        parts.append(box((0.1, 0.16, 0.5), (front - 0.05, sign * (w + 0.12), 1.9), dark, label))
        parts.append(box((body_length * 0.45, 0.05, 0.4), (middle + 0.3, sign * (w - 0.05), 0.7), dark, label))
    for axle in (front - 1.2, -half + 1.2, -half + 2.3):
        parts += wheels(palette, label, axle, w - 0.02, 0.48, 0.32)
    parts += _ends(palette, label, half, w, 0.65, 0.85)
    return merge(parts)


def bus(rng: np.random.Generator, palette: Palette, label: int) -> Mesh:
    """A city bus: one long box with a band of windows and doors on the right."""
    length, width, height = rng.uniform(10.5, 12.2), 2.52, rng.uniform(2.95, 3.2)
    half, w = length / 2, width / 2
    color, reflectance = _BUS[int(rng.integers(len(_BUS)))]
    body, glass, dark = palette(Material(color, reflectance, mirror=0.05, shine=0.3)), palette(GLASS), palette(DARK)
    axles = (half - 2.6, -half + 3.1)
    outline = [
        (-half, 0.4), *_arch(axles[1], 0.55, 0.3), *_arch(axles[0], 0.55, 0.3), (half - 0.05, 0.3), (half, 0.6),
        (half - 0.12, height - 0.3), (half - 0.35, height), (-half + 0.2, height), (-half, height - 0.2),
    ]  # fmt: skip
    parts = [extrude(outline, _flanks(w, 0.985), body, label, (0.0, 1.6))]
    bays = round((length - 1.2) / 1.45)
    edges = np.linspace(-half + 0.5, half - 0.55, bays + 1)
    for sign in (-1, 1):
        y = sign * (w + 0.008)
        for begin, end in itertools.pairwise(edges):
            door = sign < 0 and (abs(begin - edges[bays // 2]) < 0.1 or begin == edges[-2])
            low = 0.45 if door else 1.15
            for a, b in [(begin, (begin + end) / 2), ((begin + end) / 2, end)] if door else [(begin, end)]:
                pane = [
                    (a + 0.04, y, low),
                    (b - 0.04, y, low),
                    (b - 0.04, y, height - 0.5),
                    (a + 0.04, y, height - 0.5),
                ]
                parts.append(quads([pane if sign < 0 else pane[::-1]], glass, label))
        parts.append(box((length * 0.9, 0.02, 0.12), (0, sign * (w + 0.003), 0.95), dark, label))
    front = [(half + 0.006, -w + 0.12, 1.0), (half + 0.006, w - 0.12, 1.0), (half - 0.095, w - 0.15, height - 0.45),
             (half - 0.095, -w + 0.15, height - 0.45)]  # fmt: skip
    parts.append(quads([front], glass, label))
    display = palette(Material((0.03, 0.03, 0.03), 0.1, tile="display", tile_size=0, glow=0.4))
    parts.append(panel((half - 0.09, 0, height - 0.28), (1.5, 0.24), 1, display, label))
    parts.append(box((0.02, w * 1.5, 0.9), (-half + 0.005, 0, height - 1.0), glass, label))
    for axle in axles:
        parts += wheels(palette, label, axle, w - 0.02, 0.48, 0.3)
    parts += _ends(palette, label, half, w, 0.7, 1.0)
    return merge(parts)


def _ends(palette: Palette, label: int, half: float, w: float, lamp: float, tail: float) -> list[Mesh]:
    """Lamps, bumpers and plates at both ends."""
    parts = [
        panel((half + 0.03, 0, 0.5), (0.52, 0.11), 1, palette(PLATE), label),
        panel((-half - 0.03, 0, 0.7), (0.52, 0.11), -1, palette(PLATE), label),
        box((0.06, 2 * w - 0.2, 0.2), (half - 0.01, 0, 0.48), palette(DARK), label),
        box((0.06, 2 * w - 0.2, 0.2), (-half + 0.01, 0, 0.48), palette(DARK), label),
    ]
    for sign in (-1, 1):
        parts.append(box((0.1, 0.34, 0.2), (half - 0.02, sign * (w - 0.3), lamp), palette(HEADLIGHT), label))
        parts.append(box((0.06, 0.18, 0.32), (-half + 0.0, sign * (w - 0.18), tail), palette(TAILLIGHT), label))
    return parts
