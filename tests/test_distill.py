"""Distillation through its command, from files on disk to a student: it learns what can be learned and nothing else."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import FOCAL, HEIGHT, TEACHER, WIDTH, write_kitti, write_teacher
from PIL import Image
from safetensors.torch import load_file

import clever3d
from clever3d.datasets import open_dataset
from clever3d.distill.cli import main
from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.task import Distillation, Example, compare
from clever3d.distill.teachers import Teacher, sample_grid
from clever3d.distill.train import load_head
from clever3d.errors import CheckpointError

STEPS = 30
VAL = "kitti/00000[45]"
TOKENS = 96
SLOWLY = """
import time
from clever3d.distill.cli import main
from clever3d.distill.task import Distillation
loss = Distillation.loss
Distillation.loss = lambda self, step: (time.sleep(0.1), loss(self, step))[1]
main()
"""


@dataclass(frozen=True)
class Workplace:
    folder: Path
    options: tuple[str, ...]  # all but --out and --data.sets

    def command(self, out: str, *more: str, data: str = "related") -> list[str]:
        return ["--out", str(self.folder / out), "--data.sets", f"kitti:{self.folder / data}", *self.options, *more]

    def train(self, out: str, *more: str, data: str = "related") -> int:
        """Exit status of the command, run inside this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["clever3d-train", *self.command(out, *more, data=data)])
            try:
                main()
            except SystemExit as end:
                return int(end.code or 0)
        return 0

    def start(self, out: str, *more: str) -> subprocess.Popen[str]:
        """The same command as a process of its own, slowed down so that a signal meets it on its way."""
        path = os.pathsep.join([str(Path(clever3d.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", SLOWLY, *self.command(out, *more)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})

    def records(self, out: str) -> list[dict[str, Any]]:
        lines = (self.folder / out / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    def teacher(self) -> Teacher:
        return Teacher.create(TEACHER, self.folder / "teacher.safetensors", image_tokens=TOKENS)

    def validation(self, out: str) -> dict[str, float]:
        last: dict[str, float] = self.records(out)[-1]["validation"]
        return last


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Six frames whose pictures show the scene, the same scans with noise for pictures, and a teacher."""
    threads, level = torch.get_num_threads(), logging.getLogger().level
    folder = tmp_path_factory.mktemp("distill")
    write_kitti(folder / "related")
    write_kitti(folder / "noise", related=False)
    teacher = write_teacher(folder / "teacher.safetensors")
    options = f"""
        --teacher.model {TEACHER} --teacher.weights {teacher} --teacher.tokens {TOKENS} --teacher.cache {folder}/cache
        --student.architecture minkunet_small --student.width 0.25 --student.voxel 0.3 --student.head-layers 2
        --student.head-width 32 --data.val {VAL} --data.pairs 256 --loop.steps {STEPS} --loop.lr 1e-2 --loop.warmup 5
        --loop.save-every 12 --loop.validate-every 20 --device cpu --threads 1"""
    yield Workplace(folder, tuple(options.split()))
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="module")
def run(work: Workplace) -> Path:
    """A complete run."""
    assert work.train("run") == 0
    return work.folder / "run"


# ---- what a run leaves


def test_a_run_leaves_student_head_state_log_and_options(run: Path) -> None:
    names = sorted(path.name for path in run.iterdir())
    assert names == ["config.json", "head.safetensors", "log.jsonl", "state.pt", "student.safetensors"]
    options = json.loads((run / "config.json").read_text())
    assert options["data"]["pairs"] == 256
    assert options["loop"]["steps"] == STEPS


def test_the_student_loads_by_its_path_and_says_how_it_was_made(run: Path) -> None:
    student = clever3d.load_backbone(run / "student.safetensors")
    features = student.extract(np.random.default_rng(0).uniform(-5, 5, (200, 3)).astype(np.float32))
    assert features.features.shape == (200, student.feature_dim)
    assert features.features[features.valid].std(0).max() > 0
    record = student.pretrained_cfg
    assert record is not None
    assert (record["teacher"], record["frames"]) == (TEACHER, 4)
    assert student.input_spec.trained_sensors == ("kitti",)


def test_no_path_of_this_machine_is_in_the_student(work: Workplace, run: Path) -> None:
    for name in ("student.safetensors", "head.safetensors"):
        assert str(work.folder).encode() not in (run / name).read_bytes()


def test_the_loss_falls(work: Workplace, run: Path) -> None:
    losses = [r["loss"] for r in work.records("run") if "loss" in r]
    assert len(losses) == STEPS
    assert 0.9 < losses[0] < 1.1  # a random student's answer is at a right angle to the target
    assert np.mean(losses[-10:]) < 0.4 * losses[0]


def learned(validation: dict[str, float]) -> bool:
    return (
        validation["centred_cosine"] > validation["constant_centred_cosine"] + 0.4
        and validation["cosine"] > validation["constant_cosine"] + 0.1
    )


def test_held_out_features_are_predicted_where_pictures_show_the_scene(work: Workplace, run: Path) -> None:
    assert learned(work.validation("run"))


def test_nothing_is_predicted_where_pictures_have_nothing_to_do_with_the_scene(work: Workplace) -> None:
    assert work.train("control", data="noise") == 0
    validation = work.validation("control")
    assert not learned(validation)
    assert validation["centred_cosine"] < 0.3
    assert validation["cosine"] < validation["constant_cosine"] + 0.02


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def test_student_head_and_statistics_on_disk_are_those_that_were_validated(work: Workplace, run: Path) -> None:
    """The logged cosine, worked out again from the files with a projection and a head written out here."""
    student = clever3d.load_backbone(run / "student.safetensors")
    saved = load_file(run / "head.safetensors")
    teacher = work.teacher()
    cosines = []
    for number in (4, 5):
        training = work.folder / "related" / "training"
        points = np.fromfile(training / f"velodyne/{number:06d}.bin", dtype=np.float32).reshape(-1, 4)
        x, y, z, _ = points.T.astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = WIDTH / 2 - FOCAL * y / x, HEIGHT / 2 - FOCAL * z / x
        context = (x > 0) & (u >= -0.1 * WIDTH) & (u < 1.1 * WIDTH)
        seen = (x > 1) & (u >= -0.5) & (u < WIDTH - 0.5) & (v >= -0.5) & (v < HEIGHT - 0.5)
        grid = teacher.features(np.asarray(Image.open(training / f"image_2/{number:06d}.png"))).half()
        target = sample_grid(grid, np.stack([u, v], axis=1)[seen], (WIDTH, HEIGHT)) - saved["stats.mean"][0]
        student_input = student.extract(points[context][:, :3], points[context][:, 3]).features[seen[context]]
        hidden = gelu(student_input @ saved["head.0.weight"].T + saved["head.0.bias"])
        answer = hidden @ saved["head.2.weight"].T + saved["head.2.bias"]
        cosines.append(float(torch.nn.functional.cosine_similarity(answer, target, dim=1).mean()))
    assert np.mean(cosines) == pytest.approx(work.validation("run")["centred_cosine"], abs=1e-3)


def test_a_run_s_files_give_its_validation_again(work: Workplace, run: Path) -> None:
    student = clever3d.load_backbone(run / "student.safetensors")
    head, stats, target = load_head(run)
    cache = FeatureCache(work.folder / "cache", work.teacher())
    frames = open_dataset(f"kitti:{work.folder / 'related'}")
    logged = work.validation("run")
    gain = logged.pop("train_centred_cosine")
    figures = [compare(student.eval(), head, stats, Example(frames[n], 0), cache, target, gain) for n in range(6)]
    assert np.mean([f["centred_cosine"] for f in figures[:4]]) == pytest.approx(gain, abs=1e-5)  # the training frames
    for name, value in logged.items():
        assert np.mean([f[name] for f in figures[4:]]) == pytest.approx(value, abs=1e-5), name


def test_a_folder_without_a_run_has_no_head(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no run of clever3d-train"):
        load_head(tmp_path)
    shutil.copy(run / "config.json", tmp_path)
    (tmp_path / "head.safetensors").write_bytes((run / "head.safetensors").read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"holds no run of clever3d-train"):
        load_head(tmp_path)


# ---- interruption and resume


def steps_logged(path: Path) -> int:
    return sum('"loss"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def stop_after(process: subprocess.Popen[str], log: Path, steps: int, number: int) -> str:
    """Sends a signal once so many steps are logged; what the process wrote to stderr."""
    try:
        while steps_logged(log) < steps and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        errors = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "--resume" in errors
    return errors


def test_a_run_stopped_twice_repeats_the_unbroken_one_bit_for_bit(work: Workplace, run: Path) -> None:
    log = work.folder / "stopped" / "log.jsonl"
    stop_after(work.start("stopped"), log, 4, signal.SIGTERM)
    first = steps_logged(log)
    assert 4 <= first < STEPS - 5
    clever3d.load_backbone(log.parent / "student.safetensors")  # an unfinished student can be used
    stop_after(work.start("stopped", "--resume"), log, first + 4, signal.SIGINT)
    assert first + 4 <= steps_logged(log) < STEPS
    assert work.train("stopped", "--resume") == 0

    steps = [r["step"] for r in work.records("stopped") if "loss" in r]
    assert steps == list(range(1, STEPS + 1))  # none twice
    assert work.records("stopped") == work.records("run")
    again, unbroken = (load_file(folder / "student.safetensors") for folder in (log.parent, run))
    assert all(torch.equal(again[name], unbroken[name]) for name in unbroken)


def copy_of(work: Workplace, run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, work.folder / name))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("--loop.lr 0.5", "loop.lr: 0.01 then, 0.5 now"),
        ("--data.pairs 128", "data.pairs: 256 then, 128 now"),
        ("--data.cameras one", "data.cameras: 'all' then, 'one' now"),
        ("--data.occlusion", "data.occlusion: False then, True now"),
        ("--augment.flip 0", "augment.flip: 0.5 then, 0.0 now"),
        ("--target none", "target: 'center' then, 'none' now"),
        ("--teacher.layer norm", "teacher: "),
        ("--data.exclude kitti/000000", "frames: "),
    ],
)
def test_a_changed_option_is_named_and_the_run_left_as_it_was(
    work: Workplace, run: Path, capsys: pytest.CaptureFixture[str], change: str, name: str
) -> None:
    before = contents(run)
    assert work.train("run", "--resume", *change.split()) == 2
    message = capsys.readouterr().err
    assert name in message
    assert "voxel" not in message  # an option that did not change
    assert contents(run) == before


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("#scene=3", "data_sets: ['kitti'] then, ['kitti#scene=3'] now"),  # the same frames in other scenes
        ("#cameras=image_3", "frame_cameras: "),  # the same frames through another camera
    ],
)
def test_a_data_set_opened_with_another_option_is_not_the_one_the_run_began_with(
    work: Workplace, run: Path, capsys: pytest.CaptureFixture[str], options: str, name: str
) -> None:
    before = contents(run)
    training = work.folder / "stereo" / "training"
    if not training.exists():
        shutil.copytree(work.folder / "related" / "training", training)
        shutil.copytree(training / "image_2", training / "image_3")
        for path in (training / "calib").iterdir():
            path.write_text(path.read_text() + path.read_text().splitlines()[0].replace("P2", "P3") + "\n")
    assert work.train("run", "--resume", data=f"stereo{options}") == 2
    message = capsys.readouterr().err
    assert "belongs to another configuration" in message and name in message
    assert contents(run) == before


def test_a_run_goes_on_with_files_that_have_moved_and_a_data_set_that_is_guessed(work: Workplace, run: Path) -> None:
    copy_of(work, run, "moved")
    shutil.copytree(work.folder / "related", work.folder / "elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        command = work.command("moved", "--resume", data="elsewhere")
        command[3] = command[3].removeprefix("kitti:")
        patch.setattr(sys, "argv", ["clever3d-train", *command])
        main()
    assert work.records("moved") == work.records("run")


def test_the_teacher_sees_every_image_before_the_first_step(
    work: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Validation frames too, whose images no step would ask for: a folder of features that is complete, or an error."""

    def step(self: Distillation, number: int) -> Any:
        raise CheckpointError("a step")

    monkeypatch.setattr(Distillation, "loss", step)
    assert work.train("early", "--teacher.cache", str(work.folder / "early-cache")) == 2
    assert "a step" in capsys.readouterr().err
    assert len(list((work.folder / "early-cache").rglob("*.safetensors"))) == 6


def test_a_run_can_be_made_longer(work: Workplace, run: Path) -> None:
    folder = copy_of(work, run, "longer")
    assert work.train("longer", "--resume", "--loop.steps", str(STEPS + 2)) == 0
    assert work.records("longer")[: len(work.records("run"))] == work.records("run")
    assert [r["step"] for r in work.records("longer") if "loss" in r][-3:] == [STEPS, STEPS + 1, STEPS + 2]
    assert json.loads((folder / "config.json").read_text())["loop"]["steps"] == STEPS + 2


def test_a_folder_that_is_not_empty_is_not_written_to(
    work: Workplace, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert work.train("run") == 2
    assert "not empty: add --resume" in capsys.readouterr().err
    assert contents(run) == before


def test_a_folder_without_a_state_can_neither_be_resumed_nor_overwritten(
    work: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = work.folder / "other"
    assert work.train("other", "--resume") == 2
    assert "no training state in" in capsys.readouterr().err
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert work.train("other", "--resume") == 2
    assert work.train("other") == 2
    assert "--resume" not in capsys.readouterr().err.splitlines()[-1]  # which could not help
    assert work.train("other/notes.txt") == 2
    assert contents(folder) == {"notes.txt": b"mine"}


def test_a_damaged_state_is_an_error(work: Workplace, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = copy_of(work, run, "damaged") / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert work.train("damaged", "--resume") == 2
    assert "not a readable training state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.val", "kitti/1*"), "match no frame"),
        (("--student.architecture", "minkunet35"), "minkunet34"),
        (("--teacher.weights", "missing.safetensors"), "missing.safetensors"),
        (("--loop.validate-every", "0"), "--loop.validate-every 0"),
    ],
)
def test_options_that_cannot_be_used_end_with_one_line_and_status_2(
    work: Workplace, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert work.train("never", *options) == 2
    assert not (work.folder / "never").exists()
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
