"""What scenes of the embedded world are built of: solids, textures, ways; against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from clever3d.datasets.synthetic import people, plants, trucks, vehicles
from clever3d.datasets.synthetic.ground import KERB, SURFACES, Course, Land, Paver
from clever3d.datasets.synthetic.materials import Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, box, ellipsoid, extrude, face_normals, merge, repeat, tube
from clever3d.datasets.synthetic.textures import SIDE, TILES, noise, sample
from clever3d.datasets.synthetic.traffic import Motion, Path, arc
from clever3d.datasets.synthetic.truth import CLASSES
from clever3d.errors import InputError


def volume(mesh: Mesh) -> float:
    """By the divergence theorem: positive if all faces look outwards."""
    a, b, c = mesh.corners.astype(np.float64).transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def test_solids_have_their_volumes_and_look_outwards():
    assert volume(box((2, 3, 4), (5, 6, 7), 0, 0)) == pytest.approx(24, rel=1e-5)
    # A frustum: V = h / 3 (A + B + sqrt(A B)) with A = 6 and B = 1.5.
    assert volume(box((2, 3, 4), (0, 0, 0), 0, 0, (0.5, 0.5))) == pytest.approx(4 / 3 * (6 + 1.5 + 3), rel=1e-5)
    round_ = ellipsoid((1, 2, 3), (4, -5, 6), 0, 0, sides=48, rings=33)
    assert volume(round_) == pytest.approx(4 / 3 * np.pi * 6, rel=0.02)
    polygon = 0.5 * 24 * np.sin(2 * np.pi / 24)  # area of the 24-gon in the unit circle
    assert volume(tube([(1, 2, 3), (4, 6, 3)], 1.0, 0, 0, sides=24)) == pytest.approx(5 * polygon, rel=1e-4)


def test_smooth_normals_of_an_ellipsoid_point_along_its_gradient():
    mesh = ellipsoid((1, 2, 3), (0, 0, 0), 0, 0, sides=64, rings=65)
    gradient = mesh.corners / np.array([1, 4, 9])
    gradient /= np.linalg.norm(gradient, axis=-1, keepdims=True)
    inner = np.abs(mesh.corners[..., 2]).max(axis=1) < 2.8
    assert (gradient * mesh.normals).sum(-1)[inner].min() > 0.99


def test_an_extruded_outline_with_a_notch_has_area_times_width():
    outline = [(0, 0), (4, 0), (4, 2), (3, 2), (3, 1), (1, 1), (1, 2), (0, 2)]  # a U of area 6
    assert volume(extrude(outline, [(-1, 1.0), (1, 1.0)], 0, 0, (2, 1))) == pytest.approx(12, rel=1e-5)
    with pytest.raises(InputError, match="clockwise"):
        extrude(outline[::-1], [(-1, 1.0), (1, 1.0)], 0, 0, (2, 1))


def test_repeat_puts_one_copy_at_each_offset():
    cube = box((1, 1, 1), (0, 0, 0), 3, 2)
    row = repeat(cube, [(0, 0, 0), (5, 0, 0), (0, 7, 0)])
    assert len(row) == 36 and set(row.material) == {3} and volume(row) == pytest.approx(3, rel=1e-5)
    assert len(repeat(cube, np.zeros((0, 3)))) == 0


def test_objects_stand_on_the_ground_at_life_size():
    rng, palette = np.random.default_rng(0), Palette(TILES)
    look = people.looks(rng, palette)
    sizes = {
        "car": (vehicles.car(rng, palette, 14), (3.7, 5.0), (1.35, 1.8)),
        "van": (trucks.van(rng, palette, 15), (4.9, 6.2), (2.0, 2.7)),
        "bus": (trucks.bus(rng, palette, 16), (10.4, 12.4), (2.9, 3.3)),
        "bicycle": (people.bicycle(rng, palette, 17), (1.5, 1.9), (0.9, 1.2)),
        "person": (people.person(look, 0.25, 19), (0.3, 1.4), (look.tall - 0.12, look.tall + 0.12)),
    }
    for name, (mesh, length, height) in sizes.items():
        low, high = mesh.bounds()
        assert abs(low[2]) < 0.06, name
        assert length[0] < high[0] - low[0] < length[1] and height[0] < high[2] < height[1], name
        assert (mesh.label == CLASSES.index({"van": "truck"}.get(name, name))).all()
        assert np.isfinite(mesh.normals).all()
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-3)


def test_trees_have_trunks_and_leaves_and_gaps():
    tree = plants.tree(np.random.default_rng(1), Palette(TILES), 8.0)
    assert set(np.unique(tree.label)) == {CLASSES.index("trunk"), CLASSES.index("vegetation")}
    low, high = tree.bounds()
    assert 6 < high[2] < 10.5 and low[2] < 0
    coarse = plants.tree(np.random.default_rng(1), Palette(TILES), 8.0, grain=2.0)
    leafy = CLASSES.index("vegetation")
    assert (coarse.label == leafy).sum() == pytest.approx((tree.label == leafy).sum() / 4, rel=0.05)


def test_tiles_repeat_without_a_seam_and_average_to_their_mean_from_afar():
    uv = np.random.default_rng(0).uniform(-3, 3, (500, 2)).astype(np.float32)
    near = np.full(500, 1 / SIDE, dtype=np.float32)
    brick = TILES.index("brick")
    np.testing.assert_allclose(sample(brick, uv, near), sample(brick, uv + 2, near), atol=2e-3)
    far = sample(brick, uv, np.full(500, 10, dtype=np.float32))
    assert far.std(axis=0).max() < 0.05 and 0.8 < far.mean() < 1.4
    fine = sample(brick, uv, near)
    assert fine.std(axis=0).min() > 0.15
    np.testing.assert_allclose(far.mean(axis=0), fine.mean(axis=0), atol=0.06)


def test_noise_is_periodic_and_in_its_band():
    field = noise(np.random.default_rng(0), 0.5, 8, 32)
    assert field.mean() == pytest.approx(0, abs=1e-9) and field.std() == pytest.approx(1)
    power = np.abs(np.fft.rfft2(field)) ** 2
    frequency = np.hypot(np.fft.fftfreq(SIDE, 1 / SIDE)[:, None], np.fft.rfftfreq(SIDE, 1 / SIDE)[None])
    assert power[(frequency >= 8) & (frequency <= 32)].sum() > 0.999 * power.sum()


def test_motion_is_the_integral_of_the_speed():
    """ds/dt = 3 + 2 t gives s = 3 t + t^2; ds/dt = s + 1 from 0 gives s = e^t - 1."""
    rising = Motion.of(lambda s, t: 3 + 2 * t, 5.0)
    decaying = Motion.of(lambda s, t: s + 1, 3.0)
    for time in (0.0, 1.0, 3.0):
        assert rising(time) == pytest.approx(3 * time + time**2, abs=2e-3)
        assert decaying(time) == pytest.approx(np.exp(time) - 1, rel=1e-3, abs=1e-9)
    assert Motion.steady(2.0)(-1.5) == -3.0


def test_a_path_goes_on_straight_and_turns_with_its_arc():
    bend = arc(np.array([10.0, 0.0]), 0.0, -np.pi / 2, 4.0)
    np.testing.assert_allclose(bend[0], (10, 0), atol=1e-9)
    np.testing.assert_allclose(bend[-1], (14, -4), atol=1e-9)
    path = Path.through(np.concatenate([[(0.0, 0.0)], bend]))
    np.testing.assert_allclose(path.position(-3.0), (-3, 0), atol=1e-9)
    end = path.distance[-1]
    assert end == pytest.approx(10 + 2 * np.pi, rel=1e-3)
    after = path.position(end + 5)
    assert after[0] == pytest.approx(14, abs=0.4) and after[1] == pytest.approx(-9, abs=0.05)
    assert path.heading(5.0) == pytest.approx(0, abs=1e-6)
    assert path.heading(10 + np.pi) == pytest.approx(-np.pi / 4, abs=0.02)


def test_a_bending_course_keeps_distances_and_headings():
    course = Course.bending(-100, 300, 0.2, 300, 0.4)
    np.testing.assert_allclose(course(0.0, 0.0), (0, 0), atol=1e-9)
    s = np.arange(0.0, 200.0, 1.0)
    np.testing.assert_allclose(np.linalg.norm(np.diff(course(s, 0.0), axis=0), axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(course(s, 4.0) - course(s, -2.0), axis=1), 6, rtol=1e-6)
    step = course(101.0, 0.0) - course(99.0, 0.0)
    assert np.arctan2(step[1], step[0]) == pytest.approx(float(course.heading(100.0)), abs=1e-3)


def test_kerbs_stand_between_road_and_pavement_and_close_the_gap():
    land, palette = Land(np.random.default_rng(0)), Palette(TILES)
    mesh = Paver(land, palette).lay(
        Course.straight((0, 0), 0.0), [0, 5, 10], [0, 3, 6], np.array([["road", "sidewalk"]] * 2)
    )
    upright = np.abs(face_normals(mesh.corners)[:, 2]) < 0.5
    assert upright.sum() == 4  # two quads along l = 3
    kerb = mesh.corners[upright].reshape(-1, 3)
    np.testing.assert_allclose(kerb[:, 1], 3, atol=1e-6)
    lift = kerb[:, 2] - land.height(kerb[:, :2])
    np.testing.assert_allclose(np.unique(np.round(lift, 4)), (0, KERB), atol=1e-4)
    assert set(mesh.label[upright]) == {CLASSES.index("sidewalk")}
    flat = mesh.corners[~upright].reshape(-1, 3)
    assert np.ptp(flat[:, 2] - land.height(flat[:, :2])) == pytest.approx(KERB, abs=1e-4)


def test_land_is_gentle_and_its_slope_is_the_gradient():
    land = Land(np.random.default_rng(3))
    xy = np.random.default_rng(0).uniform(-300, 300, (200, 2))
    for point in xy:
        numeric = [
            (land.height(point + d) - land.height(point - d)) / 0.02 for d in (np.array([0.01, 0]), np.array([0, 0.01]))
        ]
        np.testing.assert_allclose(land.slope(point), numeric, atol=1e-6)
        assert np.linalg.norm(land.slope(point)) < 0.025


def test_a_material_has_one_row_however_often_it_is_asked_for():
    palette = Palette(TILES)
    first, second = palette(Material((0.1, 0.2, 0.3), 0.4)), palette(Material((0.3, 0.2, 0.1), 0.4, "brick"))
    assert (first, second, palette(Material((0.1, 0.2, 0.3), 0.4))) == (0, 1, 0)
    table = palette.table()
    assert len(table.reflectance) == 2 and TILES[table.tile[1]] == "brick"
    assert all(surface.label in CLASSES and surface.material.tile in TILES for surface in SURFACES.values())
    assert len(merge([])) == 0
