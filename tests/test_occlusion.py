"""What a camera cannot see: against rays traced through boxes here, and against boxes that people drew in KITTI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clever3d.datasets import Camera, open_dataset
from clever3d.datasets.occlusion import OcclusionConfig, hidden
from clever3d.distill.pairing import view
from clever3d.errors import InputError

Array = np.ndarray[Any, Any]

TO_CAMERA = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
GROUND = -1.73
# low and high corners: cars, a van, two poles and a house across the street's end
BOXES = np.array(
    [
        [[8, -3.5, GROUND], [12, -1.7, -0.2]],
        [[14, 2.0, GROUND], [18, 3.8, -0.2]],
        [[20, -3.6, GROUND], [25, -1.6, 0.6]],
        [[7, 3.2, GROUND], [7.2, 3.4, 3]],
        [[11, -0.1, GROUND], [11.2, 0.1, 3]],
        [[28, -1, GROUND], [32, 0.8, -0.2]],
        [[45, -30, GROUND], [46, 30, 9]],
    ]
)


def first_hit(origin: Array, directions: Array) -> Array:
    """Distance [M] along rays to the nearest box or the ground: the slab test."""
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (GROUND - origin[2]) / directions[:, 2]
        nearest = np.where(down > 0, down, np.inf)
        for low, high in BOXES:
            a, b = (low - origin) / directions, (high - origin) / directions
            enter, leave = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
            nearest = np.where((enter < leave) & (enter > 0), np.minimum(nearest, enter), nearest)
    return nearest


def scan(rows: int, step: float) -> Array:
    """Points [N, 3] of a LiDAR at the origin: rows over the HDL-64E's or HDL-32E's field, `step` degrees apart."""
    elevation = np.deg2rad(np.linspace(-24.8, 2.0, 64) if rows == 64 else np.linspace(-30.67, 10.67, 32))
    azimuth = np.deg2rad(np.arange(-60, 60, step))
    e, a = (grid.ravel() for grid in np.meshgrid(elevation, azimuth, indexing="ij"))
    directions = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=1)
    distance = first_hit(np.zeros(3), directions)
    met = distance < 80
    return directions[met] * distance[met, None]


def camera_at(place: tuple[float, float, float], focal: float, size: tuple[int, int]) -> Camera:
    to_camera = TO_CAMERA.copy()
    to_camera[:3, 3] = -TO_CAMERA[:3, :3] @ place
    intrinsics = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    return Camera("camera", Path("none.png"), intrinsics, to_camera)


def judged(xyz: Array, place: tuple[float, float, float], focal: float, size: tuple[int, int]) -> tuple[Array, Array]:
    """What the test says of the points in view, and the truth: bool [M] each."""
    camera = camera_at(place, focal, size)
    pixels, depth = camera.project(xyz)
    seen = (depth > 1) & (pixels >= -0.5).all(axis=1) & (pixels < np.array(size) - 0.5).all(axis=1)
    ray = xyz[seen] - np.array(place)
    length = np.linalg.norm(ray, axis=1)
    truth = first_hit(np.array(place), ray / length[:, None]) < length - 0.05
    return hidden(pixels[seen], depth[seen], camera), truth


@pytest.mark.parametrize(
    ("rows", "step", "place", "focal", "size", "recall", "precision"),
    [
        (64, 0.17, (0.27, 0.06, -0.08), 721, (1242, 375), 0.7, 0.55),  # KITTI
        (64, 0.17, (1.5, 0.8, -0.6), 721, (1242, 375), 0.9, 0.9),  # a camera far from the LiDAR
        (32, 0.33, (0.75, 0.0, -0.33), 1266, (1600, 900), 0.5, 0.85),  # nuScenes
    ],
)
def test_hidden_points_are_found_and_few_others(
    rows: int, step: float, place: Any, focal: float, size: Any, recall: float, precision: float
) -> None:
    found, truth = judged(scan(rows, step), place, focal, size)
    assert truth.mean() > 0.01
    assert found[truth].mean() > recall
    assert truth[found].mean() > precision
    assert found[~truth].mean() < 0.012  # beside the edges of what is near


@pytest.mark.parametrize(("rows", "step"), [(64, 0.17), (32, 0.33)])
def test_an_empty_road_hides_nothing(monkeypatch: pytest.MonkeyPatch, rows: int, step: float) -> None:
    monkeypatch.setattr("test_occlusion.BOXES", BOXES[:0])
    found, truth = judged(scan(rows, step), (0.75, 0.3, -0.4), 721, (1242, 375))
    assert not truth.any() and not found.any()


def test_a_camera_where_the_lidar_is_sees_all_it_sees() -> None:
    found, truth = judged(scan(64, 0.17), (0, 0, 0), 721, (1242, 375))
    assert not truth.any() and found.mean() < 0.012  # beside the edges of what is near


def test_the_tolerance_is_a_share_and_metres() -> None:
    """A wall of three rows at 10 m; one point between its rows, behind it."""
    camera = camera_at((0, 0, 0), 700, (700, 700))
    wall = np.array([[10.0, y, z] for z in (-0.06, 0, 0.06) for y in np.arange(-1, 1, 0.02)])

    def is_hidden(depth: float, config: OcclusionConfig) -> bool:
        pixels, depths = camera.project(np.concatenate([wall, [[depth, 0.001, 0.03 * depth / 10]]]))
        found = hidden(pixels, depths, camera, config)
        assert not found[:-1].any()
        return bool(found[-1])

    config = OcclusionConfig(gap=0.4, relative=0.2, absolute=1.0)
    assert [is_hidden(d, config) for d in (10.0, 12.9, 13.1, 50.0)] == [False, False, True, True]
    assert is_hidden(11.5, OcclusionConfig(gap=0.4, relative=0, absolute=1))
    assert not is_hidden(50.0, OcclusionConfig(gap=0))  # nothing stands in its own cell


def test_no_points_and_one_point_are_nothing_to_hide() -> None:
    camera = camera_at((0, 0, 0), 700, (700, 700))
    assert hidden(np.zeros((0, 2)), np.zeros(0), camera).shape == (0,)
    assert hidden(np.zeros((1, 2)), np.ones(1), camera).tolist() == [False]


@pytest.mark.parametrize("options", [{"width": 0.0}, {"height": -1.0}, {"relative": -0.1}, {"gap": -1.0}])
def test_cells_and_tolerances_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="occlusion test"):
        OcclusionConfig(**options)


# ---- real frames


def test_on_kitti_hidden_background_painted_as_a_car_goes_and_cars_stay(shared_data: Path) -> None:
    """An image network painted its classes on the points (pseudo_sem), people drew boxes round the objects (label_2): a
    point that is painted as an object but lies outside every box is, more often than not, behind one."""
    data = open_dataset(shared_data / "kitti")
    counts = np.zeros((2, 2))
    for number in range(6):  # those with boxes
        found = data[number]
        xyz, boxes = found.points().xyz, found.boxes()
        assert boxes is not None
        painted = np.fromfile(shared_data / f"kitti/training/pseudo_sem/{found.id}.u1", np.uint8)
        grown = boxes.__class__(boxes.centers, boxes.sizes + 0.4, boxes.rotations, boxes.names)
        inside = grown.contains(xyz).any(axis=0)
        plain = view(xyz, found.cameras[0])
        tested = view(xyz, found.cameras[0], occlusion=OcclusionConfig())
        assert set(tested.rows) < set(plain.rows) and tested.behind_others == len(plain.rows) - len(tested.rows)
        np.testing.assert_array_equal(tested.context, plain.context)
        assert 0.005 < tested.behind_others / len(plain.rows) < 0.06
        gone = ~np.isin(plain.rows, tested.rows)
        painted = painted[plain.rows]
        objects = (painted >= 11) & (painted < 19)  # Cityscapes: person, rider, car, ... bicycle
        for row, where in enumerate((inside[plain.rows], ~inside[plain.rows])):
            counts[row] += [(gone & objects & where).sum(), (objects & where).sum()]
    shares = counts[:, 0] / counts[:, 1]
    assert counts[:, 1].min() > 1000
    assert shares[0] < 0.02 and shares[1] > 0.08


def test_on_nuscenes_about_one_in_a_hundred_is_hidden(shared_data: Path) -> None:
    found = open_dataset(shared_data / "nuscenes")[0]
    xyz = found.points().xyz
    for camera in found.cameras:
        tested = view(xyz, camera, occlusion=OcclusionConfig())
        assert 0.005 < tested.behind_others / (len(tested.rows) + tested.behind_others) < 0.04
