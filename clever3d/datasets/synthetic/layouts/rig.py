"""A rig of one's own: a folder a scene with scans, images, labels, timestamps and poses, and one rig.yaml for all.

The format is the one that `clever3d.datasets.rig` reads; `clever3d rig new` writes a commented template of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from clever3d.datasets.geometry import Matrix, inverse, rotation_to_quaternion
from clever3d.datasets.synthetic.layouts.base import Layout, Plan, Rows, Scene, write_array, write_image, write_text
from clever3d.datasets.synthetic.truth import CLASSES, CameraShot, WorldFrame
from clever3d.errors import DataError, InputError

_BITS = 16
_LABELS = {"files": "labels/*.label", "names": dict(enumerate(CLASSES)), "ignore": [0]}


class RigLayout(Layout):
    """All cameras, distorted ones too; labels are the world's own classes."""

    name: ClassVar = "rig"
    sensors: ClassVar = ("ouster", "kitti", "nuscenes")
    frames: ClassVar = 10

    def scene_name(self, scene: Scene) -> str:
        return f"scene_{scene.index:04d}"

    def write_scene(self, folder: Path, scene: Scene, frames: Iterable[WorldFrame]) -> Rows:
        home = folder / self.scene_name(scene)
        times: dict[str, list[float]] = {}
        poses: dict[float, Matrix] = {}  # the vehicle's, at all moments of scans and images
        calibration: Rows = {}
        for frame in frames:
            if not frame.is_key:
                continue
            name = f"{len(times.get('lidar', [])):06d}"
            _write_scan(home, name, frame)
            times.setdefault("lidar", []).append(frame.scan.timestamp)
            poses[frame.scan.timestamp] = frame.scan.ego_to_world
            for shot in frame.cameras:
                write_image(home / "cameras" / shot.name / f"{name}.png", shot.render().image)
                times.setdefault(f"cameras/{shot.name}", []).append(shot.timestamp)
                poses[shot.timestamp] = shot.ego_to_world
            calibration = calibration or _calibration(frame)
        if not times:
            raise InputError(f"scene {self.scene_name(scene)} has no frame; ask for more --frames")
        for sensor, values in times.items():
            lines = [f"{number:06d} {value!r}" for number, value in enumerate(values)]
            write_text(home / sensor / "timestamps.txt", lines)
        write_text(home / "poses.txt", [_tum_line(time, pose) for time, pose in sorted(poses.items())])
        return calibration

    def finish(self, root: Path, plan: Plan, rows: Sequence[Rows]) -> None:
        calibration = {**rows[0], "labels": _LABELS}
        text = yaml.safe_dump(calibration, sort_keys=False, default_flow_style=None, width=110)
        write_text(root / "rig.yaml", ["# Made by clever3d synth; README.txt says how.", *text.splitlines()])

    def describe(self, plan: Plan) -> str:
        return """\
Layout: a rig, rig.yaml and a folder a scene. labels/*.label are uint32, the class in the lower 16 bits, the instance
in the upper ones; rig.yaml names the classes. poses.txt holds the vehicle's poses when scans and images were taken."""


def _write_scan(home: Path, name: str, frame: WorldFrame) -> None:
    scan = frame.scan
    if len(scan.instance) and scan.instance.max() >= 2**_BITS:
        raise DataError(f"instance {scan.instance.max()} does not fit into the {_BITS} bits of a .label file")
    labels = scan.label.astype(np.uint32) | scan.instance.astype(np.uint32) << np.uint32(_BITS)
    write_array(home / "lidar" / f"{name}.bin", np.column_stack([scan.xyz, scan.intensity]).astype("<f4"))
    write_array(home / "labels" / f"{name}.label", labels.astype("<u4"))


def _calibration(frame: WorldFrame) -> dict[str, Any]:
    """What rig.yaml says: the sensors are the same in all scenes."""
    mount = frame.scan.lidar_to_ego
    return {
        "version": 1,
        "scenes": "scene_*",
        "lidar": {
            "files": "lidar/*.bin",
            "axes": "flu",
            "columns": 4,
            "intensity_scale": 1.0,
            "ground_height": -float(mount[2, 3]),
            "timestamps": "lidar/timestamps.txt",
        },
        "cameras": {shot.name: _camera(shot, mount) for shot in frame.cameras},
        "matching": {"by": "stem"},
        "poses": {"file": "poses.txt", "lidar_to_body": {"matrix": mount.tolist()}},
    }


def _camera(shot: CameraShot, lidar_to_ego: Matrix) -> dict[str, Any]:
    camera: dict[str, Any] = {
        "files": f"cameras/{shot.name}/*.png",
        "image_size": list(shot.size),
        "intrinsics": shot.intrinsics.tolist(),
        "lidar_to_camera": {"matrix": (inverse(shot.camera_to_ego) @ lidar_to_ego).tolist()},
        "timestamps": f"cameras/{shot.name}/timestamps.txt",
    }
    if shot.distortion is not None:
        coefficients = [float(value) for value in shot.distortion.coefficients]
        camera["distortion"] = {"model": shot.distortion.model, "coefficients": coefficients}
    return camera


def _tum_line(time: float, pose: Matrix) -> str:
    """`time x y z qx qy qz qw`, the format of the TUM RGB-D benchmark's trajectories."""
    w, x, y, z = rotation_to_quaternion(pose[:3, :3]).tolist()
    return " ".join(repr(float(value)) for value in (time, *pose[:3, 3], x, y, z, w))
