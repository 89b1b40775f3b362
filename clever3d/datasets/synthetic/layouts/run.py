"""Writing a whole data set: scene after scene, or several at a time, and on from where an earlier run was stopped."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias, cast

from clever3d._version import __version__
from clever3d.datasets.synthetic.layouts.base import Layout, Plan, Scene, write_text
from clever3d.datasets.synthetic.layouts.parts import RECORD, Parts
from clever3d.datasets.synthetic.truth import WorldFrame
from clever3d.errors import Clever3dError, DataError, InputError

#: Makes the frames of a scene. A module-level function, so that it can be sent to another process.
World: TypeAlias = Callable[[Scene], Iterable[WorldFrame]]
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: Packages whose versions the bytes may depend on.
_PACKAGES = ("numpy", "pillow", "embreex")


@dataclass(frozen=True)
class Written:
    """What a run has made: scenes in all, those written now, and the files of the whole data set."""

    scenes: int
    new_scenes: int
    files: int
    size: int  # bytes


def write_dataset(
    root: Path,
    plan: Plan,
    layout: Layout,
    world: World,
    *,
    jobs: int = 1,
    resume: bool = False,
    on_start: Callable[[int], None] = lambda done: None,
    on_frame: Callable[[], object] = lambda: None,
) -> Written:
    """Write the data set of `plan` to the folder `root`, `jobs` scenes at a time, each in a process of its own if more
    than one.

    on_start: called with the number of key frames that an earlier run has finished. on_frame: called after each one.
    resume: go on with an unfinished run; the files come out as if it had never been stopped.

    Raises InputError for a plan that the layout cannot hold, or that differs from the unfinished run's; DataError for a
    folder that is not empty, that another run is writing, or that cannot be written. Whatever stops it, what is whole
    stays, and nothing half-written.
    """
    layout.check(plan)
    if jobs < 1:
        raise InputError(f"jobs={jobs}: give the number of processes, at least 1")
    record = {"plan": plan.to_dict(), "versions": _versions()}
    parts = Parts(root)
    parts.begin(record, resume=resume)
    try:
        scenes = [] if parts.is_whole else [Scene(plan, index) for index in range(plan.scenes)]
        missing = [scene for scene in scenes if not parts.is_done(scene.index)]
        on_start(plan.frames * (plan.scenes - len(missing)))
        if jobs == 1 or len(missing) == 1:
            for scene in missing:
                _write_scene(parts, scene, layout, world, on_frame)
        else:
            _in_processes(parts, missing, layout, world, jobs, on_frame)
        parts.assemble(plan.scenes, lambda rows: _finish(root, plan, layout, rows), record)
    finally:
        parts.end()
    files = [path for path in root.rglob("*") if path.is_file()]
    return Written(plan.scenes, len(missing), len(files), sum(path.stat().st_size for path in files))


def _write_scene(parts: Parts, scene: Scene, layout: Layout, world: World, tick: Callable[[], object]) -> None:
    parts.write(scene.index, lambda folder: layout.write_scene(folder, scene, _ticking(world(scene), tick)))


def _ticking(frames: Iterable[WorldFrame], tick: Callable[[], object]) -> Iterator[WorldFrame]:
    for frame in frames:
        yield frame
        if frame.is_key:
            tick()


def _finish(root: Path, plan: Plan, layout: Layout, rows: list[Any]) -> None:
    layout.finish(root, plan, rows)
    places = ", ".join(dict.fromkeys(Scene(plan, index).place for index in range(plan.scenes)))
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    text = f"""\
This is a synthetic data set: nothing in it was recorded. It was made by clever3d synth.

{plan.scenes} scenes of {plan.frames} key frames; places: {places}; sensors: {plan.sensor}; seed {plan.seed}.
Image scale {plan.image_scale:g}; scans {"with" if plan.motion_distortion else "without"} motion distortion.
Versions: {versions}.
{RECORD} repeats all this for programs. The same arguments and versions give the same files.

{layout.describe(plan)}

Licence: the authors of clever3d claim no rights in these files. Whoever made them may choose a licence; CC0 1.0 is
suggested."""
    write_text(root / "README.txt", text.splitlines())


def _versions() -> dict[str, str]:
    versions = {"clever3d": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _in_processes(
    parts: Parts, scenes: list[Scene], layout: Layout, world: World, jobs: int, tick: Callable[[], object]
) -> None:
    context = multiprocessing.get_context("spawn")  # forking would copy whatever threads hold at the moment
    waiting, running = deque(scenes), dict[Connection, tuple[BaseProcess, Scene]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                scene = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_work, args=(sender, parts.root, parts.run, scene, layout, world), daemon=True
                )
                with _for_workers():
                    process.start()
                sender.close()
                running[receiver] = process, scene
            for ready in cast("list[Connection]", wait(list(running))):
                if _listen(ready, *running[ready], tick):
                    running.pop(ready)[0].join()
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _listen(connection: Connection, process: BaseProcess, scene: Scene, tick: Callable[[], object]) -> bool:
    """Take one message of a worker: True if its scene is whole. Raises what the worker has raised."""
    try:
        message = connection.recv()
    except EOFError:
        process.join()
        raise DataError(
            f"the process that wrote scene {scene.index} ended with status {process.exitcode}, -9 being for want of "
            "memory as a rule; take fewer --jobs and go on with --resume"
        ) from None
    if isinstance(message, Exception):
        raise message
    if message == "frame":
        tick()
    return bool(message == "whole")


def _work(sender: Connection, root: Path, run: str, scene: Scene, layout: Layout, world: World) -> None:
    """A process: writes one scene and says "frame" after each frame, then "whole", or sends the error."""

    def tick() -> None:
        try:
            sender.send("frame")
        except OSError:
            raise SystemExit from None  # the parent is gone, and so is the reason to go on

    try:
        _write_scene(Parts(root, run), scene, layout, world, tick)
        sender.send("whole")
    except Clever3dError as error:
        sender.send(error)
    except Exception:
        sender.send(RuntimeError(f"scene {scene.index}:\n{traceback.format_exc()}"))


@contextlib.contextmanager
def _for_workers() -> Iterator[None]:
    """What is started in the block inherits: Ctrl-C means nothing to it (we end it), and it has one thread of linear
    algebra, because the processes share the cores already."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    environment = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in environment.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
