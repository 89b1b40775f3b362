"""Everything that is measured of a rig, frame by frame, before anything is concluded from it."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from clever3d.datasets.base import Frame
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import inverse
from clever3d.datasets.rig import Rig
from clever3d.datasets.rig_camera import CameraConfig
from clever3d.datasets.rig_config import RigConfig
from clever3d.datasets.rig_files import stem
from clever3d.errors import Clever3dError, DataError
from clever3d.evaluate.calibration.agreement import Evidence, Scene, few_shifts, grid_shifts, make_scene, measure
from clever3d.evaluate.calibration.cloud import CloudFacts, cloud_facts, spin_axes
from clever3d.evaluate.calibration.edges import Array, ImageEdges, image_edges, scan_edges
from clever3d.evaluate.calibration.hypotheses import FRAMES, Case, cases, scaled

#: Turns of the picture about the camera's axis that are tried, degrees, each with a grid of shifts.
ROLLS = (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)
#: A roll is looked at closely if the score gains so much by it.
_ROLL_GAIN = 1.0
#: Points nearer than this to the LiDAR are the vehicle or no returns (metres).
_NEAR = 0.5
#: How far the factors of width and height may differ for a picture to be a resized one.
_SAME_FACTOR = 0.01


@dataclass(eq=False)
class CameraSurvey:
    """One camera. given: the evidence for the calibration as it is; by_case: for each case that was tried; beside_case:
    for the calibration as it is in the same frames, where a case could not be tried in all.

    grid: over shifts; by_roll: over coarser ones, with the picture turned. points: of all frames together. camera: as
    in the first frame. steps: for each number of frames, how much number in the name and timestamp of the image grow.
    looked_at: what was measured, to be measured again.
    """

    camera: Camera
    frames: int = 0
    points: int = 0
    given: Evidence | None = None
    by_case: dict[int, Evidence] = field(default_factory=dict)
    beside_case: dict[int, Evidence] = field(default_factory=dict)
    grid: Evidence | None = None
    by_roll: dict[float, Evidence] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    steps: dict[int, list[tuple[int | None, float]]] = field(default_factory=dict)
    looked_at: list[tuple[Scene, Camera, ImageEdges]] = field(default_factory=list)

    @cached_property
    def best(self) -> tuple[tuple[float, float], float, float]:
        """The shift (right, down; degrees) of the points' picture with the best score, that score, and the roll."""
        assert self.grid is not None
        shift, peak = self.grid.peak()
        peaks = {roll: evidence.peak()[1] for roll, evidence in self.by_roll.items()}
        roll = max(peaks, key=lambda one: peaks[one])
        if roll == 0 or peaks[roll] < peaks[0.0] + _ROLL_GAIN:
            return shift, peak, 0.0
        fine: Evidence | None = None
        for scene, camera, image in self.looked_at:
            fine = _plus(fine, measure(scene, camera, image, self.grid.shifts, roll))
        assert fine is not None
        rolled = fine.peak()
        return (*rolled, roll) if rolled[1] > peak else (shift, peak, 0.0)

    def score(self, config: CameraConfig, case: Case) -> float:
        """The score of a case of changed extrinsics that is thought of only now."""
        few = few_shifts()
        total: Evidence | None = None
        for scene, camera, image in self.looked_at:
            total = _plus(total, measure(scene, case.applied(camera, config), image, few))
        return total.z if total is not None else 0.0


@dataclass(eq=False)
class Survey:
    """A whole rig. facts: of the points as `rig.yaml` has them read. bad: frames or images that cannot be read."""

    rig: Rig
    cases: list[Case]
    facts: CloudFacts | None = None
    cameras: dict[str, CameraSurvey] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    bad: list[tuple[str, Clever3dError]] = field(default_factory=list)
    moves: list[Array] = field(default_factory=list)  # [3], where the next frame's sensor is, in this one's axes


def spread(count: int, frames: int) -> list[int]:
    """At most `frames` rows out of `count`, evenly, where possible with their neighbours inside."""
    border = min(max(FRAMES), max(0, (count - frames) // 2))
    return sorted({round(float(x)) for x in np.linspace(border, count - 1 - border, min(frames, count))})


def survey(rig: Rig, chosen: list[int]) -> Survey:
    """Measures the frames of these rows. What cannot be read is kept in `bad`."""
    result = Survey(rig, cases(rig.config, sequences=len(rig) > 1))
    ids = rig.ids()
    for row in chosen:
        try:
            _add_frame(result, rig[row], row)
        except Clever3dError as error:
            result.bad.append((ids[row], error))
    return result


def usable(frame: Frame, config: RigConfig | None = None) -> tuple[Array, Array | None]:
    """The points [N, 3] of a frame that are returns off the vehicle, and their intensity; DataError without any.

    config: to name the line that may be wrong.
    """
    cloud = frame.points()
    distance = np.linalg.norm(cloud.xyz, axis=1)
    kept = np.isfinite(distance) & (distance > _NEAR)
    if not kept.any():
        text = f"{frame.points_path}: no point is finite and further than {_NEAR} m from the sensor"
        if config is not None and config.lidar.unit != "m" and (distance > 0).any():
            line, unit = config.lines.get("lidar.unit"), config.lidar.unit
            text += f"; line {line}: lidar.unit: {unit}: if the scans are in metres, write `unit: m`"
        raise DataError(text)
    return cloud.xyz[kept].astype(np.float64), None if cloud.intensity is None else cloud.intensity[kept]


def _add_frame(result: Survey, frame: Frame, row: int) -> None:
    xyz, intensity = usable(frame, result.rig.config)
    if result.facts is None:
        result.facts = cloud_facts(xyz)
    xyz = xyz / result.facts.per_metre
    scene = make_scene(xyz, scan_edges(xyz, intensity, spin_axes(result.facts.up)))
    result.frames.append(frame)
    neighbours = _neighbours(result.rig, frame, row)
    if 1 in neighbours and frame.points_to_world is not None and neighbours[1].points_to_world is not None:
        ahead = inverse(frame.points_to_world) @ neighbours[1].points_to_world
        result.moves.append(ahead[:3, 3])
    turned = {
        index: scene.moved(case.turn)
        for index, case in enumerate(result.cases)
        if case.turn is not None and stands_up(case.turn, result.facts.up)
    }
    images: dict[str, ImageEdges] = {}
    for camera in frame.cameras:
        try:
            images[camera.name] = _edges(camera, camera.image_path)
        except Clever3dError as error:
            result.bad.append((frame.id, error))
    for camera in frame.cameras:
        if camera.name in images:
            _add_camera(result, frame, camera, images, scene, turned, neighbours)


def _edges(camera: Camera, path: Path) -> ImageEdges:
    return image_edges(path, camera.intrinsics[0, 0], camera.image_size[0] if camera.image_size else None)


def _neighbours(rig: Rig, frame: Frame, row: int) -> dict[int, Frame]:
    """The frames of the same scene so many rows away, as far as there are any."""
    near: dict[int, Frame] = {}
    for step in FRAMES:
        with suppress(DataError):  # such as one without a pose: it is reported when its turn comes
            if 0 <= row + step < len(rig) and (other := rig[row + step]).scene == frame.scene:
                near[step] = other
    return near


def _add_camera(
    result: Survey,
    frame: Frame,
    camera: Camera,
    images: dict[str, ImageEdges],
    scene: Scene,
    turned: dict[int, Scene],
    neighbours: dict[int, Frame],
) -> None:
    image = images[camera.name]
    one = result.cameras.setdefault(camera.name, CameraSurvey(camera))
    one.frames += 1
    one.points += scene.count
    one.sizes[image.size] += 1
    camera = _for_size(camera, image.size)
    one.looked_at.append((scene, camera, image))
    few, grid, coarse = few_shifts(), grid_shifts(), grid_shifts(2.4, 0.4)
    given = measure(scene, camera, image, few)
    one.given = _plus(one.given, given)
    one.grid = _plus(one.grid, measure(scene, camera, image, grid))
    for roll in (0.0, *ROLLS):
        one.by_roll[roll] = _plus(one.by_roll.get(roll), measure(scene, camera, image, coarse, roll))
    config = next(config for config in result.rig.config.cameras if config.name == camera.name)
    later = {step: _image_of(result, frame, camera) for step, frame in neighbours.items()}
    for step, found in later.items():
        if found is not None:
            one.steps.setdefault(step, []).append(found[1])
    for index, case in enumerate(result.cases):
        if case.camera not in (None, camera.name) or (case.turn is not None and index not in turned):
            continue
        seen = images.get(case.other) if case.other else image
        if case.frames:
            partner = later.get(case.frames)
            seen = partner[0] if partner is not None else None
        if seen is not None:
            supposed = _with_motion_of(result, frame, camera, case.other) if case.other else camera
            evidence = measure(turned.get(index, scene), case.applied(supposed, config), seen, few)
            one.by_case[index] = _plus(one.by_case.get(index), evidence)
            if case.frames:
                one.beside_case[index] = _plus(one.beside_case.get(index), given)


def _with_motion_of(result: Survey, frame: Frame, camera: Camera, name: str) -> Camera:
    """The camera as it would be at the time of another one's image."""
    other = next(one for one in frame.cameras if one.name == name)
    mounts = {config.name: config.to_camera for config in result.rig.config.cameras}
    moved = mounts[camera.name] @ inverse(mounts[name]) @ other.points_to_camera
    return replace(camera, points_to_camera=moved)


def _plus(sum_: Evidence | None, more: Evidence) -> Evidence:
    return more if sum_ is None else sum_ + more


def _image_of(result: Survey, frame: Frame, camera: Camera) -> tuple[ImageEdges, tuple[int | None, float]] | None:
    """The image of the same camera in another frame, and how much its number and timestamp are larger."""
    other = next((one for one in frame.cameras if one.name == camera.name), None)
    if other is None:
        return None
    try:
        edges = _edges(other, other.image_path)
    except Clever3dError as error:
        result.bad.append((frame.id, error))
        return None
    here, there = (re.findall(r"\d+", stem(path)) for path in (camera.image_path, other.image_path))
    numbers = int(there[-1]) - int(here[-1]) if here and there else None
    known = camera.timestamp is not None and other.timestamp is not None
    seconds = (other.timestamp or 0.0) - (camera.timestamp or 0.0) if known else float("nan")
    return edges, (numbers, seconds)


def stands_up(turn: Array, up: tuple[int, float] | None) -> bool:
    """Whether a turn brings the sensor's upright axis to z, as far as that axis is known."""
    return up is None or bool(up[1] * turn[2, up[0]] > 0.5)


def size_factor(camera: Camera, size: tuple[int, int]) -> float | None:
    """By how much the image files are larger than the calibration says; None where width and height disagree."""
    assert camera.image_size is not None
    across, down = (has / said for has, said in zip(size, camera.image_size, strict=True))
    return across if abs(across / down - 1) < _SAME_FACTOR else None


def _for_size(camera: Camera, size: tuple[int, int]) -> Camera:
    """The camera for resized images, so that the rest can be looked at; the difference itself is reported."""
    factor = size_factor(camera, size)
    if factor is None or size == camera.image_size:
        return camera
    return replace(camera, intrinsics=scaled(camera.intrinsics, factor, factor))
