"""What may be wrong with a calibration, and what the line in `rig.yaml` would then have to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import inverse, quaternion_to_rotation, rigid, rotation_to_quaternion
from clever3d.datasets.rig_camera import CameraConfig
from clever3d.datasets.rig_config import RigConfig, axes_matrix
from clever3d.evaluate.calibration.edges import Array

#: From a camera body's axes (x forward, y left, z up) to the camera's own (x right, y down, z forward).
_BODY_TO_CAMERA = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
_SIZE_FACTORS = (0.25, 1 / 3, 0.5, 2 / 3, 1.5, 2.0, 3.0, 4.0)
_FOCAL_FACTORS = (0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.6)
#: Further than this from the LiDAR a camera is no part of one vehicle (metres).
FAR = 20.0
#: Images of scans so many frames before and after are tried.
FRAMES = (-3, -2, -1, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class Case:
    """Something that may be wrong. fault: its short name. text: in words. mend: what to write in rig.yaml.

    camera: whose, None for the whole rig. turn [3, 3]: to be applied to the points (FLU). change [4, 4] or None: the
    extrinsics, from the LiDAR (`extrinsics_axes`) to the camera. scale: of (fx, fy) and of (cx, cy). other: the camera
    whose images are meant. frames: how many frames later the image is that belongs to a scan.
    """

    fault: str
    text: str
    mend: str
    camera: str | None
    turn: Array | None = None
    extrinsics: Array | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    other: str | None = None
    frames: int = 0

    def applied(self, camera: Camera, config: CameraConfig) -> Camera:
        """The camera as it is if this is the case."""
        changed = camera
        if self.extrinsics is not None:
            # What follows the given extrinsics (axes, ego motion) stays.
            changed = replace(
                changed, points_to_camera=self.extrinsics @ inverse(config.to_camera) @ camera.points_to_camera
            )
        if self.scale != (1.0, 1.0):
            changed = replace(changed, intrinsics=scaled(camera.intrinsics, *self.scale))
        return changed


def scaled(intrinsics: Array, focal: float, center: float) -> Array:
    """Intrinsics [3, 3] with the focal lengths and the principal point multiplied; pixels are scaled about the image's
    corner, which is at -0.5."""
    matrix: Array = intrinsics.copy()
    matrix[[0, 0, 1], [0, 1, 1]] *= focal
    matrix[:2, 2] = (matrix[:2, 2] + 0.5) * center - 0.5
    return matrix


def cases(config: RigConfig, sequences: bool) -> list[Case]:
    """All that is tried. sequences: whether frames have neighbours."""
    found = list(_axes_cases(config))
    for camera in config.cameras:
        found += _extrinsics_cases(config, camera)
        found += _intrinsics_cases(config, camera)
        found += _image_cases(config, camera)
        if sequences:
            found += _time_cases(config, camera)
    return found


def _place(config: RigConfig, field: str) -> str:
    line = config.lines.get(field)
    return f"line {line}: {field}" if line else field


def letters(matrix: Array) -> str:
    """The three letters of axes whose matrix to FLU [3, 3] is a signed permutation."""
    names = ("bf", "rl", "du")
    return "".join(names[int(np.abs(column).argmax())][int(column.sum() > 0)] for column in matrix.T)


def axes_mend(config: RigConfig, turn: Array, keep_extrinsics: bool) -> str:
    """The lines after which the points are turned. keep_extrinsics: the extrinsics stay in the axes they are in now."""
    lidar = config.lidar
    axes = letters(turn @ axes_matrix(lidar.axes))
    line = f"{_place(config, 'lidar.axes')}: write `axes: {axes}` instead of `axes: {lidar.axes}`"
    explicit = "lidar.extrinsics_axes" in config.lines
    if keep_extrinsics and not explicit and lidar.extrinsics_axes != axes:
        line += f", and add `extrinsics_axes: {lidar.extrinsics_axes}` below it"
    return line


def _axes_cases(config: RigConfig) -> Iterator[Case]:
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            turn = np.zeros((3, 3))
            turn[range(3), order] = signs
            if np.array_equal(turn, np.eye(3)):
                continue
            mirrored = np.linalg.det(turn) < 0
            axes = letters(turn @ axes_matrix(config.lidar.axes))
            yield Case(
                "mirrored" if mirrored else "axes",
                f"the points of the scans are in other axes than the extrinsics: {axes}, not {config.lidar.axes}"
                + (" (mirrored: one axis has the wrong sign, or two are swapped)" if mirrored else ""),
                axes_mend(config, turn, keep_extrinsics=True),
                None,
                turn=turn,
            )


def rows(matrix: Array) -> str:
    """A matrix as one line of YAML."""
    return "[" + ", ".join("[" + ", ".join(f"{value:.7g}" for value in row) + "]" for row in matrix) + "]"


def extrinsics_lines(config: RigConfig, camera: CameraConfig, to_camera: Array) -> str:
    """How the extrinsics have to be written, under the key that is there now."""
    given = to_camera if camera.given_as == "lidar_to_camera" else inverse(to_camera)
    place = _place(config, f"cameras.{camera.name}.{camera.given_as}")
    translation = ", ".join(f"{value:.5g}" for value in given[:3, 3])
    if camera.rotation_given_as == "matrix":
        return f"{place}: write `matrix: {rows(given)}`"
    if camera.rotation_given_as == "quaternion":
        q = ", ".join(f"{value:.7g}" for value in rotation_to_quaternion(given[:3, :3]))
        return f"{place}: write `quaternion: [{q}]` and `translation: [{translation}]`"
    return f"{place}: write `rotation: {rows(given[:3, :3])}` and `translation: [{translation}]`"


def _extrinsics_cases(config: RigConfig, camera: CameraConfig) -> Iterator[Case]:
    name, forward = camera.name, camera.given_as == "lidar_to_camera"
    given = camera.to_camera if forward else inverse(camera.to_camera)
    other_key = "camera_to_lidar" if forward else "lidar_to_camera"
    place = _place(config, f"cameras.{name}.{camera.given_as}")

    def case(fault: str, text: str, matrix: Array, mend: str | None = None) -> Case:
        to_camera = matrix if forward else inverse(matrix)
        return Case(fault, text, mend or extrinsics_lines(config, camera, to_camera), name, extrinsics=to_camera)

    yield Case(
        "inverted",
        "the extrinsics are inverted: they lead the other way than their key says",
        f"{place}: write `{other_key}:` instead of `{camera.given_as}:`",
        name,
        extrinsics=inverse(camera.to_camera),
    )
    rotation, translation = given[:3, :3], given[:3, 3]
    yield case("transposed", "the rotation is transposed (columns first)", rigid(rotation.T, translation))
    yield case(
        "camera axes",
        "the extrinsics are those of a camera with x forward, y left, z up; x right, y down, z forward is needed",
        rigid(_BODY_TO_CAMERA, np.zeros(3)) @ given if forward else given @ rigid(_BODY_TO_CAMERA.T, np.zeros(3)),
    )
    if camera.rotation_given_as == "quaternion":
        w, x, y, z = rotation_to_quaternion(rotation)
        yield case(
            "quaternion",
            "the quaternion is in the order x, y, z, w",
            rigid(quaternion_to_rotation([z, w, x, y], name), translation),
            f"{place}: write the quaternion's last number first: `quaternion: [w, x, y, z]`",
        )
    if np.linalg.norm(translation) > 3.0:
        for unit, factor in (("mm", 0.001), ("cm", 0.01)):
            yield case("unit", f"the translation is in {unit}, not in metres", rigid(rotation, factor * translation))


def _intrinsics_cases(config: RigConfig, camera: CameraConfig) -> Iterator[Case]:
    place = _place(config, f"cameras.{camera.name}.intrinsics")
    centered = camera.image_size[0] / (2 * camera.intrinsics[0, 2] + 1) if camera.intrinsics[0, 2] > 0 else 1.0
    factors = [*_SIZE_FACTORS, *([centered] if abs(np.log(abs(centered))) > 0.15 else [])]
    for factor in factors:
        k = scaled(camera.intrinsics, factor, factor)
        width, height = (round(side / factor) for side in camera.image_size)
        yield Case(
            "image size",
            f"the intrinsics are for images of {width} x {height}, not of {camera.image_size[0]} x "
            f"{camera.image_size[1]}",
            f"{place}: write `intrinsics: {intrinsics_text(k)}`",
            camera.name,
            scale=(factor, factor),
        )
    for factor in _FOCAL_FACTORS:
        k = scaled(camera.intrinsics, factor, 1.0)
        yield Case(
            "focal length",
            f"the focal length is about {factor:g} times the given one",
            f"{place}: calibrate the camera anew; about `intrinsics: {intrinsics_text(k)}`",
            camera.name,
            scale=(factor, 1.0),
        )


def intrinsics_text(k: Array) -> str:
    """Intrinsics as one line of YAML."""
    if k[0, 1]:
        return rows(k)
    return f"{{fx: {k[0, 0]:.7g}, fy: {k[1, 1]:.7g}, cx: {k[0, 2]:.7g}, cy: {k[1, 2]:.7g}}}"


def _image_cases(config: RigConfig, camera: CameraConfig) -> Iterator[Case]:
    for other in config.cameras:
        if other.name != camera.name and other.image_size == camera.image_size:
            yield Case(
                "swapped cameras",
                f"its calibration fits the images of {other.name}",
                f"{_place(config, f'cameras.{camera.name}.files')}: write `files: {other.files}`, and see which images "
                f"belong to {other.name}",
                camera.name,
                other=other.name,
            )


def _time_cases(config: RigConfig, camera: CameraConfig) -> Iterator[Case]:
    for frames in FRAMES:
        number = abs(frames)
        when = f"{number} frame{'s' if number > 1 else ''} {'later' if frames > 0 else 'earlier'}"
        yield Case(
            "time offset",
            f"the image that belongs to a scan is the one {when}",
            "",  # see time_mend: it takes the files' numbers or times
            camera.name,
            frames=frames,
        )


def time_mend(config: RigConfig, camera: CameraConfig, numbers: int | None, seconds: float | None) -> str:
    """The line that mends a "time offset". numbers, seconds: by how much the number in the name, and the timestamp, of
    the image that belongs to a scan differ from those of the image that it has now; None where they have none."""
    field = f"cameras.{camera.name}"

    def line(key: str, value: str) -> str:
        known = f"{field}.{key}" in config.lines
        place = _place(config, f"{field}.{key}" if known else field)
        return f"{place}: {'write' if known else 'add'} `{key}: {value}`"

    if (config.matching.by == "time" or config.poses is not None) and camera.times is not None and seconds is not None:
        # With poses, the time of an image says where its camera was, whichever scan it goes with.
        return line("time_offset", f"{round(camera.times.offset - seconds, 6) + 0.0:.6g}")
    if numbers is None:
        return f"rename the images of {camera.name} so that each has the name of its scan"
    number = line("number_offset", f"{camera.number_offset + numbers}")
    if config.matching.by == "number":
        return number
    return f"{number}, and `matching: {{by: number}}` ({_place(config, 'matching')})"
