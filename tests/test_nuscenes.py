"""nuScenes: places and speeds worked out by hand, splits and labels as others have them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from small_kitti import seen_by
from small_nuscenes import CAMERAS, LABELS, nuscenes_tables, write_nuscenes, write_tables

from clever3d.datasets import IGNORE, Boxes, NuScenes, open_dataset
from clever3d.datasets.geometry import rotation_about_z
from clever3d.datasets.nuscenes import FLU_TO_LIDAR
from clever3d.datasets.nuscenes_labels import LIDARSEG
from clever3d.datasets.nuscenes_splits import SPLITS, scenes_of
from clever3d.errors import DataError, InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CLEVER3D_CACHE", str(folder))
    return folder / "index"


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    return write_nuscenes(tmp_path / "nuscenes")


# ---------------------------------------------------------------- closed forms


def test_points_are_turned_to_flu_with_intensity_up_to_one(root: Path) -> None:
    cloud = NuScenes(root)[0].points()
    np.testing.assert_array_equal(cloud.xyz, [[10, 2, -0.5], [0, -20, -0.5]])
    assert cloud.intensity is not None
    np.testing.assert_allclose(cloud.intensity, [0.2, 1.0], rtol=1e-6)
    assert cloud.xyz.dtype == cloud.intensity.dtype == np.float32


def test_projection_follows_the_ego_between_lidar_and_camera(root: Path) -> None:
    frame = NuScenes(root)[0]
    cameras = {camera.name: camera for camera in frame.cameras}
    assert tuple(cameras) == CAMERAS
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


def test_a_frame_knows_its_time_and_place(root: Path) -> None:
    frame = NuScenes(root)[1]
    assert (frame.id, frame.scene, frame.timestamp) == ("late", "scene-0001", pytest.approx(1.5))
    assert [camera.timestamp for camera in frame.cameras] == pytest.approx([1.49] * 6)
    assert {camera.image_size for camera in frame.cameras} == {(1600, 900)}
    assert frame.points_to_world is not None
    # The sensor is 1 m ahead of the ego's origin, which is at (100, 200) and heads along global y.
    np.testing.assert_allclose(frame.points_to_world[:3, 3], [100, 201, 2], atol=1e-12)
    np.testing.assert_allclose(frame.points_to_world[:3, :3], rotation_about_z(np.pi / 2), atol=1e-12)


def test_sweeps_are_the_ones_before_key_frames_among_them(root: Path) -> None:
    early, late = NuScenes(root, sweeps=2)
    assert [sweep.points_path.name for sweep in early.sweeps] == ["before early"]  # nothing before that
    assert [sweep.points_path.name for sweep in late.sweeps] == ["before late", "early"]
    assert [sweep.seconds for sweep in late.sweeps] == pytest.approx([-0.05, -0.5])
    # 50 ms before, the ego was 2 m behind: what was 10 m ahead then is 8 m ahead now.
    np.testing.assert_allclose(late.sweeps[0].to_frame[:3, 3], [-2, 0, 0], atol=1e-12)
    cloud = late.accumulated()
    np.testing.assert_allclose(cloud.xyz[2], [8, 2, -0.5], atol=1e-6)
    np.testing.assert_allclose(cloud.xyz[4], [10, 2, -0.5], atol=1e-6)
    assert cloud.time is not None
    np.testing.assert_allclose(cloud.time, np.repeat([0, -0.05, -0.5], 2))
    assert NuScenes(root)[1].sweeps == ()


def test_boxes_are_in_the_axes_of_the_points(root: Path) -> None:
    boxes = NuScenes(root)[0].boxes()
    assert boxes is not None
    assert boxes.names == ("vehicle.car", "human.pedestrian.adult")
    assert boxes.track_ids == ("car", "walker")
    assert boxes.num_points is not None
    assert boxes.num_points.tolist() == [7, 1]
    # The sensor is at (100, 201, 2) and looks along global y, as the car does.
    np.testing.assert_allclose(boxes.centers, [[9, 0, -1], [4, 0, -1]], atol=1e-12)
    np.testing.assert_allclose(boxes.sizes, [[4, 2, 1.5], [0.8, 0.6, 1.8]])
    np.testing.assert_allclose(boxes.rotations, np.stack([np.eye(3)] * 2), atol=1e-12)
    # 2 m in 0.5 s; who is seen once has no velocity.
    assert boxes.velocities is not None
    np.testing.assert_allclose(boxes.velocities, [[4, 0, 0], [np.nan] * 3], atol=1e-12)


@pytest.mark.parametrize(
    ("seconds", "first", "middle"),
    [
        ((0.0, 1.5, 3.0), 2.0, 2.0),  # one side may be 1.5 s away, both together 3 s apart
        ((0.0, 1.6, 3.0), np.nan, 2.0),
        ((0.0, 1.5, 3.1), 2.0, np.nan),
    ],
)
def test_velocities_need_neighbours_near_in_time(
    tmp_path: Path, seconds: tuple[float, ...], first: float, middle: float
) -> None:
    tables = nuscenes_tables()
    names = ("early", "late", "later")
    tables["sample"] = [
        {"token": name, "scene_token": "s", "timestamp": round(1e6 * (1 + second))}
        for name, second in zip(names, seconds, strict=True)
    ]
    extra = [
        row | {"token": f"{row['token']} again", "sample_token": "later", "prev": ""}
        for row in tables["sample_data"]
        if row["sample_token"] == "late" and row["is_key_frame"]
    ]
    tables["sample_data"] += extra
    car = tables["sample_annotation"][0]
    tables["sample_annotation"] = [
        car
        | {
            "token": name,
            "sample_token": name,
            "translation": [100, 200 + 2 * second, 0],  # 2 m/s
            "prev": names[i - 1] if i else "",
            "next": names[i + 1] if i < 2 else "",
        }
        for i, (name, second) in enumerate(zip(names, seconds, strict=True))
    ]
    found = [frame.boxes() for frame in NuScenes(write_nuscenes(tmp_path / "nuscenes", tables))]
    speeds = [boxes.velocities[0, 0] for boxes in found if boxes is not None and boxes.velocities is not None]
    np.testing.assert_allclose(speeds[:2], [first, middle])


def test_labels_are_one_byte_a_point(root: Path) -> None:
    data = NuScenes(root)
    labels = data[0].labels()
    assert labels is not None
    assert labels.semantic.tolist() == LABELS.tolist()
    assert [labels.spec.classes[i] for i in labels.train_ids] == ["car", "driveable_surface"]
    assert data.label_spec is labels.spec


def test_without_the_tables_of_annotations_and_lidarseg_there_are_neither(root: Path) -> None:
    for name in ("lidarseg", "category", "instance"):
        (root / "v1.0-mini" / f"{name}.json").unlink()
    (root / "v1.0-mini" / "sample_annotation.json").write_text("[]")  # as in the test set
    data = NuScenes(root)
    assert data[0].boxes() is None
    assert data[0].labels() is None
    assert data.label_spec is None


# ---------------------------------------------------------------- order, options


def test_samples_are_in_time_order_and_key_frames_only(root: Path) -> None:
    data = NuScenes(root)
    assert data.ids() == [frame.id for frame in data] == ["early", "late"]
    assert data[0].points_path == root / "samples" / "LIDAR_TOP" / "early"
    assert data[0].cameras[3].image_path == root / "samples" / "CAM_BACK" / "early"
    assert data[-1].id == "late"
    with pytest.raises(IndexError):
        data[2]


def test_cameras_are_the_ones_asked_for_in_that_order(root: Path) -> None:
    frame = open_dataset(f"nuscenes:{root}#cameras=CAM_BACK,CAM_FRONT")[0]
    assert [camera.name for camera in frame.cameras] == ["CAM_BACK", "CAM_FRONT"]
    for camera in frame.cameras:
        whole = next(other for other in NuScenes(root)[0].cameras if other.name == camera.name)
        np.testing.assert_array_equal(camera.points_to_camera, whole.points_to_camera)
    assert NuScenes(root, cameras=())[0].cameras == ()
    with pytest.raises(DataError, match=r"no camera 'CAM_REAR'.*CAM_BACK"):
        NuScenes(root, cameras=("CAM_REAR",))


def test_a_sample_may_lack_a_camera_that_nobody_asks_for(tmp_path: Path) -> None:
    tables = nuscenes_tables()
    tables["sample_data"] = [row for row in tables["sample_data"] if row["token"] != "CAM_BACK late"]
    root = write_nuscenes(tmp_path / "nuscenes", tables)
    assert len(NuScenes(root, cameras=("CAM_FRONT",))) == 2
    with pytest.raises(DataError, match=r"sample_data\.json: no key frame of CAM_BACK for sample late"):
        NuScenes(root)


def test_two_table_folders_ask_which(root: Path) -> None:
    (root / "v1.0-test").mkdir()
    with pytest.raises(DataError, match=r"v1\.0-mini, v1\.0-test.*version="):
        NuScenes(root)
    assert len(open_dataset(f"nuscenes:{root}#version=v1.0-mini&split=train_detect")) == 2
    with pytest.raises(DataError, match=r"v1\.0-trainval is no folder"):
        NuScenes(root, version="v1.0-trainval")


def test_negative_numbers_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="sweeps=-1"):
        NuScenes(root, sweeps=-1)
    with pytest.raises(InputError, match="every=0"):
        NuScenes(root, every=0)


# ---------------------------------------------------------------- splits

# sha256 of the scenes' names, sorted and joined by commas, computed from the lists of nuscenes-devkit 1.2.0 and of
# SLidR at 003d438, not from ours.
DIGESTS: dict[str, tuple[int, str]] = {
    "train": (700, "d75a775e17eac454"),
    "val": (150, "a45b01ed90bcefb2"),
    "test": (150, "3f033eee3b1aa0c1"),
    "mini_train": (8, "fd89ddffa6d1994e"),
    "mini_val": (2, "85973904acfcf753"),
    "train_detect": (350, "cc2c1149c5362aa7"),
    "train_track": (350, "c680ca6459014b52"),
    "parametrizing": (600, "38ac0a7b1f027731"),
    "verifying": (100, "8be63ebbb29e658f"),
}


def digest(numbers: frozenset[int]) -> str:
    return hashlib.sha256(",".join(sorted(f"scene-{number:04d}" for number in numbers)).encode()).hexdigest()[:16]


def test_splits_are_those_of_the_devkit_and_of_slidr() -> None:
    assert {name: (len(numbers), digest(numbers)) for name, numbers in SPLITS.items()} == DIGESTS


def test_every_hundredth_scene_counts_in_the_order_of_the_table() -> None:
    train = [f"scene-{number:04d}" for number in sorted(SPLITS["train"])]
    table = [*train[350:], "scene-0003", *train[:350]]  # scene-0003 is of val
    for every, scenes in ((100, 7), (20, 35), (10, 70), (4, 175), (1, 700)):
        assert len(scenes_of("train", every, table, Path())) == scenes
    taken = [table[i] for i in scenes_of("train", 100, table, Path())]
    assert taken[0] == table[99]  # SLidR counts up first, so the hundredth is the first one taken
    assert taken[-1] == table[700]


def test_scenes_that_are_not_there_are_passed_over(root: Path) -> None:
    assert len(NuScenes(root, split="train")) == 2
    with pytest.raises(DataError, match=r"none of the 150 scenes of split 'val'.*scene-0001"):
        NuScenes(root, split="val")
    with pytest.raises(DataError, match=r"1 scenes of split 'train' are in it, so every=2 leaves none"):
        NuScenes(root, split="train", every=2)
    with pytest.raises(InputError, match=r"no split 'trian'.*did you mean 'train'"):
        NuScenes(root, split="trian")


def test_a_split_of_ones_own_is_read_from_splits_json(root: Path) -> None:
    path = root / "v1.0-mini" / "splits.json"
    path.write_text('{"mine": ["scene-0001"], "others": ["scene-0002"]}')
    assert len(NuScenes(root, split="mine")) == 2
    with pytest.raises(DataError, match="none of the 1 scenes"):
        NuScenes(root, split="others")
    path.write_text('{"mine": "scene-0001"}')
    with pytest.raises(DataError, match=r"splits\.json must hold lists"):
        NuScenes(root, split="mine")


# ---------------------------------------------------------------- lidarseg

# Of SLidR, downstream/dataloader_nuscenes.py at 003d438: id in the files -> class, 0 is ignored.
SLIDR_CLASSES = {
    0: 0, 1: 0, 2: 7, 3: 7, 4: 7, 5: 0, 6: 7, 7: 0, 8: 0, 9: 1, 10: 0, 11: 0, 12: 8, 13: 0, 14: 2, 15: 3, 16: 3, 17: 4,
    18: 5, 19: 0, 20: 0, 21: 6, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 29: 0, 30: 16, 31: 0,
}  # fmt: skip


def test_lidarseg_classes_are_those_of_the_literature() -> None:
    expected = [value - 1 if value else IGNORE for value in SLIDR_CLASSES.values()]
    assert LIDARSEG.train_ids(np.arange(32)).tolist() == expected
    assert len(LIDARSEG.classes) == 16


def test_another_numbering_of_the_categories_is_followed(tmp_path: Path) -> None:
    tables = nuscenes_tables()
    for row in tables["category"]:
        row["index"] = 31 - row["index"]
    root = write_nuscenes(tmp_path / "nuscenes", tables)
    (31 - LABELS).astype(np.uint8).tofile(root / "lidarseg" / "v1.0-mini" / "early_lidarseg.bin")
    labels = NuScenes(root)[0].labels()
    assert labels is not None
    assert [labels.spec.classes[i] for i in labels.train_ids] == ["car", "driveable_surface"]


def test_labels_of_another_number_than_the_points_are_refused(root: Path) -> None:
    path = root / "lidarseg" / "v1.0-mini" / "early_lidarseg.bin"
    path.write_bytes(b"\x11" * 3)
    with pytest.raises(DataError, match=r"early_lidarseg\.bin has 3 labels, but .*early has 2 points"):
        NuScenes(root)[0].labels()
    path.unlink()
    with pytest.raises(DataError, match=r"early_lidarseg\.bin cannot be read"):
        NuScenes(root)[0].labels()


def test_a_label_that_does_not_exist_is_refused(root: Path) -> None:
    (root / "lidarseg" / "v1.0-mini" / "early_lidarseg.bin").write_bytes(b"\x11\x20")
    labels = NuScenes(root)[0].labels()
    assert labels is not None
    with pytest.raises(DataError, match=r"early_lidarseg\.bin: nuscenes-lidarseg has no label 32"):
        _ = labels.train_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vehicle.ufo"}, "'vehicle.ufo' is no category"),
        ({"index": 3}, "index must be a number of its own"),
        ({"index": "3"}, "index of row is noise is not a whole number"),
    ],
)
def test_categories_that_cannot_be_lidarsegs_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    tables = nuscenes_tables()
    tables["category"][0].update(change)
    with pytest.raises(DataError, match=rf"category\.json: {message}"):
        NuScenes(write_nuscenes(tmp_path / "nuscenes", tables))
    for row in tables["category"]:
        del row["index"]
    write_tables(tmp_path / "nuscenes", tables)
    with pytest.raises(DataError, match=r"category\.json: a row has no index; unpack .* nuScenes-lidarseg"):
        NuScenes(tmp_path / "nuscenes")


# ---------------------------------------------------------------- the real frame


def test_real_frame_projects_as_the_reference_matrices_do(shared_data: Path) -> None:
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
        seen = (depth > 1) & (np.abs(pixels - [800, 450]) < [800, 450]).all(axis=1)
        assert seen.sum() > 3000
        assert np.abs(pixels[seen] - image[seen, :2] / image[seen, 2:]).max() < 1e-4


def test_real_boxes_hold_as_many_points_as_listed(shared_data: Path) -> None:
    frame = open_dataset(f"nuscenes:{shared_data / 'nuscenes'}#split=mini_train")[0]
    boxes = frame.boxes()
    assert boxes is not None
    assert boxes.num_points is not None
    assert len(boxes) == 69
    xyz = frame.points().xyz
    np.testing.assert_array_equal(boxes.contains(xyz).sum(axis=1), boxes.num_points)
    assert boxes.velocities is not None
    assert np.isnan(boxes.velocities).all()  # there is one key frame only


def test_real_boxes_are_where_the_reference_has_them(shared_data: Path) -> None:
    frame = open_dataset(f"nuscenes:{shared_data / 'nuscenes'}")[0]
    boxes, xyz = frame.boxes(), frame.points().xyz
    reference = json.loads((shared_data / "nuscenes" / "reference" / "reference.json").read_text())["boxes"]
    assert boxes is not None
    turn = FLU_TO_LIDAR[:3, :3]  # the reference's axes are the file's
    np.testing.assert_allclose(boxes.centers @ turn.T, [box["center"] for box in reference], atol=1e-5)
    np.testing.assert_allclose(boxes.sizes, [box["lwh"] for box in reference], atol=1e-6)
    yaws = np.array([box["yaw"] for box in reference])
    rotations = turn @ boxes.rotations
    # pyquaternion's yaw_pitch_roll[0], which is no plain angle about z in the tilted axes of the sensor:
    difference = np.arctan2(-rotations[:, 0, 1], rotations[:, 0, 0]) - yaws
    assert np.abs((difference + np.pi) % (2 * np.pi) - np.pi).max() < 1e-6
    plain = turn.T @ np.stack([rotation_about_z(yaw) for yaw in yaws])
    counts = Boxes(boxes.centers, boxes.sizes, plain, boxes.names).contains(xyz).sum(axis=1)
    assert (counts == [box["num_lidar_pts"] for box in reference]).sum() == 61
