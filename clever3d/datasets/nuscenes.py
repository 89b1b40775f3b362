"""nuScenes key frames from the JSON tables: LIDAR_TOP and the six cameras.

Source of the transforms: the nuScenes schema. A point goes
lidar -> ego (lidar time) -> global -> ego (camera time) -> camera.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from clever3d.datasets.base import Dataset, Frame, require_folder
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, rigid
from clever3d.errors import DataError
from clever3d.io import PointCloud, read_bin

_T = TypeVar("_T")

LIDAR = "LIDAR_TOP"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")

# LIDAR_TOP's axes are x right, y forward, z up: lidar = FLU_TO_LIDAR @ flu
FLU_TO_LIDAR = rigid(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.zeros(3))


@dataclass(frozen=True, eq=False)
class _Mount:
    """How a sensor sits on the vehicle."""

    channel: str
    sensor_to_ego: Matrix  # [4, 4]
    intrinsics: Matrix  # [3, 3]; zeros where the sensor is no camera


@dataclass(frozen=True, eq=False)
class _SensorData:
    """One `sample_data` row with its tables joined: the file, the sensor, and where the vehicle was."""

    path: Path
    mount: _Mount
    ego_to_global: Matrix  # [4, 4], at this sensor's own timestamp


class NuScenes(Dataset):
    """nuScenes key frames (2 Hz). A scene is a nuScenes scene, its name `scene-0061`; the id is the sample's token.

    root: the folder that holds `samples` and the tables' folder `v1.0-*`.
    version: the tables' folder, needed only if there are several.

    No point is dropped: the few on the ego vehicle and at the origin are there as recorded.
    Raises DataError if a table is missing, is no JSON or points to a row that does not exist.
    """

    name = "nuscenes"
    LAYOUT = "nuScenes needs a folder with samples/ and v1.0-*/ in it"
    OPTIONS: ClassVar = {"version": str}

    def __init__(self, root: Path | str, *, version: str | None = None) -> None:
        root = require_folder(Path(root).expanduser(), self.LAYOUT)
        tables = _tables_folder(root, version)
        scenes = _index(tables, "scene")
        order = {token: position for position, token in enumerate(scenes)}
        samples = _table(tables, "sample")
        for sample in samples:
            _row(scenes, "scene", sample["scene_token"], tables)
        sensor_data = _key_frame_data(root, tables)
        self._samples: list[tuple[str, str, dict[str, _SensorData]]] = []  # token, scene, channel -> data
        for sample in sorted(samples, key=lambda sample: (order[sample["scene_token"]], sample["timestamp"])):
            data = sensor_data.get(sample["token"], {})
            missing = ", ".join(channel for channel in (LIDAR, *CAMERAS) if channel not in data)
            if missing:
                table = tables / "sample_data.json"
                raise DataError(f"{table}: no key frame of {missing} for sample {sample['token']}; unpack it again")
            self._samples.append((sample["token"], scenes[sample["scene_token"]]["name"], data))

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return any(path.is_dir() for path in root.glob("v1.0-*"))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Frame:
        token, scene, data = self._samples[index]
        cameras = tuple(_camera(channel, data[channel], data[LIDAR]) for channel in CAMERAS)
        return Frame(token, scene, cameras, data[LIDAR].path, self.name, read_nuscenes_points)


def read_nuscenes_points(path: Path) -> PointCloud:
    """A LIDAR_TOP sweep (float32 x y z intensity ring; x right, y forward) as FLU, intensity / 255."""
    values = read_bin(path, 5)  # [N, 5]
    xyz = np.stack([values[:, 1], -values[:, 0], values[:, 2]], axis=1)  # [N, 3]
    return PointCloud(
        xyz=xyz,
        intensity=values[:, 3] / np.float32(255),
        source="nuScenes .pcd.bin: float32 x y z intensity ring; x right, y forward turned to FLU, intensity / 255",
    )


def _camera(channel: str, camera: _SensorData, lidar: _SensorData) -> Camera:
    lidar_to_global = lidar.ego_to_global @ lidar.mount.sensor_to_ego
    camera_to_global = camera.ego_to_global @ camera.mount.sensor_to_ego
    to_camera = np.linalg.inv(camera_to_global) @ lidar_to_global @ FLU_TO_LIDAR
    return Camera(channel, camera.path, camera.mount.intrinsics, to_camera)


def _tables_folder(root: Path, version: str | None) -> Path:
    found = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    if version is None:
        if len(found) != 1:
            hint = "name one with version=..." if found else "unpack the metadata archive there"
            raise DataError(f"{root} holds {len(found)} tables' folders v1.0-* ({', '.join(found) or 'none'}); {hint}")
        version = found[0]
    elif version not in found:
        raise DataError(f"{root / version} is no folder; there is {', '.join(found) or 'no v1.0-* folder'}")
    return root / version


def _key_frame_data(root: Path, tables: Path) -> dict[str, dict[str, _SensorData]]:
    """sample token -> channel -> data, for the channels used here."""
    mounts = _mounts(tables)
    # Before the poses are read: both tables have millions of rows, and only the key frames' few are kept.
    rows = [row for row in _table(tables, "sample_data") if row["is_key_frame"]]
    poses = _index(tables, "ego_pose")
    joined: dict[str, dict[str, _SensorData]] = {}
    for row in rows:
        mount = _row(mounts, "calibrated_sensor", row["calibrated_sensor_token"], tables)
        if mount.channel == LIDAR or mount.channel in CAMERAS:
            pose = _row(poses, "ego_pose", row["ego_pose_token"], tables)
            joined.setdefault(row["sample_token"], {})[mount.channel] = _SensorData(
                path=root / row["filename"], mount=mount, ego_to_global=_pose(pose, tables / "ego_pose.json")
            )
    return joined


def _mounts(tables: Path) -> dict[str, _Mount]:
    """calibrated_sensor token -> mount."""
    path = tables / "calibrated_sensor.json"
    sensors = _index(tables, "sensor")
    mounts: dict[str, _Mount] = {}
    for row in _table(tables, "calibrated_sensor"):
        channel = _row(sensors, "sensor", row["sensor_token"], tables)["channel"]
        intrinsics = _numbers(row, "camera_intrinsic", (3, 3), path) if channel in CAMERAS else np.zeros((3, 3))
        mounts[row["token"]] = _Mount(channel, _pose(row, path), intrinsics)
    return mounts


def _numbers(row: Mapping[str, Any], column: str, shape: tuple[int, ...], path: Path) -> Matrix:
    try:
        numbers = np.array(row[column], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: {column} of row {row['token']} is {row[column]!r}; unpack the tables again"
        ) from error
    if numbers.shape != shape or not np.isfinite(numbers).all():
        raise DataError(
            f"{path}: {column} of row {row['token']} is not {shape} finite numbers; unpack the tables again"
        )
    return numbers


def _pose(row: Mapping[str, Any], path: Path) -> Matrix:
    """[4, 4] of a row's `rotation` (quaternion w, x, y, z) and `translation` (metres)."""
    quaternion = _numbers(row, "rotation", (4,), path)
    if not quaternion.any():
        raise DataError(f"{path}: rotation of row {row['token']} is zero; unpack the tables again")
    return rigid(_rotation(quaternion), _numbers(row, "translation", (3,), path))


def _rotation(quaternion: Matrix) -> Matrix:
    """[3, 3] of a quaternion (w, x, y, z), normalised first."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


_COLUMNS = {
    "scene": ("token", "name"),
    "sample": ("token", "scene_token", "timestamp"),
    "sensor": ("token", "channel"),
    "calibrated_sensor": ("token", "sensor_token", "translation", "rotation", "camera_intrinsic"),
    "ego_pose": ("token", "translation", "rotation"),
    "sample_data": ("sample_token", "ego_pose_token", "calibrated_sensor_token", "is_key_frame", "filename"),
}


def _table(tables: Path, name: str) -> Sequence[Mapping[str, Any]]:
    path = tables / f"{name}.json"
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); unpack nuScenes' metadata there") from error
    except ValueError as error:  # broken JSON, or no UTF-8
        raise DataError(f"{path} is no valid JSON ({error}); unpack it again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a list of rows; unpack it again")
    for row in rows:
        missing = [column for column in _COLUMNS[name] if column not in row]
        if missing:
            raise DataError(f"{path}: a row has no {', '.join(missing)}; use the tables of nuScenes v1.0")
    return rows


def _index(tables: Path, name: str) -> dict[str, Mapping[str, Any]]:
    return {row["token"]: row for row in _table(tables, name)}


def _row(index: Mapping[str, _T], name: str, token: str, tables: Path) -> _T:
    if token not in index:
        path = tables / f"{name}.json"
        raise DataError(f"{path} has no row {token!r}, which another table names; use tables of one version")
    return index[token]
