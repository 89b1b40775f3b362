"""Faults put into rig folders on purpose. Each takes a rig folder and damages its files or its `rig.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rig_frames import RigFolder

from clever3d.io import read_points


def rewrite_scans(rig: RigFolder, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Scans as .npy with other points [N, 3]; the intensity stays."""
    lidar = rig.config["lidar"]
    old = rig.folder / Path(lidar["files"]).parts[0]
    new = rig.folder / "changed"
    new.mkdir()
    for path in sorted(old.iterdir()):
        cloud = read_points(path, columns=lidar.get("columns"), intensity_scale=lidar.get("intensity_scale"))
        assert cloud.intensity is not None
        array = np.column_stack([change(cloud.xyz), cloud.intensity]).astype(np.float32)
        np.save(new / f"{path.name.split('.')[0]}.npy", array)
    lidar["files"] = "changed"
    lidar.pop("columns", None)
    lidar["intensity_scale"] = 1.0


def scans_turned(rig: RigFolder) -> None:
    """The scans were saved with x to the right and y forward of what the extrinsics mean."""
    rewrite_scans(rig, lambda xyz: np.stack([-xyz[:, 1], xyz[:, 0], xyz[:, 2]], axis=1))


def scans_mirrored(rig: RigFolder) -> None:
    rewrite_scans(rig, lambda xyz: xyz * np.array([1, -1, 1], dtype=np.float32))


def scans_y_up(rig: RigFolder) -> None:
    """y up, z backward: as graphics programs save."""
    rewrite_scans(rig, lambda xyz: np.stack([xyz[:, 0], xyz[:, 2], -xyz[:, 1]], axis=1))


def scans_in_mm(rig: RigFolder) -> None:
    rewrite_scans(rig, lambda xyz: xyz * 1000)


def letters_turned(rig: RigFolder) -> None:
    """The letters of `axes` say another forward direction."""
    lidar = rig.config["lidar"]
    lidar["axes"] = {"flu": "rfu", "rfu": "flu", "lbu": "flu", "bru": "flu"}[lidar["axes"]]


def letters_tilted(rig: RigFolder) -> None:
    """The letters of `axes` say another upward direction."""
    lidar = rig.config["lidar"]
    lidar["axes"] = {"flu": "fdl", "rfu": "rdf", "lbu": "ldb", "bru": "bdr"}[lidar["axes"]]


def _transform(camera: dict) -> tuple[str, dict]:
    key = "lidar_to_camera" if "lidar_to_camera" in camera else "camera_to_lidar"
    return key, camera[key]


def inverted(rig: RigFolder) -> None:
    for camera in rig.cameras.values():
        key, value = _transform(camera)
        del camera[key]
        camera["camera_to_lidar" if key == "lidar_to_camera" else "lidar_to_camera"] = value


def translation_in_mm(rig: RigFolder) -> None:
    for camera in rig.cameras.values():
        _, value = _transform(camera)
        if "matrix" in value:
            for row in value["matrix"][:3]:
                row[3] *= 1000
        else:
            value["translation"] = [1000 * x for x in value["translation"]]


def quaternion_order(rig: RigFolder) -> None:
    from clever3d.datasets.geometry import rotation_to_quaternion

    for camera in rig.cameras.values():
        _, value = _transform(camera)
        if "matrix" in value:
            matrix = np.array(value.pop("matrix"))
            value["rotation"], value["translation"] = matrix[:3, :3].tolist(), matrix[:3, 3].tolist()
        w, x, y, z = value.pop("quaternion", None) or rotation_to_quaternion(np.array(value.pop("rotation"))).tolist()
        value["quaternion"] = [x, y, z, w]


def images_halved(rig: RigFolder, *, say_so: bool) -> None:
    """Smaller images; `image_size` says so or not, the intrinsics do not."""
    for name, camera in rig.cameras.items():
        folder = rig.folder / f"{name}_half"
        folder.mkdir()
        for path in rig.folder.glob(camera["files"]):
            with Image.open(path) as image:
                size = (image.width // 2, image.height // 2)
                image.convert("RGB").resize(size, Image.Resampling.BOX).save(folder / path.name)
        camera["files"] = f"{name}_half"
        if say_so:
            camera["image_size"] = list(size)


def focal_wrong(rig: RigFolder, factor: float = 1.25) -> None:
    for camera in rig.cameras.values():
        k = camera["intrinsics"]
        if isinstance(k, dict):
            k["fx"], k["fy"] = factor * k["fx"], factor * k["fy"]
        else:
            k[0][0], k[1][1] = factor * k[0][0], factor * k[1][1]


def images_late(rig: RigFolder, frames: int) -> None:
    """Image n has the name of scan n + frames."""
    for name, camera in rig.cameras.items():
        folder = rig.folder / f"{name}_late"
        folder.mkdir()
        paths = sorted(rig.folder.glob(camera["files"]))
        for path, place in zip(paths[max(0, -frames) :], paths[max(0, frames) :], strict=False):
            (folder / place.name).symlink_to(path.resolve())
        camera["files"] = f"{name}_late"
    rig.config["matching"] = {"missing_images": "skip"}


def cameras_swapped(rig: RigFolder) -> None:
    """The images of the first two cameras of one size change places."""
    first, second = list(rig.cameras)[:2]
    a, b = rig.cameras[first], rig.cameras[second]
    a["files"], b["files"] = b["files"], a["files"]


def rotated(rig: RigFolder, *, right: float = 0.0, down: float = 0.0, roll: float = 0.0) -> None:
    """The extrinsics are turned so that the points appear so many degrees right, down, clockwise of where they are."""
    turn = np.eye(4)
    turn[:3, :3] = _axis(1, right) @ _axis(0, -down) @ _axis(2, roll)
    _change(rig, turn)


def moved(rig: RigFolder, *, right: float = 0.0, down: float = 0.0, forward: float = 0.0) -> None:
    """The extrinsics are moved so that the points appear so many metres right, down, forward of where they are."""
    move = np.eye(4)
    move[:3, 3] = right, down, forward
    _change(rig, move)


def _change(rig: RigFolder, change: np.ndarray) -> None:
    """Every camera's extrinsics, followed by a transform of the camera's axes [4, 4]."""
    for camera in rig.cameras.values():
        key, value = _transform(camera)
        if "matrix" in value:
            matrix = np.array(value["matrix"])
        else:
            matrix = np.eye(4)
            matrix[:3, 3] = value["translation"]
            if "quaternion" in value:
                from rig_frames import _rigid

                matrix[:3, :3] = _rigid(value["quaternion"], [0, 0, 0])[:3, :3]
            else:
                matrix[:3, :3] = value["rotation"]
        matrix = change @ matrix if key == "lidar_to_camera" else matrix @ np.linalg.inv(change)
        camera[key] = {"rotation": matrix[:3, :3].tolist(), "translation": matrix[:3, 3].tolist()}


def _axis(axis: int, degrees: float) -> np.ndarray:
    """Rotation about one axis by the right-hand rule."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i] = matrix[j, j] = cos
    matrix[i, j], matrix[j, i] = -sin, sin
    return matrix
