"""The training loop on a problem of eight numbers: schedule, decay, log, interruption, resume, broken disks."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clever3d.errors import CheckpointError, Clever3dError, InputError
from clever3d.training import LoopConfig, load_state, run, save_state, warmup_cosine

CONFIG = LoopConfig(steps=12, lr=0.05, final_lr=0.001, warmup=3, save_every=4, validate_every=5)
IDENTITY = {"seed": 0, "student": {"width": 1.0, "loop": {"lr": 0.05, "clip": 5.0}}, "frames": ["a", "b"]}
FULL_DISK = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL_DISK.exists(), reason="needs /dev/full, a Linux device that is full")


class Regression:
    """Fits a linear layer with batch normalisation to random numbers that depend on the step alone."""

    def __init__(self, event: Callable[[int], None] = lambda step: None) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.event = event

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        self.event(step)
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 3, generator=generator)
        return (self.module(x) - x[:, :2]).square().mean(), {"extra": float(step)}

    def validate(self) -> dict[str, float]:
        self.module.eval()
        with torch.no_grad():
            return {"score": float(self.module(torch.ones(1, 3)).sum())}


def train(task: Any, folder: Path, config: LoopConfig = CONFIG, *, resume: bool = False, **identity: Any) -> bool:
    folder.mkdir(exist_ok=True)
    return run(task, config, folder, resume=resume, identity={**IDENTITY, **identity})


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def at(step: int, action: Callable[[], None]) -> Callable[[int], None]:
    return lambda current: action() if current == step else None


def unbroken(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    task = Regression()
    assert train(task, folder)
    return records(folder), task.module.state_dict()


# ---- schedule


def test_the_rate_rises_linearly_to_its_peak_and_ends_at_the_final_rate() -> None:
    rate = [warmup_cosine(step, steps=21, warmup=4, peak=2.0, final=0.5) for step in range(21)]
    assert rate[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rate[4] == 2.0
    assert rate[12] == pytest.approx((2.0 + 0.5) / 2)  # half way through the half cosine
    assert rate[8] == pytest.approx(0.5 + 1.5 * math.cos(math.pi / 8) ** 2)  # (1 + cos x) / 2 = cos(x / 2)^2
    assert rate[20] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in itertools.pairwise(rate[4:]))


def test_the_schedule_takes_the_shortest_runs() -> None:
    assert warmup_cosine(0, steps=1, warmup=0, peak=2.0, final=0.5) == 2.0
    assert warmup_cosine(4, steps=5, warmup=0, peak=2.0, final=0.5) == pytest.approx(0.5)
    assert warmup_cosine(4, steps=5, warmup=5, peak=2.0, final=0.5) == 2.0
    assert warmup_cosine(99, steps=5, warmup=2, peak=2.0, final=0.5) == pytest.approx(0.5)  # beyond the end


# ---- steps


class Still(Regression):
    """A loss that no parameter changes: only weight decay moves anything."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        return sum(p.sum() for p in self.module.parameters() if p.requires_grad) * torch.zeros(()), {}


def test_weights_decay_and_vectors_do_not(tmp_path: Path) -> None:
    task = Still()
    before = {name: p.detach().clone() for name, p in task.module.named_parameters()}
    train(task, tmp_path, LoopConfig(steps=7, lr=0.1, final_lr=0.1, warmup=2, weight_decay=0.2))
    shrunk = math.prod(1 - rate * 0.2 for rate in [0.05] + 6 * [0.1])  # AdamW: p -= lr * decay * p
    for name, p in task.module.named_parameters():
        factor = shrunk if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor, msg=name)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    task = Regression()
    task.module[0].weight.requires_grad_(False)
    before = task.module[0].weight.clone()
    train(task, tmp_path)
    assert torch.equal(task.module[0].weight, before)


def test_training_minimises_the_loss(tmp_path: Path) -> None:
    train(Regression(), tmp_path, LoopConfig(steps=200, lr=0.05, warmup=5, weight_decay=0.0))
    losses = [r["loss"] for r in records(tmp_path) if "loss" in r]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_gradients_are_clipped_but_logged_whole(tmp_path: Path) -> None:
    class Steep(Regression):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            seen.append([p.grad.norm().item() for p in self.module.parameters() if p.grad is not None])
            return 100.0 * self.module[0].bias.sum(), {}

    seen: list[list[float]] = []
    train(Steep(), tmp_path, LoopConfig(steps=3, warmup=0, clip=0.5))
    assert records(tmp_path)[0]["grad_norm"] == pytest.approx(100 * math.sqrt(2))
    assert seen[1] == pytest.approx([0.5], rel=1e-4)


# ---- log


def test_the_log_has_every_step_once_with_its_rate_and_figures(tmp_path: Path) -> None:
    train(Regression(), tmp_path)
    steps = [r for r in records(tmp_path) if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 13))
    assert [r["extra"] for r in steps] == list(range(12))
    expected = [warmup_cosine(step, steps=12, warmup=3, peak=0.05, final=0.001) for step in range(12)]
    assert [r["lr"] for r in steps] == expected
    assert steps[0]["loss"] == Regression().loss(0)[0].item()


def test_validation_comes_at_its_interval_and_at_the_end(tmp_path: Path) -> None:
    train(Regression(), tmp_path)
    assert [r["step"] for r in records(tmp_path) if "validation" in r] == [5, 10, 12]


def test_a_new_run_replaces_an_old_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 99.0}\n')
    train(Regression(), tmp_path)
    assert [r["step"] for r in records(tmp_path) if "loss" in r] == list(range(1, 13))


# ---- interruption and resume


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_resumed_run_repeats_the_unbroken_one(tmp_path: Path, number: int) -> None:
    expected, weights = unbroken(tmp_path / "unbroken")
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    first = Regression(at(6, lambda: os.kill(os.getpid(), number)))
    assert not train(first, tmp_path / "broken")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_state(tmp_path / "broken" / "state.pt")["step"] == 7
    assert records(tmp_path / "broken")[-1]["step"] == 7
    second = Regression()
    assert train(second, tmp_path / "broken", resume=True)
    assert records(tmp_path / "broken") == expected
    for name, tensor in second.module.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_second_signal_quits_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(Regression(at(6, twice)), tmp_path)
    assert load_state(tmp_path / "state.pt")["step"] == 4  # of the last save
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_died_between_saves_leaves_no_step_twice(tmp_path: Path) -> None:
    expected, weights = unbroken(tmp_path / "unbroken")

    def die() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        train(Regression(at(7, die)), tmp_path / "broken")
    with (tmp_path / "broken" / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')  # the line that was being written
    task = Regression()
    assert train(task, tmp_path / "broken", resume=True)
    assert records(tmp_path / "broken") == expected
    assert torch.equal(task.module[0].weight, weights["0.weight"])


def test_resuming_a_complete_run_changes_nothing(tmp_path: Path) -> None:
    expected, weights = unbroken(tmp_path)
    task = Regression(lambda step: pytest.fail("a step was made"))
    assert train(task, tmp_path, resume=True)
    assert records(tmp_path) == expected
    assert torch.equal(task.module[0].weight, weights["0.weight"])


def test_a_run_works_in_a_thread_where_python_delivers_no_signals(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(Regression(), tmp_path))
    thread.start()
    thread.join()
    assert load_state(tmp_path / "state.pt")["step"] == 12


def test_another_configuration_is_refused_and_the_changed_option_named(tmp_path: Path) -> None:
    unbroken(tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    student = {"width": 1.0, "loop": {"lr": 0.01, "clip": 5.0}}
    with pytest.raises(CheckpointError, match=r"student\.loop\.lr: 0\.05 then, 0\.01 now") as caught:
        train(Regression(), tmp_path, resume=True, student=student)
    assert not any(word in str(caught.value) for word in ("width", "clip", "seed", "frames"))
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_a_long_list_that_changed_is_named_but_not_printed_whole(tmp_path: Path) -> None:
    unbroken(tmp_path)
    with pytest.raises(CheckpointError, match="frames: ") as caught:
        train(Regression(), tmp_path, resume=True, frames=[f"kitti/{n:06d}" for n in range(5000)])
    assert len(str(caught.value)) < 500


# ---- states that cannot be read


def test_a_missing_state_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no training state at .*state\.pt.*--resume"):
        train(Regression(), tmp_path, resume=True)


def test_damaged_states_are_errors(tmp_path: Path) -> None:
    unbroken(tmp_path)
    path = tmp_path / "state.pt"
    whole = path.read_bytes()
    for content in (b"", b"not a state", whole[:1], whole[: len(whole) // 2], whole[:-1], whole[200:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.pt"):
            train(Regression(), tmp_path, resume=True)
    for n in range(0, 1200, 12):  # through the pickled dictionary; some bytes do not matter
        path.write_bytes(whole[:n] + b"\x91" + whole[n + 1 :])
        with contextlib.suppress(CheckpointError):
            load_state(path)


def test_a_state_of_another_program_is_an_error(tmp_path: Path) -> None:
    for other in ({"epoch": 3}, [1, 2]):
        torch.save(other, tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match=r"not .*state"):
            train(Regression(), tmp_path, resume=True)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_reading_a_state_executes_nothing(tmp_path: Path) -> None:
    path, sprung = tmp_path / "state.pt", tmp_path / "sprung"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Trap(sprung), protocol=2)),
        lambda: torch.save({"a": Trap(sprung)}, path),
    ):
        write()
        with pytest.raises(CheckpointError, match="not a readable training state"):
            load_state(path)
    assert not sprung.exists()


# ---- disks that cannot be written


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"step": 3, "module": {"w": torch.tensor([1.5, -2.0])}, "identity": {"a": [1, None, "x"]}}
    save_state(state, tmp_path / "state.pt")
    loaded = load_state(tmp_path / "state.pt")
    assert torch.equal(loaded.pop("module")["w"], state.pop("module")["w"])
    assert loaded == state


@needs_full_disk
def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state({"step": 1}, path)
    (tmp_path / f".state.pt.{os.getpid()}.tmp").symlink_to(FULL_DISK)  # where the new one is written first
    with pytest.raises(CheckpointError, match="previous one is intact"):
        save_state({"step": 2, "weights": torch.zeros(100_000)}, path)
    assert load_state(path) == {"step": 1}
    assert names(tmp_path) == ["state.pt"]


def test_a_disk_that_fills_up_during_a_run_costs_no_more_than_the_steps_since_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = unbroken(tmp_path / "unbroken")
    genuine = torch.save

    def fails(state: Any, file: Any) -> None:
        if state["step"] > 4:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        genuine(state, file)

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(Regression(), tmp_path / "full")
    monkeypatch.setattr(torch, "save", genuine)
    assert names(tmp_path / "full") == ["log.jsonl", "state.pt"]
    assert train(Regression(), tmp_path / "full", resume=True)
    assert records(tmp_path / "full") == expected


@needs_full_disk
def test_a_log_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    def fill() -> None:
        (tmp_path / "log.jsonl").unlink()
        (tmp_path / "log.jsonl").symlink_to(FULL_DISK)

    with pytest.raises(CheckpointError, match=r"log\.jsonl could not be written.*--resume"):
        train(Regression(at(6, fill)), tmp_path)
    assert load_state(tmp_path / "state.pt")["step"] == 4


# ---- values that cannot be trained with


class Broken(Regression):
    """The loss or its gradient fails at step 6."""

    def __init__(self, broken: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.broken = broken

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, figures = super().loss(step)
        return (self.broken(loss) if step == 6 else loss), figures


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, value: float) -> None:
    with pytest.raises(Clever3dError, match=rf"loss became {value} at step 6.*--loop\.lr"):
        train(Broken(lambda loss: loss * value), tmp_path)
    assert load_state(tmp_path / "state.pt")["step"] == 4


def test_a_gradient_that_is_no_number_does_not_reach_the_parameters(tmp_path: Path) -> None:
    task = Broken(lambda loss: loss + (loss * 0).sqrt())  # the root's slope at 0 is infinite
    with pytest.raises(Clever3dError, match=r"gradient.* at step 6"):
        train(task, tmp_path)
    assert all(p.isfinite().all() for p in task.module.parameters())
    assert load_state(tmp_path / "state.pt")["step"] == 4


@pytest.mark.parametrize("option", ["steps", "save_every", "validate_every"])
def test_lengths_below_one_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(InputError, match=rf"--loop\.{option.replace('_', '-')} 0"):
        train(Regression(), tmp_path, LoopConfig(**{option: 0}))
