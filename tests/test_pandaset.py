"""PandaSet: a sequence with round numbers against closed forms, tables against pandas, and pickles that mean harm."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pandaset_writer import CUBOIDS, Made, Name, lidar_columns, table, write_pickle, write_sequence

from clever3d.datasets import PandaSet, open_dataset
from clever3d.datasets.frame_pickle import read_frame_pickle
from clever3d.datasets.geometry import apply
from clever3d.datasets.labels import IGNORE
from clever3d.datasets.pandaset_labels import PANDASET
from clever3d.errors import DataError, InputError

# By hand: POINTS[0] is 10 m ahead of the Pandar64, 2 m to its left, 1 m below; the Pandar64 is 0.807 m ahead of the
# vehicle's origin and 1.85 m above. POINTS[2] is where the Pandar64 is, but 3 m to its right and 2 m below.
FLU = [[10, 2, -1], [10, 2, -1], [0, -3, -2]]


@pytest.fixture()
def sequence(tmp_path: Path) -> Path:
    return write_sequence(tmp_path / "pandaset" / "002")


# ---------------------------------------------------------------- closed forms


def test_points_of_the_chosen_lidar_are_brought_from_the_world_to_the_pandar64(sequence: Path) -> None:
    for lidar, rows in (("pandar64", [0, 2]), ("pandargt", [1]), ("both", [0, 1, 2])):
        cloud = open_dataset(f"pandaset:{sequence.parent}#lidar={lidar}")[1].points()
        np.testing.assert_allclose(cloud.xyz, np.array(FLU)[rows], atol=1e-6)
        assert cloud.intensity is not None
        np.testing.assert_allclose(cloud.intensity, np.array([0.2, 0.4, 1.0])[rows], rtol=1e-6)
        assert cloud.xyz.dtype == cloud.intensity.dtype == np.float32
    assert len(PandaSet(sequence)[1].points().xyz) == 2


def test_projection_uses_the_pose_that_the_camera_had(sequence: Path) -> None:
    frame = PandaSet(sequence)[1]
    (camera,) = frame.cameras
    assert (camera.name, camera.image_path.name) == ("front_camera", "01.jpg")
    # The point is at (-0.807, 18, 0.85), the camera at (9.5, 20, 1.85): 10.307 ahead, 2 to the left, 1 below.
    pixels, depth = camera.project(frame.points().xyz)
    np.testing.assert_allclose(depth[0], 10.307, atol=1e-6)
    np.testing.assert_allclose(pixels[0], (970 - 2000 / 10.307, 480 + 900 / 10.307), atol=1e-4)
    assert camera.distortion is None
    assert (camera.timestamp, frame.timestamp) == (100.05, 100.1)


def test_boxes_have_their_length_ahead_and_the_velocity_between_the_neighbours(sequence: Path) -> None:
    boxes = PandaSet(sequence)[1].boxes()
    assert boxes is not None
    assert boxes.names == ("Car", "Signs")
    assert boxes.track_ids == ("car", "sign")
    np.testing.assert_allclose(boxes.sizes, [[4, 2, 1.5], [1, 0.5, 2]])
    np.testing.assert_allclose(boxes.yaws, [0, -np.pi / 2], atol=1e-9)
    # The car's centre is at (-5, 18, 1): 15 - 0.807 m ahead, 2 m to the left, 0.85 m below.
    np.testing.assert_allclose(boxes.centers, [[14.193, 2, -0.85], [0, -3, -2]], atol=1e-9)
    assert boxes.velocities is not None
    np.testing.assert_allclose(boxes.velocities, [[5, 0, 0], [0, 0, 0]], atol=1e-9)
    first = PandaSet(sequence)[0].boxes()
    assert first is not None
    assert first.velocities is not None
    assert np.isnan(first.velocities).all()


def test_an_object_with_a_box_for_each_lidar_has_the_one_of_the_chosen_lidar(sequence: Path) -> None:
    for lidar, tracks in (
        ("pandar64", ("car", "sign")),
        ("pandargt", ("twin", "sign")),
        ("both", ("car", "twin", "sign")),
    ):
        boxes = PandaSet(sequence, lidar=lidar)[1].boxes()
        assert boxes is not None
        assert boxes.track_ids == tracks


def test_labels_are_those_of_the_points(sequence: Path) -> None:
    dataset = PandaSet(sequence)
    labels = dataset[1].labels()
    assert labels is not None
    assert dataset.label_spec is PANDASET
    np.testing.assert_array_equal(labels.semantic, [13, 36])
    assert [PANDASET.classes[i] for i in labels.train_ids] == ["Car", "Signs"]
    gt = PandaSet(sequence, lidar="pandargt")[1].labels()
    assert gt is not None
    np.testing.assert_array_equal(gt.semantic, [14])


def test_the_42_classes_are_numbered_as_published() -> None:
    assert len(PANDASET.classes) == 42
    assert (PANDASET.raw_names[7], PANDASET.raw_names[30], PANDASET.raw_names[42]) == (
        "Road",
        "Pedestrian",
        "Other Static Object",
    )
    np.testing.assert_array_equal(PANDASET.train_ids(np.array([0, 1, 42])), [IGNORE, 0, 41])
    assert len(set(PANDASET.colors)) == 42


def test_earlier_sweeps_are_where_the_vehicle_left_them(sequence: Path) -> None:
    """The same world points in every frame: standing things, met from three places."""
    frame = open_dataset(f"pandaset:{sequence}#sweeps=5")[2]
    assert [sweep.seconds for sweep in frame.sweeps] == pytest.approx([-0.1, -0.2])
    cloud = frame.accumulated()
    np.testing.assert_allclose(cloud.xyz[2:4], cloud.xyz[:2], atol=1e-5)
    np.testing.assert_allclose(cloud.xyz[4:6], cloud.xyz[:2], atol=1e-5)
    assert frame.points_to_world is not None
    np.testing.assert_allclose(apply(frame.points_to_world, frame.points().xyz)[0], (-0.807, 18, 0.85), atol=1e-5)


def test_root_may_be_the_sequences_or_one_of_them(sequence: Path) -> None:
    write_sequence(sequence.parent / "010", camera=False, semseg=False)
    assert PandaSet.looks_like(sequence)
    assert PandaSet.looks_like(sequence.parent)
    assert not PandaSet.looks_like(sequence / "lidar")
    dataset = open_dataset(sequence.parent)
    assert dataset.ids() == [f"{name}_{number:02d}" for name in ("002", "010") for number in range(3)]
    assert dataset[4].cameras == ()
    assert dataset[4].labels() is None
    assert [frame.scene for frame in dataset] == ["002"] * 3 + ["010"] * 3


def test_frames_are_picklable_and_opening_reads_no_table(sequence: Path) -> None:
    frame = PandaSet(sequence)[1]
    copy = pickle.loads(pickle.dumps(frame))
    np.testing.assert_array_equal(copy.points().xyz, frame.points().xyz)
    assert copy.boxes().names == frame.boxes().names
    assert len(copy.labels()) == 2
    for path in sequence.rglob("*.*"):
        path.write_bytes(b"")
    assert PandaSet(sequence).ids() == ["002_00", "002_01", "002_02"]


# ---------------------------------------------------------------- the tables


def test_pandas_reads_the_tests_tables_as_it_reads_published_ones(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas, which the library does without")
    write_pickle(tmp_path / "a.pkl.gz", table(CUBOIDS))
    frame = pandas.read_pickle(tmp_path / "a.pkl.gz")
    assert list(frame.columns) == list(CUBOIDS)
    assert frame["label"].tolist() == CUBOIDS["label"]
    assert frame["yaw"].tolist() == CUBOIDS["yaw"]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_tables_saved_again_by_a_newer_pandas_are_read(tmp_path: Path, protocol: int) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas, which the library does without")
    frame = pandas.DataFrame(
        {name: np.asarray(values, dtype=np.asarray(values).dtype) for name, values in lidar_columns().items()}
    )
    frame["label"] = pandas.Series(["a", "b", "c"], dtype=object)
    frame.columns = pandas.Index(list(frame.columns), dtype=object)
    frame.to_pickle(tmp_path / "a.pkl.gz", protocol=protocol)
    columns = read_frame_pickle(tmp_path / "a.pkl.gz", ("z", "d", "label"))
    np.testing.assert_array_equal(columns["z"], lidar_columns()["z"])
    np.testing.assert_array_equal(columns["d"], [0, 1, 0])
    assert columns["label"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("numpy", "load"), ("pandas", "read_pickle")],
)
def test_a_pickle_that_wants_to_run_something_is_refused_before_it_can(sequence: Path, module: str, name: str) -> None:
    path = sequence / "lidar" / "01.pkl.gz"
    mark = sequence / "mark"
    write_pickle(path, Made(Name(module, name), (f"touch {mark}",), call=True))
    with pytest.raises(DataError, match=rf"{path} asks for {module}\.{name}"):
        PandaSet(sequence)[1].points()
    assert not mark.exists()


def test_the_refused_pickle_would_have_run_if_it_were_opened_as_usual(tmp_path: Path) -> None:
    """So that the test above cannot pass on a pickle that does nothing."""
    write_pickle(tmp_path / "a.pkl.gz", Made(Name("os", "mkdir"), (str(tmp_path / "made"),), call=True))
    pickle.loads(gzip.decompress((tmp_path / "a.pkl.gz").read_bytes()))
    assert (tmp_path / "made").is_dir()


def not_a_frame() -> Any:
    return [1, 2, 3]


def frame_without_columns() -> Any:
    return Made(Name("pandas.core.frame", "DataFrame"), (), {"_data": None})


def strange_values() -> Any:
    made = table({"x": np.array([1.0])})
    made.state["_data"].state[3]["0.14.1"]["blocks"][0]["values"] = "no array"
    return made


@pytest.mark.parametrize("make", [not_a_frame, frame_without_columns, strange_values])
def test_another_object_than_a_table_is_named(sequence: Path, make: Any) -> None:
    path = sequence / "lidar" / "01.pkl.gz"
    write_pickle(path, make())
    with pytest.raises(DataError, match=rf"{path} holds no table"):
        PandaSet(sequence)[1].points()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["lidar", "annotations/semseg", "annotations/cuboids"])
def test_truncated_and_narrow_tables_are_named(sequence: Path, name: str) -> None:
    path = sequence / name / "01.pkl.gz"
    whole = path.read_bytes()
    frame = PandaSet(sequence)[1]
    for damaged in (whole[: len(whole) // 2], gzip.compress(gzip.decompress(whole)[:-40]), b"no gzip"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{path} is no readable pickle of a table"):
            frame.points(), frame.labels(), frame.boxes()
    write_pickle(path, table({"other": np.array([1.0])}))
    with pytest.raises(DataError, match=rf"{path} has no column .*\(it has: other\)"):
        frame.points(), frame.labels(), frame.boxes()


def test_labels_of_another_length_than_the_scan_are_named_with_both_numbers(sequence: Path) -> None:
    write_pickle(sequence / "annotations" / "semseg" / "01.pkl.gz", table({"class": np.array([13, 14])}))
    with pytest.raises(DataError, match=r"01\.pkl\.gz has 2 labels, but .*lidar/01\.pkl\.gz has 3 points"):
        PandaSet(sequence)[1].labels()


@pytest.mark.parametrize("folder", ["lidar", "camera/front_camera"])
def test_poses_that_are_missing_short_or_no_rotation_are_named(sequence: Path, folder: str) -> None:
    path = sequence / folder / "poses.json"
    poses = json.loads(path.read_text())
    for text, message in (
        (json.dumps(poses[:1]), "has 1 entries, none for frame 1"),
        ("[", "is no valid JSON"),
        ("{}", "is not a list"),
        (json.dumps([1, 2, 3]), "entry 1 has no heading w x y z or no position x y z"),
        (json.dumps([{**p, "heading": dict.fromkeys("wxyz", 0)} for p in poses]), "heading of entry 1: .* is zero"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"{path}:? {message}"):
            PandaSet(sequence)[1]
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} cannot be read"):
        PandaSet(sequence)[1]


def test_a_missing_image_and_bad_intrinsics_are_named(sequence: Path) -> None:
    front = sequence / "camera" / "front_camera"
    (front / "intrinsics.json").write_text('{"fx": 0, "fy": 1, "cx": 1, "cy": 1}')
    with pytest.raises(DataError, match=r"intrinsics\.json: fx fy cx cy are 0"):
        PandaSet(sequence)[0]
    (front / "intrinsics.json").write_text('{"fx": 1}')
    with pytest.raises(DataError, match=r"intrinsics\.json has no numbers fx, fy, cx, cy"):
        PandaSet(sequence)[0]
    (front / "01.jpg").unlink()
    (front / "intrinsics.json").write_text('{"fx": 1, "fy": 1, "cx": 1, "cy": 1}')
    dataset = PandaSet(sequence)
    assert len(dataset[0].cameras) == 1
    with pytest.raises(DataError, match=r"front_camera/01\.jpg is missing"):
        dataset[1]


def test_unknown_cameras_lidars_and_folders_are_named(sequence: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no camera 'top'; it has front_camera"):
        open_dataset(f"pandaset:{sequence}#cameras=top")[0]
    with pytest.raises(InputError, match="lidar='velodyne': choose one of pandar64, pandargt, both"):
        PandaSet(sequence, lidar="velodyne")
    with pytest.raises(InputError, match="sweeps=-1"):
        PandaSet(sequence, sweeps=-1)
    with pytest.raises(DataError, match="holds no sequence"):
        PandaSet(tmp_path)
    (sequence / "lidar" / "first.pkl.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"first\.pkl\.gz: the name is no frame number"):
        PandaSet(sequence)
    for path in (sequence / "lidar").glob("*.pkl.gz"):
        path.unlink()
    with pytest.raises(DataError, match=r"lidar holds no \.pkl\.gz frame"):
        PandaSet(sequence)
