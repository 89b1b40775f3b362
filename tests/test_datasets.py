"""Data sets: projections worked out by hand, and real scans against the figures of an independent program."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clever3d.datasets import Frame, KittiObject, KittiRaw, NuScenes, open_dataset
from clever3d.errors import DataError, InputError, UnknownNameError

Rows = list[dict[str, Any]]

# ---------------------------------------------------------------- tiny data sets with round numbers

P2 = "100 0 50 200 0 100 20 -50 0 0 1 0.5"
P0 = "100 0 50 0 0 100 20 0 0 0 1 0"
QUARTER_TURN = "0 -1 0 1 0 0 0 0 1"  # about the camera's z: (x, y, z) -> (-y, x, z)
IDENTITY = "1 0 0 0 1 0 0 0 1"
VELO_ROTATION = "0 -1 0 0 0 -1 1 0 0"
SCAN = np.array([[10, 2, 1, 0.25], [-10, 2, 1, 0.5]], dtype="<f4")

# By hand, for (10, 2, 1): velodyne to camera 0 gives (-2 + 0.1, -1 + 0.2, 10 + 0.3) = (-1.9, -0.8, 10.3); the quarter
# turn gives (0.8, -1.9, 10.3); P2 gives (80 + 515 + 200, -190 + 206 - 50, 10.3 + 0.5) = (795, -34, 10.8).
KITTI_PIXEL, KITTI_DEPTH = (795 / 10.8, -34 / 10.8), 10.8


def write_kitti(root: Path, ids: tuple[str, ...] = ("001000", "001004", "005000")) -> Path:
    training = root / "training"
    for name in ("velodyne", "image_2", "calib"):
        (training / name).mkdir(parents=True)
    calibration = f"P0: {P0}\nP2: {P2}\nR0_rect: {QUARTER_TURN}\nTr_velo_to_cam: 0 -1 0 0.1 0 0 -1 0.2 1 0 0 0.3\n\n"
    for frame in ids:
        SCAN.tofile(training / "velodyne" / f"{frame}.bin")
        (training / "image_2" / f"{frame}.png").write_bytes(b"never decoded here")
        (training / "calib" / f"{frame}.txt").write_text(calibration)
    return root


def write_kitti_raw(day: Path, drives: tuple[str, ...] = ("2011_09_26_drive_0001_sync",)) -> Path:
    for drive in drives:
        scans, images = day / drive / "velodyne_points" / "data", day / drive / "image_02" / "data"
        scans.mkdir(parents=True)
        images.mkdir(parents=True)
        for number in (0, 5):
            SCAN.tofile(scans / f"{number:010d}.bin")
            (images / f"{number:010d}.png").write_bytes(b"never decoded here")
        (images / "0000000009.png").write_bytes(b"an image whose scan was never published")
    (day / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\nR_rect_00: {QUARTER_TURN}\nP_rect_00: {P0}\n"
        f"R_rect_02: {IDENTITY}\nP_rect_02: {P2}\n"
    )
    (day / "calib_velo_to_cam.txt").write_text(f"calib_time: 15-Mar-2012\nR: {VELO_ROTATION}\nT: 0.1 0.2 0.3\n")
    return day


HALF = 0.5**0.5
CHANNELS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
# LIDAR_TOP as recorded: x right, y forward. In FLU these are (10, 2, -0.5) and (0, -20, -0.5).
SWEEP = np.array([[-2, 10, -0.5, 51, 7], [20, 0, -0.5, 255, 31]], dtype="<f4")


def pose(token: str, translation: list[float], rotation: list[float], **columns: object) -> dict[str, Any]:
    return {"token": token, "translation": translation, "rotation": rotation, **columns}


def nuscenes_tables() -> dict[str, Rows]:
    """Two samples of one scene, the later one first; every camera looks ahead, except CAM_BACK.

    At the lidar's time the ego is at (100, 200), heading along global y. At the cameras' time it has driven 0.5 m
    further; for CAM_BACK it is where it was but turned left by a quarter.
    """
    intrinsic = [[1000.0, 0.0, 800.0], [0.0, 1000.0, 450.0], [0.0, 0.0, 1.0]]
    sensors: Rows = [{"token": f"sensor {c}", "channel": c} for c in ("LIDAR_TOP", *CHANNELS, "RADAR_FRONT")]
    mounts = [
        pose("mount LIDAR_TOP", [1, 0, 2], [HALF, 0, 0, -HALF], sensor_token="sensor LIDAR_TOP", camera_intrinsic=[]),
        pose("mount RADAR_FRONT", [3, 0, 0], [1, 0, 0, 0], sensor_token="sensor RADAR_FRONT", camera_intrinsic=[]),
    ]
    for channel in CHANNELS:
        back = channel == "CAM_BACK"
        place: list[float] = [0, 0, 1.5] if back else [1.5, 0, 1.6]
        turn = [0.5, -0.5, -0.5, 0.5] if back else [0.5, -0.5, 0.5, -0.5]
        columns = {"sensor_token": f"sensor {channel}", "camera_intrinsic": intrinsic}
        mounts.append(pose(f"mount {channel}", place, turn, **columns))
    poses = [
        pose("at lidar time", [100, 200, 0], [HALF, 0, 0, HALF]),
        pose("at camera time", [100, 200.5, 0], [HALF, 0, 0, HALF]),
        pose("turned", [100, 200, 0], [0, 0, 0, 1]),
    ]
    data: Rows = []
    for sample in ("late", "early"):
        for channel in ("LIDAR_TOP", *CHANNELS, "RADAR_FRONT"):
            place_of = {"LIDAR_TOP": "at lidar time", "CAM_BACK": "turned"}
            row = {
                "sample_token": sample,
                "ego_pose_token": place_of.get(channel, "at camera time"),
                "calibrated_sensor_token": f"mount {channel}",
                "is_key_frame": True,
                "filename": f"samples/{channel}/{sample}",
            }
            data += [row, {**row, "is_key_frame": False, "filename": f"sweeps/{channel}/{sample}"}]
    return {
        "scene": [{"token": "s", "name": "scene-0001"}],
        "sample": [
            {"token": "late", "scene_token": "s", "timestamp": 20},
            {"token": "early", "scene_token": "s", "timestamp": 10},
        ],
        "sensor": sensors,
        "calibrated_sensor": mounts,
        "ego_pose": poses,
        "sample_data": data,
    }


def write_nuscenes(root: Path, tables: dict[str, Rows] | None = None) -> Path:
    (root / "v1.0-mini").mkdir(parents=True)
    (root / "samples" / "LIDAR_TOP").mkdir(parents=True)
    for sample in ("late", "early"):
        SWEEP.tofile(root / "samples" / "LIDAR_TOP" / sample)
    for name, rows in (tables or nuscenes_tables()).items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "kitti": write_kitti,
    "kitti_raw": write_kitti_raw,
    "nuscenes": write_nuscenes,
}

# ---------------------------------------------------------------- closed forms


def test_kitti_projection_equals_the_one_worked_out_by_hand(tmp_path: Path) -> None:
    frame = KittiObject(write_kitti(tmp_path))[0]
    pixels, depth = frame.cameras[0].project(frame.points().xyz)
    np.testing.assert_allclose(pixels[0], KITTI_PIXEL, atol=1e-9)
    np.testing.assert_allclose(depth[0], KITTI_DEPTH, atol=1e-12)
    np.testing.assert_array_equal(frame.cameras[0].intrinsics, [[100, 0, 50], [0, 100, 20], [0, 0, 1]])


def test_kitti_raw_projection_equals_the_one_worked_out_by_hand(tmp_path: Path) -> None:
    frame = KittiRaw(write_kitti_raw(tmp_path / "2011_09_26"))[1]
    pixels, depth = frame.cameras[0].project(frame.points().xyz)
    np.testing.assert_allclose(pixels[0], KITTI_PIXEL, atol=1e-9)
    np.testing.assert_allclose(depth[0], KITTI_DEPTH, atol=1e-12)


def test_kitti_points_are_the_file_in_its_order(tmp_path: Path) -> None:
    cloud = KittiObject(write_kitti(tmp_path))[0].points()
    np.testing.assert_array_equal(cloud.xyz, SCAN[:, :3])
    assert cloud.intensity is not None
    np.testing.assert_array_equal(cloud.intensity, SCAN[:, 3])
    assert cloud.xyz.dtype == cloud.intensity.dtype == np.float32


def test_nuscenes_points_are_turned_to_flu_with_intensity_up_to_one(tmp_path: Path) -> None:
    cloud = NuScenes(write_nuscenes(tmp_path))[0].points()
    np.testing.assert_array_equal(cloud.xyz, [[10, 2, -0.5], [0, -20, -0.5]])
    assert cloud.intensity is not None
    np.testing.assert_allclose(cloud.intensity, [0.2, 1.0], rtol=1e-6)
    assert cloud.xyz.dtype == cloud.intensity.dtype == np.float32


def test_nuscenes_projection_follows_the_ego_between_lidar_and_camera(tmp_path: Path) -> None:
    frame = NuScenes(write_nuscenes(tmp_path))[0]
    cameras = {camera.name: camera for camera in frame.cameras}
    assert tuple(cameras) == CHANNELS
    xyz = frame.points().xyz
    # (10, 2, -0.5) is (11, 2, 1.5) in the ego frame, (10.5, 2, 1.5) 0.5 m later, (9, 2, -0.1) seen from the mount.
    pixels, depth = cameras["CAM_FRONT"].project(xyz)
    np.testing.assert_allclose(pixels[0], (800 - 2000 / 9, 450 + 100 / 9), atol=1e-9)
    np.testing.assert_allclose(depth[0], 9, atol=1e-9)
    # (0, -20, -0.5) is (1, -20, 1.5), and (-20, -1, 1.5) after the left turn: 20 m behind, 1 m to the ego's right,
    # which the camera that looks back has on its left.
    pixels, depth = cameras["CAM_BACK"].project(xyz)
    np.testing.assert_allclose(pixels[1], (800 - 1000 / 20, 450), atol=1e-9)
    np.testing.assert_allclose(depth[1], 20, atol=1e-9)


def test_points_behind_the_camera_have_no_pixel(tmp_path: Path) -> None:
    frame = KittiObject(write_kitti(tmp_path))[0]
    pixels, depth = frame.cameras[0].project(frame.points().xyz)
    assert depth[1] < 0
    assert np.isnan(pixels[1]).all()


def test_project_accepts_no_points_and_refuses_other_shapes(tmp_path: Path) -> None:
    camera = KittiObject(write_kitti(tmp_path))[0].cameras[0]
    pixels, depth = camera.project(np.zeros((0, 3), dtype=np.float32))
    assert pixels.shape == (0, 2)
    assert depth.shape == (0,)
    with pytest.raises(InputError, match=r"\(5, 4\)"):
        camera.project(np.zeros((5, 4), dtype=np.float32))


# ---------------------------------------------------------------- frames, scenes, order


def test_kitti_frames_are_their_own_scene_unless_told(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    assert [frame.scene for frame in KittiObject(tmp_path)] == ["001000", "001004", "005000"]
    assert [frame.scene for frame in KittiObject(tmp_path, scene=3)] == ["001", "001", "005"]
    assert [frame.id for frame in open_dataset(f"kitti:{tmp_path}#scene=3")] == ["001000", "001004", "005000"]
    assert open_dataset(f"kitti:{tmp_path}#scene=3")[2].scene == "005"


def test_kitti_opens_the_training_folder_itself(tmp_path: Path) -> None:
    assert len(KittiObject(write_kitti(tmp_path) / "training")) == 3


def test_kitti_matches_frame_numbers_that_are_padded_differently(tmp_path: Path) -> None:
    training = write_kitti(tmp_path, ("000001",)) / "training"
    for name, suffix in (("velodyne", "bin"), ("image_2", "png")):
        (training / name / f"000001.{suffix}").rename(training / name / f"0000000001.{suffix}")
    assert KittiObject(tmp_path)[0].id == "0000000001"


def test_kitti_raw_scenes_are_drives_and_frames_are_the_published_scans(tmp_path: Path) -> None:
    drives = ("2011_09_26_drive_0001_sync", "2011_09_26_drive_0005_sync")
    write_kitti_raw(tmp_path / "2011_09_26", drives)
    frames = list(KittiRaw(tmp_path / "2011_09_26"))
    assert [frame.scene for frame in frames] == [drives[0], drives[0], drives[1], drives[1]]
    assert len({frame.id for frame in frames}) == 4
    assert frames[1].id == "2011_09_26_drive_0001_sync_0000000005"
    assert [frame.id for frame in KittiRaw(tmp_path)] == [frame.id for frame in frames]  # the folder of all days


def test_nuscenes_samples_are_in_time_order_and_key_frames_only(tmp_path: Path) -> None:
    frames = list(NuScenes(write_nuscenes(tmp_path)))
    assert [frame.id for frame in frames] == ["early", "late"]
    assert {frame.scene for frame in frames} == {"scene-0001"}
    assert frames[0].points_path == tmp_path / "samples" / "LIDAR_TOP" / "early"
    assert frames[0].cameras[3].image_path == tmp_path / "samples" / "CAM_BACK" / "early"


def test_nuscenes_with_two_table_folders_asks_which(tmp_path: Path) -> None:
    write_nuscenes(tmp_path)
    (tmp_path / "v1.0-test").mkdir()
    with pytest.raises(DataError, match=r"v1\.0-mini, v1\.0-test.*version="):
        NuScenes(tmp_path)
    assert len(open_dataset(f"nuscenes:{tmp_path}#version=v1.0-mini")) == 2
    with pytest.raises(DataError, match=r"v1\.0-trainval is no folder"):
        NuScenes(tmp_path, version="v1.0-trainval")


def test_opening_reads_neither_points_nor_images(tmp_path: Path) -> None:
    root = write_kitti(tmp_path)
    (root / "training" / "velodyne" / "001000.bin").write_bytes(b"")  # unreadable, and so are all the images
    frame = KittiObject(root)[0]
    assert frame.cameras[0].image_path.name == "001000.png"
    with pytest.raises(DataError, match=r"001000\.bin"):
        frame.points()


@pytest.mark.parametrize("name", WRITERS)
def test_frames_and_datasets_survive_pickling(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(f"{name}:{WRITERS[name](tmp_path / 'data')}")
    assert dataset.name == name
    frame: Frame = pickle.loads(pickle.dumps(dataset))[0]
    again: Frame = pickle.loads(pickle.dumps(frame))
    assert again.id == dataset[0].id
    assert again.dataset == name
    np.testing.assert_array_equal(again.points().xyz, dataset[0].points().xyz)
    np.testing.assert_array_equal(again.cameras[0].points_to_camera, dataset[0].cameras[0].points_to_camera)


# ---------------------------------------------------------------- specs


@pytest.mark.parametrize("name", WRITERS)
def test_a_plain_path_is_guessed_from_its_folders(tmp_path: Path, name: str) -> None:
    assert open_dataset(WRITERS[name](tmp_path / "a folder#1: with signs")).name == name


def test_a_folder_of_nothing_known_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"v1\.0-\*.*calib_cam_to_cam\.txt.*velodyne"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="nowhere is no folder"):
        open_dataset(tmp_path / "nowhere")


def test_an_unknown_name_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'nuscene'.*did you mean 'nuscenes'"):
        open_dataset(f"nuscene:{tmp_path}")


@pytest.mark.parametrize("options", ["scenes=3", "scene=three", "scene=0", "scene="])
def test_a_wrong_option_is_an_input_error(tmp_path: Path, options: str) -> None:
    write_kitti(tmp_path)
    with pytest.raises(InputError, match=r"scene"):
        open_dataset(f"kitti:{tmp_path}#{options}")


# ---------------------------------------------------------------- broken data


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"gone does not exist; .* needs"):
        open_dataset(f"{name}:{tmp_path / 'gone'}")


@pytest.mark.parametrize(("folder", "file"), [("calib", "001004.txt"), ("image_2", "001004.png")])
def test_kitti_names_the_file_a_frame_lacks(tmp_path: Path, folder: str, file: str) -> None:
    (write_kitti(tmp_path) / "training" / folder / file).unlink()
    with pytest.raises(DataError, match=rf"{folder}/{file} is missing.*001004\.bin"):
        KittiObject(tmp_path)


def test_kitti_without_a_folder_says_which_layout_it_needs(tmp_path: Path) -> None:
    folder = write_kitti(tmp_path) / "training" / "calib"
    folder.rename(folder.with_name("calibration"))
    with pytest.raises(DataError, match=r"calib does not exist; .*velodyne,image_2,calib"):
        KittiObject(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"P2: {P2}\nR0_rect: {IDENTITY}\n", "no numeric entry 'Tr_velo_to_cam'"),
        (f"P2: {P2} 7\nR0_rect: {IDENTITY}\n", "P2 has 13 values, expected 12"),
        ("P2: 1 0 0 0 0 1 0 0 0 0 1 nan\n", "P2 has 12 values, expected 12 finite"),
        ("P2: 0 0 0 0 0 0 0 0 0 0 0 0\n", "P2 is no projection"),
    ],
)
def test_a_damaged_calibration_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write_kitti(tmp_path) / "training" / "calib" / "001000.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"001000\.txt.*{message}"):
        KittiObject(tmp_path)[0]


def test_a_truncated_scan_is_named(tmp_path: Path) -> None:
    path = write_kitti(tmp_path) / "training" / "velodyne" / "001000.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"001000\.bin"):
        KittiObject(tmp_path)[0].points()


def test_a_scan_that_vanished_is_named(tmp_path: Path) -> None:
    root = write_nuscenes(tmp_path)
    frame = NuScenes(root)[0]
    frame.points_path.unlink()
    with pytest.raises(DataError, match=r"early does not exist; .*incomplete"):
        frame.points()


def test_kitti_raw_names_a_missing_calibration_and_a_missing_image(tmp_path: Path) -> None:
    day = write_kitti_raw(tmp_path / "day")
    (day / "2011_09_26_drive_0001_sync" / "image_02" / "data" / "0000000005.png").unlink()
    with pytest.raises(DataError, match=r"0000000005\.png is missing"):
        KittiRaw(day)
    (day / "calib_velo_to_cam.txt").unlink()
    with pytest.raises(DataError, match=r"calib_velo_to_cam\.txt cannot be read"):
        KittiRaw(day)


@pytest.mark.parametrize("table", ["scene", "sample", "sensor", "calibrated_sensor", "ego_pose", "sample_data"])
def test_broken_and_missing_nuscenes_tables_are_named(tmp_path: Path, table: str) -> None:
    path = write_nuscenes(tmp_path) / "v1.0-mini" / f"{table}.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DataError, match=rf"/{table}\.json is no valid JSON"):
        NuScenes(tmp_path)
    path.write_text('[{"token": "lonely"}]')
    with pytest.raises(DataError, match=rf"/{table}\.json: a row has no "):
        NuScenes(tmp_path)
    path.write_text('{"token": "lonely"}')
    with pytest.raises(DataError, match=rf"/{table}\.json is not a list of rows"):
        NuScenes(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=rf"/{table}\.json cannot be read"):
        NuScenes(tmp_path)


def test_a_token_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    tables = nuscenes_tables()
    tables["ego_pose"].pop()
    with pytest.raises(DataError, match=r"ego_pose\.json has no row 'turned'"):
        NuScenes(write_nuscenes(tmp_path, tables))


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("ego_pose", "rotation", [0, 0, 0, 0], "rotation of row turned is zero"),
        ("ego_pose", "translation", [1, 2], "translation of row turned is not"),
        ("calibrated_sensor", "camera_intrinsic", [], "camera_intrinsic of row mount CAM_FRONT_LEFT is not"),
        ("calibrated_sensor", "translation", ["a", "b", "c"], r"translation of row mount CAM_FRONT_LEFT is \['a'"),
    ],
)
def test_a_bad_value_in_a_table_is_named(tmp_path: Path, table: str, column: str, value: object, message: str) -> None:
    tables = nuscenes_tables()
    tables[table][-1][column] = value
    with pytest.raises(DataError, match=rf"{table}\.json: {message}"):
        NuScenes(write_nuscenes(tmp_path, tables))


def test_a_sample_without_a_camera_is_named(tmp_path: Path) -> None:
    tables = nuscenes_tables()
    tables["sample_data"] = [row for row in tables["sample_data"] if row["filename"] != "samples/CAM_BACK/late"]
    with pytest.raises(DataError, match=r"no key frame of CAM_BACK for sample late"):
        NuScenes(write_nuscenes(tmp_path, tables))


# ---------------------------------------------------------------- real scans


def seen_by(frame: Frame) -> tuple[int, int]:
    """Number of points, and of those inside at least one image."""
    xyz = frame.points().xyz
    seen = np.zeros(len(xyz), dtype=bool)
    for camera in frame.cameras:
        with Image.open(camera.image_path) as image:
            width, height = image.size
        (u, v), depth = (pixels := camera.project(xyz))[0].T, pixels[1]
        seen |= (depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return len(xyz), int(seen.sum())


def test_real_kitti_scans_are_seen_as_listed(shared_data: Path) -> None:
    figures = json.loads((shared_data / "expected.json").read_text())["figures"]
    frames = list(open_dataset(f"kitti:{shared_data / 'kitti'}"))
    assert len(frames) == 12
    for frame in frames:
        listed = figures[f"kitti/training/{frame.id}"]
        assert seen_by(frame) == (listed["n_points"], listed["in_image"])


def test_real_kitti_raw_scans_are_seen_as_listed(shared_data: Path) -> None:
    figures = json.loads((shared_data / "expected.json").read_text())["figures"]
    frames = list(open_dataset(shared_data / "kitti_raw" / "2011_09_26"))
    assert len(frames) == 16
    for frame in frames[::5]:
        listed = figures[f"kitti_raw/{frame.scene}/{frame.points_path.stem}"]
        assert seen_by(frame) == (listed["n_points"], listed["in_image"])


def test_real_nuscenes_projects_as_the_reference_matrices_do(shared_data: Path) -> None:
    dataset = open_dataset(f"nuscenes:{shared_data / 'nuscenes'}")
    assert len(dataset) == 1
    frame = dataset[0]
    assert seen_by(frame) == (34_688, 20_206)
    reference = json.loads((shared_data / "nuscenes" / "reference" / "reference.json").read_text())
    assert frame.id == reference["sample_token"]
    recorded = np.fromfile(frame.points_path, dtype="<f4").reshape(-1, 5)[:, :3].astype(np.float64)
    homogeneous = np.hstack([recorded, np.ones((len(recorded), 1))])  # [N, 4]
    for camera in frame.cameras:
        listed = reference["cams"][camera.name]
        image = (homogeneous @ np.array(listed["lidar2cam"]).T)[:, :3] @ np.array(listed["cam2img"]).T
        pixels, depth = camera.project(frame.points().xyz)
        near = (depth > 1) & (np.abs(pixels - [800, 450]) < [1600, 900]).all(axis=1)  # the image and half of it around
        assert near.sum() > 3000
        assert np.abs(pixels[near] - image[near, :2] / image[near, 2:]).max() < 1e-3


def test_real_kitti_drives_have_their_drive_as_scene(shared_data_more: Path) -> None:
    dataset = open_dataset(f"kitti:{shared_data_more / 'kitti_drives'}#scene=3")
    assert len(dataset) == 113
    scenes = [frame.scene for frame in dataset]
    assert {scene: scenes.count(scene) for scene in scenes} == {"001": 27, "005": 39, "027": 47}
    n_points, n_seen = seen_by(dataset[0])
    assert 0.6 < n_seen / n_points < 0.7  # cropped to the camera's horizontal view: the rest is above or below


def test_real_stereo_copy_opens_as_kitti(shared_data_more: Path) -> None:
    n_points, n_seen = seen_by(open_dataset(shared_data_more / "kitti_stereo")[0])
    assert 0.14 < n_seen / n_points < 0.18


def test_real_copy_without_reflectance_has_no_intensity(shared_data_more: Path) -> None:
    dataset = open_dataset(shared_data_more / "kitti_xyz_only")
    assert len(dataset) == 2
    assert dataset[0].points().intensity is None
    n_points, n_seen = seen_by(dataset[0])
    assert 0.13 < n_seen / n_points < 0.19
