"""One loop for every kind of training: schedule, gradients, logs, validation, checkpoints, interruption, resume."""

from __future__ import annotations

import json
import logging
import math
import os
import reprlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from clever3d.errors import CheckpointError, Clever3dError, InputError
from clever3d.training.checkpoint import STATE_FILE, load_state, save_state
from clever3d.training.schedule import warmup_cosine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig:
    """Length, step size and rhythm of a run (values: our choice unless noted)."""

    steps: int = 5000
    """Optimiser steps of the whole run."""
    lr: float = 2e-3
    """Peak learning rate of AdamW (2e-3: ScaLR)."""
    final_lr: float = 1e-5
    """Learning rate at the last step (1e-5: ScaLR)."""
    weight_decay: float = 0.03
    """AdamW weight decay (0.03: ScaLR)."""
    warmup: int = 200
    """Steps of linear warm-up."""
    clip: float = 5.0
    """Largest gradient norm."""
    save_every: int = 200
    """Steps between checkpoints."""
    validate_every: int = 500
    """Steps between validations."""


class Task(Protocol):
    """What is trained."""

    module: nn.Module
    """Holds every trained parameter and buffer."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, a function of parameters and step alone (so that a resumed run repeats the unbroken
        one), and figures to log."""

    def validate(self) -> dict[str, float]:
        """Figures on held-out data."""


class _Stop:
    """Set by SIGINT or SIGTERM; the loop then saves and leaves. A second signal acts as usual."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("%s: saving after this step (once more to quit at once)", signal.Signals(number).name)


@contextmanager
def _catch_signals() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Log:
    """JSON lines, one a record; lines after the step from which a run resumes are dropped."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = []
        if first_step and path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= first_step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError):
                    continue  # the line that was being written when the run died
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with self._explained():
            temporary.write_text("".join(kept))
            temporary.replace(path)

    def write(self, record: dict[str, Any]) -> None:
        with self._explained(), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"the log {self.path} could not be written ({error}); the last saved state is intact. "
                "Free some space or fix the folder's permissions, then start the same command with --resume"
            ) from error


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for weights only: biases and normalisation parameters (one dimension) go without."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """Where nested dictionaries differ, one ``name.of.option: then, now`` each; long values are shortened."""
    if isinstance(then, dict) and isinstance(now, dict):
        prefix = f"{name}." if name else ""
        keys = sorted(then.keys() | now.keys())
        return [line for key in keys for line in _differences(then.get(key), now.get(key), f"{prefix}{key}")]
    return [] if then == now else [f"{name}: {reprlib.repr(then)} then, {reprlib.repr(now)} now"]


def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> int:
    state = load_state(path)
    if missing := {"step", "module", "optimizer", "identity"} - state.keys():
        raise CheckpointError(f"{path} is not the state of a run (it has no {', '.join(sorted(missing))}): check --out")
    if state["identity"] != identity:
        details = "; ".join(_differences(state["identity"], identity))
        raise CheckpointError(f"{path} belongs to another configuration ({details}): use it again, or another --out")
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step


def run(task: Task, config: LoopConfig, folder: Path, *, resume: bool, identity: dict[str, Any]) -> bool:
    """Trains ``task.module`` with AdamW, linear warm-up and a cosine; writes ``state.pt`` and ``log.jsonl``.

    Args:
        folder: where state and log live; must exist.
        resume: continue from ``state.pt``; on a CPU the losses are then bit for bit those of the unbroken run.
        identity: plain values that must not change between the parts of a run.

    Returns:
        True when all steps are made, False when a signal stopped the run (its state is saved).

    Raises:
        Clever3dError: loss or gradient became NaN or infinite; InputError: a length or an interval below 1;
            CheckpointError: state or log that cannot be read or written.
    """
    for name in ("steps", "save_every", "validate_every"):
        if getattr(config, name) < 1:
            raise InputError(f"--loop.{name.replace('_', '-')} {getattr(config, name)}: at least 1 is needed")
    optimizer = torch.optim.AdamW(_parameter_groups(task.module, config.weight_decay), lr=config.lr)
    state_path = folder / STATE_FILE
    first = _restore(state_path, task.module, optimizer, identity) if resume else 0
    log = _Log(folder / "log.jsonl", first)

    def save(step: int) -> None:
        state = {
            "step": step,
            "module": task.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "identity": identity,
        }
        save_state(state, state_path)

    bar = tqdm(total=config.steps, initial=first, unit="step", disable=not sys.stderr.isatty(), smoothing=0.05)
    with _catch_signals() as stop, bar:
        for step in range(first, config.steps):
            started = time.perf_counter()
            figures = _step(task, optimizer, config, step)
            done = step + 1
            log.write({"step": done, **figures, "seconds": round(time.perf_counter() - started, 4)})
            bar.set_postfix(loss=f"{figures['loss']:.4f}")
            bar.update()
            last = done == config.steps
            if last or (done % config.validate_every == 0):
                validation = task.validate()
                log.write({"step": done, "validation": validation})
                logger.info("step %d: %s", done, ", ".join(f"{k} {v:.4f}" for k, v in validation.items()))
            if last or stop.requested or done % config.save_every == 0:
                save(done)
            if stop.requested and not last:
                return False
    return True


def _step(task: Task, optimizer: torch.optim.Optimizer, config: LoopConfig, step: int) -> dict[str, float]:
    lr = warmup_cosine(step, steps=config.steps, warmup=config.warmup, peak=config.lr, final=config.final_lr)
    for group in optimizer.param_groups:
        group["lr"] = lr
    task.module.train()
    loss, figures = task.loss(step)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise _diverged("loss", value, step)
    optimizer.zero_grad()
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(task.module.parameters(), config.clip))
    if not math.isfinite(norm):  # a step would put NaN into the parameters, and the next save into the state
        raise _diverged("gradient's norm", norm, step)
    optimizer.step()
    return {"loss": value, "lr": lr, "grad_norm": norm, **figures}


def _diverged(what: str, value: float, step: int) -> Clever3dError:
    return Clever3dError(
        f"the {what} became {value} at step {step}; resuming would repeat it: start another run with a lower --loop.lr"
    )
