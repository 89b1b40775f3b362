"""Procedural textures: square tiles that repeat without a seam, with smaller copies for what is far away.

A tile multiplies a material's colour, so its mean is near 1; signs and boards hold their colours themselves. All
patterns are our choice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.mesh import Floats, Ints

#: Texels on a side of the largest copy.
SIDE = 256
_LEVELS = 8  # 256, 128, ..., 2


def noise(rng: np.random.Generator, slope: float, lowest: float = 1.0, highest: float = 128.0) -> Matrix:
    """Periodic noise [SIDE, SIDE] of mean 0 and deviation 1: amplitudes fall as frequency^-slope, phases by chance.

    lowest, highest: the band of frequencies, in waves per tile.
    """
    fy, fx = np.fft.fftfreq(SIDE, 1 / SIDE)[:, None], np.fft.rfftfreq(SIDE, 1 / SIDE)[None, :]
    frequency = np.hypot(fx, fy)
    band = (frequency >= lowest) & (frequency <= highest)
    amplitude = np.where(band, np.maximum(frequency, 1) ** -slope, 0)
    spectrum = amplitude * np.exp(2j * np.pi * rng.random(frequency.shape))
    field = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
    return np.asarray((field - field.mean()) / field.std())


def _grey(field: Matrix) -> Matrix:
    return np.repeat(np.clip(field, 0.02, 3.0)[..., None], 3, axis=2)


def _asphalt(rng: np.random.Generator) -> Matrix:
    stones = noise(rng, 0.1, 30)
    return _grey(1 + 0.10 * stones + 0.07 * noise(rng, 1.0, 1, 30) + 0.25 * (stones > 2.2))


def _concrete(rng: np.random.Generator) -> Matrix:
    return _grey(1 + 0.05 * noise(rng, 0.2, 20) + 0.07 * noise(rng, 1.2, 1, 40))


def _cells(rows: int, columns: int, offset: float) -> tuple[Matrix, Matrix, NDArray[np.intp]]:
    """For a wall of rows x columns stones per tile: the distance to the nearest joint in each direction (in texels),
    and the stone's number; every other row is shifted by `offset` of a stone."""
    y, x = np.meshgrid((np.arange(SIDE) + 0.5) / SIDE, (np.arange(SIDE) + 0.5) / SIDE, indexing="ij")
    row = np.floor(y * rows).astype(np.intp)
    along = (x * columns + offset * (row % 2)) % columns
    column = np.floor(along).astype(np.intp)
    across = np.abs((along + 0.5) % 1 - 0.5) * SIDE / columns
    up = np.abs((y * rows + 0.5) % 1 - 0.5) * SIDE / rows
    return across, up, row * columns + column


def _stones(
    rng: np.random.Generator, rows: int, columns: int, offset: float, joint: float, depth: float, spread: float
) -> Matrix:
    across, up, number = _cells(rows, columns, offset)
    each = 1 + spread * rng.normal(size=(rows * columns, 1)) + spread * 0.15 * rng.normal(size=(rows * columns, 3))
    tile = each[number] * (1 + 0.06 * noise(rng, 0.6, 4))[..., None]
    return np.asarray(np.where((np.minimum(across, up) < joint)[..., None], depth, tile))


def _brick(rng: np.random.Generator) -> Matrix:
    return _stones(rng, 12, 4, 0.5, 2.0, 1.6, 0.16)


def _paving(rng: np.random.Generator) -> Matrix:
    return _stones(rng, 4, 4, 0.0, 1.3, 0.6, 0.06)


def _cobbles(rng: np.random.Generator) -> Matrix:
    return _stones(rng, 14, 10, 0.5, 2.2, 0.5, 0.14)


def _roof(rng: np.random.Generator) -> Matrix:
    _, up, number = _cells(8, 8, 0.5)
    each = 1 + 0.12 * rng.normal(size=(64, 1))
    y = (np.arange(SIDE) + 0.5) / SIDE * 8 % 1
    return np.asarray(each[number] * (0.65 + 0.5 * y[:, None, None]) * np.where(up < 1.5, 0.55, 1.0)[..., None])


def _grass(rng: np.random.Generator) -> Matrix:
    blades = noise(rng, 0.15, 24) * 0.27 + noise(rng, 0.9, 2, 40) * 0.2
    dry = noise(rng, 1.0, 1, 30) * 0.09
    tile = np.stack([1 + blades + dry, 1 + blades, 1 + blades - dry], axis=-1)
    return np.clip(tile, 0.15, 2.5)


def _soil(rng: np.random.Generator) -> Matrix:
    return _grey(1 + 0.2 * noise(rng, 0.5, 6) + 0.15 * noise(rng, 1.0, 1, 20))


def _plaster(rng: np.random.Generator) -> Matrix:
    return _grey(1 + 0.03 * noise(rng, 0.1, 40) + 0.04 * noise(rng, 1.3, 1, 20))


def _bark(rng: np.random.Generator) -> Matrix:
    grain = noise(rng, 0.3, 6)
    ridges = sum(np.roll(grain, shift, axis=0) for shift in range(14)) / 14**0.5  # drawn out along the stem
    return _grey(1 + 0.25 * ridges + 0.1 * noise(rng, 0.1, 30))


def _leaf(rng: np.random.Generator) -> Matrix:
    shade = 0.3 * noise(rng, 0.3, 8)
    return np.clip(np.stack([1 + shade * 1.1, 1 + shade, 1 + shade * 0.6], axis=-1), 0.3, 2.0)


def _cloth(rng: np.random.Generator) -> Matrix:
    return _grey(1 + 0.12 * noise(rng, 1.1, 1, 20) + 0.04 * noise(rng, 0.1, 40))


def _planks(rng: np.random.Generator) -> Matrix:
    _, up, number = _cells(8, 1, 0)
    each = 1 + 0.13 * rng.normal(size=(8, 1))
    grain = 1 + 0.12 * np.repeat(noise(rng, 0.6, 2)[:, :1], SIDE, axis=1) + 0.05 * noise(rng, 0.4, 10)
    return np.asarray(each[number] * grain[..., None] * np.where(up < 1.6, 0.45, 1.0)[..., None])


def _worn(rng: np.random.Generator) -> Matrix:
    return _grey(1 - 0.45 * (noise(rng, 0.7, 6) > 1.5) + 0.05 * noise(rng, 0.1, 30))


def _steel(rng: np.random.Generator) -> Matrix:
    return _grey(1 + 0.1 * noise(rng, 0.8, 2, 60))


def _clouds(rng: np.random.Generator) -> Matrix:
    """Not a colour: 1 + a tenth of the noise, for clouds and large patches."""
    return _grey(1 + 0.1 * noise(rng, 1.55, 1, 64))


def _plane() -> tuple[Matrix, Matrix]:
    """x to the right and y up over a tile, -1..1."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    x, y = np.meshgrid(axis, axis)  # row 0 is texture coordinate v = 0, the bottom
    return x, y


def _mix(base: tuple[float, float, float], *layers: tuple[NDArray[np.bool_], tuple[float, float, float]]) -> Matrix:
    tile = np.tile(np.array(base), (SIDE, SIDE, 1))
    for mask, color in layers:
        tile[mask] = color
    return tile


def _lettering(rng: np.random.Generator, rows: int, columns: int, height: float, aspect: float) -> NDArray[np.bool_]:
    """Rows of marks that read as letters from afar: random strokes on a 3 x 5 grid for each."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    x, y = _plane()
    for row in range(rows):
        middle = 0.0 if rows == 1 else 0.55 - 1.1 * row / (rows - 1)
        for column in range(columns):
            strokes = rng.random((5, 3)) < 0.58
            cx = (-0.8 + 1.6 * (column + 0.5) / columns) * aspect
            i = np.floor((y - middle) / height * 2.5 + 2.5).astype(int)
            j = np.floor((x - cx) / (1.15 * aspect / columns) * 1.5 + 1.5).astype(int)
            inside = (i >= 0) & (i < 5) & (j >= 0) & (j < 3)
            mask |= inside & strokes[np.clip(i, 0, 4), np.clip(j, 0, 2)]
    return mask


def _plate(rng: np.random.Generator) -> Matrix:
    x, _ = _plane()
    return _mix((1, 1, 1), (_lettering(rng, 1, 7, 0.6, 0.95), (0.06, 0.06, 0.06)), (x < -0.9, (0.1, 0.2, 0.9)))


def _display(rng: np.random.Generator) -> Matrix:
    return _mix((1, 1, 1), (_lettering(rng, 1, 10, 0.55, 0.95), (30.0, 16.0, 2.0)))


def _shop(rng: np.random.Generator) -> Matrix:
    return _mix((1, 1, 1), (_lettering(rng, 1, 8, 0.45, 0.9), (4.0, 4.0, 4.0)))


def _limit(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    radius = np.hypot(x, y)
    digits = (
        (np.abs(y) < 0.42)
        & (np.abs(np.abs(x) - 0.26) < 0.2)
        & ~((np.abs(np.abs(x) - 0.26) < 0.09) & (np.abs(np.abs(y) - 0.17) < 0.11))
    )
    return _mix((0.85, 0.85, 0.85), (radius > 0.76, (0.6, 0.02, 0.02)), (digits, (0.02, 0.02, 0.02)))


def _no_entry(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    return _mix(
        (0.6, 0.02, 0.02),
        ((np.abs(x) < 0.66) & (np.abs(y) < 0.17), (0.85, 0.85, 0.85)),
        (np.hypot(x, y) > 0.94, (0.85, 0.85, 0.85)),
    )


def _stop(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    edge = np.maximum(np.maximum(abs(x), abs(y)), (abs(x) + abs(y)) / 1.414)
    return _mix(
        (0.55, 0.02, 0.02), (edge > 0.92, (0.85, 0.85, 0.85)), (_lettering(rng, 1, 4, 0.34, 0.8), (0.85, 0.85, 0.85))
    )


def _yield(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    inner = np.maximum(y - 0.5, np.abs(x) * 1.05 - 0.28 - y * 0.55) < 0.02
    return _mix((0.6, 0.02, 0.02), (inner, (0.85, 0.85, 0.85)))


def _warning(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    inner = np.maximum(-y - 0.68, np.abs(x) * 1.05 - 0.28 + y * 0.55) < 0.0
    mark = (np.abs(x) < 0.09) & (y > -0.32) & (y < 0.3) | (np.hypot(x, y + 0.5) < 0.11)
    return _mix((0.6, 0.02, 0.02), (inner, (0.85, 0.85, 0.85)), (mark, (0.02, 0.02, 0.02)))


def _crossing(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    inner = np.maximum(-y - 0.6, np.abs(x) - 0.35 + y * 0.5) < 0.0
    figure = (np.hypot(x, y - 0.18) < 0.1) | ((np.abs(x) < 0.09) & (y < 0.08) & (y > -0.45))
    return _mix((0.02, 0.1, 0.5), (inner, (0.85, 0.85, 0.85)), (figure, (0.02, 0.02, 0.02)))


def _arrow(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    arrow = ((np.abs(x) < 0.13) & (y > -0.6) & (y < 0.2)) | ((y > 0.1) & (np.abs(x) < 0.62 - y) & (y < 0.62))
    return _mix((0.02, 0.1, 0.5), (arrow, (0.85, 0.85, 0.85)), (np.hypot(x, y) > 0.95, (0.85, 0.85, 0.85)))


def _parking(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    stem = (np.abs(x + 0.27) < 0.12) & (np.abs(y) < 0.62)
    bowl = (np.abs(np.hypot(np.maximum(x - 0.05, 0), y - 0.27) - 0.25) < 0.11) & (x > -0.3)
    rim = np.maximum(np.abs(x), np.abs(y)) > 0.92
    return _mix((0.02, 0.1, 0.5), (stem | bowl | rim, (0.85, 0.85, 0.85)))


def _board(rng: np.random.Generator) -> Matrix:
    x, y = _plane()
    letters = _lettering(rng, 3, 9, 0.26, 0.8)
    rim = np.maximum(np.abs(x), np.abs(y)) > 0.95
    return _mix((0.02, 0.09, 0.4), (letters | rim, (0.85, 0.85, 0.85)))


_MAKERS: dict[str, Callable[[np.random.Generator], Matrix]] = {
    "plain": lambda rng: np.ones((SIDE, SIDE, 3)),
    "clouds": _clouds, "asphalt": _asphalt, "concrete": _concrete, "brick": _brick, "paving": _paving,
    "cobbles": _cobbles, "roof": _roof, "grass": _grass, "soil": _soil, "plaster": _plaster, "bark": _bark,
    "leaf": _leaf, "cloth": _cloth, "planks": _planks, "worn": _worn, "steel": _steel, "plate": _plate,
    "display": _display, "shop": _shop, "limit": _limit, "no_entry": _no_entry, "stop": _stop, "yield": _yield,
    "warning": _warning, "crossing": _crossing, "arrow": _arrow, "parking": _parking, "board": _board,
}  # fmt: skip
#: The names of the tiles, in the order of their numbers.
TILES = tuple(_MAKERS)


@functools.lru_cache(maxsize=1)
def _atlas() -> tuple[Floats, Ints]:
    """All texels [X, 3], level after level, and where each level begins [_LEVELS]."""
    levels: list[list[Matrix]] = [[] for _ in range(_LEVELS)]
    for number, make in enumerate(_MAKERS.values()):
        tile = np.broadcast_to(make(np.random.default_rng([20, number])), (SIDE, SIDE, 3))
        for level in range(_LEVELS):
            levels[level].append(tile.reshape(-1, 3))
            side = tile.shape[0] // 2
            tile = tile.reshape(side, 2, side, 2, 3).mean(axis=(1, 3))
    flat = [np.concatenate(level) for level in levels]
    begins = np.concatenate([[0], np.cumsum([len(level) for level in flat])[:-1]])
    return np.concatenate(flat).astype(np.float32), begins.astype(np.int32)


def sample(tile: Ints | int, uv: Floats, footprint: Floats) -> Floats:
    """Colours [R, 3] of tiles [R] at uv [R, 2] (in tiles), each averaged over about `footprint` [R] (in tiles)."""
    texels, begins = _atlas()
    level = np.clip(np.log2(np.maximum(footprint * SIDE, 1.0)) + 0.3, 0, _LEVELS - 1).astype(np.int32)
    side = np.int32(SIDE) >> level
    position = uv * side[:, None].astype(np.float32) - np.float32(0.5)
    whole = np.floor(position)
    share = position - whole
    corner = whole.astype(np.int32)
    mask = side - 1  # sides are powers of two
    base = begins[level] + np.asarray(tile, dtype=np.int32) * side * side
    u0, u1 = corner[:, 0] & mask, (corner[:, 0] + 1) & mask
    v0, v1 = base + (corner[:, 1] & mask) * side, base + ((corner[:, 1] + 1) & mask) * side
    x, y = share[:, :1], share[:, 1:]
    low = texels[v0 + u0] * (1 - x) + texels[v0 + u1] * x
    high = texels[v1 + u0] * (1 - x) + texels[v1 + u1] * x
    color: Floats = low * (1 - y) + high * y
    return color
