"""Waymo v2: a segment with round numbers against closed forms, and against a number of the published camera model."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import waymo_writer as writer
from waymo_writer import EXTRINSIC, NAMES, SEGMENT, TIMES, H, W, write_segment

from clever3d.datasets import Waymo, open_dataset
from clever3d.datasets.geometry import apply, inverse
from clever3d.datasets.labels import IGNORE
from clever3d.datasets.waymo_labels import WAYMO
from clever3d.datasets.waymo_range_image import Laser, to_vehicle
from clever3d.errors import DataError, InputError, MissingExtraError

#: In the points' axes: 10 m straight ahead of the TOP LiDAR; 20 m at -0.1 rad, met half a metre before.
AHEAD = np.array([[10, 0, 0], [20 * np.cos(0.1) - 0.5, 0, -20 * np.sin(0.1)]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLEVER3D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture()
def split(tmp_path: Path) -> Path:
    return write_segment(tmp_path / "waymo" / "validation")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- range images


def test_points_are_ahead_of_the_top_lidar_however_it_is_turned(split: Path) -> None:
    cloud = Waymo(split)[0].points()
    np.testing.assert_allclose(cloud.xyz, AHEAD, atol=1e-4)
    assert cloud.intensity is not None
    np.testing.assert_allclose(cloud.intensity, np.tanh([0.5, 100]), rtol=1e-6)
    assert cloud.xyz.dtype == cloud.intensity.dtype == np.float32


def test_each_frame_has_its_own_row_whatever_the_order_of_the_rows(split: Path) -> None:
    """The writer puts the later frames first, and another laser before TOP."""
    intensities = [frame.points().intensity for frame in Waymo(split)]
    assert all(intensity is not None and len(intensity) == 2 for intensity in intensities)
    np.testing.assert_allclose(
        [intensity[0] for intensity in intensities if intensity is not None], np.tanh([0.5, 0.6, 0.7])
    )


def test_without_pixel_poses_the_vehicle_counts_as_standing_and_the_source_says_so(split: Path) -> None:
    assert "moved with lidar_pose" in Waymo(split)[0].points().source
    shutil.rmtree(split / "lidar_pose")
    cloud = Waymo(split)[0].points()
    np.testing.assert_allclose(cloud.xyz, AHEAD + np.array([[0, 0, 0], [0.5, 0, 0]]), atol=1e-4)
    assert "smeared" in cloud.source


def random_laser(inclinations: bool) -> Laser:
    generator = np.random.default_rng(0)
    matrix, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    extrinsic = np.eye(4)
    extrinsic[:3, :3] = matrix * np.sign(np.linalg.det(matrix))
    extrinsic[:3, 3] = 1.4, 0.1, 2.2
    beams = np.sort(generator.uniform(-0.3, 0.1, 16)) if inclinations else None
    return Laser(extrinsic, -0.3, 0.1, beams)


@pytest.mark.parametrize("inclinations", [True, False])
def test_every_pixel_has_its_range_and_the_inclination_of_its_row(inclinations: bool) -> None:
    laser = random_laser(inclinations)
    ranges = np.random.default_rng(1).uniform(1, 70, (16, 40))
    points = apply(inverse(laser.extrinsic), to_vehicle(ranges, laser, None, np.eye(4)))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), ranges.ravel(), rtol=1e-12)
    angles = np.arcsin(points[:, 2] / ranges.ravel()).reshape(16, 40)
    # Uniform beams: 16 equal parts of [-0.3, 0.1], the beam in the middle of its own, the highest in row 0.
    beams = laser.inclinations if laser.inclinations is not None else np.arange(-0.3 + 0.0125, 0.1, 0.025)
    np.testing.assert_allclose(angles, np.repeat(beams[::-1, None], 40, axis=1), atol=1e-12)


def test_columns_go_clockwise_from_behind_in_the_vehicles_directions() -> None:
    """An upright LiDAR: column 0 of 8 is 22.5 degrees past the back on the left, column 3 as much left of ahead."""
    extrinsic = EXTRINSIC.copy()
    extrinsic[:3, 3] = 0
    points = to_vehicle(np.ones((1, 8)), Laser(extrinsic, 0.0, 0.0, None), None, np.eye(4))
    degrees = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    np.testing.assert_allclose(degrees, [157.5, 112.5, 67.5, 22.5, -22.5, -67.5, -112.5, -157.5], atol=1e-9)


def test_pixel_poses_are_roll_pitch_yaw_about_the_world_axes_in_that_order() -> None:
    """Quarter turns worked out by hand; the LiDAR at the vehicle's origin meets points ahead and to the left."""
    laser = Laser(np.eye(4), 0.0, 0.0, None)
    ahead, left = np.zeros((1, 9)), np.zeros((1, 10))
    ahead[0, 4] = left[0, 2] = 10  # the middle of 9 columns; the third of 10 is a quarter to the left
    quarter = np.pi / 2
    for (roll, pitch, yaw), first, second in (
        ((0, 0, quarter), (0, 10, 0), (-10, 0, 0)),  # turned left: ahead is the world's y
        ((0, quarter, 0), (0, 0, -10), (0, 10, 0)),  # nose down
        ((quarter, 0, 0), (10, 0, 0), (0, 0, 10)),  # rolled, the left side up
        ((quarter, 0, quarter), (0, 10, 0), (0, 0, 10)),  # rolled first, then turned
        ((0, quarter, quarter), (0, 0, -10), (-10, 0, 0)),  # nose down first, then turned
        ((quarter, quarter, 0), (0, 0, -10), (10, 0, 0)),  # rolled first, then nose down: what was up is ahead
    ):
        for ranges, expected in ((ahead, first), (left, second)):
            poses = np.tile(np.array([roll, pitch, yaw, 1, 2, 3.0]), (1, ranges.shape[1], 1))
            world = to_vehicle(ranges, laser, poses, np.eye(4))
            np.testing.assert_allclose(world[0], np.add(expected, (1, 2, 3)), atol=1e-9)


# ---------------------------------------------------------------- cameras


def test_the_published_camera_models_point_is_at_its_pixel(split: Path) -> None:
    """waymo-open-dataset's camera_model_test.cc: the vehicle's (21.44064, 8.32240, -1.62938) is at (100, 1000), depth
    20. There, pixels count from the left edge of the first one: (99.5, 999.5) from its middle."""
    frame = Waymo(split)[0]
    front = frame.cameras[0]
    # The image was taken 0.25 m later; the point is given for the image's time.
    vehicle = np.array([[21.44064 + 0.25, 8.32240, -1.62938]])
    pixels, depth = front.project(vehicle - EXTRINSIC[:3, 3])
    np.testing.assert_allclose(pixels[0], (99.5, 999.5), atol=0.01)
    np.testing.assert_allclose(depth[0], 20, atol=1e-4)
    assert (front.name, front.image_size, front.timestamp) == ("FRONT", (1920, 1280), pytest.approx(1.025))
    assert front.distortion is not None
    assert front.distortion.model == "pinhole"


def test_images_are_copied_to_the_cache_when_their_frame_is_first_asked_for(split: Path, cache: Path) -> None:
    dataset = Waymo(split)
    assert not cache.exists()
    frame = dataset[1]
    assert [camera.name for camera in frame.cameras] == list(NAMES)
    for camera in frame.cameras:
        assert camera.image_path.read_bytes() == writer.jpeg(TIMES[1], camera.name)
        assert cache / "waymo" in camera.image_path.parents
    assert files(cache) == {f"{TIMES[1]}_{name}.jpg" for name in NAMES}  # a row group is a frame here
    state = frame.cameras[0].image_path.stat().st_mtime_ns
    assert dataset[1].cameras[0].image_path.stat().st_mtime_ns == state


def test_all_images_of_a_row_group_are_copied_at_once(split: Path, cache: Path) -> None:
    writer.write_images(split, group=15)
    assert len(Waymo(split, cameras=("SIDE_LEFT", "FRONT"))[0].cameras) == 2
    assert files(cache) == {f"{time}_{name}.jpg" for time in TIMES for name in ("SIDE_LEFT", "FRONT")}


def test_images_that_are_there_are_not_written_again(split: Path) -> None:
    paths = [camera.image_path for camera in Waymo(split)[0].cameras]
    paths[0].write_bytes(b"kept")
    paths[1].unlink()
    again = [camera.image_path.read_bytes() for camera in Waymo(split)[0].cameras]
    assert again == [b"kept", *(writer.jpeg(TIMES[0], name) for name in NAMES[1:])]


def test_images_go_to_the_folder_that_is_given_and_a_new_file_is_not_mistaken_for_the_old(
    split: Path, cache: Path, tmp_path: Path
) -> None:
    (camera,) = Waymo(split, images=tmp_path / "mine", cameras=("FRONT",))[0].cameras
    assert tmp_path / "mine" in camera.image_path.parents
    assert not cache.exists()
    images = {(time, name): b"another image" for time in TIMES for name in NAMES}
    writer.write_images(split, images=images)
    (again,) = Waymo(split, images=tmp_path / "mine", cameras=("FRONT",))[0].cameras
    assert again.image_path.read_bytes() == b"another image"
    assert camera.image_path.read_bytes() == writer.jpeg(TIMES[0], "FRONT")


def test_files_with_camera_names_instead_of_numbers_are_read(split: Path) -> None:
    writer.write_images(split, names=True)
    assert [camera.name for camera in Waymo(split)[0].cameras] == list(NAMES)


def test_a_copy_without_images_has_frames_without_cameras(split: Path, cache: Path) -> None:
    shutil.rmtree(split / "camera_image")
    assert Waymo(split)[0].cameras == ()
    assert not cache.exists()


# ---------------------------------------------------------------- labels, boxes, frames


def test_labels_are_those_of_the_points_and_only_of_labelled_frames(split: Path) -> None:
    dataset = Waymo(split)
    assert dataset[0].labels() is None
    labels = dataset[1].labels()
    assert labels is not None
    np.testing.assert_array_equal(labels.semantic, [1, 18])
    assert labels.instance is not None
    np.testing.assert_array_equal(labels.instance, [7, 0])
    assert [WAYMO.classes[i] for i in labels.train_ids] == ["car", "road"]
    assert len(WAYMO.classes) == 22
    np.testing.assert_array_equal(WAYMO.train_ids(np.array([0, 22])), [IGNORE, 21])


def test_boxes_are_in_the_points_axes_with_the_speed_turned_from_the_world(split: Path) -> None:
    frame = Waymo(split)[1]
    boxes = frame.boxes()
    assert boxes is not None
    assert boxes.names == ("vehicle", "vehicle")
    assert boxes.track_ids == ("a", "b")
    np.testing.assert_allclose(boxes.centers, [[10, 0, 0]] * 2)
    np.testing.assert_allclose(boxes.yaws, np.pi / 2)
    np.testing.assert_array_equal(boxes.sizes, [[4, 2, 1.5]] * 2)
    assert boxes.velocities is not None
    np.testing.assert_allclose(boxes.velocities[0], (3, 0, 0), atol=1e-12)
    assert np.isnan(boxes.velocities[1]).all()
    assert boxes.num_points is not None
    np.testing.assert_array_equal(boxes.num_points, [1, 1])
    np.testing.assert_array_equal(boxes.contains(frame.points().xyz).sum(axis=1), [1, 1])


def test_poses_and_earlier_sweeps_share_the_world(split: Path) -> None:
    frame = open_dataset(f"waymo:{split}#sweeps=9")[2]
    assert [sweep.seconds for sweep in frame.sweeps] == pytest.approx([-0.1, -0.2])
    assert frame.points_to_world is not None
    np.testing.assert_allclose(apply(frame.points_to_world, AHEAD[:1])[0], (100, 202 + 11.5, 2), atol=1e-9)
    cloud = frame.accumulated()
    assert cloud.time is not None
    np.testing.assert_allclose(cloud.time, [0, 0, -0.1, -0.1, -0.2, -0.2], atol=1e-6)
    np.testing.assert_allclose(cloud.xyz[2:4], AHEAD - [1, 0, 0], atol=1e-4)  # the vehicle has come 1 m nearer
    np.testing.assert_allclose(cloud.xyz[4:], AHEAD - [2, 0, 0], atol=1e-4)


def test_root_may_be_the_splits_or_the_components(split: Path) -> None:
    write_segment(split.parent / "training")
    assert Waymo.looks_like(split)
    assert Waymo.looks_like(split.parent)
    assert not Waymo.looks_like(split / "lidar")
    assert len(open_dataset(f"waymo:{split.parent}#split=training&cameras=FRONT")) == 3
    assert Waymo(split).ids() == [f"{SEGMENT}_{time}" for time in TIMES]
    assert [frame.scene for frame in Waymo(split, cameras=())] == [SEGMENT] * 3
    with pytest.raises(DataError, match=r"no split 'test' \(it has: training, validation\)"):
        Waymo(split.parent, split="test")
    with pytest.raises(DataError, match=f"two frames have the id '{SEGMENT}"):
        Waymo(split.parent)


def test_frames_are_picklable_and_opening_decodes_no_range_image_and_no_jpeg(split: Path, cache: Path) -> None:
    frame = Waymo(split)[1]
    copy = pickle.loads(pickle.dumps(frame))
    np.testing.assert_array_equal(copy.points().xyz, frame.points().xyz)
    assert copy.boxes().names == frame.boxes().names
    assert len(copy.labels()) == 2
    shutil.rmtree(cache)
    for component in ("lidar", "camera_image", "lidar_pose", "lidar_calibration"):
        (split / component / f"{SEGMENT}.parquet").write_bytes(b"")
    assert len(Waymo(split).ids()) == 3
    assert not cache.exists()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "component",
    [
        "vehicle_pose",
        "lidar",
        "lidar_pose",
        "lidar_calibration",
        "lidar_box",
        "lidar_segmentation",
        "camera_image",
        "camera_calibration",
    ],
)
def test_truncated_missing_and_narrow_tables_are_named(split: Path, component: str) -> None:
    path = split / component / f"{SEGMENT}.parquet"
    whole = path.read_bytes()

    def read() -> None:
        frame = Waymo(split)[1]
        frame.points()
        frame.labels()
        frame.boxes()

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{path} is no readable Parquet file"):
        read()
    writer.write(split, component, [{"key.segment_context_name": SEGMENT}], {})
    with pytest.raises(DataError, match=rf"{path} has no column .*\(it has: key.segment_context_name\)"):
        read()
    path.unlink()
    if component in ("lidar_box", "lidar_segmentation"):  # which not every segment has
        read()
    elif component == "vehicle_pose":
        with pytest.raises(DataError, match=r"holds no vehicle_pose/\*\.parquet"):
            read()
    else:
        with pytest.raises(DataError, match=rf"{path} (does not exist|is missing|cannot be read)"):
            read()


SHEARED = EXTRINSIC + np.array([[0, 0, 0.2, 0], *[[0.0] * 4] * 3])
MIRRORED = writer.FRONT * np.array([1, -1, 1, 1.0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (partial(writer.write_laser, extrinsic=SHEARED), r"extrinsic of laser TOP: .* is not orthogonal"),
        (partial(writer.write_cameras, extrinsic=MIRRORED), r"extrinsic of FRONT: .* is a mirror image"),
        (partial(writer.write_cameras, f_u=-1.0), r"intrinsic of FRONT is \[-1\.0"),
        (partial(writer.write_laser, values=[0.0, 0.1]), r"3 rows of range image for 2 beams"),
        (partial(writer.write_lidar, image=np.ones((2, 2, 3), np.float32)), r"12 values for the shape \[2, 2, 3\]"),
        (partial(writer.write_pixel_poses, shape=(H, W - 1)), r"poses \(3, 8, 6\) for a range image \(3, 9, 4\)"),
        (partial(writer.write_labels, shape=(H - 1, W)), r"labels for 2 x 9 pixels, .* has 3 x 9"),
        (partial(writer.write_boxes, kind=9), r"type has \[9\], known are \[0, 1, 2, 3, 4\]"),
        (partial(writer.write_poses, times=(*TIMES, TIMES[0])), r"vehicle_pose: two frames have the id"),
        (partial(writer.write_poses, times=(5, TIMES[1])), None),
    ],
)
def test_values_that_cannot_be_are_named(split: Path, damage: Callable[[Path], Path], message: str | None) -> None:
    damage(split)
    if message is None:
        message = r"lidar/.* has no range image of laser TOP at key\.frame_timestamp_micros 5"
    with pytest.raises(DataError, match=message):
        for frame in Waymo(split):
            frame.points()
            frame.labels()
            frame.boxes()


def test_a_missing_an_empty_and_a_double_image_are_named(split: Path) -> None:
    every: dict[tuple[int, str], bytes | None] = {(time, name): b"jpeg" for time in TIMES for name in NAMES}
    path = writer.write_images(
        split, images={key: data for key, data in every.items() if key != (TIMES[1], "FRONT_LEFT")}
    )
    dataset = Waymo(split)
    assert len(dataset[0].cameras) == 5
    with pytest.raises(DataError, match=rf"{path} has no image of FRONT_LEFT at key\.frame_timestamp_micros 1100000"):
        dataset[1]
    writer.write_images(split, images={**every, (TIMES[0], "FRONT"): None})
    with pytest.raises(DataError, match=rf"{path}: \[CameraImageComponent\]\.image of row 0 is empty"):
        Waymo(split)[0]
    with pytest.raises(DataError, match="no camera 'REAR'; it has FRONT, FRONT_LEFT"):
        open_dataset(f"waymo:{split}#cameras=REAR")
    with pytest.raises(InputError, match="sweeps=-1"):
        Waymo(split, sweeps=-1)


def test_a_cache_that_cannot_be_written_is_named(split: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be made .* pass images=FOLDER or set CLEVER3D_CACHE"):
        Waymo(split, images=tmp_path / "file" / "below")[0]


def test_without_pyarrow_the_extra_is_named(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r'pip install "clever3d\[io\]"'):
        Waymo(split)
