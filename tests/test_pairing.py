"""Which point meets which pixel, against pixels worked out by hand; which frames are learned from, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import write_kitti
from PIL import Image
from torch import Tensor

from clever3d.datasets import Camera, Frame
from clever3d.distill.config import DataConfig, TrainConfig
from clever3d.distill.pairing import pair, view
from clever3d.distill.task import Example, scene_weights
from clever3d.distill.train import split_frames
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud

WIDTH, HEIGHT, FOCAL = 40, 20, 10.0
# camera axes (right, down, forward) from the sensor's (forward, left, up)
TO_CAMERA = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])

# (x, y, z), (u, v) = (20 - 10 y / x, 10 - 10 z / x), paired, context (column within -4 <= u < 44)
CASES: list[tuple[tuple[float, float, float], tuple[float, float], bool, bool]] = [
    ((10, 0, 0), (20, 10), True, True),
    ((10, 5, -2), (15, 12), True, True),
    ((20, -30, 8), (35, 6), True, True),
    ((1, 0, 0), (20, 10), False, True),  # exactly 1 m ahead
    ((1.001, 0, 0), (20, 10), True, True),
    ((0.5, 0.1, 0), (18, 10), False, True),
    ((-10, 0, 0), (np.nan, np.nan), False, False),  # behind, where the formula would say (20, 10)
    ((0, 3, 0), (np.nan, np.nan), False, False),  # beside
    ((10, 20.5, 0), (-0.5, 10), True, True),  # the image's left edge, pixel centres being whole numbers
    ((10, 20.6, 0), (-0.6, 10), False, True),
    ((10, -19.4, 0), (39.4, 10), True, True),
    ((10, -19.5, 0), (39.5, 10), False, True),  # the right edge
    ((10, 23.9, 0), (-3.9, 10), False, True),
    ((10, 24.1, 0), (-4.1, 10), False, False),
    ((10, -24.1, 0), (44.1, 10), False, False),
    ((10, 0, 10.5), (20, -0.5), True, True),  # the upper edge
    ((10, 0, 10.6), (20, -0.6), False, True),
    ((10, 0, -9.4), (20, 19.4), True, True),
    ((10, 0, -9.5), (20, 19.5), False, True),  # the lower edge
    ((10, 0, 90), (20, -80), False, True),  # high above: context all the same
]
XYZ = np.array([case[0] for case in CASES], dtype=np.float32)
PIXELS = np.array([case[1] for case in CASES], dtype=float)
PAIRED = np.array([case[2] for case in CASES])
CONTEXT = np.array([case[3] for case in CASES])


class Coordinates:
    """Stands in for the teacher's cache: patch features are the pixel coordinates of the patch's own centre."""

    def get(self, image_path: Path) -> Tensor:
        u = (torch.arange(WIDTH) + 0.0).expand(HEIGHT, WIDTH)  # one patch a pixel
        v = (torch.arange(HEIGHT) + 0.0)[:, None].expand(HEIGHT, WIDTH)
        marker = torch.full((HEIGHT, WIDTH), float(image_path.stem))
        return torch.stack([u, v, marker]).half()  # [3, H, W]


def camera(folder: Path, name: str = "1", to_camera: np.ndarray[Any, Any] = TO_CAMERA) -> Camera:
    path = folder / f"{name}.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return Camera(name, path, INTRINSICS, to_camera)


def frame(
    cameras: tuple[Camera, ...], xyz: np.ndarray[Any, Any] = XYZ, intensity: np.ndarray[Any, Any] | None = None
) -> Frame:
    points = cameras[0].image_path  # some file that exists
    return Frame("7", "scene", cameras, points, "test", lambda path: PointCloud(xyz, intensity, "test"))


def paired(example: Frame) -> Any:
    cache: Any = Coordinates()
    return pair(example, cache)


def test_pixels_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    seen = view(XYZ, camera(tmp_path))
    np.testing.assert_array_equal(seen.rows, np.flatnonzero(PAIRED))
    np.testing.assert_allclose(seen.pixels, PIXELS[PAIRED], atol=1e-5)
    assert seen.image_size == (WIDTH, HEIGHT)


def test_context_is_what_stands_ahead_in_the_image_s_columns_or_a_little_beyond(tmp_path: Path) -> None:
    np.testing.assert_array_equal(view(XYZ, camera(tmp_path)).context, CONTEXT)


def test_points_a_little_under_the_image_can_take_its_lower_edge(tmp_path: Path) -> None:
    xyz = np.array([[10, 0, -9.4], [10, 0, -19.4], [10, 0, -19.5], [10, 0, 10.6]], dtype=np.float32)  # v 19.4 29.4 29.5
    cache: Any = Coordinates()
    scan = pair(frame((camera(tmp_path),), xyz), cache, below=0.5)  # half of 20 pixels
    assert scan.rows.tolist() == [0, 1]
    np.testing.assert_allclose(scan.targets[:, 1], [19, 19], atol=1e-4)
    assert paired(frame((camera(tmp_path),), xyz)).rows.tolist() == [0]


def test_a_scan_is_cut_to_the_context_and_keeps_its_order(tmp_path: Path) -> None:
    intensity = np.linspace(0, 1, len(XYZ), dtype=np.float32)
    scan = paired(frame((camera(tmp_path),), intensity=intensity))
    np.testing.assert_array_equal(scan.xyz, XYZ[CONTEXT])
    np.testing.assert_array_equal(scan.intensity, intensity[CONTEXT])
    assert paired(frame((camera(tmp_path),))).intensity is None


def test_rows_index_into_the_cut_scan(tmp_path: Path) -> None:
    scan = paired(frame((camera(tmp_path),)))
    np.testing.assert_array_equal(scan.xyz[scan.rows], XYZ[PAIRED])
    x, y, z = scan.xyz[scan.rows].double().T
    again = torch.stack([20 - 10 * y / x, 10 - 10 * z / x], dim=1)
    np.testing.assert_allclose(again, PIXELS[PAIRED], atol=1e-5)


def test_targets_are_the_teacher_s_features_at_the_pixels(tmp_path: Path) -> None:
    scan = paired(frame((camera(tmp_path),)))
    inside = PIXELS[PAIRED].clip(0, [WIDTH - 1, HEIGHT - 1])  # beyond the outermost centres features are constant
    np.testing.assert_allclose(scan.targets[:, :2], inside, atol=1e-4)


def test_targets_are_bilinear_between_patch_centres(tmp_path: Path) -> None:
    xyz = np.array([[10, 5.3, -2.6], [10, -3.75, 1.25]], dtype=np.float32)  # u = 14.7, 23.75; v = 12.6, 8.75
    scan = paired(frame((camera(tmp_path),), xyz))
    np.testing.assert_allclose(scan.targets[:, :2], [[14.7, 12.6], [23.75, 8.75]], atol=1e-4)


def test_points_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    broken = np.array([[np.nan, 0, 0], [np.inf, 1, 1]], dtype=np.float32)
    xyz = np.concatenate([broken[:1], XYZ, broken[1:]])
    intensity = np.arange(len(xyz), dtype=np.float32)
    scan = paired(frame((camera(tmp_path),), xyz, intensity))
    np.testing.assert_array_equal(scan.xyz[scan.rows], XYZ[PAIRED])
    np.testing.assert_array_equal(scan.intensity, intensity[1:-1][CONTEXT])


def test_a_point_that_two_cameras_see_is_paired_with_both(tmp_path: Path) -> None:
    backwards = TO_CAMERA @ np.diag([-1.0, -1.0, 1.0, 1.0])  # the sensor turned by half a circle
    moved = TO_CAMERA.copy()
    moved[0, 3] = 1.0  # a second camera 1 m to the left: u grows by 10 / x
    cameras = (camera(tmp_path, "1"), camera(tmp_path, "2", moved), camera(tmp_path, "3", backwards))
    xyz = np.array([[10, 0, 0], [10, 20.55, 0], [10, -19.45, 0], [-10, 0, 0]], dtype=np.float32)
    scan = paired(frame(cameras, xyz))
    np.testing.assert_array_equal(scan.xyz, xyz)
    found = {(int(row), int(marker)): float(u) for row, (u, _, marker) in zip(scan.rows, scan.targets, strict=True)}
    assert found == pytest.approx(
        {(0, 1): 20, (2, 1): 39, (0, 2): 21, (1, 2): 0.45, (3, 3): 20}, abs=0.01
    )  # 39.45 is beyond the last centre


def test_a_calibration_that_hits_nothing_is_an_error_that_names_the_frame(tmp_path: Path) -> None:
    upwards = TO_CAMERA[[0, 2, 1, 3]] @ np.diag([1.0, 1.0, -1.0, 1.0])
    with pytest.raises(DataError, match=r"no point falls into any image of frame 7.*calibration"):
        paired(frame((camera(tmp_path, to_camera=np.linalg.inv(TO_CAMERA)),), XYZ[:1]))
    with pytest.raises(DataError, match="frame 7"):
        paired(frame((camera(tmp_path, to_camera=upwards),), XYZ[:3]))
    with pytest.raises(DataError, match="frame 7"):
        paired(frame((camera(tmp_path),), np.zeros((0, 3), dtype=np.float32)))


def test_an_image_that_cannot_be_opened_is_an_error_with_its_path(tmp_path: Path) -> None:
    broken = camera(tmp_path)
    broken.image_path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png cannot be opened"):
        view(XYZ, broken)


# ---- which frames, and how often


def examples(tmp_path: Path, scenes: list[tuple[int, str]]) -> list[Example]:
    cameras = (camera(tmp_path),)
    read: Any = None
    return [Example(Frame(str(n), s, cameras, tmp_path, "t", read), d) for n, (d, s) in enumerate(scenes)]


SCENES = [(0, "a")] + [(0, "b")] * 4 + [(1, "b")] * 9  # scenes of 1, 4 and 9 frames, two of the same name


@pytest.mark.parametrize(
    ("power", "shares"),
    [(0.0, (1 / 3, 1 / 3, 1 / 3)), (0.5, (1 / 6, 2 / 6, 3 / 6)), (1.0, (1 / 14, 4 / 14, 9 / 14))],
)
def test_a_scene_of_n_frames_is_drawn_with_weight_n_to_the_power(
    tmp_path: Path, power: float, shares: tuple[float, ...]
) -> None:
    weights = scene_weights(examples(tmp_path, SCENES), power)
    weights = weights / weights.sum()
    found = [float(weights[:1].sum()), float(weights[1:5].sum()), float(weights[5:].sum())]
    assert found == pytest.approx(shares)
    assert weights[1:5].unique().numel() == weights[5:].unique().numel() == 1  # the frames of a scene evenly


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kitti(tmp_path_factory.mktemp("kitti") / "set", frames=4)


def split(*sets: str, val: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    config = TrainConfig(Path("unused"), DataConfig(sets=sets, val=val, exclude=exclude))
    train, kept = split_frames(config)
    return [e.name for e in train], [e.name for e in kept]


def test_frames_go_where_the_patterns_send_them_and_exclusion_wins(kitti: Path) -> None:
    train, val = split(f"kitti:{kitti}", val=("kitti/00000[12]",), exclude=("kitti/000002", "*3"))
    assert train == ["kitti/000000"]
    assert val == ["kitti/000001"]


def test_frames_of_every_set_know_which_one_they_came_from(kitti: Path) -> None:
    config = TrainConfig(Path("unused"), DataConfig(sets=(f"kitti:{kitti}", str(kitti)), val=("kitti/000000",)))
    train, val = split_frames(config)
    assert [e.data_set for e in train] == [0, 0, 0, 1, 1, 1]
    assert [e.data_set for e in val] == [0, 1]


def test_a_pattern_that_matches_nothing_is_named_with_an_example(kitti: Path) -> None:
    with pytest.raises(InputError, match=r"'kitti/9\*'.* match no frame.*'kitti/000000'") as caught:
        split(f"kitti:{kitti}", val=("kitti/000001", "kitti/9*"))
    assert "'kitti/000001'" not in str(caught.value)
    with pytest.raises(InputError, match="nuscenes/x"):
        split(f"kitti:{kitti}", exclude=("nuscenes/x",))


def test_no_data_is_an_error_that_shows_the_option() -> None:
    with pytest.raises(InputError, match=r"--data\.sets"):
        split()


def test_nothing_left_to_train_on_is_an_error_that_counts(kitti: Path) -> None:
    with pytest.raises(DataError, match="no frames to train on: 4 found, 3 of them kept for validation"):
        split(f"kitti:{kitti}", val=("*",), exclude=("kitti/000000",))
