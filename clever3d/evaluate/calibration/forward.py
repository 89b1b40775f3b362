"""Which way is forward: what the names of cameras and the poses say of it, because pictures cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clever3d.datasets.rig_config import axes_matrix
from clever3d.evaluate.calibration.edges import Array
from clever3d.evaluate.calibration.hypotheses import letters
from clever3d.evaluate.calibration.survey import CameraSurvey, Survey

#: Where a camera with such a word in its name looks: degrees left of x, from and to.
_WORDS = {
    "front": (-75.0, 75.0), "forward": (-75.0, 75.0), "back": (105.0, 255.0), "rear": (105.0, 255.0),
    "left": (-20.0, 200.0), "right": (-200.0, 20.0),
}  # fmt: skip
#: Where a camera looks that is called left or right in a rig without other such names: to that side, or forward, as one
#: of a stereo pair.
_ALONE = {"left": (-75.0, 200.0), "right": (-200.0, 75.0)}
#: The two of a stereo pair look the same way, within this (degrees).
_PARALLEL = 20.0


@dataclass(frozen=True)
class Fit:
    """How many cameras look where their names say, and how many do not, if the rig is turned; an example of these."""

    good: int
    wrong: int
    example: str

    @property
    def rank(self) -> tuple[bool, int]:
        """The larger the better."""
        return self.wrong == 0, self.good


def fits(survey: Survey, trusted: Callable[[CameraSurvey], bool]) -> dict[str, tuple[Array, Fit]]:
    """For the letters of `axes` of the four turns that leave the LiDAR upright: the turn [3, 3] and how the names fit.

    trusted: cameras whose own extrinsics are in no doubt.
    """
    up = (survey.facts.up if survey.facts else None) or (2, 1.0)
    matrix = axes_matrix(survey.rig.config.lidar.axes)
    return {letters(turn @ matrix): (turn, _fit(survey, turn, trusted)) for turn in _proper_turns(up)}


def best(fitting: dict[str, tuple[Array, Fit]]) -> list[str]:
    """The letters with which the names fit best; several where they do not tell."""
    most = max(fit.rank for _, fit in fitting.values())
    return [axes for axes, (_, fit) in fitting.items() if fit.rank == most]


def _proper_turns(up: tuple[int, float]) -> list[Array]:
    """The four rotations that bring the axis `up` to z."""
    turns = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            if axis != up[0]:
                third, first = up[1] * np.eye(3)[up[0]], sign * np.eye(3)[axis]
                turns.append(np.stack([first, np.cross(third, first), third]))
    return turns


def _fit(survey: Survey, turn: Array, trusted: Callable[[CameraSurvey], bool]) -> Fit:
    good, wrong, example = 0, 0, ""
    looks = {name: turn @ one.camera.points_to_camera[2, :3] for name, one in survey.cameras.items()}
    said = _said(looks)
    for name, axis in looks.items():
        if name not in said or np.hypot(axis[0], axis[1]) < 0.5 or not trusted(survey.cameras[name]):
            continue
        azimuth = float(np.degrees(np.arctan2(axis[1], axis[0])))
        least, most = said[name]
        if (azimuth - least) % 360.0 <= most - least:
            good += 1
        else:
            wrong += 1
            side = "left" if azimuth > 0 else "right"
            example = f"the camera {name} looks {abs(azimuth):.0f} degrees to the {side} of forward"
    return Fit(good, wrong, example)


def _said(looks: dict[str, Array]) -> dict[str, tuple[float, float]]:
    """Where the cameras look by their names, of those that say it. looks: their axes [3]."""
    words = {}
    for name in looks:
        found = [word for word in _WORDS if word in re.findall(r"[a-z]+", name.lower())]
        if found:  # front_left and the like: only the first word, because stereo cameras are called so as well
            words[name] = found[0]
    if sorted(words.values()) == ["left", "right"] and _parallel(*(looks[name] for name in words)):
        return dict.fromkeys(words, _WORDS["front"])  # a stereo pair
    alone = len(words) == 1 and set(words.values()) <= set(_ALONE)
    return {name: (_ALONE if alone else _WORDS)[word] for name, word in words.items()}


def _parallel(first: Array, second: Array) -> bool:
    return bool(np.degrees(np.arccos(np.clip(first @ second, -1, 1))) < _PARALLEL)


def way_driven(survey: Survey) -> float | None:
    """By the poses, the direction the rig drives in, degrees left of x; None if it hardly moves or there are none."""
    if not survey.moves:
        return None
    move = np.sum(survey.moves, axis=0)
    return float(np.degrees(np.arctan2(move[1], move[0]))) if np.hypot(move[0], move[1]) >= 1.0 else None
