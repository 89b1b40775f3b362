"""``clever3d data``: look after data sets."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clever3d._cache import cache_folder
from clever3d.cli.extract import say_progress
from clever3d.errors import Clever3dError, DataError

if TYPE_CHECKING:
    from clever3d.datasets import Dataset, Frame
    from clever3d.datasets.integrity import Report, State

EXAMPLES = 3  # of a kind of finding in the table

Spec = Annotated[
    str, typer.Argument(metavar="DIR", help="The data set's folder, or NAME:PATH, or NAME:PATH#key=value&key=value.")
]


def check(
    spec: Spec,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=0, show_default="one a core", help="Processes; 0: none beside this one."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last check of this data set; read only what changed.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="FILE", show_default="in the cache", help="Keep the state here; go on if it is there."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all findings to this .json file.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Of the images read only the header and the end.")] = False,
) -> None:
    """Read every file of a data set and report what is damaged, missing or odd.

    Scans, labels and boxes are read, images decoded, calibrations, times and
    poses checked. Exit status: 0 nothing found, 1 errors or warnings found,
    2 the data set cannot be opened. Notes do not count.

    What has been done is kept: after Ctrl-C, --resume goes on.
    """
    from clever3d.io import check_output

    if report is not None:
        check_output(report, (".json",))
    from clever3d.datasets.base import gaps_allowed

    try:
        with gaps_allowed():
            dataset = _open(spec)
        found = _walk(dataset, spec, jobs, resume, state, fast)
    except Clever3dError as error:
        if report is not None:
            _write(report, {"format": "clever3d.data-check.v1", "spec": spec, "error": str(error)})
        raise
    if report is not None:
        _write(report, {"spec": spec, **found.to_dict()})
    with _output():
        _show(found, report)
    if not found.clean:
        raise typer.Exit(1)


def info(spec: Spec) -> None:
    """Say what a folder is: which data set, how many frames, what is in the first.

    Reads one scan and decodes no image.
    """
    dataset = _open(spec)
    if len(dataset) == 0:
        raise DataError(f"{spec} has no frames")
    lines = _summary(dataset)
    with _output():
        typer.echo("\n".join(lines))


def _summary(dataset: Dataset) -> list[str]:
    first = dataset[0]
    scenes, broken = _scenes(dataset)
    lines = [f"data set  {dataset.name}: {_count(len(dataset), 'frame')} in {_count(len(scenes), 'scene')}"]
    for name, frames in list(scenes.items())[:EXAMPLES] if len(scenes) < len(dataset) else []:
        lines.append(f"scene     {name}: {_count(frames, 'frame')}")
    if EXAMPLES < len(scenes) < len(dataset):
        lines.append(f"scene     ... and {len(scenes) - EXAMPLES} more")
    if broken:
        lines.append(f"broken    {_count(len(broken), 'frame')}, see clever3d data check; the first: {broken[0]}")
    return [*lines, f"first     {first.id}", *_contents(first)]


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """An output that cannot be written ends the command with a message, not a traceback; a closed pipe, silently."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise  # typer ends with status 1
        raise DataError(f"the output cannot be written: {error.strerror}; make room, or send it elsewhere") from error


def _scenes(dataset: Dataset) -> tuple[dict[str, int], list[str]]:
    """Number of frames of each scene, and what is wrong with the frames that cannot be made."""
    scenes: dict[str, int] = {}
    broken: list[str] = []
    for index in range(len(dataset)):
        try:
            scene = dataset[index].scene
        except Clever3dError as error:
            broken.append(str(error))
        else:
            scenes[scene] = scenes.get(scene, 0) + 1
    return scenes, broken


def _contents(frame: Frame) -> list[str]:
    """What one frame has, a line each."""
    cloud = frame.points()
    low, high = cloud.xyz.min(axis=0), cloud.xyz.max(axis=0)
    box = ", ".join(f"{axis} {a:.1f}..{b:.1f}" for axis, a, b in zip("xyz", low, high, strict=True))
    intensity = "no intensity"
    if cloud.intensity is not None and len(cloud.intensity):
        intensity = f"intensity {cloud.intensity.min():.3g}..{cloud.intensity.max():.3g}"
    lines = [f"points    {len(cloud.xyz):,}: {box} m, {intensity}", f"          {frame.points_path}"]
    for camera in frame.cameras:
        size = "" if camera.image_size is None else " {} x {},".format(*camera.image_size)
        lens = f", {camera.distortion.model} distortion" if camera.distortion else ""
        focal = f"focal length {camera.intrinsics[0, 0]:.0f} pixels"
        lines.append(f"camera    {camera.name}:{size} {focal}{lens}")
    if not frame.cameras:
        lines.append("camera    none")
    labels, boxes = frame.labels(), frame.boxes()
    if labels is None:
        lines.append("labels    none")
    else:
        used = len(set(labels.semantic.tolist()))
        lines.append(f"labels    {labels.spec.name}: {len(labels.spec.classes)} classes, {used} ids in the first frame")
    if boxes is None:
        lines.append("boxes     none")
    else:
        kinds = ", ".join(sorted(set(boxes.names)))
        lines.append(f"boxes     {len(boxes)} in the first frame" + (f": {kinds}" if kinds else ""))
    has = [("timestamps", frame.timestamp), ("poses", frame.points_to_world), ("sweeps", frame.sweeps or None)]
    lines.append("also      " + (", ".join(name for name, value in has if value is not None) or "no times, no poses"))
    return lines


def _open(spec: str) -> Dataset:
    from clever3d.datasets import open_dataset

    say_progress(f"opening {spec}")
    try:
        return open_dataset(spec)
    except Clever3dError:
        raise
    except Exception as error:  # whatever a damaged table makes a reader stumble over is no fault of the user's
        if os.environ.get("CLEVER3D_DEBUG"):
            raise
        raise DataError(f"{spec} cannot be opened: its reader fails with {type(error).__name__}: {error}") from error


def _walk(dataset: Dataset, spec: str, jobs: int | None, resume: bool, path: Path | None, fast: bool) -> Report:
    """Check with a bar on a terminal; Ctrl-C says how to go on."""
    from tqdm import tqdm

    from clever3d.datasets.integrity import check_dataset

    state = _state(dataset, spec, resume, path)
    bar = tqdm(total=len(dataset), unit=" frames", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    done = 0

    def progress(now: int, total: int) -> None:
        nonlocal done
        done = now
        bar.update()

    try:
        return check_dataset(dataset, jobs=jobs, fast=fast, state=state, progress=progress)
    except KeyboardInterrupt:
        bar.close()
        how = f"--state {path}" if path is not None else "--resume"
        kept = f"; go on with: clever3d data check {spec} {how}{' --fast' if fast else ''}" if state else ""
        typer.echo(f"clever3d: interrupted after {done:,} of {len(dataset):,} frames{kept}", err=True)
        raise typer.Exit(130) from None
    finally:
        bar.close()
        if state is not None:
            state.__exit__(None, None, None)


def _state(dataset: Dataset, spec: str, resume: bool, path: Path | None) -> State | None:
    """The state to go on with: `path`, or the one of the data set in the cache; None where that cannot be written."""
    from clever3d.datasets import split_spec
    from clever3d.datasets.integrity import State

    root = split_spec(spec)[1].resolve()
    if path is not None:
        return State(path, dataset.name, root)
    cache = cache_folder() / "data-check"
    name = f"{dataset.name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.jsonl"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return State(cache / name, dataset.name, root, anew=not resume)
    except (OSError, DataError) as error:
        if resume:
            raise DataError(f"there is nothing to go on with: {error}; leave --resume out") from error
        typer.echo(f"WARNING: an interrupted check cannot go on: {error}", err=True)
        return None


def _show(found: Report, report: Path | None) -> None:
    """The table of findings and the summary."""
    from clever3d.datasets.integrity import KINDS

    groups = found.by_kind()
    for kind, group in groups.items():
        severity, meaning = KINDS[kind]
        typer.echo(f"{severity:<8}  {kind:<{max(map(len, groups))}}  {len(group):>6,}  {meaning}")
        shown = group[: EXAMPLES if severity != "note" else 1]
        for finding in shown:
            message = finding.message
            typer.echo(f"            {message if finding.path in message else f'{finding.path}: {message}'}")
        if len(group) > len(shown):
            rest = "" if report is not None else " (--json FILE lists all)"
            typer.echo(f"            ... and {len(group) - len(shown):,} more{rest}")
    frames = len({f.index for f in found.findings if f.severity != "note" and f.index >= 0})
    counts = ", ".join(_count(found.count(severity), severity) for severity in ("error", "warning", "note"))
    kept = f" ({found.kept:,} unchanged since the last check)" if found.kept else ""
    speed = f"{(found.frames - found.kept) / max(found.seconds, 1e-9):.1f} frames/s"
    at = found.looked_at
    typer.echo(
        f"looked at {_count(at['scans'], 'scan')}, {_count(at['images'], 'image')}, labels of "
        f"{_count(at['labels'], 'scan')}, boxes of {_count(at['boxes'], 'scan')}, {_count(at['sweeps'], 'sweep')}"
    )
    for what in found.unchecked:
        typer.echo(f"not checked: {what}")
    typer.echo(
        f"{found.dataset}: {_count(found.frames, 'frame')}{kept} checked in {found.seconds:.1f} s ({speed}): "
        + (f"{counts}; {_count(frames, 'frame')} affected" if found.findings else "clean")
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _write(path: Path, content: dict[str, Any]) -> None:
    from clever3d.io import atomic_path

    with atomic_path(path) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
