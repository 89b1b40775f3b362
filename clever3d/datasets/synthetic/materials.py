"""What surfaces are made of: colour and texture for the cameras, reflectance for the LiDAR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clever3d.datasets.synthetic.mesh import Floats, Ints

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """One surface.

    color: linear RGB albedo, 0..1. reflectance: what the LiDAR gets back (near infrared), 1 and more for
    retro-reflectors. tile: texture, a name in textures.TILES, that multiplies the colour. tile_size: metres it spans
    before it repeats, 0 to stretch it once over texture coordinates 0..1. mirror: share reflected straight on,
    growing at grazing angles (Schlick). shine: how much more the LiDAR sees where it meets the surface squarely.
    glow: light of its own, added to the colour. thin: leaves and cloth, which the sun shines through.
    """

    color: Color
    reflectance: float
    tile: str = "plain"
    tile_size: float = 1.0
    mirror: float = 0.0
    shine: float = 0.0
    glow: float = 0.0
    thin: float = 0.0
    patches: float = 0.0


@dataclass(frozen=True, eq=False)
class Materials:
    """All materials of a scene as arrays, one row each [M]."""

    color: Floats  # [M, 3]
    reflectance: Floats
    tile: Ints
    tile_size: Floats
    mirror: Floats
    lidar_shine: Floats
    glow: Floats
    thin: Floats
    patches: Floats


class Palette:
    """Collects the materials of a scene; each has one row however often it is asked for."""

    def __init__(self, tiles: tuple[str, ...]) -> None:
        self._rows: dict[Material, int] = {}
        self._tiles = tiles

    def __call__(self, material: Material) -> int:
        return self._rows.setdefault(material, len(self._rows))

    def table(self) -> Materials:
        """The materials so far."""
        rows = list(self._rows)

        def column(field: str) -> Floats:
            return np.array([getattr(row, field) for row in rows], dtype=np.float32)

        return Materials(
            color=column("color"),
            reflectance=column("reflectance"),
            tile=np.array([self._tiles.index(row.tile) for row in rows], dtype=np.int32),
            tile_size=column("tile_size"),
            mirror=column("mirror"),
            lidar_shine=column("shine"),
            glow=column("glow"),
            thin=column("thin"),
            patches=column("patches"),
        )
