"""Voxel coordinates packed into sortable 64-bit keys.

A coordinate row is ``(batch, x, y, z)``. Its key is ``batch | x | y | z`` from the highest bits to the lowest, so that

* sorting the keys sorts the rows lexicographically,
* the key of a shifted voxel is the key plus a constant: ``key(c + o) = key(c) + shift(o)``.

The widths (9 + 18 + 18 + 18 = 63 bits) are our choice: 512 scans a batch, and +-131,071 voxels along each axis, which
is +-13 km at 0.1 m. The outermost ``MARGIN`` voxels stay empty so that a shift never carries into the next field.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clever3d.errors import InputError

BITS = 18
HALF = 1 << (BITS - 1)
MAX_BATCH = 1 << (63 - 3 * BITS)
MARGIN = 64


def pack(coords: Tensor) -> Tensor:
    """Keys of coordinate rows, not checked: see :func:`check`.

    Args:
        coords: integer ``[V, 4]`` rows ``(batch, x, y, z)``; x, y, z may be negative.

    Returns:
        int64 ``[V]``.
    """
    batch, x, y, z = coords.long().unbind(1)
    return (((batch << BITS | (x + HALF)) << BITS) | (y + HALF)) << BITS | (z + HALF)


def check(coords: Tensor) -> None:
    """Raises InputError where a coordinate or a batch index is too large for its field of the key."""
    if not len(coords):
        return
    low, high = torch.aminmax(coords, dim=0)
    (first, *low_xyz), (last, *high_xyz) = torch.stack([low, high]).tolist()
    limit = HALF - MARGIN
    if min(low_xyz) < -limit or max(high_xyz) >= limit:
        raise InputError(
            f"voxel coordinates {min(low_xyz)}..{max(high_xyz)} exceed +-{limit}: use larger voxels, "
            "or crop or split the cloud"
        )
    if first < 0 or last >= MAX_BATCH:
        raise InputError(f"batch indices {first}..{last} are outside 0..{MAX_BATCH - 1}: use smaller batches")


def unpack(keys: Tensor) -> Tensor:
    """Inverse of :func:`pack`: int64 ``[V]`` keys to int32 ``[V, 4]`` coordinates."""
    mask = (1 << BITS) - 1
    x, y, z = ((keys >> (BITS * n) & mask) - HALF for n in (2, 1, 0))
    return torch.stack([keys >> (3 * BITS), x, y, z], dim=1).int()


def shift(offset: tuple[int, int, int]) -> int:
    """What to add to a key so that it names the voxel ``offset`` away (same scan)."""
    dx, dy, dz = offset
    return (dx << (2 * BITS)) + (dy << BITS) + dz


class SortedKeys:
    """Keys in ascending order with their original rows: a dictionary that works on any device.

    Args:
        coords: int ``[V, 4]``.
        ascending: the rows are known to be distinct, in range and in ascending order, and are not checked.

    Raises:
        InputError: a voxel occurs twice, or a coordinate is out of range.
    """

    def __init__(self, coords: Tensor, *, ascending: bool = False) -> None:
        self.rows: Tensor | None = None  # [V]; None: the rows are in order already
        if ascending:
            self.keys = pack(coords)  # [V]
            return
        check(coords)
        keys = pack(coords)
        steps = keys[1:] - keys[:-1]
        if bool((steps > 0).all()):
            self.keys = keys
            return
        self.keys, self.rows = torch.sort(keys)
        if bool((self.keys[1:] == self.keys[:-1]).any()):
            raise InputError("coordinates hold a voxel twice: voxelise the points first (clever3d.points.voxelize)")

    def find_runs(self, queries: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
        """Rows of the keys ``queries``, ``queries + 1``, ... that exist: voxels above each other, in one binary search.

        Where a key has been found the next one can only stand behind it, else in its place.

        Args:
            queries: int64 ``[Q]``.

        Returns:
            For each of the ``length`` numbers added: ``(query index [M], row [M])`` of the M keys found, by ascending
            query index.
        """
        empty = queries.new_zeros(0)
        if not len(self.keys):
            return [(empty, empty)] * length
        place = torch.searchsorted(self.keys, queries)  # [Q]
        last = len(self.keys) - 1
        runs = []
        for n in range(length):
            found = self.keys[place.clamp(max=last)] == queries + n
            index = found.nonzero().squeeze(1)  # [M]
            rows = place[index]
            runs.append((index, rows if self.rows is None else self.rows[rows]))
            place = place + found
        return runs

    def lookup(self, queries: Tensor) -> Tensor:
        """Row of every queried key, -1 where there is none; int32, of the queries' shape. No wait for the device."""
        if not len(self.keys):
            return torch.full_like(queries, -1, dtype=torch.int32)
        place = torch.searchsorted(self.keys, queries).clamp_(max=len(self.keys) - 1)
        found = self.keys[place] == queries
        row = place if self.rows is None else self.rows[place]
        return torch.where(found, row, -1).int()
