"""KITTI object: numbers worked out by hand, and real frames against an independent program's figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_kitti import (
    DEPTH_2,
    DEPTH_3,
    IDENTITY,
    P2,
    PIXEL_2,
    PIXEL_3,
    SCAN,
    VELO_TO_CAM,
    seen_by,
    write_kitti,
)

from clever3d.datasets import IGNORE, KittiObject, open_dataset
from clever3d.datasets.geometry import rotation_about_z
from clever3d.errors import DataError, InputError

OBJECT = "0.00 0 -0.20 712.40 143.00 810.73 307.92"  # truncated occluded alpha left top right bottom


def write_label(root: Path, *lines: str, frame: str = "001000", calib: str | None = None) -> Path:
    folder = root / "training" / "label_2"
    folder.mkdir(exist_ok=True)
    (folder / f"{frame}.txt").write_text("".join(f"{line}\n" for line in lines))
    if calib is not None:
        (root / "training" / "calib" / f"{frame}.txt").write_text(calib)
    return root


def straight(rectification: str = IDENTITY) -> str:
    return f"P2: {P2}\nR0_rect: {rectification}\nTr_velo_to_cam: {VELO_TO_CAM}\n"


# ---------------------------------------------------------------- points and cameras


def test_projection_equals_the_one_worked_out_by_hand(tmp_path: Path) -> None:
    frame = KittiObject(write_kitti(tmp_path, stereo=True))[0]
    xyz = frame.points().xyz
    for camera, pixel, at in zip(frame.cameras, (PIXEL_2, PIXEL_3), (DEPTH_2, DEPTH_3), strict=True):
        pixels, depth = camera.project(xyz)
        np.testing.assert_allclose(pixels[0], pixel, atol=1e-9)
        np.testing.assert_allclose(depth[0], at, atol=1e-12)
        np.testing.assert_array_equal(camera.intrinsics, [[100, 0, 50], [0, 100, 20], [0, 0, 1]])
        assert depth[1] < 0  # behind
        assert np.isnan(pixels[1]).all()
        assert camera.image_size is None


def test_points_are_the_file_in_its_order(tmp_path: Path) -> None:
    cloud = KittiObject(write_kitti(tmp_path))[0].points()
    np.testing.assert_array_equal(cloud.xyz, SCAN[:, :3])
    assert cloud.intensity is not None
    np.testing.assert_array_equal(cloud.intensity, SCAN[:, 3])
    assert cloud.xyz.dtype == cloud.intensity.dtype == np.float32


def test_the_cameras_are_those_there_or_those_asked_for(tmp_path: Path) -> None:
    write_kitti(tmp_path, stereo=True)

    def names(spec: str) -> list[str]:
        return [camera.name for camera in open_dataset(f"kitti:{tmp_path}{spec}")[0].cameras]

    assert names("") == ["image_2", "image_3"]
    assert names("#cameras=image_3") == ["image_3"]
    assert names("#cameras=image_3,image_2") == ["image_3", "image_2"]
    assert names("#cameras=") == []
    with pytest.raises(DataError, match=r"training: there is no camera 'image_0'; it has image_2, image_3"):
        names("#cameras=image_0")


def test_without_images_only_a_reader_that_asks_for_none_is_content(tmp_path: Path) -> None:
    images = write_kitti(tmp_path) / "training" / "image_2"
    images.rename(images.with_name("pictures"))
    with pytest.raises(DataError, match=r"image_2 does not exist; .*cameras=\(\) reads no images"):
        KittiObject(tmp_path)
    assert KittiObject(tmp_path, cameras=())[0].cameras == ()


def test_ids_and_scenes_come_from_the_names(tmp_path: Path) -> None:
    data = KittiObject(write_kitti(tmp_path), scene=3)
    assert data.ids() == [frame.id for frame in data] == ["001000", "001004", "005000"]
    assert [frame.scene for frame in data] == ["001", "001", "005"]
    assert [frame.scene for frame in KittiObject(tmp_path)] == ["001000", "001004", "005000"]
    assert data[0].timestamp is data[0].points_to_world is None
    assert data[0].labels() is data[0].boxes() is None


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


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize(
    ("angle", "yaw"),
    [(0, -np.pi / 2), (-np.pi / 2, 0), (np.pi / 3, -5 * np.pi / 6), (3, 1.5 * np.pi - 3)],
)
def test_a_box_stands_where_it_does_by_hand(tmp_path: Path, angle: float, yaw: float) -> None:
    # Its bottom is at (1, 1.5, 20) in camera axes and it is 1.5 m high, so its middle is at (1, 0.75, 20), which is
    # (20 - 0.3, -(1 - 0.1), -(0.75 - 0.2)) in the velodyne's.
    root = write_label(write_kitti(tmp_path), f"Car {OBJECT} 1.5 1.6 4 1 1.5 20 {angle}", calib=straight())
    boxes = KittiObject(root)[0].boxes()
    assert boxes is not None
    assert boxes.names == ("Car",)
    np.testing.assert_allclose(boxes.centers, [[19.7, -0.9, -0.55]], atol=1e-12)
    np.testing.assert_array_equal(boxes.sizes, [[4, 1.6, 1.5]])
    np.testing.assert_allclose(boxes.yaws, [yaw], atol=1e-12)
    np.testing.assert_allclose(boxes.rotations[0, :, 2], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(boxes.rotations), 1, atol=1e-12)
    assert boxes.velocities is boxes.track_ids is boxes.num_points is None


def test_a_box_upright_for_a_tilted_camera_is_tilted_for_the_lidar(tmp_path: Path) -> None:
    # The rectified camera looks down by a: R0_rect turns about x. Its up (0, -1, 0) is (0, -cos a, sin a) in camera 0,
    # which is (sin a, 0, cos a) in the velodyne's axes. A rotation about z alone would leave (0, 0, 1).
    a = 0.1
    rectification = f"1 0 0 0 {np.cos(a):.9f} {-np.sin(a):.9f} 0 {np.sin(a):.9f} {np.cos(a):.9f}"
    line = f"Van {OBJECT} 2 2 5 0 1 30 -1.5707963267948966"
    boxes = KittiObject(write_label(write_kitti(tmp_path), line, calib=straight(rectification)))[0].boxes()
    assert boxes is not None
    np.testing.assert_allclose(boxes.rotations[0, :, 2], [np.sin(a), 0, np.cos(a)], atol=1e-8)
    np.testing.assert_allclose(boxes.rotations[0, :, 0], [np.cos(a), 0, -np.sin(a)], atol=1e-8)


def test_dont_care_is_left_out_and_scores_are_allowed(tmp_path: Path) -> None:
    dont_care = "DontCare -1 -1 -10 5.00 229.89 214.12 367.61 -1 -1 -1 -1000 -1000 -1000 -10"
    kept = f"Cyclist {OBJECT} 1.7 0.6 1.8 4.6 1.3 45.8 -1.55 0.93"
    data = KittiObject(write_label(write_kitti(tmp_path), dont_care, kept, dont_care))
    first, second = data[0].boxes(), data[1].boxes()
    assert first is not None
    assert first.names == ("Cyclist",)
    assert second is None  # it has no file
    write_label(tmp_path, dont_care)
    write_label(tmp_path, frame="001004")
    for frame in (KittiObject(tmp_path)[0], KittiObject(tmp_path)[1]):
        boxes = frame.boxes()
        assert boxes is not None
        assert len(boxes) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"Car {OBJECT} 1.5 1.6 4 1 1.5 20", "line 2 has 14 columns, expected 15"),
        (f"Car {OBJECT} 1.5 1.6 four 1 1.5 20 0", "line 2 has something that is no number: 1.5 1.6 four"),
        (f"Car {OBJECT} 1.5 -1.6 4 1 1.5 20 0", "line 2: Car has h w l = 1.5 -1.6 4"),
        (f"Car {OBJECT} 1.5 1.6 4 1 nan 20 0", "line 2: Car"),
    ],
)
def test_a_damaged_label_names_its_line(tmp_path: Path, line: str, message: str) -> None:
    root = write_label(write_kitti(tmp_path), f"Car {OBJECT} 1.5 1.6 4 1 1.5 20 0", line)
    with pytest.raises(DataError, match=rf"label_2/001000\.txt: {message}"):
        KittiObject(root)[0].boxes()


# ---------------------------------------------------------------- predicted labels and splits


def write_pseudo(root: Path, values: tuple[int, ...] = (13, 255)) -> Path:
    folder = root / "training" / "pseudo_sem"
    folder.mkdir()
    for scan in (root / "training" / "velodyne").iterdir():
        np.array(values, dtype="u1").tofile(folder / f"{scan.stem}.u1")
    return root


def test_predicted_labels_are_read_when_asked_for(tmp_path: Path) -> None:
    write_pseudo(write_kitti(tmp_path))
    assert KittiObject(tmp_path)[0].labels() is None
    data = open_dataset(f"kitti:{tmp_path}#labels=pseudo_sem")
    assert data.label_spec is not None
    assert data.label_spec.name == "cityscapes-pseudo"
    labels = data[0].labels()
    assert labels is not None
    np.testing.assert_array_equal(labels.semantic, [13, 255])
    np.testing.assert_array_equal(labels.train_ids, [13, IGNORE])
    assert data.label_spec.classes[13] == "car"
    assert labels.instance is None
    with pytest.raises(InputError, match=r"labels='label_2'.*'pseudo_sem'"):
        KittiObject(tmp_path, labels="label_2")


def test_predicted_labels_of_another_length_or_id_are_named(tmp_path: Path) -> None:
    data = KittiObject(write_pseudo(write_kitti(tmp_path), (1, 2, 3)), labels="pseudo_sem")
    with pytest.raises(DataError, match=r"pseudo_sem/001000\.u1 has 3 labels, but .*001000\.bin has 2 points"):
        data[0].labels()
    np.array([1, 40], dtype="u1").tofile(tmp_path / "training" / "pseudo_sem" / "001000.u1")
    labels = data[0].labels()
    assert labels is not None
    with pytest.raises(DataError, match=r"001000\.u1: cityscapes-pseudo has no label 40"):
        _ = labels.train_ids
    (tmp_path / "training" / "pseudo_sem" / "001004.u1").unlink()
    with pytest.raises(DataError, match=r"pseudo_sem/001004\.u1 is missing"):
        KittiObject(tmp_path, labels="pseudo_sem")


def test_a_split_is_what_a_list_in_the_folder_says(tmp_path: Path) -> None:
    lists = write_kitti(tmp_path) / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("005000\n001000\n")
    (lists / "val.txt").write_text("001004\n")
    assert open_dataset(f"kitti:{tmp_path}#split=train").ids() == ["001000", "005000"]
    assert KittiObject(tmp_path, split="val").ids() == ["001004"]
    with pytest.raises(DataError, match=r"ImageSets/trainval\.txt does not exist.*\(lists there: train, val\)"):
        KittiObject(tmp_path, split="trainval")
    with pytest.raises(DataError, match=r"testing does not exist; split=test"):
        KittiObject(tmp_path, split="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("001000\n000007\n", "line 2 lists the frame '000007', which has no scan"),
        ("001000\nimage\n", "line 2 lists the frame 'image'"),
        ("001000\n001000\n", "line 2 lists the frame '001000' a second time"),
        ("", "lists no frame"),
    ],
)
def test_a_list_that_does_not_fit_the_folder_is_named(tmp_path: Path, text: str, message: str) -> None:
    lists = write_kitti(tmp_path) / "ImageSets"
    lists.mkdir()
    (lists / "val.txt").write_text(text)
    with pytest.raises(DataError, match=rf"val\.txt:? {message}"):
        KittiObject(tmp_path, split="val")


def test_the_test_split_is_the_folder_of_that_name(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    (write_kitti(tmp_path / "other", ("000003",)) / "training").rename(tmp_path / "testing")
    assert KittiObject(tmp_path, split="test").ids() == ["000003"]
    assert "000003" not in KittiObject(tmp_path).ids()


# ---------------------------------------------------------------- broken data


@pytest.mark.parametrize(("folder", "file"), [("calib", "001004.txt"), ("image_2", "001004.png")])
def test_the_file_that_a_frame_lacks_is_named(tmp_path: Path, folder: str, file: str) -> None:
    (write_kitti(tmp_path) / "training" / folder / file).unlink()
    with pytest.raises(DataError, match=rf"{folder}/{file} is missing.*001004\.bin"):
        KittiObject(tmp_path)


def test_a_missing_folder_says_which_layout_it_needs(tmp_path: Path) -> None:
    folder = write_kitti(tmp_path) / "training" / "calib"
    folder.rename(folder.with_name("calibration"))
    with pytest.raises(DataError, match=r"calib does not exist; .*velodyne,image_2,calib"):
        KittiObject(tmp_path)


@pytest.mark.parametrize("folder", ["velodyne", "image_2", "calib"])
def test_an_empty_folder_is_named(tmp_path: Path, folder: str) -> None:
    for path in (write_kitti(tmp_path) / "training" / folder).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=rf"{folder} holds no \."):
        KittiObject(tmp_path)


def test_two_files_of_one_number_and_names_without_one_are_refused(tmp_path: Path) -> None:
    scans = write_kitti(tmp_path) / "training" / "velodyne"
    SCAN.tofile(scans / "1000.bin")
    with pytest.raises(DataError, match=r"1000\.bin and 001000\.bin have the same frame number"):
        KittiObject(tmp_path)
    (scans / "1000.bin").rename(scans / "copy of 1000.bin")
    with pytest.raises(DataError, match=r"copy of 1000\.bin: the name is no frame number"):
        KittiObject(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"P2: {P2}\nR0_rect: {IDENTITY}\n", " has no numeric entry 'Tr_velo_to_cam'"),
        (f"P2: {P2} 7\nR0_rect: {IDENTITY}\nTr_velo_to_cam: {VELO_TO_CAM}", ": P2 has 13 values, expected 12"),
        (straight().replace(P2, "1 0 0 0 0 1 0 0 0 0 1 nan"), ": P2 has 12 values, expected 12 finite"),
        (straight().replace(P2, "0 " * 12), ": P2 is no projection"),
        (straight("-1 0 0 0 1 0 0 0 1"), ": R0_rect: determinant -1; .* mirror image"),
        (straight("2 0 0 0 2 0 0 0 2"), ": R0_rect: determinant 8; .* rotation times 2"),
        (straight("1 0 0 0 1 0.02 0 0 1"), ": R0_rect: .* not orthogonal"),
        (straight().replace("Tr_velo_to_cam: 0 -1", "Tr_velo_to_cam: 0 1"), ": Tr_velo_to_cam: .* mirror image"),
        ("P2: \xff", " is no KITTI text"),
    ],
)
def test_a_damaged_calibration_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write_kitti(tmp_path) / "training" / "calib" / "001000.txt"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=rf"calib/001000\.txt{message}"):
        KittiObject(tmp_path)[0]


def test_a_truncated_scan_is_named(tmp_path: Path) -> None:
    path = write_kitti(tmp_path) / "training" / "velodyne" / "001000.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"001000\.bin"):
        KittiObject(tmp_path)[0].points()


# ---------------------------------------------------------------- real frames


@pytest.fixture(scope="module")
def figures(shared_data: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((shared_data / "expected.json").read_text())["figures"]
    return found


def test_real_kitti_scans_are_seen_as_listed(shared_data: Path, figures: dict[str, dict[str, object]]) -> None:
    frames = list(open_dataset(f"kitti:{shared_data / 'kitti'}"))
    assert len(frames) == 12
    for frame in frames:
        listed = figures[f"kitti/training/{frame.id}"]
        assert seen_by(frame) == (listed["n_points"], listed["in_image"])


def test_real_boxes_hold_as_many_points_as_listed(shared_data: Path, figures: dict[str, dict[str, object]]) -> None:
    total, upright_total = [], []
    for frame in open_dataset(f"kitti:{shared_data / 'kitti'}"):
        listed, boxes = figures[f"kitti/training/{frame.id}"], frame.boxes()
        assert (boxes is None) == ("n_boxes" not in listed)
        if boxes is None:
            continue
        xyz = frame.points().xyz
        inside = boxes.contains(xyz).sum(axis=1)
        assert (len(boxes), int(inside.sum()), int((inside == 0).sum())) == (
            listed["n_boxes"],
            listed["points_in_boxes"],
            listed["n_empty_boxes"],
        )
        upright = replace(boxes, rotations=np.array([rotation_about_z(yaw) for yaw in boxes.yaws]))
        total.append(int(inside.sum()))
        upright_total.append(int(upright.contains(xyz).sum()))
    assert total == [376, 97, 1418, 680, 103, 70]
    assert sum(a != b for a, b in zip(total, upright_total, strict=True)) == 5  # the tilt, 0.8 degrees, is seen


def test_real_predictions_are_as_many_as_listed(shared_data: Path, figures: dict[str, dict[str, object]]) -> None:
    for frame in open_dataset(f"kitti:{shared_data / 'kitti'}#labels=pseudo_sem"):
        labels = frame.labels()
        assert labels is not None
        listed, classes = figures[f"kitti/training/{frame.id}"], labels.train_ids
        assert len(labels) == listed["n_points"]
        assert int((classes != IGNORE).sum()) == listed["n_pseudo"]
        assert len(set(classes.tolist()) - {IGNORE}) == listed["n_pseudo_classes"]


def test_real_kitti_drives_have_their_drive_as_scene(shared_data_more: Path) -> None:
    dataset = open_dataset(f"kitti:{shared_data_more / 'kitti_drives'}#scene=3")
    assert len(dataset) == 113
    scenes = [frame.scene for frame in dataset]
    assert {scene: scenes.count(scene) for scene in scenes} == {"001": 27, "005": 39, "027": 47}
    n_points, n_seen = seen_by(dataset[0])
    assert 0.6 < n_seen / n_points < 0.7  # cropped to the camera's horizontal view: the rest is above or below


def test_real_stereo_cameras_see_a_point_half_a_metre_apart(shared_data_more: Path) -> None:
    frame = open_dataset(shared_data_more / "kitti_stereo")[0]
    assert [camera.name for camera in frame.cameras] == ["image_2", "image_3"]
    xyz = frame.points().xyz
    for camera in frame.cameras:
        n_points, n_seen = seen_by(replace(frame, cameras=(camera,)))
        assert 0.14 < n_seen / n_points < 0.18
    (left, depth), (right, _) = (camera.project(xyz) for camera in frame.cameras)
    ahead = depth > 5
    # P2 and P3 are (fx t) apart: 44.85728 + 339.5242 over fx = 721.5377 is the baseline, 0.5327 m
    np.testing.assert_allclose((left - right)[ahead, 0] * depth[ahead] / 721.5377, 0.5327, atol=2e-3)


def counted_in_the_camera(xyz: np.ndarray, calibration: Path, label: Path) -> list[int]:
    """Points [N, 3] in each box, counted in rectified camera axes, where the boxes stand upright."""
    values = {line.split(":")[0]: np.array(line.split()[1:], float) for line in calibration.open() if ":" in line}
    camera = (
        np.c_[xyz, np.ones(len(xyz))] @ values["Tr_velo_to_cam"].reshape(3, 4).T @ values["R0_rect"].reshape(3, 3).T
    )
    counts = []
    for words in (line.split() for line in label.open()):
        if words[0] != "DontCare":
            h, w, l, x, y, z, ry = map(float, words[8:15])  # noqa: E741
            d = camera - [x, y - h / 2, z]
            along = d[:, 0] * np.cos(ry) - d[:, 2] * np.sin(ry)
            across = d[:, 0] * np.sin(ry) + d[:, 2] * np.cos(ry)
            counts.append(int(((abs(along) < l / 2) & (abs(across) < w / 2) & (abs(d[:, 1]) < h / 2)).sum()))
    return counts


def test_real_copy_without_reflectance_has_boxes_and_no_intensity(shared_data_more: Path) -> None:
    folder = shared_data_more / "kitti_xyz_only"
    dataset = open_dataset(folder)
    assert dataset.ids() == ["000035", "000060"]
    for frame in dataset:
        cloud, boxes = frame.points(), frame.boxes()
        assert cloud.intensity is None
        assert boxes is not None
        counts = counted_in_the_camera(cloud.xyz, folder / f"calib/{frame.id}.txt", folder / f"label_2/{frame.id}.txt")
        assert sum(counts) > 200
        assert boxes.contains(cloud.xyz).sum(axis=1).tolist() == counts
        n_points, n_seen = seen_by(frame)
        assert 0.13 < n_seen / n_points < 0.19
