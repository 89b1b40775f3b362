"""KITTI raw: numbers worked out by hand, and real frames against an independent program's figures."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from small_kitti import (
    DEPTH_2,
    DEPTH_3,
    IDENTITY,
    PIXEL_2,
    PIXEL_3,
    QUARTER_TURN,
    SCAN,
    seen_by,
    write_kitti_raw,
)

from clever3d.datasets import KittiRaw, open_dataset
from clever3d.datasets.geometry import apply
from clever3d.errors import DataError, InputError

DRIVE = "2011_09_26_drive_0001_sync"

# ---------------------------------------------------------------- cameras and times


def test_raw_projection_equals_the_one_worked_out_by_hand(tmp_path: Path) -> None:
    day = write_kitti_raw(tmp_path / "2011_09_26")
    images = day / DRIVE / "image_02"
    (day / DRIVE / "image_03").symlink_to(images)
    frame = KittiRaw(day)[1]
    assert [camera.name for camera in frame.cameras] == ["image_02", "image_03"]
    for camera, pixel, at in zip(frame.cameras, (PIXEL_2, PIXEL_3), (DEPTH_2, DEPTH_3), strict=True):
        pixels, depth = camera.project(frame.points().xyz)
        np.testing.assert_allclose(pixels[0], pixel, atol=1e-9)
        np.testing.assert_allclose(depth[0], at, atol=1e-12)
    assert [camera.image_size for camera in frame.cameras] == [(1242, 375), None]
    only = open_dataset(f"kitti_raw:{day}#cameras=image_03")[1]
    assert [camera.name for camera in only.cameras] == ["image_03"]
    assert KittiRaw(day, cameras=())[1].cameras == ()
    with pytest.raises(DataError, match=r"no camera 'image_01'; it has image_02, image_03"):
        KittiRaw(day, cameras=("image_01",))


def test_kitti_raw_scenes_are_drives_and_frames_are_the_published_scans(tmp_path: Path) -> None:
    drives = ("2011_09_26_drive_0001_sync", "2011_09_26_drive_0005_sync")
    write_kitti_raw(tmp_path / "2011_09_26", drives)
    frames = list(KittiRaw(tmp_path / "2011_09_26"))
    assert [frame.scene for frame in frames] == [drives[0], drives[0], drives[1], drives[1]]
    assert len({frame.id for frame in frames}) == 4
    assert frames[1].id == "2011_09_26_drive_0001_sync_0000000005"
    assert [frame.id for frame in KittiRaw(tmp_path)] == [frame.id for frame in frames]  # the folder of all days


def test_raw_without_times_poses_and_tracklets_has_none(tmp_path: Path) -> None:
    data = KittiRaw(write_kitti_raw(tmp_path))
    frame = data[0]
    assert frame.timestamp is frame.points_to_world is frame.cameras[0].timestamp is None
    assert frame.boxes() is frame.labels() is None
    assert data.ids() == [frame.id for frame in data] == [f"{DRIVE}_0000000000", f"{DRIVE}_0000000005"]


def write_times(path: Path, seconds: dict[int, str], frames: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [seconds.get(frame, f"2011-09-26 13:02:0{frame}.500000000") for frame in range(frames)]
    path.write_text("\n".join([*lines, ""]))


def test_raw_times_are_those_of_the_frames_own_number(tmp_path: Path) -> None:
    drive = write_kitti_raw(tmp_path) / DRIVE
    scans = {0: "1970-01-02 00:00:01.123456789", 5: "1970-01-02 00:01:00"}
    write_times(drive / "velodyne_points" / "timestamps.txt", scans)
    write_times(drive / "image_02" / "timestamps.txt", {0: "", 5: "1970-01-02 00:01:00.010000000"})
    first, last = KittiRaw(tmp_path)
    assert first.timestamp == pytest.approx(86401.123456789, abs=1e-6)
    assert last.timestamp == 86460
    assert first.cameras[0].timestamp is None  # an empty line
    assert last.cameras[0].timestamp == pytest.approx(86460.01, abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "frames", "message"),
    [
        ({5: "13:02:05"}, 6, "line 6 is no time: '13:02:05'"),
        ({5: "2011-13-26 13:02:05.5"}, 6, "line 6 is no time"),
        ({}, 5, "has 5 lines, but there is a frame 5"),
    ],
)
def test_a_damaged_time_is_named(tmp_path: Path, seconds: dict[int, str], frames: int, message: str) -> None:
    drive = write_kitti_raw(tmp_path) / DRIVE
    write_times(drive / "velodyne_points" / "timestamps.txt", seconds, frames)
    with pytest.raises(DataError, match=rf"velodyne_points/timestamps\.txt:? {message}"):
        KittiRaw(tmp_path)[1]


# ---------------------------------------------------------------- poses

LATITUDE = 60.0  # its cosine is a half


def write_oxts(day: Path, packets: dict[int, tuple[float, ...]]) -> Path:
    """Packets (lat, lon, alt, roll, pitch, yaw) of a drive whose velodyne is 1 m behind the IMU and 0.5 m above."""
    folder = day / DRIVE / "oxts" / "data"
    folder.mkdir(parents=True)
    for number, packet in packets.items():
        values = [*packet, *([0.0] * 19), 4, 8, 5, 5, 0]
        (folder / f"{number:010d}.txt").write_text(" ".join(f"{value:.13g}" for value in values) + "\n")
    # a point of the IMU's axes in those of the velodyne: the IMU is 1 m ahead of it and 0.5 m below
    (day / "calib_imu_to_velo.txt").write_text(f"calib_time: 25-May-2012\nR: {IDENTITY}\nT: 1 0 -0.5\n")
    return day


def test_raw_poses_equal_those_worked_out_by_hand(tmp_path: Path) -> None:
    radians = 180 / np.pi
    east = 20 / (0.5 * 6378137) * radians  # degrees of longitude that are 20 m at 60 degrees of latitude
    packets = {0: (LATITUDE, 8, 110, 0, 0, 0), 5: (LATITUDE, 8 + east, 112, 0, 0, np.pi / 2)}
    write_oxts(write_kitti_raw(tmp_path), packets)
    first, last = (frame.points_to_world for frame in KittiRaw(tmp_path))
    assert first is not None
    assert last is not None
    # (10, 2, 1) is (9, 2, 1.5) in the IMU's axes, which at first are the world's.
    np.testing.assert_allclose(apply(first, SCAN[:1, :3]), [[9, 2, 1.5]], atol=1e-6)
    # Then the vehicle looks north, 20 m further east and 2 m higher: (-2, 9, 1.5) + (20, 0, 2).
    np.testing.assert_allclose(apply(last, SCAN[:1, :3]), [[18, 9, 3.5]], atol=1e-6)


def test_raw_poses_go_north_by_the_earths_radius(tmp_path: Path) -> None:
    # Near the first packet the map is true to scale: 1e-5 degrees of latitude are 6378137 * 1e-5 pi / 180 = 1.113195 m.
    write_oxts(write_kitti_raw(tmp_path), {0: (49.0, 8.4, 0, 0, 0, 0), 5: (49.00001, 8.4, 0, 0, 0, 0)})
    first, last = (frame.points_to_world for frame in KittiRaw(tmp_path))
    assert first is not None
    assert last is not None
    np.testing.assert_allclose((last - first)[:3, 3], [0, 1.113195, 0], atol=1e-5)


def test_raw_attitude_turns_roll_first_then_pitch_then_yaw(tmp_path: Path) -> None:
    # The IMU's y (left) under roll 90 degrees points up; then pitch 90 degrees turns up to ahead; then yaw 90 degrees
    # turns ahead (east) to north. Any other order ends elsewhere.
    quarter = np.pi / 2
    write_oxts(write_kitti_raw(tmp_path), {0: (49.0, 8.4, 0, quarter, quarter, quarter), 5: (49.0, 8.4, 0, 0, 0, 0)})
    pose = KittiRaw(tmp_path)[0].points_to_world
    assert pose is not None
    np.testing.assert_allclose(pose[:3, 1], [0, 1, 0], atol=1e-12)


def test_raw_sweeps_lie_on_the_frame(tmp_path: Path) -> None:
    east = 20 / (0.5 * 6378137) * 180 / np.pi
    day = write_oxts(write_kitti_raw(tmp_path), {0: (LATITUDE, 8, 110, 0, 0, 0), 5: (LATITUDE, 8 + east, 110, 0, 0, 0)})
    with pytest.raises(DataError, match=rf"{DRIVE}: sweeps need .*timestamps\.txt"):
        KittiRaw(day, sweeps=2)
    write_times(day / DRIVE / "velodyne_points" / "timestamps.txt", {})
    first, last = open_dataset(f"kitti_raw:{day}#sweeps=2")
    assert first.sweeps == ()
    assert [sweep.seconds for sweep in last.sweeps] == [-5]
    cloud = last.accumulated()  # the vehicle has gone 20 m ahead: (10, 2, 1) of then is (-10, 2, 1) of now
    np.testing.assert_allclose(cloud.xyz, [[10, 2, 1], [-10, 2, 1], [-10, 2, 1], [-30, 2, 1]], atol=1e-5)
    np.testing.assert_array_equal(cloud.time, [0, 0, -5, -5])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sweeps=-1"):
        KittiRaw(day, sweeps=-1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, " is missing, but .*0000000005.bin exists"),
        ("1 2 3\n", " has 3 values"),
        ("49 north\n", " holds something that is no number"),
    ],
)
def test_a_damaged_packet_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    day = write_oxts(write_kitti_raw(tmp_path), {0: (49, 8, 0, 0, 0, 0), 5: (49, 8, 0, 0, 0, 0)})
    path = day / DRIVE / "oxts" / "data" / "0000000005.txt"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(DataError, match=rf"oxts/data/0000000005\.txt{message}"):
        KittiRaw(day)[1]


# ---------------------------------------------------------------- tracklets

TRACKLETS = """<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>
<!DOCTYPE boost_serialization>
<boost_serialization signature="serialization::archive" version="9">
<tracklets class_id="0" tracking_level="0" version="0"><count>2</count><item_version>1</item_version>
<item class_id="1" tracking_level="0" version="1"><objectType>Car</objectType><h>1.5</h><w>1.6</w><l>4</l>
<first_frame>4</first_frame><poses class_id="2" tracking_level="0" version="0"><count>2</count>
<item class_id="3" tracking_level="0" version="2"><tx>9</tx><ty>2</ty><tz>-1.7</tz><rx>0</rx><ry>0</ry><rz>0</rz></item>
<item><tx>10</tx><ty>2</ty><tz>-1.75</tz><rx>0</rx><ry>0</ry><rz>1.5</rz></item></poses><finished>1</finished></item>
<item><objectType>Pedestrian</objectType><h>1.8</h><w>0.5</w><l>0.6</l><first_frame>5</first_frame>
<poses><count>1</count><item><tx>3</tx><ty>-4</ty><tz>-1.6</tz><rx>0</rx><ry>0</ry><rz>-3</rz></item></poses></item>
</tracklets></boost_serialization>
"""


def test_tracklets_are_boxes_on_their_bottom_that_keep_their_number(tmp_path: Path) -> None:
    path = write_kitti_raw(tmp_path) / DRIVE / "tracklet_labels.xml"
    path.write_text(TRACKLETS)
    first, last = KittiRaw(tmp_path)
    none, boxes = first.boxes(), pickle.loads(pickle.dumps(last)).boxes()
    assert none is not None
    assert len(none) == 0
    assert boxes.names == ("Car", "Pedestrian")
    assert boxes.track_ids == ("0", "1")
    np.testing.assert_allclose(boxes.centers, [[10, 2, -1.0], [3, -4, -0.7]], atol=1e-12)
    np.testing.assert_array_equal(boxes.sizes, [[4, 1.6, 1.5], [0.6, 0.5, 1.8]])
    np.testing.assert_allclose(boxes.yaws, [1.5, -3], atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</tracklets>", "", " is no readable XML"),
        ("<h>1.8</h>", "", ": object 1: h is None"),
        ("<tx>10</tx>", "<tx>far</tx>", ": object 0, pose 1: tx is 'far'"),
        ("<tx>10</tx>", "<tx>inf</tx>", ": object 0, pose 1: tx is inf"),
    ],
)
def test_damaged_tracklets_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write_kitti_raw(tmp_path) / DRIVE / "tracklet_labels.xml"
    path.write_text(TRACKLETS.replace(old, new))
    with pytest.raises(DataError, match=rf"tracklet_labels\.xml{message}"):
        KittiRaw(tmp_path)[1].boxes()


# ---------------------------------------------------------------- broken data


def test_raw_names_a_missing_calibration_and_a_missing_image(tmp_path: Path) -> None:
    day = write_kitti_raw(tmp_path / "day")
    (day / DRIVE / "image_02" / "data" / "0000000005.png").unlink()
    with pytest.raises(DataError, match=r"0000000005\.png is missing"):
        KittiRaw(day)
    (day / "calib_velo_to_cam.txt").unlink()
    with pytest.raises(DataError, match=r"calib_velo_to_cam\.txt cannot be read"):
        KittiRaw(day)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("calib_velo_to_cam", "R: 0 -1", "R: 0 1", "R: .* mirror image"),
        ("calib_velo_to_cam", "T: 0.1 0.2 0.3", "T: 0.1 0.2", "T has 2 values, expected 3"),
        ("calib_cam_to_cam", f"R_rect_00: {QUARTER_TURN}", "R_rect_00: 1 1 0 0 1 0 0 0 1", "R_rect_00: .* orthogonal"),
    ],
)
def test_a_raw_calibration_that_is_no_rotation_is_named(
    tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    path = write_kitti_raw(tmp_path) / f"{name}.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=rf"{name}\.txt: {message}"):
        KittiRaw(tmp_path)


def test_a_day_without_drives_and_a_drive_without_images_are_named(tmp_path: Path) -> None:
    day = write_kitti_raw(tmp_path)
    (day / DRIVE / "image_02").rename(day / DRIVE / "left")
    with pytest.raises(DataError, match=r"image_02/data does not exist"):
        KittiRaw(day)
    (day / DRIVE).rename(day / "2011_09_26_drive_0001_extract")
    with pytest.raises(DataError, match=r"holds no \*_sync folder"):
        KittiRaw(day)


def test_days_of_one_folder_are_read_one_after_the_other(tmp_path: Path) -> None:
    write_kitti_raw(tmp_path / "2011_09_28", ("2011_09_28_drive_0002_sync",))
    write_kitti_raw(tmp_path / "2011_09_26", ("2011_09_26_drive_0009_sync", "2011_09_26_drive_0001_sync"))
    scenes = [frame.scene for frame in KittiRaw(tmp_path)]
    assert scenes[::2] == scenes[1::2]
    drives = ("2011_09_26_drive_0001", "2011_09_26_drive_0009", "2011_09_28_drive_0002")
    assert scenes[::2] == [f"{drive}_sync" for drive in drives]


# ---------------------------------------------------------------- real frames


def test_real_kitti_raw_scans_are_seen_as_listed(shared_data: Path) -> None:
    figures = json.loads((shared_data / "expected.json").read_text())["figures"]
    frames = list(open_dataset(shared_data / "kitti_raw" / "2011_09_26"))
    assert len(frames) == 16
    for frame in frames[::5]:
        listed = figures[f"kitti_raw/{frame.scene}/{frame.points_path.stem}"]
        assert seen_by(frame) == (listed["n_points"], listed["in_image"])
        assert list(frame.cameras[0].image_size or ()) == listed["image"]
        assert frame.timestamp is frame.points_to_world is None
