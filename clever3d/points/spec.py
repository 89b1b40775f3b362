"""What a backbone expects of its points; stored in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from clever3d.errors import InputError

#: The voxel channels of our own networks; each is the mean over the points of the voxel. Scales are our choice, to
#: bring values near 1.
DEFAULT_CHANNELS = ("one", "dx", "dy", "dz", "height", "range", "intensity", "has_intensity")
#: All voxel channels by name. ``x``, ``y``, ``z`` and ``radius``, the distance from the sensor, are in plain metres:
#: the inputs of networks that normalise by themselves.
CHANNELS = (*DEFAULT_CHANNELS, "x", "y", "z", "radius")
_OPTIONAL = ("intensity_mean", "intensity_std")


@dataclass(frozen=True)
class InputSpec:
    """Input contract of a backbone.

    Attributes:
        frame: axes of the points; always ``"FLU"``: x forward, y left, z up, origin at the sensor.
        voxel_size: edge of a voxel in metres.
        point_range: ``(x_min, y_min, z_min, x_max, y_max, z_max)`` in metres; points outside are invalid.
        channels: input channels, a subset of :data:`CHANNELS`, in the order of the first kernel's rows.
        ground_height: z of the ground below the sensor in the training data, metres.
        intensity: how intensity is expected.
        intensity_mean, intensity_std: the channel ``intensity`` holds (value - mean) / std, the value being in [0, 1];
            0 where a point has none.
        trained_sensors: the sensors whose scans the weights have seen.
    """

    frame: str = "FLU"
    voxel_size: float = 0.1
    point_range: tuple[float, float, float, float, float, float] = (-80.0, -80.0, -8.0, 80.0, 80.0, 24.0)
    channels: tuple[str, ...] = DEFAULT_CHANNELS
    ground_height: float = -1.73
    intensity: str = "[0, 1] or absent"
    trained_sensors: tuple[str, ...] = ()
    intensity_mean: float = 0.0
    intensity_std: float = 1.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.channels if name not in CHANNELS]
        if unknown or not self.channels:
            raise InputError(f"channels {self.channels} must be a non-empty subset of {CHANNELS}")
        if self.frame != "FLU":
            raise InputError(f"frame {self.frame!r}: points are always in FLU (x forward, y left, z up)")
        if not self.voxel_size > 0:
            raise InputError(f"voxel_size {self.voxel_size} must be a positive number of metres")
        if not self.intensity_std > 0:
            raise InputError(f"intensity_std {self.intensity_std} must be positive")
        if any(a >= b for a, b in zip(*self.corners, strict=True)):
            raise InputError(f"point_range {self.point_range} must be (x_min, y_min, z_min, x_max, y_max, z_max)")

    def contains(self, xyz: Tensor) -> Tensor:
        """Which points of ``[N, 3]`` lie inside ``point_range``: bool ``[N]``, False where a coordinate is NaN."""
        low, high = (torch.as_tensor(v, dtype=xyz.dtype, device=xyz.device) for v in self.corners)
        return ((xyz >= low) & (xyz < high)).all(dim=1)

    @property
    def corners(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The lowest and the highest x, y, z of ``point_range``, metres."""
        return self.point_range[:3], self.point_range[3:]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON.

        The statistics of the intensity stand there only where they are not the defaults, so that versions of the
        package that do not know them read the file, too.
        """
        values = asdict(self)
        for field in fields(self):
            if field.name in _OPTIONAL and values[field.name] == field.default:
                del values[field.name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputSpec:
        """Inverse of :meth:`to_dict`; an unknown key is an error."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"unknown input-spec keys {unknown}: was this file written by a newer clever3d?")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)
