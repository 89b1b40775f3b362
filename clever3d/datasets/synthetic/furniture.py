"""What stands along a street: lamps, signs, traffic lights, bins, benches, shelters, cones and barriers.

Own axes: z up, the origin on the ground; whatever has a face looks along -x, at those who come towards +x.
"""

from __future__ import annotations

import numpy as np

from clever3d.datasets.synthetic.materials import Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, box, fan, loft, merge, quads, triangles, tube
from clever3d.datasets.synthetic.truth import CLASSES
from clever3d.datasets.synthetic.vehicles import GLASS

_POLE, _SIGN, _LIGHT, _BARRIER, _CONE, _OTHER = (
    CLASSES.index(name) for name in ("pole", "traffic_sign", "traffic_light", "barrier", "traffic_cone", "other")
)
STEEL = Material((0.32, 0.33, 0.34), 0.33, "steel", 1.5, mirror=0.05)
#: Shape of each kind of sign and its tile. Sheeting is retro-reflective: far above a white wall (our choice: 1.6).
SIGNS = {
    "limit": "round", "no_entry": "round", "stop": "octagon", "yield": "down", "warning": "up", "crossing": "square",
    "arrow": "round", "parking": "square",
}  # fmt: skip


def street_light(palette: Palette, height: float, reach: float = 1.6) -> Mesh:
    """A lamp on a tapering pole, its arm along +x."""
    steel, lamp = palette(STEEL), palette(Material((0.7, 0.7, 0.66), 0.4, glow=0.2))
    bend = [(0, 0, 0), (0, 0, height - 0.8), (0.15, 0, height - 0.25), (0.6, 0, height), (reach, 0, height + 0.1)]
    return merge([
        tube([(0, 0, 0), (0, 0, 1.2)], 0.11, steel, _POLE, 8),
        tube(bend, [0.085, 0.065, 0.06, 0.05, 0.04], steel, _POLE, 8),
        box((0.75, 0.26, 0.1), (reach + 0.2, 0, height + 0.09), steel, _POLE, (0.8, 0.8)),
        box((0.55, 0.18, 0.03), (reach + 0.22, 0, height + 0.03), lamp, _POLE),
    ])  # fmt: skip


def sign(palette: Palette, kind: str, low: float = 2.1, size: float = 0.66) -> Mesh:
    """A traffic sign on a post."""
    face = palette(Material((1.0, 1.0, 1.0), 1.6, tile=kind, tile_size=0, mirror=0.02))
    back, steel = palette(Material((0.35, 0.35, 0.35), 0.4)), palette(STEEL)
    count, start = {"round": (20, 0.0), "octagon": (8, np.pi / 8), "square": (4, np.pi / 4)}.get(SIGNS[kind], (0, 0.0))
    if count:
        angle = start + np.linspace(0, 2 * np.pi, count, endpoint=False)
        outline = np.column_stack([np.cos(angle), np.sin(angle)]) / np.cos(start if count == 4 else 0)
    else:
        outline = np.array([(-1, -0.85), (1, -0.85), (0, 0.95)]) * (1 if SIGNS[kind] == "up" else -1)
    # Seen from -x, +y is on the left: the texture's right is -y.
    plate = np.column_stack(
        [np.full(len(outline), -0.05), -outline[:, 0] * size / 2, low + size / 2 + outline[:, 1] * size / 2]
    )
    middle = np.array([-0.05, 0, low + size / 2])
    following = np.roll(np.arange(len(plate)), -1)
    corners = np.stack([np.broadcast_to(middle, plate.shape), plate, plate[following]], axis=1)
    uv = np.stack([np.full_like(outline, 0.5), 0.5 + outline / 2, 0.5 + outline[following] / 2], axis=1)
    behind = corners[:, ::-1] + [0.02, 0, 0]
    return merge([
        tube([(0, 0, 0), (0, 0, low + size)], 0.032, steel, _POLE, 7),
        triangles(corners, face, _SIGN, uv=uv),
        triangles(behind, back, _SIGN),
    ])  # fmt: skip


def traffic_light(palette: Palette, state: str, arm: float = 0.0) -> Mesh:
    """A signal on a pole, and another over the lane if it has an arm (metres along y, to the left of who comes)."""
    steel, case = palette(STEEL), palette(Material((0.02, 0.025, 0.02), 0.15))
    on = {"red": (0.9, 0.05, 0.03), "amber": (0.9, 0.4, 0.02), "green": (0.05, 0.75, 0.35)}
    parts = [tube([(0, 0, 0), (0, 0, 3.4 if not arm else 5.7)], 0.085, steel, _POLE, 8)]
    heads = [(0.0, 2.4)]
    if arm:
        parts.append(tube([(0, 0, 5.5), (0, arm, 5.8)], [0.07, 0.045], steel, _POLE, 7))
        heads.append((arm - 0.2, 5.2))
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    for y, z in heads:
        parts.append(box((0.24, 0.34, 1.0), (-0.18, y, z + 0.45), case, _LIGHT))
        parts.append(box((0.02, 0.5, 1.2), (-0.05, y, z + 0.45), case, _LIGHT))
        for level, name in ((0.78, "red"), (0.45, "amber"), (0.12, "green")):
            lit = name == state
            red, green, blue = on[name]
            lens = (
                Material(on[name], 0.3, glow=1.6)
                if lit
                else Material((red * 0.08, green * 0.08, blue * 0.08), 0.2, mirror=0.05)
            )
            disc = np.column_stack([np.full(12, -0.305), y - 0.11 * np.cos(angle), z + level + 0.11 * np.sin(angle)])
            parts.append(fan(disc, palette(lens), _LIGHT))
            hood = np.column_stack(
                [np.full(7, -0.3), y - 0.125 * np.cos(angle[:7]), z + level + 0.125 * np.sin(angle[:7])]
            )
            parts.append(loft(np.stack([hood, hood - [0.16, 0, 0]]), case, _LIGHT, closed=False))
    return merge(parts)


def bin_(palette: Palette, rng: np.random.Generator) -> Mesh:
    """A litter bin or a wheeled one."""
    color = ((0.04, 0.12, 0.06), (0.05, 0.05, 0.06), (0.25, 0.2, 0.02), (0.02, 0.06, 0.2))[int(rng.integers(4))]
    skin = palette(Material(color, 0.3))
    return merge(
        [
            box((0.55, 0.6, 0.95), (0, 0, 0.55), skin, _OTHER, (1.15, 1.1)),
            box((0.66, 0.68, 0.08), (0, 0, 1.06), skin, _OTHER),
        ]
    )


def bench(palette: Palette) -> Mesh:
    """A bench, its back on the +x side."""
    wood, steel = palette(Material((0.28, 0.17, 0.09), 0.38, "planks", 0.5)), palette(STEEL)
    parts = [box((0.1, 1.7, 0.04), (x, 0, 0.45), wood, _OTHER) for x in (-0.2, -0.07, 0.06)]
    parts += [box((0.04, 1.7, 0.1), (0.16 + 0.04 * k, 0, 0.62 + 0.14 * k), wood, _OTHER) for k in range(2)]
    parts += [box((0.45, 0.06, 0.45), (-0.02, y, 0.22), steel, _OTHER) for y in (-0.7, 0.7)]
    return merge(parts)


def shelter(palette: Palette) -> Mesh:
    """A bus stop: three panes and a roof, open to -x."""
    steel, glass = palette(STEEL), palette(GLASS)
    parts = [box((1.7, 4.2, 0.12), (-0.1, 0, 2.55), steel, _OTHER)]
    for x, y in ((0.6, -1.9), (0.6, 0), (0.6, 1.9), (-0.7, -1.9), (-0.7, 1.9)):
        parts.append(box((0.08, 0.08, 2.5), (x, y, 1.25), steel, _OTHER))
    parts.append(quads([[(0.6, 1.9, 0.3), (0.6, -1.9, 0.3), (0.6, -1.9, 2.3), (0.6, 1.9, 2.3)]], glass, _OTHER))
    parts.append(box((0.4, 3.0, 0.05), (0.35, 0, 0.5), steel, _OTHER))
    return merge(parts)


def bollard(palette: Palette) -> Mesh:
    """A low post with a reflecting band."""
    post, band = palette(Material((0.1, 0.1, 0.1), 0.2)), palette(Material((0.7, 0.7, 0.7), 1.4))
    return merge(
        [
            tube([(0, 0, 0), (0, 0, 0.95)], 0.07, post, _POLE, 8),
            tube([(0, 0, 0.72), (0, 0, 0.84)], 0.073, band, _POLE, 8),
        ]
    )


def cone(palette: Palette) -> Mesh:
    """A traffic cone with its reflecting sleeve."""
    orange, white = palette(Material((0.75, 0.16, 0.02), 0.5)), palette(Material((0.75, 0.75, 0.75), 1.5))
    levels = ((0.03, 0.3, 0.165, orange), (0.3, 0.45, 0.117, white), (0.45, 0.72, 0.09, orange))
    parts = [box((0.4, 0.4, 0.04), (0, 0, 0.02), orange, _CONE)]
    for low, high, radius, material in levels:
        parts.append(tube([(0, 0, low), (0, 0, high)], [radius, radius - 0.18 * (high - low)], material, _CONE, 12))
    return merge(parts)


def guard_rail(palette: Palette, length: float) -> Mesh:
    """A steel guard rail along x from 0, facing -y and +y alike."""
    rail = palette(Material((0.4, 0.41, 0.42), 0.4, "steel", 2.0, mirror=0.06))
    section = np.array([(0.0, 0.42), (0.06, 0.5), (0.0, 0.58), (0.06, 0.66), (0.0, 0.74)])
    parts = []
    for side in (-1, 1):
        rings = [np.column_stack([np.full(5, x), side * (0.06 + section[:, 0]), section[:, 1]]) for x in (0.0, length)]
        parts.append(loft(np.array(rings), rail, _BARRIER, smooth=False, closed=False))
    for x in np.arange(0.5, length, 2.0):
        parts.append(box((0.1, 0.1, 0.75), (x, 0, 0.36), rail, _BARRIER))
    return merge(parts)


def concrete_barrier(palette: Palette, length: float) -> Mesh:
    """A concrete barrier along x from 0, with the usual kinked sides."""
    concrete = palette(Material((0.38, 0.37, 0.35), 0.38, "concrete", 3.0, patches=0.8))
    shape = np.array(
        [(-0.3, 0.0), (-0.3, 0.08), (-0.13, 0.32), (-0.08, 0.85), (0.08, 0.85), (0.13, 0.32), (0.3, 0.08), (0.3, 0.0)]
    )
    rings = [np.column_stack([np.full(8, x), shape]) for x in (0.0, length)]
    return merge(
        [
            loft(np.array(rings), concrete, _BARRIER, smooth=False),
            fan(rings[0], concrete, _BARRIER),
            fan(rings[1], concrete, _BARRIER),
        ]
    )


def work_barrier(palette: Palette) -> Mesh:
    """A red and white barrier board across the way, 2 m along y."""
    red, white = palette(Material((0.6, 0.03, 0.02), 1.2)), palette(Material((0.75, 0.75, 0.75), 1.4))
    parts = []
    for k in range(8):
        parts.append(box((0.04, 0.25, 0.25), (0, -0.875 + 0.25 * k, 0.95), red if k % 2 else white, _BARRIER))
    for y in (-0.85, 0.85):
        parts.append(box((0.5, 0.12, 0.08), (0, y, 0.04), palette(Material((0.05, 0.05, 0.05), 0.2)), _BARRIER))
        parts.append(box((0.05, 0.05, 1.05), (0.02, y, 0.52), white, _BARRIER))
    return merge(parts)


def gantry(palette: Palette, span: float) -> Mesh:
    """A sign bridge over a carriageway: posts at y = 0 and y = span, boards between them."""
    steel, board = palette(STEEL), palette(Material((1.0, 1.0, 1.0), 1.4, tile="board", tile_size=0))
    back = palette(Material((0.3, 0.3, 0.3), 0.4))
    parts = [tube([(0, y, 0), (0, y, 7.4)], 0.2, steel, _POLE, 10) for y in (0.0, span)]
    for z in (6.6, 7.3):
        parts.append(box((0.25, span, 0.18), (0, span / 2, z), steel, _POLE))
    for middle in (span * 0.3, span * 0.7):
        a, b = 2.3, 1.4
        corner = [
            (-0.25, middle + a, 5.6),
            (-0.25, middle - a, 5.6),
            (-0.25, middle - a, 5.6 + 2 * b),
            (-0.25, middle + a, 5.6 + 2 * b),
        ]
        parts.append(quads([corner], board, _SIGN, uv=[[(0, 0), (1, 0), (1, 1), (0, 1)]]))
        parts.append(box((0.06, 2 * a, 2 * b), (-0.21, middle, 5.6 + b), back, _SIGN))
    return merge(parts)


def wires_pole(palette: Palette, height: float = 8.5) -> Mesh:
    """A wooden pole with a cross arm."""
    wood = palette(Material((0.13, 0.1, 0.075), 0.3, "bark", 1.0))
    return merge(
        [
            tube([(0, 0, 0), (0, 0, height)], [0.15, 0.1], wood, _POLE, 8),
            box((0.1, 1.8, 0.12), (0, 0, height - 0.5), wood, _POLE),
        ]
    )
