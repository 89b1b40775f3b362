"""The check of a rig: frames are read, every calibration fault that is known is tried, and what fits better is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clever3d.datasets.rig import Rig
from clever3d.errors import DataError, InputError
from clever3d.evaluate.calibration.cloud import CloudFacts
from clever3d.evaluate.calibration.edges import Array
from clever3d.evaluate.calibration.survey import CameraSurvey, Survey, spread, survey
from clever3d.evaluate.calibration.verdict import Finding, find, position


@dataclass(frozen=True, eq=False)
class CameraResult:
    """What was found of one camera.

    frames: that were compared. in_view: mean number of points in its images. share: of the scan's points. score: of
    the calibration as given (`Evidence.z`). best_score: at best_shift (right, down) and best_roll (clockwise), degrees.
    position [3]: metres, in FLU. azimuth, elevation: of the direction it looks in, degrees left and up. grid [G, G]:
    scores over shifts of -3 to 3 degrees, down and right.
    """

    name: str
    frames: int
    in_view: float
    share: float
    score: float
    best_score: float
    best_shift: tuple[float, float]
    best_roll: float
    position: tuple[float, float, float]
    azimuth: float
    elevation: float
    grid: Array = field(repr=False)


@dataclass(frozen=True, eq=False)
class Report:
    """What `check_rig` found. path: of the rig.yaml. frames: ids looked at. findings: the worst first."""

    path: Path
    frames: tuple[str, ...]
    facts: CloudFacts
    cameras: tuple[CameraResult, ...]
    findings: tuple[Finding, ...]

    @property
    def exit_status(self) -> int:
        """0: nothing found; 1: warnings; 2: errors."""
        levels = {finding.level for finding in self.findings}
        return 2 if "error" in levels else 1 if "warning" in levels else 0


def check_rig(rig: Rig, frames: int = 5) -> Report:
    """Compares scans and images of a few frames, spread over the rig, and says what does not fit and how to mend it.

    frames: how many. A frame that cannot be read is an error in the report, not an end.
    Raises InputError for fewer than one frame, DataError if no scan at all can be read.
    """
    if frames < 1:
        raise InputError(f"frames={frames}: at least one is needed")
    found = survey(rig, spread(len(rig), frames))
    if found.facts is None:
        raise DataError(f"{rig.config.path}: no frame can be read; the first: {found.bad[0][1]}")
    return Report(
        path=rig.config.path,
        frames=tuple(frame.id for frame in found.frames),
        facts=found.facts,
        cameras=tuple(_result(one, found) for one in found.cameras.values()),
        findings=tuple(find(found)),
    )


def _result(one: CameraSurvey, found: Survey) -> CameraResult:
    assert one.given is not None and one.grid is not None
    shift, peak, roll = one.best
    axis = one.camera.points_to_camera[2, :3]
    x, y, z = position(one.camera)
    side = round(len(one.grid.shifts.degrees) ** 0.5)
    return CameraResult(
        name=one.camera.name,
        frames=one.frames,
        in_view=one.given.in_view / one.frames,
        share=one.given.in_view / max(one.points, 1),
        score=one.given.z,
        best_score=peak,
        best_shift=shift,
        best_roll=roll,
        position=(float(x), float(y), float(z)),
        azimuth=float(np.degrees(np.arctan2(axis[1], axis[0]))),
        elevation=float(np.degrees(np.arcsin(np.clip(axis[2], -1, 1)))),
        grid=one.grid.scores().reshape(side, side),
    )
