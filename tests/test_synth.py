"""``clever3d synth``: whole data sets, begun, stopped, gone on with, and refused."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_world
from typer.testing import CliRunner

from clever3d.cli import app
from clever3d.datasets import open_dataset
from clever3d.datasets.synthetic import layouts
from clever3d.datasets.synthetic.layouts import LAYOUTS, Plan, Scene, embedded_world, lock, make_plan, write_dataset
from clever3d.datasets.synthetic.layouts.parts import Parts
from clever3d.datasets.synthetic.truth import WorldFrame
from clever3d.errors import DataError, InputError, UnknownNameError

TESTS = Path(__file__).parent


def run(*args: str | Path) -> tuple[int, str]:
    """Exit status and all output of ``clever3d synth``."""
    result = CliRunner().invoke(app, ["synth", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def tree(root: Path) -> dict[str, str]:
    """Relative path -> hash, of every file and folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }


def plan_of(layout: str = "nuscenes", scenes: int = 3, seed: int = 0) -> Plan:
    return make_plan(layout, scenes=scenes, frames=2, seed=seed)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Layout -> tree of three scenes of the toy world, written in one go."""
    trees = {}
    for layout in ("nuscenes", "kitti", "rig"):
        root = tmp_path_factory.mktemp("unbroken") / layout
        write_dataset(root, plan_of(layout), LAYOUTS[layout], toy_world.frames)
        trees[layout] = tree(root)
    return trees


def in_own_process(root: Path, world: str, *arguments: str) -> subprocess.Popen[str]:
    """``clever3d synth`` with a world of toy_world, as a person starts it: a process group of its own."""
    code = f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
import toy_world
from clever3d.cli import main
from clever3d.datasets.synthetic import layouts
layouts.embedded_world = toy_world.{world}
if __name__ == "__main__":
    main()
"""
    script = root.with_name("command.py")
    if not script.exists():  # another run may be reading it
        script.write_text(code)
    return subprocess.Popen(
        [sys.executable, str(script), "synth", "--out", str(root), "-n", "3", "-m", "2", *arguments],
        env={**os.environ, "TOY_WORLD_BEGUN": str(root.with_name("begun"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited a minute for {what}"
        time.sleep(0.01)


@pytest.mark.parametrize("layout", ["nuscenes", "rig"])
def test_processes_write_what_one_process_writes(
    layout: str, tmp_path: Path, unbroken: dict[str, dict[str, str]]
) -> None:
    seen = []
    written = write_dataset(
        tmp_path / "out", plan_of(layout), LAYOUTS[layout], toy_world.frames, jobs=2, on_frame=lambda: seen.append(1)
    )
    assert tree(tmp_path / "out") == unbroken[layout]
    assert len(seen) == 6 and written.new_scenes == 3
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert (written.files, written.size) == (len(files), sum(path.stat().st_size for path in files))


def test_another_seed_is_another_data_set(tmp_path: Path, unbroken: dict[str, dict[str, str]]) -> None:
    write_dataset(tmp_path / "kitti", plan_of("kitti", seed=1), LAYOUTS["kitti"], toy_world.frames)
    other = tree(tmp_path / "kitti")
    assert set(other) == set(unbroken["kitti"])
    scans = [name for name in other if name.endswith(".bin")]
    assert len({other[name] for name in scans} | {unbroken["kitti"][name] for name in scans}) == 2 * len(scans)


def test_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, unbroken: dict[str, dict[str, str]]) -> None:
    root = tmp_path / "out"
    process = in_own_process(root, "slow_frames", "--jobs", "2")
    wait_for(lambda: (root / ".synth/0000").is_dir() or (root / ".synth/0001").is_dir(), "the first whole scene")
    wait_for(lambda: any((root / ".synth").glob("0002-*.tmp")), "the third scene to begin")
    os.kill(process.pid, signal.SIGKILL)  # the workers live on for a moment
    process.wait()
    done = Parts(root).count()
    assert 1 <= done < 3 and not (root / "synth.json").exists()
    with pytest.raises(DataError, match=r"is not empty.*--resume"):
        write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames)
    started: list[int] = []
    written = write_dataset(
        root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames, resume=True, on_start=started.append
    )
    assert written.new_scenes <= 3 - done and started == [2 * (3 - written.new_scenes)]
    time.sleep(0.4)  # an orphan that has outlived the kill would write something now
    wait_for(lambda: not (root / ".synth").exists(), "the last orphan to clean up")
    assert tree(root) == unbroken["nuscenes"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupt_keeps_whole_scenes_and_nothing_else(
    jobs: str, tmp_path: Path, unbroken: dict[str, dict[str, str]]
) -> None:
    root = tmp_path / "out"
    process = in_own_process(root, "slow_frames", "--jobs", jobs)
    wait_for(lambda: (root / ".synth/0000").is_dir(), "the first whole scene")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in output
    assert "of 3 scenes are whole; the same command with --resume goes on" in output
    assert [path.name for path in root.iterdir()] == [".synth"]
    left = {path.name for path in (root / ".synth").iterdir()}
    assert {"plan.json", "0000"} <= left <= {"plan.json", "0000", "0001"}
    write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames, resume=True)
    assert tree(root) == unbroken["nuscenes"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupt_before_anything_is_whole_leaves_no_folder(jobs: str, number: int, tmp_path: Path) -> None:
    root = tmp_path / "some/where/out"
    root.parent.parent.mkdir()
    (tmp_path / "some/where").mkdir()
    process = in_own_process(root, "slow_frames", "--jobs", jobs)
    wait_for((root.with_name("begun")).exists, "the first frame")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)  # as a person or a job scheduler does: to the parent alone
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "clever3d: interrupted" in output
    assert "no scene was whole yet, so nothing is kept; the same command begins again" in output
    assert not root.exists() and [path.name for path in tmp_path.iterdir()] == ["some"]


@pytest.mark.parametrize("arguments", [[], ["--resume"]])
def test_second_run_is_refused_and_does_no_harm(
    arguments: list[str], tmp_path: Path, unbroken: dict[str, dict[str, str]]
) -> None:
    root = tmp_path / "out"
    first = in_own_process(root, "slow_frames", "--jobs", "2")
    wait_for((root.with_name("begun")).exists, "the first frame")
    second = in_own_process(root, "slow_frames", "--jobs", "2", *arguments)
    refused, _ = second.communicate(timeout=60)
    assert not (root / "synth.json").exists()  # the first one is still at it
    output, _ = first.communicate(timeout=60)
    assert second.returncode == 2 and f"another run is writing here: {root} (process {first.pid})" in refused, refused
    assert "goes on" not in refused and "nothing is kept" not in refused
    assert first.returncode == 0, output
    assert tree(root) == unbroken["nuscenes"]


def test_run_killed_before_anything_is_whole_can_be_gone_on_with(
    tmp_path: Path, unbroken: dict[str, dict[str, str]]
) -> None:
    root = tmp_path / "out"
    process = in_own_process(root, "slow_frames", "--jobs", "2")
    wait_for((root.with_name("begun")).exists, "the first frame")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (root / ".synth/lock").is_file() and Parts(root).count() == 0
    with pytest.raises(DataError, match=r"is not empty.*--resume"):
        write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames)
    write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames, resume=True)
    time.sleep(0.4)  # an orphan that has outlived the kill would write something now
    wait_for(lambda: not (root / ".synth").exists(), "the last orphan to clean up")
    assert tree(root) == unbroken["nuscenes"]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("rests", [[], ["lock", ".plan-0a.json", "0000-0a.tmp/files/one", "0001-0a.trash/files/two"]])
def test_folder_with_what_is_left_of_a_run_without_a_plan_is_empty(
    rests: list[str], resume: bool, tmp_path: Path, unbroken: dict[str, dict[str, str]]
) -> None:
    root = tmp_path / "out"
    (root / ".synth").mkdir(parents=True)
    for name in rests:
        (root / ".synth" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / ".synth" / name).touch()
    write_dataset(root, plan_of("rig"), LAYOUTS["rig"], toy_world.frames, resume=resume)
    assert tree(root) == unbroken["rig"]


@pytest.mark.parametrize("fault", ["no fcntl", "no locks on the disk"])
def test_system_without_locks_is_written_to(
    fault: str, tmp_path: Path, unbroken: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if fault == "no fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    write_dataset(tmp_path / "out", plan_of("rig"), LAYOUTS["rig"], toy_world.frames)
    assert tree(tmp_path / "out") == unbroken["rig"]


def test_other_run_is_left_its_drafts_and_its_plan_where_nothing_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    parts = Parts(tmp_path / "out", run="0a")
    parts.begin({"plan": {}, "versions": {}}, resume=False)
    (parts.hidden / "0000-0a.tmp").mkdir()
    Parts(tmp_path / "out", run="0b").end()
    assert {path.name for path in parts.hidden.iterdir()} >= {"0000-0a.tmp", "plan.json"}
    parts.end()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stop", [1, 9, 10_000])
def test_stopped_while_assembling_goes_on_to_the_same_bytes(
    stop: int, tmp_path: Path, unbroken: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after one file was moved, after some, and when the tables were to be written."""
    root, calls = tmp_path / "out", []
    move = Path.replace

    def counted(self: Path, target: Path) -> Path:
        if ".synth" in self.parts and "files" in self.parts:
            calls.append(self)
            if len(calls) > stop:
                raise KeyboardInterrupt
        elif calls and self.suffix == ".json":
            raise KeyboardInterrupt
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames)
    assert not (root / "synth.json").exists() and calls
    written = write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames, resume=True)
    assert written.new_scenes == 0
    assert tree(root) == unbroken["nuscenes"]


def test_full_disk_is_said_and_gone_on_from(tmp_path: Path, unbroken: dict[str, dict[str, str]]) -> None:
    root = tmp_path / "out"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limit[1]))  # a scan of the toy world has 70 kB
    try:
        with pytest.raises(
            DataError, match=r"out cannot be written: File too large; mend that and go on with --resume"
        ):
            write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames)
        assert not root.exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames)
    assert tree(root) == unbroken["nuscenes"]


def test_killed_worker_is_said_and_gone_on_from(tmp_path: Path, unbroken: dict[str, dict[str, str]]) -> None:
    root = tmp_path / "out"
    with pytest.raises(DataError, match=r"scene 2 ended with status -9.*fewer --jobs and go on with --resume"):
        write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.dying_frames, jobs=2)
    assert not any((root / ".synth").glob("*.tmp"))
    write_dataset(root, plan_of(), LAYOUTS["nuscenes"], toy_world.frames, jobs=2, resume=True)
    assert tree(root) == unbroken["nuscenes"]


def test_fault_in_a_worker_comes_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"scene 2:[\s\S]*toy_world.py[\s\S]*ZeroDivisionError: a fault of the world"
    ):
        write_dataset(tmp_path / "out", plan_of(), LAYOUTS["kitti"], toy_world.faulty_frames, jobs=2)


def test_run_that_was_taken_for_dead_does_not_leave_half_a_scene(tmp_path: Path) -> None:
    root = tmp_path / "out"
    parts = Parts(root)
    parts.begin({"plan": {}, "versions": {}}, resume=False)

    def write(folder: Path) -> dict[str, int]:
        (folder / "one").touch()
        parts._lock.release()  # as the end of our process does, whose worker this is
        Parts(root).begin({"plan": {}, "versions": {}}, resume=True)  # another run, which takes the draft away
        folder.mkdir(parents=True)
        (folder / "two").touch()
        return {}

    with pytest.raises(DataError, match="cannot be written"):
        parts.write(0, write)
    assert not parts.is_done(0)


def test_whole_data_set_is_left_alone(
    tmp_path: Path, unbroken: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "embedded_world", toy_world.frames)
    root = tmp_path / "out"
    arguments = ("--out", root, "-l", "kitti", "-n", 3, "-m", 2, "-j", 1)
    status, output = run(*arguments)
    assert status == 0 and f"Next: clever3d data check {root}" in output
    assert "kitti, 3 scenes of 2 key frames" in output
    assert tree(root) == unbroken["kitti"]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    status, output = run(*arguments, "--resume")
    assert status == 0 and "whole already" in output
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    status, output = run(*arguments)
    assert status == 2 and "is not empty" in output
    status, output = run(*arguments, "--resume", "--seed", 3)
    assert status == 2 and "seed 0, not 3" in output


def test_record_and_readme_say_how_it_was_made(tmp_path: Path) -> None:
    root = tmp_path / "out"
    plan = make_plan("rig", scenes=2, frames=1, seed=7, places=["car_park"], motion_distortion=True)
    write_dataset(root, plan, LAYOUTS["rig"], toy_world.frames)
    record = json.loads((root / "synth.json").read_text())
    assert record["plan"] == plan.to_dict() and record["plan"]["seed"] == 7
    assert {"clever3d", "numpy", "pillow"} <= set(record["versions"])
    text = (root / "README.txt").read_text()
    for wanted in ("synthetic", "nothing in it was recorded", "seed 7", "car_park", "with motion distortion", "CC0"):
        assert wanted in text
    assert record["versions"]["clever3d"] in text and "rig.yaml" in text
    assert max(map(len, text.splitlines())) <= 120


def test_resume_refuses_other_versions_and_other_folders(tmp_path: Path) -> None:
    root = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        write_dataset(root, plan_of("rig"), LAYOUTS["rig"], toy_world.faulty_frames)
    record = json.loads((root / ".synth/plan.json").read_text())
    record["versions"]["numpy"] = "0.1"
    (root / ".synth/plan.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"numpy '0\.1', not"):
        write_dataset(root, plan_of("rig"), LAYOUTS["rig"], toy_world.frames, resume=True)
    (root / ".synth/plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan.json cannot be read"):
        write_dataset(root, plan_of("rig"), LAYOUTS["rig"], toy_world.frames, resume=True)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.jpg").touch()
    with pytest.raises(DataError, match="was not begun by clever3d synth"):
        write_dataset(other, plan_of("rig"), LAYOUTS["rig"], toy_world.frames, resume=True)
    assert [path.name for path in other.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "nuscene"], "there is no layout 'nuscene'.*did you mean 'nuscenes'"),
        (["--sensor", "oster"], "there is no sensor 'oster'.*did you mean 'ouster'"),
        (["--place", "street,carpark"], "there is no place 'carpark'.*did you mean 'car_park'"),
        (["--place", ","], "places=0: give at least 1"),
        (["--sensor", "ouster"], "layout nuscenes cannot hold the sensors 'ouster'"),
        (["--scenes", "0"], "scenes=0: give at least 1"),
        (["--frames", "0"], "frames=0: give at least 1"),
        (["--frames", "41"], "frames=41: a scene of 'nuscenes' has 1 to 40 key frames"),  # 20 s at 2 Hz
        (["--layout", "kitti", "--frames", "201"], "frames=201: a scene of 'kitti' has 1 to 200"),  # 20 s at 10 Hz
        (["--seed", "-1"], "seed=-1: give at least 0"),
        (["--image-scale", "0"], "image scale 0: give a number above 0"),
        (["--image-scale", "nan"], "image scale nan: give a number above 0"),
        (["--image-scale", "40"], "image scale 40"),
        (["--jobs", "0"], "jobs=0: give the number of processes"),
        (["--layout", "semantickitti", "--scenes", "23"], "has 22 sequences, got --scenes 23"),
        (["--layout", "kitti", "--scenes", "1001"], "at most 1000 scenes"),
        (["--layout", "kitti", "--nuscenes-version", "v1.0-mini"], "layout kitti has no version 'v1.0-mini'"),
        (["--scenes", "800"], "do not fit; ask for fewer --scenes"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    status, output = run("--out", tmp_path / "out", *arguments)
    assert status == 2 and re.search(message, output.replace("\n", " ")), output
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, output = run("--out", tmp_path / "file", "-n", 1)
    assert status == 2 and "file is a file" in output
    status, output = run("--out", tmp_path / "file/deeper", "-n", 1)
    assert status == 2 and "cannot be written: Not a directory" in output


def test_missing_extra_is_named_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("embreex", "embreex.mesh_construction", "embreex.rtcore_scene"):
        monkeypatch.setitem(sys.modules, module, None)
    status, output = run("--out", tmp_path / "out", "-n", 1, "-m", 1, "-j", 1)
    assert status == 2 and 'pip install "clever3d[synthetic]"' in output
    assert not (tmp_path / "out").exists()


def test_defaults_make_a_plan_for_every_layout() -> None:
    for layout in LAYOUTS:
        plan = make_plan(layout)
        assert plan.places == ("street", "crossing", "motorway", "car_park")
        assert [Scene(plan, index).place for index in range(5)] == [*plan.places, "street"]
        seeds = {Scene(make_plan(layout, scenes=20, seed=seed), index).seed for seed in (0, 1) for index in range(20)}
        assert len(seeds) == 40
    with pytest.raises(UnknownNameError):
        make_plan("waymo")


LESS_OFTEN = [pytest.param(layout, marks=pytest.mark.slow) for layout in ("semantickitti", "kitti")]


@pytest.mark.parametrize("layout", ["nuscenes", "rig", *LESS_OFTEN])
def test_embedded_world_is_written_and_agrees_with_its_depth(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: world, files, reader. A point's distance along the camera's axis is the rendered depth there."""
    true: list[WorldFrame] = []

    def kept(scene: Scene) -> Iterator[WorldFrame]:
        for frame in embedded_world(scene):
            shots = tuple(replace(shot, render=functools.cache(shot.render)) for shot in frame.cameras)
            true.append(replace(frame, cameras=shots))
            yield true[-1]

    monkeypatch.setattr(layouts, "embedded_world", kept)
    root = tmp_path / layout
    status, output = run("--out", root, "-l", layout, "-n", 1, "-m", 1, "--place", "car_park", "--image-scale", 0.15)
    assert status == 0, output
    (frame,), (expected,) = open_dataset(root), true
    cloud = frame.points()
    np.testing.assert_array_equal(cloud.xyz, expected.scan.xyz)
    shots = {shot.name: shot for shot in expected.cameras}
    agree = []
    for camera in frame.cameras:
        depth = shots[camera.name].render().depth
        height, width = depth.shape
        pixels, distances = camera.project(cloud.xyz)
        u, v = np.round(np.nan_to_num(pixels, nan=-9.0)).astype(int).T
        # What stands on the ground is looked at from elsewhere than the LiDAR does: some of it is hidden.
        inside = (distances > 2) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        assert inside.sum() > 200, camera.name
        error = np.abs(depth[v[inside], u[inside]] - distances[inside]) / distances[inside]
        agree.append((error < 0.05).mean())
    assert len(agree) == len(shots)
    assert min(agree) > 0.7 and np.mean(agree) > 0.8, agree
