"""Augmentation: every change does what its name says, exactly, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clever3d.datasets import Boxes, Camera, Distortion
from clever3d.datasets.augment import (
    AugmentConfig,
    augment,
    change,
    change_intensity,
    draw_motion,
    jitter,
    keep_mask,
)
from clever3d.datasets.sample import BoxTensors, Pairs, Sample, move_points
from clever3d.distill.config import TrainConfig
from clever3d.errors import InputError

NOTHING = {
    "rotation": 0.0, "flip": 0.0, "scale": 0.0, "height": 0.0, "keep": 1.0, "beams": 0.0, "intensity": 0.0,
    "no_intensity": 0.0,
}  # fmt: skip


def only(**changes: float) -> AugmentConfig:
    return AugmentConfig(**{**NOTHING, **changes})


def transform(xyz: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    return move_points(xyz, draw_motion(config, generator))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int = 400) -> Tensor:
    return torch.randn(count, 3, generator=rng(7)) * torch.tensor([20.0, 20.0, 2.0])


def turned(before: Tensor, after: Tensor) -> Tensor:
    """Degrees by which the azimuth of each point grew, in (-180, 180]."""
    angle = torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0])
    return torch.rad2deg(torch.remainder(angle + math.pi, 2 * math.pi) - math.pi)


def areas(xyz: Tensor) -> Tensor:
    """Signed area of the ground triangles of successive points: changes its sign in a mirror."""
    a, b, c = xyz[:-2, :2], xyz[1:-1, :2], xyz[2:, :2]
    (x1, y1), (x2, y2) = (b - a).T, (c - a).T
    return (x1 * y2 - x2 * y1) / 2


def test_no_change_is_no_change() -> None:
    xyz = points()
    torch.testing.assert_close(transform(xyz, only(), rng()), xyz)
    assert keep_mask(xyz, only(), rng()).all()


@pytest.mark.parametrize("seed", range(5))
def test_rotation_keeps_ranges_and_heights_and_turns_all_points_alike(seed: int) -> None:
    xyz = points()
    after = transform(xyz, only(rotation=180.0), rng(seed))
    torch.testing.assert_close(after.norm(dim=1), xyz.norm(dim=1))
    assert torch.equal(after[:, 2], xyz[:, 2])
    angles = turned(xyz, after)
    torch.testing.assert_close(angles, angles.median().expand(len(xyz)), atol=0.02, rtol=0)
    torch.testing.assert_close(areas(after), areas(xyz), atol=1e-2, rtol=1e-4)


def test_rotations_fill_their_range_and_stay_in_it() -> None:
    xyz = points(50)
    angles = torch.stack([turned(xyz, transform(xyz, only(rotation=30.0), rng(s))).median() for s in range(200)])
    assert angles.min() > -30.01 and angles.max() < 30.01
    assert angles.min() < -25 and angles.max() > 25
    assert angles.mean().abs() < 5


def test_a_flip_is_a_mirror_image() -> None:
    xyz = points()
    torch.testing.assert_close(transform(xyz, only(flip=1.0), rng()), xyz * torch.tensor([1.0, -1.0, 1.0]))
    after = transform(xyz, only(flip=1.0, rotation=180.0), rng(3))
    torch.testing.assert_close(
        torch.cdist(after[:50], after[50:100]), torch.cdist(xyz[:50], xyz[50:100]), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(areas(after), -areas(xyz), atol=1e-2, rtol=1e-4)


def test_flips_come_as_often_as_told() -> None:
    xyz = points(10)
    flipped = [bool((areas(transform(xyz, only(flip=0.25), rng(s))) * areas(xyz) < 0).all()) for s in range(400)]
    assert 0.18 < sum(flipped) / 400 < 0.32  # 3 sigma


def test_scale_multiplies_all_axes_by_one_number() -> None:
    xyz = points()
    ratios = torch.stack([(transform(xyz, only(scale=0.1), rng(s)) / xyz) for s in range(100)])  # [100, N, 3]
    per_draw = ratios.flatten(1)
    torch.testing.assert_close(per_draw, per_draw[:, :1].expand_as(per_draw))
    assert 0.9 <= per_draw.min() < 0.92 and 1.08 < per_draw.max() <= 1.1 + 1e-6


def test_height_lifts_and_nothing_else() -> None:
    xyz = points()
    shifts = torch.stack([transform(xyz, only(height=0.15), rng(s)) - xyz for s in range(100)])  # [100, N, 3]
    assert not shifts[..., :2].any()
    torch.testing.assert_close(shifts[..., 2], shifts[:, :1, 2].expand(-1, len(xyz)), atol=1e-5, rtol=0)
    assert -0.1501 < shifts.min() < -0.12 and 0.12 < shifts.max() < 0.1501


@pytest.mark.parametrize("change", [transform, keep_mask], ids=["transform", "keep_mask"])
def test_the_generator_alone_decides(change: Callable[[Tensor, AugmentConfig, torch.Generator], Tensor]) -> None:
    xyz = points()
    first = change(xyz, AugmentConfig(), rng(1))
    torch.rand(10)  # the global state does not matter
    assert torch.equal(change(xyz, AugmentConfig(), rng(1)), first)
    assert not torch.equal(change(xyz, AugmentConfig(), rng(2)), first)


def test_dropout_keeps_between_the_smallest_share_and_all() -> None:
    xyz = points(4000)
    shares = torch.tensor([keep_mask(xyz, only(keep=0.5), rng(s)).float().mean() for s in range(200)])
    assert 0.47 < shares.min() < 0.55 and 0.95 < shares.max() <= 1.0
    assert abs(shares.mean() - 0.75) < 0.04


def test_dropout_does_not_look_at_where_points_are() -> None:
    xyz = points(20_000)
    kept = keep_mask(xyz, only(keep=0.5), rng(5))
    near = xyz.norm(dim=1) < xyz.norm(dim=1).median()
    assert abs(kept[near].float().mean() - kept[~near].float().mean()) < 0.03


def fan(ranges: tuple[float, ...], azimuths: int, elevations: Tensor) -> Tensor:
    """Points [E, A * R, 3] at every elevation (degrees), azimuth and range."""
    azimuth = torch.linspace(0, 6.2, azimuths)
    e, a, r = torch.meshgrid(elevations.deg2rad(), azimuth, torch.tensor(ranges), indexing="ij")
    xyz = torch.stack([r * e.cos() * a.cos(), r * e.cos() * a.sin(), r * e.sin()], dim=-1)
    return xyz.flatten(1, 2)


@pytest.mark.parametrize("seed", range(6))
def test_lost_beams_are_whole_bands_of_elevation_of_one_width(seed: int) -> None:
    elevations = torch.arange(-1999, 800, 10) / 100  # no multiple of a band lies on the grid but by chance
    xyz = fan((3.0, 40.0), 5, elevations)
    kept = keep_mask(xyz.flatten(0, 1), only(beams=1.0), rng(seed)).view(len(elevations), 10)
    sharp = (kept.all(dim=1) | ~kept.any(dim=1)).float().mean()
    assert sharp > 0.98  # rounding may split an elevation that lies on a border
    change = (kept[1:, 0] != kept[:-1, 0]).nonzero().squeeze(1)
    widths = (change[1:] - change[:-1]) * 0.1  # degrees, +- 0.1 from the grid
    assert widths.max() - widths.min() < 0.21
    assert 0.35 - 0.1 < widths.float().mean() < 1.2 + 0.1
    assert abs(kept.float().mean() - 0.5) < 0.1


def test_beams_are_lost_as_often_as_told() -> None:
    xyz = points(200)
    lost = [not keep_mask(xyz, only(beams=0.3), rng(s)).all() for s in range(400)]
    assert 0.23 < sum(lost) / 400 < 0.37


def test_intensity_is_scaled_by_one_number_and_stays_in_its_range() -> None:
    intensity = torch.linspace(0, 1, 101)
    factors = []
    for seed in range(100):
        after = change_intensity(intensity, only(intensity=0.3), rng(seed))
        assert after is not None and after.min() >= 0 and after.max() <= 1
        factor = float(after[50] / intensity[50])
        torch.testing.assert_close(after, (factor * intensity).clamp(max=1))
        factors.append(factor)
    assert 0.7 <= min(factors) < 0.74 and 1.26 < max(factors) <= 1.3


def test_intensity_goes_away_as_often_as_told() -> None:
    gone = [change_intensity(torch.ones(3), only(no_intensity=0.2), rng(s)) is None for s in range(400)]
    assert 0.14 < sum(gone) / 400 < 0.26
    assert change_intensity(None, only(), rng()) is None


def test_what_follows_does_not_depend_on_whether_there_is_intensity() -> None:
    with_intensity, without = rng(), rng()
    change_intensity(torch.ones(3), AugmentConfig(), with_intensity)
    change_intensity(None, AugmentConfig(), without)
    assert torch.equal(with_intensity.get_state(), without.get_state())


def test_a_flip_of_x_is_front_for_back_and_independent_of_the_other() -> None:
    xyz = points()
    torch.testing.assert_close(transform(xyz, only(flip_x=1.0), rng()), xyz * torch.tensor([-1.0, 1.0, 1.0]))
    both = transform(xyz, only(flip_x=1.0, flip=1.0), rng())
    torch.testing.assert_close(both, xyz * torch.tensor([-1.0, -1.0, 1.0]))
    drawn = [
        tuple((transform(torch.ones(1, 3), only(flip=0.5, flip_x=0.5), rng(s))[0, :2] < 0).tolist()) for s in range(400)
    ]
    shares = [drawn.count(case) / 400 for case in ((False, False), (False, True), (True, False), (True, True))]
    assert all(0.17 < share < 0.33 for share in shares)  # 4 sigma


def test_a_tilt_leans_the_vertical_by_at_most_its_angles_in_all_directions() -> None:
    up = torch.tensor([[0.0, 0.0, 1.0]])
    leaning = torch.cat([transform(up, only(tilt=3.0), rng(s)) for s in range(300)])  # [300, 3]
    degrees = torch.rad2deg(torch.acos(leaning[:, 2].clamp(max=1)))
    assert degrees.max() < 3 * 2**0.5 + 0.01 and degrees.max() > 3
    assert ((leaning[:, 0] > 0).float().mean() - 0.5).abs() < 0.12 and (
        (leaning[:, 1] > 0).float().mean() - 0.5
    ).abs() < 0.12
    xyz = points()
    torch.testing.assert_close(transform(xyz, only(tilt=3.0), rng()).norm(dim=1), xyz.norm(dim=1))


def test_a_shift_moves_all_points_alike_along_x_and_y() -> None:
    xyz = points()
    shifts = torch.stack([transform(xyz, only(shift=2.0), rng(s)) - xyz for s in range(200)])  # [200, N, 3]
    torch.testing.assert_close(shifts, shifts[:, :1].expand_as(shifts), atol=1e-5, rtol=0)
    assert not shifts[..., 2].any()
    for axis in (0, 1):
        assert -2.001 < shifts[..., axis].min() < -1.8 and 1.8 < shifts[..., axis].max() < 2.001


def test_jitter_is_gaussian_for_each_coordinate_and_clipped() -> None:
    xyz = points(20_000)
    moved = jitter(xyz, only(jitter=0.02, jitter_clip=0.05), rng()) - xyz
    assert moved.abs().max() < 0.05 + 1e-5
    assert ((moved.abs() > 0.0499).float().mean() - 0.0124).abs() < 0.003  # beyond 2.5 standard deviations
    assert moved.std() == pytest.approx(0.0198, abs=0.0005)
    correlation = torch.corrcoef(moved.T) - torch.eye(3)
    assert correlation.abs().max() < 0.03
    assert jitter(xyz, only(), rng()) is xyz


# ---- what belongs to the points stays right


LENS = Distortion("pinhole", (-0.2, 0.05, 0.001, -0.002))
TO_CAMERA = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.3], [1, 0, 0, -0.2], [0, 0, 0, 1]], dtype=float)


def full_sample(seed: int, count: int = 300, boxes: int = 6) -> Sample:
    """A scan whose points carry their own number as label, instance and intensity, with two cameras and boxes."""
    numbers = np.random.default_rng(seed)
    xyz = torch.from_numpy(numbers.uniform([-40, -40, -2], [40, 40, 6], (count, 3)).astype(np.float32))
    axes = np.linalg.qr(numbers.normal(size=(boxes, 3, 3)))[0]
    axes[:, :, 2] *= np.linalg.det(axes)[:, None]
    centers = xyz[:boxes].numpy().astype(float) + numbers.uniform(-0.5, 0.5, (boxes, 3))
    annotated = Boxes(
        centers, numbers.uniform(2, 12, (boxes, 3)), axes, tuple("abcdef"[:boxes]), numbers.normal(size=(boxes, 3))
    )
    intrinsics = np.array([[300.0, 0, 320], [0, 310, 200], [0, 0, 1]])
    cameras = tuple(
        Camera(f"{n}", Path("none.png"), intrinsics, TO_CAMERA @ turn_z(angle), lens)
        for n, (angle, lens) in enumerate([(0.0, None), (2.0, LENS)])
    )
    rows, which, pixels = [], [], []
    for number, camera in enumerate(cameras):
        uv, depth = camera.project(xyz.numpy())
        seen = np.flatnonzero((depth > 1) & (np.abs(uv - [320, 200]) <= [320, 200]).all(axis=1))
        rows.append(torch.from_numpy(seen))
        which.append(torch.full((len(seen),), number))
        pixels.append(torch.from_numpy(uv[seen].astype(np.float32)))
    paired = torch.cat(rows)
    return Sample(
        name="test/0",
        xyz=xyz,
        intensity=torch.arange(count) / count,
        labels=(torch.arange(count) % 250).to(torch.uint8),
        instances=torch.arange(count, dtype=torch.int32),
        boxes=BoxTensors.from_boxes(annotated),
        cameras=cameras,
        pairs=Pairs(paired, torch.cat(which), torch.cat(pixels), paired[:, None].float()),
        points_to_world=torch.from_numpy(turn_z(0.3)),
    )


def turn_z(angle: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def as_boxes(boxes: BoxTensors, margin: float = 0.0) -> Boxes:
    """Of `Boxes`, which do not know augmentation, each side moved out by a margin."""
    return Boxes(
        boxes.centers.double().numpy(),
        boxes.sizes.double().numpy() + 2 * margin,
        boxes.rotations.double().numpy(),
        boxes.names,
    )


chances = st.sampled_from([0.0, 0.5, 1.0])
configs = st.builds(
    AugmentConfig,
    rotation=st.floats(0, 180), flip=chances, flip_x=chances, scale=st.floats(0, 0.5), height=st.floats(0, 3),
    tilt=st.floats(0, 20), shift=st.floats(0, 10), keep=st.floats(0.05, 1), beams=chances, intensity=st.just(0.0),
    no_intensity=st.just(0.0),
)  # fmt: skip
seeds = st.integers(0, 2**32)
examples = settings(max_examples=200, deadline=None)


@examples
@given(configs, seeds)
def test_every_pair_keeps_its_pixel_under_any_augmentation(config: AugmentConfig, seed: int) -> None:
    before = full_sample(seed)
    after = augment(before, config, rng(seed))
    assert after.pairs is not None and before.pairs is not None
    for number, camera in enumerate(after.cameras):
        mine = after.pairs.cameras == number
        pixels, depth = camera.project(after.xyz[after.pairs.rows[mine]].numpy())
        np.testing.assert_allclose(pixels, after.pairs.pixels[mine], atol=0.05)
        # how deep a point lies is the camera's affair too
        own = after.instances[after.pairs.rows[mine]].numpy()  # type: ignore[index]
        np.testing.assert_allclose(depth, before.cameras[number].project(before.xyz[own].numpy())[1], rtol=1e-4)


@examples
@given(configs, seeds)
def test_labels_intensity_instances_and_targets_follow_their_points(config: AugmentConfig, seed: int) -> None:
    before = full_sample(seed)
    generator = rng(seed)
    motion = draw_motion(config, rng(seed))
    after = augment(before, config, generator)
    assert after.instances is not None and after.labels is not None and after.intensity is not None
    own = after.instances.long()
    assert torch.equal(own, own.unique())  # in order, none twice
    torch.testing.assert_close(after.xyz, move_points(before.xyz[own], motion))
    assert torch.equal(after.labels.long(), own % 250)
    torch.testing.assert_close(after.intensity, own / len(before))
    assert after.pairs is not None and after.pairs.targets is not None and before.pairs is not None
    assert torch.equal(after.instances[after.pairs.rows], after.pairs.targets[:, 0].int())
    alive = torch.isin(before.pairs.rows, own)
    assert torch.equal(after.pairs.pixels, before.pairs.pixels[alive])


@examples
@given(configs, seeds)
def test_boxes_hold_the_same_points_before_and_after(config: AugmentConfig, seed: int) -> None:
    before = full_sample(seed)
    after = change(before, config, rng(seed))
    assert before.boxes is not None and after.boxes is not None
    surely_in = as_boxes(before.boxes, -1e-3).contains(before.xyz.numpy().astype(float))
    maybe_in = as_boxes(before.boxes, 1e-3).contains(before.xyz.numpy().astype(float))
    inside = as_boxes(after.boxes).contains(after.xyz.numpy().astype(float))
    assert surely_in.any(axis=1).all()  # each has a point near its middle
    assert (inside | ~surely_in).all() and (maybe_in | ~inside).all()
    assert after.boxes.names == before.boxes.names


@examples
@given(configs, seeds)
def test_boxes_stay_proper_and_their_headings_and_velocities_turn_with_the_points(
    config: AugmentConfig, seed: int
) -> None:
    before = full_sample(seed)
    after = change(before, config, rng(seed))
    assert before.boxes is not None and after.boxes is not None
    rotations = after.boxes.rotations.double()
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(len(rotations)).double(), atol=1e-5, rtol=0)
    eye = torch.eye(3).double().expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.mT, eye, atol=1e-5, rtol=0)
    motion = draw_motion(config, rng(seed))

    def moved(point: Tensor) -> Tensor:
        return move_points(point, motion)

    nose = before.boxes.centers + before.boxes.rotations[:, :, 0] * before.boxes.sizes[:, :1] / 2
    expected = after.boxes.centers + after.boxes.rotations[:, :, 0] * after.boxes.sizes[:, :1] / 2
    torch.testing.assert_close(moved(nose), expected, atol=1e-4, rtol=0)
    assert before.boxes.velocities is not None and after.boxes.velocities is not None
    later = moved(before.boxes.centers + before.boxes.velocities)  # where it is a second later
    torch.testing.assert_close(later, after.boxes.centers + after.boxes.velocities, atol=1e-4, rtol=0)


@examples
@given(configs, seeds)
def test_points_keep_their_place_in_the_world(config: AugmentConfig, seed: int) -> None:
    before = full_sample(seed)
    after = change(before, config, rng(seed))
    assert before.points_to_world is not None and after.points_to_world is not None
    torch.testing.assert_close(
        move_points(after.xyz, after.points_to_world),
        move_points(before.xyz, before.points_to_world),
        atol=1e-4,
        rtol=0,
    )


def test_a_mirrored_box_by_hand() -> None:
    """Heading 30 degrees left of forward, mirrored left for right: 30 degrees right of it, on the other side."""
    yaw = math.radians(30)
    rotation = np.array([[[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]]])
    boxes = Boxes(np.array([[10.0, 2, 0]]), np.array([[4.0, 2, 1.5]]), rotation, ("car",), np.array([[3.0, 1, 0]]))
    sample = Sample("test/0", points(), boxes=BoxTensors.from_boxes(boxes))
    after = change(sample, only(flip=1.0), rng()).boxes
    assert after is not None and after.velocities is not None
    assert after.centers.tolist() == [[10, -2, 0]] and after.velocities.tolist() == [[3, -1, 0]]
    assert math.degrees(as_boxes(after).yaws[0]) == pytest.approx(-30, abs=1e-4)


def test_pairs_keep_the_pixel_where_a_point_was_seen_before_it_was_jittered() -> None:
    before = full_sample(3)
    after = change(before, only(jitter=0.05), rng())
    assert after.pairs is before.pairs
    assert not torch.equal(after.xyz, before.xyz)
    assert after.cameras[0].points_to_camera == pytest.approx(before.cameras[0].points_to_camera)


def test_a_map_under_which_boxes_would_not_stay_boxes_is_refused() -> None:
    for linear in (
        torch.diag(torch.tensor([1.0, 1.0, 2.0])),
        torch.zeros(3, 3),
        torch.eye(3) + torch.eye(3).roll(1, 0),
    ):
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = linear
        with pytest.raises(InputError, match="scaled evenly"):
            full_sample(0).moved(matrix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "--augment.keep 0.0: expected in"),
        ({"flip_x": 1.5}, "--augment.flip-x 1.5"),
        ({"tilt": -1.0}, "--augment.tilt -1.0"),
        ({"jitter": math.nan}, "--augment.jitter nan"),
        ({"jitter_clip": 0.0}, "--augment.jitter-clip 0.0: expected positive"),
        ({"scale": 1.0}, "--augment.scale 1.0"),
    ],
)
def test_values_that_make_no_sense_are_named_as_the_trainer_s_option(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(Path("x"), augment=AugmentConfig(**options)).check()
