"""Voxelisation: points to a sparse tensor and the way back to every point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clever3d.points.checks import CheckedPoints
from clever3d.points.spec import InputSpec
from clever3d.sparse import SparseTensor
from clever3d.sparse.coords import check, pack, unpack

#: Scales that bring the channels near 1 (our choice).
HEIGHT_SCALE, RANGE_SCALE = 3.0, 40.0
#: Ranges below this are reported as this: cameras rarely see the ground nearer than it, so nearer values would be ones
#: that no training target ever covered (our choice).
RANGE_MIN = 5.0


@dataclass(frozen=True)
class Voxels:
    """A voxelised batch.

    Attributes:
        tensor: the occupied voxels with their input channels.
        point_to_voxel: one int64 ``[N]`` tensor per scan: the voxel row of each point, -1 where the point is invalid.
    """

    tensor: SparseTensor
    point_to_voxel: list[Tensor]


def _channels(xyz: Tensor, intensity: Tensor | None, grid: Tensor, spec: InputSpec) -> Tensor:
    """Input channels of each point, float64 ``[M, C]``."""
    xyz = xyz.double()
    one = torch.ones_like(xyz[:, 0])
    offset = xyz / spec.voxel_size - grid - 0.5  # [M, 3] in -0.5..0.5
    if intensity is None:
        value, present = torch.zeros_like(one), torch.zeros_like(one)
    else:
        present = intensity.isfinite().double()
        value = (intensity.nan_to_num(0.0, 0.0, 0.0).double() - spec.intensity_mean) / spec.intensity_std * present
    radius = xyz.norm(dim=1)
    named = {
        "one": one,
        "dx": offset[:, 0],
        "dy": offset[:, 1],
        "dz": offset[:, 2],
        "height": (xyz[:, 2] - spec.ground_height) / HEIGHT_SCALE,
        "range": radius.clamp(min=RANGE_MIN) / RANGE_SCALE,
        "intensity": value,
        "has_intensity": present,
        "x": xyz[:, 0],
        "y": xyz[:, 1],
        "z": xyz[:, 2],
        "radius": radius,
    }
    return torch.stack([named[name] for name in spec.channels], dim=1)


def voxelize(scans: list[CheckedPoints], spec: InputSpec) -> Voxels:
    """Voxelises a batch of scans.

    A voxel's channels are the mean over its points, summed in float64 so that the order of the points does not show in
    the float32 result beyond its last bit. Rows are sorted by (batch, x, y, z).

    Args:
        scans: checked points, one entry per scan; the position in the list is the batch index.
    """
    keys, channels = [], []
    for batch, scan in enumerate(scans):
        xyz = scan.xyz[scan.valid]
        grid = torch.floor(xyz.double() / spec.voxel_size)  # [M, 3]
        index = torch.cat([torch.full_like(grid[:, :1], batch), grid], dim=1).long()  # [M, 4]
        check(index)
        keys.append(pack(index))
        intensity = None if scan.intensity is None else scan.intensity[scan.valid]
        channels.append(_channels(xyz, intensity, grid, spec))
    voxel_keys, rows, counts = torch.unique(torch.cat(keys), return_inverse=True, return_counts=True)
    values = torch.cat(channels)  # [sum M, C]
    sums = values.new_zeros(len(voxel_keys), values.shape[1])
    sums.index_put_((rows,), values, accumulate=True)  # unlike index_add_ in a fixed order on a GPU too
    feats = (sums / counts.unsqueeze(1)).float()  # [V, C]
    point_to_voxel = []
    for scan, part in zip(scans, rows.split([len(k) for k in keys]), strict=True):
        full = torch.full((len(scan.valid),), -1, dtype=torch.long, device=rows.device)
        full[scan.valid] = part
        point_to_voxel.append(full)
    return Voxels(SparseTensor(feats, unpack(voxel_keys)), point_to_voxel)
