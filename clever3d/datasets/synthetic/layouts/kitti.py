"""KITTI object: training/{velodyne,image_2,image_3,calib,label_2} and ImageSets. Source: the development kit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from clever3d.datasets.boxes import Boxes
from clever3d.datasets.geometry import Matrix, apply
from clever3d.datasets.synthetic.layouts.base import (
    Layout,
    Plan,
    Rows,
    Scene,
    boxes_in_scan,
    undistorted,
    write_array,
    write_image,
    write_text,
)
from clever3d.datasets.synthetic.layouts.kitti_calibration import Calibration, line
from clever3d.datasets.synthetic.layouts.outline import Outline, outline
from clever3d.datasets.synthetic.truth import CLASSES, WorldFrame
from clever3d.errors import InputError

#: The world's classes that the benchmark names. Parked bicycles and motorcycles, and cones, have no label there.
TYPES = {
    "car": "Car",
    "truck": "Truck",
    "bus": "Misc",
    "person": "Pedestrian",
    "bicyclist": "Cyclist",
    "motorcyclist": "Misc",
}
#: Occlusion: 0 where this share of the box is free or more, 1 from the second on, else 2 (our choice: the benchmark's
#: development kit says only "fully visible", "partly occluded" and "largely occluded").
_FREE = (0.9, 0.5)
#: With fewer LiDAR points or lower in the image than this an object is a DontCare region, as the benchmark does with
#: what its annotators could not measure (our choice).
_FEWEST_POINTS, _LOWEST = 5, 10.0
_DIGITS = 3  # scenes of at most 1000, frames of at most 1000


class KittiLayout(Layout):
    """One frame is one numbered example; the number is SSSFFF, scene and frame."""

    name: ClassVar = "kitti"
    sensors: ClassVar = ("kitti", "nuscenes", "ouster")
    frames: ClassVar = 10

    def check(self, plan: Plan) -> None:
        """InputError beyond 1000 scenes or frames."""
        if max(plan.scenes, plan.frames) > 10**_DIGITS:
            raise InputError(f"layout kitti numbers at most 1000 scenes of 1000 frames, got {plan.scenes, plan.frames}")

    def scene_name(self, scene: Scene) -> str:
        return f"{scene.index:0{_DIGITS}d}"

    def write_scene(self, folder: Path, scene: Scene, frames: Iterable[WorldFrame]) -> Rows:
        training = folder / "training"
        names: list[str] = []
        for frame in frames:
            if not frame.is_key:
                continue
            names.append(f"{self.scene_name(scene)}{len(names):0{_DIGITS}d}")
            _write_frame(training, names[-1], frame)
        return {"val" if scene.is_val else "train": names}

    def finish(self, root: Path, plan: Plan, rows: Sequence[Rows]) -> None:
        sets = {name: [frame for row in rows for frame in row.get(name, [])] for name in ("train", "val")}
        sets["trainval"] = sorted(sets["train"] + sets["val"])
        for name, frames in sets.items():
            write_text(root / "ImageSets" / f"{name}.txt", frames)

    def describe(self, plan: Plan) -> str:
        return f"""\
Layout: KITTI object. The number of a frame is SSSFFF, scene and frame (open it as kitti:DIR#scene={_DIGITS}). ImageSets
splits by scene: one in five is in val.txt, which is empty if there is only one scene.
Choices: bus and motorcyclist are Misc; parked bicycles, motorcycles and cones have no label. Objects with fewer than
{_FEWEST_POINTS} points or less than {_LOWEST:.0f} pixels high are DontCare; what is wholly hidden has no line.
The 2D box is that of the 3D box's corners, cut at the image; truncation is the share of its area outside.
Occlusion is measured in the rendered image: 0 if {_FREE[0]:.0%} of the box are free, 1 if {_FREE[1]:.0%} are, else 2.
Boxes have four digits behind the point instead of two. R0_rect and the fourth column of P2 are not trivial. Boxes are
upright in the camera's axes, as the format has it: where the vehicle or the camera is tilted, that tilt is lost.
There is image_3 if the sensors have a camera 0.54 m to the right of that of image_2, as those of KITTI have."""


def _write_frame(training: Path, name: str, frame: WorldFrame) -> None:
    scan, shots = frame.scan, undistorted(frame, "KITTI")
    shot = shots[0]
    calibration, picture = Calibration.of(frame, shot), shot.render()
    write_array(training / "velodyne" / f"{name}.bin", np.column_stack([scan.xyz, scan.intensity]).astype("<f4"))
    for camera, taken in calibration.images(frame, shots):
        image = picture.image if taken is shot else taken.render().image
        write_image(training / camera / f"{name}.png", image)
    write_text(training / "calib" / f"{name}.txt", _calibration_lines(calibration))
    boxes = boxes_in_scan(frame, frame.objects)
    lines, regions = [], []
    for row, item in enumerate(frame.objects):
        seen = outline(shot, picture, item, shot.timestamp - scan.timestamp)
        if seen is None or not seen.drawn:
            continue
        kind, low = TYPES.get(CLASSES[item.label]), seen.rectangle[3] - seen.rectangle[1] < _LOWEST
        if kind is None:
            continue
        if low or item.num_points < _FEWEST_POINTS:
            regions.append(_dont_care(seen))
        else:
            lines.append(label_line(kind, boxes.select(np.array([row])), calibration.velo_to_rect, seen))
    write_text(training / "label_2" / f"{name}.txt", lines + regions)


def label_line(kind: str, box: Boxes, velo_to_rect: Matrix, seen: Outline) -> str:
    """One object: type, truncation, occlusion, alpha, rectangle, height width length, bottom centre, rotation_y.

    The benchmark's boxes are upright: rotation_y is the heading's angle about the camera's y axis, which points down,
    0 along x. alpha is that angle seen from the camera: rotation_y less the direction to the box.
    """
    turned = velo_to_rect[:3, :3] @ box.rotations[0]
    length, width, height = box.sizes[0]
    bottom = apply(velo_to_rect, box.centers - box.rotations[:, :, 2] * height / 2)[0]
    rotation_y = float(np.arctan2(-turned[2, 0], turned[0, 0]))
    alpha = observation_angle(rotation_y, bottom)
    occluded = int(np.searchsorted(-np.array(_FREE), -seen.visible, side="left"))
    rectangle = " ".join(f"{value:.2f}" for value in seen.rectangle)
    place = " ".join(f"{value:.4f}" for value in (height, width, length, *bottom, rotation_y))
    return f"{kind} {seen.truncated:.2f} {occluded} {alpha:.2f} {rectangle} {place}"


def observation_angle(rotation_y: float, bottom: Matrix) -> float:
    """alpha in (-pi, pi] of a box whose bottom centre [3] is in rectified camera axes."""
    angle = rotation_y - np.arctan2(bottom[0], bottom[2])
    return float(np.pi - (np.pi - angle) % (2 * np.pi))


def _dont_care(seen: Outline) -> str:
    rectangle = " ".join(f"{value:.2f}" for value in seen.rectangle)
    return f"DontCare -1 -1 -10 {rectangle} -1 -1 -1 -1000 -1000 -1000 -10"


def _calibration_lines(calibration: Calibration) -> list[str]:
    """All entries of a calibration file of the object benchmark. There is no IMU: it is said to be at the LiDAR."""
    return [
        *calibration.projection_lines(),
        line("R0_rect", calibration.rectification),
        line("Tr_velo_to_cam", calibration.velo_to_cam),
        line("Tr_imu_to_velo", np.eye(4)),
    ]
