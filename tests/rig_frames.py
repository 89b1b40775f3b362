"""Rig folders of real frames: links to the files of ../shared, and the calibration of their sets as a rig.yaml."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

Matrix = np.ndarray


@dataclass
class RigFolder:
    """folder: with scans and images. config: what its rig.yaml says; `write` after a change."""

    folder: Path
    config: dict[str, Any]

    def write(self) -> Path:
        text = yaml.safe_dump(self.config, sort_keys=False, default_flow_style=None, width=200)
        (self.folder / "rig.yaml").write_text(text)
        return self.folder

    @property
    def cameras(self) -> dict[str, Any]:
        return self.config["cameras"]


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def camera_entry(files: str, size: tuple[int, int], intrinsics: Matrix, to_camera: Matrix) -> dict[str, Any]:
    return {
        "files": files,
        "image_size": list(size),
        "intrinsics": np.asarray(intrinsics, dtype=float).tolist(),
        "lidar_to_camera": {
            "rotation": nearest_rotation(to_camera[:3, :3]).tolist(),
            "translation": [float(x) for x in to_camera[:3, 3]],
        },
    }


def nearest_rotation(matrix: Matrix) -> Matrix:
    u, _, v = np.linalg.svd(matrix)
    return u @ v


def _kitti_values(path: Path) -> dict[str, Matrix]:
    values = {}
    for line in path.read_text().splitlines():
        key, _, numbers = line.partition(":")
        try:
            values[key] = np.array([float(x) for x in numbers.split()])
        except ValueError:
            continue
    return values


def _kitti_camera(
    files: str, size: tuple[int, int], projection: Matrix, rectify: Matrix, velo: Matrix
) -> dict[str, Any]:
    """P = K [I | t]: the baseline goes into the extrinsics."""
    to_camera = np.vstack([velo, [0, 0, 0, 1]])
    to_camera[:3] = rectify @ to_camera[:3]
    to_camera[:3, 3] += np.linalg.inv(projection[:, :3]) @ projection[:, 3]
    return camera_entry(files, size, projection[:, :3], to_camera)


def kitti_object(folder: Path, training: Path, stems: list[str]) -> RigFolder:
    """Frames of the object layout that have one calibration."""
    values = _kitti_values(training / "calib" / f"{stems[0]}.txt")
    rectify, velo = values["R0_rect"].reshape(3, 3), values["Tr_velo_to_cam"].reshape(3, 4)
    for stem in stems:
        link(training / "velodyne" / f"{stem}.bin", folder / "lidar" / f"{stem}.bin")
        link(training / "image_2" / f"{stem}.png", folder / "front" / f"{stem}.png")
    size = Image.open(folder / "front" / f"{stems[0]}.png").size
    entry = _kitti_camera("front/*.png", size, values["P2"].reshape(3, 4), rectify, velo)
    lidar = {"files": "lidar/*.bin", "axes": "flu", "columns": 4}
    return RigFolder(folder, {"lidar": lidar, "cameras": {"front": entry}})


def kitti(folder: Path, shared: Path) -> RigFolder:
    """The ten frames of KITTI object that share one calibration; each is of another place."""
    stems = [f"{n:06d}" for n in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)]
    return kitti_object(folder, shared / "kitti" / "training", stems)


def kitti_drive(folder: Path, shared_more: Path, drive: str) -> RigFolder:
    """A drive with a frame every 0.4 s and small images."""
    training = shared_more / "kitti_drives" / "training"
    stems = sorted(path.stem for path in (training / "velodyne").glob(f"{drive}*.bin"))
    return kitti_object(folder, training, stems)


def kitti_stereo(folder: Path, shared_more: Path) -> RigFolder:
    """Both colour cameras. Every folder pads the number in its own way: matched by number."""
    root = shared_more / "kitti_stereo"
    values = _kitti_values(next((root / "calib").glob("*.txt")))
    rectify, velo = values["R0_rect"].reshape(3, 3), values["Tr_velo_to_cam"].reshape(3, 4)
    scan = next((root / "velodyne").glob("*.bin"))
    link(scan, folder / "lidar" / scan.name)
    entries = {}
    for name, number in (("front_left", 2), ("front_right", 3)):
        image = next((root / f"image_{number}").glob("*.png"))
        link(image, folder / name / image.name)
        projection = values[f"P{number}"].reshape(3, 4)
        entries[name] = _kitti_camera(f"{name}/*.png", Image.open(image).size, projection, rectify, velo)
    lidar = {"files": "lidar/*.bin", "axes": "flu", "columns": 4}
    return RigFolder(folder, {"lidar": lidar, "cameras": entries, "matching": {"by": "number"}})


def kitti_raw(folder: Path, shared: Path) -> RigFolder:
    """A frame every 0.5 s of dense, slow motorway traffic."""
    day = shared / "kitti_raw" / "2011_09_26"
    drive = next(day.glob("*_sync"))
    for scan in sorted((drive / "velodyne_points" / "data").glob("*.bin")):
        link(scan, folder / "lidar" / scan.name)
        link(drive / "image_02" / "data" / f"{scan.stem}.png", folder / "front" / f"{scan.stem}.png")
    size = Image.open(next((folder / "front").glob("*.png"))).size
    cameras, velo = _kitti_values(day / "calib_cam_to_cam.txt"), _kitti_values(day / "calib_velo_to_cam.txt")
    transform = np.hstack([velo["R"].reshape(3, 3), velo["T"].reshape(3, 1)])
    entry = _kitti_camera(
        "front/*.png", size, cameras["P_rect_02"].reshape(3, 4), cameras["R_rect_00"].reshape(3, 3), transform
    )
    return RigFolder(folder, {"lidar": {"files": "lidar", "axes": "flu"}, "cameras": {"front": entry}})


def nuscenes(folder: Path, shared: Path) -> RigFolder:
    """One key frame with six cameras; mounts from calibrated_sensor, poses from ego_pose, matched by time."""
    root = shared / "nuscenes"
    tables = {
        name: {row["token"]: row for row in json.loads((root / "v1.0-mini" / f"{name}.json").read_text())}
        for name in ("sample_data", "calibrated_sensor", "ego_pose", "sensor")
    }
    entries: dict[str, Any] = {}
    poses: dict[int, str] = {}
    lidar_to_ego: dict[str, Any] = {}
    for data in tables["sample_data"].values():
        mount = tables["calibrated_sensor"][data["calibrated_sensor_token"]]
        channel = tables["sensor"][mount["sensor_token"]]["channel"]
        pose = tables["ego_pose"][data["ego_pose_token"]]
        w, x, y, z = pose["rotation"]
        place = " ".join(map(repr, [*pose["translation"], x, y, z, w]))
        poses[data["timestamp"]] = f"{data['timestamp'] / 1e6:.6f} {place}"
        link(root / data["filename"], folder / channel / Path(data["filename"]).name)
        if channel == "LIDAR_TOP":
            lidar_to_ego = {"quaternion": mount["rotation"], "translation": mount["translation"]}
        else:
            entries[channel] = {
                "files": f"{channel}/*.jpg",
                "image_size": [1600, 900],
                "intrinsics": mount["camera_intrinsic"],
                "camera_to_ego": mount,
                "timestamps": "names",
                "time_unit": "us",
            }
    ego_from_lidar = _rigid(lidar_to_ego["quaternion"], lidar_to_ego["translation"])
    for entry in entries.values():
        mount = entry.pop("camera_to_ego")
        to_lidar = np.linalg.inv(ego_from_lidar) @ _rigid(mount["rotation"], mount["translation"])
        entry["camera_to_lidar"] = {"matrix": to_lidar.tolist()}
    (folder / "poses.txt").write_text("\n".join(poses[time] for time in sorted(poses)) + "\n")
    lidar = {
        "files": "LIDAR_TOP/*.bin", "axes": "rfu", "columns": 5, "intensity_scale": 255, "timestamps": "names",
        "time_unit": "us",
    }  # fmt: skip
    config = {
        "lidar": lidar,
        "cameras": entries,
        "matching": {"by": "time", "max_time_difference": 0.06},
        "poses": {"file": "poses.txt", "lidar_to_body": lidar_to_ego},
    }
    return RigFolder(folder, config)


def _rigid(quaternion: list[float], translation: list[float]) -> Matrix:
    """By Rodrigues' formula, to be independent of the package's."""
    w, *v = np.array(quaternion) / np.linalg.norm(quaternion)
    x, y, z = v
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(4)
    matrix[:3, :3] += 2 * w * cross + 2 * cross @ cross
    matrix[:3, 3] = translation
    return matrix


def sustechpoints(folder: Path, shared: Path) -> RigFolder:
    root = shared / "sustechpoints"
    link(root / "lidar" / "000965.pcd", folder / "lidar" / "000965.pcd")
    entries = {}
    for name in ("front", "left", "right"):
        link(root / "camera" / name / "000965.jpg", folder / name / "000965.jpg")
        values = json.loads((root / "calib" / "camera" / f"{name}.json").read_text())
        intrinsics = np.reshape(values["intrinsic"], (3, 3))
        entries[name] = camera_entry(f"{name}/*.jpg", (2048, 1536), intrinsics, np.reshape(values["extrinsic"], (4, 4)))
    lidar = {"files": "lidar/*.pcd", "axes": "lbu", "intensity_scale": 255}
    return RigFolder(folder, {"lidar": lidar, "cameras": entries})


def rellis3d(folder: Path, shared: Path) -> RigFolder:
    """transforms.yaml is camera to LiDAR; 41 % of the points are (0, 0, 0)."""
    root = shared / "rellis3d"
    scan = next(root.rglob("*.bin"))
    link(scan, folder / "lidar" / "000104.bin")
    link(next(root.glob("*.jpg")), folder / "front" / "000104.jpg")
    link(root / "000104.label", folder / "labels" / "000104.label")
    transform = next(iter(yaml.safe_load((root / "transforms.yaml").read_text()).values()))
    fx, fy, cx, cy = map(float, (root / "camera_info.txt").read_text().split())
    entry = {
        "files": "front/*.jpg",
        "image_size": [1920, 1200],
        "intrinsics": {"fx": fx, "fy": fy, "cx": cx, "cy": cy},
        "camera_to_lidar": {
            "quaternion": [transform["q"][k] for k in "wxyz"],
            "translation": [transform["t"][k] for k in "xyz"],
        },
    }
    lidar = {"files": "lidar/*.bin", "axes": "bru", "columns": 4, "min_range": 0.5}
    return RigFolder(folder, {"lidar": lidar, "cameras": {"front": entry}})


def everything(shared: Path, more: Path) -> dict[str, Callable[[Path], RigFolder]]:
    """A builder for each rig folder that the real frames give."""
    return {
        "kitti": lambda folder: kitti(folder, shared),
        "kitti_raw": lambda folder: kitti_raw(folder, shared),
        "drive 001": lambda folder: kitti_drive(folder, more, "001"),
        "drive 005": lambda folder: kitti_drive(folder, more, "005"),
        "drive 027": lambda folder: kitti_drive(folder, more, "027"),
        "kitti_stereo": lambda folder: kitti_stereo(folder, more),
        "nuscenes": lambda folder: nuscenes(folder, shared),
        "sustechpoints": lambda folder: sustechpoints(folder, shared),
        "rellis3d": lambda folder: rellis3d(folder, shared),
    }
