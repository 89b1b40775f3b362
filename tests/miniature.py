"""A miniature KITTI data set and a tiny teacher, for the tests of distillation: files on disk, nothing of clever3d."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

Array = NDArray[Any]

WIDTH, HEIGHT, FOCAL = 96, 64, 60.0  # pixels
SENSOR_HEIGHT = 1.73  # metres above the ground
COLOURS = np.array([[70, 80, 70], [20, 40, 230], [240, 30, 20], [230, 220, 40]])  # ground, car, pole, wall
SHAPES = {1: (3.6, 1.8, 1.5), 2: (0.5, 0.5, 3.5)}  # metres of a car and a pole
REFLECTANCE = np.array([0.2, 0.5, 0.8, 0.3])
TEACHER = "vit_tiny_patch16_224"


def random_boxes(generator: np.random.Generator) -> list[tuple[int, Array, Array]]:
    """(kind, lowest corner, highest corner) of cars and poles on the ground before a wall."""
    boxes = [(3, np.array([28.0, -60.0, -SENSOR_HEIGHT]), np.array([29.0, 60.0, 12.0]))]
    for kind in (1, 1, 1, 2, 2, 2, 2):
        size = np.array(SHAPES[kind])
        corner = np.array([generator.uniform(6, 20), generator.uniform(-9, 8), -SENSOR_HEIGHT])
        boxes.append((kind, corner, corner + size))
    return boxes


def cast(rays: Array, boxes: list[tuple[int, Array, Array]]) -> tuple[Array, Array]:
    """Range [N] and kind [N] of what unit rays [N, 3] from the origin hit first; infinity where nothing is."""
    nearest = np.where(rays[:, 2] < -1e-6, -SENSOR_HEIGHT / np.minimum(rays[:, 2], -1e-6), np.inf)
    kinds = np.zeros(len(rays), dtype=int)
    safe = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    for kind, low, high in boxes:
        first, last = np.sort([low / safe, high / safe], axis=0)  # [N, 3] each: entry and exit of the three slabs
        enter, leave = first.max(axis=1), last.min(axis=1)
        hit = (enter < leave) & (enter > 0) & (enter < nearest)
        nearest, kinds = np.where(hit, enter, nearest), np.where(hit, kind, kinds)
    return nearest, kinds


def lidar_rays(generator: np.random.Generator) -> Array:
    """Unit rays of 28 beams, dense ahead and sparse behind."""
    azimuth = np.radians(np.concatenate([np.linspace(-50, 50, 80), np.linspace(60, 300, 20)]))
    elevation = np.radians(np.linspace(-18, 6, 28))
    a, e = (grid.ravel() for grid in np.meshgrid(azimuth, elevation))
    a = a + generator.normal(0, 1e-3, len(a))
    return np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=1)


def pixel_rays() -> Array:
    """Rays of the pixel centres, row by row, in the sensor's axes: x forward, y left, z up."""
    v, u = (grid.ravel() for grid in np.mgrid[:HEIGHT, :WIDTH])
    rays = np.stack([np.ones(u.size), -(u - WIDTH / 2) / FOCAL, -(v - HEIGHT / 2) / FOCAL], axis=1)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def scan(boxes: list[tuple[int, Array, Array]], generator: np.random.Generator) -> Array:
    """Points [N, 4] float32: x, y, z, reflectance."""
    rays = lidar_rays(generator)
    ranges, kinds = cast(rays, boxes)
    hit = ranges < 50
    xyz = rays[hit] * (ranges[hit] + generator.normal(0, 0.01, hit.sum()))[:, None]
    reflectance = REFLECTANCE[kinds[hit]] + generator.normal(0, 0.02, len(xyz))
    return np.column_stack([xyz, reflectance.clip(0, 1)]).astype(np.float32)


def picture(boxes: list[tuple[int, Array, Array]], generator: np.random.Generator) -> Array:
    """What a camera at the sensor sees, [H, W, 3] uint8; the colour says which kind of thing a pixel shows."""
    ranges, kinds = cast(pixel_rays(), boxes)
    colours = np.where(np.isinf(ranges)[:, None], 255, COLOURS[kinds]) + generator.normal(0, 3, (len(kinds), 3))
    return colours.clip(0, 255).astype(np.uint8).reshape(HEIGHT, WIDTH, 3)


def noise(generator: np.random.Generator) -> Array:
    """The same colours in blocks of 8 pixels that have nothing to do with any scene, [H, W, 3] uint8."""
    blocks = COLOURS[generator.integers(0, len(COLOURS), (HEIGHT // 8, WIDTH // 8))]
    return np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8)


CALIBRATION = f"""\
P2: {FOCAL} 0 {WIDTH / 2} 0 0 {FOCAL} {HEIGHT / 2} 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0
"""


def write_kitti(root: Path, frames: int = 6, *, related: bool = True, seed: int = 0) -> Path:
    """Writes `frames` frames, named 000000, 000001, ...; with `related=False` the images show noise."""
    for folder in ("velodyne", "image_2", "calib"):
        (root / "training" / folder).mkdir(parents=True)
    for n in range(frames):
        generator = np.random.default_rng([seed, n])
        boxes = random_boxes(generator)
        scan(boxes, generator).tofile(root / "training" / "velodyne" / f"{n:06d}.bin")
        image = picture(boxes, generator) if related else noise(generator)
        Image.fromarray(image).save(root / "training" / "image_2" / f"{n:06d}.png")
        (root / "training" / "calib" / f"{n:06d}.txt").write_text(CALIBRATION)
    return root


def write_teacher(path: Path) -> Path:
    """A random ViT that sees colours only: without position embeddings, so that nothing can be said of noise."""
    torch.manual_seed(0)
    vit: Any = timm.create_model(TEACHER, num_classes=0, dynamic_img_size=True)
    with torch.no_grad():
        vit.pos_embed.zero_()
    save_file(vit.state_dict(), path)
    return path
