"""What a check of a data set can find, and the report of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clever3d._version import __version__

Severity = Literal["error", "warning", "note"]
REPORT_FORMAT = "clever3d.data-check.v1"

#: kind -> severity and meaning. An error makes a frame unusable or wrong; a warning should be looked at; a note is
#: worth knowing, is often right for the data set, and does not count as a finding.
KINDS: Mapping[str, tuple[Severity, str]] = {
    "missing-file": ("error", "a file that the data set names is not there"),
    "empty-file": ("error", "a file of 0 bytes"),
    "broken-frame": ("error", "the frame cannot be made: a broken calibration, a key that leads nowhere"),
    "duplicate-id": ("error", "two frames have one id"),
    "unreadable-points": ("error", "a scan that cannot be read or is truncated"),
    "unreadable-image": ("error", "an image that cannot be decoded or is truncated"),
    "bad-labels": ("error", "labels that cannot be read, or are not one a point"),
    "bad-boxes": ("error", "boxes that cannot be read, are not finite, have no size or no rotation"),
    "unknown-label": ("error", "a label id that the data set does not have"),
    "empty-scan": ("error", "a scan without points"),
    "non-finite": ("error", "coordinates or intensities that are NaN or infinite"),
    "intensity-range": ("error", "intensities outside [0, 1]"),
    "bad-calibration": ("error", "intrinsics or a camera's rotation that cannot be"),
    "bad-pose": ("error", "a pose or a sweep's transform that is not rigid"),
    "image-size": ("error", "an image of another size than the calibration is for"),
    "none-in-view": ("error", "no point in view of any camera"),
    "time-backwards": ("error", "a timestamp before that of the frame before it"),
    "process-died": ("error", "the process that checked the frame died (out of memory?)"),
    "camera-blind": ("warning", "no point in view of this camera, though others see some"),
    "principal-point": ("warning", "the principal point is far from the middle: was the image resized?"),
    "other-image-size": ("warning", "an image of another size than the same camera's others in its scene"),
    "camera-time": ("warning", "a camera's timestamp far from the scan's"),
    "far-points": ("warning", "points farther away than a sensor sees: wrong units, or map coordinates"),
    "few-points": ("warning", "far fewer points than the frames around: a truncated scan?"),
    "box-recount": ("warning", "boxes that hold far more or far fewer points than the data set says"),
    "same-track": ("warning", "two boxes of one frame with one track id"),
    "same-time": ("warning", "the timestamp of the frame before it"),
    "orphan": ("warning", "a file whose scan is not there: is the download incomplete?"),
    "pose-jump": ("warning", "the pose jumps or turns faster than a vehicle"),
    "origin-points": ("note", "points at the sensor's origin"),
    "image-without-scan": ("note", "an image whose scan is not there; the data set was published with some"),
    "number-gap": ("note", "numbers of a scene that no scan has"),
    "no-returns": ("note", "points without a return: x, y and z NaN in a .pcd"),
}


@dataclass(frozen=True)
class Finding:
    """One fault. kind: a key of KINDS. index, frame, scene: of the frame, -1 and "" for a file that is in none.

    path: the file, "" where it is not known.
    """

    kind: str
    index: int
    frame: str
    scene: str
    path: str
    message: str

    @property
    def severity(self) -> Severity:
        """How bad its kind is."""
        return KINDS[self.kind][0]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"severity": self.severity, **vars(self)}


@dataclass(frozen=True, eq=False)
class Report:
    """What a whole check found.

    dataset: its name. frames: their number. kept: how many of them a state file vouched for. findings: by frame, in the
    order of the data set. points: in all scans that could be read. seconds: of this run. looked_at: how many scans,
    images, labels, boxes and sweeps were read, or were and are unchanged. unchecked: what was not, and how it can be.
    """

    dataset: str
    frames: int
    kept: int
    fast: bool
    seconds: float
    points: int
    findings: tuple[Finding, ...] = field(repr=False)
    looked_at: Mapping[str, int] = field(default_factory=dict)
    unchecked: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """How many findings are so bad."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity == "note" for finding in self.findings)

    def by_kind(self) -> dict[str, list[Finding]]:
        """Findings by kind: errors first, then in the order of KINDS."""
        groups: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
        for finding in self.findings:
            groups[finding.kind].append(finding)
        return {kind: group for kind, group in groups.items() if group}

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything, findings included."""
        return {
            "format": REPORT_FORMAT,
            "clever3d": __version__,
            "dataset": self.dataset,
            "frames": self.frames,
            "frames_from_state": self.kept,
            "fast": self.fast,
            "seconds": round(self.seconds, 3),
            "points": self.points,
            "looked_at": dict(self.looked_at),
            "unchecked": list(self.unchecked),
            "clean": self.clean,
            "counts": {severity: self.count(severity) for severity in ("error", "warning", "note")},
            "findings": [finding.to_dict() for finding in self.findings],
        }
