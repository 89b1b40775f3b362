"""The check of whole data sets in the layouts of real ones: clean as written, each fault found; and of real frames."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_kitti
import toy_world
from PIL import Image
from typer.testing import CliRunner

from clever3d.cli import app
from clever3d.datasets import open_dataset
from clever3d.datasets.integrity import Report, check_dataset
from clever3d.datasets.synthetic.layouts import LAYOUTS, make_plan, write_dataset
from clever3d.errors import DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set of two scenes with three frames in each layout."""
    folder = tmp_path_factory.mktemp("written")
    for name, layout in LAYOUTS.items():
        write_dataset(folder / name, make_plan(name, scenes=2, frames=3, seed=5), layout, toy_world.frames)
    return folder


@pytest.fixture()
def copy(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A copy of one of them to damage; no index of another."""
    monkeypatch.setenv("CLEVER3D_CACHE", str(tmp_path / "cache"))
    return lambda name: Path(shutil.copytree(written / name, tmp_path / name))


def check(spec: str) -> Report:
    return check_dataset(open_dataset(spec), jobs=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_of_the_embedded_world_is_clean(copy: Callable[[str], Path], name: str) -> None:
    root = copy(name)
    report = check(f"{name}:{root}")
    assert report.findings == ()
    assert report.frames == 6
    assert report.points > 6 * 3000
    result = CliRunner().invoke(app, ["data", "info", str(root)])
    assert result.exit_code == 0
    assert f"data set  {name}: 6 frames" in result.output


# ---------------------------------------------------------------- faults


def cut(end: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:end])


def gone(path: Path) -> None:
    path.unlink()


def edit_lines(number: int, line: str | None) -> Callable[[Path], object]:
    """Put a line in the place of the one of this number; None takes it out."""

    def change(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[number : number + 1] = [] if line is None else [line]
        path.write_text("\n".join(lines) + "\n")

    return change


def edit_rows(number: int, **columns: object) -> Callable[[Path], object]:
    """Put values into a row of a table of nuScenes."""

    def change(path: Path) -> None:
        rows = json.loads(path.read_text())
        rows[number].update(columns)
        path.write_text(json.dumps(rows))

    return change


def edit_values(kind: str, row: int, value: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        values = np.fromfile(path, dtype=kind)
        values[row] = value
        values.tofile(path)

    return change


def resize(path: Path) -> None:
    with Image.open(path) as image:
        small = image.resize((96, 54))
    small.save(path)


MOVED = "1 0 0 500 0 1 0 0 0 0 1 0"
SCALED = "2 0 0 5 0 2 0 0 0 0 2 0"
VELODYNE = "sequences/08/velodyne/000001.bin"
VELODYNE_2 = "sequences/08/velodyne/000002.bin"

ANNOTATIONS = "v1.0-mini/sample_annotation.json"
LABELS = "sequences/08/labels/000001.label"

#: (layout, file or pattern, damage, kind, words of the message, what is blamed if not the file itself)
FAULTS: list[tuple[str, str, Callable[[Path], object], str, str, str]] = [
    ("nuscenes", "samples/LIDAR_TOP/*", gone, "missing-file", "does not exist", ""),
    ("nuscenes", "samples/LIDAR_TOP/*", cut(-3), "unreadable-points", "not a whole number of rows", ""),
    ("nuscenes", "samples/LIDAR_TOP/*", cut(0), "empty-file", "0 bytes", ""),
    ("nuscenes", "samples/LIDAR_TOP/*", cut(-20), "bad-labels", "3539", "lidarseg/*/*.bin"),
    ("nuscenes", "samples/LIDAR_TOP/*", edit_values("<f4", 0, np.nan), "non-finite", "1 of 3540", ""),
    ("nuscenes", "samples/CAM_BACK/*", gone, "missing-file", "does not exist", ""),
    ("nuscenes", "samples/CAM_BACK/*", cut(-200), "unreadable-image", "truncated", ""),
    ("nuscenes", "samples/CAM_BACK/*", resize, "image-size", "96 x 54 pixels, the calibration is for 192 x 108", ""),
    ("nuscenes", "lidarseg/*/*.bin", gone, "missing-file", "does not exist", ""),
    ("nuscenes", "lidarseg/*/*.bin", cut(-1), "bad-labels", "3539", ""),
    ("nuscenes", "lidarseg/*/*.bin", edit_values("u1", 9, 77), "unknown-label", "has no label 77", ""),
    ("nuscenes", ANNOTATIONS, edit_rows(0, size=[0, 4, 2]), "bad-boxes", "1 of 9 boxes are without size", "v1.0-mini"),
    ("nuscenes", ANNOTATIONS, edit_rows(0, rotation=[0, 0, 0, 0]), "bad-boxes", "(all frames)", ""),
    (
        "nuscenes",
        ANNOTATIONS,
        edit_rows(0, instance_token="nobody"),
        "bad-boxes",
        "'nobody'",
        "v1.0-mini/instance.json",
    ),
    ("nuscenes", ANNOTATIONS, edit_rows(0, num_lidar_pts=5000), "box-recount", "instead of 5000", "v1.0-mini"),
    ("semantickitti", VELODYNE, cut(-3), "unreadable-points", "not a whole number of rows", ""),
    ("semantickitti", VELODYNE, cut(-16), "bad-labels", "3540", LABELS),
    ("semantickitti", LABELS, cut(-4), "bad-labels", "3539", ""),
    ("semantickitti", LABELS, cut(0), "empty-file", "0 bytes", ""),
    ("semantickitti", LABELS, edit_values("<u4", 5, 77), "unknown-label", "no label 77", ""),
    ("semantickitti", "sequences/08/image_2/000001.png", cut(-200), "unreadable-image", "truncated", ""),
    ("semantickitti", "sequences/08/times.txt", edit_lines(1, "-5.0"), "time-backwards", "of 08_000000", VELODYNE),
    ("semantickitti", "sequences/08/poses.txt", edit_lines(2, MOVED), "pose-jump", "to 08_000002", VELODYNE_2),
    ("semantickitti", "sequences/08/poses.txt", edit_lines(2, None), "broken-frame", "has 2 lines", ""),
    ("kitti", "training/velodyne/000002.bin", cut(-3), "unreadable-points", "not a whole number of rows", ""),
    ("kitti", "training/velodyne/000002.bin", edit_values("<f4", 3, 9.0), "intensity-range", "to 9", ""),
    ("kitti", "training/image_2/000002.png", cut(-200), "unreadable-image", "truncated", ""),
    ("kitti", "training/calib/000002.txt", edit_lines(4, "R0_rect: 2 0 0 0 2 0 0 0 2"), "broken-frame", "R0_rect", ""),
    ("kitti", "training/label_2/000002.txt", edit_lines(0, "Car 0 0"), "bad-boxes", "000002.txt", ""),
    ("rig", "scene_0000/lidar/000001.bin", cut(-3), "unreadable-points", "", ""),
    ("rig", "scene_0000/labels/000001.label", cut(-4), "bad-labels", "3539", ""),
    ("rig", "scene_0000/cameras/left/000001.png", cut(-200), "unreadable-image", "truncated", ""),
]


@pytest.mark.parametrize(
    ("layout", "file", "damage", "kind", "words", "blamed"),
    FAULTS,
    ids=[f"{f[0]}-{n}-{f[3]}" for n, f in enumerate(FAULTS)],
)
def test_a_fault_in_a_layout_is_found_alone_with_its_file(
    copy: Callable[[str], Path],
    layout: str,
    file: str,
    damage: Callable[[Path], object],
    kind: str,
    words: str,
    blamed: str,
) -> None:
    root = copy(layout)
    path = sorted(root.glob(file))[0]
    damage(path)
    found = check(f"{layout}:{root}").findings
    assert [finding.kind for finding in found] == [kind]
    assert words in found[0].message
    assert found[0].path == str(path) if not blamed else Path(found[0].path).match(f"{root}/{blamed}")


#: What readers find while they open: (layout, file, damage, words)
UNOPENED: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("nuscenes", "v1.0-mini/sample_data.json", edit_rows(0, ego_pose_token="nowhere"), "'nowhere'"),
    ("nuscenes", "v1.0-mini/sample_data.json", edit_rows(0, calibrated_sensor_token="none"), "'none'"),
    ("nuscenes", "v1.0-mini/ego_pose.json", edit_rows(0, rotation=[0, 0, 0, 0]), "ego_pose.json"),
    ("nuscenes", "v1.0-mini/sample.json", gone, "sample.json"),
    ("nuscenes", "v1.0-mini/sample.json", cut(-9), "sample.json"),
    ("semantickitti", "sequences/08/calib.txt", edit_lines(4, "Tr: 1 2 3"), "calib.txt"),
    ("semantickitti", "sequences/08/poses.txt", edit_lines(2, SCALED), "poses.txt"),
    ("rig", "rig.yaml", cut(60), "rig.yaml"),
    ("rig", "scene_0000/lidar/timestamps.txt", edit_lines(1, "soon"), "timestamps.txt"),
]


@pytest.mark.parametrize(
    ("layout", "file", "damage", "words"), UNOPENED, ids=[f"{f[0]}-{n}" for n, f in enumerate(UNOPENED)]
)
def test_what_the_reader_finds_is_said_with_its_file(
    copy: Callable[[str], Path], layout: str, file: str, damage: Callable[[Path], object], words: str
) -> None:
    root = copy(layout)
    damage(root / file)
    result = CliRunner().invoke(app, ["data", "check", f"{layout}:{root}", "-j", "0"])
    assert result.exit_code == 2, result.output
    assert words in result.output.replace("\n", "")
    assert "reader fails" not in result.output


def test_every_missing_file_is_listed_where_a_reader_would_stop_at_the_first(copy: Callable[[str], Path]) -> None:
    root = copy("kitti") / "training"
    missing = [root / "image_2" / "000000.png", root / "image_2" / "000002.png", root / "calib" / "000001.txt"]
    for path in missing:
        path.unlink()
    result = CliRunner().invoke(app, ["data", "check", f"kitti:{root.parent}", "-j", "0"])
    assert result.exit_code == 1, result.output
    for path in missing:
        assert f"{path.parent.name}/{path.name}" in result.output.replace("\n", "").replace(" ", "")
    with pytest.raises(DataError, match=r"000000\.png is missing|000001\.txt is missing"):
        open_dataset(f"kitti:{root.parent}")


# ---------------------------------------------------------------- scans that are gone, and sweeps


def of_command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", "check", *map(str, arguments), "-j", "0"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("layout", "scan", "left"),
    [
        ("kitti", "training/velodyne/000002.bin", "training/image_2/000002.png"),
        ("kitti", "training/velodyne/001001.bin", "training/image_2/001001.png"),
        ("semantickitti", "sequences/08/velodyne/000001.bin", LABELS),
        ("semantickitti", "sequences/08/velodyne/000002.bin", "sequences/08/labels/000002.label"),
    ],
)
def test_a_scan_that_is_gone_is_told_by_what_it_left(
    copy: Callable[[str], Path], layout: str, scan: str, left: str
) -> None:
    root = copy(layout)
    (root / scan).unlink()
    (finding,) = check(f"{layout}:{root}").findings
    assert (finding.kind, finding.severity, finding.index) == ("orphan", "warning", -1)
    assert finding.path == str(root / left)
    assert f"its scan {root / scan} is not" in finding.message
    status, text = of_command(f"{layout}:{root}")
    assert status == 1
    assert "5 frames checked" in text and "1 warning" in text


@pytest.mark.parametrize("left", ["calib", "label_2"])
def test_one_file_of_a_frame_is_enough_to_miss_its_scan(copy: Callable[[str], Path], left: str) -> None:
    root = copy("kitti")
    for path in (root / "training").glob("*/000002.*"):
        if path.parent.name != left:
            path.unlink()
    (finding,) = check(f"kitti:{root}#cameras=").findings
    assert (finding.kind, finding.path) == ("orphan", str(root / "training" / left / "000002.txt"))


def test_frames_that_a_split_leaves_out_are_not_missed(copy: Callable[[str], Path]) -> None:
    root = copy("kitti")
    (root / "training" / "velodyne" / "000002.bin").unlink()
    (root / "ImageSets").mkdir(exist_ok=True)
    (root / "ImageSets" / "some.txt").write_text("000000\n000001\n")
    assert check(f"kitti:{root}#split=some").findings == ()


def test_kitti_raw_notes_images_whose_scan_was_never_published(tmp_path: Path) -> None:
    day = small_kitti.write_kitti_raw(tmp_path / "2011_09_26")  # scans 0 and 5, images 0, 5 and 9
    drive = day / "2011_09_26_drive_0001_sync"
    lone = [finding for finding in check(f"kitti_raw:{day}").findings if finding.index < 0]
    assert [(finding.kind, finding.severity) for finding in lone] == [("image-without-scan", "note")]
    assert lone[0].path == str(drive / "image_02" / "data" / "0000000009.png")
    assert f"its scan {drive / 'velodyne_points' / 'data' / '0000000009.bin'} is not" in lone[0].message


def test_a_number_that_a_sequence_leaves_out_is_a_note(copy: Callable[[str], Path]) -> None:
    root = copy("semantickitti")
    sequence = root / "sequences" / "08"
    for folder in ("velodyne", "labels", "image_2", "image_3"):
        for path in sorted((sequence / folder).glob("*")):
            if path.stem == "000002":  # 0, 1, 2 become 0, 1, 4
                path.rename(path.with_stem("000004"))
    for name in ("poses.txt", "times.txt"):
        lines = (sequence / name).read_text().splitlines()
        (sequence / name).write_text("\n".join([*lines, *lines[-1:] * 2]) + "\n")
    (finding,) = check(f"semantickitti:{root}").findings
    assert (finding.kind, finding.severity) == ("number-gap", "note")
    assert finding.path == str(sequence / "velodyne" / "000004.bin")
    assert "000004.bin: just before it, no scan has the numbers 2 to 3" in finding.message


def test_sweeps_of_nuscenes_are_read_where_they_are_asked_for(copy: Callable[[str], Path]) -> None:
    root = copy("nuscenes")
    sweeps = sorted((root / "sweeps" / "LIDAR_TOP").glob("*"))
    clean = check(f"nuscenes:{root}#sweeps=9")
    assert clean.findings == ()
    assert clean.looked_at["sweeps"] == len(sweeps) > 1
    assert clean.unchecked == ("sweeps further than 4 before a key frame, if there are any (add #sweeps=9)",)
    cut(20_001)(sweeps[1])  # not a whole number of rows
    (finding,) = check(f"nuscenes:{root}#sweeps=9").findings
    assert (finding.kind, finding.path) == ("unreadable-points", str(sweeps[1]))
    assert "not a whole number of rows" in finding.message
    status, text = of_command(f"nuscenes:{root}")
    assert status == 0
    assert "not checked: sweeps between key frames (add #sweeps=9)" in text
    assert ", 0 sweeps" in text


def test_sweeps_that_are_frames_are_read_as_these_alone(copy: Callable[[str], Path]) -> None:
    report = check(f"semantickitti:{copy('semantickitti')}#sweeps=2")
    assert report.findings == ()
    assert (report.looked_at["scans"], report.looked_at["sweeps"]) == (6, 0)


# ---------------------------------------------------------------- real frames


def notes(report: Report) -> dict[str, str]:
    """Frame -> what is noted; nothing else may have been found."""
    assert report.clean, report.findings
    return {finding.frame: finding.message.partition(": ")[2] for finding in report.findings}


@pytest.mark.parametrize(
    ("spec", "frames"),
    [
        ("kitti:{}/kitti", 12),
        ("kitti_raw:{}/kitti_raw", 16),
        ("semantickitti:{}/semantickitti", 1),
        ("av2:{}/av2/sensor", 2),
    ],
)
def test_real_frames_are_clean(shared_data: Path, spec: str, frames: int) -> None:
    report = check(spec.format(shared_data))
    assert report.frames == frames
    assert notes(report) == {}


def test_real_frames_with_points_at_the_origin_are_clean_with_a_note(shared_data: Path) -> None:
    assert notes(check(f"nuscenes:{shared_data / 'nuscenes'}")) == {
        "ca9a282c9e77460f8360f564131a8af5": "57 of 34688 points are at the origin"
    }
    # 131,072 slots, of which 77,708 are not zero: ../shared/data/README.md.
    (text,) = notes(check(f"rellis3d:{shared_data / 'rellis3d'}")).values()
    assert text == "53364 of 131072 points are at the origin"


@pytest.mark.parametrize(
    ("spec", "frames"),
    [
        ("kitti:{}/kitti_drives#scene=3", 113),
        ("kitti:{}/kitti_xyz_only", 2),
        ("kitti:{}/kitti_stereo", 1),
        ("semantickitti:{}/semantickitti", 3),
    ],
)
def test_more_real_frames_are_clean(shared_data_more: Path, spec: str, frames: int) -> None:
    report = check(spec.format(shared_data_more))
    assert report.frames == frames
    assert notes(report) == {}


def test_a_real_scan_that_lost_its_end_is_told_by_those_around(shared_data: Path, tmp_path: Path) -> None:
    """As frame 77 of the same drive, which public copies have with 69,719 points."""
    root = tmp_path / "kitti_raw"
    shutil.copytree(shared_data / "kitti_raw", root, copy_function=lambda a, b: Path(b).symlink_to(a))
    scan = sorted(root.rglob("velodyne_points/data/*.bin"))[7]
    data = scan.read_bytes()[: 16 * 69_719]
    scan.unlink()
    scan.write_bytes(data)
    (finding,) = check(f"kitti_raw:{root}").findings
    assert (finding.kind, finding.path) == ("few-points", str(scan))
    assert "has 69719 points" in finding.message
