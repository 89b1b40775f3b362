"""Random voxels, and torch's dense convolutions of them: what every engine is held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clever3d.sparse import SparseTensor, kernel_offsets

EXTENT = 11  # odd on purpose; coordinates run from -EXTENT // 2 up
LOW = -6  # even, so that the dense grid's stride-2 windows start where floor(c / 2) does
SIZE = 12


def random_scan(density: float, channels: int, seed: int, scans: int = 2) -> SparseTensor:
    """Voxels of random occupancy around the origin, rows shuffled, float64 features that require grad."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.rand(scans, EXTENT, EXTENT - 2, EXTENT, generator=generator) < density
    coords = grid.nonzero() + torch.tensor([0, LOW, LOW, LOW])
    coords = coords[torch.randperm(len(coords), generator=generator)]
    feats = torch.randn(len(coords), channels, dtype=torch.float64, generator=generator)
    return SparseTensor(feats.requires_grad_(), coords.int())


def to_dense(feats: Tensor, coords: Tensor, low: int, size: int) -> Tensor:
    """Dense ``[B, C, X, Y, Z]`` volume; differentiable in feats."""
    batch, x, y, z = coords.long().unbind(1)
    volume = feats.new_zeros(2, size, size, size, feats.shape[1])
    volume = volume.index_put((batch, x - low, y - low, z - low), feats)
    return volume.permute(0, 4, 1, 2, 3)


def from_dense(volume: Tensor, coords: Tensor, low: int) -> Tensor:
    batch, x, y, z = coords.long().unbind(1)
    return volume.permute(0, 2, 3, 4, 1)[batch, x - low, y - low, z - low]


def dense_kernel(kernel: Tensor, size: int) -> Tensor:
    """Our ``[K, Cin, Cout]`` slices put by their offsets into torch's ``[Cout, Cin, X, Y, Z]``."""
    first = -size // 2 + 1
    weight = kernel.new_zeros(size, size, size, *kernel.shape[1:])
    where = torch.tensor(kernel_offsets(size)) - first
    weight = weight.index_put(tuple(where.unbind(1)), kernel)
    return weight.permute(4, 3, 0, 1, 2)


def dense_convolution(
    feats: Tensor, x: SparseTensor, out_coords: Tensor, kernel: Tensor, size: int, stride: int
) -> Tensor:
    """torch's ``conv3d`` of the voxels of ``x`` with other features, read at ``out_coords``."""
    volume = F.pad(to_dense(feats, x.coords, LOW, SIZE), ((size - 1) // 2, size // 2) * 3)
    return from_dense(F.conv3d(volume, dense_kernel(kernel, size), stride=stride), out_coords, LOW // stride)


def dense_transposed(feats: Tensor, coarse: Tensor, fine: Tensor, kernel: Tensor, size: int, stride: int) -> Tensor:
    """torch's ``conv_transpose3d`` of features on the voxels ``coarse``, read at the voxels ``fine``."""
    padding = (size - 1) // 2
    volume = F.conv_transpose3d(
        to_dense(feats, coarse, LOW // stride, SIZE // stride),
        dense_kernel(kernel, size).transpose(0, 1),
        stride=stride,
        padding=padding,
        output_padding=stride + 2 * padding - size,
    )
    return from_dense(volume, fine, LOW)
