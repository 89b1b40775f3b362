"""Kernel maps: which input voxel meets which output voxel under which kernel offset."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse.coords import SortedKeys, pack, shift, unpack

Triple = tuple[int, int, int]


def as_triple(value: int | Triple) -> Triple:
    """``3`` -> ``(3, 3, 3)``; a triple stays as it is."""
    return (value, value, value) if isinstance(value, int) else value


def kernel_offsets(size: int | Triple) -> list[Triple]:
    """Voxel offsets of a kernel, in the order of its weight slices.

    The order is torchsparse's (``nn/utils/kernel.py``), so that its checkpoints load as they are: x runs fastest when
    the kernel volume is odd, z runs fastest when it is even. An axis of size k covers ``-k//2 + 1 .. k//2``:
    3 gives -1, 0, 1 and 2 gives 0, 1.
    """
    size = as_triple(size)
    if min(size) < 1:
        raise InputError(f"kernel size {size} must be positive")
    xs, ys, zs = (range(-s // 2 + 1, s // 2 + 1) for s in size)
    if (size[0] * size[1] * size[2]) % 2:
        return [(x, y, z) for z, y, x in itertools.product(zs, ys, xs)]
    return list(itertools.product(xs, ys, zs))


def downsample_coords(coords: Tensor, stride: int | Triple) -> Tensor:
    """Coordinates of the coarser grid: the distinct rows of ``floor(c / stride)``, sorted.

    No spatial extent is involved, and negative coordinates are legal (MinkowskiEngine's convention).

    Args:
        coords: int ``[V, 4]`` rows ``(batch, x, y, z)``.

    Returns:
        int32 ``[U, 4]``.
    """
    divisor = torch.tensor([1, *as_triple(stride)], device=coords.device)
    coarse = torch.div(coords.long(), divisor, rounding_mode="floor")
    return unpack(torch.unique(pack(coarse)))


@dataclass(frozen=True)
class KernelMap:
    """Pairs of (input row, output row), grouped by kernel offset.

    ``in_rows`` and ``out_rows`` are int64 ``[P]``; ``sizes[k]`` pairs belong to offset ``k``. Within one offset every
    input row and every output row occurs at most once; that is what makes ``index_add_`` deterministic on a CPU.
    """

    in_rows: Tensor
    out_rows: Tensor
    sizes: tuple[int, ...]
    num_in: int
    num_out: int

    @cached_property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """``(in_rows, out_rows)`` of each offset."""
        return list(
            zip(torch.split(self.in_rows, list(self.sizes)), torch.split(self.out_rows, list(self.sizes)), strict=True)
        )

    @cached_property
    def identity(self) -> int | None:
        """The offset that maps row i to row i for all rows (the centre of a submanifold kernel), if there is one."""
        if self.num_in != self.num_out:
            return None
        for k, (rows_in, rows_out) in enumerate(self.pairs):
            if len(rows_in) == self.num_in and torch.equal(rows_in, rows_out):
                return k
        return None

    @cached_property
    def reversed(self) -> KernelMap:
        """The map of the transposed convolution: input and output swapped, kernel offsets unchanged."""
        return KernelMap(self.out_rows, self.in_rows, self.sizes, self.num_out, self.num_in)


def build_kernel_map(
    in_keys: SortedKeys, in_coords: Tensor, out_coords: Tensor, kernel_size: int | Triple, stride: int | Triple
) -> KernelMap:
    """Kernel map of a convolution: output voxel o sees the input voxels ``stride * o + offset``.

    One binary search of all output keys per offset. When input and output are the same voxels (stride 1, odd kernel)
    only half of the offsets is searched, because the pairs of ``-offset`` are those of ``offset`` swapped.

    Args:
        in_keys: the sorted keys of ``in_coords``.
        in_coords: int ``[Vin, 4]``.
        out_coords: int ``[Vout, 4]``, the same tensor object as ``in_coords`` for a submanifold convolution.
    """
    offsets = kernel_offsets(kernel_size)
    step = torch.tensor([1, *as_triple(stride)], device=out_coords.device)
    base = pack(out_coords.long() * step)  # [Vout] keys of the input voxel at offset (0, 0, 0)
    submanifold = in_coords is out_coords
    groups: dict[Triple, tuple[Tensor, Tensor]] = {}
    for offset in offsets:
        mirrored = groups.get((-offset[0], -offset[1], -offset[2]))
        if submanifold and mirrored is not None:
            groups[offset] = (mirrored[1], mirrored[0])
        else:
            rows_out, rows_in = in_keys.find(base + shift(offset))
            groups[offset] = (rows_in, rows_out)
    ordered = [groups[offset] for offset in offsets]
    return KernelMap(
        in_rows=torch.cat([rows_in for rows_in, _ in ordered]),
        out_rows=torch.cat([rows_out for _, rows_out in ordered]),
        sizes=tuple(len(rows_in) for rows_in, _ in ordered),
        num_in=len(in_coords),
        num_out=len(out_coords),
    )
