"""Kernel maps: which input voxel meets which output voxel under which kernel offset."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse.coords import MARGIN, SortedKeys, check, pack, shift, unpack

Triple = tuple[int, int, int]


def as_triple(value: int | Sequence[int]) -> Triple:
    """``3`` -> ``(3, 3, 3)``; three numbers stay as they are. InputError for what is no size."""
    triple = tuple(value) if isinstance(value, Sequence) else (value, value, value)
    if len(triple) != 3 or not all(isinstance(v, int) and v > 0 for v in triple):
        raise InputError(f"{value!r} must be positive: a whole number, or three of them")
    return triple


def kernel_offsets(size: int | Triple) -> list[Triple]:
    """Voxel offsets of a kernel, in the order of its weight slices.

    The order is torchsparse's (``nn/utils/kernel.py``), so that its checkpoints load as they are: x runs fastest when
    the kernel volume is odd, z runs fastest when it is even. An axis of size k covers ``-k//2 + 1 .. k//2``:
    3 gives -1, 0, 1 and 2 gives 0, 1.
    """
    size = as_triple(size)
    if max(size) > MARGIN:
        raise InputError(f"kernel size {size} exceeds {MARGIN} voxels: use a stride, or larger voxels")
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
    stride = as_triple(stride)
    if not all(1 <= s <= MARGIN for s in stride):
        raise InputError(f"stride {stride} must lie in 1..{MARGIN} along each axis")
    check(coords)
    return coarsen(coords, stride)


def coarsen(coords: Tensor, stride: Triple) -> Tensor:
    """``downsample_coords`` of rows that are known to be in range; on a GPU it waits once, for the number of rows."""
    batch, *xyz = coords.unbind(1)
    floored = [torch.div(c, s, rounding_mode="floor") for c, s in zip(xyz, stride, strict=True)]
    return unpack(torch.unique(pack(torch.stack([batch, *floored], dim=1))))


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Pairs (i, o) of voxels for each kernel offset: ``in_coords[i] == stride * out_coords[o] + offset``.

    Two forms of it are made on first use and kept: the pairs, grouped by offset (``in_rows``, ``out_rows``,
    ``sizes``), and the table of neighbours. ``reversed`` is the map of the transposed convolution: input and output
    swapped, offsets unchanged.

    Attributes:
        in_coords, out_coords: int32 ``[Vin, 4]`` and ``[Vout, 4]``.
        kernel_size, stride: of the convolution that leads from fine to coarse.
        transposed: this is the map from coarse to fine.
        in_keys: the keys of the fine voxels.
        cache: what has been derived from this map and from its reverse, by name; engines keep their own forms here.
    """

    in_coords: Tensor
    out_coords: Tensor
    kernel_size: Triple
    stride: Triple
    in_keys: SortedKeys
    transposed: bool = False
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def reversed(self) -> KernelMap:
        return KernelMap(
            self.out_coords,
            self.in_coords,
            self.kernel_size,
            self.stride,
            self.in_keys,
            not self.transposed,
            self.cache,
        )

    @property
    def num_in(self) -> int:
        return len(self.in_coords)

    @property
    def num_out(self) -> int:
        return len(self.out_coords)

    @property
    def volume(self) -> int:
        """K, the number of kernel offsets."""
        return self.kernel_size[0] * self.kernel_size[1] * self.kernel_size[2]

    @property
    def submanifold(self) -> bool:
        """Input and output are the same voxels, row by row."""
        return self.in_coords is self.out_coords

    @property
    def symmetric(self) -> bool:
        """The reverse map is this one with the offsets in reverse order (submanifold, odd kernel)."""
        return self.submanifold and self.volume % 2 == 1

    @property
    def identity(self) -> int | None:
        """The offset (0, 0, 0) of a submanifold map: it pairs every voxel with itself."""
        return kernel_offsets(self.kernel_size).index((0, 0, 0)) if self.submanifold else None

    @property
    def in_rows(self) -> Tensor:
        """int64 ``[P]``; within one offset every row occurs at most once."""
        return self._flat()[1 if self.transposed else 0]

    @property
    def out_rows(self) -> Tensor:
        """int64 ``[P]``; within one offset every row occurs at most once, so ``index_add_`` is deterministic."""
        return self._flat()[0 if self.transposed else 1]

    @property
    def sizes(self) -> Tensor:
        """int64 ``[K]`` on the CPU: how many of the pairs belong to each offset."""
        return self._flat()[2]

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """``(in_rows, out_rows)`` of each offset."""
        sizes = self.sizes.tolist()
        return list(zip(self.in_rows.split(sizes), self.out_rows.split(sizes), strict=True))

    @property
    def table(self) -> Tensor:
        """int32 ``[K, Vout]``: the input row that meets each output row under each offset, -1 where there is none."""
        name = "table to fine" if self.transposed else "table to coarse"
        if name not in self.cache:
            with torch.inference_mode(False):  # a later training step may save it
                self.cache[name] = self._reverse_table() if self.transposed else self._search_table()
        table: Tensor = self.cache[name]
        return table

    def _flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """(fine rows, coarse rows, sizes)."""
        if "pairs" not in self.cache:
            forward = self.reversed if self.transposed else self
            with torch.inference_mode(False):
                self.cache["pairs"] = forward._list_table() if self.in_coords.is_cuda else forward._search_pairs()
        flat: tuple[Tensor, Tensor, Tensor] = self.cache["pairs"]
        return flat

    def _base(self) -> Tensor:
        """int64 ``[Vout]``: keys of the input voxels under offset (0, 0, 0)."""
        if self.stride == (1, 1, 1) and self.submanifold and self.in_keys.rows is None:
            return self.in_keys.keys
        batch, *xyz = self.out_coords.unbind(1)
        return pack(torch.stack([batch, *(c * s for c, s in zip(xyz, self.stride, strict=True))], dim=1))

    def _search_pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """One binary search of all output keys per column of offsets (along z). In a submanifold map only half of the
        offsets is searched, because the pairs of ``-offset`` are those of ``offset`` swapped."""
        base = self._base()
        offsets = kernel_offsets(self.kernel_size)
        groups: dict[Triple, tuple[Tensor, Tensor]] = {}
        columns: dict[tuple[int, int], list[int]] = {}
        for x, y, z in sorted(offsets):
            swapped = self.submanifold and (-x, -y, -z) in offsets and (x, y, z) <= (0, 0, 0)
            if not swapped:
                columns.setdefault((x, y), []).append(z)
        for (x, y), heights in columns.items():
            runs = self.in_keys.find_runs(base + shift((x, y, heights[0])), len(heights))
            for z, (rows_out, rows_in) in zip(heights, runs, strict=True):
                groups[x, y, z] = (rows_in, rows_out)
                if self.submanifold and (-x, -y, -z) in offsets:
                    groups[-x, -y, -z] = (rows_out, rows_in)
        if self.submanifold:
            rows = torch.arange(self.num_in, device=base.device)
            groups[0, 0, 0] = (rows, rows)
        fine, coarse = zip(*(groups[offset] for offset in offsets), strict=True)
        return torch.cat(fine), torch.cat(coarse), torch.tensor([len(rows) for rows in fine])

    def _search_table(self) -> Tensor:
        """All offsets in one search: a handful of launches and no wait on a GPU."""
        shifts = torch.tensor([shift(offset) for offset in kernel_offsets(self.kernel_size)])
        queries = self._base() + shifts.to(self.in_coords.device, non_blocking=True).unsqueeze(1)  # [K, Vout]
        return self.in_keys.lookup(queries)

    def _list_table(self) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs that a table holds; waits for the device."""
        table = self.table
        offset, coarse = (table >= 0).nonzero().unbind(1)  # ascending in the offset
        return table[offset, coarse].long(), coarse, torch.bincount(offset, minlength=len(table)).cpu()

    def _reverse_table(self) -> Tensor:
        if self.symmetric:
            return self.reversed.table.flip(0)
        forward = self.reversed.table  # [K, coarse]
        fine = self.num_out
        rows = torch.arange(forward.shape[1], dtype=torch.int32, device=forward.device).expand_as(forward)
        table = torch.full((len(forward), fine + 1), -1, dtype=torch.int32, device=forward.device)
        table.scatter_(
            1, torch.where(forward >= 0, forward, fine).long(), rows
        )  # absent ones fall into the last column
        return table[:, :fine].contiguous()
