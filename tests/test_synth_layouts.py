"""What the writers of synthetic data sets write: read back, it is the truth that they were given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_world import SIZE, frames, things

from clever3d.datasets import Boxes, Distortion, Frame, open_dataset
from clever3d.datasets.geometry import apply, inverse, quaternion_to_rotation, rigid
from clever3d.datasets.integrity import check_dataset
from clever3d.datasets.synthetic.layouts import LAYOUTS, Plan, Scene, make_plan, write_dataset
from clever3d.datasets.synthetic.layouts.kitti import observation_angle
from clever3d.datasets.synthetic.layouts.outline import outline, rectangle
from clever3d.datasets.synthetic.truth import CLASSES, CameraShot, WorldFrame
from clever3d.errors import DataError, InputError


def plan_of(layout: str, *, scenes: int = 2, frames: int = 3) -> Plan:
    return make_plan(layout, scenes=scenes, frames=frames, seed=5)


def truth(plan: Plan, index: int) -> list[WorldFrame]:
    """The key frames of a scene."""
    return [frame for frame in frames(Scene(plan, index)) if frame.is_key]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Plan, Path]]:
    """One data set of two scenes in each layout."""
    folder = tmp_path_factory.mktemp("synth")
    sets = {}
    for layout in LAYOUTS:
        plan = plan_of(layout)
        write_dataset(folder / layout, plan, LAYOUTS[layout], frames)
        sets[layout] = plan, folder / layout
    return sets


def pairs(made: dict[str, tuple[Plan, Path]], layout: str, options: str = "") -> Iterator[tuple[Frame, WorldFrame]]:
    """Frames as our reader gives them, beside the truth."""
    plan, root = made[layout]
    read = list(open_dataset(f"{layout}:{root}{options}"))
    true = [frame for index in range(plan.scenes) for frame in truth(plan, index)]
    assert len(read) == len(true)
    yield from zip(read, true, strict=True)


def to_camera(true: WorldFrame, shot: CameraShot) -> np.ndarray:
    """From the scan's points to the camera, by way of the world."""
    scan = true.scan
    return np.linalg.inv(shot.ego_to_world @ shot.camera_to_ego) @ scan.ego_to_world @ scan.lidar_to_ego


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_come_back_to_the_last_bit(made: dict[str, tuple[Plan, Path]], layout: str) -> None:
    for frame, true in pairs(made, layout):
        cloud = frame.points()
        np.testing.assert_array_equal(cloud.xyz, true.scan.xyz)
        assert cloud.intensity is not None
        step = 0.5 / 255 + 1e-6 if layout == "nuscenes" else 0  # nuScenes has whole numbers up to 255
        np.testing.assert_allclose(cloud.intensity, true.scan.intensity, atol=step, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_project_to_where_the_camera_was(made: dict[str, tuple[Plan, Path]], layout: str) -> None:
    moved = 0
    for frame, true in pairs(made, layout):
        shots = {shot.name: shot for shot in true.cameras}
        assert sorted(camera.name for camera in frame.cameras) == sorted(shots)
        for camera in frame.cameras:
            shot = shots[camera.name]
            np.testing.assert_allclose(camera.points_to_camera, to_camera(true, shot), atol=1e-6)
            np.testing.assert_allclose(camera.intrinsics, shot.intrinsics, atol=1e-9)
            assert (camera.distortion is None) == (shot.distortion is None)
            assert camera.image_size in (None, SIZE)
            moved += shot.timestamp != true.scan.timestamp
            with Image.open(camera.image_path) as image:
                pixels = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(pixels - shot.render().image).mean() < (8 if camera.image_path.suffix == ".jpg" else 1e-9)
    assert (moved > 0) == (layout in ("nuscenes", "rig"))  # what is tested there is the motion between the two


@pytest.mark.parametrize("layout", ["kitti", "semantickitti"])
def test_stereo_pair_comes_back_with_kittis_baseline(made: dict[str, tuple[Plan, Path]], layout: str) -> None:
    for frame, _ in pairs(made, layout):
        left, right = frame.cameras
        assert (left.name, right.name) == ("image_2", "image_3")
        # KITTI, Geiger et al., IJRR 2013: the right one of a pair sees all 0.54 m further to the left.
        between = right.points_to_camera @ inverse(left.points_to_camera)
        np.testing.assert_allclose(between, rigid(np.eye(3), [-0.54, 0.0, 0.0]), atol=1e-9)
        # P3 by hand, as in a stereo matcher: disparity = focal length * baseline / depth.
        points = np.array([[10.0, 0.5, -1.0], [25.0, -2.0, 0.0]])
        (one, depth), (other, _) = left.project(points), right.project(points)
        np.testing.assert_allclose(one[:, 0] - other[:, 0], 120 * 0.54 / depth, atol=1e-6)
        np.testing.assert_allclose(one[:, 1], other[:, 1], atol=1e-6)


@pytest.mark.parametrize("layout", ["nuscenes", "semantickitti", "rig"])
def test_poses_come_back(made: dict[str, tuple[Plan, Path]], layout: str) -> None:
    first: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for frame, true in pairs(made, layout):
        assert frame.points_to_world is not None and frame.timestamp is not None
        pose = true.scan.ego_to_world @ true.scan.lidar_to_ego
        read_first, true_first = first.setdefault(frame.scene, (frame.points_to_world, pose))
        moved, expected = inverse(read_first) @ frame.points_to_world, inverse(true_first) @ pose
        np.testing.assert_allclose(moved, expected, atol=2e-6)
    assert len(first) == 2


@pytest.mark.parametrize("layout", ["nuscenes", "semantickitti", "rig"])
def test_labels_come_back(made: dict[str, tuple[Plan, Path]], layout: str) -> None:
    names = {  # a few by hand, the tables of the benchmarks
        "nuscenes": {"road": 24, "car": 17, "truck": 23, "person": 2, "bicyclist": 14, "traffic_cone": 12},
        "semantickitti": {"road": 40, "person": 254, "bicyclist": 253, "bicycle": 11, "truck": 258, "traffic_cone": 99},
        "rig": {name: number for number, name in enumerate(CLASSES)},
    }[layout]
    found: set[str] = set()
    for frame, true in pairs(made, layout):
        labels = frame.labels()
        assert labels is not None
        for name, number in names.items():
            rows = true.scan.label == CLASSES.index(name)
            assert set(labels.semantic[rows]) == ({number} if rows.any() else set())
            found |= {name} if rows.any() else set()
        if layout != "nuscenes":
            np.testing.assert_array_equal(labels.instance, true.scan.instance)
    assert found == set(names) & {"road", *(thing.name for thing in things(Scene(made[layout][0], 0)))}


def test_semantickitti_calls_moving_what_moves_in_any_frame(made: dict[str, tuple[Plan, Path]]) -> None:
    for frame, true in pairs(made, "semantickitti"):
        labels = frame.labels()
        assert labels is not None
        for number, thing in enumerate(things(Scene(made["semantickitti"][0], 0)), start=1):
            rows = true.scan.instance == number
            if thing.name == "car" and rows.any():
                assert set(labels.semantic[rows]) == {252 if thing.speed else 10}


def test_semantickitti_has_the_benchmarks_files(made: dict[str, tuple[Plan, Path]]) -> None:
    plan, root = made["semantickitti"]
    assert sorted(path.name for path in (root / "sequences").iterdir()) == ["00", "08"]
    times = (root / "sequences/08/times.txt").read_text().split()
    np.testing.assert_allclose(np.array(times, dtype=float), [0.0, 0.5, 1.0])
    poses = np.loadtxt(root / "sequences/08/poses.txt").reshape(-1, 3, 4)
    calibration = dict(line.split(":") for line in (root / "sequences/08/calib.txt").read_text().splitlines())
    assert list(calibration) == ["P0", "P1", "P2", "P3", "Tr"]
    tr = np.vstack([np.array(calibration["Tr"].split(), dtype=float).reshape(3, 4), [0, 0, 0, 1]])
    p2 = np.array(calibration["P2"].split(), dtype=float).reshape(3, 4)
    np.testing.assert_allclose(poses[0], np.eye(4)[:3], atol=1e-12)
    first, last = truth(plan, 1)[0], truth(plan, 1)[-1]
    world = np.array([[8.0, 1.0, 0.5], [20.0, -3.0, 2.0]])
    shot = last.cameras[0]
    seen = apply(np.linalg.inv(shot.ego_to_world @ shot.camera_to_ego), world) @ shot.intrinsics.T
    # The same points through the files: world -> first scan -> camera 0 then -> camera 0 now -> image 2.
    points = apply(inverse(first.scan.ego_to_world @ first.scan.lidar_to_ego), world)
    now = apply(inverse(np.vstack([poses[-1], [0, 0, 0, 1]])), apply(tr, points))
    pixels = np.column_stack([now, np.ones(2)]) @ p2.T
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], seen[:, :2] / seen[:, 2:], atol=1e-4)


def kitti_lines(root: Path, name: str) -> list[list[str]]:
    return [line.split() for line in (root / "training/label_2" / f"{name}.txt").read_text().splitlines()]


def test_kitti_boxes_come_back(made: dict[str, tuple[Plan, Path]]) -> None:
    count = 0
    for frame, true in pairs(made, "kitti"):
        boxes = frame.boxes()
        assert boxes is not None and len(boxes)
        to_scan = inverse(true.scan.ego_to_world @ true.scan.lidar_to_ego)
        objects = np.stack([item.center for item in true.objects])
        for row in range(len(boxes)):
            nearest = int(np.linalg.norm(apply(to_scan, objects) - boxes.centers[row], axis=1).argmin())
            item = true.objects[nearest]
            np.testing.assert_allclose(boxes.centers[row], apply(to_scan, item.center[None])[0], atol=2e-4)
            np.testing.assert_allclose(boxes.sizes[row], item.size, atol=1e-4)
            np.testing.assert_allclose(boxes.rotations[row], to_scan[:3, :3] @ item.rotation, atol=2e-4)
            count += 1
    assert count >= 12


def test_kitti_labels_follow_the_benchmarks_rules(made: dict[str, tuple[Plan, Path]]) -> None:
    _, root = made["kitti"]
    lines = kitti_lines(root, "000000")
    assert {len(line) for line in lines} == {15}
    # By hand from the picture of the toy world: the car ahead, one partly behind it, the truck, a person, a rider
    # mostly behind the person; a car too far for points; none for one wholly hidden, a parked bicycle and a cone.
    assert [line[0] for line in lines] == ["Car", "Car", "Truck", "Pedestrian", "Cyclist", "DontCare"]
    kinds = {line[0]: line for line in lines}
    occlusion = {line[0]: int(line[2]) for line in lines if line[0] not in ("DontCare", "Car")}
    assert occlusion == {"Truck": 0, "Pedestrian": 0, "Cyclist": 2}
    assert float(kinds["Truck"][1]) > 0.5 and float(kinds["Pedestrian"][1]) == 0.0
    assert kinds["DontCare"][1:4] == ["-1", "-1", "-10"]
    assert kinds["DontCare"][8:] == ["-1", "-1", "-1", "-1000", "-1000", "-1000", "-10"]
    for line in lines:
        left, top, right, bottom = map(float, line[4:8])
        assert 0 <= left < right <= SIZE[0] - 1 and 0 <= top < bottom <= SIZE[1] - 1
        if line[0] != "DontCare":
            x, z, rotation_y, alpha = (float(line[i]) for i in (11, 13, 14, 3))
            assert abs((rotation_y - np.arctan2(x, z) - alpha + np.pi) % (2 * np.pi) - np.pi) < 0.01


def test_kitti_splits_by_scene(made: dict[str, tuple[Plan, Path]]) -> None:
    _, root = made["kitti"]
    sets = {path.stem: path.read_text().split() for path in (root / "ImageSets").iterdir()}
    assert sets["train"] == ["000000", "000001", "000002"]
    assert sets["val"] == ["001000", "001001", "001002"]
    assert sets["trainval"] == sets["train"] + sets["val"]
    assert {frame.scene for frame in open_dataset(f"kitti:{root}#scene=3")} == {"000", "001"}


def test_real_kitti_labels_agree_with_our_angle_and_rectangle(shared_data: Path) -> None:
    # Annotated rectangles are of the object, ours of its box, which is a little larger; the annotator's alpha has two
    # digits and was made with the boxes.
    overlaps, angles = [], []
    for path in sorted((shared_data / "kitti/training/label_2").glob("*.txt")):
        text = (path.parents[1] / "calib" / path.name).read_text()
        p2 = next(line for line in text.splitlines() if line.startswith("P2")).split()[1:]
        projection = np.array(p2, dtype=float).reshape(3, 4)
        with Image.open(path.parents[1] / "image_2" / f"{path.stem}.png") as image:
            width, height = image.size
        for line in path.read_text().splitlines():
            kind, *numbers = line.split()
            if kind == "DontCare":
                continue
            values = np.array(numbers, dtype=float)
            h, w, length, rotation_y = *values[7:10], values[13]
            cos, sin = np.cos(rotation_y), np.sin(rotation_y)
            rotation = np.column_stack([[cos, 0, -sin], [-sin, 0, -cos], [0, -1, 0]])  # heading, left, up
            center = values[10:13] - [0, h / 2, 0] + np.linalg.solve(projection[:, :3], projection[:, 3])
            box = Boxes(center[None], np.array([[length, w, h]]), rotation[None], ("",))
            whole = rectangle(box, projection[:, :3])
            assert whole is not None
            ours = np.clip(whole, 0, [width - 1, height - 1] * 2)
            theirs = values[3:7]
            low, high = np.maximum(ours[:2], theirs[:2]), np.minimum(ours[2:], theirs[2:])
            area = [float(np.prod(r[2:] - r[:2])) for r in (ours, theirs)]
            shared = float(np.prod(np.maximum(high - low, 0)))
            overlaps.append(shared / (sum(area) - shared))
            angles.append(abs(observation_angle(rotation_y, values[10:13]) - values[2]))
    assert len(overlaps) >= 10
    assert np.median(overlaps) > 0.8 and min(overlaps) > 0.6
    assert max(angles) < 0.03


def load(root: Path) -> dict[str, dict[str, dict[str, object]]]:
    """Table -> token -> row."""
    tables = {path.stem: json.loads(path.read_text()) for path in (root / "v1.0-mini").glob("*.json")}
    for name, rows in tables.items():
        assert len({row["token"] for row in rows}) == len(rows), name
    return {name: {row["token"]: row for row in rows} for name, rows in tables.items()}


def pose(row: dict) -> np.ndarray:
    return rigid(quaternion_to_rotation(row["rotation"], "test"), row["translation"])


def test_nuscenes_tables_hold_together(made: dict[str, tuple[Plan, Path]]) -> None:
    _, root = made["nuscenes"]
    tables = load(root)
    assert len(tables) == 14  # the schema's 13, and lidarseg
    for table, rows in tables.items():
        for row in rows.values():
            for key, value in row.items():
                target = key.removesuffix("_token").removeprefix("first_").removeprefix("last_")
                if key.endswith("_token") and target in tables:
                    assert value in tables[target], (table, key)
                if target == "annotation":
                    assert value in tables["sample_annotation"]
            for way, back in (("next", "prev"), ("prev", "next")):
                if row.get(way):
                    assert rows[row[way]][back] == row["token"]
    assert [scene["name"] for scene in tables["scene"].values()] == ["scene-0061", "scene-0103"]
    for scene in tables["scene"].values():
        chain = [scene["first_sample_token"]]
        while tables["sample"][chain[-1]]["next"]:
            chain.append(tables["sample"][chain[-1]]["next"])
        assert chain[-1] == scene["last_sample_token"] and len(chain) == scene["nbr_samples"] == 3
    assert [row["index"] for row in tables["category"].values()] == list(range(32))
    for row in tables["map"].values():
        assert (root / row["filename"]).is_file() and row["log_tokens"] == list(tables["log"])


def test_nuscenes_files_are_those_of_the_tables(made: dict[str, tuple[Plan, Path]]) -> None:
    plan, root = made["nuscenes"]
    tables = load(root)
    data = tables["sample_data"]
    listed = {row["filename"] for name in ("sample_data", "lidarseg") for row in tables[name].values()}
    found = {path.relative_to(root).as_posix() for kind in ("samples", "sweeps", "lidarseg")
             for path in (root / kind).rglob("*") if path.is_file()}  # fmt: skip
    assert found == listed
    lidar = [row for row in data.values() if "LIDAR_TOP" in row["filename"]]
    assert sum(row["is_key_frame"] for row in lidar) == 6 and len(lidar) == 10  # two scenes of 3 key frames, 2 between
    for row in data.values():
        assert row["fileformat"] == ("pcd" if row in lidar else "jpg")
        assert (row["width"], row["height"]) == ((0, 0) if row in lidar else SIZE)
        assert row["filename"].startswith("samples" if row["is_key_frame"] else "sweeps")
        sample = tables["sample"][row["sample_token"]]
        nearest = min(tables["sample"].values(), key=lambda other: abs(other["timestamp"] - row["timestamp"]))
        assert abs(sample["timestamp"] - row["timestamp"]) == abs(nearest["timestamp"] - row["timestamp"])
    first = truth(plan, 0)[0]
    rows = np.fromfile(root / lidar[0]["filename"], dtype="<f4").reshape(-1, 5)
    np.testing.assert_array_equal(rows[:, :2], np.column_stack([-first.scan.xyz[:, 1], first.scan.xyz[:, 0]]))
    np.testing.assert_array_equal(rows[:, 3], np.round(rows[:, 3]))
    assert rows[:, 3].max() > 250
    np.testing.assert_array_equal(rows[:, 4], first.scan.ring)


def test_nuscenes_boxes_are_where_the_points_are(made: dict[str, tuple[Plan, Path]]) -> None:
    """By the tables alone: global -> ego -> LiDAR, as the schema says; every point of an object is in its box."""
    plan, root = made["nuscenes"]
    tables = load(root)
    data = {(row["sample_token"]): row for row in tables["sample_data"].values()
            if row["is_key_frame"] and "LIDAR" in row["filename"]}  # fmt: skip
    samples = list(tables["sample"].values())
    checked = 0
    for row in tables["sample_annotation"].values():
        sensor = data[row["sample_token"]]
        to_world = pose(tables["ego_pose"][sensor["ego_pose_token"]]) @ pose(
            tables["calibrated_sensor"][sensor["calibrated_sensor_token"]]
        )
        points = np.fromfile(root / sensor["filename"], dtype="<f4").reshape(-1, 5)[:, :3]
        local = apply(inverse(pose(row)), apply(to_world, points))
        width, length, height = row["size"]
        inside = (np.abs(local) <= np.array([length, width, height]) / 2).all(axis=1)
        assert inside.sum() == row["num_lidar_pts"] and row["num_radar_pts"] == 0
        number = samples.index(tables["sample"][row["sample_token"]])
        frame = truth(plan, number // 3)[number % 3]
        owners = frame.scan.instance[inside]
        category = tables["category"][tables["instance"][row["instance_token"]]["category_token"]]["name"]
        if row["num_lidar_pts"]:
            assert np.bincount(owners).argmax() > 0
            name = CLASSES[frame.scan.label[inside & (frame.scan.instance == np.bincount(owners).argmax())][0]]
            assert name.split("_")[-1][:3] in category or (name, category) in (
                ("person", "human.pedestrian.adult"), ("bicyclist", "vehicle.bicycle"))  # fmt: skip
            checked += 1
    assert checked > 30


def test_nuscenes_annotates_from_the_first_point_to_the_last(made: dict[str, tuple[Plan, Path]]) -> None:
    _, root = made["nuscenes"]
    tables = load(root)
    per_category: dict[str, list[int]] = {}
    for row in tables["instance"].values():
        per_category.setdefault(tables["category"][row["category_token"]]["name"], []).append(row["nbr_annotations"])
    assert per_category["vehicle.bus.rigid"] == [2, 2]  # it has points until 0.6 s: in the first two of three
    assert per_category["vehicle.car"] == [3, 3, 3] * 2  # the fourth car is too far for a point, so it has no box
    levels = {row["visibility_token"] for row in tables["sample_annotation"].values()}
    assert levels <= set(tables["visibility"]) and {"1", "4"} <= levels
    attributes = {
        tables["category"][tables["instance"][row["instance_token"]]["category_token"]]["name"]: {
            tables["attribute"][token]["name"] for token in row["attribute_tokens"]
        }
        for row in tables["sample_annotation"].values()
    }
    assert attributes["vehicle.truck"] == {"vehicle.moving"} and attributes["movable_object.trafficcone"] == set()
    assert attributes["human.pedestrian.adult"] == {"pedestrian.moving"}


def test_nuscenes_boxes_come_back(made: dict[str, tuple[Plan, Path]]) -> None:
    for frame, true in pairs(made, "nuscenes"):
        boxes = frame.boxes()
        assert boxes is not None and boxes.velocities is not None and boxes.num_points is not None
        to_scan = inverse(true.scan.ego_to_world @ true.scan.lidar_to_ego)
        centers = apply(to_scan, np.stack([item.center for item in true.objects]))
        inside = boxes.contains(true.scan.xyz).sum(axis=1)
        np.testing.assert_array_equal(inside, boxes.num_points)
        for row in range(len(boxes)):
            item = true.objects[int(np.linalg.norm(centers - boxes.centers[row], axis=1).argmin())]
            np.testing.assert_allclose(boxes.centers[row], apply(to_scan, item.center[None])[0], atol=1e-9)
            np.testing.assert_allclose(boxes.sizes[row], item.size, atol=1e-12)
            np.testing.assert_allclose(boxes.rotations[row], to_scan[:3, :3] @ item.rotation, atol=1e-9)
            # Velocities are differences of positions; nothing here turns or speeds up.
            np.testing.assert_allclose(boxes.velocities[row], to_scan[:3, :3] @ item.velocity, atol=1e-4)


def test_nuscenes_scene_names_keep_the_official_splits() -> None:
    layout = LAYOUTS["nuscenes"]
    plan = make_plan("nuscenes", scenes=10, frames=2)
    names = [layout.scene_name(Scene(plan, index)) for index in range(10)]
    assert sorted(names) == [  # all of v1.0-mini
        "scene-0061", "scene-0103", "scene-0553", "scene-0655", "scene-0757",
        "scene-0796", "scene-0916", "scene-1077", "scene-1094", "scene-1100",
    ]  # fmt: skip
    assert {name for index, name in enumerate(names) if Scene(plan, index).is_val} == {"scene-0103", "scene-0916"}
    large = make_plan("nuscenes", scenes=750, frames=2)
    assert large.version == "v1.0-trainval"
    names = [layout.scene_name(Scene(large, index)) for index in range(750)]
    assert len(set(names)) == 750
    assert sum(Scene(large, index).is_val for index in range(750)) == 150
    with pytest.raises(InputError, match="do not fit"):
        make_plan("nuscenes", scenes=11, frames=2, version="v1.0-mini")
    with pytest.raises(InputError, match="no version 'v2'"):
        make_plan("nuscenes", scenes=1, version="v2")


def test_rig_keeps_moments_and_the_fisheye(made: dict[str, tuple[Plan, Path]]) -> None:
    for frame, true in pairs(made, "rig"):
        assert frame.timestamp == pytest.approx(true.scan.timestamp, abs=1e-9)
        for camera, shot in zip(frame.cameras, true.cameras, strict=True):
            assert camera.timestamp == pytest.approx(shot.timestamp, abs=1e-9)
            if shot.distortion is not None:
                assert camera.distortion is not None
                assert (camera.distortion.model, camera.distortion.coefficients) == (
                    "fisheye", shot.distortion.coefficients)  # fmt: skip


@pytest.mark.parametrize(("number", "visible"), [(1, 1.0), (10, 0.0)])
def test_outline_sees_what_is_hidden(number: int, visible: float) -> None:
    frame = truth(plan_of("kitti"), 0)[0]
    shot = frame.cameras[0]
    found = outline(shot, shot.render(), frame.objects[number - 1], 0.0)
    assert found is not None
    assert found.visible == visible and (found.drawn > 0) == (visible > 0)


def test_outline_measures_by_hand() -> None:
    """A cube of 2 m, 9 to 11 m ahead on the axis: its front is 2/9 wide, in pixels of focal length 120."""
    frame = truth(plan_of("kitti"), 0)[0]
    shot = frame.cameras[0]
    box = Boxes(np.array([[0.0, 0.0, 10.0]]), np.full((1, 3), 2.0), np.eye(3)[None], ("",))
    half = 120 * (1 / 9)
    assert rectangle(box, shot.intrinsics) == pytest.approx((95.5 - half, 53.5 - half, 95.5 + half, 53.5 + half))
    behind = Boxes(np.array([[0.0, 0.0, -5.0]]), np.full((1, 3), 2.0), np.eye(3)[None], ("",))
    assert rectangle(behind, shot.intrinsics) is None
    around = Boxes(np.zeros((1, 3)), np.full((1, 3), 2.0), np.eye(3)[None], ("",))  # the camera is inside
    cut = rectangle(around, shot.intrinsics)
    assert cut is not None and cut[0] < 0 and cut[2] > SIZE[0]
    # The car ahead hides the lower right of the one behind it.
    first, second = (outline(shot, shot.render(), item, 0.0) for item in frame.objects[:2])
    assert first is not None and second is not None
    width = second.rectangle[2] - second.rectangle[0]
    free = first.rectangle[0] - second.rectangle[0]
    assert second.visible == pytest.approx(free / width, abs=0.1)


def test_formats_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    plan = plan_of("semantickitti", scenes=1)
    scene = Scene(plan, 0)
    first, second, *_ = truth(plan, 0)
    shaken = second.cameras[0].camera_to_ego @ rigid(np.eye(3), [0.01, 0, 0])
    moved = replace(second, cameras=(replace(second.cameras[0], camera_to_ego=shaken),))
    with pytest.raises(InputError, match=r"the camera moves by 0\.01 m.*--layout rig"):
        LAYOUTS["semantickitti"].write_scene(tmp_path / "a", scene, [first, moved])
    lens = Distortion("fisheye", (0.0, 0.0, 0.0, 0.0))
    round_world = replace(first, cameras=(replace(first.cameras[0], distortion=lens),))
    for layout in ("kitti", "semantickitti"):
        with pytest.raises(InputError, match="needs a camera without lens distortion"):
            LAYOUTS[layout].write_scene(tmp_path / layout, scene, [round_world])
    nuscenes = Scene(plan_of("nuscenes", scenes=1), 0)
    with pytest.raises(InputError, match=r"layout nuscenes needs CAM_FRONT, .* take --sensor nuscenes"):
        LAYOUTS["nuscenes"].write_scene(tmp_path / "n", nuscenes, [first])
    many = replace(first, scan=replace(first.scan, instance=first.scan.instance + 2**16))
    for layout in ("rig", "semantickitti"):
        with pytest.raises(DataError, match=r"instance \d+ does not fit into the 16 bits"):
            LAYOUTS[layout].write_scene(tmp_path / f"{layout}2", scene, [many])
    for layout, writer in LAYOUTS.items():
        if layout != "kitti":
            with pytest.raises(InputError, match=r"has no (key )?frame; ask for more --frames"):
                writer.write_scene(tmp_path / f"{layout}3", replace(scene, plan=plan_of(layout, scenes=1)), [])


@pytest.mark.parametrize("layout", ["kitti", "semantickitti"])
def test_kitti_layouts_hold_other_sensors(layout: str, tmp_path: Path) -> None:
    plan = make_plan(layout, scenes=1, frames=1, sensor="ouster")
    write_dataset(tmp_path / layout, plan, LAYOUTS[layout], frames)
    (frame,), (true,) = open_dataset(tmp_path / layout), truth(plan, 0)
    (camera,) = frame.cameras  # the other one, with its fisheye lens, is no right half of a stereo pair
    np.testing.assert_allclose(camera.points_to_camera, to_camera(true, true.cameras[0]), atol=1e-6)


@pytest.mark.parametrize("layout", ["kitti", "semantickitti"])
def test_second_camera_that_is_not_where_p3_says_is_left_out(layout: str, tmp_path: Path) -> None:
    plan = plan_of(layout, scenes=1, frames=1)
    (true,) = truth(plan, 0)
    left, right = true.cameras
    aside = replace(right, camera_to_ego=right.camera_to_ego @ rigid(np.eye(3), [0.01, 0, 0]))
    longer = replace(right, intrinsics=right.intrinsics * [[1.01], [1.01], [1.0]])
    for number, (other, images) in enumerate(((right, 1), (aside, 0), (longer, 0))):
        folder = tmp_path / str(number)
        LAYOUTS[layout].write_scene(folder, Scene(plan, 0), [replace(true, cameras=(left, other))])
        assert len(list(folder.rglob("image_2/*.png"))) == 1 and len(list(folder.rglob("image_3/*.png"))) == images


@pytest.mark.parametrize("layout", LAYOUTS)
def test_integrity_check_finds_nothing(made: dict[str, tuple[Plan, Path]], layout: str) -> None:
    report = check_dataset(open_dataset(made[layout][1]), jobs=0)
    assert report.clean and report.points, report.findings
