"""`clever3d rig check`: its measures against scenes drawn by hand, and faults put into real frames on purpose."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rig_faults
import rig_frames
import yaml
from PIL import Image
from test_rig import config, make
from typer.testing import CliRunner

from clever3d.cli import app
from clever3d.datasets import Camera, Rig
from clever3d.errors import DataError, InputError
from clever3d.evaluate.calibration import check_rig
from clever3d.evaluate.calibration.agreement import few_shifts, grid_shifts, make_scene, measure
from clever3d.evaluate.calibration.cloud import cloud_facts
from clever3d.evaluate.calibration.edges import SIDE, TOP, image_edges, scan_edges
from clever3d.evaluate.calibration.hypotheses import letters

FOCAL, WIDTH, HEIGHT = 380.0, 640, 360
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
TO_CAMERA = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])

#: Posters (azimuth, elevation of the middle, half width, half height; degrees; metres away) before a wall at 30 m.
POSTERS = [(-22, 2, 3, 6, 8), (-9, -3, 2, 3, 12), (4, 3, 1.5, 7, 10), (13, -2, 4, 4, 15), (27, 1, 2, 5, 9)]


def rays(up: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A scan of the posters: 0.2 degrees between rays, 0.4 between beams, at every ray the range and 0.5. [N, 3]"""
    azimuth, elevation = np.meshgrid(np.arange(-45, 45, 0.2), np.arange(-18.1, 18, 0.4))
    distance = np.full(azimuth.shape, 30.0)
    for az, el, wide, high, away in POSTERS:
        distance[(np.abs(azimuth - az) < wide) & (np.abs(elevation - el) < high)] = away
    a, e = np.radians(azimuth), np.radians(elevation)
    unit = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=-1)
    xyz = (unit * distance[..., None]).reshape(-1, 3)
    return np.roll(xyz, up - 2, axis=1), np.full(len(xyz), 0.5)


def photograph(path: Path, right: float = 0.0, down: float = 0.0) -> Camera:
    """Grey posters on a white wall, drawn ray by ray, the picture shifted by so many degrees."""
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    x = (u - INTRINSICS[0, 2]) / FOCAL - np.tan(np.radians(right))
    y = (v - INTRINSICS[1, 2]) / FOCAL - np.tan(np.radians(down))
    azimuth, elevation = np.degrees(np.arctan(-x)), np.degrees(np.arctan2(-y, np.hypot(1, x)))
    grey = np.full(u.shape, 220, dtype=np.uint8)
    for number, (az, el, wide, high, _) in enumerate(POSTERS):
        grey[(np.abs(azimuth - az) < wide) & (np.abs(elevation - el) < high)] = 40 + 20 * number
    Image.fromarray(grey).save(path)
    return Camera("camera", path, INTRINSICS, TO_CAMERA, image_size=(WIDTH, HEIGHT))


def test_edges_of_a_scan_are_the_borders_of_what_is_near() -> None:
    edges = scan_edges(*rays(), np.eye(3))
    middle = (edges.first + edges.second) / 2
    azimuth = np.degrees(np.arctan2(middle[:, 1], middle[:, 0]))
    borders = np.array([az + side * wide for az, _, wide, _, _ in POSTERS for side in (-1, 1)])
    side, top = edges.kind == SIDE, edges.kind == TOP
    assert side.sum() > 100 and top.sum() > 50
    # Half a ray: the border is somewhere between the two.
    assert np.abs(azimuth[side, None] - borders).min(axis=1).max() <= 0.11
    elevation = np.degrees(np.arcsin(middle[:, 2] / np.linalg.norm(middle, axis=1)))
    tops = np.array([el + high for _, el, _, high, _ in POSTERS])
    # A column is wider than a ray: at a poster's side, the next beam's ray may pass beside it.
    off = np.minimum(np.abs(elevation[:, None] - tops).min(axis=1), np.abs(azimuth[:, None] - borders).min(axis=1))
    assert off[top].max() <= 0.21


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (0.9, 0.0), (-1.2, 0.6), (0.3, -1.5)])
def test_the_best_shift_is_the_one_the_picture_was_drawn_with(tmp_path: Path, right: float, down: float) -> None:
    camera = photograph(tmp_path / "p.png", right, down)
    xyz, intensity = rays()
    scene = make_scene(xyz, scan_edges(xyz, intensity, np.eye(3)))
    evidence = measure(scene, camera, image_edges(camera.image_path, FOCAL), grid_shifts())
    shift, score = evidence.peak()
    assert shift == pytest.approx((right, down), abs=0.2)
    assert score > 5


def test_only_a_right_calibration_has_a_high_score(tmp_path: Path) -> None:
    xyz, intensity = rays()
    scene = make_scene(xyz, scan_edges(xyz, intensity, np.eye(3)))
    scores = []
    for right in (0.0, 1.0, 2.0, -1.5):
        camera = photograph(tmp_path / "p.png", right)
        scores.append(measure(scene, camera, image_edges(camera.image_path, FOCAL), few_shifts()).z)
    assert scores[0] > 5 * max(scores[1:])


def test_a_picture_of_nothing_is_no_evidence(tmp_path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 128).save(tmp_path / "p.png")
    camera = Camera("camera", tmp_path / "p.png", INTRINSICS, TO_CAMERA)
    xyz, intensity = rays()
    scene = make_scene(xyz, scan_edges(xyz, intensity, np.eye(3)))
    assert abs(measure(scene, camera, image_edges(camera.image_path, FOCAL), few_shifts()).z) < 1


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_spin_axis_and_the_ground_are_found(up: int) -> None:
    azimuth, elevation = np.meshgrid(np.radians(np.arange(0, 360, 0.5)), np.radians(np.arange(-20, 5, 1.0)))
    distance = np.where(elevation < 0, np.minimum(1.8 / np.sin(-np.minimum(elevation, -1e-3)), 40.0), 40.0)
    unit = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    xyz = np.roll((unit * distance[..., None]).reshape(-1, 3), up - 2, axis=1)
    facts = cloud_facts(xyz)
    assert facts.up == (up, 1.0) and facts.unit == "m"
    assert facts.ground == pytest.approx(-1.8, abs=0.16)
    assert cloud_facts(-xyz).up == (up, -1.0)
    assert cloud_facts(1000 * xyz).unit == "mm" and cloud_facts(100 * xyz).unit == "cm"


def test_letters_are_the_inverse_of_to_flu() -> None:
    from clever3d.datasets.rig_config import axes_matrix

    for axes in ("flu", "rfu", "lbu", "bru", "fru", "fdl", "urb"):
        assert letters(axes_matrix(axes)) == axes


# ------------------------------------------------------------------------------------------------ real frames


Fault = Any
#: Name -> what it does to a rig folder, the finding it has to give, and what the mend has to say.
FAULTS: dict[str, tuple[Fault, str, str]] = {
    "scans turned": (rig_faults.scans_turned, "axes", r"write `axes: rfu` .*add `extrinsics_axes: flu`"),
    "scans with y up": (rig_faults.scans_y_up, "axes", r"write `axes: fur` .*add `extrinsics_axes: flu`"),
    "scans mirrored": (rig_faults.scans_mirrored, "mirrored", r"write `axes: fru` .*add `extrinsics_axes: flu`"),
    "letters turned": (rig_faults.letters_turned, "axes", r"write `axes: flu` instead of `axes: rfu`"),
    "letters tilted": (rig_faults.letters_tilted, "axes", r"write `axes: flu` instead of `axes: fdl`"),
    "inverted": (rig_faults.inverted, "inverted", r"write `lidar_to_camera:` instead of `camera_to_lidar:`"),
    "translation in mm": (rig_faults.translation_in_mm, "unit", r"`translation: \[0\.05\d+, -0\.07\d+, -0\.26"),
    "scans in mm": (rig_faults.scans_in_mm, "unit", r"add `unit: mm`"),
    "quaternion": (rig_faults.quaternion_order, "quaternion", r"last number first"),
    "intrinsics of larger images": (
        partial(rig_faults.images_halved, say_so=True),
        "image size",
        r"`intrinsics: \{fx: 360\.\d+, fy: 360\.\d+, cx: 304\.\d+, cy: 86\.\d+\}`",
    ),
    "focal length": (rig_faults.focal_wrong, "focal length", r"calibrate the camera anew; about `intrinsics: \{fx: 7"),
    "images one frame late": (partial(rig_faults.images_late, frames=1), "time offset", r"`number_offset: 5`"),
    "turned 1 degree": (partial(rig_faults.rotated, right=1), "rotation", r"write `rotation: \[\["),
    "turned 2 degrees": (partial(rig_faults.rotated, down=2), "rotation", r"write `rotation: \[\["),
    "rolled 2 degrees": (partial(rig_faults.rotated, roll=2), "rotation", r"write `rotation: \[\["),
}


QUICK = (
    "scans turned", "letters tilted", "inverted", "translation in mm", "scans in mm", "intrinsics of larger images",
    "images one frame late", "turned 1 degree",
)  # fmt: skip


@pytest.mark.parametrize(
    "fault", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_a_fault_put_into_real_frames_is_found_and_mended(tmp_path: Path, shared_data: Path, fault: str) -> None:
    """KITTI raw, three frames of a slow motorway: each fault gives its own finding, no other, and the right line."""
    damage, expected, mend = FAULTS[fault]
    rig = rig_frames.kitti_raw(tmp_path, shared_data)
    damage(rig)
    report = check_rig(Rig(rig.write()), frames=3)
    assert [finding.fault for finding in report.findings] == [expected]
    assert re.search(mend, report.findings[0].mend), report.findings[0].mend
    assert report.exit_status == 1


@pytest.mark.parametrize("name", ["kitti_raw", "drive 005", "rellis3d", "kitti_stereo"])
def test_right_calibrations_raise_no_alarm(
    tmp_path: Path, shared_data: Path, shared_data_more: Path, name: str
) -> None:
    rig = rig_frames.everything(shared_data, shared_data_more)[name](tmp_path)
    report = check_rig(Rig(rig.write()), frames=3)
    assert report.findings == () and report.exit_status == 0
    assert all(camera.score >= 4 for camera in report.cameras)


def test_the_mend_of_a_rotation_brings_the_calibration_back(tmp_path: Path, shared_data: Path) -> None:
    """The line that the check prints, put into rig.yaml, is the calibration as it was, within half a degree."""
    rig = rig_frames.kitti_raw(tmp_path, shared_data)
    truth = np.array(rig.cameras["front"]["lidar_to_camera"]["rotation"])
    rig_faults.rotated(rig, right=1.5, down=-0.9)
    report = check_rig(Rig(rig.write()), frames=3)
    found = re.search(r"`rotation: (\[\[.*\]\])` and `translation: (\[.*\])`", report.findings[0].mend)
    assert found is not None
    mended = np.array(yaml.safe_load(found[1]))
    angle = np.degrees(np.arccos((np.trace(mended @ truth.T) - 1) / 2))
    assert angle < 0.5
    rig.cameras["front"]["lidar_to_camera"] = {"rotation": mended.tolist(), "translation": yaml.safe_load(found[2])}
    assert check_rig(Rig(rig.write()), frames=3).exit_status == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kitti", "drive 001", "drive 005", "nuscenes", "rellis3d"])
@pytest.mark.parametrize("fault", ["scans turned", "scans mirrored", "letters tilted", "inverted", "translation in mm"])
def test_gross_faults_are_found_in_every_set(
    tmp_path: Path, shared_data: Path, shared_data_more: Path, name: str, fault: str
) -> None:
    damage, expected, _ = FAULTS[fault]
    rig = rig_frames.everything(shared_data, shared_data_more)[name](tmp_path)
    damage(rig)
    report = check_rig(Rig(rig.write()))
    found = {finding.camera for finding in report.findings if finding.fault == expected}
    assert found == {None} or len(found) >= 0.8 * len(report.cameras)


def test_a_wrong_clock_is_mended_by_time_offset(tmp_path: Path, shared_data: Path) -> None:
    """Files are matched by the number in their names, taken for seconds; frames are 5 numbers apart."""
    rig = rig_frames.kitti_raw(tmp_path, shared_data)
    rig.config["lidar"]["timestamps"] = "names"
    rig.cameras["front"].update(timestamps="names", time_offset=5)
    rig.config["matching"] = {"by": "time", "max_time_difference": 0.5, "missing_images": "skip"}
    (finding,) = check_rig(Rig(rig.write()), frames=3).findings
    assert finding.fault == "time offset" and "1 frame later" in finding.text
    assert finding.mend.endswith("write `time_offset: 0`")


def test_swapped_cameras_are_found(tmp_path: Path, shared_data: Path) -> None:
    rig = rig_frames.nuscenes(tmp_path, shared_data)
    rig.config["cameras"] = {name: rig.cameras[name] for name in ("CAM_FRONT_RIGHT", "CAM_BACK_LEFT")}
    rig_faults.cameras_swapped(rig)
    report = check_rig(Rig(rig.write()))
    assert {(f.fault, f.camera) for f in report.findings} == {("swapped cameras", name) for name in rig.cameras}


@pytest.mark.parametrize("axes", ["rfu", pytest.param("lbu", marks=pytest.mark.slow), "flu"])
def test_a_lone_camera_called_left_may_look_forward(tmp_path: Path, shared_data: Path, axes: str) -> None:
    """It may be one of a stereo pair or a side camera: no letters are put forward as the right ones."""
    rig = rig_frames.kitti_raw(tmp_path, shared_data)
    rig.config["cameras"] = {"left": rig.cameras["front"]}
    rig.config["lidar"]["axes"] = axes
    (finding,) = check_rig(Rig(rig.write()), frames=3).findings
    if axes == "rfu":
        assert finding.level == "warning" and "write" not in finding.mend
        assert "one of bru, flu, lbu" in finding.mend and "look at the pictures" in finding.mend
    else:
        assert finding.level == "note" and "was not checked" in finding.text


@pytest.mark.parametrize("axes", ["rfu", pytest.param("bru", marks=pytest.mark.slow)])
def test_left_and_right_that_look_the_same_way_are_a_stereo_pair(
    tmp_path: Path, shared_data_more: Path, axes: str
) -> None:
    rig = rig_frames.kitti_stereo(tmp_path, shared_data_more)
    rig.config["cameras"] = {"left": rig.cameras["front_left"], "right": rig.cameras["front_right"]}
    assert check_rig(Rig(rig.write())).findings == ()
    rig.config["lidar"]["axes"] = axes
    (finding,) = check_rig(Rig(rig.write())).findings
    assert finding.fault == "axes" and finding.mend.endswith(f"write `axes: flu` instead of `axes: {axes}`")


@pytest.mark.parametrize("name", ["image_2", "cam"])
def test_a_forward_direction_that_nothing_tells_is_noted(tmp_path: Path, shared_data: Path, name: str) -> None:
    rig = rig_frames.kitti_raw(tmp_path, shared_data)
    rig.config["cameras"] = {name: rig.cameras["front"]}
    rig.config["lidar"]["axes"] = "rfu"
    report = check_rig(Rig(rig.write()), frames=3)
    (note,) = report.findings
    assert report.exit_status == 0 and note.level == "note"
    assert note.text.startswith("which way is forward was not checked")


@pytest.mark.parametrize(
    ("move", "words"),
    [
        ({"down": 0.2}, r"^the camera is about 0\.2 m further down than"),
        pytest.param({"forward": 0.5}, r"^the camera is about 0\.5 m further forward than", marks=pytest.mark.slow),
        ({"forward": 1.0}, r"^the focal length is .*; or the camera is about 1 m further forward than"),
    ],
)
def test_a_wrong_translation_is_no_other_fault(
    tmp_path: Path, shared_data: Path, move: dict[str, float], words: str
) -> None:
    rig = rig_frames.kitti_raw(tmp_path, shared_data)
    truth = rig.cameras["front"]["lidar_to_camera"]["translation"]
    rig_faults.moved(rig, **move)
    (finding,) = check_rig(Rig(rig.write())).findings
    assert re.search(words, finding.text), finding.text
    if finding.fault == "translation":
        found = re.search(r"`translation: (\[.*?\])`", finding.mend)
        assert found is not None and np.allclose(yaml.safe_load(found[1]), truth, atol=0.01)
    else:
        assert finding.mend.startswith("measure where the camera is; if it is where the translation says: ")


def test_a_low_score_is_never_nothing_found(tmp_path: Path, shared_data: Path) -> None:
    """A warning for five frames; for three, of which a right calibration once had 3.1, a note."""
    rig = rig_frames.kitti_raw(tmp_path, shared_data)
    rig_faults.focal_wrong(rig, 0.85)
    report = check_rig(Rig(rig.write()))
    (finding,) = report.findings
    assert 2.5 < report.cameras[0].score < 4
    assert (finding.level, finding.fault, report.exit_status) == ("warning", "doubtful", 1)
    one = check_rig(Rig(rig.folder), frames=3)
    assert one.cameras[0].score < 4 and one.findings
    assert all(finding.level == "note" for finding in one.findings if finding.fault == "doubtful")


def test_a_wrong_time_offset_is_mended_where_it_stands_if_poses_are_used(tmp_path: Path) -> None:
    """Files go together by name; the time of an image says only where its camera was."""
    from clever3d.evaluate.calibration.hypotheses import time_mend

    folder, settings = small_rig(tmp_path)
    settings["lidar"]["timestamps"] = "names"
    settings["cameras"]["front"].update(timestamps="names", time_offset=0.3)
    poses = "".join(f"{time} {time} 0 0 0 0 0 1\n" for time in range(4))
    (folder / "poses.txt").write_text(poses)
    settings["poses"] = {"file": "poses.txt"}
    (folder / "rig.yaml").write_text(yaml.safe_dump(settings))
    rig = Rig(folder).config
    assert time_mend(rig, rig.cameras[0], 3, 0.3).endswith("cameras.front.time_offset: write `time_offset: 0`")
    del settings["poses"]
    (folder / "rig.yaml").write_text(yaml.safe_dump(settings))
    rig = Rig(folder).config
    assert "number_offset: 3" in time_mend(rig, rig.cameras[0], 3, 0.3)


# -------------------------------------------------------------------------------------------------- bad input


def small_rig(folder: Path, frames: int = 3, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """A rig of the posters."""
    settings = config(**changes)
    camera = settings["cameras"]["front"]
    camera["image_size"] = [WIDTH, HEIGHT]
    camera["intrinsics"] = {"fx": FOCAL, "fy": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    make(folder, settings, tuple(f"{k}" for k in range(frames)))
    for k in range(frames):
        xyz, intensity = rays()
        np.save(folder / "lidar" / f"{k}.npy", np.column_stack([xyz, intensity]).astype(np.float32))
        photograph(folder / "front" / f"{k}.png")
    return folder, settings


def test_one_bad_image_is_named_and_ends_nothing(tmp_path: Path) -> None:
    folder, _ = small_rig(tmp_path)
    (folder / "front" / "1.png").write_bytes(b"")
    (folder / "lidar" / "2.npy").write_bytes(b"\x93NUMPY")
    report = check_rig(Rig(folder), frames=3)
    assert report.exit_status == 2 and report.cameras[0].frames == 1
    texts = [finding.text for finding in report.findings if finding.level == "error"]
    assert any("1.png is empty (0 bytes)" in text for text in texts)
    assert any("2.npy" in text for text in texts)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    folder, _ = small_rig(tmp_path, frames=1)
    (folder / "lidar" / "0.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"no frame can be read; the first: .*0\.npy"):
        check_rig(Rig(folder))
    with pytest.raises(InputError, match="frames=0"):
        check_rig(Rig(folder), frames=0)


def test_images_of_another_size_are_an_error_with_both_mends(tmp_path: Path) -> None:
    folder, settings = small_rig(tmp_path)
    settings["cameras"]["front"]["image_size"] = [2 * WIDTH, 2 * HEIGHT]
    settings["cameras"]["front"]["intrinsics"] = [[760, 0, 640.5], [0, 760, 360.5], [0, 0, 1]]
    (folder / "rig.yaml").write_text(yaml.safe_dump(settings))
    report = check_rig(Rig(folder))
    (finding,) = report.findings
    assert (finding.level, finding.fault, finding.camera) == ("error", "image size", "front")
    assert "3 images are 640 x 360, the calibration is for 1280 x 720" in finding.text
    # (640.5 + 0.5) / 2 - 0.5: pixels are scaled about the image's corner
    assert "`image_size: [640, 360]`" in finding.mend
    assert "`intrinsics: {fx: 380, fy: 380, cx: 320, cy: 180}`" in finding.mend


def test_images_of_several_sizes_get_no_mend_that_breaks_the_others(tmp_path: Path) -> None:
    folder, _ = small_rig(tmp_path)
    path = folder / "front" / "1.png"
    with Image.open(path) as image:
        half = image.resize((WIDTH // 2, HEIGHT // 2))
    half.save(path)
    (finding,) = [finding for finding in check_rig(Rig(folder)).findings if finding.level == "error"]
    assert "its images differ in size: 1 of 320 x 180, 2 of 640 x 360" in finding.text
    assert "image_size:" not in finding.mend


def test_metres_taken_for_millimetres_are_named_with_the_line(tmp_path: Path) -> None:
    folder, settings = small_rig(tmp_path)
    settings["lidar"]["unit"] = "mm"
    (folder / "rig.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(DataError, match=r"line \d+: lidar\.unit: mm: if the scans are in metres, write `unit: m`"):
        check_rig(Rig(folder))


@pytest.mark.parametrize("turn", ["forward", "left", "right"])
def test_the_way_driven_is_said_as_left_or_right(tmp_path: Path, turn: str) -> None:
    folder, settings = small_rig(tmp_path)
    settings["lidar"]["timestamps"] = "names"
    x, y = {"forward": (1, 0), "left": (0, 1), "right": (0, -1)}[turn]
    (folder / "poses.txt").write_text("".join(f"{time} {time * x} {time * y} 0 0 0 0 1\n" for time in range(4)))
    settings["poses"] = {"file": "poses.txt"}
    (folder / "rig.yaml").write_text(yaml.safe_dump(settings))
    found = [finding.text for finding in check_rig(Rig(folder)).findings]
    wrong = [f"by the poses the rig drives 90 degrees to the {turn} of its forward axis"]
    assert found == ([] if turn == "forward" else wrong)


def test_a_camera_that_sees_no_point_is_named(tmp_path: Path) -> None:
    folder, settings = small_rig(tmp_path)
    # Behind the LiDAR, where these scans have no points, and upright.
    settings["cameras"]["front"]["lidar_to_camera"]["rotation"] = [[0, 1, 0], [0, 0, -1], [-1, 0, 0]]
    settings["cameras"]["side"] = settings["cameras"].pop("front")
    (folder / "rig.yaml").write_text(yaml.safe_dump(settings))
    report = check_rig(Rig(folder))
    assert report.cameras[0].in_view == 0
    assert report.findings and report.exit_status == 1


def test_points_without_images_can_be_checked(tmp_path: Path) -> None:
    folder, settings = small_rig(tmp_path)
    (folder / "rig.yaml").write_text(yaml.safe_dump({"lidar": settings["lidar"]}))
    assert check_rig(Rig(folder)).exit_status == 0


# ---------------------------------------------------------------------------------------------------- command


def test_the_command_prints_a_table_and_draws(tmp_path: Path) -> None:
    folder, _ = small_rig(tmp_path / "rig")
    pictures = tmp_path / "pictures"
    result = CliRunner().invoke(app, ["rig", "check", str(folder), "--frames", "2", "--out", str(pictures)])
    assert result.exit_code == 0, result.output
    assert "CAMERA" in result.output and "Nothing found." in result.output
    names = sorted(path.name for path in pictures.iterdir())
    assert names == ["0_front.png", "2_front.png", "score_front.png"]
    with Image.open(pictures / "0_front.png") as picture:
        pixels = np.asarray(picture)
    # The posters, 8 to 15 m away, and the wall at 30 m have colours of their own.
    assert picture.size[0] == 1600 and len(np.unique(pixels[:-60].reshape(-1, 3), axis=0)) > 20


def test_the_command_answers_in_json_and_by_its_status(tmp_path: Path) -> None:
    folder, settings = small_rig(tmp_path)
    settings["cameras"]["front"]["lidar_to_camera"]["translation"] = [0, 0, 400]
    (folder / "rig.yaml").write_text(yaml.safe_dump(settings))
    result = CliRunner().invoke(app, ["rig", "check", str(folder), "--json"])
    assert result.exit_code == 1
    answer = json.loads(result.output)
    assert answer["exit_status"] == 1 and answer["frames"] == ["0", "1", "2"]
    assert answer["findings"][0]["fault"] == "unit" and "translation: [0, 0, 0.4]" in answer["findings"][0]["mend"]
    (folder / "rig.yaml").write_text("lidar: {file: x}")
    result = CliRunner().invoke(app, ["rig", "check", str(folder)])
    assert result.exit_code == 2 and "did you mean 'files'" in result.stderr


def test_new_and_check_go_together(tmp_path: Path) -> None:
    folder, settings = small_rig(tmp_path)
    result = CliRunner().invoke(app, ["rig", "new", str(folder)])
    assert result.exit_code == 2 and "--force" in result.stderr
    result = CliRunner().invoke(app, ["rig", "new", str(folder), "--force"])
    assert result.exit_code == 0 and "Images: front/*.png (3 files, 640 x 360)." in result.output
    text = (folder / "rig.yaml").read_text()
    camera = settings["cameras"]["front"]
    for key, value in {
        "axes": "flu",
        "intrinsics": camera["intrinsics"],
        "rotation": camera["lidar_to_camera"]["rotation"],
        "translation": [0, 0, 0],
    }.items():
        text = re.sub(rf"(\n +{key}: )[^\n]*FILL_IN[^\n]*", lambda m, v=value: m[1] + json.dumps(v), text)
    (folder / "rig.yaml").write_text(text)
    result = CliRunner().invoke(app, ["rig", "check", str(folder)])
    assert result.exit_code == 0, result.output
