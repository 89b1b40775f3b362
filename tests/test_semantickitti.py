"""SemanticKITTI: poses, labels and projections worked out by hand, and the real scans."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_kitti import DEPTH_2, P2, SCAN, VELO_TO_CAM, write_semantickitti

from clever3d.datasets import IGNORE, SemanticKitti, open_dataset
from clever3d.datasets.geometry import apply
from clever3d.datasets.semantickitti_labels import SEMANTICKITTI
from clever3d.errors import DataError, InputError

# ---------------------------------------------------------------- what a frame has


def test_projection_is_p2_times_tr(tmp_path: Path) -> None:
    frame = SemanticKitti(write_semantickitti(tmp_path))[0]
    assert [camera.name for camera in frame.cameras] == ["image_2"]
    # (10, 2, 1) is (-1.9, -0.8, 10.3) in camera 0; P2 gives (-190 + 515 + 200, -80 + 206 - 50, 10.8).
    pixels, depth = frame.cameras[0].project(frame.points().xyz)
    np.testing.assert_allclose(pixels[0], (525 / 10.8, 76 / 10.8), atol=1e-9)
    np.testing.assert_allclose(depth[0], DEPTH_2, atol=1e-12)


def test_points_are_the_file_in_its_order(tmp_path: Path) -> None:
    cloud = SemanticKitti(write_semantickitti(tmp_path))[0].points()
    np.testing.assert_array_equal(cloud.xyz, SCAN[:, :3])
    np.testing.assert_array_equal(cloud.intensity, SCAN[:, 3])  # type: ignore[arg-type]


def test_poses_are_of_the_camera_and_become_those_of_the_lidar(tmp_path: Path) -> None:
    first, second, last = list(SemanticKitti(write_semantickitti(tmp_path), sequences=("08",)))
    assert first.points_to_world is not None
    assert second.points_to_world is not None
    assert last.points_to_world is not None
    np.testing.assert_allclose(first.points_to_world, np.eye(4), atol=1e-12)
    # 5 m along the camera's z are 5 m ahead
    np.testing.assert_allclose(apply(second.points_to_world, SCAN[:1, :3]), [[15, 2, 1]], atol=1e-12)
    # By hand: (10, 2, 1) is (-1.9, -0.8, 10.3) in the camera; the quarter turn to the right gives (10.3, -0.8, 1.9),
    # 15 m ahead (10.3, -0.8, 16.9); back in velodyne axes (16.9 - 0.3, -(10.3 - 0.1), -(-0.8 - 0.2)).
    np.testing.assert_allclose(apply(last.points_to_world, SCAN[:1, :3]), [[16.6, -10.2, 1.0]], atol=1e-12)


def test_times_are_of_the_line_with_the_scans_number(tmp_path: Path) -> None:
    frames = list(SemanticKitti(write_semantickitti(tmp_path), sequences=("00",)))
    assert [frame.timestamp for frame in frames] == [0, 0.1037875, 0.311]
    assert [frame.cameras[0].timestamp for frame in frames] == [0, 0.1037875, 0.311]


def test_labels_have_the_class_in_the_low_and_the_instance_in_the_high_half(tmp_path: Path) -> None:
    frame = SemanticKitti(write_semantickitti(tmp_path))[0]
    labels = pickle.loads(pickle.dumps(frame)).labels()
    np.testing.assert_array_equal(labels.semantic, [252, 40])
    np.testing.assert_array_equal(labels.instance, [5, 0])
    np.testing.assert_array_equal(labels.train_ids, [0, 8])  # a moving car is a car
    assert labels.semantic.dtype == labels.instance.dtype == np.int32
    assert labels.path.endswith("labels/000000.label")
    assert frame.boxes() is None


def test_sweeps_lie_on_the_frame(tmp_path: Path) -> None:
    data = open_dataset(f"semantickitti:{write_semantickitti(tmp_path)}#sequences=00&sweeps=5")
    first, second, last = list(data)
    assert first.sweeps == ()
    assert [sweep.points_path.stem for sweep in last.sweeps] == ["000001", "000000"]
    np.testing.assert_allclose([sweep.seconds for sweep in last.sweeps], [0.1037875 - 0.311, -0.311])
    cloud = second.accumulated()  # the vehicle has gone 5 m ahead
    np.testing.assert_allclose(cloud.xyz, [[10, 2, 1], [-10, 2, 1], [5, 2, 1], [-15, 2, 1]], atol=1e-6)
    np.testing.assert_allclose(cloud.time, [0, 0, -0.1037875, -0.1037875], atol=1e-7)  # type: ignore[arg-type]
    # one point of the world, seen from two places: (10, 2, 1) of the last frame is (11.6, -10.2, 1) of the second
    assert last.points_to_world is not None
    sweep = last.sweeps[0]
    np.testing.assert_allclose(apply(sweep.to_frame, np.array([[11.6, -10.2, 1.0]])), SCAN[:1, :3], atol=1e-9)
    assert len(SemanticKitti(tmp_path, sweeps=1)[2].sweeps) == 1


# ---------------------------------------------------------------- the label table


def test_the_benchmark_has_its_19_classes_in_their_order() -> None:
    assert SEMANTICKITTI.classes == (
        "car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road",
        "parking", "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole",
        "traffic-sign",
    )  # fmt: skip
    assert len(SEMANTICKITTI.raw_names) == 34


def test_the_learning_map_is_that_of_semantic_kitti_yaml() -> None:
    # the file's rows `id: class`, its 0 being ignored
    listed = {
        0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11,
        49: 12, 50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0, 252: 1, 253: 7, 254: 6,
        255: 8, 256: 5, 257: 5, 258: 4, 259: 5,
    }  # fmt: skip
    ids = np.array(list(listed))
    wanted = [IGNORE if value == 0 else value - 1 for value in listed.values()]
    np.testing.assert_array_equal(SEMANTICKITTI.train_ids(ids), wanted)


def test_colours_are_red_green_blue() -> None:
    color = dict(zip(SEMANTICKITTI.classes, SEMANTICKITTI.colors, strict=True))
    assert color["car"] == (100, 150, 245)  # light blue in the paper's figures; the yaml has 245, 150, 100
    assert color["building"] == (255, 200, 0)  # yellow
    assert color["traffic-sign"] == (255, 0, 0)  # red
    assert color["vegetation"] == (0, 175, 0)


# ---------------------------------------------------------------- splits and options


def test_splits_are_the_official_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers = [f"{number:02d}" for number in range(22)]
    write_semantickitti(tmp_path, tuple(numbers))

    def scenes(split: str) -> list[str]:
        return sorted({frame.scene for frame in SemanticKitti(tmp_path, split=split)})

    assert scenes("train") == numbers[:8] + numbers[9:11]
    assert scenes("val") == ["08"]
    assert scenes("test") == numbers[11:]
    assert len(SemanticKitti(tmp_path)) == 66
    assert not caplog.records
    shutil.rmtree(tmp_path / "sequences" / "04")
    assert len(scenes("train")) == 9
    assert "split train without the sequences 04" in caplog.text


def test_sequences_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    write_semantickitti(tmp_path)
    assert SemanticKitti(tmp_path, sequences=("08", "00")).ids()[::3] == ["08_000000", "00_000000"]
    data = open_dataset(f"semantickitti:{tmp_path}#sequences=08")
    assert data.ids() == [frame.id for frame in data] == ["08_000000", "08_000001", "08_000003"]
    with pytest.raises(DataError, match=r"sequences lacks the sequence 8 \(there: 00, 08\)"):
        SemanticKitti(tmp_path, sequences=("8",))
    with pytest.raises(DataError, match=r"lacks the sequence 11, 12, .*; download it"):
        SemanticKitti(tmp_path, split="test")
    with pytest.raises(DataError, match="two frames have the id '08_000000'"):
        SemanticKitti(tmp_path, sequences=("08", "08"))


@pytest.mark.parametrize("options", ["split=valid", "split=val&sequences=08", "sweeps=-1", "sweeps=many"])
def test_a_wrong_option_is_an_input_error(tmp_path: Path, options: str) -> None:
    write_semantickitti(tmp_path)
    with pytest.raises(InputError, match=options.split("=")[0]):
        open_dataset(f"semantickitti:{tmp_path}#{options}")


def test_the_folder_of_kittis_archives_is_found(tmp_path: Path) -> None:
    write_semantickitti(tmp_path / "dataset")
    assert SemanticKitti.looks_like(tmp_path)
    assert SemanticKitti(tmp_path).ids() == SemanticKitti(tmp_path / "dataset").ids()


# ---------------------------------------------------------------- what may be missing


def test_scans_alone_are_enough(tmp_path: Path) -> None:
    sequence = write_semantickitti(tmp_path, ("11",)) / "sequences" / "11"
    for name in ("labels", "image_2"):
        shutil.rmtree(sequence / name)
    for name in ("calib.txt", "poses.txt", "times.txt"):
        (sequence / name).unlink()
    frame = SemanticKitti(tmp_path)[1]
    assert frame.cameras == frame.sweeps == ()
    assert frame.timestamp is frame.points_to_world is frame.labels() is None
    assert len(frame.points().xyz) == 2
    with pytest.raises(DataError, match=r"11: sweeps need calib\.txt, poses\.txt, times\.txt"):
        SemanticKitti(tmp_path, sweeps=2)
    with pytest.raises(DataError, match=r"no camera 'image_2'; it has none"):
        SemanticKitti(tmp_path, cameras=("image_2",))


def test_images_need_the_calibration(tmp_path: Path) -> None:
    sequence = write_semantickitti(tmp_path, ("08",)) / "sequences" / "08"
    (sequence / "calib.txt").unlink()
    with pytest.raises(DataError, match=r"08/calib\.txt cannot be read"):
        SemanticKitti(tmp_path)
    assert SemanticKitti(tmp_path, cameras=())[0].points_to_world is None  # poses need it too


@pytest.mark.parametrize(
    ("folder", "file"), [("labels", "000001.label"), ("image_2", "000001.png")], ids=["labels", "image_2"]
)
def test_the_file_that_a_scan_lacks_is_named(tmp_path: Path, folder: str, file: str) -> None:
    path = write_semantickitti(tmp_path, ("08",)) / "sequences" / "08" / folder / file
    path.unlink()
    with pytest.raises(DataError, match=rf"08/{folder}/{file} is missing, but .*000001\.bin exists"):
        SemanticKitti(tmp_path)


@pytest.mark.parametrize("folder", ["velodyne", "labels", "image_2"])
def test_an_empty_folder_is_named(tmp_path: Path, folder: str) -> None:
    for path in (write_semantickitti(tmp_path, ("08",)) / "sequences" / "08" / folder).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=rf"08/{folder} holds no \."):
        SemanticKitti(tmp_path)


# ---------------------------------------------------------------- broken data


@pytest.mark.parametrize(
    ("cut", "message"), [(4, "has 1 labels, but"), (1, r"has 1\.75 labels, but"), (8, "has 0 labels, but")]
)
def test_labels_of_another_length_than_the_scan_are_named(tmp_path: Path, cut: int, message: str) -> None:
    path = write_semantickitti(tmp_path, ("08",)) / "sequences" / "08" / "labels" / "000000.label"
    path.write_bytes(path.read_bytes()[: 8 - cut])
    with pytest.raises(DataError, match=rf"labels/000000\.label {message} .*velodyne/000000\.bin has 2 points"):
        SemanticKitti(tmp_path)[0].labels()


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    path = write_semantickitti(tmp_path, ("08",)) / "sequences" / "08" / "labels" / "000000.label"
    np.array([10, 12], dtype="<u4").tofile(path)
    labels = SemanticKitti(tmp_path)[0].labels()
    assert labels is not None
    with pytest.raises(DataError, match=r"labels/000000\.label: semantickitti has no label 12"):
        _ = labels.train_ids


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("calib.txt", f"P2: {P2}\n", "calib.txt has no numeric entry 'Tr'"),
        ("calib.txt", f"P2: {P2}\nTr: 1 0 0 0 0 1 0 0 0 0 -1 0\n", "calib.txt: Tr: .* mirror image"),
        ("calib.txt", f"Tr: {VELO_TO_CAM}\n", "calib.txt has no numeric entry 'P2'"),
        ("poses.txt", "1 0 0 0 0 1 0 0 0 0 1\n", "poses.txt: line 1 has 11 values, expected 12"),
        ("poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0 0 1 0 0 0 0 1 x\n", "poses.txt: line 2 is no poses"),
        ("poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n1 0.1 0 0 0 1 0 0 0 0 1 0\n", "poses.txt: line 2: .* not orthogonal"),
        ("times.txt", "0 1\n", "times.txt: line 1 has 2 values, expected 1"),
    ],
)
def test_a_damaged_text_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (write_semantickitti(tmp_path, ("08",)) / "sequences" / "08" / name).write_text(text)
    with pytest.raises(DataError, match=message):
        SemanticKitti(tmp_path)


@pytest.mark.parametrize("name", ["poses.txt", "times.txt"])
def test_a_file_with_too_few_lines_is_named(tmp_path: Path, name: str) -> None:
    path = write_semantickitti(tmp_path, ("08",)) / "sequences" / "08" / name
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    data = SemanticKitti(tmp_path)
    assert data[1].id == "08_000001"
    with pytest.raises(DataError, match=rf"{name} has 2 lines, but there is a scan 3"):
        data[2]


def test_a_truncated_scan_is_named(tmp_path: Path) -> None:
    path = write_semantickitti(tmp_path, ("08",)) / "sequences" / "08" / "velodyne" / "000000.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"000000\.bin has 29 bytes"):
        SemanticKitti(tmp_path)[0].points()
    with pytest.raises(DataError, match=r"has 2 labels, but .*000000\.bin has 1 points"):
        SemanticKitti(tmp_path)[0].labels()


# ---------------------------------------------------------------- real scans


def test_the_real_scan_is_labelled_as_listed(shared_data: Path) -> None:
    listed = json.loads((shared_data / "expected.json").read_text())["figures"]["semantickitti/000000"]
    data = open_dataset(f"semantickitti:{shared_data / 'semantickitti'}#split=val")
    assert data.ids() == ["08_000000"]
    frame = data[0]
    cloud, labels = frame.points(), frame.labels()
    assert labels is not None
    assert labels.instance is not None
    assert len(cloud.xyz) == len(labels) == listed["n_points"]
    assert len(np.unique(labels.semantic)) == listed["n_classes"]
    assert len(np.unique(labels.instance)) == listed["n_instances"]
    assert (labels.semantic > 0).mean() == pytest.approx(listed["labelled"], abs=1e-9)
    assert set(labels.train_ids.tolist()) <= {*range(19), IGNORE}
    # what the classes mean shows in the heights: the road lies a sensor's height below, vegetation stands above it
    height = {name: cloud.xyz[labels.train_ids == i, 2] for i, name in enumerate(SEMANTICKITTI.classes)}
    assert -2.0 < float(np.median(height["road"])) < -1.4
    assert float(np.quantile(height["vegetation"], 0.9)) > 0


def test_real_consecutive_scans_are_one_sequence(shared_data_more: Path) -> None:
    data = open_dataset(shared_data_more / "semantickitti")
    assert data.ids() == ["00_000000", "00_000001", "00_000002"]
    for frame in data:
        labels = frame.labels()
        assert labels is not None
        assert len(labels) == len(frame.points().xyz)
        assert (labels.train_ids != IGNORE).mean() > 0.9
        assert frame.cameras == ()
