"""Which point meets which pixel, against pixels worked out by hand; which frames are learned from, and how often."""

from __future__ import annotations

import logging
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import write_kitti
from PIL import Image
from small_kitti import write_semantickitti
from torch import Tensor

from clever3d.datasets import Camera, Distortion, Frame, open_dataset
from clever3d.datasets.augment import AugmentConfig, augment
from clever3d.datasets.rig_template import look_around
from clever3d.datasets.sample import Sample, draw_pairs, sample_from_frame
from clever3d.distill.config import DataConfig, TrainConfig
from clever3d.distill.pairing import add_targets, find_pairs, pair, paired_targets, view
from clever3d.distill.task import Example, scene_weights
from clever3d.distill.teachers import sample_grid
from clever3d.distill.train import fill_cache, split_frames
from clever3d.errors import DataError, InputError
from clever3d.evaluate.calibration.edges import image_edges
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
    assert scan.pairs.rows.tolist() == [0, 1]
    np.testing.assert_allclose(scan.pairs.targets[:, 1], [19, 19], atol=1e-4)
    assert paired(frame((camera(tmp_path),), xyz)).pairs.rows.tolist() == [0]


def test_a_scan_is_cut_to_the_context_and_keeps_its_order(tmp_path: Path) -> None:
    intensity = np.linspace(0, 1, len(XYZ), dtype=np.float32)
    scan = paired(frame((camera(tmp_path),), intensity=intensity))
    np.testing.assert_array_equal(scan.xyz, XYZ[CONTEXT])
    np.testing.assert_array_equal(scan.intensity, intensity[CONTEXT])
    assert paired(frame((camera(tmp_path),))).intensity is None


def test_rows_index_into_the_cut_scan(tmp_path: Path) -> None:
    scan = paired(frame((camera(tmp_path),)))
    np.testing.assert_array_equal(scan.xyz[scan.pairs.rows], XYZ[PAIRED])
    x, y, z = scan.xyz[scan.pairs.rows].double().T
    again = torch.stack([20 - 10 * y / x, 10 - 10 * z / x], dim=1)
    np.testing.assert_allclose(again, PIXELS[PAIRED], atol=1e-5)


def test_targets_are_the_teacher_s_features_at_the_pixels(tmp_path: Path) -> None:
    scan = paired(frame((camera(tmp_path),)))
    inside = PIXELS[PAIRED].clip(0, [WIDTH - 1, HEIGHT - 1])  # beyond the outermost centres features are constant
    np.testing.assert_allclose(scan.pairs.targets[:, :2], inside, atol=1e-4)


def test_targets_are_bilinear_between_patch_centres(tmp_path: Path) -> None:
    xyz = np.array([[10, 5.3, -2.6], [10, -3.75, 1.25]], dtype=np.float32)  # u = 14.7, 23.75; v = 12.6, 8.75
    scan = paired(frame((camera(tmp_path),), xyz))
    np.testing.assert_allclose(scan.pairs.targets[:, :2], [[14.7, 12.6], [23.75, 8.75]], atol=1e-4)


def test_points_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    broken = np.array([[np.nan, 0, 0], [np.inf, 1, 1]], dtype=np.float32)
    xyz = np.concatenate([broken[:1], XYZ, broken[1:]])
    intensity = np.arange(len(xyz), dtype=np.float32)
    scan = paired(frame((camera(tmp_path),), xyz, intensity))
    np.testing.assert_array_equal(scan.xyz[scan.pairs.rows], XYZ[PAIRED])
    np.testing.assert_array_equal(scan.intensity, intensity[1:-1][CONTEXT])


def test_a_point_that_two_cameras_see_is_paired_with_both(tmp_path: Path) -> None:
    backwards = TO_CAMERA @ np.diag([-1.0, -1.0, 1.0, 1.0])  # the sensor turned by half a circle
    moved = TO_CAMERA.copy()
    moved[0, 3] = 1.0  # a second camera 1 m to the left: u grows by 10 / x
    cameras = (camera(tmp_path, "1"), camera(tmp_path, "2", moved), camera(tmp_path, "3", backwards))
    xyz = np.array([[10, 0, 0], [10, 20.55, 0], [10, -19.45, 0], [-10, 0, 0]], dtype=np.float32)
    scan = paired(frame(cameras, xyz))
    np.testing.assert_array_equal(scan.xyz, xyz)
    found = {
        (int(row), int(marker)): float(u)
        for row, (u, _, marker) in zip(scan.pairs.rows, scan.pairs.targets, strict=True)
    }
    assert found == pytest.approx(
        {(0, 1): 20, (2, 1): 39, (0, 2): 21, (1, 2): 0.45, (3, 3): 20}, abs=0.01
    )  # 39.45 is beyond the last centre


def test_a_calibration_that_hits_nothing_is_an_error_that_names_the_frame(tmp_path: Path) -> None:
    upwards = TO_CAMERA[[0, 2, 1, 3]] @ np.diag([1.0, 1.0, -1.0, 1.0])
    with pytest.raises(DataError, match=r"no point falls into any image of frame test/7 .*1\.png.*calibration"):
        paired(frame((camera(tmp_path, to_camera=np.linalg.inv(TO_CAMERA)),), XYZ[:1]))
    with pytest.raises(DataError, match="frame test/7"):
        paired(frame((camera(tmp_path, to_camera=upwards),), XYZ[:3]))
    with pytest.raises(DataError, match="none of the 0 points of frame 7"):
        paired(frame((camera(tmp_path),), np.zeros((0, 3), dtype=np.float32)))


def test_an_image_that_cannot_be_opened_is_an_error_with_its_path(tmp_path: Path) -> None:
    broken = camera(tmp_path)
    broken.image_path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png cannot be opened"):
        view(XYZ, broken)


def test_an_image_that_is_missing_or_empty_is_an_error_with_its_path(tmp_path: Path) -> None:
    gone = camera(tmp_path)
    gone.image_path.write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png is empty \(0 bytes\)"):
        view(XYZ, gone)
    gone.image_path.unlink()
    with pytest.raises(DataError, match=r"1\.png does not exist"):
        view(XYZ, gone)


def test_an_image_that_claims_more_pixels_than_pil_accepts_is_an_error_with_its_path(tmp_path: Path) -> None:
    """57 bytes whose header says 60000 x 60000."""
    huge = camera(tmp_path)
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, b"IDAT", b"IEND")]
    huge.image_path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(DataError, match=r"1\.png cannot be opened.*3600000000 pixels"):
        view(XYZ, huge)
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image.*3600000000 pixels"):
        image_edges(huge.image_path, FOCAL)  # of `clever3d rig check`
    assert look_around(tmp_path).images == ()  # of `clever3d rig new`


def test_a_frame_without_cameras_is_an_error_that_names_it(tmp_path: Path) -> None:
    bare = Frame("7", "scene", (), camera(tmp_path).image_path, "test", lambda path: PointCloud(XYZ, None, "test"))
    with pytest.raises(DataError, match="frame test/7 has no cameras"):
        paired(bare)


# ---- the half-pixel convention: a ramp in the image is the same ramp through the grid


def ramp(width: int, height: int) -> Tensor:
    """[2, H, W]: every pixel holds its own coordinates (u, v)."""
    v, u = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack([u, v])


def interior(width: int, height: int, grid: tuple[int, int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Random pixels [500, 2] between the outermost patch centres of a grid (w, h)."""
    margin = np.array([width / grid[0], height / grid[1]]) / 2
    low, high = margin - 0.5, np.array([width, height]) - margin - 0.5
    return np.random.default_rng(seed).uniform(low, high, (500, 2))


@pytest.mark.parametrize(("size", "grid"), [((140, 70), (10, 5)), ((1242, 375), (82, 25)), ((101, 37), (7, 3))])
def test_a_ramp_in_the_image_is_the_same_ramp_through_the_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """The grid is made by torch's own resizing, sizes that do not divide included: exact at every sub-pixel."""
    w, h = grid
    small = torch.nn.functional.interpolate(ramp(*size)[None], (h, w), mode="bilinear", align_corners=False)[0]
    pixels = interior(*size, grid)
    np.testing.assert_allclose(sample_grid(small, pixels, size), pixels, atol=2e-6 * size[0])
    off_by_half = sample_grid(small, pixels + 0.5, size)
    assert abs(off_by_half - torch.from_numpy(pixels)).max() > 0.4


@pytest.mark.parametrize(("size", "grid"), [((140, 70), (10, 5)), ((1242, 375), (82, 25)), ((101, 37), (7, 3))])
def test_the_teacher_s_resizing_keeps_the_convention(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """Through PIL's bicubic filter to 14 pixels a patch, each patch then averaged, as a patch embedding can."""
    w, h = grid
    for axis, values in enumerate(ramp(*size).numpy()):
        resized = Image.fromarray(values).resize((14 * w, 14 * h), Image.Resampling.BICUBIC)
        patches = torch.from_numpy(np.array(resized)).view(1, h, 14, w, 14).mean((2, 4))
        inner = interior(*size, grid)
        wide = 3 * np.array(size) / (14 * np.array(grid)) + 3  # PIL's filter is cut off at the image's border
        border = np.array(size) / grid + wide
        inner = inner[((inner > border) & (inner < np.array(size) - 1 - border)).all(axis=1)]
        found = sample_grid(patches, inner, size)[:, 0]
        np.testing.assert_allclose(found, inner[:, axis], atol=0.02)


# ---- an image of another size than the calibration's


def test_pixels_of_a_smaller_copy_are_scaled_at_the_pixels_edges(tmp_path: Path) -> None:
    """Calibrated at 80 x 40, the file has 40 x 20: edges -0.5 and 79.5 become -0.5 and 39.5, so u' = u / 2 - 0.25."""
    whole = Camera("1", camera(tmp_path).image_path, np.array([[20.0, 0, 41], [0, 20, 19], [0, 0, 1]]), TO_CAMERA)
    xyz = np.array([[10, 3, 1], [10, -8, -2], [20, 11, 5]], dtype=np.float32)
    u, v = 41 - 20 * xyz[:, 1] / xyz[:, 0], 19 - 20 * xyz[:, 2] / xyz[:, 0]
    seen = view(xyz, replace(whole, image_size=(80, 40)))
    np.testing.assert_allclose(seen.pixels, np.stack([u / 2 - 0.25, v / 2 - 0.25], axis=1), atol=1e-5)
    sample = paired(frame((replace(whole, image_size=(80, 40)),), xyz))
    pixels, _ = sample.cameras[0].project(sample.xyz.numpy())  # the camera of the sample is that of the file
    np.testing.assert_allclose(pixels, sample.pairs.pixels, atol=1e-4)
    assert sample.cameras[0].image_size == (40, 20)


@pytest.mark.parametrize("calibrated", [(80, 41), (79, 40), (20, 10), (20, 40), (41, 20)])
def test_an_image_of_any_other_size_is_an_error_with_both(tmp_path: Path, calibrated: tuple[int, int]) -> None:
    other = replace(camera(tmp_path), image_size=calibrated)
    with pytest.raises(DataError, match=rf"1\.png has 40 x 20 .*calibrated at {calibrated[0]} x {calibrated[1]} "):
        view(XYZ, other)
    assert len(view(XYZ, replace(other, image_size=(40, 20))).rows) == PAIRED.sum()


# ---- lenses, one camera, many cameras


def test_a_lens_bends_where_points_are_seen(tmp_path: Path) -> None:
    """k1 alone: u = 20 + 10 a (1 + k1 r^2) with a = -y / x, b = -z / x, r^2 = a^2 + b^2."""
    bent = replace(camera(tmp_path), distortion=Distortion("pinhole", (0.1, 0, 0, 0)))
    xyz = np.array([[10, 5, -2], [10, -12, 4], [10, 19, 0]], dtype=np.float32)  # the last one leaves the image
    a, b = -xyz[:, 1] / xyz[:, 0], -xyz[:, 2] / xyz[:, 0]
    factor = 1 + 0.1 * (a * a + b * b)
    scan = paired(frame((bent,), xyz))
    assert scan.pairs.rows.tolist() == [0, 1]
    expected = np.stack([20 + 10 * a * factor, 10 + 10 * b * factor], axis=1)
    np.testing.assert_allclose(scan.pairs.pixels, expected[:2], atol=1e-5)
    np.testing.assert_allclose(scan.pairs.targets[:, :2], expected[:2], atol=0.02)  # float16 grid


def test_a_lens_that_pulls_points_into_the_image_has_them_paired(tmp_path: Path) -> None:
    """Without the lens u = 20 + 10 * 2.6 = 46, far beyond the image and its context; k1 = -0.04 makes it 38.97."""
    barrel = replace(camera(tmp_path), distortion=Distortion("pinhole", (-0.04, 0, 0, 0)))
    scan = paired(frame((barrel,), np.array([[10, -26, 0]], dtype=np.float32)))
    np.testing.assert_allclose(scan.pairs.pixels, [[20 + 26 * (1 - 0.04 * 2.6**2), 10]], atol=1e-4)


TURNED = TO_CAMERA @ np.diag([-1.0, -1.0, 1.0, 1.0])
ROUND = np.array([[10, 1, 0], [10, -1, 0], [-10, 1, 0]], dtype=np.float32)  # two points ahead, one behind


def test_one_camera_is_drawn_evenly_and_the_scan_cut_to_what_it_sees(tmp_path: Path) -> None:
    both = frame((camera(tmp_path, "1"), camera(tmp_path, "2", TURNED)), ROUND)
    cache: Any = Coordinates()
    drawn = []
    for seed in range(200):
        scan = pair(both, cache, which="one", generator=torch.Generator().manual_seed(seed))
        assert scan.pairs is not None and scan.pairs.targets is not None
        name = scan.cameras[0].name
        assert len(scan.cameras) == 1 and not scan.pairs.cameras.any()
        np.testing.assert_array_equal(scan.xyz, ROUND[:2] if name == "1" else ROUND[2:])
        assert scan.pairs.targets[:, 2].tolist() == [float(name)] * len(scan)
        again = pair(both, cache, which="one", generator=torch.Generator().manual_seed(seed))
        assert again.cameras[0].name == name
        drawn.append(name)
    assert 70 < drawn.count("1") < 130


def test_a_camera_that_sees_nothing_is_not_the_one(tmp_path: Path) -> None:
    cache: Any = Coordinates()
    ahead_only = frame((camera(tmp_path, "1", TURNED), camera(tmp_path, "2")), ROUND[:2])
    for seed in range(10):
        scan = pair(ahead_only, cache, which="one", generator=torch.Generator().manual_seed(seed))
        assert scan.cameras[0].name == "2"
    blind = frame((camera(tmp_path, "1", TURNED),), ROUND[:2])
    with pytest.raises(DataError, match="no point falls into any image"):
        pair(blind, cache, which="one", generator=torch.Generator())
    with pytest.raises(InputError, match="generator"):
        pair(ahead_only, cache, which="one")


def test_pairs_say_which_camera_saw_them(tmp_path: Path) -> None:
    scan = paired(frame((camera(tmp_path, "1"), camera(tmp_path, "2", TURNED)), ROUND))
    assert scan.pairs.cameras.tolist() == [0, 0, 1]
    assert scan.pairs.rows.tolist() == [0, 1, 2]


def test_targets_read_after_augmentation_are_those_read_before_it(tmp_path: Path) -> None:
    """Pixels are what a sample keeps: so few targets are read as pairs are left in the end."""
    generator = np.random.default_rng(0)
    xyz = generator.uniform([-20, -8, -4], [20, 8, 4], (500, 3)).astype(np.float32)
    scene = frame((camera(tmp_path, "1"), camera(tmp_path, "2", TURNED)), xyz)
    cache: Any = Coordinates()
    found = find_pairs(sample_from_frame(scene))
    assert found.pairs is not None and found.pairs.targets is None and len(found.pairs) > 100

    def after(sample: Sample) -> Sample:
        own = torch.Generator().manual_seed(1)
        return draw_pairs(augment(sample, AugmentConfig(), own), 20, own)

    late, early = add_targets(after(found), cache).pairs, after(add_targets(found, cache)).pairs
    assert late is not None and early is not None and late.targets is not None and early.targets is not None
    assert len(late) == 20 and late.cameras.unique().tolist() == [0, 1]
    assert torch.equal(late.rows, early.rows) and torch.equal(late.targets, early.targets)
    assert late.targets[:, 2].tolist() == (late.cameras + 1.0).tolist()


def test_few_pairs_are_all_drawn_and_none_have_no_targets(tmp_path: Path) -> None:
    cache: Any = Coordinates()
    found = find_pairs(sample_from_frame(frame((camera(tmp_path),))))
    assert found.pairs is not None
    assert draw_pairs(found, len(found.pairs), torch.Generator()) is found
    numbers = [draw_pairs(found, 2, torch.Generator().manual_seed(s)).pairs for s in range(100)]
    drawn = {tuple(pairs.rows.tolist()) for pairs in numbers if pairs is not None}
    assert len(drawn) > 10 and all(first < second for first, second in drawn)
    bare = add_targets(found.select(torch.zeros(len(found), dtype=torch.bool)), cache)
    assert bare.pairs is not None and bare.pairs.targets is not None and bare.pairs.targets.shape == (0, 3)
    with pytest.raises(InputError, match=r"sample test/7 has no pairs: find_pairs"):
        add_targets(sample_from_frame(frame((camera(tmp_path),))), cache)
    turned_round = replace(found, pairs=replace(found.pairs, cameras=torch.arange(len(found.pairs)).flip(0) // 4))
    with pytest.raises(InputError, match="camera by camera"):
        add_targets(turned_round, cache)
    with pytest.raises(InputError, match=r"no pairs with targets: add_targets"):
        paired_targets(found)


@pytest.mark.parametrize("spec", ["kitti", "nuscenes", "rellis3d"])
def test_real_pixels_are_those_of_the_plain_projection(shared_data: Path, spec: str) -> None:
    """`view` projects only what lies ahead; here everything is projected, and the image opened by PIL."""
    found = open_dataset(shared_data / spec)[0]
    xyz = found.points().xyz
    for one in found.cameras:
        width, height = Image.open(one.image_path).size
        homogeneous = np.column_stack([xyz.astype(float), np.ones(len(xyz))]) @ one.points_to_camera.T
        depth = homogeneous[:, 2]
        seen = view(xyz, one)
        if one.distortion is None:
            uvw = homogeneous[:, :3] @ one.intrinsics.T
            with np.errstate(divide="ignore", invalid="ignore"):
                uv = uvw[:, :2] / uvw[:, 2:]
        else:
            uv, _ = one.project(xyz)
        inside = (uv >= -0.5) & (uv < [width - 0.5, height - 0.5])
        np.testing.assert_array_equal(seen.rows, np.flatnonzero(inside.all(axis=1) & (depth > 1)))
        np.testing.assert_allclose(seen.pixels, uv[seen.rows], atol=1e-6)


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
    train, kept, _ = split_frames(config)
    return [e.name for e in train], [e.name for e in kept]


def test_frames_go_where_the_patterns_send_them_and_exclusion_wins(kitti: Path) -> None:
    train, val = split(f"kitti:{kitti}", val=("kitti/00000[12]",), exclude=("kitti/000002", "*3"))
    assert train == ["kitti/000000"]
    assert val == ["kitti/000001"]


def test_frames_of_every_set_know_which_one_they_came_from(kitti: Path) -> None:
    config = TrainConfig(Path("unused"), DataConfig(sets=(f"kitti:{kitti}", str(kitti)), val=("kitti/000000",)))
    train, val, _ = split_frames(config)
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


def rig(root: Path, images: tuple[str, ...], scans: int = 12) -> str:
    """A rig of one camera in which a scan may lack its image."""
    (root / "lidar").mkdir(parents=True)
    (root / "camera").mkdir()
    for number in range(scans):
        np.ones((5, 4), dtype=np.float32).tofile(root / f"lidar/{number:02d}.bin")
    for name in images:
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / f"camera/{name}.png")
    (root / "rig.yaml").write_text(f"""\
version: 1
lidar: {{files: lidar/*.bin, axes: flu, columns: 4}}
cameras:
  front:
    files: camera/*.png
    image_size: [{WIDTH}, {HEIGHT}]
    intrinsics: {{fx: 10, fy: 10, cx: 20, cy: 10}}
    lidar_to_camera: {{rotation: [[0, -1, 0], [0, 0, -1], [1, 0, 0]], translation: [0, 0, 0]}}
matching: {{by: stem, missing_images: skip}}
""")
    return f"rig:{root}"


def test_scans_without_any_image_are_left_out_and_are_not_bad(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = rig(tmp_path / "rig", images=("03", "05"))
    config = TrainConfig(Path("unused"), DataConfig(sets=(spec,), val=("rig/*5",), max_bad=0))
    with caplog.at_level(logging.INFO):
        train, val, bad = split_frames(config)
    assert [e.frame.points_path.stem for e in (*train, *val)] == ["03", "05"]
    assert not bad.reasons and bad.frames == 2
    assert [r.getMessage() for r in caplog.records if "no image" in r.getMessage()] == [
        "10 of 12 frames have no image and are left out"
    ]
    with pytest.raises(DataError, match="12 found, 0 of them kept for validation, 11 without any image"):
        split(rig(tmp_path / "other", images=("03",)), exclude=("rig/*3",))


def test_a_data_set_opened_with_sweeps_is_refused_for_they_would_be_ignored(tmp_path: Path) -> None:
    root = write_semantickitti(tmp_path / "sk")
    with pytest.raises(InputError, match=r"--data\.sets, no\. 2 \(semantickitti\).*leave sweeps= out"):
        split(f"semantickitti:{root}", f"semantickitti:{root}#sweeps=1")
    assert len(split(f"semantickitti:{root}", f"semantickitti:{root}#sweeps=0")[0]) == 12


def test_bad_frames_of_two_sets_that_share_their_names_are_two(tmp_path: Path) -> None:
    sets = [write_kitti(tmp_path / name, frames=3) for name in ("a", "b")]
    for root in sets:
        (root / "training/image_2/000001.png").write_bytes(b"")
        (root / "training/calib/000002.txt").write_text("nothing")
    train, _, bad = split_frames(TrainConfig(Path("unused"), DataConfig(sets=tuple(f"kitti:{root}" for root in sets))))

    class Reading:
        def get(self, path: Path) -> None:
            if not path.read_bytes():
                raise DataError(f"the image {path} cannot be decoded")

    cache: Any = Reading()
    fill_cache(train, cache, bad)
    assert [name for name, reason in bad.reasons.items() if str(sets[0]) in reason] == [
        "kitti/number 2",
        "kitti/000001",
    ]
    assert [name for name, reason in bad.reasons.items() if str(sets[1]) in reason] == [
        "kitti/number 2 (data set 2)",
        "kitti/000001 (data set 2)",
    ]


def test_a_frame_whose_calibration_or_image_is_broken_is_counted_before_the_training(tmp_path: Path) -> None:
    training = write_kitti(tmp_path / "set", frames=4) / "training"
    (training / "calib/000001.txt").write_text("nothing")
    (training / "image_2/000002.png").write_bytes(b"")
    config = TrainConfig(Path("unused"), DataConfig(sets=(f"kitti:{tmp_path / 'set'}",), val=("kitti/000003",)))
    train, val, bad = split_frames(config)
    assert [e.name for e in train] == ["kitti/000000", "kitti/000002"] and [e.name for e in val] == ["kitti/000003"]
    assert list(bad.reasons) == ["kitti/number 1"] and "000001.txt" in bad.reasons["kitti/number 1"]

    class Reading:
        def get(self, path: Path) -> None:
            if not path.read_bytes():
                raise DataError(f"the image {path} cannot be decoded")

    cache: Any = Reading()
    fill_cache([*train, *val], cache, bad)
    assert list(bad.reasons) == ["kitti/number 1", "kitti/000002"] and "000002.png" in bad.reasons["kitti/000002"]
    none_allowed = TrainConfig(Path("unused"), replace(config.data, max_bad=0))
    with pytest.raises(DataError, match="1 of 4 frames cannot be used"):
        split_frames(none_allowed)
