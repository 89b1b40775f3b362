"""Argoverse 2: a log with round numbers against closed forms, and the real log against its own annotations."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from av2_writer import POINTS, TIMES, poses, write, write_log
from pyarrow import feather

from clever3d.datasets import Argoverse2, open_dataset
from clever3d.datasets.argoverse2 import read_av2_points
from clever3d.datasets.geometry import apply
from clever3d.errors import DataError, InputError, MissingExtraError

SHIFT = np.array([1.25, 0.0, 1.5])  # up_lidar in ego axes


@pytest.fixture()
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "sensor" / "val" / "log-a")


def rewrite(path: Path, column: str, values: object) -> None:
    table = feather.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    write(path, {**columns, column: values})


# ---------------------------------------------------------------- closed forms


def test_points_are_in_ego_directions_with_the_upper_lidar_as_origin(log: Path) -> None:
    cloud = Argoverse2(log)[1].points()
    np.testing.assert_array_equal(cloud.xyz, POINTS - SHIFT)
    assert cloud.intensity is not None
    np.testing.assert_allclose(cloud.intensity, [0.2, 1.0], rtol=1e-6)
    assert cloud.xyz.dtype == cloud.intensity.dtype == np.float32


def test_float16_coordinates_are_widened_before_the_origin_moves(tmp_path: Path) -> None:
    """200.125 is a float16 (steps of 1/8 there) but 200.125 - 1.35 is none: it would become 198.75."""
    columns = {axis: np.array([200.125], dtype=np.float16) for axis in "xyz"}
    write(tmp_path / "1.feather", {**columns, "intensity": np.array([0], dtype=np.uint8)})
    shift = np.eye(4)
    shift[0, 3] = 1.35
    assert read_av2_points(tmp_path / "1.feather", shift).xyz[0, 0] == np.float32(198.775)


def test_projection_follows_the_ego_to_the_time_of_the_image(log: Path) -> None:
    frame = Argoverse2(log)[1]
    (camera,) = frame.cameras
    assert (camera.name, camera.image_path.name, camera.image_size) == (
        "ring_front_center",
        "1120000000.jpg",
        (1550, 2048),
    )
    # In ego axes (11.5, 2, 1.5); 0.02 s later the ego is 0.2 m further: (11.3, 2, 1.5), and (9.8, 2, 0) from the mount.
    pixels, depth = camera.project(frame.points().xyz)
    np.testing.assert_allclose(depth[0], 9.8, atol=1e-6)
    np.testing.assert_allclose(pixels[0], (775 - 2000 / 9.8, 1024), atol=1e-4)
    assert camera.timestamp == pytest.approx(1.12)
    assert camera.distortion is None


def test_a_camera_without_an_image_near_the_sweep_is_left_out_of_that_frame(log: Path) -> None:
    """ring_rear_left has one image, 30 ms after the first sweep and 70 ms before the second."""
    early, late = Argoverse2(log)
    assert [camera.name for camera in early.cameras] == ["ring_front_center", "ring_rear_left"]
    assert [camera.name for camera in late.cameras] == ["ring_front_center"]


def test_poses_and_earlier_sweeps_put_standing_points_at_one_place(log: Path) -> None:
    frame = open_dataset(f"av2:{log}#sweeps=3")[1]
    assert frame.points_to_world is not None
    # ego (11.5, 2, 1.5) at (100, 200, 30), heading along the city's y.
    world = apply(frame.points_to_world, frame.points().xyz)
    np.testing.assert_allclose(world[0], (98, 211.5, 31.5), atol=1e-6)
    (sweep,) = frame.sweeps
    assert sweep.seconds == pytest.approx(-0.1)
    cloud = frame.accumulated()
    assert cloud.time is not None
    np.testing.assert_allclose(cloud.time, [0, 0, -0.1, -0.1], atol=1e-6)
    np.testing.assert_allclose(cloud.xyz[2:], cloud.xyz[:2] - [1, 0, 0], atol=1e-5)  # it has come 1 m nearer since
    assert Argoverse2(log)[1].sweeps == ()


def test_boxes_are_in_the_points_axes_with_velocities_over_ground(log: Path) -> None:
    boxes = Argoverse2(log)[1].boxes()
    assert boxes is not None
    assert boxes.names == ("REGULAR_VEHICLE", "BOLLARD")
    assert boxes.track_ids == ("car", "pole")
    np.testing.assert_allclose(boxes.centers, np.array([[11, 2, 1], [-8, 0.25, 0.5]]) - SHIFT)
    np.testing.assert_array_equal(boxes.sizes, [[4, 2, 1.5], [0.2, 0.2, 1]])
    np.testing.assert_allclose(boxes.yaws, [0, np.pi / 2], atol=1e-9)
    assert boxes.velocities is not None
    np.testing.assert_allclose(boxes.velocities[0], (10, 1, 0), atol=1e-9)
    assert np.isnan(boxes.velocities[1]).all()  # seen once
    first = Argoverse2(log)[0].boxes()
    assert first is not None
    assert first.velocities is not None
    assert np.isnan(first.velocities).all()  # nothing before
    assert boxes.num_points is not None
    np.testing.assert_array_equal(boxes.num_points, [1, 1])
    np.testing.assert_array_equal(boxes.contains(Argoverse2(log)[1].points().xyz).sum(axis=1), [1, 1])


def test_root_may_be_the_splits_the_logs_or_one_log(log: Path) -> None:
    other = write_log(log.parents[1] / "train" / "log-b", annotations=False)
    whole = log.parents[2]
    assert Argoverse2.looks_like(whole)
    assert Argoverse2.looks_like(log.parents[1])
    assert Argoverse2.looks_like(log.parent)
    assert Argoverse2.looks_like(log)
    assert not Argoverse2.looks_like(log / "sensors")
    assert Argoverse2(whole).ids() == [f"log-{name}_{time}" for name in "ba" for time in TIMES[:2]]
    assert len(Argoverse2(log.parents[1])) == 4
    assert Argoverse2(log.parents[1], split="train").ids() == Argoverse2(other).ids()
    assert Argoverse2(other)[0].boxes() is None
    with pytest.raises(DataError, match=r"no log in a folder 'test' \(logs are in: train, val\)"):
        Argoverse2(whole, split="test")


def test_frames_are_picklable_and_opening_reads_no_table(log: Path) -> None:
    for path in log.rglob("*.feather"):
        path.write_bytes(b"")
    assert Argoverse2(log).ids() == ["log-a_1000000000", "log-a_1100000000"]
    write_log(log.parent / "log-b")
    frame = Argoverse2(log.parent / "log-b")[1]
    copy = pickle.loads(pickle.dumps(frame))
    np.testing.assert_array_equal(copy.points().xyz, frame.points().xyz)
    assert copy.boxes().names == frame.boxes().names


def test_a_log_without_images_has_frames_without_cameras(tmp_path: Path) -> None:
    assert Argoverse2(write_log(tmp_path / "a", images=False), cameras=("ring_front_center",))[0].cameras == ()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name",
    [
        "sensors/lidar/1000000000",
        "city_SE3_egovehicle",
        "annotations",
        "calibration/egovehicle_SE3_sensor",
        "calibration/intrinsics",
    ],
)
def test_truncated_missing_and_narrow_tables_are_named(log: Path, name: str) -> None:
    path = log / f"{name}.feather"
    whole = path.read_bytes()

    def read() -> None:
        frame = Argoverse2(log)[0]
        frame.points()
        frame.boxes()

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{path}.* is no readable Feather file"):
        read()
    write(path, {"other": [1]})
    with pytest.raises(DataError, match=rf"{path} has no column .*\(it has: other\)"):
        read()
    if name != "annotations":  # which the test split does not have
        dataset = Argoverse2(log)
        path.unlink()
        with pytest.raises(DataError, match=rf"{path} does not exist"):
            dataset[0].points()


def test_a_quaternion_that_is_no_rotation_is_named(log: Path) -> None:
    path = log / "calibration" / "egovehicle_SE3_sensor.feather"
    for column in ("qw", "qx", "qy", "qz"):
        rewrite(path, column, [0.0] * 4)
    with pytest.raises(DataError, match=rf"{path}: qw qx qy qz of ring_front_center: the quaternion .* is zero"):
        Argoverse2(log)[0]


def test_a_pose_that_is_missing_or_not_finite_is_named(log: Path) -> None:
    path = log / "city_SE3_egovehicle.feather"
    write(path, poses([TIMES[0], 980_000_000, 1_030_000_000]))
    dataset = Argoverse2(log)
    assert dataset[0].id == "log-a_1000000000"
    with pytest.raises(DataError, match=rf"{path}: no pose at timestamp_ns 1100000000"):
        dataset[1]
    rewrite(path, "tx_m", [float("nan")] * 3)
    with pytest.raises(DataError, match=rf"{path}: tx_m ty_m tz_m at 1000000000 are not finite"):
        Argoverse2(log)[0]


def test_an_empty_cell_is_named(log: Path) -> None:
    path = log / "calibration" / "intrinsics.feather"
    rewrite(path, "fx_px", [None, 900.0])
    with pytest.raises(DataError, match=rf"{path}: column fx_px has 1 empty cells"):
        Argoverse2(log)[0]
    rewrite(path, "fx_px", [-1.0, 900.0])
    with pytest.raises(DataError, match=rf"{path}: fx_px fy_px cx_px cy_px of ring_front_center are -1\.0"):
        Argoverse2(log)[0]


def test_an_unknown_camera_is_named_with_those_there_are(log: Path) -> None:
    with pytest.raises(DataError, match=r"no camera 'ring_top'; it has ring_front_center, ring_rear_left"):
        open_dataset(f"av2:{log}#cameras=ring_top")[0]


def test_a_camera_without_calibration_is_left_out_unless_it_is_asked_for(log: Path) -> None:
    path = log / "calibration" / "intrinsics.feather"
    rewrite(path, "sensor_name", ["ring_front_center", "another"])
    assert [camera.name for camera in Argoverse2(log)[0].cameras] == ["ring_front_center"]
    with pytest.raises(DataError, match="no camera 'ring_rear_left'"):
        Argoverse2(log, cameras=("ring_rear_left",))[0]


def test_missing_folders_strange_names_and_double_logs_are_named(log: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no Argoverse 2 log"):
        Argoverse2(log / "sensors" / "cameras")
    with pytest.raises(InputError, match="sweeps=-1"):
        Argoverse2(log, sweeps=-1)
    write_log(log.parents[1] / "train" / log.name)
    with pytest.raises(DataError, match="two frames have the id 'log-a'"):
        Argoverse2(tmp_path)
    strange = log / "sensors" / "lidar" / "first.feather"
    strange.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{strange}: the name is no timestamp"):
        Argoverse2(log)
    for path in (log / "sensors" / "lidar").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"lidar holds no \.feather sweep"):
        Argoverse2(log)


def test_without_pyarrow_the_extra_is_named(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Argoverse2(log)
    monkeypatch.setitem(sys.modules, "pyarrow.feather", None)
    with pytest.raises(MissingExtraError, match=r'pip install "clever3d\[io\]"'):
        dataset[0]


# ---------------------------------------------------------------- the real log


def test_real_sweeps_have_the_points_and_boxes_that_are_listed(shared_data: Path) -> None:
    figures = json.loads((shared_data / "expected.json").read_text())["figures"]
    dataset = open_dataset(shared_data / "av2")
    assert len(dataset) == 2
    for frame, count in zip(dataset, figures["av2/log"]["n_boxes"], strict=True):
        cloud, boxes = frame.points(), frame.boxes()
        assert len(cloud.xyz) == figures[f"av2/{frame.points_path.stem}"]["n_points"]
        assert cloud.intensity is not None
        assert (cloud.intensity.min(), cloud.intensity.max()) == (0, 1)
        assert boxes is not None
        assert boxes.num_points is not None
        assert len(boxes) == count == 81
        np.testing.assert_array_equal(boxes.contains(cloud.xyz).sum(axis=1), boxes.num_points)
        assert frame.cameras == ()


def test_real_ground_is_two_metres_below_the_origin(shared_data: Path) -> None:
    frame = open_dataset(shared_data / "av2")[0]
    xyz = frame.points().xyz
    flow = feather.read_table(frame.points_path.parents[2] / "flow_labels.feather")
    near = flow["is_ground_0"].to_numpy() & (np.hypot(xyz[:, 0], xyz[:, 1]) < 10)
    assert near.sum() > 5000
    assert np.median(xyz[near, 2]) == pytest.approx(-2.0, abs=0.05)


def test_real_velocities_agree_with_the_annotated_flow_of_the_points_inside(shared_data: Path) -> None:
    """Flow carries a point of the first sweep to where it is in the second one's ego axes."""
    first, second = open_dataset(shared_data / "av2")
    xyz, boxes = first.points().xyz, first.boxes()
    assert boxes is not None
    assert boxes.velocities is not None
    assert first.points_to_world is not None
    assert second.points_to_world is not None
    assert first.timestamp is not None
    assert second.timestamp is not None
    table = feather.read_table(first.points_path.parents[2] / "flow_labels.feather")
    flow = np.stack([table[f"flow_t{axis}_m"].to_numpy() for axis in "xyz"], axis=1)
    back = np.linalg.inv(first.points_to_world) @ second.points_to_world
    moved = (apply(back, xyz + flow) - xyz) / (second.timestamp - first.timestamp)  # [N, 3] m/s over ground
    inside = boxes.contains(xyz)
    speeds = np.linalg.norm(boxes.velocities, axis=1)
    fast = np.flatnonzero((speeds > 2) & (inside.sum(axis=1) > 5))
    assert len(fast) >= 6
    for row in fast:
        # 0.2 m/s: a difference over 0.1 s against one over 0.2 s, and what the flow gives to a turning box's points
        np.testing.assert_allclose(np.median(moved[inside[row]], axis=0), boxes.velocities[row], atol=0.2)
