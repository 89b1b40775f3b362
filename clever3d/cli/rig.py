"""``clever3d rig``: a data set of your own sensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clever3d.errors import DataError, InputError

if TYPE_CHECKING:
    from clever3d.datasets import Frame, Rig
    from clever3d.evaluate.calibration import Report

Folder = Annotated[Path, typer.Argument(help="The rig's folder: with scans, images and rig.yaml.", metavar="FOLDER")]


def new(
    folder: Folder,
    force: Annotated[bool, typer.Option("--force", help="Replace a rig.yaml that is there.")] = False,
) -> None:
    """Write a commented rig.yaml, with what the folder shows filled in.

    Example: clever3d rig new my_car
    """
    from clever3d.datasets.rig_template import write_template

    path, contents = write_template(folder.expanduser(), replace=force)
    typer.echo(f"Wrote {path}.")
    if contents.scenes is not None:
        typer.echo(f"Recordings: {contents.scenes}.")
    if contents.scans is not None:
        typer.echo(f"Scans: {contents.scans.pattern} ({len(contents.scans.stems):,} files).")
    for image in contents.images:
        assert image.size is not None
        typer.echo(f"Images: {image.pattern} ({len(image.stems):,} files, {image.size[0]} x {image.size[1]}).")
    typer.echo(f"Next: fill in what says FILL_IN, then run  clever3d rig check {folder}")


def check(
    folder: Folder,
    frames: Annotated[int, typer.Option("--frames", min=1, help="How many frames to look at.")] = 5,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for pictures: points on images, and the scores.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check the calibration of a rig: do the points fall on the images where they belong?

    Exit status: 0 nothing found, 1 warnings, 2 errors.

    Example: clever3d rig check my_car --out my_car_pictures
    """
    from clever3d.datasets import Rig
    from clever3d.evaluate.calibration import check_rig

    rig = Rig(folder)
    report = check_rig(rig, frames)
    pictures = [] if output is None else _draw(output, rig, report)
    if as_json:
        typer.echo(json.dumps(_as_json(report, pictures), indent=2, ensure_ascii=False))
    else:
        _print(rig, report, pictures)
    if report.exit_status:
        raise typer.Exit(report.exit_status)


def _print(rig: Rig, report: Report, pictures: list[Path]) -> None:
    facts = report.facts
    typer.echo(f"{report.path}: {len(rig):,} frames, {len(report.frames)} looked at.")
    ground = "" if facts.ground is None else f", ground {-facts.ground:.1f} m below the sensor"
    typer.echo(f"Points: median range {facts.median_range:,.4g} m{ground}.")
    rows = [("CAMERA", "FRAMES", "POINTS IN VIEW", "SCORE", "BEST", "AT (RIGHT, DOWN)", "POSITION (M)", "LOOKS")]
    for one in report.cameras:
        looks = f"{abs(one.azimuth):.0f} deg {'left' if one.azimuth >= 0 else 'right'}, {one.elevation:+.0f} up"
        shift = f"{one.best_shift[0]:+.1f}, {one.best_shift[1]:+.1f} deg"
        shift += f", turned {one.best_roll:+.0f}" if one.best_roll else ""
        place = " ".join(f"{x:.2f}" for x in one.position)
        view = f"{one.in_view:,.0f} ({100 * one.share:.0f} %)"
        rows.append((one.name, str(one.frames), view, f"{one.score:.1f}", f"{one.best_score:.1f}", shift, place, looks))
    if report.cameras:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        typer.echo("SCORE: 4 and more is good, below 2.5 edges of scans and images agree no better here than beside.")
        if max(one.frames for one in report.cameras) < 3:
            typer.echo("Fewer than 3 frames could be compared: take what follows with care.")
    for finding in report.findings:
        whose = f" {finding.camera}:" if finding.camera else ""
        typer.echo(f"{finding.level.upper()}: {finding.fault}:{whose} {finding.text}.")
        if finding.mend:
            typer.echo(f"  mend: {finding.mend}")
    if not report.findings:
        typer.echo("Nothing found." if report.cameras else "There are no cameras to check.")
    if pictures:
        typer.echo(f"Look at {len(pictures)} pictures in {pictures[0].parent}.")


def _draw(folder: Path, rig: Rig, report: Report) -> list[Path]:
    from clever3d.evaluate.calibration.pictures import save_overlay, save_score

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made a folder: {error.strerror or error}") from error
    made = []
    for frame in _frames(rig, report):
        for camera in frame.cameras:
            path = folder / f"{_safe(frame.id)}_{_safe(camera.name)}.png"
            try:
                save_overlay(path, frame, camera, f"{frame.id}, {camera.name}")
            except (DataError, InputError):
                continue  # unreadable images are in the report already
            made.append(path)
    for result in report.cameras:
        made.append(folder / f"score_{_safe(result.name)}.png")
        save_score(made[-1], result)
    return made


def _frames(rig: Rig, report: Report) -> list[Frame]:
    rows = {name: row for row, name in enumerate(rig.ids())}
    return [rig[rows[name]] for name in report.frames]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _as_json(report: Report, pictures: list[Path]) -> dict[str, Any]:
    from dataclasses import asdict

    cameras = [{key: value for key, value in asdict(one).items() if key != "grid"} for one in report.cameras]
    return {
        "path": str(report.path),
        "exit_status": report.exit_status,
        "frames": list(report.frames),
        "points": asdict(report.facts),
        "cameras": cameras,
        "findings": [asdict(finding) for finding in report.findings],
        "pictures": [str(path) for path in pictures],
    }
