"""The nearest points of each point, by hashing into grids of growing cells. On any device, with tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse.coords import BITS, check, pack

#: A cell is searched once its 3 x 3 x 3 block holds this many times the points asked for: of points on a surface, about
#: pi / 9 of those in the block lie within the radius that the block covers.
_CROWD = 3
#: Entries of a table of distances, so that memory does not grow with the cloud and a table stays in a CPU's cache.
_BLOCK = 1 << 17
#: Points whose distances to all others choose the first cell size.
_SAMPLES = 32


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def nearest_neighbors(xyz: Tensor, batch: Tensor | None, k: int) -> Tensor:
    """The ``k`` nearest other points of the same scan, nearest first.

    Exact: distances are compared in float64. Which of several points at exactly the same distance comes first depends
    on the order of the points; nothing else does. Where a scan has fewer than ``k`` other points the nearest ones are
    repeated, and a lone point is its own neighbour.

    Made for the means of voxels, which keep some distance: thousands of points at one place cost the square of their
    number in time (not in memory).

    Args:
        xyz: ``[N, 3]``, finite floats.
        batch: int64 ``[N]``, the scan of each point; None: all are of one.
        k: how many, at least 1.

    Returns:
        int64 ``[N, k]``, rows of ``xyz``.

    Raises:
        InputError: shapes that do not fit, ``k`` < 1, a coordinate that is not finite, or more than 512 scans.
    """
    if xyz.ndim != 2 or xyz.shape[1] != 3 or (batch is not None and batch.shape != xyz.shape[:1]):
        found = f"{list(xyz.shape)}" + ("" if batch is None else f" and {list(batch.shape)}")
        raise InputError(f"neighbours need points [N, 3] and their scans [N], got {found}")
    if k < 1:
        raise InputError(f"k = {k} neighbours: ask for at least 1")
    if not len(xyz):
        return torch.zeros(0, k, dtype=torch.long, device=xyz.device)
    xyz = xyz.double()
    if not bool(xyz.isfinite().all()):
        raise InputError("neighbours need finite coordinates: drop NaN and infinite points first")
    if batch is None:
        batch = torch.zeros(len(xyz), dtype=torch.long, device=xyz.device)
    check(torch.stack([batch, *[torch.zeros_like(batch)] * 3], dim=1))
    xyz = xyz - xyz.amin(dim=0)
    extent = float(xyz.max())
    result = torch.empty(len(xyz), k, dtype=torch.long, device=xyz.device)
    active = torch.arange(len(xyz), device=xyz.device)  # points still without neighbours
    size = _first_size(xyz, extent, k)
    while len(active):
        size = min(size, extent) or 1.0  # of a cell; all points may be at one place
        active = _Grid(xyz, batch, size).search(active, k, result, last=size >= extent)
        size *= 2
    return result


def _first_size(xyz: Tensor, extent: float, k: int) -> float:
    """About the distance to the k-th neighbour where points are dense; other values cost time only."""
    rows = torch.linspace(0, len(xyz) - 1, min(_SAMPLES, len(xyz)), device=xyz.device).long()
    distances = torch.cdist(xyz[rows].float(), xyz.float())  # [S, N]
    kth = distances.kthvalue(min(k + 1, len(xyz)), dim=1).values  # [S]
    return max(float(kth.quantile(0.1)), extent / (1 << (BITS - 2)))


class _Grid:
    """All points of the batch, sorted by the cell in which they lie."""

    def __init__(self, xyz: Tensor, batch: Tensor, size: float) -> None:
        self.size = size
        scaled = xyz / size
        cell = torch.floor(scaled)  # [N, 3]
        keys = pack(torch.cat([batch.unsqueeze(1), cell.long()], dim=1))
        self.keys, self.order = torch.sort(keys, stable=True)
        self.place = torch.empty_like(self.order)  # of each point in this order
        self.place[self.order] = torch.arange(len(keys), device=keys.device)
        self.xyz = xyz[self.order]  # [N, 3]
        # how far the block around a point's cell reaches from the point, whatever the direction
        inside = (scaled - cell).minimum(1 - (scaled - cell)).amin(dim=1)
        self.reach = size * (1 + inside) * (1 - 1e-9)  # [N]

    def search(self, active: Tensor, k: int, result: Tensor, *, last: bool) -> Tensor:
        """Writes the neighbours of those ``active`` points for which this size is large enough; returns the others."""
        place = self.place[active].sort().values  # [A]
        keys, cell = torch.unique_consecutive(self.keys[place], return_inverse=True)  # [U], [A]
        sides = torch.tensor([-1, 0, 1], device=keys.device)
        columns = keys.unsqueeze(1) + ((sides << BITS).unsqueeze(1) + sides).flatten() * (1 << BITS)  # [U, 9]
        start = torch.searchsorted(self.keys, columns - 1)  # three cells above each other have neighbouring keys
        count = torch.searchsorted(self.keys, columns + 1, right=True) - start
        total = count.sum(dim=1)  # [U] points in the block
        crowded = total >= (0 if last else _CROWD * (k + 1))
        chosen = crowded[cell]
        rest = [self.order[place[~chosen]]]
        place, cell = place[chosen], cell[chosen]
        by_size = torch.argsort(total[cell], descending=True, stable=True)
        place, cell = place[by_size], cell[by_size]
        done = 0
        while done < len(place):
            width = int(total[cell[done]])
            rows = slice(done, done + max(1, _BLOCK // width))
            done = rows.stop
            cells, of_cell = torch.unique_consecutive(cell[rows], return_inverse=True)
            found, far = self._nearest(place[rows], start[cells], count[cells], of_cell, width, k)
            enough = far <= self.reach[self.order[place[rows]]] ** 2
            if last:
                enough = torch.ones_like(enough)
            points = self.order[place[rows]]
            result[points[enough]] = self.order[found[enough]]
            rest.append(points[~enough])
        return torch.cat(rest)

    def _nearest(
        self, place: Tensor, start: Tensor, count: Tensor, of_cell: Tensor, width: int, k: int
    ) -> tuple[Tensor, Tensor]:
        """For points ``[Q]`` of some cells: places of their k nearest among the block, squared distance of the k-th."""
        end = count.cumsum(dim=1)  # [U, 9]
        position = torch.arange(width, device=place.device).expand(len(end), -1).contiguous()  # [U, W]
        column = torch.searchsorted(end, position, right=True).clamp_(max=8)
        listed = position + (start - end + count).gather(1, column)  # [U, W] places of the block's points
        absent = position >= end[:, 8:]
        listed.masked_fill_(absent, 0)
        squared = torch.zeros(len(place), width, dtype=self.xyz.dtype, device=place.device)  # [Q, W]
        for axis in range(3):
            values = self.xyz[:, axis][listed].masked_fill_(absent, torch.inf)  # [U, W]
            offset = values[of_cell] - self.xyz[place, axis].unsqueeze(1)
            squared.addcmul_(offset, offset)
        itself = place - (start - end + count)[of_cell, 4]  # the middle column holds the point's own cell
        squared.scatter_(1, itself.unsqueeze(1), torch.inf)
        near, which = squared.topk(min(k, width), dim=1, largest=False)  # [Q, k]
        others = near.isfinite().sum(dim=1, keepdim=True)
        turn = torch.arange(k, device=place.device) % others.clamp(min=1)
        found = listed[of_cell.unsqueeze(1), which.gather(1, turn)]
        found = torch.where(others > 0, found, place.unsqueeze(1))
        return found, near[:, -1] if k <= width else torch.full_like(near[:, -1], torch.inf)
