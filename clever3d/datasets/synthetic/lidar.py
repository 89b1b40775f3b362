"""Scanning: rays of a LiDAR model into the world, and what of them comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.materials import Materials
from clever3d.datasets.synthetic.mesh import Floats, Ints, face_normals
from clever3d.datasets.synthetic.sensors import LidarModel
from clever3d.datasets.synthetic.tracer import View
from clever3d.datasets.synthetic.truth import WorldScan

#: Moments in one turn at which moving things are placed anew when motion distortion is asked for: at 15 m/s and
#: 10 Hz they move 6 cm between two (our choice).
SLICES = 24
#: Reflectance of retro-reflective sheeting on the scale where 1 is a white matt surface (our choice).
_RETRO = 1.6


@dataclass(frozen=True, eq=False)
class _Echoes:
    """Rays that met something: their number [R] in firing order, range, cosine of incidence, and what they met."""

    ray: NDArray[np.intp]
    distance: Floats
    cosine: Floats
    material: Ints
    label: NDArray[np.uint8]
    instance: Ints
    uv: Floats
    tint: Floats


def scan(
    model: LidarModel,
    lidar_to_ego: Matrix,
    pose: Callable[[float], Matrix],
    view: Callable[[float, tuple[float, float] | None], View],
    materials: Materials,
    timestamp: float,
    rng: np.random.Generator,
    *,
    motion_distortion: bool,
) -> WorldScan:
    """One turn whose middle is at `timestamp`.

    pose: ego_to_world at a time. view: the world's triangles at a time, all or those in a sector. With
    `motion_distortion` each column is fired from where the vehicle is at its own time, at things where they are then
    (in SLICES steps); the points are given in the sensor's axes of that time, as a LiDAR reports them.
    """
    directions = model.directions()  # [columns, beams, 3]
    columns, beams = directions.shape[:2]
    slices = np.array_split(np.arange(columns), SLICES) if motion_distortion else [np.arange(columns)]
    times = model.times() if motion_distortion else np.zeros(columns)
    parts = []
    for part in slices:
        mounts = [pose(timestamp + t) @ lidar_to_ego for t in (times[part] if motion_distortion else times[:1])]
        seen = view(
            timestamp + float(times[part].mean()), _sector(mounts, directions[part]) if motion_distortion else None
        )
        parts.append(_cast(seen, directions[part], np.stack(mounts), int(part[0]) * beams))
    echoes = _Echoes(*(np.concatenate([getattr(p, field) for p in parts]) for field in _Echoes.__annotations__))
    kept, distance, intensity = _received(model, materials, echoes, rng)
    ray = echoes.ray[kept]
    xyz = directions.reshape(-1, 3)[ray] * distance[:, None]
    return WorldScan(
        timestamp=timestamp,
        xyz=xyz.astype(np.float32),
        intensity=intensity,
        ring=(ray % beams).astype(np.uint8),
        time=times[ray // beams].astype(np.float32),
        label=echoes.label[kept],
        instance=echoes.instance[kept],
        lidar_to_ego=lidar_to_ego,
        ego_to_world=pose(timestamp),
    )


def _sector(mounts: list[Matrix], directions: Matrix) -> tuple[float, float]:
    """The bearings in the world (middle, half width) that rays along directions [columns, beams, 3] look at."""
    ahead = np.stack([mount[:3, :3] @ ray for mount, ray in zip(mounts, directions.mean(axis=1), strict=True)])
    middle = ahead.mean(axis=0)
    bearing = float(np.arctan2(middle[1], middle[0]))
    aside = (np.arctan2(ahead[:, 1], ahead[:, 0]) - bearing + np.pi) % (2 * np.pi) - np.pi
    return bearing, float(np.abs(aside).max()) + 0.02


def _cast(view: View, directions: Matrix, mounts: Matrix, first_ray: int) -> _Echoes:
    """Rays along directions [columns, beams, 3] from mounts [columns or 1, 4, 4] (sensor to world)."""
    columns, beams = directions.shape[:2]
    turned = np.einsum("cij,cbj->cbi", np.broadcast_to(mounts[:, :3, :3], (columns, 3, 3)), directions)
    origins = np.broadcast_to(mounts[:, None, :3, 3], (columns, beams, 3))
    rays = np.ascontiguousarray(turned.reshape(-1, 3), dtype=np.float32)
    hits = view.cast(np.ascontiguousarray(origins.reshape(-1, 3), dtype=np.float32), rays)
    met = np.flatnonzero(hits.triangle >= 0)
    triangle = hits.triangle[met]
    normal = face_normals(view.take("corners", triangle))
    return _Echoes(
        ray=met + first_ray,
        distance=hits.distance[met],
        cosine=np.abs((normal * rays[met]).sum(axis=1)),
        material=view.take("material", triangle),
        label=view.take("label", triangle),
        instance=view.take("instance", triangle),
        uv=view.interpolate("uv", triangle, hits.barycentric[met]),
        tint=view.take("tint", triangle),
    )


def _received(
    model: LidarModel, materials: Materials, echoes: _Echoes, rng: np.random.Generator
) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Which echoes are strong enough [K], their ranges with noise and their intensities.

    The power that comes back goes with reflectance, with the incidence and with 1 / range^2 (the LiDAR equation for a
    surface that fills the beam). Detection needs as much as a squarely met 80 % surface gives at `reach`, times a
    lognormal spread. Real asphalt at grazing incidence is seen much farther than Lambert's cosine allows: a small power
    of the cosine meets the data sheet's 50 m for pavement. Intensity is range-calibrated, as in all three sensors, and
    falls slightly with range; all constants are our choice.
    """
    count = len(echoes.ray)
    reflectance = materials.reflectance[echoes.material] * echoes.tint**0.5  # [R]
    spread, lost, jitter, speckle = (
        rng.random(count),
        rng.random(count),
        rng.normal(size=count),
        rng.normal(size=count),
    )
    power = reflectance / 0.8 * echoes.cosine**0.25 * (model.reach / np.maximum(echoes.distance, 0.1)) ** 2
    kept = (power > 0.6 + 0.8 * spread) & (lost >= model.dropout) & (echoes.distance >= model.nearest)
    rows = np.flatnonzero(kept)
    distance = echoes.distance[rows]
    # Weak echoes are ranged less well.
    blur = model.noise * (1 + 1 / np.sqrt(np.maximum(power[rows], 1)))
    noisy = distance + blur * np.clip(jitter[rows], -3, 3)
    shine = materials.lidar_shine[echoes.material[rows]] * echoes.cosine[rows] ** 40
    level = reflectance[rows] * (0.35 + 0.65 * echoes.cosine[rows]) + shine
    level = level * (1 - 0.25 * distance / model.reach) * (1 + 0.08 * speckle[rows])
    # A retro-reflector of _RETRO, the brightest material there is, reads full scale.
    beyond = np.maximum(level - 1, 0) * max(1 - model.white, 0) / (_RETRO - 1)
    reading = np.minimum(level, 1) * model.white + beyond
    return rows, noisy.astype(np.float32), np.clip(reading, 0, 1).astype(np.float32)
