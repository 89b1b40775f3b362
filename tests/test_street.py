"""The synthetic street: a deterministic scan whose rays obey geometry, held to closed forms and to marching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clever3d.datasets.synthetic import street_scan, street_scene
from clever3d.datasets.synthetic.raycast import (
    GROUND,
    LABELS,
    MAX_RANGE,
    SENSOR_HEIGHT,
    Material,
    Scene,
    Solid,
    SyntheticScan,
    beam_elevations,
    box,
    cast,
    cylinder,
    ellipsoid,
    turn_about_z,
)
from clever3d.errors import InputError

WALL = Material("building", 0.3)


def flat_ground(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(x), -SENSOR_HEIGHT), np.zeros(len(x), dtype=np.intp)


def exact(*solids: Solid, beams: int = 64, steps: int = 360) -> SyntheticScan:
    return cast(Scene(flat_ground, solids), np.random.default_rng(0), beams, steps, noise=False)


def random_directions(count: int, seed: int = 0) -> np.ndarray:
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    unit: np.ndarray = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return unit


@pytest.fixture(scope="module")
def scan() -> SyntheticScan:
    return street_scan(seed=0)


def beams_of(scan: SyntheticScan) -> tuple[np.ndarray, np.ndarray]:
    """Nearest beam of each point and the error of its elevation, radians."""
    elevation = np.arcsin(scan.xyz[:, 2].astype(np.float64) / np.linalg.norm(scan.xyz.astype(np.float64), axis=1))
    error = np.abs(elevation[:, None] - beam_elevations(64))
    return error.argmin(axis=1), error.min(axis=1)


def test_scan_has_the_promised_arrays(scan: SyntheticScan) -> None:
    count = len(scan.xyz)
    assert 105_000 < count < 130_000
    assert scan.xyz.dtype == np.float32 and scan.xyz.shape == (count, 3) and np.isfinite(scan.xyz).all()
    assert scan.intensity.dtype == np.float32 and scan.intensity.shape == (count,)
    assert scan.intensity.min() >= 0.0 and scan.intensity.max() <= 1.0
    assert scan.label.dtype == np.uint8 and scan.label.shape == (count,)
    assert scan.label_names == LABELS and scan.label.max() < len(LABELS)


def test_same_seed_same_scan_and_another_seed_another_street() -> None:
    first, again, other = (street_scan(seed, azimuth_steps=128) for seed in (3, 3, 4))
    for name in ("xyz", "intensity", "label"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.xyz.shape != other.xyz.shape or not np.allclose(first.xyz, other.xyz)


@pytest.mark.parametrize("seed", range(3))
def test_every_class_is_seen(seed: int) -> None:
    counts = np.bincount(street_scan(seed, azimuth_steps=1024).label, minlength=len(LABELS))
    assert (counts >= 20).all(), dict(zip(LABELS, counts.tolist(), strict=True))


def test_points_lie_on_the_sensor_s_beams_within_range(scan: SyntheticScan) -> None:
    _, error = beams_of(scan)
    assert error.max() < 1e-5
    assert np.linalg.norm(scan.xyz, axis=1).max() < MAX_RANGE + 0.2


def test_a_ray_returns_at_most_once(scan: SyntheticScan) -> None:
    beam, _ = beams_of(scan)
    shot = np.arctan2(scan.xyz[:, 1].astype(np.float64), scan.xyz[:, 0].astype(np.float64)) / (2 * np.pi) * 2048
    for row in range(64):
        shots = shot[beam == row]
        phase = np.angle(np.exp(2j * np.pi * shots).mean()) / (2 * np.pi)  # this beam's shift of azimuth, in steps
        column = np.rint(shots - phase)
        assert np.abs(shots - phase - column).max() < 0.01
        assert len(np.unique(column % 2048)) == len(column)


def test_ground_alone_is_met_at_height_over_sine_of_elevation() -> None:
    scan = exact()
    elevation = beam_elevations(64)
    expected = np.array([SENSOR_HEIGHT / np.sin(-e) for e in elevation if 0 < SENSOR_HEIGHT / np.sin(-e) < MAX_RANGE])
    measured = np.linalg.norm(scan.xyz.astype(np.float64), axis=1).reshape(len(expected), 360)
    np.testing.assert_allclose(measured, np.repeat(expected[:, None], 360, axis=1), rtol=2e-5)
    assert set(scan.label.tolist()) == {LABELS.index("road")}


def test_streets_ground_points_stand_at_the_ground_s_height() -> None:
    scene = street_scene(np.random.default_rng(1))
    bare = Scene(scene.ground, (), scene.ground_bounds, scene.heading)
    scan = cast(bare, np.random.default_rng(2), 64, 512, noise=False)
    x, y, z = (scan.xyz.astype(np.float64) @ turn_about_z(scene.heading).T).T
    height = scene.ground(x, y)[0]
    # Kerbs are vertical: on them a point may have any height between the two sides.
    around = np.stack([scene.ground(x + dx, y + dy)[0] for dx in (-0.02, 0, 0.02) for dy in (-0.02, 0, 0.02)])
    level = np.ptp(around, axis=0) < 0.02
    hard = np.isin(scan.label, [LABELS.index("road"), LABELS.index("sidewalk")])
    assert level.mean() > 0.9
    np.testing.assert_allclose(z[level & hard], height[level & hard], atol=2e-3)
    grass = level & ~hard
    # Blades of grass are a few centimetres high; before a kerb the soil below them is a kerb lower.
    above = z[grass] - height[grass]
    assert above.min() > -0.02 and np.quantile(above, 0.95) < 0.1 and above.max() < 0.3
    assert abs(scene.ground(np.zeros(1), np.zeros(1))[0][0] + SENSOR_HEIGHT) < 1e-9


def test_sphere_is_met_where_the_quadratic_formula_says() -> None:
    center, radius = np.array([4.0, -3.0, 1.0]), 1.7
    directions = random_directions(4000) + 0.6 * center / np.linalg.norm(center)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    enter, leave, cosine = ellipsoid(WALL, center, (radius, radius, radius)).interval(directions)
    along = directions @ center
    discriminant = along**2 - center @ center + radius**2
    met = discriminant > 0
    np.testing.assert_array_equal((enter < leave) & (leave > 0), met & (along > 0))
    np.testing.assert_allclose(enter[met], (along - np.sqrt(np.abs(discriminant)))[met], atol=1e-9)
    np.testing.assert_allclose(leave[met], (along + np.sqrt(np.abs(discriminant)))[met], atol=1e-9)
    normals = (enter[met, None] * directions[met] - center) / radius
    np.testing.assert_allclose(cosine[met], np.abs((normals * directions[met]).sum(axis=1)), atol=1e-9)


def test_upright_box_is_met_by_the_slab_rule() -> None:
    base, size = np.array([5.0, 1.0, -1.0]), np.array([2.0, 3.0, 1.5])
    low, high = base - size * [0.5, 0.5, 0.0], base + size * [0.5, 0.5, 1.0]
    directions = random_directions(4000) + np.array([0.7, 0.1, 0.0])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    slabs = np.sort(np.stack([low / directions, high / directions]), axis=0)  # [2, M, 3]
    expected_enter, expected_leave = slabs[0].max(axis=1), slabs[1].min(axis=1)
    enter, leave, _ = box(WALL, base, (2.0, 3.0, 1.5)).interval(directions)
    np.testing.assert_allclose(enter, expected_enter)
    np.testing.assert_allclose(leave, expected_leave)
    assert 200 < np.count_nonzero((enter < leave) & (enter > 0)) < 3800


def inside_leaning_box(points: np.ndarray) -> np.ndarray:
    """Of LEANING, from its description: yaw 0.6, front leaning in 0.5, back 0.2, sides 0.3 over its height of 1.4."""
    x, y, z = ((points - np.array([5.0, 1.0, -1.0])) @ turn_about_z(0.6)).T
    share = z / 1.4
    inside: np.ndarray = (
        (z >= 0) & (z <= 1.4) & (x <= 1.5 - 0.5 * share) & (x >= -1.5 + 0.2 * share) & (np.abs(y) <= 1.0 - 0.3 * share)
    )
    return inside


def inside_tilted_ellipsoid(points: np.ndarray) -> np.ndarray:
    local = (points - np.array([4.0, 0.0, -0.5])) @ turn_about_z(-0.8)
    inside: np.ndarray = ((local / np.array([1.8, 0.5, 0.9])) ** 2).sum(axis=1) <= 1
    return inside


def inside_cylinder(points: np.ndarray) -> np.ndarray:
    local = points - np.array([4.0, 0.5, -1.0])
    inside: np.ndarray = (np.hypot(local[:, 0], local[:, 1]) <= 0.8) & (local[:, 2] >= 0) & (local[:, 2] <= 1.6)
    return inside


@pytest.mark.parametrize(
    ("solid", "inside"),
    [
        (box(WALL, np.array([5.0, 1.0, -1.0]), (3.0, 2.0, 1.4), 0.6, (0.5, 0.2, 0.3)), inside_leaning_box),
        (
            ellipsoid(WALL, np.array([4.0, 0.0, -0.5]), (1.8, 0.5, 0.9), turn_about_z(-0.8)),
            inside_tilted_ellipsoid,
        ),
        (cylinder(WALL, np.array([4.0, 0.5, -1.0]), 0.8, 1.6), inside_cylinder),
    ],
    ids=["leaning box", "tilted ellipsoid", "cylinder"],
)
def test_solids_are_met_where_marching_along_the_ray_first_enters_them(
    solid: Solid, inside: Callable[[np.ndarray], np.ndarray]
) -> None:
    directions = random_directions(1500, seed=1) * [1.0, 0.5, 0.4] + np.array([1.0, 0.1, -0.1])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    enter, leave, _ = solid.interval(directions)
    met = (enter < leave) & (enter > 0)
    step = 0.004
    marched = np.full(len(directions), np.inf)
    for distance in np.arange(8.0, 0.0, -step):
        marched[inside(directions * distance)] = distance
    thick = leave - enter > 2 * step  # marching misses a corner that is thinner than its step
    np.testing.assert_array_equal(np.isfinite(marched[~met]), False)
    assert np.isfinite(marched[met & thick]).all() and np.count_nonzero(met & thick) > 100
    assert (marched[met & thick] - enter[met & thick] >= -1e-9).all()
    assert (marched[met & thick] - enter[met & thick] <= step + 1e-9).all()


def test_the_nearest_of_many_surfaces_is_returned() -> None:
    """Against every ray with every solid: what is spared by angular frames must not change a thing."""
    rng = np.random.default_rng(7)
    solids: list[Solid] = []
    for _ in range(60):
        angle, distance = rng.uniform(-np.pi, np.pi), rng.uniform(4, 60)
        place = np.array([distance * np.cos(angle), distance * np.sin(angle), rng.uniform(-2.5, 1.0)])
        sizes = tuple(rng.uniform(0.3, 3.0, 3))
        solids += [
            box(WALL, place, sizes, rng.uniform(0, 3)),
            ellipsoid(WALL, place + rng.normal(size=3), sizes, turn_about_z(rng.uniform(0, 3))),
            cylinder(WALL, place + rng.normal(size=3), sizes[0] / 2, sizes[2]),
        ]
    scan = exact(*solids, steps=512)
    depth = np.linalg.norm(scan.xyz.astype(np.float64), axis=1)
    directions = scan.xyz.astype(np.float64) / depth[:, None]
    with np.errstate(divide="ignore"):
        nearest = np.where(directions[:, 2] < 0, -SENSOR_HEIGHT / directions[:, 2], np.inf)
    for solid in solids:
        enter, leave, _ = solid.interval(directions)
        nearest = np.where((enter > 0) & (enter < leave), np.minimum(nearest, enter), nearest)
    # A float32 direction may graze past an edge that its float64 ray has met.
    agree = np.abs(nearest - depth) < 1e-3 * depth
    assert agree.mean() > 0.9995
    assert np.count_nonzero(scan.label == LABELS.index("building")) > 2000


def test_foliage_is_entered_and_opaque_surfaces_are_not() -> None:
    middle = np.array([8.0, 0.0, 0.0])
    ball = {depth: Material("vegetation", 0.3, depth=depth) for depth in (0.0, 0.3)}
    surface = {}
    for depth, material in ball.items():
        scan = exact(ellipsoid(material, middle, (1.0, 1.0, 1.0)), steps=2048)
        hits = scan.xyz[scan.label == LABELS.index("vegetation")].astype(np.float64)
        surface[depth] = np.linalg.norm(hits - middle, axis=1)
    np.testing.assert_allclose(surface[0.0], 1.0, atol=1e-4)
    assert (surface[0.3] < 1.0 + 1e-4).all() and np.mean(surface[0.3] < 0.9) > 0.3
    assert len(surface[0.3]) < len(surface[0.0])  # some rays pass through


def test_noise_moves_points_along_their_rays_by_centimetres() -> None:
    quiet = exact(steps=1024)
    noisy = cast(Scene(flat_ground), np.random.default_rng(0), 64, 1024, noise=True)
    near = np.linalg.norm(noisy.xyz[:, :2], axis=1) < 15
    slant = np.linalg.norm(noisy.xyz[near].astype(np.float64), axis=1)
    true = slant * SENSOR_HEIGHT / -noisy.xyz[near, 2]
    assert 0.015 < np.std(slant - true) < 0.025
    assert 0.5 * len(quiet.xyz) < len(noisy.xyz) < len(quiet.xyz)


def test_nonsense_is_refused_with_the_value() -> None:
    with pytest.raises(InputError, match="1 beams"):
        street_scan(beams=1)
    with pytest.raises(InputError, match="8 steps"):
        street_scan(azimuth_steps=8)
    with pytest.raises(InputError, match="-1"):
        street_scan(seed=-1)


def test_other_sensors_give_sparser_scans() -> None:
    sparse = street_scan(seed=0, beams=32, azimuth_steps=512)
    assert 9_000 < len(sparse.xyz) < 32 * 512


def test_near_road_is_at_the_sensor_s_height(scan: SyntheticScan) -> None:
    road = scan.xyz[(scan.label == LABELS.index("road")) & (np.abs(scan.xyz[:, :2]).max(axis=1) < 7)]
    assert abs(np.median(road[:, 2]) + SENSOR_HEIGHT) < 0.08
    assert GROUND[0].label == "road"


def test_statistics_are_like_a_real_sensor_s(scan: SyntheticScan, shared_data: Path) -> None:
    """Quartiles of range and intensity lie within the spread of real KITTI scans, give or take a quarter."""
    ranges, intensities, counts = [], [], []
    for path in sorted((shared_data / "kitti" / "training" / "velodyne").glob("*.bin")):
        points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
        ranges.append(np.quantile(np.linalg.norm(points[:, :3], axis=1), [0.25, 0.5, 0.75, 0.9]))
        intensities.append(np.quantile(points[:, 3], [0.25, 0.5, 0.75]))
        counts.append(len(points))
    for measured, real in (
        (np.quantile(np.linalg.norm(scan.xyz, axis=1), [0.25, 0.5, 0.75, 0.9]), np.array(ranges)),
        (np.quantile(scan.intensity, [0.25, 0.5, 0.75]), np.array(intensities)),
        (np.array(float(len(scan.xyz))), np.array(counts)),
    ):
        assert (measured > 0.75 * real.min(axis=0)).all(), (measured, real.min(axis=0))
        assert (measured < 1.25 * real.max(axis=0)).all(), (measured, real.max(axis=0))
