"""What `rig.yaml` says, checked: sensors, calibration, how scans and images go together.

The extrinsics and the poses are in the axes of the scan files, because that is how calibration tools give them;
`extrinsics_axes` says so where they are in others. From there on everything is FLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix, inverse
from clever3d.datasets.labels import LabelSpec
from clever3d.datasets.rig_camera import CameraConfig, Times, read_camera, read_files, read_times, read_transform
from clever3d.datasets.rig_yaml import Section, as_number, read_yaml
from clever3d.errors import DataError, InputError
from clever3d.io import to_flu

FILE_NAME = "rig.yaml"
UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001}

_ROOT_KEYS = ("version", "scenes", "lidar", "cameras", "matching", "poses", "labels")
_LIDAR_KEYS = (
    "files", "axes", "extrinsics_axes", "columns", "intensity_scale", "unit", "min_range", "ground_height",
    "timestamps", "time_unit",
)  # fmt: skip


@dataclass(frozen=True)
class LidarConfig:
    """The scans: files, axes (three letters, see `io.to_flu`), scales; lengths in metres once `unit` is applied."""

    files: str
    axes: str
    extrinsics_axes: str
    columns: int | None
    intensity_scale: float | None
    unit: str
    min_range: float
    ground_height: float | None
    times: Times | None


@dataclass(frozen=True)
class Matching:
    """Which image goes with which scan: by ``stem``, ``number`` or ``time``."""

    by: str
    max_time_difference: float
    skip_missing: bool


@dataclass(frozen=True, eq=False)
class PosesConfig:
    """A TUM file of the poses of a body; lidar_to_body [4, 4], the LiDAR in `extrinsics_axes`."""

    file: str
    lidar_to_body: Matrix


@dataclass(frozen=True, eq=False)
class LabelsConfig:
    """Label files and what their ids mean."""

    files: str
    spec: LabelSpec


@dataclass(frozen=True, eq=False)
class RigConfig:
    """A whole `rig.yaml`. lines: place of a field (``cameras.front.files``) -> its line."""

    path: Path
    scenes: str | None
    lidar: LidarConfig
    cameras: tuple[CameraConfig, ...]
    matching: Matching
    poses: PosesConfig | None
    labels: LabelsConfig | None
    lines: Mapping[str, int]


def axes_matrix(axes: str) -> Matrix:
    """The matrix [3, 3] that turns coordinates in `axes` into FLU; determinant -1 for left-handed axes."""
    identity: NDArray[np.float32] = np.eye(3, dtype=np.float32)
    matrix: Matrix = to_flu(identity, axes).T.astype(np.float64)
    return matrix


def load_config(path: Path) -> RigConfig:
    """Reads and checks a `rig.yaml`.

    Raises DataError, with line and field, for whatever is missing, unknown, double, or no rotation.
    """
    root = read_yaml(path).only(_ROOT_KEYS)
    version = root.whole("version", 1, least=1)
    if version != 1:
        root.fail("version", f"this clever3d knows version 1, the file has {version}; use a newer clever3d")
    root.require("lidar", "lidar: {files: lidar/*.bin, axes: flu}")
    lidar_section = root.section("lidar")
    assert lidar_section is not None
    lidar = _lidar(lidar_section)
    cameras_section = root.section("cameras")
    cameras = tuple(read_camera(cameras_section, name) for name in cameras_section or ()) if cameras_section else ()
    matching = _matching(root.section("matching"))
    _check_matching(root, lidar, cameras, matching)
    poses_section = root.section("poses")
    if poses_section is not None and lidar.times is None:
        root.fail("poses", "poses are looked up by time: add `timestamps: names` (or a file) to `lidar:`")
    return RigConfig(
        path=path,
        scenes=root.text("scenes"),
        lidar=lidar,
        cameras=cameras,
        matching=matching,
        poses=_poses(poses_section) if poses_section is not None else None,
        labels=_labels(root.section("labels"), path),
        lines=_lines(root),
    )


def _lidar(section: Section) -> LidarConfig:
    section.only(_LIDAR_KEYS)
    axes = _axes(section, "axes", None)
    extrinsics_axes = _axes(section, "extrinsics_axes", axes)
    if np.linalg.det(axes_matrix(extrinsics_axes)) < 0:
        key = "extrinsics_axes" if "extrinsics_axes" in section else "axes"
        section.fail(
            key,
            f"{extrinsics_axes} is left-handed: no rotation leads from it to a camera. If the files really are, give "
            "the extrinsics for other axes and name them: `extrinsics_axes: flu`; else correct the letters",
        )
    low = -np.inf
    return LidarConfig(
        files=read_files(section, "lidar/*.bin"),
        axes=axes,
        extrinsics_axes=extrinsics_axes,
        columns=section.whole("columns", None, least=3),
        intensity_scale=section.number("intensity_scale", 0.0, above=0) or None,
        unit=section.choice("unit", UNITS, "m"),
        min_range=section.number("min_range", 0.0, least=0),
        ground_height=None if (height := section.number("ground_height", low)) == low else height,
        times=read_times(section, 0.0),
    )


def _axes(section: Section, key: str, default: str | None) -> str:
    if default is None:
        section.require(key, f"{key}: flu")
    text = section.text(key, default)
    assert text is not None
    try:
        axes_matrix(text)
    except InputError as error:
        raise DataError(f"{section.where(key)}: {error}") from error
    return text.lower()


def _matching(section: Section | None) -> Matching:
    if section is None:
        return Matching("stem", 0.05, False)
    section.only(("by", "max_time_difference", "missing_images"))
    return Matching(
        by=section.choice("by", ("stem", "number", "time"), "stem"),
        max_time_difference=section.number("max_time_difference", 0.05, above=0),
        skip_missing=section.choice("missing_images", ("error", "skip"), "error") == "skip",
    )


def _check_matching(root: Section, lidar: LidarConfig, cameras: tuple[CameraConfig, ...], matching: Matching) -> None:
    """What belongs to another way of matching must not stand there without effect."""
    sensors = {"lidar": lidar.times, **{f"cameras.{camera.name}": camera.times for camera in cameras}}
    if matching.by == "time":
        for place, times in sensors.items():
            if times is None:
                root.fail("matching", f"by: time needs {place}.timestamps: add `timestamps: names` or a file there")
    for camera in cameras:
        if camera.number_offset and matching.by != "number":
            root.fail("cameras", f"{camera.name}.number_offset needs `matching: {{by: number}}`")
        if camera.times is None and "time_offset" in (_below(root, "cameras", camera.name)):
            root.fail("cameras", f"{camera.name}.time_offset needs {camera.name}.timestamps")


def _below(root: Section, *keys: str) -> Section:
    section = root
    for key in keys:
        below = section.section(key)
        assert below is not None
        section = below
    return section


def _poses(section: Section) -> PosesConfig:
    section.only(("file", "lidar_to_body", "body_to_lidar"))
    section.require("file", "file: poses.txt")
    file = section.text("file")
    assert file is not None
    if "lidar_to_body" in section and "body_to_lidar" in section:
        section.fail("body_to_lidar", "lidar_to_body is given too; keep one of them")
    if "lidar_to_body" in section:
        return PosesConfig(file, read_transform(section, "lidar_to_body")[0])
    if "body_to_lidar" in section:
        return PosesConfig(file, inverse(read_transform(section, "body_to_lidar")[0]))
    return PosesConfig(file, np.eye(4))


def _labels(section: Section | None, path: Path) -> LabelsConfig | None:
    if section is None:
        return None
    section.only(("files", "names", "ignore"))
    section.require("names", "names: {0: unlabeled, 1: road}")
    names_section = section.section("names")
    assert names_section is not None
    names = {_label_id(names_section, key): names_section.text(key) or key for key in names_section}
    if not names:
        section.fail("names", "give a name to every id: {0: unlabeled, 1: road}")
    ignored = section.numbers("ignore", "[0]") if "ignore" in section else []
    if unknown := [value for value in ignored if value not in names]:
        section.fail("ignore", f"{unknown[0]:g} is no id of names")
    classes = [raw for raw in sorted(names) if raw not in ignored]
    spec = LabelSpec(
        name=f"rig {path.parent.name}",
        raw_names=names,
        classes=tuple(names[raw] for raw in classes),
        to_class={raw: number for number, raw in enumerate(classes)},
        colors=tuple(_color(number) for number in range(len(classes))),
    )
    return LabelsConfig(read_files(section, "labels/*.label"), spec)


def _label_id(section: Section, key: str) -> int:
    number = as_number(key)
    if number is None or number != int(number) or not 0 <= number < 2**16:
        section.fail(key, f"the id {key!r} is no whole number from 0 to 65535; write `1: road`")
    return int(number)


def _color(number: int) -> tuple[int, int, int]:
    """Hues a golden angle apart, so that neighbouring ids differ (our choice)."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.65, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _lines(section: Section) -> dict[str, int]:
    lines: dict[str, int] = {}
    for key, entry in section.values.items():
        lines[section.place(key)] = entry.line
        below = section.section(key) if isinstance(entry.value, dict) else None
        if below is not None:
            lines.update(_lines(below))
    return lines
