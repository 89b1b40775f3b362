"""SemanticKITTI: sequences/NN/{velodyne,labels,image_2,image_3,calib.txt,poses.txt,times.txt}.

Sources: the KITTI odometry development kit (calibration, poses, times); semantic-kitti-api, semantic-kitti.yaml (ids).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.geometry import Matrix, inverse
from clever3d.datasets.synthetic.layouts.base import (
    MOVING,
    Layout,
    Plan,
    Rows,
    Scene,
    class_table,
    lidar_to_world,
    undistorted,
    write_array,
    write_image,
    write_text,
)
from clever3d.datasets.synthetic.layouts.kitti_calibration import Calibration, line, numbers
from clever3d.datasets.synthetic.truth import WorldFrame
from clever3d.errors import DataError, InputError

#: The benchmark's splits: training, validation, test.
TRAIN, VAL, TEST = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10), (8,), tuple(range(11, 22))

#: Raw ids. Choices where the benchmark has no such class: walls and barriers are its fences ("small walls and crash
#: barriers"), traffic lights and cones are other-object.
RAW_IDS = {
    "unlabeled": 0, "road": 40, "lane_marking": 60, "parking": 44, "sidewalk": 48, "terrain": 72, "building": 50,
    "wall": 51, "fence": 51, "vegetation": 70, "trunk": 71, "pole": 80, "traffic_sign": 81, "traffic_light": 99,
    "car": 10, "truck": 18, "bus": 13, "bicycle": 11, "motorcycle": 15, "person": 30, "bicyclist": 31,
    "motorcyclist": 32, "barrier": 51, "traffic_cone": 99, "other": 99,
}  # fmt: skip
#: Raw id -> that of the same class in motion.
MOVING_IDS = {10: 252, 13: 257, 18: 258, 30: 254, 31: 253, 32: 255}
_IDS = class_table(RAW_IDS, np.uint32)
#: Largest difference between one camera's place on the LiDAR in two frames: there is one calibration a sequence.
_STIFF = 1e-6


class SemanticKittiLayout(Layout):
    """A scene is a sequence. The second scene is 08, the validation split; beyond the eleventh come 11 to 21."""

    name: ClassVar = "semantickitti"
    sensors: ClassVar = ("kitti", "nuscenes", "ouster")
    frames: ClassVar = 20

    def check(self, plan: Plan) -> None:
        """InputError beyond the benchmark's 22 sequences."""
        known = len(TRAIN) + len(VAL) + len(TEST)
        if plan.scenes > known:
            raise InputError(f"semantickitti has {known} sequences, got --scenes {plan.scenes}; ask for more --frames")

    def scene_name(self, scene: Scene) -> str:
        order = (TRAIN[0], *VAL, *TRAIN[1:], *TEST)
        return f"{order[scene.index]:02d}"

    def write_scene(self, folder: Path, scene: Scene, frames: Iterable[WorldFrame]) -> Rows:
        sequence = folder / "sequences" / self.scene_name(scene)
        cameras: list[Matrix] = []
        times: list[float] = []
        moved: set[int] = set()
        calibration: Calibration | None = None
        for frame in frames:
            if not frame.is_key:
                continue
            shots = undistorted(frame, "SemanticKITTI")
            calibration = _same(calibration, Calibration.of(frame, shots[0]))
            _write_frame(sequence, f"{len(times):06d}", frame)
            for camera, shot in calibration.images(frame, shots):
                write_image(sequence / camera / f"{len(times):06d}.png", shot.render().image)
            moved |= {item.instance for item in frame.objects if np.linalg.norm(item.velocity) > MOVING}
            cameras.append(lidar_to_world(frame) @ inverse(calibration.velo_to_rect))
            times.append(frame.scan.timestamp)
        if calibration is None:
            raise InputError(f"sequence {self.scene_name(scene)} has no frame; ask for more --frames")
        _mark_moving(sequence / "labels", moved)
        tr = line("Tr", calibration.velo_to_rect)
        write_text(sequence / "calib.txt", [*calibration.projection_lines(), tr])
        write_text(sequence / "poses.txt", [numbers(inverse(cameras[0]) @ camera) for camera in cameras])
        write_text(sequence / "times.txt", [f"{time - times[0]:.6e}" for time in times])
        return {}

    def finish(self, root: Path, plan: Plan, rows: Sequence[Rows]) -> None:
        """Nothing belongs to all sequences."""

    def describe(self, plan: Plan) -> str:
        return """\
Layout: SemanticKITTI. The scenes are the sequences 00, 08, 01, ..., 07, 09, 10, 11, ..., 21: from two scenes on there
are a training and a validation split. Sequences 11 to 21, the benchmark's test split, have labels here too.
Choices: walls and barriers are fence (51), traffic lights, cones and other things are other-object (99). An object has
the moving class in the whole sequence if it moves in any frame of it, as in the benchmark. Poses have 12 digits.
There is image_3 if the sensors have a camera 0.54 m to the right of that of image_2, as those of KITTI have."""


def _write_frame(sequence: Path, name: str, frame: WorldFrame) -> None:
    scan = frame.scan
    write_array(sequence / "velodyne" / f"{name}.bin", np.column_stack([scan.xyz, scan.intensity]).astype("<f4"))
    write_array(sequence / "labels" / f"{name}.label", _labels(scan.label, scan.instance))


def _labels(label: NDArray[np.uint8], instance: NDArray[np.int32]) -> NDArray[Any]:
    """uint32 [N]: the class in the lower 16 bits, the instance in the upper ones."""
    if len(instance) and instance.max() >= 2**16:
        raise DataError(f"instance {instance.max()} does not fit into the 16 bits that SemanticKITTI has for it")
    values: NDArray[Any] = _IDS[label] | instance.astype(np.uint32) << np.uint32(16)
    return values.astype("<u4")


def _mark_moving(labels: Path, moved: set[int]) -> None:
    """Give the objects of a sequence that move in any of its frames the moving classes."""
    table = np.arange(max(_IDS.max() + 1, max(MOVING_IDS) + 1), dtype=np.uint32)
    table[list(MOVING_IDS)] = list(MOVING_IDS.values())
    for path in sorted(labels.glob("*.label")):
        values = np.fromfile(path, dtype="<u4")
        classes, instances = values & 0xFFFF, values >> 16
        moves = np.isin(instances, list(moved)) & (instances > 0)
        values[moves] = table[classes[moves]] | instances[moves] << np.uint32(16)
        write_array(path, values)


def _same(first: Calibration | None, now: Calibration) -> Calibration:
    """The first frame's calibration; InputError if another frame has another one."""
    if first is None:
        return now
    change = float(np.abs(now.velo_to_rect - first.velo_to_rect).max())
    if change > _STIFF:
        raise InputError(
            f"the camera moves by {change:.3g} m against the LiDAR between two frames, because they are not taken at "
            "one moment; SemanticKITTI has one calibration for a sequence: choose --sensor kitti, or --layout rig"
        )
    return first
