"""Augmentation of scans: what another drive or another sensor would have changed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random changes (rotation, flip and scale: ScaLR; the others are our choice)."""

    rotation: float = 180.0
    """Rotation about z, up to this many degrees either way."""
    flip: float = 0.5
    """Probability of a mirror image."""
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


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def transform(xyz: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Rotated, mirrored, scaled and lifted points ``[N, 3]``."""
    angle = math.radians(_uniform(-config.rotation, config.rotation, generator))
    cos, sin = math.cos(angle), math.sin(angle)
    mirror = -1.0 if _uniform(0, 1, generator) < config.flip else 1.0
    scale = _uniform(1 - config.scale, 1 + config.scale, generator)
    matrix = torch.tensor([[cos, -sin * mirror, 0.0], [sin, cos * mirror, 0.0], [0.0, 0.0, 1.0]]) * scale
    lift = torch.tensor([0.0, 0.0, _uniform(-config.height, config.height, generator)])
    return xyz @ matrix.T + lift


def keep_mask(xyz: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Which points ``[N]`` survive random dropout and the loss of beams."""
    share = _uniform(config.keep, 1.0, generator)
    kept = torch.rand(len(xyz), generator=generator) < share
    if _uniform(0, 1, generator) < config.beams:
        band = math.radians(_uniform(0.35, 1.2, generator))
        elevation = torch.atan2(xyz[:, 2], xyz[:, :2].norm(dim=1))
        kept &= torch.floor(elevation / band) % 2 == 0
    return kept


def change_intensity(intensity: Tensor | None, config: AugmentConfig, generator: torch.Generator) -> Tensor | None:
    """Intensity ``[N]`` scaled and clipped to [0, 1], or None."""
    factor = _uniform(1 - config.intensity, 1 + config.intensity, generator)
    gone = _uniform(0, 1, generator) < config.no_intensity
    return None if intensity is None or gone else (intensity * factor).clamp(0.0, 1.0)
