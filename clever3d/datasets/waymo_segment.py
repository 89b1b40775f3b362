"""One segment of Waymo v2: which row of which table belongs to which moment, the calibrations, the cameras."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.arrow import read_parquet, table_columns, transforms
from clever3d.datasets.camera import Camera, Distortion
from clever3d.datasets.geometry import Matrix, check_transform, inverse, rigid
from clever3d.datasets.waymo_images import extract, segment_folder
from clever3d.datasets.waymo_range_image import Laser
from clever3d.errors import DataError

#: `key.camera_name` -> name (v2/perception/camera_image.py).
CAMERAS = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}
TIME = "key.frame_timestamp_micros"
_CAMERA = "key.camera_name"
_LASER = "key.laser_name"
_TOP = 1  # of `key.laser_name` (v2/perception/lidar.py)

#: Waymo's camera axes are x forward, y left, z up: camera = this @ theirs.
_TO_CAMERA_AXES = rigid([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]], np.zeros(3))


class Segment:
    """The tables of one segment. The frames' times and poses are read at once, the rest when it is asked for."""

    def __init__(self, folder: Path, name: str, cache: Path) -> None:
        self.folder = folder
        self.name = name
        self._cache = cache
        for component in ("lidar", "lidar_calibration"):
            if not self.table(component).is_file():
                raise DataError(f"{self.table(component)} is missing, but vehicle_pose has the segment; download it")
        path = self.table("vehicle_pose")
        column = "[VehiclePoseComponent].world_from_vehicle.transform"
        table = read_parquet(path, (TIME, column), "every segment needs")
        times = table_columns(table, (TIME,), path)[TIME].astype(np.int64)
        order = np.argsort(times, kind="stable")
        self.times: list[int] = times[order].tolist()
        self._poses = transforms(table, column, path)[order]

    def table(self, component: str) -> Path:
        return self.folder / component / f"{self.name}.parquet"

    def vehicle_to_world(self, position: int) -> Matrix:
        where = f"{self.table('vehicle_pose')}: world_from_vehicle at {TIME} {self.times[position]}"
        return check_transform(self._poses[position], where)

    def row(self, component: str, time: int) -> int | None:
        """The row of laser TOP at `time` in a component's table; None where it has none, or there is no such table."""
        if component not in self._rows:
            self._rows[component] = self._find_rows(component)
        return self._rows[component].get(time)

    @cached_property
    def _rows(self) -> dict[str, dict[int, int]]:
        return {}

    def _find_rows(self, component: str) -> dict[int, int]:
        path = self.table(component)
        if component == "lidar_segmentation" and not path.is_file():  # segments without labels have no file
            return {}
        columns = table_columns(read_parquet(path, (TIME, _LASER), "every segment needs"), (TIME, _LASER), path)
        rows: dict[int, int] = {}
        for row in np.flatnonzero(_named(columns[_LASER], _TOP, "TOP")).tolist():
            time = int(columns[TIME][row])
            if time in rows:
                raise DataError(f"{path}: two rows of laser TOP at {TIME} {time} ({rows[time]} and {row})")
            rows[time] = row
        return rows

    @cached_property
    def laser(self) -> Laser:
        """The calibration of TOP."""
        path = self.table("lidar_calibration")
        prefix = "[LiDARCalibrationComponent]"
        names = [f"{prefix}.beam_inclination.{what}" for what in ("min", "max", "values")]
        extrinsic = f"{prefix}.extrinsic.transform"
        table = read_parquet(path, (_LASER, extrinsic, *names), "every segment needs")
        rows = np.flatnonzero(_named(table_columns(table, (_LASER,), path)[_LASER], _TOP, "TOP"))
        if len(rows) != 1:
            raise DataError(f"{path} has {len(rows)} rows of laser TOP, expected 1; download it again")
        lowest, highest, values = (table[name][int(rows[0])].as_py() for name in names)
        if values:
            inclinations = np.array(values, dtype=np.float64)
            lowest = highest = 0.0
        elif lowest is None or highest is None:
            raise DataError(f"{path}: beam_inclination of laser TOP is empty; download it again")
        matrix = transforms(table, extrinsic, path)[rows[0]]
        return Laser(
            extrinsic=check_transform(matrix, f"{path}: extrinsic of laser TOP"),
            lowest=float(lowest),
            highest=float(highest),
            inclinations=inclinations if values else None,
        )

    def cameras(self, time: int, points_to_world: Matrix, wanted: tuple[str, ...]) -> list[Camera]:
        """The `wanted` cameras at `time`, whose images are then in the cache; none where there is no camera_image."""
        if not wanted or not (self.folder / "camera_image").is_dir():
            return []
        images = self._images
        table = self.table("camera_image")
        folder = segment_folder(self._cache, table)
        rows: dict[str, int] = {}
        for name in wanted:
            if (time, name) not in images.rows:
                raise DataError(
                    f"{table} has no image of {name} at {TIME} {time}; download it, or leave the camera out"
                )
            if name not in self._calibrations:
                raise DataError(f"{self.table('camera_calibration')} has no camera {name}; download it again")
            rows[name] = images.rows[time, name]
        paths = {name: folder / f"{time}_{name}.jpg" for name in wanted}
        if missing := [rows[name] for name in wanted if not paths[name].is_file()]:
            every = {row: folder / f"{at}_{name}.jpg" for (at, name), row in images.rows.items() if name in wanted}
            extract(table, missing, every)
        cameras = []
        for name, row in rows.items():
            intrinsics, distortion, size, camera_to_vehicle = self._calibrations[name]
            pose = check_transform(images.poses[row], f"{table}: pose of {name} at {TIME} {time}")
            cameras.append(
                Camera(
                    name=name,
                    image_path=paths[name],
                    intrinsics=intrinsics,
                    points_to_camera=_TO_CAMERA_AXES @ inverse(pose @ camera_to_vehicle) @ points_to_world,
                    distortion=distortion,
                    image_size=size,
                    timestamp=float(images.times[row]),
                )
            )
        return cameras

    @cached_property
    def _images(self) -> _Images:
        return _Images(self.table("camera_image"))

    @cached_property
    def _calibrations(self) -> dict[str, tuple[Matrix, Distortion, tuple[int, int], Matrix]]:
        """camera name -> intrinsics [3, 3], distortion, (width, height), camera (Waymo's axes) to vehicle [4, 4]."""
        path = self.table("camera_calibration")
        prefix = "[CameraCalibrationComponent]"
        numbers = [f"{prefix}.intrinsic.{what}" for what in ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3")]
        sizes = [f"{prefix}.{what}" for what in ("width", "height")]
        extrinsic = f"{prefix}.extrinsic.transform"
        table = read_parquet(path, (_CAMERA, *numbers, *sizes, extrinsic), "the cameras need")
        columns = table_columns(table, (_CAMERA, *numbers, *sizes), path)
        matrices = transforms(table, extrinsic, path)
        found = {}
        for row, name in enumerate(_camera_names(columns[_CAMERA], path)):
            fu, fv, cu, cv, *coefficients = (float(columns[column][row]) for column in numbers)
            if not (np.isfinite([cu, cv, *coefficients]).all() and 0 < fu < np.inf and 0 < fv < np.inf):
                values = [fu, fv, cu, cv, *coefficients]
                raise DataError(f"{path}: intrinsic of {name} is {values}; download it again")
            # Their pixels count from the left edge of the first one (dataset.proto), ours from its middle.
            intrinsics = np.array([[fu, 0, cu - 0.5], [0, fv, cv - 0.5], [0, 0, 1]])
            size = int(columns[sizes[0]][row]), int(columns[sizes[1]][row])
            to_vehicle = check_transform(matrices[row], f"{path}: extrinsic of {name}")
            found[name] = intrinsics, Distortion("pinhole", tuple(coefficients)), size, to_vehicle
        return found


class _Images:
    """What camera_image says of its images, without the images: where each is, and where the vehicle was then."""

    def __init__(self, path: Path) -> None:
        prefix = "[CameraImageComponent]"
        pose, moment = f"{prefix}.pose.transform", f"{prefix}.pose_timestamp"
        table = read_parquet(path, (TIME, _CAMERA, pose, moment), "the cameras need")
        columns = table_columns(table, (TIME, _CAMERA, moment), path)
        self.poses = transforms(table, pose, path)  # [rows, 4, 4] vehicle -> world at the middle of the image
        self.times: NDArray[Any] = columns[moment]
        self.rows: dict[tuple[int, str], int] = {}
        for row, name in enumerate(_camera_names(columns[_CAMERA], path)):
            key = int(columns[TIME][row]), name
            if key in self.rows:
                raise DataError(f"{path}: two images of {name} at {TIME} {key[0]} (rows {self.rows[key]} and {row})")
            self.rows[key] = row


def _named(column: NDArray[Any], number: int, name: str) -> NDArray[np.bool_]:
    """Where a key is `number`, or `name`: the published schema has numbers, some published files have names."""
    return np.array([value in (number, name) for value in column.tolist()], dtype=bool)


def _camera_names(column: NDArray[Any], path: Path) -> list[str]:
    found = [value if isinstance(value, str) else CAMERAS.get(int(value), "") for value in column.tolist()]
    if unknown := sorted(
        {str(value) for value, name in zip(column.tolist(), found, strict=True) if name not in CAMERAS.values()}
    ):
        raise DataError(f"{path}: {_CAMERA} has {', '.join(unknown)}, known are 1 to 5; download it again")
    return found
