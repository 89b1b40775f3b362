"""Augmentation of scans: what another drive or another sensor would have changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clever3d.datasets.sample import Sample


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random changes (rotation, flip and scale: ScaLR; the others are our choice)."""

    rotation: float = 180.0
    """Rotation about z, up to this many degrees either way."""
    flip: float = 0.5
    """Probability of a mirror image, left for right."""
    scale: float = 0.1
    """Scale, up to this fraction either way."""
    height: float = 0.15
    """Shift along z, up to this many metres either way: sensors are mounted differently."""
    keep: float = 0.5
    """Smallest share of points kept by random dropout."""
    beams: float = 0.3
    """Probability of dropping every other band of elevation, as a sensor with fewer beams would."""
    intensity: float = 0.3
    """Intensity is multiplied by 1 +- this fraction: sensors are calibrated differently."""
    no_intensity: float = 0.1
    """Probability of a scan without intensity."""
    flip_x: float = 0.0
    """Probability of a mirror image, front for back (with any rotation allowed, `flip` alone does as much)."""
    tilt: float = 0.0
    """Roll and pitch, each up to this many degrees either way: sensors are mounted crookedly."""
    shift: float = 0.0
    """Shift along x and along y, each up to this many metres either way."""
    jitter: float = 0.0
    """Standard deviation of a Gaussian shift of every coordinate of every point, metres."""
    jitter_clip: float = 0.1
    """Largest such shift, metres."""

    def rules(self) -> list[tuple[bool, str, float, str]]:
        """(whether it holds, option, value, what is expected) of every option."""
        chances = [(name, getattr(self, name)) for name in ("flip", "flip_x", "beams", "no_intensity")]
        sizes = [(name, getattr(self, name)) for name in ("rotation", "height", "tilt", "shift", "jitter")]
        return [
            *((0 <= value <= 1, name, value, "in [0, 1]") for name, value in chances),
            *((0 <= value < math.inf, name, value, "0 or more") for name, value in sizes),
            (0 < self.keep <= 1, "keep", self.keep, "in (0, 1]"),
            (0 <= self.scale < 1, "scale", self.scale, "in [0, 1)"),
            (0 <= self.intensity <= 1, "intensity", self.intensity, "in [0, 1]"),
            (self.jitter_clip > 0, "jitter_clip", self.jitter_clip, "positive"),
        ]


def augment(sample: Sample, config: AugmentConfig, generator: torch.Generator) -> Sample:
    """A sample with everything changed: :func:`change`, then dropout of points.

    Boxes and cameras follow, labels and pairs go with their points. Dropout may leave no pair, even no point.
    """
    changed = change(sample, config, generator)
    return changed.select(keep_mask(sample.xyz, config, generator))


def change(sample: Sample, config: AugmentConfig, generator: torch.Generator) -> Sample:
    """A sample moved, jittered and with other intensities; all its points are still there, in their order.

    Pairs keep the pixel where the point was seen before it was jittered.
    """
    moved = sample.moved(draw_motion(config, generator))
    xyz = jitter(moved.xyz, config, generator)
    return replace(moved, xyz=xyz, intensity=change_intensity(sample.intensity, config, generator))


def draw_motion(config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """A random map [4, 4] float64: mirrored, tilted, rotated about z, scaled, then shifted."""
    angle = math.radians(_uniform(-config.rotation, config.rotation, generator))
    flip_y = _uniform(0, 1, generator) < config.flip
    scale = _uniform(1 - config.scale, 1 + config.scale, generator)
    lift = _uniform(-config.height, config.height, generator)
    flip_x = _uniform(0, 1, generator) < config.flip_x
    roll, pitch = (math.radians(_uniform(-config.tilt, config.tilt, generator)) for _ in range(2))
    shift = [_uniform(-config.shift, config.shift, generator) for _ in range(2)]
    mirror = torch.diag(torch.tensor([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0], dtype=torch.float64))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = scale * (_turn(2, angle) @ _turn(1, pitch) @ _turn(0, roll) @ mirror)
    matrix[:3, 3] = torch.tensor([*shift, lift], dtype=torch.float64)
    return matrix


def jitter(xyz: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Points [N, 3] each shifted by itself, along each axis by at most `jitter_clip`."""
    if config.jitter == 0:
        return xyz
    noise = torch.randn(xyz.shape, generator=generator) * config.jitter
    return xyz + noise.clamp(-config.jitter_clip, config.jitter_clip)


def keep_mask(xyz: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Which points [N] survive random dropout and the loss of beams. `xyz` [N, 3] are the points as recorded."""
    share = _uniform(config.keep, 1.0, generator)
    kept = torch.rand(len(xyz), generator=generator) < share
    if _uniform(0, 1, generator) < config.beams:
        band = math.radians(_uniform(0.35, 1.2, generator))
        # numpy's arctan2: torch's may differ in the last bit with another number of threads.
        x, y, z = xyz.numpy().T
        elevation = np.arctan2(z, np.sqrt(x * x + y * y))
        kept &= torch.from_numpy(np.floor(elevation / np.float32(band)) % 2 == 0)
    return kept


def change_intensity(intensity: Tensor | None, config: AugmentConfig, generator: torch.Generator) -> Tensor | None:
    """Intensity [N] scaled and clipped to [0, 1], or None."""
    factor = _uniform(1 - config.intensity, 1 + config.intensity, generator)
    gone = _uniform(0, 1, generator) < config.no_intensity
    return None if intensity is None or gone else (intensity * factor).clamp(0.0, 1.0)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _turn(axis: int, angle: float) -> Tensor:
    """The rotation [3, 3] float64 by `angle` radians about an axis (0 x, 1 y, 2 z), by the right-hand rule."""
    cos, sin = math.cos(angle), math.sin(angle)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix
