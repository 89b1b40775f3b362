"""From a hit to a colour: texture, sun and shadow, light of the sky, reflections, haze."""

from __future__ import annotations

import numpy as np

from clever3d.datasets.synthetic.materials import Materials
from clever3d.datasets.synthetic.mesh import Floats, Ints, face_normals
from clever3d.datasets.synthetic.sky import Weather
from clever3d.datasets.synthetic.textures import TILES, sample
from clever3d.datasets.synthetic.tracer import Hits, View

_CLOUDS = TILES.index("clouds")
#: How far something still takes light of the sky from a surface (metres), and the share that nothing can take.
_REACH, _LEFT = 2.5, 0.22
#: Mirrors weaker than this reflect the sky only, without a ray of their own.
_TRACED = 0.05
_LIFT = 0.004  # m: rays start this far off their surface


def shade(
    view: View, materials: Materials, weather: Weather, origin: Floats, directions: Floats, hits: Hits,
    open_sky: Floats | float, angle: float, *, mirrors: bool = True,
) -> Floats:  # fmt: skip
    """Radiance [R, 3] along rays from origins [R, 3] or [3].

    open_sky: how much of the sky's light reaches each hit [R], 1 for all. angle: radians a pixel spans, for textures.
    mirrors: whether reflections are traced (once).
    """
    color = np.empty((len(directions), 3), dtype=np.float32)
    met = hits.triangle >= 0
    away = np.flatnonzero(~met)
    if len(away):
        color[away] = weather.sky(directions[away])
    rows = np.flatnonzero(met)
    if not len(rows):
        return color
    triangle, distance, ray = hits.triangle[rows], hits.distance[rows], directions[rows]
    start = origin if origin.ndim == 1 else origin[rows]
    point = start + ray * distance[:, None]
    flat, normal = _normals(view, triangle, hits.barycentric[rows], ray)
    material = view.take("material", triangle)
    albedo = _albedo(
        view,
        materials,
        triangle,
        hits.barycentric[rows],
        material,
        point,
        distance * angle,
        np.abs((flat * ray).sum(1)),
    )
    share = open_sky if isinstance(open_sky, float) else open_sky[rows][:, None]
    above, below = weather.ambient()
    up = 0.5 + 0.5 * normal[:, 2:3]
    light = (above * up + below * (1 - up)) * share
    light += _sun(view, materials, weather, point, flat, normal, material)
    radiance = albedo * (light + materials.glow[material][:, None] * 1.5)
    mirror = materials.mirror[material]
    shiny = np.flatnonzero(mirror > 0)
    if len(shiny):
        facing = np.clip(-(normal[shiny] * ray[shiny]).sum(axis=1), 0, 1)
        fresnel = (mirror[shiny] + (1 - mirror[shiny]) * (1 - facing) ** 5)[:, None] * np.minimum(
            1, mirror[shiny, None] * 12
        )
        reflected = ray[shiny] + 2 * facing[:, None] * normal[shiny]
        image = weather.sky(reflected)
        if mirrors:
            traced = np.flatnonzero(mirror[shiny] >= _TRACED)
            image[traced] = _reflection(
                view,
                materials,
                weather,
                point[shiny[traced]] + flat[shiny[traced]] * 0.02,
                reflected[traced],
                image[traced],
            )
        radiance[shiny] = radiance[shiny] * (1 - fresnel) + image * fresnel
    clear = np.exp(-weather.haze * distance)[:, None]
    color[rows] = radiance * clear + weather.horizon * (1 - clear)
    return color


def _normals(view: View, triangle: Ints, barycentric: Floats, ray: Floats) -> tuple[Floats, Floats]:
    """The triangle's own normal and the interpolated one, both towards the viewer: [R, 3] each."""
    flat = face_normals(view.take("corners", triangle))
    flat *= np.where((flat * ray).sum(axis=1, keepdims=True) > 0, np.float32(-1), np.float32(1))
    smooth = view.interpolate("normals", triangle, barycentric)
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-6)
    # Leaves keep the normals of their crown, whichever side is seen; on solids both normals nearly agree.
    along = (smooth * flat).sum(axis=1, keepdims=True)
    smooth = np.where(along < -0.5, -smooth, smooth)
    return flat, smooth


def _albedo(
    view: View, materials: Materials, triangle: Ints, barycentric: Floats, material: Ints, point: Floats, span: Floats,
    cosine: Floats,
) -> Floats:  # fmt: skip
    """Colour [R, 3] with texture and large patches; span: metres that a pixel covers across the ray [R]."""
    color: Floats = materials.color[material] * view.take("tint", triangle)[:, None]
    tile, size = materials.tile[material], materials.tile_size[material]
    # Seen at a grazing angle a pixel covers more ground; the geometric mean of both directions is a fair blur.
    span = np.asarray(span / np.sqrt(np.maximum(cosine, 0.02)), dtype=np.float32)
    textured = np.flatnonzero(tile > 0)
    if len(textured):
        stretched = np.flatnonzero(size[textured] == 0)
        scale = np.where(size[textured] > 0, size[textured], 1.0).astype(np.float32)
        uv = view.interpolate("uv", triangle[textured], barycentric[textured]) / scale[:, None]
        if len(stretched):  # metres that the tile is stretched over, from one edge
            chosen = triangle[textured[stretched]]
            edge, run = (np.diff(view.take(field, chosen)[:, :2], axis=1)[:, 0] for field in ("corners", "uv"))
            scale[stretched] = np.linalg.norm(edge, axis=1) / np.maximum(np.linalg.norm(run, axis=1), 1e-6)
        color[textured] *= sample(tile[textured], uv, span[textured] / scale)
    patchy = np.flatnonzero(materials.patches[material] > 0)
    if len(patchy):
        spot = point[patchy]
        plane = np.stack([spot[:, 0] + 0.7 * spot[:, 2], spot[:, 1] + 0.7 * spot[:, 2]], axis=1) / np.float32(23.0)
        wide = sample(_CLOUDS, plane, span[patchy] / 23.0)[:, :1] - 1
        color[patchy] *= np.clip(1 + wide * materials.patches[material[patchy]][:, None] * 1.4, 0.4, 1.8)
    return color


def _sun(
    view: View, materials: Materials, weather: Weather, point: Floats, flat: Floats, normal: Floats, material: Ints
) -> Floats:
    """Light of the sun on each point [R, 3]; thin leaves let a part of it through."""
    slant = normal @ weather.sun
    thin = materials.thin[material]
    amount = np.maximum(slant, 0) + thin * np.maximum(-slant, 0) * 0.8
    solid = (thin == 0) & (flat @ weather.sun <= 0)
    amount[solid] = 0
    lit = np.flatnonzero(amount > 0)
    if len(lit):
        side = np.where((flat[lit] @ weather.sun)[:, None] > 0, np.float32(1), np.float32(-1))
        blocked = view.blocked(point[lit] + flat[lit] * side * _LIFT, weather.sun[None].copy())
        amount[lit[blocked]] = 0
    light: Floats = amount[:, None] * weather.sunlight
    return light


def _reflection(
    view: View, materials: Materials, weather: Weather, start: Floats, directions: Floats, sky: Floats
) -> Floats:
    """What a mirror shows [R, 3]: the sky given, or the surface that is met, lit evenly."""
    hits = view.cast(start, directions, 60.0)
    met = np.flatnonzero(hits.triangle >= 0)
    shown: Floats = sky.copy()
    if len(met):
        triangle = hits.triangle[met]
        material = view.take("material", triangle)
        normal = face_normals(view.take("corners", triangle))
        above, below = weather.ambient()
        up = 0.5 + 0.5 * np.abs(normal[:, 2:3])
        light = 0.8 * (above * up + below * (1 - up)) + 0.4 * np.abs(normal @ weather.sun)[:, None] * weather.sunlight
        shown[met] = materials.color[material] * view.take("tint", triangle)[:, None] * light
    return shown


def open_sky(
    view: View, hits: Hits, origin: Floats, directions: Floats, shape: tuple[int, int], rng: np.random.Generator
) -> Floats:
    """The share of the sky's light that nearby things leave to each pixel [H * W], 1 where nothing is met.

    Ambient occlusion: one ray for each second pixel in both directions, along one of 16 directions of the upper
    hemisphere that take turns in 4 x 4 blocks, then the mean over such a block (interleaved sampling, Keller and
    Heidrich 2001), weighted so that it does not cross from one surface to another.
    """
    height, width = shape
    grid = np.arange(height * width).reshape(height, width)[::2, ::2]
    index = grid.ravel()
    rows = np.flatnonzero(hits.triangle[index] >= 0)
    free = np.ones(len(index), dtype=np.float32)
    chosen = index[rows]
    ray, distance = directions[chosen], hits.distance[chosen]
    flat = face_normals(view.take("corners", hits.triangle[chosen]))
    flat *= np.where((flat * ray).sum(axis=1, keepdims=True) > 0, np.float32(-1), np.float32(1))
    turn = (np.arange(16) + 0.5) / 16
    golden = np.pi * (1 + 5**0.5) * np.arange(16) + rng.uniform(0, 2 * np.pi)
    z = np.sqrt(1 - turn)  # cosine-weighted
    disc = np.stack([np.sqrt(turn) * np.cos(golden), np.sqrt(turn) * np.sin(golden), z], axis=1).astype(np.float32)
    order = rng.permutation(16).reshape(4, 4)
    number = order[np.arange(grid.shape[0])[:, None] % 4, np.arange(grid.shape[1])[None] % 4].ravel()[rows]
    local = disc[number]
    # About the normal: its own frame from a helper axis that is never parallel to it.
    axes = np.eye(3, dtype=np.float32)
    helper = np.where(np.abs(flat[:, 2:3]) > 0.8, axes[:1], axes[2:])
    side = np.cross(flat, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    out = side * local[:, :1] + np.cross(flat, side) * local[:, 1:2] + flat * local[:, 2:]
    point = origin + ray * distance[:, None] + flat * np.float32(0.006)
    free[rows] = np.where(view.blocked(point, np.ascontiguousarray(out), _REACH), np.float32(_LEFT), np.float32(1))
    key = np.full(len(index), 1e9, dtype=np.float32)
    key[rows] = distance
    smooth = _block_mean(free.reshape(grid.shape), key.reshape(grid.shape))
    full = np.repeat(np.repeat(smooth, 2, axis=0), 2, axis=1)[:height, :width]
    return np.ascontiguousarray(full).ravel()


def _block_mean(value: Floats, distance: Floats) -> Floats:
    """Mean over 4 x 4 (one turn of the pattern), of those at nearly the same distance only."""
    total, weight = np.zeros_like(value), np.zeros_like(value)
    padded, far = np.pad(value, 2, mode="edge"), np.pad(distance, 2, mode="edge")
    tolerance = np.float32(0.04) * distance + np.float32(0.1)
    rows, columns = value.shape
    for dy in range(4):
        for dx in range(4):
            other, there = padded[dy : dy + rows, dx : dx + columns], far[dy : dy + rows, dx : dx + columns]
            same = (np.abs(there - distance) < tolerance).astype(np.float32)
            total += other * same
            weight += same
    return np.asarray(total / np.maximum(weight, 1), dtype=np.float32)
