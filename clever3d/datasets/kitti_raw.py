"""KITTI raw recordings, synced and rectified: 2011_09_26/2011_09_26_drive_*_sync/{image_02,velodyne_points}/data.

Source of the formulas: Geiger et al., "Vision meets Robotics" (IJRR 2013), eq. 8:
pixel = P_rect_0i * R_rect_00 * [R T of calib_velo_to_cam] * X.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from clever3d.datasets.base import Dataset, Frame, Sweep, names, require_folder, require_unique, wanted_cameras
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, inverse, rigid
from clever3d.datasets.kitti_boxes import read_tracklet_boxes
from clever3d.datasets.kitti_files import (
    IMAGE_SUFFIXES,
    frame_files,
    kitti_camera,
    matrix_entry,
    partner,
    projection_entry,
    read_calibration,
    read_kitti_points,
    rotation_entry,
    without_scan,
)
from clever3d.datasets.kitti_oxts import Oxts, Timestamps
from clever3d.errors import DataError, InputError

#: The colour cameras, left and right, then the grey ones.
COLOR_CAMERAS, GREY_CAMERAS = ("image_02", "image_03"), ("image_00", "image_01")


class KittiRaw(Dataset):
    """KITTI raw frames with the colour cameras `image_02` (left) and `image_03` (right). A scene is a drive.

    root: the folder of one day (`2011_09_26`), or one that holds several days. Frames are the scans on disk: some
    drives have images whose scan was never published.
    cameras: None takes the colour cameras whose folder is there, at least one; `image_00` and `image_01` are the grey
    ones; () reads no images.
    sweeps: how many earlier scans of the drive each frame carries; needs oxts and velodyne_points/timestamps.txt.

    Read where they are there, else None: `timestamps.txt` (the scan's is the moment at which the laser looks ahead),
    `oxts` with calib_imu_to_velo.txt (points_to_world: x east, y north, z up), `tracklet_labels.xml` (boxes, which
    exist only in view of the cameras; a frame without objects has zero boxes).

    Motion: the cameras are triggered when the laser looks ahead, so what they see was measured at that very moment,
    and the transform to them is the calibration alone. A scan is one turn of 0.1 s; its points are not moved to one
    moment.

    Raises DataError if a calibration file, a folder or the image of a scan is missing; InputError on a bad option.
    """

    name = "kitti_raw"
    LAYOUT = "KITTI raw needs calib_cam_to_cam.txt, calib_velo_to_cam.txt and *_sync drive folders in a day's folder"
    OPTIONS: ClassVar = {"cameras": names, "sweeps": int}
    NUMBERED = True
    LONE_FILES_ARE_USUAL = True

    def __init__(self, root: Path | str, *, cameras: tuple[str, ...] | None = None, sweeps: int = 0) -> None:
        root = require_folder(Path(root).expanduser(), self.LAYOUT)
        if sweeps < 0:
            raise InputError(f"sweeps={sweeps}: give the number of earlier scans, 0 or more")
        self._sweeps = sweeps
        self._frames: list[tuple[_Drive, int]] = []
        self._orphans: list[tuple[Path, Path]] = []
        for day in _days(root):
            calibration = _Day.read(day)
            folders = sorted(path for path in day.glob("*_sync") if path.is_dir())
            if not folders:
                raise DataError(f"{day} holds no *_sync folder; download the 'synced+rectified' drives of that day")
            for folder in folders:
                drive = _Drive.open(folder, calibration, cameras)
                if sweeps:
                    drive.require_poses_and_times()
                self._frames.extend((drive, number) for number in drive.numbers)
                self._orphans += drive.orphans
        require_unique(self.ids(), str(root))

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return (root / "calib_cam_to_cam.txt").is_file() or any(root.glob("*/calib_cam_to_cam.txt"))

    def __len__(self) -> int:
        return len(self._frames)

    def ids(self) -> list[str]:
        return [drive.id(number) for drive, number in self._frames]

    def orphans(self) -> list[tuple[Path, Path]]:
        return self._orphans

    def __getitem__(self, index: int) -> Frame:
        drive, number = self._frames[index]
        scan = drive.scans[number]
        return Frame(
            id=drive.id(number),
            scene=drive.folder.name,
            cameras=drive.cameras(number),
            points_path=scan,
            dataset=self.name,
            read=read_kitti_points,
            timestamp=drive.seconds("velodyne_points", number),
            points_to_world=drive.points_to_world(number),
            read_boxes=None if drive.tracklets is None else partial(read_tracklet_boxes, drive.tracklets, number),
            sweeps=drive.sweeps(number, self._sweeps),
        )


@dataclass(frozen=True, eq=False)
class _Day:
    """The calibration of one day. imu_to_velo is None where its file is missing."""

    path: Path
    cameras: dict[str, Matrix]
    velo_to_rectified: Matrix
    imu_to_velo: Matrix | None

    @classmethod
    def read(cls, day: Path) -> _Day:
        cameras_path, velodyne_path = day / "calib_cam_to_cam.txt", day / "calib_velo_to_cam.txt"
        cameras = read_calibration(cameras_path)
        rectify = rigid(rotation_entry(cameras, "R_rect_00", cameras_path), np.zeros(3))
        imu = day / "calib_imu_to_velo.txt"
        return cls(
            path=cameras_path,
            cameras=cameras,
            velo_to_rectified=rectify @ _rigid_file(velodyne_path),
            imu_to_velo=_rigid_file(imu) if imu.is_file() else None,
        )

    def image_size(self, number: str) -> tuple[int, int] | None:
        if f"S_rect_{number}" not in self.cameras:
            return None
        width, height = matrix_entry(self.cameras, f"S_rect_{number}", (2,), self.path)
        return int(width), int(height)


@dataclass(frozen=True, eq=False)
class _Drive:
    folder: Path
    day: _Day
    scans: dict[int, Path]
    images: dict[str, dict[int, Path]]
    times: dict[str, Timestamps]  # by the folder they lie in
    oxts: Oxts | None
    tracklets: Path | None
    orphans: list[tuple[Path, Path]]  # image, scan
    numbers: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", sorted(self.scans))

    @classmethod
    def open(cls, folder: Path, day: _Day, cameras: tuple[str, ...] | None) -> _Drive:
        scans = frame_files(require_folder(folder / "velodyne_points" / "data", KittiRaw.LAYOUT), (".bin",))
        images: dict[str, dict[int, Path]] = {}
        listed: list[dict[int, Path]] = []
        for name in _wanted_cameras(folder, cameras):
            data = folder / name / "data"
            found = frame_files(data, IMAGE_SUFFIXES)
            listed.append(found)
            images[name] = {n: partner(found, n, data, ".png", scan) for n, scan in scans.items()}
        times = {name: folder / name / "timestamps.txt" for name in ("velodyne_points", *images)}
        packets = folder / "oxts" / "data"
        oxts = None
        if packets.is_dir() and day.imu_to_velo is not None:
            oxts = Oxts.of_drive(frame_files(packets, (".txt",)), day.imu_to_velo)
        tracklets = folder / "tracklet_labels.xml"
        return cls(
            folder=folder,
            day=day,
            scans=scans,
            images=images,
            times={name: Timestamps(path) for name, path in times.items() if path.is_file()},
            oxts=oxts,
            tracklets=tracklets if tracklets.is_file() else None,
            orphans=without_scan(scans, listed),
        )

    def id(self, number: int) -> str:
        return f"{self.folder.name}_{self.scans[number].stem}"

    def cameras(self, number: int) -> tuple[Camera, ...]:
        return tuple(
            kitti_camera(
                images[number],
                projection=projection_entry(self.day.cameras, f"P_rect_{name[-2:]}", self.day.path),
                velo_to_rectified=self.day.velo_to_rectified,
                name=name,
                image_size=self.day.image_size(name[-2:]),
                timestamp=self.seconds(name, number),
            )
            for name, images in self.images.items()
        )

    def seconds(self, sensor: str, number: int) -> float | None:
        return self.times[sensor].seconds(number) if sensor in self.times else None

    def points_to_world(self, number: int) -> Matrix | None:
        return None if self.oxts is None else self.oxts.points_to_world(number, self.scans[number])

    def require_poses_and_times(self) -> None:
        if self.oxts is None or "velodyne_points" not in self.times:
            raise DataError(
                f"{self.folder}: sweeps need oxts/data, calib_imu_to_velo.txt beside the drive and "
                "velodyne_points/timestamps.txt; download them, or leave sweeps out"
            )

    def sweeps(self, number: int, count: int) -> tuple[Sweep, ...]:
        now, pose = self.seconds("velodyne_points", number), self.points_to_world(number)
        if not count or now is None or pose is None:
            return ()
        place = self.numbers.index(number)
        earlier: list[Sweep] = []
        for before in reversed(self.numbers[max(0, place - count) : place]):
            then, then_pose = self.seconds("velodyne_points", before), self.points_to_world(before)
            if then is not None and then_pose is not None:
                earlier.append(Sweep(self.scans[before], inverse(pose) @ then_pose, then - now))
        return tuple(earlier)


def _days(root: Path) -> list[Path]:
    if (root / "calib_cam_to_cam.txt").is_file():
        return [root]
    return sorted(path.parent for path in root.glob("*/calib_cam_to_cam.txt")) or [root]


def _rigid_file(path: Path) -> Matrix:
    values = read_calibration(path)
    return rigid(rotation_entry(values, "R", path), matrix_entry(values, "T", (3,), path))


def _wanted_cameras(folder: Path, cameras: tuple[str, ...] | None) -> tuple[str, ...]:
    there = [name for name in (*COLOR_CAMERAS, *GREY_CAMERAS) if (folder / name / "data").is_dir()]
    if cameras is not None:
        return wanted_cameras(cameras, there, str(folder))
    color = tuple(name for name in COLOR_CAMERAS if name in there)
    if not color:
        require_folder(folder / "image_02" / "data", f"{KittiRaw.LAYOUT} (cameras=() reads no images)")
    return color
