"""The LiDAR models of the embedded world against their data sheets and against closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("embreex")

from clever3d.datasets.geometry import rigid, rotation_about_z
from clever3d.datasets.synthetic import plants
from clever3d.datasets.synthetic.lidar import scan
from clever3d.datasets.synthetic.materials import Material, Palette
from clever3d.datasets.synthetic.mesh import Mesh, box, merge, quads
from clever3d.datasets.synthetic.sensors import SENSORS, LidarModel, sensor_suite, with_image_scale
from clever3d.datasets.synthetic.textures import TILES
from clever3d.datasets.synthetic.tracer import Tracer, View
from clever3d.datasets.synthetic.truth import CLASSES, WorldScan
from clever3d.errors import InputError, UnknownNameError

ROAD, BUILDING = CLASSES.index("road"), CLASSES.index("building")
PALETTE = Palette(TILES)
GREY = PALETTE(Material((0.2, 0.2, 0.2), 0.4))
DARK = PALETTE(Material((0.02, 0.02, 0.02), 0.08))
MATERIALS = PALETTE.table()


def floor(size: float = 300.0, material: int = GREY) -> Mesh:
    a = size / 2
    return quads([[(-a, -a, 0), (a, -a, 0), (a, a, 0), (-a, a, 0)]], material, ROAD)


def scanned(
    model: LidarModel, mesh: Mesh, *, height: float = 1.8, distort: bool = False, speed: float = 0.0
) -> WorldScan:
    view = View(Tracer(mesh), Tracer(merge([])))
    return scan(
        model, rigid(np.eye(3), (0, 0, height)),
        lambda t: rigid(rotation_about_z(0.3 * t * bool(speed)), (speed * t, 0, 0)),
        lambda t, sector: view, MATERIALS, 1.0, np.random.default_rng(0), motion_distortion=distort,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("suite", "beams", "highest", "lowest", "columns", "rate"),
    [
        ("nuscenes", 32, 10.67, -30.67, 1085, 20),
        ("kitti", 64, 2.0, -24.33, 2083, 10),
        ("ouster", 128, 22.5, -22.5, 1024, 10),
    ],
)
def test_beams_and_steps_are_those_of_the_data_sheet(suite, beams, highest, lowest, columns, rate):
    model = SENSORS[suite].lidar
    assert len(model.elevations) == beams and model.rate == rate and model.columns == columns
    assert model.elevations[-1] == pytest.approx(highest) and model.elevations[0] == pytest.approx(lowest)
    assert list(model.elevations) == sorted(model.elevations)
    steps = np.diff(model.azimuths())
    np.testing.assert_allclose(steps, -2 * np.pi / columns)  # clockwise, all round
    assert model.times()[0] == pytest.approx(-model.times()[-1])
    assert np.ptp(model.times()) == pytest.approx(1 / rate, rel=2e-3)


def test_hdl32_steps_are_the_published_four_thirds_of_a_degree():
    np.testing.assert_allclose(np.diff(SENSORS["nuscenes"].lidar.elevations), 4 / 3, atol=2e-3)


def test_hdl64_has_two_blocks_of_32_with_a_third_and_half_a_degree():
    steps = np.diff(SENSORS["kitti"].lidar.elevations)
    np.testing.assert_allclose(steps[:31], 0.5, atol=1e-9)
    np.testing.assert_allclose(steps[32:], 1 / 3, atol=1e-9)


@pytest.mark.parametrize("suite", sorted(SENSORS))
def test_flat_ground_is_met_at_height_over_the_sine_of_the_elevation(suite):
    model = SENSORS[suite].lidar
    made = scanned(model, floor())
    ranges = np.linalg.norm(made.xyz, axis=1)
    for beam in (0, 3, 8):
        expected = 1.8 / np.sin(np.radians(-model.elevations[beam]))
        got = ranges[made.ring == beam]
        assert len(got) > 0.95 * model.columns
        assert np.median(got) == pytest.approx(expected, abs=0.003)
        assert np.std(got) < 2.5 * model.noise  # a weak echo is blurred by at most twice
    assert set(np.unique(made.label)) == {ROAD}


def test_rays_above_the_horizon_meet_nothing_over_open_ground():
    made = scanned(SENSORS["nuscenes"].lidar, floor())
    upward = np.flatnonzero(np.array(SENSORS["nuscenes"].lidar.elevations) > 0)
    assert not np.isin(made.ring, upward).any()


def test_a_box_is_met_at_its_face_and_hides_what_is_behind():
    face = box((2, 6, 6), (11, 0, 1.8), GREY, BUILDING)  # its near face is x = 10
    made = scanned(SENSORS["ouster"].lidar, merge([floor(), face]))
    on_box = made.xyz[made.label == BUILDING]
    ahead = on_box[(np.abs(on_box[:, 1]) < 2.5) & (np.abs(on_box[:, 2]) < 2)]
    assert len(ahead) > 500
    np.testing.assert_allclose(np.median(ahead[:, 0]), 10.0, atol=0.005)
    assert np.abs(ahead[:, 0] - 10).max() < 0.12
    behind = (made.xyz[:, 0] > 12.5) & (np.abs(made.xyz[:, 1] / made.xyz[:, 0]) < 0.2)
    assert not (behind & (made.label == ROAD) & (made.xyz[:, 0] < 20)).any()


def test_intensity_falls_with_the_angle_of_incidence():
    wall = quads([[(20, -60, -9), (20, 60, -9), (20, 60, 9), (20, -60, 9)]], GREY, BUILDING)
    made = scanned(SENSORS["kitti"].lidar, wall, height=0.0)
    azimuth = np.degrees(np.abs(np.arctan2(made.xyz[:, 1], made.xyz[:, 0])))
    means = [made.intensity[(azimuth >= low) & (azimuth < low + 10)].mean() for low in (0, 20, 40, 60)]
    assert all(a > b * 1.03 for a, b in itertools.pairwise(means)), means


def test_matt_surfaces_read_up_to_100_of_255_and_retro_reflectors_more():
    """As the manuals of HDL-32E and OS1 define calibrated reflectivity."""
    palette = Palette(TILES)
    rows = [palette(Material((0.5, 0.5, 0.5), reflectance)) for reflectance in (1.0, 1.6)]
    for row, low, high in zip(rows, (75, 200), (125, 255), strict=True):
        wall = quads([[(5, -1, -1), (5, 1, -1), (5, 1, 1), (5, -1, 1)]], row, BUILDING)
        view = View(Tracer(wall), Tracer(merge([])))
        made = scan(
            SENSORS["ouster"].lidar, np.eye(4), lambda t: np.eye(4), lambda t, sector, view=view: view, palette.table(),
            0.0, np.random.default_rng(1), motion_distortion=False,
        )  # fmt: skip
        assert low < np.median(made.intensity) * 255 <= high


def test_dark_surfaces_are_seen_less_far_and_darker():
    bright, dark = (scanned(SENSORS["kitti"].lidar, floor(material=m)) for m in (GREY, DARK))
    reach_bright, reach_dark = (np.linalg.norm(s.xyz, axis=1).max() for s in (bright, dark))
    assert reach_dark < 0.6 * reach_bright
    assert dark.intensity.mean() < 0.4 * bright.intensity.mean()


def test_pavement_is_seen_to_the_published_50_m_by_the_hdl64():
    """Data sheet: 50 m for pavement. Half of what could come back from there does."""
    asphalt = Palette(TILES)
    road = asphalt(Material((0.08, 0.08, 0.08), 0.19))
    view = View(Tracer(floor(400, road)), Tracer(merge([])))
    made = scan(
        SENSORS["kitti"].lidar, rigid(np.eye(3), (0, 0, 1.73)), lambda t: np.eye(4), lambda t, sector: view,
        asphalt.table(), 0.0, np.random.default_rng(1), motion_distortion=False,
    )  # fmt: skip
    share = []
    for beam, elevation in enumerate(SENSORS["kitti"].lidar.elevations):
        if elevation < 0:
            share.append((1.73 / np.sin(np.radians(-elevation)), (made.ring == beam).mean() * len(made.ring) / 2083))
    half = max(distance for distance, seen in share if seen > 0.5)
    assert 35 < half < 65


def test_foliage_lets_a_part_of_the_beams_through():
    """A wall 6 m behind a crown: of the beams towards the crown some end in it, and some on the wall."""
    palette = Palette(TILES)
    wall_material = palette(Material((0.4, 0.4, 0.4), 0.5))
    tree = plants.tree(np.random.default_rng(3), palette, 8.0).moved(np.eye(3), (10, 0, 0))
    wall = quads([[(16, -40, -3), (16, 40, -3), (16, 40, 20), (16, -40, 20)]], wall_material, BUILDING)
    view = View(Tracer(merge([tree, wall])), Tracer(merge([])))
    made = scan(
        SENSORS["ouster"].lidar, rigid(np.eye(3), (0, 0, 4)), lambda t: np.eye(4), lambda t, sector: view,
        palette.table(), 0.0, np.random.default_rng(1), motion_distortion=False,
    )  # fmt: skip
    leaves = made.label == CLASSES.index("vegetation")
    middle = np.median(made.xyz[leaves], axis=0)
    bearing = made.xyz / np.linalg.norm(made.xyz, axis=1, keepdims=True)
    towards = bearing @ (middle / np.linalg.norm(middle)) > np.cos(0.08)  # a cone well within the crown
    share = leaves[towards].mean()
    assert towards.sum() > 100 and 0.4 < share < 0.98 and (made.label[towards] == BUILDING).any()


def test_nothing_nearer_than_the_minimum_is_reported():
    made = scanned(SENSORS["ouster"].lidar, merge([floor(), box((0.2, 0.2, 0.2), (0.4, 0, 1.8), GREY, BUILDING)]))
    assert np.linalg.norm(made.xyz, axis=1).min() > 0.45


def test_motion_distortion_is_undone_by_each_points_own_time():
    """A wall beside a vehicle that drives and turns: flat with the pose at each point's time, and only then."""
    wall = quads([[(-80, 8, -5), (80, 8, -5), (80, 8, 5), (-80, 8, 5)]], GREY, BUILDING)
    model, speed = SENSORS["kitti"].lidar, 15.0
    made = scanned(model, wall, height=0.0, distort=True, speed=speed)
    assert made.time.min() < -0.02 and made.time.max() < 0.051
    t = 1.0 + made.time.astype(np.float64)
    cos, sin = np.cos(0.3 * t), np.sin(0.3 * t)
    y = sin * made.xyz[:, 0] + cos * made.xyz[:, 1]
    assert np.abs(y - 8).max() < 0.12
    still = made.xyz @ made.ego_to_world[:3, :3].T
    assert np.abs(still[:, 1] - 8).max() > 0.15


def test_without_distortion_all_points_are_of_one_moment():
    made = scanned(SENSORS["nuscenes"].lidar, floor(), speed=10.0)
    assert (made.time == 0).all() and made.timestamp == 1.0


def test_ring_is_the_beam_that_met_the_point():
    made = scanned(SENSORS["nuscenes"].lidar, floor())
    elevation = np.degrees(np.arcsin(made.xyz[:, 2] / np.linalg.norm(made.xyz, axis=1)))
    np.testing.assert_allclose(elevation, np.array(SENSORS["nuscenes"].lidar.elevations)[made.ring], atol=1e-3)


def test_nuscenes_cameras_have_the_published_fields_of_view():
    suite = SENSORS["nuscenes"]
    assert len(suite.cameras) == 6
    for camera in suite.cameras:
        view = 2 * np.degrees(np.arctan(camera.size[0] / 2 / camera.intrinsics[0, 0]))
        assert view == pytest.approx(110 if camera.name == "CAM_BACK" else 70)


def test_kitti_cameras_stand_0_54_m_apart():
    left, right = SENSORS["kitti"].cameras
    np.testing.assert_allclose(left.camera_to_ego[:3, 3] - right.camera_to_ego[:3, 3], (0, 0.54, 0), atol=1e-9)


def test_scaled_images_see_the_same():
    suite = with_image_scale(SENSORS["ouster"], 0.5)
    for camera, full in zip(suite.cameras, SENSORS["ouster"].cameras, strict=True):
        assert camera.size == (full.size[0] // 2, full.size[1] // 2)
        corner = np.array([-0.5, -0.5, 1])
        np.testing.assert_allclose(np.linalg.solve(camera.intrinsics, corner), np.linalg.solve(full.intrinsics, corner))


def test_camera_is_triggered_when_the_beams_pass_its_axis():
    suite = SENSORS["nuscenes"]
    for camera in suite.cameras:
        axis = camera.camera_to_ego[:3, 2]
        column = int(np.argmin(np.abs(suite.lidar.times() - camera.delay)))
        beam = suite.lidar.directions()[column, 23]
        assert axis[:2] @ beam[:2] / np.linalg.norm(beam[:2]) > np.cos(np.radians(1))


def test_unknown_sensor_and_bad_scale_are_named():
    with pytest.raises(UnknownNameError, match="nuscenes"):
        sensor_suite("nuscene")
    with pytest.raises(InputError, match="image_scale=0"):
        with_image_scale(SENSORS["kitti"], 0)
