"""``clever3d synth``: write a synthetic data set in the layout of a real one."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clever3d.errors import DataError

if TYPE_CHECKING:
    from clever3d.datasets.synthetic.layouts import Plan


def synth(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to, new or empty.")],
    layout: Annotated[
        str, typer.Option("--layout", "-l", metavar="NAME", help="nuscenes, semantickitti, kitti or rig.")
    ] = "nuscenes",
    scenes: Annotated[int, typer.Option("--scenes", "-n", help="How many scenes.")] = 4,
    frames: Annotated[
        int | None,
        typer.Option("--frames", "-m", show_default="10; semantickitti 20", help="Key frames in each scene."),
    ] = None,
    sensor: Annotated[
        str | None,
        typer.Option(
            "--sensor",
            metavar="NAME",
            show_default="nuscenes for nuscenes, ouster for rig, else kitti",
            help="LiDAR and cameras: nuscenes (32 beams), kitti (64) or ouster (128). "
            "Layout nuscenes takes nuscenes only.",
        ),
    ] = None,
    place: Annotated[
        str | None,
        typer.Option(
            "--place",
            metavar="A,B,...",
            show_default="all in turn",
            help="Where the scenes are: street, crossing, motorway, car_park.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other scenes.")] = 0,
    image_scale: Annotated[
        float, typer.Option("--image-scale", help="Size of the images, 1 being that of the real ones.")
    ] = 0.5,
    motion_distortion: Annotated[
        bool, typer.Option("--motion-distortion", help="Scans as a moving LiDAR makes them, not of one moment.")
    ] = False,
    version: Annotated[
        str,
        typer.Option(
            "--nuscenes-version",
            show_default="v1.0-mini up to 10 scenes, then v1.0-trainval",
            help="Name of the tables.",
        ),
    ] = "",
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", show_default="one per core", help="Scenes made at a time.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Write a whole synthetic data set in the layout of a real one.

    Streets, crossings, motorways and car parks with traffic, seen by a LiDAR
    and cameras, with labels, boxes and poses that are exactly true. The same
    arguments give the same files. A run that was stopped goes on with
    --resume; before its first scene is whole nothing is kept. Needs the extra
    "synthetic".
    """
    from clever3d.datasets.integrity import cores
    from clever3d.datasets.synthetic.layouts import make_plan, require_ray_casting

    plan = make_plan(
        layout,
        scenes=scenes,
        frames=frames,
        sensor=sensor,
        places=None if place is None else [name.strip() for name in place.split(",") if name.strip()],
        seed=seed,
        image_scale=image_scale,
        motion_distortion=motion_distortion,
        version=version,
    )
    require_ray_casting()
    with _terminated_like_interrupted():
        _write(out, plan, cores() if jobs is None else jobs, resume)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM is Ctrl-C in the block. Python lets only the main thread ask for signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(out: Path, plan: Plan, jobs: int, resume: bool) -> None:
    from tqdm import tqdm

    from clever3d.datasets.synthetic.layouts import LAYOUTS, embedded_world, write_dataset

    start, begun = time.perf_counter(), False
    total = plan.scenes * plan.frames
    with tqdm(total=total, desc=plan.layout, unit="frame", disable=not sys.stderr.isatty(), smoothing=0.05) as bar:

        def begin(done: int) -> None:
            nonlocal begun
            begun = True
            bar.initial = bar.n = done  # what was there before says nothing about the speed
            bar.refresh()

        try:
            written = write_dataset(
                out,
                plan,
                LAYOUTS[plan.layout],
                embedded_world,
                jobs=jobs,
                resume=resume,
                on_start=begin,
                on_frame=lambda: bar.update(1),
            )
        except (KeyboardInterrupt, DataError):
            bar.close()
            if begun:
                _say_what_is_kept(out, plan.scenes)
            raise
    seconds = time.perf_counter() - start
    name = f"{plan.layout} {plan.version}".strip()
    scenes = f"{_count(written.scenes, 'scene')} of {_count(plan.frames, 'key frame')}"
    sizes = f"{written.files:,} files, {written.size / 1e6:,.1f} MB"
    typer.echo(f"wrote     {out}: {name}, {scenes}, {sizes}")
    if written.new_scenes:
        used = min(jobs, written.new_scenes)
        each = f"{seconds / written.new_scenes:.1f} s a scene with {_count(used, 'job')}"
        again = "" if written.new_scenes == written.scenes else ", the others were there before"
        typer.echo(f"took      {seconds:,.0f} s, {each}{again}")
    else:
        typer.echo("nothing to do: it was whole already")
    typer.echo(f"Next: clever3d data check {out}")


def _say_what_is_kept(out: Path, scenes: int) -> None:
    from clever3d.datasets.synthetic.layouts.parts import Parts

    parts = Parts(out)
    if done := parts.count():
        typer.echo(f"{done} of {scenes} scenes are whole; the same command with --resume goes on", err=True)
    elif not parts.is_whole:
        typer.echo("no scene was whole yet, so nothing is kept; the same command begins again", err=True)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
