"""A rig of one's own: what the reader makes of rig.yaml, against closed forms and the calibrations of real sets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rig_frames
import yaml
from PIL import Image

from clever3d.datasets import Rig, open_dataset
from clever3d.datasets.rig_files import slerp
from clever3d.errors import DataError

LOOK_FORWARD = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]  # from FLU to camera axes


def config(**changes: Any) -> dict[str, Any]:
    camera = {
        "files": "front/*.png",
        "image_size": [64, 48],
        "intrinsics": {"fx": 50, "fy": 50, "cx": 31.5, "cy": 23.5},
        "lidar_to_camera": {"rotation": LOOK_FORWARD, "translation": [0, 0, 0]},
    }
    return {"lidar": {"files": "lidar/*.npy", "axes": "flu"}, "cameras": {"front": camera}, **changes}


def points(x: float, y: float, z: float) -> np.ndarray:
    """One point of interest among enough others that it is a scan."""
    return np.array([[x, y, z, 0.5], [20, 1, 0, 0.1]], dtype=np.float32)


def make(folder: Path, settings: dict[str, Any], stems: tuple[str, ...] = ("000001",), images: Any = None) -> Path:
    (folder / "lidar").mkdir(parents=True, exist_ok=True)
    for stem in stems:
        np.save(folder / "lidar" / f"{stem}.npy", points(10, 1, 2))
    for name in settings.get("cameras", {}):
        (folder / name).mkdir(exist_ok=True)
        for stem in stems if images is None else images:
            Image.new("RGB", (64, 48)).save(folder / name / f"{stem}.png")
    (folder / "rig.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


def test_a_point_lands_where_the_pinhole_formula_says(tmp_path: Path) -> None:
    settings = config()
    settings["cameras"]["front"]["lidar_to_camera"]["translation"] = [0.5, 0.0, 2.0]
    frame = open_dataset(f"rig:{make(tmp_path, settings)}")[0]
    pixels, depth = frame.cameras[0].project(frame.points().xyz[:1])
    # camera: x = -1 + 0.5, y = -2, z = 10 + 2
    assert depth[0] == pytest.approx(12)
    assert pixels[0] == pytest.approx([31.5 + 50 * -0.5 / 12, 23.5 + 50 * -2 / 12])


@pytest.mark.parametrize("form", ["matrix", "rotation", "quaternion"])
def test_every_form_of_the_extrinsics_gives_the_same_camera(tmp_path: Path, form: str) -> None:
    settings = config()
    camera = settings["cameras"]["front"]
    # The inverse of LOOK_FORWARD with t = (0.1, 0.2, 0.3): R^T and -R^T t, by hand.
    rotation, translation = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], [-0.3, 0.1, 0.2]
    forms = {
        "matrix": {"matrix": [[*row, t] for row, t in zip(rotation, translation, strict=True)] + [[0, 0, 0, 1]]},
        "rotation": {"rotation": rotation, "translation": translation},
        "quaternion": {"quaternion": [0.5, -0.5, 0.5, -0.5], "translation": translation},
    }
    del camera["lidar_to_camera"]
    camera["camera_to_lidar"] = forms[form]
    found = Rig(make(tmp_path, settings))[0].cameras[0].points_to_camera
    expected = np.array([[0, -1, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, 0.3], [0, 0, 0, 1]])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_axes_of_the_files_do_not_move_the_pixels(tmp_path: Path) -> None:
    settings = config()
    one = Rig(make(tmp_path / "flu", settings))[0]
    # The same scene in x right, y forward, z up; so are the extrinsics.
    settings["lidar"]["axes"] = "rfu"
    settings["cameras"]["front"]["lidar_to_camera"]["rotation"] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    folder = make(tmp_path / "rfu", settings)
    np.save(folder / "lidar" / "000001.npy", points(-1, 10, 2))
    other = Rig(folder)[0]
    np.testing.assert_array_equal(other.points().xyz[0], [10, 1, 2])
    np.testing.assert_allclose(
        other.cameras[0].project(other.points().xyz[:1])[0], one.cameras[0].project(one.points().xyz[:1])[0]
    )


def test_left_handed_files_take_extrinsics_in_named_axes(tmp_path: Path) -> None:
    settings = config()
    settings["lidar"].update(axes="fru", extrinsics_axes="flu")
    frame = Rig(make(tmp_path, settings))[0]
    np.testing.assert_array_equal(frame.points().xyz[0], [10, -1, 2])
    np.testing.assert_allclose(frame.cameras[0].points_to_camera[:3, :3], LOOK_FORWARD)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scenes": "/abs/*"}, "scenes: '/abs/\\*'"),
        ({"lidar": {"files": "lidar/**.bin", "axes": "flu"}}, r"lidar.files: 'lidar/\*\*.bin'"),
    ],
)
def test_what_is_no_pattern_is_an_error_with_its_field(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    make(tmp_path, config())
    with pytest.raises(DataError, match=rf"rig\.yaml.*{field} is no pattern|finds no"):
        Rig(make(tmp_path, config(**changes)))


def test_units_and_near_points(tmp_path: Path) -> None:
    settings = config()
    settings["lidar"].update(unit="mm", min_range=0.5, intensity_scale=2.0)
    folder = make(tmp_path, settings)
    rows = [[10000, 1000, 2000, 1], [0, 0, 0, 0], [np.nan, 0, 0, 0], [300, 0, 0, 0]]
    np.save(folder / "lidar" / "000001.npy", np.array(rows, dtype=np.float32))
    cloud = Rig(folder)[0].points()
    np.testing.assert_allclose(cloud.xyz, [[10, 1, 2]], rtol=1e-6)
    assert cloud.intensity is not None
    np.testing.assert_allclose(cloud.intensity, [0.5])


def test_nearest_timestamps_are_matched_and_far_ones_are_not(tmp_path: Path) -> None:
    settings = config(matching={"by": "time", "max_time_difference": 0.06, "missing_images": "skip"})
    settings["lidar"].update(timestamps="names", time_unit="ms")
    settings["cameras"]["front"].update(timestamps="front/times.txt", time_offset=-0.02)
    folder = make(tmp_path, settings, ("scan_1000", "scan_1100", "scan_1200"), ("b", "a"))
    # after the offset: a at 1.09 s, b at 1.21 s
    (folder / "front" / "times.txt").write_text("# name time\na 1.11\nb 1.23\n")
    frames = list(Rig(folder))
    assert [frame.timestamp for frame in frames] == [1.0, 1.1, 1.2]
    assert [[c.image_path.name for c in frame.cameras] for frame in frames] == [[], ["a.png"], ["b.png"]]
    assert frames[1].cameras[0].timestamp == pytest.approx(1.09)


def test_numbers_are_matched_whatever_their_padding_and_offset(tmp_path: Path) -> None:
    settings = config(matching={"by": "number"})
    settings["cameras"]["front"]["number_offset"] = 3
    folder = make(tmp_path, settings, ("0001", "0002"), ("image5", "image4"))
    assert [frame.cameras[0].image_path.name for frame in Rig(folder)] == ["image4.png", "image5.png"]


def test_ego_motion_between_scan_and_image(tmp_path: Path) -> None:
    """Driving 10 m/s along x and turning left by 90 degrees a second; the image is 0.1 s later."""
    settings = config(poses={"file": "poses.txt"})
    settings["lidar"].update(timestamps="lidar/times.txt")
    settings["cameras"]["front"]["timestamps"] = "front/times.txt"
    folder = make(tmp_path, settings)
    (folder / "lidar" / "times.txt").write_text("100.0\n")
    (folder / "front" / "times.txt").write_text("100.1\n")
    half = f"{np.sqrt(0.5):.15f}"
    (folder / "poses.txt").write_text(f"# TUM\n100 5 0 0 0 0 0 1\n101 15 0 0 0 0 {half} {half}\n")
    frame = Rig(folder)[0]
    # World (5 + 10, 1, 2) seen from x = 6 m, turned by 9 degrees to the left.
    cos, sin = np.cos(np.radians(9)), np.sin(np.radians(9))
    x, y = 15 - 6, 1
    forward, left = cos * x + sin * y, -sin * x + cos * y
    pixels, depth = frame.cameras[0].project(frame.points().xyz[:1])
    assert depth[0] == pytest.approx(forward)
    assert pixels[0] == pytest.approx([31.5 - 50 * left / forward, 23.5 - 50 * 2 / forward])
    assert frame.points_to_world is not None
    np.testing.assert_allclose(frame.points_to_world[:3, 3], [5, 0, 0])


def test_poses_of_another_body(tmp_path: Path) -> None:
    mount = {"rotation": [[0, -1, 0], [1, 0, 0], [0, 0, 1]], "translation": [1, 2, 3]}
    settings = config(poses={"file": "poses.txt", "lidar_to_body": mount})
    settings["lidar"].update(timestamps="names")
    folder = make(tmp_path, settings, ("5",))
    (folder / "poses.txt").write_text("4.5 10 0 0 0 0 0 1\n5.5 10 0 0 0 0 0 1\n")
    pose = Rig(folder)[0].points_to_world
    assert pose is not None
    np.testing.assert_allclose(pose[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(pose[:3, 3], [11, 2, 3])


def test_slerp_halves_a_quarter_turn() -> None:
    first, last = np.array([1.0, 0, 0, 0]), np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
    np.testing.assert_allclose(slerp(first, last, 0.5), [np.cos(np.pi / 8), 0, 0, np.sin(np.pi / 8)])
    np.testing.assert_allclose(slerp(first, -last, 0.5), [np.cos(np.pi / 8), 0, 0, np.sin(np.pi / 8)])


def test_scenes_and_labels(tmp_path: Path) -> None:
    labels = {"files": "labels/*.label", "names": {0: "nothing", 7: "road", 3: "car"}, "ignore": [0]}
    settings = config(scenes="run_*", labels=labels)
    for run in ("run_a", "run_b"):
        make(tmp_path / run, settings)
        (tmp_path / run / "labels").mkdir()
        np.array([7 | 5 << 16, 0], dtype="<u4").tofile(tmp_path / run / "labels" / "000001.label")
        (tmp_path / run / "rig.yaml").unlink()
    (tmp_path / "rig.yaml").write_text(yaml.safe_dump(settings))
    rig = Rig(tmp_path)
    assert rig.ids() == ["run_a/000001", "run_b/000001"]
    assert [frame.scene for frame in rig] == ["run_a", "run_b"]
    found = rig[1].labels()
    assert found is not None and found.instance is not None
    assert found.semantic.tolist() == [7, 0] and found.instance.tolist() == [5, 0]
    assert found.spec.classes == ("car", "road") and found.train_ids.tolist() == [1, 255]


def test_labels_follow_the_points_that_are_left_out(tmp_path: Path) -> None:
    settings = config(labels={"files": "labels", "names": {1: "a", 2: "b", 3: "c"}})
    settings["lidar"]["min_range"] = 1.0
    folder = make(tmp_path, settings)
    np.save(folder / "lidar" / "000001.npy", np.array([[5, 0, 0, 0], [0, 0, 0, 0], [0, 9, 0, 0]], dtype=np.float32))
    (folder / "labels").mkdir()
    np.save(folder / "labels" / "000001.npy", np.array([1, 2, 3]))
    frame = Rig(folder)[0]
    found = frame.labels()
    assert found is not None and found.semantic.tolist() == [1, 3] and len(frame.points().xyz) == 2


def test_labels_of_another_length_are_an_error_with_both_numbers(tmp_path: Path) -> None:
    settings = config(labels={"files": "labels/*.npy", "names": {1: "a"}})
    folder = make(tmp_path, settings)
    (folder / "labels").mkdir()
    np.save(folder / "labels" / "000001.npy", np.array([1, 1, 1]))
    with pytest.raises(DataError, match=r"000001\.npy has 3 labels, .*has 2 points"):
        Rig(folder)[0].labels()


def test_frames_are_picklable_and_opening_reads_no_points(tmp_path: Path) -> None:
    folder = make(tmp_path, config())
    rig = Rig(folder)
    frame = rig[0]
    (folder / "front" / "000001.png").write_bytes(b"")
    again = pickle.loads(pickle.dumps(frame))
    np.testing.assert_array_equal(again.points().xyz, frame.points().xyz)
    (folder / "lidar" / "000001.npy").write_bytes(b"")
    assert Rig(folder).ids() == ["000001"]


def test_only_the_wanted_cameras(tmp_path: Path) -> None:
    settings = config()
    settings["cameras"]["rear"] = {**settings["cameras"]["front"], "files": "rear/*.png"}
    folder = make(tmp_path, settings)
    assert [c.name for c in open_dataset(f"rig:{folder}#cameras=rear")[0].cameras] == ["rear"]
    with pytest.raises(DataError, match="no camera 'side'; it has front, rear"):
        Rig(folder, cameras=("side",))


# ------------------------------------------------------------------------------------------------ real frames


def test_nuscenes_as_a_rig_agrees_with_the_reference(tmp_path: Path, shared_data: Path) -> None:
    """Matching by time, poses of the ego vehicle, tilted mounts: against lidar2cam of mmdetection3d's table."""
    reference = json.loads((shared_data / "nuscenes" / "reference" / "reference.json").read_text())["cams"]
    frame = Rig(rig_frames.nuscenes(tmp_path, shared_data).write())[0]
    raw_from_flu = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert {camera.name for camera in frame.cameras} == set(reference)
    for camera in frame.cameras:
        expected = np.array(reference[camera.name]["lidar2cam"]) @ raw_from_flu
        np.testing.assert_allclose(camera.points_to_camera, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("sustechpoints", (14_881, 14_696, 14_445)), ("kitti_stereo", None)],
)
def test_points_in_view_of_real_rigs(
    tmp_path: Path, shared_data: Path, shared_data_more: Path, name: str, counts: tuple[int, ...] | None
) -> None:
    """SUSTechPOINTS: the counts in expected.json beside the frame, made by another program."""
    rig = Rig(rig_frames.everything(shared_data, shared_data_more)[name](tmp_path).write())
    frame = rig[0]
    found = [_in_view(frame.points().xyz, camera, 0.0) for camera in frame.cameras]
    if counts is not None:
        assert found == list(counts)
    else:
        assert [camera.name for camera in frame.cameras] == ["front_left", "front_right"]
        assert all(0.13 < count / len(frame.points().xyz) < 0.19 for count in found)


def _in_view(xyz: np.ndarray, camera: Any, least: float) -> int:
    pixels, depth = camera.project(xyz)
    width, height = camera.image_size
    with np.errstate(invalid="ignore"):
        inside = (pixels >= 0).all(axis=1) & (pixels < [width, height]).all(axis=1)
    return int((inside & (depth > least)).sum())


def test_rellis_labels_agree_with_the_pixels(tmp_path: Path, shared_data: Path) -> None:
    """With camera_to_lidar, 77 % of the labelled points carry the id of their pixel (README); inverted, 0.03 %."""
    made = rig_frames.rellis3d(tmp_path, shared_data)
    ids = {int(x): f"class {x}" for x in range(40)}
    made.config["labels"] = {"files": "labels/*.label", "names": ids, "ignore": [0]}
    frame = Rig(made.write())[0]
    pixels, _ = frame.cameras[0].project(frame.points().xyz)
    labels = frame.labels()
    assert labels is not None and len(labels) == len(frame.points().xyz)
    truth = np.asarray(Image.open(next((shared_data / "rellis3d").glob("*.png"))))
    with np.errstate(invalid="ignore"):
        inside = (pixels >= 0).all(axis=1) & (pixels < [1920, 1200]).all(axis=1) & (labels.semantic > 0)
    u, v = pixels[inside].astype(int).T
    assert (truth[v, u] == labels.semantic[inside]).mean() == pytest.approx(0.77, abs=0.01)
