"""Augmentation: every change does what its name says, exactly, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clever3d.distill.augment import AugmentConfig, change_intensity, keep_mask, transform

NOTHING = {
    "rotation": 0.0, "flip": 0.0, "scale": 0.0, "height": 0.0, "keep": 1.0, "beams": 0.0, "intensity": 0.0,
    "no_intensity": 0.0,
}  # fmt: skip


def only(**changes: float) -> AugmentConfig:
    return AugmentConfig(**{**NOTHING, **changes})


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
