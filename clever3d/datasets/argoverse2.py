"""Argoverse 2, sensor data set: sensor/{train,val,test}/LOG/{sensors/lidar,calibration,annotations.feather, ...}.

Source of the layout, axes and transforms: the devkit av2-api (argoverse/av2-api, `datasets/sensor`, `structures`,
`geometry`) and Wilson et al., "Argoverse 2" (NeurIPS 2021 Datasets and Benchmarks). A point goes
ego (sweep's time) -> city -> ego (image's time) -> camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.arrow import read_feather, stack
from clever3d.datasets.base import Dataset, Frame, Sweep, names, require_folder, require_unique, wanted_cameras
from clever3d.datasets.boxes import Boxes
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, apply, inverse, quaternion_to_rotation, rigid
from clever3d.datasets.velocity import Sighting, central_velocities
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud

#: The sensor whose place is the points' origin: the upper of the two stacked LiDARs.
ORIGIN = "up_lidar"
#: An image further from the sweep's timestamp than this is not used: the camera is left out of the frame. Our choice:
#: the devkit takes 25 ms, half of the cameras' interval; the poses carry points over one dropped image besides.
MAX_IMAGE_OFFSET_NS = 60_000_000

_POSES = "city_SE3_egovehicle.feather"
_QUATERNION = ("qw", "qx", "qy", "qz")
_TRANSLATION = ("tx_m", "ty_m", "tz_m")
_SIZE = ("length_m", "width_m", "height_m")


class Argoverse2(Dataset):
    """Argoverse 2 sweeps (10 Hz) with the seven ring cameras and the two stereo cameras. A scene is a log.

    root: the folder of the splits (or the one that holds it as `sensor`), of the logs of one split, or of one log.
    split: only the logs in this folder: train, val or test. cameras: only these, in this order.
    sweeps: how many earlier sweeps of the log each frame has. The id is LOG_TIMESTAMP, the sweep's time in ns.

    **Origin.** The files have the points of both LiDARs in ego axes: origin at the middle of the rear axle, the ground
    about 0.35 m below. The points here have the ego's directions (FLU) but the place of `up_lidar` (read from the
    log's calibration; 1.35 m ahead, 1.64 m up) as origin, as a network expects that has learnt the ground far below
    its sensor: the ground is then at about z = -2.0 m. Boxes, cameras and poses follow.

    **Precision.** The files hold float16: coordinates step by 0.03 m beyond 32 m, 0.0625 m beyond 64 m and 0.125 m
    beyond 128 m. They are widened before anything is added to them.

    Images are an optional download: a log without `sensors/cameras` has frames without cameras. They are published
    undistorted (Argoverse user guide, "Sensor Suite"; the devkit projects with fx, fy, cx, cy alone), so the
    coefficients k1, k2, k3 in intrinsics.feather, those of the raw lens, are not applied. The image nearest in time is
    taken, a camera whose nearest is over 60 ms away is left out of that frame, and so is one that the log's
    calibration does not have (known of the stereo cameras of some logs), unless `cameras` names it.

    Boxes have velocities by the central difference of a track's neighbours (NaN at a track's ends). The test split has
    no annotations. `flow_labels.feather` is not read.

    Raises DataError if a folder or table is missing or damaged, MissingExtraError without pyarrow.
    """

    name = "av2"
    LAYOUT = "Argoverse 2 needs logs (sensors/lidar, calibration, city_SE3_egovehicle.feather), in train, val, test"
    OPTIONS: ClassVar = {"split": str, "cameras": names, "sweeps": int}

    def __init__(
        self, root: Path | str, *, split: str | None = None, cameras: tuple[str, ...] | None = None, sweeps: int = 0
    ) -> None:
        root = require_folder(Path(root).expanduser(), self.LAYOUT)
        if sweeps < 0:
            raise InputError(f"sweeps={sweeps}: give the number of earlier sweeps, 0 or more")
        self._cameras = cameras
        self._sweeps = sweeps
        self._logs = [_Log(folder) for folder in _log_folders(root, split, self.LAYOUT)]
        require_unique((log.name for log in self._logs), str(root))
        self._frames = [(number, sweep) for number, log in enumerate(self._logs) for sweep in range(len(log.sweeps))]

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return any(any(root.glob(f"{above}{_POSES}")) for above in ("", "*/", "*/*/", "sensor/*/*/"))

    def __len__(self) -> int:
        return len(self._frames)

    def ids(self) -> list[str]:
        return [f"{self._logs[log].name}_{self._logs[log].sweeps[sweep]}" for log, sweep in self._frames]

    def __getitem__(self, index: int) -> Frame:
        number, position = self._frames[index]
        log = self._logs[number]
        timestamp = log.sweeps[position]
        points_to_world = log.pose(timestamp) @ log.shift
        annotations = log.folder / "annotations.feather"
        read_boxes = None
        if log.has_annotations:
            read_boxes = partial(read_av2_boxes, annotations, timestamp, log.folder / _POSES, log.shift)
        earlier = log.sweeps[max(0, position - self._sweeps) : position][::-1]
        world_to_points = inverse(points_to_world)
        return Frame(
            id=f"{log.name}_{timestamp}",
            scene=log.name,
            cameras=tuple(log.cameras(timestamp, self._cameras)),
            points_path=log.sweep_path(timestamp),
            dataset=self.name,
            read=partial(read_av2_points, shift=log.shift),
            timestamp=timestamp * 1e-9,
            points_to_world=points_to_world,
            read_boxes=read_boxes,
            sweeps=tuple(
                Sweep(log.sweep_path(t), world_to_points @ log.pose(t) @ log.shift, (t - timestamp) * 1e-9)
                for t in earlier
            ),
        )


def read_av2_points(path: Path, shift: Matrix) -> PointCloud:
    """A sweep of both LiDARs, from ego axes to the same axes with the origin at `shift`'s [4, 4] translation."""
    columns = read_feather(path, ("x", "y", "z", "intensity"), "the sweep needs")
    xyz = stack(columns, ("x", "y", "z")) - shift[:3, 3]  # float64: float16 steps by centimetres
    return PointCloud(
        xyz=xyz.astype(np.float32),
        intensity=columns["intensity"].astype(np.float32) / np.float32(255),
        source="Argoverse 2 sweep: float16 x y z in ego axes, moved to up_lidar; intensity uint8 / 255",
    )


def read_av2_boxes(path: Path, timestamp: int, poses: Path, shift: Matrix) -> Boxes:
    """The cuboids of one sweep (nanoseconds), in the axes of `read_av2_points`; num_points as annotated."""
    wanted = ("timestamp_ns", "track_uuid", "category", "num_interior_pts", *_SIZE, *_QUATERNION, *_TRANSLATION)
    table = read_feather(path, wanted, "the boxes need")
    here = np.flatnonzero(table["timestamp_ns"] == timestamp)
    centers = stack(table, _TRANSLATION)
    quaternions = stack(table, _QUATERNION)[here]
    rotations = [
        quaternion_to_rotation(q, f"{path}: qw qx qy qz, row {n}") for n, q in zip(here, quaternions, strict=True)
    ]
    tracks = tuple(table["track_uuid"][here].tolist())
    track_poses = _PoseTable.read(poses)
    before, after = (_sightings(table, centers, timestamp, set(tracks), track_poses, step) for step in (-1, 1))
    return Boxes(
        centers=centers[here] - shift[:3, 3],
        sizes=stack(table, _SIZE)[here],
        rotations=np.array(rotations).reshape(-1, 3, 3),
        names=tuple(table["category"][here].tolist()),
        velocities=central_velocities(tracks, before, after, inverse(track_poses.at(timestamp))),
        track_ids=tracks,
        num_points=table["num_interior_pts"][here].astype(np.int64),
    )


def _sightings(
    table: dict[str, NDArray[np.generic]],
    centers: Matrix,
    timestamp: int,
    tracks: set[str],
    poses: _PoseTable,
    step: int,
) -> dict[str, Sighting]:
    """Where each of `tracks` is in the city at its nearest annotated time after (`step` 1) or before (-1) this one."""
    away = step * (table["timestamp_ns"].astype(np.int64) - timestamp)
    found: dict[str, Sighting] = {}
    rows = np.flatnonzero((away > 0) & (away < 1_000_000_000))
    for row in rows[np.argsort(away[rows], kind="stable")]:
        track = str(table["track_uuid"][row])
        if track in tracks and track not in found:
            when = int(table["timestamp_ns"][row])
            found[track] = apply(poses.at(when), centers[row, None])[0], (when - timestamp) * 1e-9
    return found


@dataclass(frozen=True, eq=False)
class _PoseTable:
    """city_SE3_egovehicle.feather: where the vehicle is at each time of any sensor."""

    path: Path
    timestamps: NDArray[np.int64]  # [T], nanoseconds, ascending
    rows: Matrix  # [T, 7]: qw qx qy qz tx ty tz

    @classmethod
    def read(cls, path: Path) -> _PoseTable:
        table = read_feather(path, ("timestamp_ns", *_QUATERNION, *_TRANSLATION), "every log needs")
        order = np.argsort(table["timestamp_ns"], kind="stable")
        rows = stack(table, (*_QUATERNION, *_TRANSLATION))
        return cls(path, table["timestamp_ns"][order].astype(np.int64), rows[order])

    def at(self, timestamp: int) -> Matrix:
        """ego -> city [4, 4] at exactly `timestamp` (the file has a row for every sweep and image); else DataError."""
        row = int(np.searchsorted(self.timestamps, timestamp))
        if row == len(self.timestamps) or self.timestamps[row] != timestamp:
            raise DataError(f"{self.path}: no pose at timestamp_ns {timestamp}; download the log's files again")
        rotation = quaternion_to_rotation(self.rows[row, :4], f"{self.path}: qw qx qy qz at {timestamp}")
        if not np.isfinite(self.rows[row, 4:]).all():
            raise DataError(f"{self.path}: tx_m ty_m tz_m at {timestamp} are not finite; download it again")
        return rigid(rotation, self.rows[row, 4:])


class _Log:
    """One log. Its tables (about 0.2 MB) are read when its first frame is asked for, and kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name  # the root may be "."
        lidar = require_folder(
            folder / "sensors" / "lidar", "every Argoverse 2 log needs its sweeps; download it again"
        )
        self.sweeps = _timestamps(lidar, ".feather")
        if not self.sweeps:
            raise DataError(f"{lidar} holds no .feather sweep; download the log again, or remove it")
        self.has_annotations = (folder / "annotations.feather").is_file()

    def sweep_path(self, timestamp: int) -> Path:
        return self.folder / "sensors" / "lidar" / f"{timestamp}.feather"

    @cached_property
    def poses(self) -> _PoseTable:
        return _PoseTable.read(self.folder / _POSES)

    def pose(self, timestamp: int) -> Matrix:
        return self.poses.at(timestamp)

    @cached_property
    def mounts(self) -> dict[str, Matrix]:
        """sensor name -> sensor to ego [4, 4]."""
        path = self.folder / "calibration" / "egovehicle_SE3_sensor.feather"
        table = read_feather(path, ("sensor_name", *_QUATERNION, *_TRANSLATION), "every log needs")
        mounts: dict[str, Matrix] = {}
        for row, sensor in enumerate(table["sensor_name"].tolist()):
            quaternion = [table[column][row] for column in _QUATERNION]
            rotation = quaternion_to_rotation(quaternion, f"{path}: qw qx qy qz of {sensor}")
            mounts[sensor] = rigid(rotation, [table[column][row] for column in _TRANSLATION])
        if ORIGIN not in mounts:
            raise DataError(f"{path} has no sensor {ORIGIN!r} (it has: {', '.join(mounts)}); download it again")
        return mounts

    @cached_property
    def shift(self) -> Matrix:
        """From the points' axes to the ego's [4, 4]: up_lidar's place, without its turn of half a degree."""
        return rigid(np.eye(3), self.mounts[ORIGIN][:3, 3])

    @cached_property
    def intrinsics(self) -> dict[str, tuple[Matrix, tuple[int, int]]]:
        """camera name -> intrinsics [3, 3] and (width, height)."""
        path = self.folder / "calibration" / "intrinsics.feather"
        columns = ("fx_px", "fy_px", "cx_px", "cy_px")
        table = read_feather(path, ("sensor_name", *columns, "width_px", "height_px"), "every log needs")
        found: dict[str, tuple[Matrix, tuple[int, int]]] = {}
        for row, camera in enumerate(table["sensor_name"].tolist()):
            fx, fy, cx, cy = (float(table[column][row]) for column in columns)
            if not (np.isfinite([cx, cy]).all() and 0 < fx < np.inf and 0 < fy < np.inf):
                raise DataError(
                    f"{path}: fx_px fy_px cx_px cy_px of {camera} are {fx} {fy} {cx} {cy}; download it again"
                )
            size = int(table["width_px"][row]), int(table["height_px"][row])
            found[camera] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), size
        return found

    @cached_property
    def image_times(self) -> dict[str, NDArray[np.int64]]:
        """camera name -> the times of its images, ascending; empty where the log has no images."""
        folder = self.folder / "sensors" / "cameras"
        if not folder.is_dir():
            return {}
        return {path.name: np.array(_timestamps(path, ".jpg")) for path in sorted(folder.iterdir()) if path.is_dir()}

    def cameras(self, timestamp: int, wanted: tuple[str, ...] | None) -> list[Camera]:
        """The cameras with an image near `timestamp`; see the class."""
        if not self.image_times:
            return []
        folder = self.folder / "sensors" / "cameras"
        known = [camera for camera in self.image_times if camera in self.intrinsics and camera in self.mounts]
        chosen = wanted_cameras(wanted, known, f"{folder} and {self.folder / 'calibration'}")
        points_to_city = self.pose(timestamp) @ self.shift
        cameras = []
        for name in chosen:
            times = self.image_times[name]
            nearest = int(times[np.abs(times - timestamp).argmin()]) if len(times) else None
            if nearest is None or abs(nearest - timestamp) > MAX_IMAGE_OFFSET_NS:
                continue
            city_to_camera = inverse(self.pose(nearest) @ self.mounts[name])
            intrinsics, size = self.intrinsics[name]
            cameras.append(
                Camera(
                    name=name,
                    image_path=folder / name / f"{nearest}.jpg",
                    intrinsics=intrinsics,
                    points_to_camera=city_to_camera @ points_to_city,
                    image_size=size,
                    timestamp=nearest * 1e-9,
                )
            )
        return cameras


def _timestamps(folder: Path, suffix: str) -> list[int]:
    """The nanoseconds that the files of `folder` are named by, ascending; DataError for another name."""
    times = []
    for path in folder.iterdir():
        if path.suffix == suffix and not path.name.startswith("."):
            if not path.stem.isdecimal():
                raise DataError(
                    f"{path}: the name is no timestamp in nanoseconds; keep only Argoverse 2's own files there"
                )
            times.append(int(path.stem))
    return sorted(times)


def _log_folders(root: Path, split: str | None, layout: str) -> list[Path]:
    """The logs below `root`, by split and name."""
    root = root / "sensor" if (root / "sensor").is_dir() else root
    if _is_log(root):
        found = [root]
    else:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        found = [log for folder in folders for log in ([folder] if _is_log(folder) else _children(folder))]
    if split is not None:
        splits = sorted({log.parent.name for log in found})
        found = [log for log in found if log.parent.name == split]
        if not found:
            raise DataError(f"{root} has no log in a folder {split!r} (logs are in: {', '.join(splits) or 'none'})")
    if not found:
        raise DataError(f"{root} holds no Argoverse 2 log; {layout}")
    return found


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_log(path))


def _is_log(folder: Path) -> bool:
    return (folder / _POSES).is_file() or (folder / "sensors" / "lidar").is_dir()
