"""nuScenes: tables that are broken, and the cache of what was read from them."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_nuscenes import LABELS, nuscenes_tables, write_nuscenes, write_tables

from clever3d.datasets import NuScenes
from clever3d.datasets.nuscenes_tables import BLOCK
from clever3d.errors import DataError

# Tables that are always read, and a column of each.
COLUMNS = {
    "scene": "name",
    "sample": "timestamp",
    "sensor": "channel",
    "calibrated_sensor": "camera_intrinsic",
    "ego_pose": "translation",
    "sample_data": "is_key_frame",
}
TABLES = list(COLUMNS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CLEVER3D_CACHE", str(folder))
    return folder / "index"


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    return write_nuscenes(tmp_path / "nuscenes")


# ---------------------------------------------------------------- broken tables


@pytest.mark.parametrize("table", TABLES)
def test_broken_and_missing_tables_are_named(root: Path, table: str) -> None:
    path = root / "v1.0-mini" / f"{table}.json"
    text = path.read_text()
    for broken in (text[:-5], text[:-1], text.replace("}, {", "} {", 1), text.replace(":", "", 1), text + "]", ""):
        if broken != text:
            path.write_text(broken)
            with pytest.raises(DataError, match=rf"/{table}\.json is no valid JSON"):
                NuScenes(root)
    rows = json.loads(text)
    column = COLUMNS[table]
    del rows[-1][column]
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=rf"/{table}\.json: a row has no {column} \(row {rows[-1]['token']}\)"):
        NuScenes(root)
    for other in ('{"token": "lonely"}', '["lonely", {}]'):
        path.write_text(other)
        with pytest.raises(DataError, match=rf"/{table}\.json is not a list of rows"):
            NuScenes(root)
    path.unlink()
    with pytest.raises(DataError, match=rf"/{table}\.json cannot be read"):
        NuScenes(root)


@pytest.mark.parametrize("more", [{}, {"description": 'braces }, { and "quotes"'}, {"nested": {"a": {}}}])
def test_tables_are_read_however_they_are_written(root: Path, more: dict[str, Any]) -> None:
    expected = NuScenes(root, sweeps=2)[1]
    for name in TABLES:
        path = root / "v1.0-mini" / f"{name}.json"
        rows = [row | more for row in json.loads(path.read_text())]
        if name == "ego_pose":  # longer than what is read at once
            others = [row | {"token": f"{row['token']} {i}"} for i in range(500) for row in rows]
            rows = [*others, *rows]
        path.write_text("\n " + json.dumps(rows, indent=3) + "\n")
    assert path.parent.joinpath("ego_pose.json").stat().st_size > 3 * BLOCK
    found = NuScenes(root, sweeps=2)[1]
    assert found.id == expected.id
    np.testing.assert_array_equal(found.points_to_world, expected.points_to_world)
    np.testing.assert_array_equal(found.cameras[3].points_to_camera, expected.cameras[3].points_to_camera)
    np.testing.assert_array_equal(found.sweeps[0].to_frame, expected.sweeps[0].to_frame)


@pytest.mark.parametrize(
    ("table", "column", "row", "message"),
    [
        ("sample_data", "ego_pose_token", 0, r"ego_pose\.json has no row 'gone'.*ego_pose_token in sample_data\.json"),
        ("sample_data", "sample_token", 0, r"sample\.json has no row 'gone'"),
        ("sample_data", "calibrated_sensor_token", -1, r"calibrated_sensor\.json has no row 'gone'"),
        ("sample_data", "prev", 0, r"sample_data\.json has no row 'gone', which prev in sample_data\.json names"),
        ("sample", "scene_token", 0, r"scene\.json has no row 'gone'"),
        ("calibrated_sensor", "sensor_token", 0, r"sensor\.json has no row 'gone'"),
        ("lidarseg", "sample_data_token", 0, r"sample_data\.json has no row 'gone'.*lidarseg\.json"),
    ],
)
def test_a_token_that_leads_nowhere_is_named(tmp_path: Path, table: str, column: str, row: int, message: str) -> None:
    tables = nuscenes_tables()
    tables[table][row][column] = "gone"
    with pytest.raises(DataError, match=message):
        NuScenes(write_nuscenes(tmp_path / "nuscenes", tables))


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        ("sample_annotation", "sample_token", r"sample\.json has no row 'gone'"),
        ("sample_annotation", "instance_token", r"instance\.json has no row 'gone'"),
        ("sample_annotation", "prev", r"sample_annotation\.json has no row 'gone', which prev in"),
        ("sample_annotation", "next", r"sample_annotation\.json has no row 'gone', which next in"),
        ("instance", "category_token", r"category\.json has no row 'gone'"),
    ],
)
def test_a_token_of_an_annotation_that_leads_nowhere_is_named(
    tmp_path: Path, table: str, column: str, message: str
) -> None:
    tables = nuscenes_tables()
    tables[table][0][column] = "gone"
    frame = NuScenes(write_nuscenes(tmp_path / "nuscenes", tables))[0]
    with pytest.raises(DataError, match=message):
        frame.boxes()


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("ego_pose", "rotation", [0, 0, 0, 0], r"rotation of row turned: the quaternion .* is zero"),
        ("ego_pose", "translation", [1, 2], "translation of row turned is not 3 finite numbers: .1, 2."),
        ("ego_pose", "translation", [1, 2, float("nan")], "translation of row turned is not 3 finite numbers"),
        ("ego_pose", "token", 7, "token of row 7 is no token"),
        ("calibrated_sensor", "camera_intrinsic", [], "camera_intrinsic of row mount CAM_FRONT_LEFT is not 3 x 3 fin"),
        ("calibrated_sensor", "translation", ["a", "b", "c"], r"translation of row mount CAM_FRONT_LEFT .*\['a'"),
        ("sample", "timestamp", "noon", "timestamp of row early is not a whole number: 'noon'"),
        ("scene", "name", 7, "name of row s is not text: 7"),
        ("lidarseg", "filename", None, "filename of row LIDAR_TOP late is not text: None"),
    ],
)
def test_a_bad_value_in_a_table_is_named(tmp_path: Path, table: str, column: str, value: object, message: str) -> None:
    tables = nuscenes_tables()
    tables[table][-1][column] = value
    with pytest.raises(DataError, match=rf"{table}\.json: {message}"):
        NuScenes(write_nuscenes(tmp_path / "nuscenes", tables))


def test_a_box_without_a_rotation_is_named(tmp_path: Path) -> None:
    tables = nuscenes_tables()
    tables["sample_annotation"][1]["rotation"] = [0, 0, 0, 0]
    frame = NuScenes(write_nuscenes(tmp_path / "nuscenes", tables))[1]
    with pytest.raises(DataError, match=r"sample_annotation\.json: rotation of row car early: .* is zero"):
        frame.boxes()


@pytest.mark.parametrize("table", [*TABLES[:4], "sample_data"])
def test_two_rows_with_one_token_are_refused(tmp_path: Path, table: str) -> None:
    tables = nuscenes_tables()
    tables[table].append(tables[table][0] | {"is_key_frame": False})
    token = tables[table][0]["token"]
    with pytest.raises(DataError, match=rf"{table}\.json: two rows have the token '{token}'"):
        NuScenes(write_nuscenes(tmp_path / "nuscenes", tables))


def test_two_key_frames_of_one_camera_are_refused(tmp_path: Path) -> None:
    tables = nuscenes_tables()
    again = next(row for row in tables["sample_data"] if row["token"] == "CAM_BACK late")
    tables["sample_data"].append(again | {"token": "again"})
    with pytest.raises(DataError, match="two key frames of CAM_BACK for sample late"):
        NuScenes(write_nuscenes(tmp_path / "nuscenes", tables))


def test_a_truncated_scan_is_named(root: Path) -> None:
    path = root / "samples" / "LIDAR_TOP" / "early"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"early has 37 bytes"):
        NuScenes(root)[0].points()


# ---------------------------------------------------------------- the cache


def messages(log: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in log.records)


def test_the_second_time_no_table_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = NuScenes(root)[0].boxes()

    def unread(path: Path) -> Any:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr("clever3d.datasets.nuscenes_index.stream", unread)
    monkeypatch.setattr("clever3d.datasets.nuscenes_boxes.stream", unread)
    monkeypatch.setattr("clever3d.datasets.nuscenes_index.whole_table", unread)
    again = NuScenes(root, sweeps=2)
    assert again.ids() == ["early", "late"]
    found = again[0].boxes()
    assert boxes is not None
    assert found is not None
    np.testing.assert_array_equal(found.centers, boxes.centers)


def test_a_changed_table_is_read_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = NuScenes(root)
    tables = nuscenes_tables()
    tables["scene"][0]["name"] = "scene-0002"
    write_tables(root, tables)
    with caplog.at_level(logging.INFO):
        assert NuScenes(root)[0].scene == "scene-0002"
    assert "is of other tables" in messages(caplog)
    with pytest.raises(DataError, match="the tables have changed since"):
        old[0].boxes()
    with pytest.raises(DataError, match="the tables have changed since"):
        pickle.loads(pickle.dumps(old))


def test_a_table_of_the_same_size_but_another_time_is_read_again(root: Path) -> None:
    NuScenes(root)
    path = root / "v1.0-mini" / "scene.json"
    path.write_text(path.read_text().replace("scene-0001", "scene-0009"))
    os.utime(path, ns=(1, 1))
    assert NuScenes(root)[0].scene == "scene-0009"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "other"])
def test_a_damaged_cache_is_made_again(root: Path, cache: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    expected = NuScenes(root)[0]
    (path,) = cache.glob("nuscenes-frames-*.safetensors")
    content = bytearray(path.read_bytes())
    middle = content.rindex(b"scene-0001")
    content[middle] ^= 1
    half, other = content[: len(content) // 2], b"\x80\x04N." * 9
    path.write_bytes({"truncated": half, "flipped": content, "emptied": b"", "other": other}[damage])
    with caplog.at_level(logging.INFO):
        found = NuScenes(root)[0]
    assert found.scene == expected.scene
    assert ("is damaged" if damage == "flipped" else "cannot be read") in messages(caplog)
    caplog.clear()
    NuScenes(root)
    assert messages(caplog) == ""  # it is whole again


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("CLEVER3D_CACHE", str(blocked))
    data = NuScenes(root, sweeps=1)
    assert "CLEVER3D_CACHE" in messages(caplog)
    boxes = data[0].boxes()
    assert boxes is not None
    assert len(boxes) == 2
    again = pickle.loads(pickle.dumps(data))
    assert again[1].sweeps[0].points_path == data[1].sweeps[0].points_path
    caplog.clear()
    NuScenes(root)
    assert messages(caplog) == ""  # the process still has it


def test_a_frame_can_be_pickled_with_all_it_can_read(root: Path) -> None:
    frame = NuScenes(root, sweeps=2)[1]
    again = pickle.loads(pickle.dumps(frame))
    assert again.labels().semantic.tolist() == LABELS.tolist()
    assert again.boxes().names == ("vehicle.car",)
    np.testing.assert_array_equal(again.accumulated().xyz, frame.accumulated().xyz)


def test_a_pickled_data_set_leaves_its_arrays_in_the_cache(root: Path) -> None:
    tables = nuscenes_tables()
    samples = [row | {"token": f"{row['token']} {i}"} for i in range(500) for row in tables["sample"]]
    tables["sample_data"] = [
        row | {"token": f"{row['token']} {i}", "sample_token": f"{row['sample_token']} {i}", "prev": ""}
        for i in range(500)
        for row in tables["sample_data"]
        if row["is_key_frame"]
    ]
    write_tables(root, tables | {"sample": samples, "sample_annotation": [], "lidarseg": []})
    data = NuScenes(root)
    assert len(data) == 1000
    content = pickle.dumps(data)
    assert len(content) < 20_000
    assert pickle.loads(content).ids() == data.ids()
