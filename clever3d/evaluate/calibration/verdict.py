"""From what was measured to what is wrong, and to the line of `rig.yaml` that mends it.

A case is taken for true if its score is high and clearly above that of the calibration as given. All thresholds are our
choice, made on real frames: on KITTI, nuScenes and RELLIS-3D right calibrations score 4 to 11, wrong ones mostly below
3, a few up to 5. Of 60 draws of one frame four raised a false alarm, of three frames one, of five none (docs/rig.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import inverse, rigid
from clever3d.datasets.rig_camera import CameraConfig
from clever3d.datasets.rig_config import axes_matrix
from clever3d.evaluate.calibration.edges import Array
from clever3d.evaluate.calibration.forward import best, fits, way_driven
from clever3d.evaluate.calibration.hypotheses import (
    FAR,
    Case,
    axes_mend,
    extrinsics_lines,
    intrinsics_text,
    letters,
    scaled,
    time_mend,
)
from clever3d.evaluate.calibration.survey import CameraSurvey, Survey, size_factor, stands_up
from clever3d.evaluate.calibration.translation import best_place

#: A score from which a calibration is supported by the images; one that a better case must have, and by how much it
#: must exceed the given calibration's; one below which nothing supports the given one.
SUPPORTED = 4.0
BETTER, MARGIN = 4.5, 2.0
_FACTOR = 1.2  # scores of hundreds, as in drawn pictures, differ by more than any margin
UNSUPPORTED = 2.5
#: From so many frames on, a score below SUPPORTED is a warning; right calibrations had 4.3 and more in 60 draws of five
#: frames, but once 3.1 in 60 draws of three.
ENOUGH = 5
#: Faults that a camera at another place may look like.
_LIKE_PLACE = ("focal length", "time offset", "rotation")
#: The margin for a time offset: slow scenes look alike.
_TIME_MARGIN = 1.5
#: Cases whose scores differ by less are told apart by this order: the first is the more frequent mistake.
_TIE = 1.5
_ORDER = (
    "unit", "inverted", "camera axes", "quaternion", "transposed", "axes", "mirrored", "swapped cameras", "image size",
    "time offset", "focal length",
)  # fmt: skip
#: A best shift from this on, degrees, is reported, if its score exceeds that at no shift by OFFSET_MARGIN.
OFFSET, OFFSET_MARGIN = 0.6, 2.0
#: A principal point within this share of width and height from the middle is usual; from the larger one on it is wrong
#: unless edges agree.
_CENTERED, _FAR_OFF = 0.25, 0.375
#: By how much more than other cases a rotation, the best of thousands, has to score.
_SEARCHED = 1.0
#: An image's down direction and the world's, cosine: below it the camera lies on its side.
_UPRIGHT = 0.5


@dataclass(frozen=True)
class Finding:
    """level: ``error``, ``warning`` or ``note``. fault: its short name. mend: what to do, empty if nothing is known."""

    level: str
    fault: str
    camera: str | None
    text: str
    mend: str


def find(survey: Survey) -> list[Finding]:
    """All findings, the worst first."""
    findings = [Finding("error", "unreadable", None, f"frame {name}: {error}", "") for name, error in survey.bad]
    findings += _unit(survey) + _sizes(survey)
    axes = _axes_by_edges(survey)
    if axes is not None:
        findings.append(axes)
    else:
        findings += _axes_by_facts(survey)
        upright = not any(finding.fault == "axes" for finding in findings)
        for config in survey.rig.config.cameras:
            if config.name in survey.cameras:
                findings += _camera(survey, config, survey.cameras[config.name], upright)
    findings += _moving(survey)
    if all(finding.level == "note" for finding in findings):
        findings += _forward(survey)
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(dict.fromkeys(findings), key=lambda finding: order[finding.level])


def _line(survey: Survey, field: str) -> str:
    line = survey.rig.config.lines.get(field)
    return f"line {line}: {field}" if line else field


def _unit(survey: Survey) -> list[Finding]:
    facts = survey.facts
    lidar = survey.rig.config.lidar
    if facts is None or facts.unit == "m":
        return []
    median = f"the median range of the points is {facts.median_range:,.4g} m"
    if facts.unit == "?" or lidar.unit != "m":
        mend = f"{_line(survey, 'lidar.unit')}: `unit: {lidar.unit}` is not right; see what made the scans"
        return [Finding("warning", "unit", None, f"{median}; no LiDAR measures so", mend)]
    known = "lidar.unit" in survey.rig.config.lines
    place = f"{_line(survey, 'lidar.unit')}: write" if known else f"{_line(survey, 'lidar')}: add"
    text = f"{median}; they are in {facts.unit}, not in metres"
    return [Finding("warning", "unit", None, text, f"{place} `unit: {facts.unit}`")]


def _sizes(survey: Survey) -> list[Finding]:
    findings = []
    for config in survey.rig.config.cameras:
        one = survey.cameras.get(config.name)
        if one is not None and len(one.sizes) > 1:
            sizes = ", ".join(f"{count} of {w} x {h}" for (w, h), count in sorted(one.sizes.items()))
            place = _line(survey, f"cameras.{config.name}.files")
            mend = (
                f"{place}: one camera's images have one size, that of its calibration; move the others to another rig"
            )
            findings.append(Finding("error", "image size", config.name, f"its images differ in size: {sizes}", mend))
            continue
        for size, count in (one.sizes if one else {}).items():
            if one is None or size == config.image_size:
                continue
            width, height = config.image_size
            text = f"{count} images are {size[0]} x {size[1]}, the calibration is for {width} x {height}"
            place = _line(survey, f"cameras.{config.name}.image_size")
            factor = size_factor(one.camera, size)
            if factor is None:
                mend = f"{place}: the images are cropped or of another camera; give the calibration for their size"
            else:
                k = intrinsics_text(scaled(config.intrinsics, factor, factor))
                mend = (
                    f"{place}: if they were resized, write `image_size: [{size[0]}, {size[1]}]` and, in "
                    f"{_line(survey, f'cameras.{config.name}.intrinsics')}, `intrinsics: {k}`"
                )
            findings.append(Finding("error", "image size", config.name, text, mend))
    return findings


def _score(one: CameraSurvey, index: int | None) -> float:
    evidence = one.given if index is None else one.by_case.get(index)
    return evidence.z if evidence is not None else 0.0


def _axes_by_edges(survey: Survey) -> Finding | None:
    """Points in other axes than the extrinsics: all cameras together, because it is one fault of the whole rig."""
    cameras = list(survey.cameras.values())
    known = {config.name: config for config in survey.rig.config.cameras}
    if not cameras or any(_off_center(known[name].intrinsics, known[name]) > _FAR_OFF for name in survey.cameras):
        return None  # intrinsics first: with wrong ones nothing agrees but by chance
    up = survey.facts.up if survey.facts else None
    root = np.sqrt(len(cameras))
    given = sum(_score(one, None) for one in cameras) / root
    scores = {
        index: sum(_score(one, index) for one in cameras) / root
        for index, case in enumerate(survey.cases)
        if case.turn is not None and stands_up(case.turn, up)
    }
    if not scores:
        return None
    best = max(scores, key=lambda index: scores[index])
    if scores[best] < max(BETTER, given + MARGIN) or scores[best] < _best_of_one(survey):
        return None
    case = survey.cases[best]
    assert case.turn is not None
    text = f"{case.text}; edges agree with {scores[best]:.1f} instead of {given:.1f}"
    mend = case.mend
    lidar = survey.rig.config.lidar
    if up == (2, 1.0) and "lidar.extrinsics_axes" not in survey.rig.config.lines and case.fault == "axes":
        other = letters(axes_matrix(lidar.axes) @ np.linalg.inv(_as_flu(case.turn, lidar.axes)))
        mend += f"; or, if `axes: {lidar.axes}` is right, add `extrinsics_axes: {other}`"
    return Finding("warning", case.fault, None, text, mend)


def _as_flu(turn: Array, axes: str) -> Array:
    """The turn, given in FLU, in the coordinates of `axes`."""
    matrix = axes_matrix(axes)
    return np.linalg.inv(matrix) @ turn @ matrix


def _best_of_one(survey: Survey) -> float:
    """What the best cases of single cameras would explain, as a score of the whole rig."""
    best = [
        max([_score(one, None), *(_score(one, i) for i, case in enumerate(survey.cases) if case.camera == name)])
        for name, one in survey.cameras.items()
    ]
    return float(sum(best) / np.sqrt(len(best))) - _TIE


def _axes_by_facts(survey: Survey) -> list[Finding]:
    """Letters that are wrong while the extrinsics, in the same axes, are right: the pictures cannot show that."""
    up = survey.facts.up if survey.facts else None
    lidar = survey.rig.config.lidar
    if "lidar.extrinsics_axes" in survey.rig.config.lines:
        return []
    fitting = fits(survey, _trusted)
    likely = best(fitting)
    upright = up in (None, (2, 1.0))
    if upright and (lidar.axes in likely or fitting[lidar.axes][1].wrong == 0):
        return []
    text = f"with `axes: {lidar.axes}` "
    text += fitting[lidar.axes][1].example if upright else "the LiDAR does not stand upright"
    if len(likely) == 1:
        mend = axes_mend(survey.rig.config, fitting[likely[0]][0], keep_extrinsics=False)
    else:
        mend = (
            f"{_line(survey, 'lidar.axes')}: one of {', '.join(sorted(likely))}; which way is forward, no camera's "
            "name tells: look at the pictures"
        )
    return [Finding("warning", "axes", None, text, mend)]


def _trusted(one: CameraSurvey) -> bool:
    return _score(one, None) >= UNSUPPORTED


def _forward(survey: Survey) -> list[Finding]:
    """Scans, extrinsics and names may all be turned together, and nothing shows it."""
    if not survey.cameras or way_driven(survey) is not None or best(fits(survey, _trusted)) == [_axes(survey)]:
        return []
    text = "which way is forward was not checked: no camera name (front, left, ...) or poses say it"
    mend = f"see that the letters in {_line(survey, 'lidar.axes')} are right"
    return [Finding("note", "forward", None, text, mend)]


def _axes(survey: Survey) -> str:
    return survey.rig.config.lidar.axes


def _camera(survey: Survey, config: CameraConfig, one: CameraSurvey, upright: bool) -> list[Finding]:
    """Faults of one camera: the best case, else what is unlikely, else a small rotation, else no agreement at all."""
    given = _score(one, None)
    case, score = _best_case(survey, config.name, one, given)
    rotation = _rotation(survey, config, one, given)
    if rotation is not None and rotation[1] >= score + _SEARCHED:
        case, score = rotation
    if case is None and (unlikely := _unlikely(survey, config, one, given, upright)):
        return unlikely
    place: Case | None = None
    place_score = 0.0
    if given < SUPPORTED and _in_view(one) and (case is None or case.fault in _LIKE_PLACE):
        place, place_score = best_place(survey.rig.config, config, one)
        turned = case is not None and case.fault == "rotation"  # near things tell both apart, and may be few
        if not turned and place_score >= max(BETTER, given + OFFSET_MARGIN, score + _SEARCHED):
            case, score, place = place, place_score, None
    if case is not None:
        mend = case.mend
        if case.fault == "time offset":
            mend = _time_mend(survey, config, one, case)
        text = f"{case.text}; edges agree with {score:.1f} instead of {given:.1f}"
        if place is not None and place_score >= max(BETTER, given + OFFSET_MARGIN):
            text += f"; or {place.text} ({place_score:.1f})"
            mend = f"measure where the camera is; if it is where the translation says: {mend}"
        elif case.fault in ("focal length", "time offset"):
            text += "; a wrong translation may look the same"
        elif case.fault == "translation":
            text += "; a small rotation may look the same"
        return [Finding("warning", case.fault, config.name, text, mend)]
    if not _in_view(one):
        text = "no point of any frame is in view"
        mend = f"{_line(survey, f'cameras.{config.name}')}: check extrinsics and intrinsics"
        return [Finding("warning", "no points in view", config.name, text, mend)]
    return _low(one, config.name, given) if given < SUPPORTED else []


def _in_view(one: CameraSurvey) -> bool:
    return one.given is not None and one.given.in_view > 0


def _time_mend(survey: Survey, config: CameraConfig, one: CameraSurvey, case: Case) -> str:
    steps = one.steps[case.frames]
    numbers = [number for number, _ in steps if number is not None]
    seconds = float(np.median([second for _, second in steps]))
    return time_mend(survey.rig.config, config, int(np.median(numbers)) if numbers else None, _finite(seconds))


def _low(one: CameraSurvey, name: str, given: float) -> list[Finding]:
    """A score that supports nothing, and no fault that explains it: the best shift, if there is one."""
    few = one.frames < ENOUGH
    if given < UNSUPPORTED:
        level, fault = "warning", "no agreement"
        text = f"edges of scans and images do not agree more here than beside ({given:.1f}; {SUPPORTED:g} is good)"
    else:
        level, fault = ("note" if few else "warning"), "doubtful"
        text = f"edges of scans and images agree only a little ({given:.1f}; {SUPPORTED:g} is good)"
        text += f", in {one.frames} frame{'s' if one.frames > 1 else ''}" if few else ""
    shift, peak, roll = one.best
    if peak >= given + OFFSET_MARGIN:
        text += f"; best, but not surely ({peak:.1f}), with the points {_shift_words(shift, roll)}"
    mend = "look at the pictures; take more frames (--frames), with poles, cars and house corners in view"
    if not few:
        mend += "; check translation, rotation and focal length"
    return [Finding(level, fault, name, text, mend)]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _best_case(survey: Survey, name: str, one: CameraSurvey, given: float) -> tuple[Case | None, float]:
    config = next(config for config in survey.rig.config.cameras if config.name == name)
    scores: dict[int, float] = {}
    off = _off_center(config.intrinsics, config)
    most_off = _CENTERED if off > _FAR_OFF else max(_CENTERED, off)
    for index, case in enumerate(survey.cases):
        if case.camera != name or (case.scale != (1.0, 1.0) and one.camera.image_size not in one.sizes):
            continue  # images of another size than the calibration's are reported as such
        if case.extrinsics is not None and _stands(case.applied(one.camera, config)) < min(
            _UPRIGHT, _stands(one.camera)
        ):
            continue  # no mend lays a camera on its side
        if case.scale != (1.0, 1.0) and _off_center(scaled(config.intrinsics, *case.scale), config) > most_off:
            continue  # nor does it put the lens beside the sensor
        beside = one.beside_case.get(index)
        usual = max(given, beside.z) if beside is not None else given
        margin = _TIME_MARGIN if case.fault == "time offset" else MARGIN
        if (score := _score(one, index)) >= max(BETTER, usual + margin, _FACTOR * usual):
            scores[index] = score
    if not scores:
        return None, 0.0
    best = max(scores.values())
    near = [index for index, score in scores.items() if score >= best - _TIE]
    chosen = min(near, key=lambda index: (_ORDER.index(survey.cases[index].fault), -scores[index]))
    return survey.cases[chosen], scores[chosen]


def _unlikely(survey: Survey, config: CameraConfig, one: CameraSurvey, given: float, upright: bool) -> list[Finding]:
    """What no vehicle has, whatever the images show: a camera far away; one that lies on its side."""
    distance = float(np.linalg.norm(config.to_camera[:3, 3]))
    own = [case for case in survey.cases if case.camera == config.name and case.extrinsics is not None]
    if distance > FAR:
        text = f"the camera is {distance:,.5g} m away from the LiDAR"
        case = next(c for c in own if c.text.startswith("the translation is in " + ("mm" if distance > 100 else "cm")))
        return [Finding("warning", "unit", config.name, text, case.mend)]
    if given < SUPPORTED and _off_center(config.intrinsics, config) > _FAR_OFF:
        factor = config.image_size[0] / (2 * config.intrinsics[0, 2] + 1)
        cx, cy = config.intrinsics[:2, 2]
        text = (
            f"the principal point ({cx:.5g}, {cy:.5g}) is far from the middle of a {config.image_size[0]} x "
            f"{config.image_size[1]} image, and edges do not agree"
        )
        mend = f"{_line(survey, f'cameras.{config.name}.intrinsics')}: if the images were resized, scale the intrinsics"
        if factor > 0:
            mend += f" too; probably `intrinsics: {intrinsics_text(scaled(config.intrinsics, factor, factor))}`"
        return [Finding("warning", "image size", config.name, text, mend)]
    if given >= SUPPORTED or not upright or _stands(one.camera) >= _UPRIGHT:
        return []
    text = "the camera lies on its side or looks up or down, and edges do not agree"
    for case in sorted(own, key=lambda case: _ORDER.index(case.fault)):
        if _stands(case.applied(one.camera, config)) > 0.8:
            return [Finding("warning", case.fault, config.name, f"{text}; probably {case.text}", case.mend)]
    mend = f"{_line(survey, f'cameras.{config.name}.{config.given_as}')}: check the extrinsics"
    return [Finding("warning", "extrinsics", config.name, text, mend)]


def _off_center(intrinsics: Array, config: CameraConfig) -> float:
    """How far the principal point is from the middle, as a share of the image's width or height, whichever is more."""
    shares = (intrinsics[:2, 2] + 0.5) / np.array(config.image_size) - 0.5
    return float(np.abs(shares).max())


def _stands(camera: Camera) -> float:
    """Cosine of the angle between the image's down direction and the world's."""
    return float(-camera.points_to_camera[1, 2])


def _rotation(survey: Survey, config: CameraConfig, one: CameraSurvey, given: float) -> tuple[Case, float] | None:
    """A small rotation with which the edges agree clearly better than as given, and its score."""
    if one.grid is None:
        return None
    (right, down), peak, roll = one.best
    if max(float(np.hypot(right, down)), abs(roll)) < OFFSET or peak < max(BETTER, one.grid.z + OFFSET_MARGIN):
        return None
    turned = rigid(_small_rotation(right, down, roll), np.zeros(3)) @ config.to_camera
    mend = f"{extrinsics_lines(survey.rig.config, config, turned)}; then check again"
    text = f"the points fit better {_shift_words((right, down), roll)}"
    case = Case("rotation", text, mend, config.name, extrinsics=turned)
    score = one.score(config, case)  # measured as all other cases are
    return (case, score) if score >= max(BETTER, given + OFFSET_MARGIN) else None


def _shift_words(shift: tuple[float, float], roll: float) -> str:
    turned = f", turned by {roll:+.0f} degrees clockwise" if roll else ""
    return f"{shift[0]:+.1f} degrees to the right and {shift[1]:+.1f} down{turned}"


def _small_rotation(right: float, down: float, roll: float) -> Array:
    """The rotation of camera axes that moves what is in the middle of the image so many degrees to the right and down,
    after a clockwise turn of the picture."""
    y, x, z = np.radians([right, -down, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    rotation: Array = about_y @ about_x @ about_z
    return rotation


def _moving(survey: Survey) -> list[Finding]:
    """Vehicles drive forward: the poses say which way that is."""
    angle = way_driven(survey)
    if angle is None or not 45.0 < abs(angle) < 135.0:
        return []
    side = "left" if angle > 0 else "right"
    text = f"by the poses the rig drives {abs(angle):.0f} degrees to the {side} of its forward axis"
    mend = f"{_line(survey, 'lidar.axes')} or {_line(survey, 'poses')}: one of them is in other axes"
    return [Finding("warning", "axes", None, text, mend)]


def position(camera: Camera) -> Array:
    """Where the camera is, in the points' axes [3], metres."""
    where: Array = inverse(camera.points_to_camera)[:3, 3]
    return where
