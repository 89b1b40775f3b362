"""Scenes of the embedded world: determinism, and everything that is said to be true of them."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("embreex")

from clever3d.datasets.geometry import apply, check_rotation, inverse
from clever3d.datasets.synthetic import world
from clever3d.datasets.synthetic.truth import CLASSES, THINGS, WorldFrame
from clever3d.errors import InputError, MissingExtraError, UnknownNameError

THING_IDS = {CLASSES.index(name) for name in THINGS}


@pytest.fixture(scope="module")
def frames() -> list[WorldFrame]:
    """Half a second of a crossing: key frame, nine sweeps, key frame."""
    return list(world.simulate("nuscenes", place="crossing", seed=1, frames=2))


@pytest.fixture(scope="module", params=["crossing", "street", "motorway", "car_park"])
def place(request: pytest.FixtureRequest) -> str:
    """Each place, of seed 1; the tests of one place run together, on one scene."""
    return str(request.param)


@pytest.fixture(scope="module")
def first(place: str) -> WorldFrame:
    return next(iter(world.simulate("kitti", place=place, seed=1, frames=1)))


def digest(frame: WorldFrame) -> str:
    parts = [
        frame.scan.xyz,
        frame.scan.intensity,
        frame.scan.ring,
        frame.scan.label,
        frame.scan.instance,
        frame.scan.ego_to_world,
    ]
    parts += [np.concatenate([thing.center, thing.size, thing.velocity, [thing.num_points]]) for thing in frame.objects]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def test_key_frames_are_the_tenth_sweeps_and_alone_have_cameras_and_objects(frames):
    assert [frame.index for frame in frames] == list(range(11))
    assert [frame.is_key for frame in frames] == [index % 10 == 0 for index in range(11)]
    for frame in frames:
        assert bool(frame.cameras) == bool(frame.objects) == frame.is_key
    np.testing.assert_allclose(np.diff([frame.scan.timestamp for frame in frames]), 0.05)
    assert {frame.scene for frame in frames} == {"crossing-0001"}


def test_frames_do_not_depend_on_how_many_are_asked_for(frames):
    alone = next(iter(world.simulate("nuscenes", place="crossing", seed=1, frames=1)))
    assert digest(alone) == digest(frames[0])
    without = list(world.simulate("nuscenes", place="crossing", seed=1, frames=2, sweeps=False, images=False))
    assert [frame.index for frame in without] == [0, 10] and not without[0].cameras
    assert digest(without[1]) == digest(frames[10])


def test_velocities_are_the_differences_of_positions(frames):
    before, after = ({thing.instance: thing for thing in frame.objects} for frame in (frames[0], frames[10]))
    moved = 0
    for instance in before.keys() & after.keys():
        mean = (after[instance].center - before[instance].center) / 0.5
        expected = (before[instance].velocity + after[instance].velocity) / 2
        # Half a second of acceleration, and of turning, lies between.
        np.testing.assert_allclose(mean, expected, atol=0.4)
        moved += np.linalg.norm(mean) > 1
    assert moved >= 8


def test_poses_go_on_smoothly_and_forward(frames):
    poses = np.stack([frame.scan.ego_to_world for frame in frames])
    steps = np.diff(poses[:, :3, 3], axis=0)
    assert np.linalg.norm(steps, axis=1).min() > 0.1 and np.linalg.norm(steps, axis=1).max() < 0.8
    assert np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 0.05  # m: under 20 m/s^2
    for pose, step in zip(poses[:-1], steps, strict=True):
        check_rotation(pose[:3, :3], "pose")
        assert pose[:3, 0] @ step / np.linalg.norm(step) > 0.99


def test_moving_things_left_out_of_a_sector_are_not_seen_in_it():
    """A scan with motion distortion places only the things in each slice's sector: none may be missing."""
    from clever3d.datasets.synthetic.lidar import scan
    from clever3d.datasets.synthetic.places import build_scene
    from clever3d.datasets.synthetic.sensors import SENSORS

    scene, suite = build_scene("crossing", 1, world.LONGEST), SENSORS["nuscenes"]

    def made(view):
        rng = np.random.default_rng(0)
        return scan(
            suite.lidar, suite.lidar_to_ego, scene.pose, view, scene.materials, 3.0, rng, motion_distortion=True
        )

    sliced, whole = made(scene.view), made(lambda time, sector: scene.view(time))
    assert np.array_equal(sliced.xyz, whole.xyz) and np.array_equal(sliced.instance, whole.instance)
    assert np.isin(sliced.instance, [thing.instance for thing in scene.things if not thing.still]).sum() > 20


def test_another_process_makes_the_same_bytes():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_world import digest, world\n"
        "frame = next(iter(world.simulate('nuscenes', place='motorway', seed=4, frames=1, image_scale=0.125)))\n"
        "import hashlib\n"
        "print(digest(frame), hashlib.sha256(frame.cameras[0].render().image.tobytes()).hexdigest())\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and len(runs[0].split()) == 2


def test_seeds_differ():
    one, other = (next(iter(world.simulate("nuscenes", place="motorway", seed=seed, frames=1))) for seed in (2, 3))
    assert digest(one) != digest(other)


def test_there_are_four_places(place):
    assert place in world.PLACES and len(world.PLACES) == 4


def test_points_of_an_instance_lie_in_its_box(first):
    scan, found = first.scan, 0
    to_world = scan.ego_to_world @ scan.lidar_to_ego
    for thing in first.objects:
        mine = scan.instance == thing.instance
        assert int(mine.sum()) == thing.num_points
        assert (scan.label[mine] == thing.label).all()
        local = (apply(to_world, scan.xyz[mine]) - thing.center) @ thing.rotation
        # 5 cm, and what the range noise of a weak echo (3 sigma of at most twice 12 mm) adds to it.
        assert (np.abs(local) <= thing.size / 2 + 0.05 + 0.03).all(), (
            CLASSES[thing.label],
            np.abs(local).max(0),
            thing.size,
        )
        found += thing.num_points > 0
    assert found >= 8


def test_boxes_are_tight(first):
    """Of cars seen by many points from near, the points reach close to an end of their length and of their width."""
    scan = first.scan
    to_world = scan.ego_to_world @ scan.lidar_to_ego
    checked = 0
    for thing in first.objects:
        if thing.num_points < 800 or CLASSES[thing.label] != "car":
            continue
        local = (apply(to_world, scan.xyz[scan.instance == thing.instance]) - thing.center) @ thing.rotation
        assert np.abs(local[:, 1]).max() > thing.size[1] / 2 - 0.25
        assert np.abs(local[:, 0]).max() > thing.size[0] / 2 - 0.3
        checked += 1
    assert checked or "motorway" in first.scene


def test_objects_are_things_with_sizes_of_their_class(first):
    likely = {
        "car": ((3.5, 5.2), (1.6, 2.3), (1.3, 1.9)),
        "person": ((0.2, 1.5), (0.3, 1.2), (1.4, 2.1)),
        "bus": ((10, 13), (2.4, 3), (2.8, 3.5)),
    }
    numbers = [thing.instance for thing in first.objects]
    assert len(set(numbers)) == len(numbers) and min(numbers) >= 1
    for thing in first.objects:
        assert thing.label in THING_IDS
        check_rotation(thing.rotation, "object")
        for value, (low, high) in zip(thing.size, likely.get(CLASSES[thing.label], ()), strict=False):
            assert low <= value <= high, (CLASSES[thing.label], thing.size)


def test_every_point_is_of_a_class_and_only_things_have_instances(first):
    scan = first.scan
    assert scan.label.min() >= 1 and scan.label.max() < len(CLASSES)
    assert set(np.unique(scan.label[scan.instance > 0])) <= THING_IDS
    assert not np.isin(scan.label[scan.instance == 0], list(THING_IDS)).any()
    shares = np.bincount(scan.label, minlength=len(CLASSES)) / len(scan.label)
    ground = sum(shares[CLASSES.index(name)] for name in ("road", "lane_marking", "parking", "sidewalk", "terrain"))
    assert 0.3 < ground < 0.9
    assert (shares > 0).sum() >= 10


def test_the_road_below_the_vehicle_is_at_height_0_of_the_ego_axes(first):
    scan = first.scan
    points = apply(scan.lidar_to_ego, scan.xyz)
    near = (np.hypot(points[:, 0], points[:, 1]) < 6) & np.isin(
        scan.label, [CLASSES.index("road"), CLASSES.index("parking")]
    )
    assert near.sum() > 100
    assert np.abs(points[near, 2]).max() < 0.12


def test_nothing_drives_through_the_vehicle(place):
    """For the whole scene no box comes within the vehicle's own (4.6 x 1.9 m about the middle of its wheelbase)."""
    from clever3d.datasets.synthetic.places import build_scene

    scene = build_scene(place, 1, world.LONGEST)
    for time in np.arange(0, world.LONGEST, 0.5):
        to_ego = inverse(scene.pose(float(time)))
        for thing in scene.things:
            if np.linalg.norm(thing.pose(float(time))[:2, 3] - scene.pose(float(time))[:2, 3]) > 15:
                continue
            pose = to_ego @ thing.pose(float(time))
            low, high = thing.low, thing.high
            edge = np.array(
                [(x, y, 0.5) for x in np.linspace(low[0], high[0], 9) for y in np.linspace(low[1], high[1], 3)]
            )
            inside = apply(pose, edge) - [1.3, 0, 0]
            hit = (np.abs(inside[:, 0]) < 2.3) & (np.abs(inside[:, 1]) < 0.95)
            assert not hit.any(), (place, time, CLASSES[thing.label], thing.instance)


def test_unknown_arguments_are_named():
    with pytest.raises(InputError, match=r"no place 'road'.*motorway"):
        world.simulate("kitti", place="road", seed=0, frames=1)
    with pytest.raises(UnknownNameError, match="nuscenes, kitti, ouster"):
        world.simulate("velodyne", place="street", seed=0, frames=1)
    with pytest.raises(InputError, match=r"frames=41.*1 to 40"):
        world.simulate("nuscenes", place="street", seed=0, frames=41)
    with pytest.raises(InputError, match="seed=-1"):
        world.simulate("nuscenes", place="street", seed=-1, frames=1)


def test_without_embree_the_extra_is_named(monkeypatch):
    from clever3d.datasets.synthetic.mesh import merge
    from clever3d.datasets.synthetic.tracer import Tracer

    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(MissingExtraError, match=r"clever3d\[synthetic\]"):
        Tracer(merge([]))
