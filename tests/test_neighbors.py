"""Nearest neighbours against all distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.io import read_points
from clever3d.points import nearest_neighbors, neighbors


def all_distances(xyz: Tensor, batch: Tensor, rows: Tensor) -> Tensor:
    """float64 ``[R, N]`` from some points to all; infinite to themselves and to other scans."""
    xyz = xyz.double()
    found = (xyz[rows].unsqueeze(1) - xyz.unsqueeze(0)).square().sum(dim=2).sqrt()
    found[batch[rows].unsqueeze(1) != batch.unsqueeze(0)] = torch.inf
    found[torch.arange(len(rows)), rows] = torch.inf
    return found


def check(xyz: Tensor, batch: Tensor | None, k: int, rows: Tensor | None = None) -> Tensor:
    """Holds the neighbours to the distances of a sort; rows that tie may differ, distances may not."""
    result = nearest_neighbors(xyz, batch, k)
    assert result.shape == (len(xyz), k) and result.dtype == torch.long
    rows = torch.arange(len(xyz)) if rows is None else rows
    batch = torch.zeros(len(xyz), dtype=torch.long) if batch is None else batch
    distances = all_distances(xyz, batch, rows)
    wanted = distances.sort(dim=1).values[:, :k]
    got = distances.gather(1, result[rows])
    others = wanted.isfinite()
    torch.testing.assert_close(got[:, : wanted.shape[1]][others], wanted[others], rtol=1e-12, atol=1e-12)
    for n, row in enumerate(rows.tolist()):
        count = int(distances[n].isfinite().sum())
        found = result[row].tolist()
        if count == 0:
            assert found == [row] * k
        else:
            assert len(set(found)) == min(k, count) and row not in found
            assert (batch[found] == batch[row]).all()
            assert found == [found[j % count] for j in range(k)]
    return result


def street(count: int, seed: int = 0) -> Tensor:
    """Points on a ground and on walls, ever sparser with distance, as a LiDAR sees them."""
    rng = np.random.default_rng(seed)
    distance, angle = 3 + 60 * rng.random(count) ** 2, rng.uniform(0, 2 * np.pi, count)
    height = np.where(rng.random(count) < 0.7, -1.7, rng.uniform(-1.7, 4, count))
    xyz = np.stack([distance * np.cos(angle), distance * np.sin(angle), height], axis=1)
    return torch.from_numpy(xyz.astype(np.float32))


def cloud(kind: str, count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    xyz = {
        "cube": rng.uniform(-10, 10, (count, 3)),
        "street": street(count, seed).numpy(),
        "clusters": rng.uniform(-50, 50, (5, 3))[rng.integers(0, 5, count)] + rng.normal(0, 0.01, (count, 3)),
        "far and sparse": rng.standard_cauchy((count, 3)) * 10,
        "line": np.stack([np.linspace(0, 100, count), np.zeros(count), np.zeros(count)], axis=1),
        "whole metres": rng.integers(-4, 5, (count, 3)),
        "one place": np.tile([1.5, -2.5, 3.5], (count, 1)),
        "one place and one outlier": np.concatenate([np.zeros((count - 1, 3)), [[1e4, 0, 0]]]),
    }[kind]
    return torch.from_numpy(np.asarray(xyz, dtype=np.float32))


KINDS = [
    "cube",
    "street",
    "clusters",
    "far and sparse",
    "line",
    "whole metres",
    "one place",
    "one place and one outlier",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "k", "seed"), [(2, 1, 0), (17, 16, 1), (18, 17, 2), (400, 5, 3), (1500, 16, 4)])
def test_neighbours_are_those_of_all_distances(kind: str, count: int, k: int, seed: int) -> None:
    check(cloud(kind, count, seed), None, k)


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_of_several_scans_stay_within_their_scan(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 200, 4)
    xyz = torch.cat([cloud(KINDS[rng.integers(0, len(KINDS) - 1)], int(size) + 1, seed)[:size] for size in sizes])
    batch = torch.repeat_interleave(torch.tensor([0, 1, 3, 7]), torch.from_numpy(sizes))
    order = torch.from_numpy(rng.permutation(len(xyz)))
    check(xyz[order], batch[order], int(rng.integers(1, 20)))


def test_a_scan_in_a_batch_has_the_neighbours_it_has_alone() -> None:
    one, two = street(700, 1), street(300, 2)
    together = nearest_neighbors(torch.cat([one, two]), torch.tensor([0] * 700 + [1] * 300), 16)
    assert torch.equal(together[:700], nearest_neighbors(one, None, 16))
    assert torch.equal(together[700:] - 700, nearest_neighbors(two, None, 16))


def test_order_of_the_points_does_not_matter() -> None:
    xyz = street(2000)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(xyz)))
    assert torch.equal(order[nearest_neighbors(xyz[order], None, 16)], nearest_neighbors(xyz, None, 16)[order])


def test_fewer_others_than_asked_for_are_repeated_and_a_lone_point_is_its_own() -> None:
    xyz = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [9, 9, 9]])
    batch = torch.tensor([0, 0, 0, 1])
    assert nearest_neighbors(xyz, batch, 5).tolist() == [
        [1, 2, 1, 2, 1],
        [0, 2, 0, 2, 0],
        [1, 0, 1, 0, 1],
        [3, 3, 3, 3, 3],
    ]
    assert nearest_neighbors(xyz[:0], batch[:0], 5).shape == (0, 5)


@pytest.mark.parametrize("count", [30_000, 120_000])
def test_a_whole_scan_is_exact_in_little_memory(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    topk = Tensor.topk

    def watched(table: Tensor, *args: object, **kwargs: object) -> object:
        nonlocal largest
        largest = max(largest, table.numel())
        return topk(table, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Tensor, "topk", watched)
    xyz = street(count)
    rows = torch.from_numpy(np.random.default_rng(0).choice(count, 40, replace=False))
    check(xyz, None, 16, rows)
    assert largest <= max(neighbors._BLOCK, count)


def test_a_distant_dense_place_does_not_cost_exactness() -> None:
    """Half of the points within a millimetre, so that the first cells are far too small for the others."""
    rng = np.random.default_rng(0)
    near = torch.from_numpy(rng.uniform(0, 1e-3, (500, 3)) + 100)
    check(torch.cat([near, street(500).double()]), None, 16)


def test_neighbours_of_a_real_scan_are_those_of_all_distances(shared_data: Path) -> None:
    file = sorted((shared_data / "kitti" / "training" / "velodyne").glob("*.bin"))[0]
    xyz = torch.from_numpy(read_points(file).xyz)
    check(xyz, None, 16, torch.arange(0, len(xyz), len(xyz) // 50))


@pytest.mark.parametrize(
    ("xyz", "batch", "k", "message"),
    [
        (torch.zeros(4, 2), None, 1, r"\[N, 3\]"),
        (torch.zeros(4, 3), torch.zeros(3, dtype=torch.long), 1, r"\[4, 3\] and \[3\]"),
        (torch.zeros(4, 3), None, 0, "k = 0"),
        (torch.full((4, 3), torch.nan), None, 1, "finite"),
        (torch.zeros(2, 3), torch.tensor([0, 512]), 1, "batch indices 0..512"),
    ],
)
def test_unusable_points_are_refused(xyz: Tensor, batch: Tensor | None, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nearest_neighbors(xyz, batch, k)
