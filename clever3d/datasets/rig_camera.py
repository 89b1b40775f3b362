"""The part of `rig.yaml` that is about one camera, checked: lens, mount, files, timestamps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clever3d.datasets.camera import Distortion
from clever3d.datasets.geometry import Matrix, check_rotation, check_transform, inverse, quaternion_to_rotation, rigid
from clever3d.datasets.rig_yaml import Section
from clever3d.errors import DataError, InputError

TIME_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_CAMERA_KEYS = (
    "files", "image_size", "intrinsics", "distortion", "lidar_to_camera", "camera_to_lidar", "timestamps", "time_unit",
    "time_offset", "number_offset",
)  # fmt: skip
_TRANSFORM_KEYS = ("matrix", "rotation", "quaternion", "translation")
_ROTATION_EXAMPLE = "rotation: [[0, -1, 0], [0, 0, -1], [1, 0, 0]]"


@dataclass(frozen=True)
class Times:
    """Where timestamps are from. source: ``names`` or a text file. per_second: units. offset: seconds to add."""

    source: str
    per_second: int
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class CameraConfig:
    """One camera. to_camera [4, 4]: from the LiDAR in `extrinsics_axes` (metres) to the camera; given_as: the key.

    rotation_given_as: ``matrix``, ``rotation`` or ``quaternion``. image_size: (W, H).
    """

    name: str
    files: str
    image_size: tuple[int, int]
    intrinsics: Matrix
    distortion: Distortion | None
    to_camera: Matrix
    given_as: str
    rotation_given_as: str
    times: Times | None
    number_offset: int


def read_camera(cameras: Section, name: str) -> CameraConfig:
    section = cameras.section(name)
    if section is None:
        cameras.fail(name, "the camera has no settings: give files, image_size, intrinsics and extrinsics")
    section.only(_CAMERA_KEYS)
    size = section.numbers("image_size", "[1920, 1200]")
    if len(size) != 2 or any(isinstance(side, list) or side < 1 or side != int(side) for side in size):
        section.fail("image_size", f"expected [width, height] in pixels, such as [1920, 1200], got {size}")
    to_camera, given_as, rotation_given_as = _extrinsics(section)
    return CameraConfig(
        name=name,
        files=read_files(section, f"{name}/*.jpg"),
        image_size=(int(size[0]), int(size[1])),
        intrinsics=_intrinsics(section),
        distortion=_distortion(section),
        to_camera=to_camera,
        given_as=given_as,
        rotation_given_as=rotation_given_as,
        times=read_times(section, section.number("time_offset", 0.0)),
        number_offset=_offset(section),
    )


def _offset(section: Section) -> int:
    offset = section.whole("number_offset", 0, least=-(10**9))
    assert offset is not None
    return offset


def _intrinsics(section: Section) -> Matrix:
    example = "{fx: 1200, fy: 1200, cx: 960, cy: 600}"
    section.require("intrinsics", f"intrinsics: {example}")
    if isinstance(section.values["intrinsics"].value, list):
        matrix = _matrix(section, "intrinsics", (3, 3), "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    else:
        four = section.section("intrinsics")
        assert four is not None
        four.only(("fx", "fy", "cx", "cy"))
        for key in ("fx", "fy", "cx", "cy"):
            four.require(key, f"{key}: 1000")
        fx, fy, cx, cy = (four.number(key, 0.0) for key in ("fx", "fy", "cx", "cy"))
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0) or matrix[1, 0] != 0 or list(matrix[2]) != [0, 0, 1]:
        section.fail("intrinsics", f"{matrix.tolist()} is none: fx and fy are above 0, the last row is 0 0 1")
    return matrix


def _distortion(section: Section) -> Distortion | None:
    lens = section.section("distortion")
    if lens is None:
        return None
    lens.only(("model", "coefficients"))
    lens.require("model", "model: pinhole")
    model = lens.choice("model", ("pinhole", "fisheye"), "pinhole")
    values = lens.numbers("coefficients", "[k1, k2, p1, p2]" if model == "pinhole" else "[k1, k2, k3, k4]")
    try:
        return Distortion("fisheye" if model == "fisheye" else "pinhole", tuple(values))
    except (InputError, TypeError) as error:
        raise DataError(f"{lens.where('coefficients')}: {error}") from error


def _extrinsics(section: Section) -> tuple[Matrix, str, str]:
    keys = [key for key in ("lidar_to_camera", "camera_to_lidar") if key in section]
    if len(keys) != 1:
        what = "both are given; keep the one" if keys else "the extrinsics are missing; give one of them, the one"
        raise DataError(
            f"{section.path}, line {section.line_of(keys[-1] if keys else '')}: {section.name}: lidar_to_camera, "
            f"camera_to_lidar: {what} that your numbers are (it moves points from the first sensor's axes to the "
            "second's)"
        )
    matrix, how = read_transform(section, keys[0])
    return (matrix if keys[0] == "lidar_to_camera" else inverse(matrix)), keys[0], how


def read_transform(section: Section, key: str) -> tuple[Matrix, str]:
    """The rigid transform under `key`, and by which key its rotation is given."""
    given = section.section(key)
    if given is None:
        section.fail(key, "give `matrix` (4x4), or `rotation` (3x3) or `quaternion` [w, x, y, z] with `translation`")
    given.only(_TRANSFORM_KEYS)
    forms = [form for form in ("matrix", "rotation", "quaternion") if form in given]
    if len(forms) != 1 or ("translation" in given) == ("matrix" in given):
        found = ", ".join(given) or "nothing"
        section.fail(key, f"give matrix, or rotation and translation, or quaternion and translation; it has {found}")
    if forms == ["matrix"]:
        matrix = _matrix(given, "matrix", (4, 4), "four rows of four numbers")
        return check_transform(matrix, given.where("matrix")), "matrix"
    translation = given.numbers("translation", "[0.1, 0.0, -0.3]")
    if len(translation) != 3 or any(isinstance(part, list) for part in translation):
        given.fail("translation", f"expected [x, y, z] in metres, got {translation}")
    if forms == ["rotation"]:
        rotation = check_rotation(_matrix(given, "rotation", (3, 3), _ROTATION_EXAMPLE), given.where("rotation"))
    else:
        rotation = quaternion_to_rotation(given.numbers("quaternion", "[w, x, y, z]"), given.where("quaternion"))
    return rigid(rotation, translation), forms[0]


def _matrix(section: Section, key: str, shape: tuple[int, int], example: str) -> Matrix:
    """Rows of numbers, or all of them in one list, row by row."""
    values = section.numbers(key, example)
    try:
        return np.array(values, dtype=np.float64).reshape(shape)
    except ValueError as error:
        raise DataError(
            f"{section.where(key)}: expected {shape[0]} x {shape[1]} numbers ({example}), got {values}"
        ) from error


def read_files(section: Section, example: str) -> str:
    section.require("files", f"files: {example}")
    pattern = section.text("files")
    assert pattern is not None
    return pattern


def read_times(section: Section, offset: float) -> Times | None:
    unit = TIME_UNITS[section.choice("time_unit", TIME_UNITS, "s")]
    source = section.text("timestamps")
    return None if source is None else Times(source, unit, offset)
