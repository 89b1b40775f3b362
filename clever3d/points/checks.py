"""Turns whatever a user hands over as points into clean tensors, and says what was wrong with it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clever3d.errors import InputError, InputWarning
from clever3d.points.spec import InputSpec

#: Nothing a street LiDAR returns is a kilometre away, and the nearest returns in millimetres already are (our choice).
MILLIMETRE_LIMIT = 1000.0


@dataclass(frozen=True)
class CheckedPoints:
    """Points ready for voxelisation.

    Attributes:
        xyz: ``[N, 3]`` float32, metres; rows that are not valid hold zeros.
        intensity: ``[N]`` float32 in [0, 1], or None; NaN where a point has none.
        valid: ``[N]`` bool: finite, inside the spec's range, and not (0, 0, 0).
    """

    xyz: Tensor
    intensity: Tensor | None
    valid: Tensor

    def to(self, device: torch.device) -> CheckedPoints:
        """The same points on another device."""
        intensity = None if self.intensity is None else self.intensity.to(device)
        return CheckedPoints(self.xyz.to(device), intensity, self.valid.to(device))


def _to_tensor(values: Any, what: str, device: torch.device) -> Tensor:
    """Float tensor of the values; integers, booleans and objects are refused with the remedy."""
    try:
        if isinstance(values, np.ndarray):  # torch takes no negative strides, foreign byte orders or read-only arrays
            values = np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} of type {type(values).__name__} is not a numeric array or tensor: {error}") from error
    if not tensor.is_floating_point():
        raise InputError(
            f"{what} has dtype {str(tensor.dtype).removeprefix('torch.')}: give floating-point values "
            f"(points in metres: `points.astype('float32')`, or `points / 1000.0` if they are integer millimetres)"
        )
    return tensor.detach().to(device)


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=6)  # the caller of extract


def _check_intensity(intensity: Tensor, valid: Tensor) -> Tensor:
    if bool(valid.any()):
        seen = intensity[valid]
        finite = seen[seen.isfinite()]
        high = float(finite.max()) if len(finite) else 0.0
        low = float(finite.min()) if len(finite) else 0.0
        if high > 1.0 or low < 0.0:
            remedy = "divide it by 255" if 1.0 < high <= 255.0 else "scale it to [0, 1] or leave it out"
            _warn(f"intensity spans {low:g}..{high:g}, expected [0, 1]: {remedy}; it is clipped for now")
    return intensity.clamp(0.0, 1.0)


def check_points(points: Any, intensity: Any, spec: InputSpec, device: torch.device) -> CheckedPoints:
    """Validates a point cloud against an input spec.

    Args:
        points: ``[N, 3]`` xyz or ``[N, 4]`` xyz + intensity, metres, FLU; array or tensor of floats.
        intensity: ``[N]`` in [0, 1], or None.

    Returns:
        Tensors on ``device``; as many rows as came in.

    Raises:
        InputError: empty cloud, wrong shape, not floating point, intensity given twice or of another length.

    Warns:
        InputWarning: points that are not finite, (0, 0, 0) or outside the range (counted), coordinates that look like
            millimetres, intensity outside [0, 1].
    """
    cloud = _to_tensor(points, "points", device)
    if cloud.ndim != 2 or cloud.shape[1] not in (3, 4):
        hint = ""
        if cloud.ndim == 2 and cloud.shape[1] > 4:
            sideways = len(cloud) in (3, 4)
            hint = "; turn it: points.T" if sideways else "; take the first columns: points[:, :4]"
        raise InputError(f"points must be [N, 3] (x, y, z) or [N, 4] (+ intensity), got {list(cloud.shape)}{hint}")
    if not len(cloud):
        raise InputError("the point cloud is empty: check the file or the filter that made it")
    if cloud.shape[1] == 4:
        if intensity is not None:
            raise InputError("intensity was given twice: as fourth column and as argument; give points[:, :3]")
        intensity = cloud[:, 3]
    values = None
    if intensity is not None:
        values = _to_tensor(intensity, "intensity", device).float()
        if values.shape != (len(cloud),):
            raise InputError(f"intensity must be [N] with N = {len(cloud)}, got {list(values.shape)}")

    xyz = cloud[:, :3]
    finite = xyz.isfinite().all(dim=1)  # [N]
    empty = (xyz == 0).all(dim=1)  # how many formats fill the slots of rays that did not return
    valid = finite & ~empty & spec.contains(xyz)
    _report(xyz, finite, empty, valid, spec)
    clean = torch.where(valid.unsqueeze(1), xyz, torch.zeros_like(xyz)).float()
    return CheckedPoints(clean, None if values is None else _check_intensity(values, valid), valid)


def _report(xyz: Tensor, finite: Tensor, empty: Tensor, valid: Tensor, spec: InputSpec) -> None:
    total, broken, unfilled = len(xyz), int((~finite).sum()), int(empty.sum())
    outside = total - broken - unfilled - int(valid.sum())
    if broken:
        _warn(f"{broken} of {total} points are not finite (NaN or infinite): they are marked invalid")
    if unfilled:
        _warn(f"{unfilled} of {total} points are (0, 0, 0), slots without a return: they are marked invalid")
    if outside:
        extent = float(xyz[finite].abs().median())
        if extent > MILLIMETRE_LIMIT or not bool(valid.any()):
            _warn(
                f"the median coordinate is {extent:g}: these look like millimetres or map coordinates; "
                "give metres in the sensor's frame (`points / 1000.0`, or subtract the sensor's position)"
            )
        _warn(f"{outside} of {total} points are outside the range {spec.point_range} m: they are marked invalid")
