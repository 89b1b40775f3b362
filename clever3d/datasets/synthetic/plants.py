"""Trees, bushes, hedges and tufts of grass: stems as tubes, foliage as many small triangles.

What shows through foliage shows between the triangles, for the LiDAR as for the cameras. Normals at the leaves point
away from the middle of the crown rather than along the leaf, which lights a crown as a whole. Sizes are our choice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.materials import Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, box, ellipsoid, merge, shifted, triangles, tube
from clever3d.datasets.synthetic.truth import CLASSES

_VEGETATION, _TRUNK = CLASSES.index("vegetation"), CLASSES.index("trunk")
_GREENS = ((0.05, 0.105, 0.02), (0.075, 0.13, 0.025), (0.035, 0.08, 0.025), (0.11, 0.14, 0.03), (0.17, 0.13, 0.03))


def foliage_material(rng: np.random.Generator, palette: Palette, autumn: float = 0.1) -> int:
    """Leaves of one plant: near infrared reflectance is high for all green."""
    share = np.array([1, 1, 1, 0.6, autumn])
    color = np.array(_GREENS[int(rng.choice(len(_GREENS), p=share / share.sum()))]) * rng.uniform(0.8, 1.25)
    red, green, blue = (round(float(c), 4) for c in color)
    return palette(Material((red, green, blue), 0.5, tile="leaf", tile_size=0.7, thin=0.55))


def leaves(rng: np.random.Generator, points: Matrix, outward: Matrix, size: tuple[float, float], material: int) -> Mesh:
    """A triangle about each of points [N, 3], lit as if it faced `outward` [N, 3]."""
    count = len(points)
    a, b = rng.normal(size=(2, count, 3))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = np.cross(a, b)
    b /= np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-9)
    reach = rng.uniform(*size, (count, 1))
    corners = np.stack(
        [points + a * reach, points + (-0.5 * a + 0.8 * b) * reach, points + (-0.5 * a - 0.8 * b) * reach], axis=1
    )
    lit = outward / np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
    lit = lit[:, None] + 0.45 * rng.normal(size=(count, 3, 3))
    lit /= np.linalg.norm(lit, axis=2, keepdims=True)
    mesh = triangles(corners, material, _VEGETATION, normals=lit)
    return replace(mesh, tint=rng.uniform(0.65, 1.35, count).astype(np.float32))


def _blob(rng: np.random.Generator, count: int, middle: Matrix, radii: Matrix) -> tuple[Matrix, Matrix]:
    """Points in an ellipsoid, denser towards its skin, and the directions out of it."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    depth = rng.random((count, 1)) ** 0.35
    return middle + direction * depth * radii, direction / radii


def tree(rng: np.random.Generator, palette: Palette, height: float, grain: float = 1.0) -> Mesh:
    """A broad-leaved tree: a bent stem, boughs, a crown of several clusters of leaves.

    grain: leaves so many times as large, and accordingly fewer: below 1 for trees near the road, above it for far ones.
    """
    bark = palette(Material((0.11, 0.085, 0.06), 0.3, tile="bark", tile_size=0.8))
    green = foliage_material(rng, palette)
    stem, radius = height * rng.uniform(0.28, 0.38), height * rng.uniform(0.016, 0.024)
    bend = rng.normal(0, 0.03 * height, 2)
    top = np.array([bend[0], bend[1], height * 0.72])
    middle = np.array([bend[0] * 0.4, bend[1] * 0.4, stem])
    stem_line = np.array([(0, 0, -0.3), (0, 0, 0.25), middle, top])
    thickness = radius * np.array([1.7, 1.15, 0.9, 0.3])
    parts = [tube(stem_line, thickness, bark, _TRUNK, 8)]
    crown = np.array([bend[0], bend[1], height * 0.66])
    spread = height * rng.uniform(0.24, 0.33)
    clusters = int(rng.integers(7, 11))
    each = int(230 * (spread / 2.0) ** 1.2 / grain**2)
    for k in range(clusters):
        angle, level = 2 * np.pi * (k / clusters + rng.uniform(-0.05, 0.05)), rng.uniform(-0.75, 0.85)
        out = spread * (0.65 if k else 0.0) * np.sqrt(max(0.1, 1 - level**2))
        center = shifted(crown, out * np.cos(angle), out * np.sin(angle), height * 0.2 * level)
        radii = spread * rng.uniform(0.42, 0.62) * np.array([1, 1, rng.uniform(0.7, 0.95)])
        points, out_of_cluster = _blob(rng, each, center, radii)
        lit = out_of_cluster + 0.6 * (points - crown) / spread**2
        shade = np.clip(0.8 + 0.35 * (points[:, 2] - crown[2]) / (0.3 * height), 0.45, 1.15)
        parts.append(leaves(rng, points, lit, (0.09 * grain, 0.24 * grain), green).tinted(shade))
        start = middle + (top - middle) * rng.uniform(0.0, 0.5)
        parts.append(tube([start, center], [radius * 0.4, radius * 0.12], bark, _TRUNK, 5, caps=False))
    return merge(parts)


def conifer(rng: np.random.Generator, palette: Palette, height: float, grain: float = 1.0) -> Mesh:
    """A spruce: a straight stem, a cone of needles in drooping tiers."""
    bark = palette(Material((0.1, 0.075, 0.06), 0.3, tile="bark", tile_size=0.8))
    green = palette(Material((0.022, 0.05, 0.022), 0.42, tile="leaf", tile_size=0.7, thin=0.2))
    radius = height * 0.014
    parts = [tube([(0, 0, -0.3), (0, 0, height * 0.97)], [radius * 1.3, radius * 0.2], bark, _TRUNK, 7)]
    count = int(130 * height / grain**2)
    share = 1 - np.sqrt(rng.random(count))  # 0 at the lowest twigs, 1 at the tip, as many as the cone is wide
    z = height * (0.1 + 0.9 * share)
    reach = height * 0.2 * (1 - share) * (0.75 + 0.25 * np.cos(share * 60)) * rng.random(count) ** 0.4
    angle = rng.uniform(0, 2 * np.pi, count)
    points = np.column_stack([reach * np.cos(angle), reach * np.sin(angle), z - 0.25 * reach])
    outward = np.column_stack([np.cos(angle), np.sin(angle), np.full(count, 0.5)])
    parts.append(leaves(rng, points, outward, (0.1 * grain, 0.26 * grain), green))
    return merge(parts)


def bush(rng: np.random.Generator, palette: Palette, size: float) -> Mesh:
    """A round bush of about that height."""
    green = foliage_material(rng, palette)
    parts = []
    for _ in range(3):
        middle = np.array([*rng.normal(0, size * 0.25, 2), size * rng.uniform(0.4, 0.55)])
        radii = size * rng.uniform(0.38, 0.55) * np.array([1, 1, 0.9])
        points, outward = _blob(rng, int(330 * max(size, 0.5)), middle, radii)
        points[:, 2] = np.abs(points[:, 2])
        parts.append(ellipsoid(radii * 0.7, middle, green, _VEGETATION, 8, 6).tinted(0.35))
        parts.append(leaves(rng, points, outward, (0.045, 0.11), green))
    return merge(parts)


def hedge(rng: np.random.Generator, palette: Palette, length: float, height: float, depth: float = 0.7) -> Mesh:
    """A clipped hedge along x: leaves near the faces of a box."""
    green = foliage_material(rng, palette, 0.0)
    count = int(length * (2 * height + depth) * 140)
    points = rng.uniform(-0.5, 0.5, (count, 3))
    outward = np.zeros((count, 3))
    face = rng.random(count)
    top = face < depth / (2 * height + depth)
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    points[top, 2], outward[top, 2] = 0.5, 1.0
    points[~top, 1], outward[~top, 1] = 0.5 * side[~top], side[~top]
    points = (points + np.array([0, 0, 0.5])) * [length, depth, height]
    points -= outward * rng.exponential(0.06, (count, 1))
    core = box((length - 0.3, depth - 0.28, height - 0.16), (0, 0, (height - 0.16) / 2), green, _VEGETATION).tinted(
        0.35
    )
    return merge([core, leaves(rng, points, outward + np.array([0, 0, 0.3]), (0.035, 0.095), green)])


def tufts(rng: np.random.Generator, palette: Palette, points: Matrix) -> Mesh:
    """Blades of grass in tufts at points [N, 3]."""
    green = palette(Material((0.09, 0.13, 0.035), 0.45, thin=0.5))
    blades = 7
    base = np.repeat(points, blades, axis=0) + np.column_stack(
        [rng.normal(0, 0.07, (len(points) * blades, 2)), np.zeros(len(points) * blades)]
    )
    count = len(base)
    angle = rng.uniform(0, 2 * np.pi, count)
    across = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(count)]) * 0.014
    tip = base + np.column_stack([rng.normal(0, 0.06, (count, 2)), rng.uniform(0.08, 0.3, count)])
    corners = np.stack([base - across, base + across, tip], axis=1)
    up = np.broadcast_to(np.array([0, 0, 1.0]), (count, 3, 3))
    return triangles(corners, green, _VEGETATION, normals=up).tinted(rng.uniform(0.6, 1.3, count))
