"""Pictures of the world: one ray a pixel for depth and labels, more where colours change, shaded in shading.py."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.mesh import Floats
from clever3d.datasets.synthetic.scene import Scene
from clever3d.datasets.synthetic.sensors import CameraModel
from clever3d.datasets.synthetic.shading import open_sky, shade
from clever3d.datasets.synthetic.tracer import Hits
from clever3d.datasets.synthetic.truth import Picture

#: Where in a pixel the further rays go, in pixels from its middle: a rotated grid, the middle itself left out.
_OFFSETS = ((0.375, 0.125), (-0.125, 0.375), (-0.375, -0.125), (0.125, -0.375))
#: Share of the pixels that get further rays at most, and the contrast with a neighbour above which (our choice).
_REFINED, _CONTRAST = 0.22, 0.07


@functools.lru_cache(maxsize=12)
def _pixel_rays(camera: CameraModel) -> tuple[Floats, NDArray[np.bool_]]:
    """Unit rays [H * W, 3] in camera axes through the pixels' middles, and which of them there are."""
    width, height = camera.size
    lens = Camera(camera.name, Path(), camera.intrinsics, np.eye(4), camera.distortion, camera.size)
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = lens.rays(np.stack([u.ravel(), v.ravel()], axis=1))
    there = np.asarray(np.isfinite(rays).all(axis=1))
    rays[~there] = (0.0, 0.0, 1.0)
    return rays.astype(np.float32), there


def _rays_aside(rays: Floats, rows: NDArray[np.intp], size: tuple[int, int], offset: tuple[float, float]) -> Floats:
    """The rays of pixels `rows` moved by a part of a pixel, from those of the neighbours (exact to 1e-3 pixels)."""
    width, height = size
    u, v = rows % width, rows // width
    right, left = v * width + np.minimum(u + 1, width - 1), v * width + np.maximum(u - 1, 0)
    below, above = np.minimum(v + 1, height - 1) * width + u, np.maximum(v - 1, 0) * width + u
    moved: Floats = rays[rows] + np.float32(offset[0] / 2) * (rays[right] - rays[left])
    moved += np.float32(offset[1] / 2) * (rays[below] - rays[above])
    moved /= np.sqrt(np.einsum("ij,ij->i", moved, moved))[:, None]
    return moved


def render(
    scene: Scene, camera: CameraModel, camera_to_world: Matrix, moment: float, rng: np.random.Generator
) -> Picture:
    """What the camera sees at a moment.

    Depth, label and instance are those of the ray through the middle of each pixel; the colour is the mean over further
    rays where it changes from pixel to pixel. A distorted camera has pixels that no ray reaches: black, label 0.
    """
    width, height = camera.size
    view = scene.view(moment)
    position, turn = camera_to_world[:3, 3].astype(np.float32), camera_to_world[:3, :3].astype(np.float32)
    angle = 1.0 / float(camera.intrinsics[0, 0])

    def cast(rays: Floats) -> tuple[Floats, Hits]:
        directions = rays @ turn.T
        return directions, view.cast(np.repeat(position[None], len(rays), axis=0), directions)

    rays, there = _pixel_rays(camera)
    directions, hits = cast(rays)
    free = open_sky(view, hits, position, directions, (height, width), rng)
    color = shade(view, scene.materials, scene.weather, position, directions, hits, free, angle)
    rows = np.flatnonzero(
        _changing(color.reshape(height, width, 3) * scene.weather.exposure).ravel() & _inner(there, camera.size)
    )
    total = color[rows].copy()
    for offset in _OFFSETS:
        turned, further = cast(_rays_aside(rays, rows, camera.size, offset))
        total += shade(view, scene.materials, scene.weather, position, turned, further, free[rows], angle)
    color[rows] = total / (1 + len(_OFFSETS))
    met = there & (hits.triangle >= 0)
    label, instance = np.zeros(len(rays), dtype=np.uint8), np.zeros(len(rays), dtype=np.int32)
    label[met], instance[met] = view.take("label", hits.triangle[met]), view.take("instance", hits.triangle[met])
    depth = np.where(met, hits.distance * rays[:, 2], np.inf).astype(np.float32)
    image = _develop(color * scene.weather.exposure, rng)
    image[~there] = 0
    return Picture(
        image.reshape(height, width, 3),
        depth.reshape(height, width),
        label.reshape(height, width),
        instance.reshape(height, width),
    )


def _inner(there: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels [H * W] all of whose neighbours have rays: only those are refined."""
    seen = np.pad(there.reshape(size[1], size[0]), 1, mode="edge")
    around = seen[:-2, 1:-1] & seen[2:, 1:-1] & seen[1:-1, :-2] & seen[1:-1, 2:] & seen[1:-1, 1:-1]
    return np.asarray(around.ravel())


def _changing(color: Floats) -> NDArray[np.bool_]:
    """Pixels [H, W] that differ from a neighbour, the ones that differ most if there are too many."""
    bright = np.sqrt(np.clip(color, 0, 1)) @ np.array([0.3, 0.5, 0.2], dtype=np.float32)
    contrast = np.zeros_like(bright)
    for axis in (0, 1):
        step = np.abs(np.diff(bright, axis=axis))
        first = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        second = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        contrast[first] = np.maximum(contrast[first], step)
        contrast[second] = np.maximum(contrast[second], step)
    limit = _CONTRAST
    if (contrast > limit).mean() > _REFINED:
        limit = float(np.quantile(contrast, 1 - _REFINED))
    return contrast > limit


def _develop(light: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Radiance [R, 3] to bytes: the noise of a sensor, a filmic tone curve, gamma.

    The curve is Narkowicz's fit of ACES (2015); the noise is shot and read noise of a small sensor (our choice).
    """
    light = np.maximum(light, 0)
    light += rng.standard_normal(light.shape, dtype=np.float32) * (0.012 * np.sqrt(light) + 0.0015)
    light = np.maximum(light, 0)
    curve = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    image: NDArray[np.uint8] = (np.clip(curve, 0, 1) ** np.float32(1 / 2.2) * 255 + 0.5).astype(np.uint8)
    return image
