"""Whether another place of a camera fits better: for what is near, it looks like a rotation, a focal length, a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clever3d.datasets.geometry import rigid
from clever3d.datasets.rig_camera import CameraConfig
from clever3d.datasets.rig_config import RigConfig
from clever3d.evaluate.calibration.hypotheses import Case, extrinsics_lines
from clever3d.evaluate.calibration.survey import CameraSurvey

#: Places that are tried: so many metres along each axis of the camera (our choice).
_STEPS = (0.2, 0.5, 1.0)
_DIRECTIONS = (("left", "right"), ("up", "down"), ("back", "forward"))


def best_place(config: RigConfig, camera: CameraConfig, one: CameraSurvey) -> tuple[Case, float]:
    """The place beside the given one with the best score, and that score."""
    scored = [(case, one.score(camera, case)) for case in _places(config, camera)]
    return max(scored, key=lambda pair: pair[1])


def _places(config: RigConfig, camera: CameraConfig) -> Iterator[Case]:
    for axis, names in enumerate(_DIRECTIONS):
        for step in (*_STEPS, *(-step for step in _STEPS)):
            where = step * np.eye(3)[axis]
            moved = rigid(np.eye(3), -where) @ camera.to_camera  # the points move the other way
            yield Case(
                "translation",
                f"the camera is about {abs(step):g} m further {names[int(step > 0)]} than the translation says",
                f"{extrinsics_lines(config, camera, moved)}, if the camera is measured to be there; then check again",
                camera.name,
                extrinsics=moved,
            )
