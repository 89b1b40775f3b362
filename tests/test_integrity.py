"""The check of data sets: each fault, put in on purpose, is found, alone and with its file; whole sets are clean."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_frames
from miniature import write_kitti
from PIL import Image
from toy_frames import FRAMES, POINTS, Toy
from typer.testing import CliRunner

from clever3d import datasets
from clever3d.cli import app
from clever3d.datasets import Frame, open_dataset
from clever3d.datasets.base import Sweep
from clever3d.datasets.integrity import KINDS, Report, State, check_dataset
from clever3d.datasets.integrity.images import check_image
from clever3d.datasets.integrity.pool import ProcessDied, run_isolated
from clever3d.datasets.integrity.sequence import few_points, number_gaps, uncompared
from clever3d.errors import DataError, InputError, MissingExtraError

BAD = 3  # the frame that each fault is put into
Frames = list[Frame]


def check(frames: Frames, **options: Any) -> Report:
    return check_dataset(Toy(frames), **{"jobs": 0, **options})


# ---------------------------------------------------------------- faults in files


def edit_scan(root: Path, change: Callable[[np.ndarray[Any, Any]], Any]) -> None:
    path = root / f"{BAD}.bin"
    rows = np.fromfile(path, dtype="<f4").reshape(-1, 4)
    changed = change(rows)
    (rows if changed is None else changed).tofile(path)


def put(row: Any, column: Any, value: float) -> Callable[[np.ndarray[Any, Any]], None]:
    def change(rows: np.ndarray[Any, Any]) -> None:
        rows[row, column] = value

    return change


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def edit_boxes(root: Path, **fields: object) -> None:
    path = root / f"{BAD}.json"
    rows = json.loads(path.read_text())
    rows[1].update(fields)
    path.write_text(json.dumps(rows))


def edit_labels(root: Path, change: Callable[[np.ndarray[Any, Any]], Any]) -> None:
    path = root / f"{BAD}.label"
    change(np.fromfile(path, dtype="<u4")).tofile(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("elsewhere"))


#: name -> (what is done to the folder, kinds expected, the file blamed, a part of the message)
IN_FILES: dict[str, tuple[Callable[[Path], object], set[str], str, str]] = {
    "scan missing": (lambda r: (r / "3.bin").unlink(), {"missing-file"}, "3.bin", "does not exist"),
    "scan empty": (lambda r: cut(r / "3.bin", 0), {"empty-file"}, "3.bin", "0 bytes"),
    "scan cut in a row": (lambda r: cut(r / "3.bin", -3), {"unreadable-points"}, "3.bin", "not a whole number"),
    "scan cut at a row": (lambda r: cut(r / "3.bin", -160), {"bad-labels"}, "3.label", "400 labels for 390 points"),
    "scan a link": (lambda r: dangling(r / "3.bin"), {"missing-file"}, "3.bin", "is a link to"),
    "NaN": (lambda r: edit_scan(r, put(5, 1, np.nan)), {"non-finite"}, "3.bin", "1 of 400 points"),
    "infinity": (lambda r: edit_scan(r, put(slice(4), 0, np.inf)), {"non-finite"}, "3.bin", "4 of 400 points"),
    "no intensity": (lambda r: edit_scan(r, put(5, 3, np.nan)), {"non-finite"}, "3.bin", "1 of 400 intensities"),
    "intensity": (lambda r: edit_scan(r, put(5, 3, 255.0)), {"intensity-range"}, "3.bin", "to 255"),
    "negative": (lambda r: edit_scan(r, put(5, 3, -0.5)), {"intensity-range"}, "3.bin", "-0.5 to"),
    "origin": (lambda r: edit_scan(r, put(slice(4), slice(0, 3), 0)), {"origin-points"}, "3.bin", "4 of 400"),
    "far": (lambda r: edit_scan(r, put(5, 0, 4e5)), {"far-points"}, "3.bin", "1 of 400 points are over 2000 m"),
    "image missing": (lambda r: (r / "3.png").unlink(), {"missing-file"}, "3.png", "does not exist"),
    "image empty": (lambda r: cut(r / "3.png", 0), {"empty-file"}, "3.png", "0 bytes"),
    "image cut": (lambda r: cut(r / "3.png", -2000), {"unreadable-image"}, "3.png", "truncated"),
    "image without end": (lambda r: cut(r / "3.png", -12), {"unreadable-image"}, "3.png", "no end mark"),
    "image changed": (lambda r: flip(r / "3.png"), {"unreadable-image"}, "3.png", "broken PNG"),
    "no image": (lambda r: (r / "3.png").write_bytes(b"text"), {"unreadable-image"}, "3.png", "cannot identify"),
    "image resized": (
        lambda r: Image.new("RGB", (48, 32)).save(r / "3.png"),
        {"image-size"},
        "3.png",
        "48 x 32 pixels, the",
    ),
    "labels missing": (lambda r: (r / "3.label").unlink(), {"missing-file"}, "3.label", "does not exist"),
    "labels empty": (lambda r: cut(r / "3.label", 0), {"empty-file"}, "3.label", "0 bytes"),
    "labels short": (lambda r: cut(r / "3.label", -8), {"bad-labels"}, "3.label", "398 labels for 400 points"),
    "label id": (lambda r: edit_labels(r, lambda x: x + 9), {"unknown-label"}, "3.label", "has no label 9, 16"),
    "boxes missing": (lambda r: (r / "3.json").unlink(), {"missing-file"}, "3.json", "does not exist"),
    "boxes cut": (lambda r: cut(r / "3.json", -9), {"bad-boxes"}, "3.json", "JSONDecodeError"),
    "box without size": (lambda r: edit_boxes(r, size=[4, 0, 2]), {"bad-boxes"}, "3.json", "without size"),
    "box not finite": (lambda r: edit_boxes(r, center=[np.nan, 0, 0]), {"bad-boxes"}, "3.json", "1 of 2 boxes are not"),
    "box mirrored": (lambda r: edit_boxes(r, zz=-1.0), {"bad-boxes"}, "3.json", "mirror image"),
    "box elsewhere": (lambda r: edit_boxes(r, center=[15, 60, 0]), {"box-recount"}, "3.json", "holds 0 points instead"),
    "box twice": (lambda r: edit_boxes(r, track="a"), {"same-track"}, "3.json", "track id 'a'"),
}


@pytest.mark.parametrize("name", IN_FILES)
def test_a_fault_in_a_file_is_found_alone_with_its_file(tmp_path: Path, name: str) -> None:
    damage, kinds, file, words = IN_FILES[name]
    frames = toy_frames.write(tmp_path)
    damage(tmp_path)
    report = check(frames)
    assert {finding.kind for finding in report.findings} == kinds
    assert len(report.findings) == len(kinds)
    for finding in report.findings:
        assert (finding.index, finding.frame, finding.scene) == (BAD, "frame-3", "scene")
        assert finding.path == str(tmp_path / file)
        assert words in finding.message
    assert report.clean == (kinds == {"origin-points"})  # a note is no finding


# ---------------------------------------------------------------- faults in what the frame holds


def turned(matrix: Any, factor: float) -> Any:
    wrong = matrix.copy()
    wrong[:3, :3] *= factor
    return wrong


def with_camera(frame: Frame, **fields: Any) -> Frame:
    return replace(frame, cameras=(replace(frame.cameras[0], **fields),))


def moved(frame: Frame, by: float) -> Frame:
    pose = np.array(frame.points_to_world)
    pose[1, 3] += by
    return replace(frame, points_to_world=pose)


def about(frame: Frame) -> Frame:
    pose = np.array(frame.points_to_world)
    pose[:2, :2] *= -1
    return replace(frame, points_to_world=pose)


def sweep(frame: Frame, path: Path, factor: float = 1.0) -> Frame:
    return replace(frame, sweeps=(Sweep(path, turned(np.eye(4), factor), -0.05),))


LOOK_BACK = np.diag([-1.0, -1.0, 1.0, 1.0])
K = np.array([[80.0, 0, 47.5], [0, 80.0, 31.5], [0, 0, 1]])

#: name -> (the frame that is put in BAD's place, how often each kind is found, a part of the first message)
IN_FRAMES: dict[str, tuple[Callable[[Frame], Frame], list[str], str]] = {
    "id": (lambda f: replace(f, id="frame-1"), ["duplicate-id"], "frames number 1 and 3"),
    "time": (lambda f: replace(f, timestamp=0.15), ["time-backwards"], "0.05 s before that of frame-2"),
    "same time": (lambda f: replace(with_camera(f, timestamp=0.2), timestamp=0.2), ["same-time"], "that of frame-2"),
    "camera's time": (lambda f: with_camera(f, timestamp=1.0), ["camera-time"], "+0.700 s"),
    "jump": (lambda f: moved(f, 12.0), ["pose-jump"], "from frame frame-2 to frame-3 the pose moves by 12.0 m in 0.1"),
    "turn": (about, ["pose-jump"], "turns by 180 degrees"),
    "pose": (lambda f: replace(f, points_to_world=turned(f.points_to_world, 2)), ["bad-pose"], "times 2"),
    "pose NaN": (lambda f: moved(f, np.nan), ["bad-pose"], "points_to_world: expected 4 x 4 finite"),
    "sweep": (lambda f: sweep(f, f.points_path, -1.0), ["bad-pose"], "mirror image"),
    "sweep gone": (lambda f: sweep(f, f.points_path.with_name("gone")), ["missing-file"], "gone does not exist"),
    "skewed": (
        lambda f: with_camera(f, points_to_camera=turned(f.cameras[0].points_to_camera, 1.5)),
        ["bad-calibration"],
        "frame-3, camera front: points_to_camera: determinant",
    ),
    "focal": (lambda f: with_camera(f, intrinsics=K * [[-1], [1], [1]]), ["bad-calibration"], "fx, fy above 0"),
    "K": (lambda f: with_camera(f, intrinsics=K[:2]), ["bad-calibration"], "intrinsics"),
    "K NaN": (lambda f: with_camera(f, intrinsics=K * np.nan), ["bad-calibration"], "intrinsics"),
    "centre": (
        lambda f: with_camera(f, intrinsics=K * [[1, 1, 1.884], [1] * 3, [1] * 3]),
        ["principal-point"],
        "(89.5,",
    ),
    "behind": (
        lambda f: with_camera(f, points_to_camera=f.cameras[0].points_to_camera @ LOOK_BACK),
        ["none-in-view"],
        "none of its 400 points is in view of front",
    ),
    "size": (lambda f: with_camera(f, image_size=(960, 640)), ["image-size"], "96 x 64 pixels, the calibration is for"),
    "crash": (lambda f: replace(f, read=toy_frames.read_and_crash), ["unreadable-points"], "KeyError: 'intensity'"),
}


@pytest.mark.parametrize("name", IN_FRAMES)
def test_a_fault_of_a_frame_is_found_alone(tmp_path: Path, name: str) -> None:
    change, kinds, words = IN_FRAMES[name]
    frames = toy_frames.write(tmp_path)
    frames[BAD] = change(frames[BAD])
    if kinds == ["pose-jump"]:
        frames = frames[: BAD + 1]  # there is no way back, which would be a second one
    report = check(frames)
    assert [finding.kind for finding in report.findings] == kinds
    assert report.findings[0].index == BAD
    assert words in report.findings[0].message
    assert report.findings[0].path


def test_every_kind_of_finding_is_put_in_by_a_test() -> None:
    put_in = {kind for _, kinds, _, _ in IN_FILES.values() for kind in kinds}
    put_in |= {kind for _, kinds, _ in IN_FRAMES.values() for kind in kinds}
    alone = {
        "camera-blind",
        "other-image-size",
        "few-points",
        "process-died",
        "broken-frame",
        "no-returns",
        "empty-scan",
    }  # below
    alone |= {"orphan", "image-without-scan", "number-gap"}  # in test_integrity_layouts.py
    assert put_in | alone == set(KINDS)


def test_a_clean_set_has_no_findings(tmp_path: Path) -> None:
    report = check(toy_frames.write(tmp_path))
    assert report.findings == ()
    assert report.clean
    assert (report.frames, report.points, report.kept) == (FRAMES, FRAMES * POINTS, 0)


def test_a_camera_that_sees_nothing_is_named_where_another_sees_points(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path)
    ahead = frames[BAD].cameras[0]
    back = replace(ahead, name="back", points_to_camera=ahead.points_to_camera @ LOOK_BACK)
    frames[BAD] = replace(frames[BAD], cameras=(ahead, back))
    (finding,) = check(frames).findings
    assert (finding.kind, finding.path) == ("camera-blind", str(back.image_path))


def test_a_camera_with_one_point_in_view_is_not_blind(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path)
    edit_scan(tmp_path, put(slice(None), 0, -10.0))
    edit_scan(tmp_path, put(101, slice(0, 3), 10.0))  # not one of every eighth, which are tried first
    edit_scan(tmp_path, put(101, slice(1, 3), 0.5))
    edit_boxes(tmp_path, points=0)
    (finding,) = check(frames).findings
    assert finding.kind == "box-recount"  # the first box's points have gone


@pytest.mark.parametrize("values", [0.0, np.nan])
def test_a_scan_of_nothing_but_the_origin_is_empty(tmp_path: Path, values: float) -> None:
    frames = [replace(frame, read_boxes=None) for frame in toy_frames.write(tmp_path)]
    edit_scan(tmp_path, put(slice(None), slice(0, 3), values))
    kinds = [finding.kind for finding in check(frames).findings]
    assert kinds == (["empty-scan", "none-in-view"] if values == 0 else ["non-finite"])


def test_points_without_a_return_in_a_pcd_are_a_note(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path)
    edit_scan(tmp_path, put(slice(10), slice(0, 3), np.nan))
    path = (tmp_path / "3.bin").rename(tmp_path / "3.pcd")
    readers = {"read_labels": functools.partial(toy_frames.read_labels, tmp_path / "3.label", path), "read_boxes": None}
    frames[BAD] = replace(frames[BAD], points_path=path, **readers)  # type: ignore[arg-type]
    report = check(frames)
    assert [finding.kind for finding in report.findings] == ["no-returns"]
    assert report.clean


def test_a_frame_that_cannot_be_made_is_reported_with_the_file_of_its_message(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    calibration = tmp_path / "training" / "calib" / "000003.txt"
    calibration.write_text(calibration.read_text().replace("R0_rect: 1 0 0", "R0_rect: 2 0 0"))
    report = check_dataset(open_dataset(f"kitti:{tmp_path}"), jobs=0)
    (finding,) = report.findings
    assert (finding.kind, finding.index, finding.frame) == ("broken-frame", 3, "000003")
    assert finding.path == str(calibration)
    assert "R0_rect" in finding.message


def test_findings_of_many_frames_are_in_the_order_of_the_frames(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path)
    for number in (5, 1, 4):
        (tmp_path / f"{number}.png").unlink()
        cut(tmp_path / f"{number}.label", -4)
    for jobs in (0, 2):
        found = [(finding.index, finding.kind) for finding in check(frames, jobs=jobs).findings]
        assert found == [(n, kind) for n in (1, 4, 5) for kind in ("missing-file", "bad-labels")]


def test_an_extra_that_is_missing_ends_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = toy_frames.write(tmp_path)

    def no_extra(path: Path) -> Any:
        raise MissingExtraError('pip install "clever3d[io]"')

    with pytest.raises(MissingExtraError, match="pip install"):
        check([replace(frame, read=no_extra) for frame in frames])


# ---------------------------------------------------------------- images


def jpeg(path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((300, 200)).save(stream, "jpeg", quality=90)
    path.write_bytes(stream.getvalue())
    return stream.getvalue()


@pytest.mark.parametrize("fast", [False, True])
def test_a_jpeg_that_is_cut_anywhere_is_found(tmp_path: Path, fast: bool) -> None:
    path = tmp_path / "image.jpg"
    data = jpeg(path)
    assert check_image(path, fast=fast) == (300, 200)
    for end in [*range(100, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises((DataError, OSError)):
            check_image(path, fast=fast)
        path.write_bytes(data[:end] + bytes(len(data) - end))  # a copy that was given its size and not its bytes
        with pytest.raises((DataError, OSError)):
            check_image(path, fast=fast)


def test_a_changed_byte_anywhere_in_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for at in range(8, len(data) - 12, 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(Exception):  # noqa: B017  (Pillow has its own for each chunk)
            check_image(path)


def test_a_fast_check_decodes_no_image(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path)
    flip(tmp_path / "3.png")
    cut(tmp_path / "4.png", -100)
    assert [finding.index for finding in check(frames, fast=True).findings] == [4]
    assert [finding.index for finding in check(frames).findings] == [3, 4]


# ---------------------------------------------------------------- between frames


def test_a_scan_cut_at_a_row_is_told_by_the_frames_around(tmp_path: Path) -> None:
    frames = [replace(frame, read_labels=None, read_boxes=None) for frame in toy_frames.write(tmp_path)]
    cut(tmp_path / "3.bin", 16 * 248)  # 62 %, as the scan of KITTI raw that public copies have truncated
    (finding,) = check(frames).findings
    assert (finding.kind, finding.index, finding.path) == ("few-points", BAD, str(tmp_path / "3.bin"))
    assert "has 248 points, the frames around have 400" in finding.message


def test_an_image_unlike_its_cameras_others_is_found_where_the_calibration_is_silent(tmp_path: Path) -> None:
    frames = [with_camera(frame, image_size=None) for frame in toy_frames.write(tmp_path)]
    Image.new("RGB", (90, 64)).save(tmp_path / "3.png")
    (finding,) = check(frames).findings
    assert (finding.kind, finding.index, finding.path) == ("other-image-size", BAD, str(tmp_path / "3.png"))
    assert "90 x 64 pixels, the others of front have 96 x 64" in finding.message
    other = with_camera(frames[BAD], intrinsics=K * 1.01 + [[0, 0, 0], [0, 0, 0], [0, 0, -0.01]])
    assert check([*frames[:BAD], other, *frames[BAD + 1 :]]).clean  # calibrated for its size, as in KITTI


def test_few_points_are_few_against_frames_of_their_own_scene() -> None:
    counts = np.array([1000] * 8 + [300] * 8 + [500, 1000])
    scenes = np.array([0] * 8 + [1] * 8 + [2, 3])
    assert list(few_points(counts, scenes)) == []
    counts[10] = 200
    assert list(few_points(counts, scenes)) == [(10, 200, 300.0)]
    counts[10] = -1  # could not be read: reported already
    assert list(few_points(counts, scenes)) == []
    # Scenes of one frame each, as in KITTI's shuffled benchmark, are compared in the order of the data set.
    assert list(few_points(np.array([100, 100, 100, 30, 100, 100]), np.arange(6))) == [(3, 30, 100.0)]
    assert list(few_points(np.array([100, 100, 30, 100]), np.arange(4))) == []  # too few to say


def test_scans_that_are_compared_with_none_are_counted() -> None:
    def count(*sizes: int) -> int:
        scenes = np.repeat(np.arange(len(sizes)), sizes)
        return uncompared(np.full(len(scenes), 100), scenes)

    assert [count(3), count(4), count(5), count(8, 3), count(3, 3), count(*[1] * 6)] == [3, 4, 0, 3, 0, 0]
    assert uncompared(np.array([100, 100, 100, 100, -1]), np.zeros(5, dtype=np.int64)) == 4


def test_numbers_that_no_scan_has_are_gaps() -> None:
    def gaps(*numbers: int, scenes: list[int] | None = None) -> list[tuple[int, int, int]]:
        return list(number_gaps(np.array(numbers), np.array(scenes or [0] * len(numbers))))

    assert gaps(0, 1, 2, 6, 7) == [(3, 3, 5)]
    assert gaps(0, 1, 3) == [(2, 2, 2)]
    assert gaps(0, 5, 10, 20, 25) == [(3, 15, 15)]  # every fifth was kept
    assert gaps(4, 5, 6) == gaps(7) == gaps(0, 5, 10) == []
    assert gaps(0, -1, 2, 3) == []  # a frame that is there and cannot be made
    assert gaps(0, 1, 2, 0, 1, 2, scenes=[0, 0, 0, 1, 1, 1]) == []


def test_a_slow_change_of_the_number_of_points_is_none() -> None:
    counts = np.linspace(120_000, 40_000, 200).astype(np.int64)
    assert list(few_points(counts, np.zeros(200, dtype=np.int64))) == []


def test_each_sweep_that_is_no_frame_is_read_once(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path / "set")
    log = tmp_path / "log"
    between = tmp_path / "between.bin"
    shutil.copy(tmp_path / "set" / "1.bin", between)
    read = functools.partial(toy_frames.read_and_log, log=log)
    sweeps = [Sweep(path, np.eye(4), -0.05) for path in (frames[1].points_path, between)]
    frames = [replace(frame, read=read, sweeps=tuple(sweeps) if n > 1 else ()) for n, frame in enumerate(frames)]
    frames[1] = replace(frames[1], sweeps=tuple(sweeps[1:]))
    report = check(frames)
    assert sorted(log.read_text().split()) == sorted(["between.bin", *(f"{n}.bin" for n in range(FRAMES))])
    assert report.findings == ()
    assert report.looked_at == {"scans": 7, "images": 7, "labels": 7, "boxes": 7, "sweeps": 1}


def test_a_sweep_of_far_fewer_points_than_those_around_is_found(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path / "set")
    paths = [tmp_path / f"sweep {number}.bin" for number in range(4)]
    for path in paths:
        shutil.copy(tmp_path / "set" / "3.bin", path)
    cut(paths[2], 16 * 248)
    frames[BAD] = replace(frames[BAD], sweeps=tuple(Sweep(path, np.eye(4), -0.05) for path in paths))
    (finding,) = check(frames).findings
    assert (finding.kind, finding.index, finding.path) == ("few-points", BAD, str(paths[2]))
    assert "has 248 points, the scan and the sweeps around have 400" in finding.message


def test_the_values_of_a_sweep_are_checked(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path / "set")
    rows = np.fromfile(tmp_path / "set" / "3.bin", dtype="<f4")
    rows[8] = np.nan
    rows.tofile(tmp_path / "sweep.bin")
    frames[BAD] = replace(frames[BAD], sweeps=(Sweep(tmp_path / "sweep.bin", np.eye(4), -0.05),))
    (finding,) = check(frames).findings
    assert (finding.kind, finding.index, finding.path) == ("non-finite", BAD, str(tmp_path / "sweep.bin"))


def test_a_state_vouches_for_a_sweep_only_where_it_was_read(tmp_path: Path) -> None:
    root, path = tmp_path / "set", tmp_path / "state.jsonl"
    frames = toy_frames.write(root)
    gone = tmp_path / "between.bin"
    gone.write_bytes(b"123")
    frames = [replace(frame, sweeps=(Sweep(gone, np.eye(4), -0.05),)) for frame in frames]
    assert [f.index for f in with_state(frames, path, root).findings] == [0]
    again = with_state(frames[1:], path, root)  # the frame that had read it is not asked for any more
    assert [(f.index, f.kind) for f in again.findings] == [(0, "unreadable-points")]
    assert again.kept == FRAMES - 2


def test_scenes_that_take_turns_are_followed_apart(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path)
    late = [replace(f, id=f"late {f.id}", scene="late", timestamp=100.0 + n) for n, f in enumerate(frames)]
    late = [with_camera(frame, timestamp=frame.timestamp) for frame in late]
    assert check([frame for pair in zip(frames, late, strict=True) for frame in pair]).findings == ()


# ---------------------------------------------------------------- processes


def test_a_frame_that_kills_its_process_is_named_and_the_others_are_checked(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path, 12)
    frames[BAD] = replace(frames[BAD], read=toy_frames.read_and_die)
    frames[8] = replace(frames[8], read=toy_frames.read_and_die)
    (tmp_path / "10.png").unlink()
    report = check(frames, jobs=2)
    assert [(f.kind, f.index) for f in report.findings] == [
        ("process-died", 3),
        ("process-died", 8),
        ("missing-file", 10),
    ]
    assert report.findings[0].path == str(tmp_path / "3.bin")
    assert report.points == 10 * POINTS


def test_a_frame_that_dies_only_in_company_is_checked_in_the_end(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path)
    frames[BAD] = replace(frames[BAD], read=functools.partial(toy_frames.read_and_die_in_company, folder=tmp_path))
    report = check(frames, jobs=2)
    assert (tmp_path / "died").exists()
    assert report.findings == ()
    assert report.points == FRAMES * POINTS


def test_a_frame_that_cannot_be_sent_to_a_process_is_reported(tmp_path: Path) -> None:
    frames = toy_frames.write(tmp_path)
    frames[BAD] = replace(frames[BAD], read=lambda path: toy_frames.read(path))
    (finding,) = check(frames, jobs=1).findings
    assert (finding.kind, finding.index) == ("broken-frame", BAD)
    assert "pickle" in finding.message


def test_only_a_few_tasks_are_out_at_a_time() -> None:
    handed_out = 0

    def numbers() -> Any:
        nonlocal handed_out
        for number in range(30):
            handed_out += 1
            yield number, number

    done = 0
    for key, value in run_isolated(abs, numbers(), jobs=2):
        done += 1
        assert key == value
        assert handed_out - done <= 4
    assert done == 30


def test_processes_do_not_leave_their_variables_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert dict(run_isolated(os.getenv, [(0, "OMP_NUM_THREADS"), (1, "MKL_NUM_THREADS")], jobs=1)) == {0: "1", 1: "1"}
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_process_that_dies_at_once_is_no_end(tmp_path: Path) -> None:
    results = dict(run_isolated(os._exit, [(n, 1) for n in range(3)], jobs=1))  # type: ignore[arg-type]
    assert all(isinstance(results[n], ProcessDied) for n in range(3))


# ---------------------------------------------------------------- state


def with_state(frames: Frames, path: Path, root: Path, **options: Any) -> Report:
    with State(path, "toy", root) as state:
        return check(frames, state=state, **options)


def test_a_second_check_reads_only_what_has_changed(tmp_path: Path) -> None:
    root, path = tmp_path / "set", tmp_path / "state.jsonl"
    frames = toy_frames.write(root)
    (root / "5.png").unlink()
    first = with_state(frames, path, root)
    cut(root / "1.label", -4)
    dead = [replace(frame, read=toy_frames.read_and_crash) for frame in frames]  # whoever reads is seen
    second = with_state(dead, path, root)
    assert (first.kept, second.kept) == (0, FRAMES - 1)
    assert [(f.index, f.kind) for f in second.findings] == [(1, "unreadable-points"), (5, "missing-file")]
    assert second.points == (FRAMES - 1) * POINTS


@pytest.mark.parametrize("file", ["3.bin", "3.png", "3.label", "3.json"])
def test_every_file_of_a_frame_counts_as_changed(tmp_path: Path, file: str) -> None:
    root, path = tmp_path / "set", tmp_path / "state.jsonl"
    frames = toy_frames.write(root)
    with_state(frames, path, root)
    os.utime(root / file, ns=(0, time.time_ns()))
    assert with_state(frames, path, root).kept == FRAMES - 1
    assert with_state(frames, path, root).kept == FRAMES
    (root / file).unlink()
    assert [f.kind for f in with_state(frames, path, root).findings] == ["missing-file"]


def test_a_changed_calibration_counts_as_changed(tmp_path: Path) -> None:
    root, path = tmp_path / "set", tmp_path / "state.jsonl"
    frames = toy_frames.write(root)
    with_state(frames, path, root)
    frames[BAD] = with_camera(frames[BAD], intrinsics=K * 1.001)
    frames[4] = moved(frames[4], 0.1)
    assert with_state(frames, path, root).kept == FRAMES - 2


def test_what_shows_between_frames_is_found_from_the_state_too(tmp_path: Path) -> None:
    root, path = tmp_path / "set", tmp_path / "state.jsonl"
    frames = [replace(frame, read_labels=None, read_boxes=None) for frame in toy_frames.write(root)]
    cut(root / "3.bin", 1600)
    frames[BAD] = replace(frames[BAD], timestamp=0.15)
    first, second = (with_state(frames, path, root) for _ in range(2))
    assert second.kept == FRAMES
    assert first.findings == second.findings
    assert {finding.kind for finding in first.findings} == {"few-points", "time-backwards"}


def test_a_fast_check_does_not_vouch_for_a_full_one(tmp_path: Path) -> None:
    root, path = tmp_path / "set", tmp_path / "state.jsonl"
    frames = toy_frames.write(root)
    assert with_state(frames, path, root, fast=True).kept == 0
    assert with_state(frames, path, root, fast=True).kept == FRAMES
    assert with_state(frames, path, root).kept == 0
    assert with_state(frames, path, root, fast=True).kept == FRAMES


def test_a_state_that_was_cut_off_goes_on_from_its_last_whole_line(tmp_path: Path) -> None:
    root, path = tmp_path / "set", tmp_path / "state.jsonl"
    frames = toy_frames.write(root)
    with_state(frames, path, root)
    cut(path, -20)
    assert with_state(frames, path, root).kept == FRAMES - 1
    assert with_state(frames, path, root).kept == FRAMES


def test_the_state_of_another_data_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    State(path, "toy", tmp_path / "one").__exit__(None, None, None)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"state of a check of toy:.*one, not of toy:.*two; give another file"):
        State(path, "toy", tmp_path / "two")
    with pytest.raises(DataError, match=r"not of kitti:.*one"):
        State(path, "kitti", tmp_path / "one")
    assert path.read_bytes() == before
    other = tmp_path / "notes.txt"
    other.write_text("mine\n")
    with pytest.raises(DataError, match=r"notes\.txt is no state"):
        State(other, "toy", tmp_path)
    assert other.read_text() == "mine\n"
    with pytest.raises(DataError, match=r"cannot be kept in .*nowhere.*give another file"):
        State(tmp_path / "nowhere" / "state.jsonl", "toy", tmp_path)


@pytest.mark.parametrize("room", [40, 400])  # bytes: for no line; for the first line and no more
def test_a_state_on_a_full_disk_is_a_message(tmp_path: Path, room: int) -> None:
    write_kitti(tmp_path / "set")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        status, text = command("check", tmp_path / "set", "-j", 0, "--state", tmp_path / "state.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert "state.jsonl cannot be written" in text.replace("\n", "")
    assert "make room" in text


def test_a_state_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/dev/null: it is no file"):
        State(Path("/dev/null"), "toy", tmp_path)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jobs=-1"):
        check(toy_frames.write(tmp_path), jobs=-1)
    with pytest.raises(DataError, match="toy has no frames"):
        check([])


# ---------------------------------------------------------------- the command


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """States of one test are not another's."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setitem(datasets.DATASETS, "toy_folder", toy_frames.ToyFolder)
    return cache


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_says_clean_or_what_is_wrong(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    status, text = command("check", tmp_path, "-j", 0)
    assert status == 0
    assert "kitti: 6 frames checked" in text
    assert "clean" in text
    images = tmp_path / "training" / "image_2"
    for number in range(5):
        cut(images / f"{number:06d}.png", -30)
    status, text = command("check", tmp_path, "-j", 0, "--json", tmp_path / "report.json")
    assert status == 1
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["error", "unreadable-image", "5"]
    assert str(images / "000000.png") in lines[1]
    assert "... and 2 more" in lines[4]
    assert "5 errors, 0 warnings, 0 notes; 5 frames affected" in lines[-1]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["format"] == "clever3d.data-check.v1"
    assert report["spec"] == str(tmp_path)
    assert report["counts"] == {"error": 5, "warning": 0, "note": 0}
    assert [finding["path"] for finding in report["findings"]] == [str(images / f"00000{n}.png") for n in range(5)]


def test_the_command_says_what_it_looked_at_and_what_not(tmp_path: Path) -> None:
    toy_frames.write(tmp_path / "set", 3)
    (tmp_path / "set" / "1.label").unlink()
    report = tmp_path / "report.json"
    text = command("check", f"toy_folder:{tmp_path / 'set'}", "-j", 0, "--json", report)[1]
    assert "looked at 3 scans, 3 images, labels of 2 scans, boxes of 3 scans, 0 sweeps\n" in text
    few = "number of points of 3 scans (too few frames to compare them with, 5 are needed)"
    assert f"not checked: {few}\n" in text
    content = json.loads(report.read_text())
    assert content["looked_at"] == {"scans": 3, "images": 3, "labels": 2, "boxes": 3, "sweeps": 0}
    assert content["unchecked"] == [few]
    fast = command("check", f"toy_folder:{tmp_path / 'set'}", "-j", 0, "--fast")[1]
    assert "not checked: the inside of images (--fast)" in fast


def test_what_was_looked_at_counts_what_a_state_vouches_for(tmp_path: Path) -> None:
    root, path = tmp_path / "set", tmp_path / "state.jsonl"
    frames = toy_frames.write(root)
    first, second = (with_state(frames, path, root) for _ in range(2))
    assert second.kept == FRAMES
    assert second.looked_at == first.looked_at == dict.fromkeys(first.looked_at, FRAMES) | {"sweeps": 0}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("verb", ["check", "info"])
def test_an_output_that_cannot_be_written_is_a_message(tmp_path: Path, verb: str) -> None:
    write_kitti(tmp_path)
    arguments = [sys.executable, "-c", "from clever3d.cli import main; main()", "data", verb, str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 2
    assert "clever3d: the output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_pipe_that_is_closed_ends_the_command_silently(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    command_line = f"{sys.executable} -c 'from clever3d.cli import main; main()' data check -j 0 {tmp_path}"
    script = f"{command_line} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_note_is_shown_and_does_not_count(tmp_path: Path) -> None:
    toy_frames.write(tmp_path)
    edit_scan(tmp_path, put(slice(4), slice(0, 3), 0))
    status, text = command("check", f"toy_folder:{tmp_path}", "-j", 0)
    assert status == 0
    assert "origin-points" in text
    assert "0 errors, 0 warnings, 1 note; 0 frames affected" in text


def test_resume_goes_on_with_the_last_check(tmp_path: Path) -> None:
    write_kitti(tmp_path)
    assert "unchanged" not in command("check", tmp_path, "-j", 0)[1]
    assert "6 frames (6 unchanged since the last check)" in command("check", tmp_path, "-j", 0, "--resume")[1]
    assert "unchanged" not in command("check", tmp_path, "-j", 0)[1]  # without --resume all is read again
    state = tmp_path / "state.jsonl"
    assert "unchanged" not in command("check", tmp_path, "-j", 0, "--state", state)[1]
    assert "6 unchanged" in command("check", tmp_path, "-j", 0, "--state", state)[1]
    other = write_kitti(tmp_path / "other")
    status, text = command("check", other, "--state", state)
    assert status == 2
    assert "is the state of a check of" in text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}/nowhere", "is no folder"),
        ("kitti:{}/nowhere", "does not exist"),
        ("{}/empty", "cannot tell which data set"),
        ("kiti:{}/empty", "did you mean 'kitti'"),
        ("kitti:{}/set#scenes=3", "did you mean 'scene'"),
        ("kitti:{}/broken", "calib does not exist"),
    ],
)
def test_what_cannot_be_opened_is_said_and_is_status_2(tmp_path: Path, spec: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    write_kitti(tmp_path / "set")
    shutil.rmtree(write_kitti(tmp_path / "broken") / "training" / "calib")
    report = tmp_path / "report.json"
    status, text = command("check", spec.format(tmp_path), "--json", report)
    assert status == 2
    assert words in text.replace("\n", " ")
    assert "Traceback" not in text
    assert words in json.loads(report.read_text())["error"]


def test_a_reader_that_stumbles_while_opening_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(self: object, root: Path) -> None:
        raise KeyError("token")

    monkeypatch.setattr(toy_frames.ToyFolder, "__init__", stumble)
    status, text = command("check", f"toy_folder:{tmp_path}")
    assert status == 2
    assert "cannot be opened: its reader fails with KeyError: 'token'" in text


def test_files_that_cannot_be_written_are_said_before_the_work(tmp_path: Path) -> None:
    write_kitti(tmp_path / "set")
    for option in ("--state", "--json"):
        status, text = command("check", tmp_path / "set", option, tmp_path / "nowhere" / "file.json")
        assert status == 2
        assert str(tmp_path / "nowhere") in text


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, own_cache: Path) -> None:
    write_kitti(tmp_path)
    (own_cache / "clever3d").write_text("a file in the way")
    status, text = command("check", tmp_path, "-j", 0)
    assert status == 0
    assert "WARNING: an interrupted check cannot go on" in text
    assert command("check", tmp_path, "-j", 0, "--resume")[0] == 2


INTERRUPTED = """\
import toy_frames
from clever3d import datasets
datasets.DATASETS["slow"] = toy_frames.SlowToy
if __name__ == "__main__":
    from clever3d.cli import main
    main()
"""


def test_ctrl_c_keeps_what_was_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    toy_frames.write(tmp_path / "set", 60)
    state, script = tmp_path / "state.jsonl", tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    arguments = [sys.executable, str(script), "data", "check", f"slow:{tmp_path / 'set'}", "-j", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [*arguments, "--state", str(state)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (state.exists() and state.read_bytes().count(b"\n") > 5):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the processes as well
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert f"go on with: clever3d data check slow:{tmp_path / 'set'} --state {state}" in text
    assert "Traceback" not in text
    done = state.read_bytes().count(b"\n") - 1
    assert 5 <= done < 60
    assert f"interrupted after {done} of 60 frames" in text
    with State(state, "toy_folder", tmp_path / "set") as kept:
        assert len(kept) == done


def test_info_says_what_a_folder_is(tmp_path: Path) -> None:
    toy_frames.write(tmp_path)
    status, text = command("info", f"toy_folder:{tmp_path}")
    assert status == 0
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["data"] == "data set  toy_folder: 7 frames in 1 scene"
    assert lines["first"].split()[1] == "frame-0"
    assert "400: x 4" in lines["points"]
    assert lines["camera"] == "camera    front: 96 x 64, focal length 80 pixels"
    assert lines["labels"] == "labels    toy: 1 classes, 2 ids in the first frame"
    assert lines["boxes"] == "boxes     2 in the first frame: car"
    assert lines["also"] == "also      timestamps, poses"
    assert command("info", tmp_path / "nowhere")[0] == 2


# ---------------------------------------------------------------- the benchmark


def test_figures_of_real_frames_do_not_replace_those_of_made_ones() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "integrity.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_integrity", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    made = argparse.Namespace(kitti=None, output=None, frames=60, rounds=5, jobs=[1, 2])
    real = argparse.Namespace(**{**vars(made), "kitti": Path("/somewhere/my kitti")})
    results = path.parent / "results"
    assert benchmark.output_path(made) == results / "integrity.json"
    assert benchmark.output_path(real) == results / "integrity-kitti.json"
    assert benchmark.output_path(argparse.Namespace(**{**vars(real), "output": Path("x.json")})) == Path("x.json")
    assert benchmark.command(made) == "python benchmarks/integrity.py --frames 60 --rounds 5 --jobs 1 2"
    assert benchmark.command(real).startswith("python benchmarks/integrity.py --kitti 'my kitti' --frames 60")
