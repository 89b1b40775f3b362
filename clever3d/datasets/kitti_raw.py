"""KITTI raw recordings, synced and rectified: 2011_09_26/2011_09_26_drive_*_sync/{image_02,velodyne_points}/data.

Source of the formulas: Geiger et al., "Vision meets Robotics" (IJRR 2013), eq. 8:
pixel = P_rect_02 * R_rect_00 * [R T of calib_velo_to_cam] * X.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clever3d.datasets.base import Dataset, Frame, require_folder
from clever3d.datasets.geometry import Matrix
from clever3d.datasets.kitti import (
    IMAGE_SUFFIXES,
    frame_files,
    kitti_camera,
    matrix_entry,
    projection_entry,
    read_calibration,
    read_kitti_points,
)
from clever3d.errors import DataError


class KittiRaw(Dataset):
    """KITTI raw frames with the left colour camera (`image_02`). A scene is a drive.

    root: the folder of one day (`2011_09_26`), or one that holds several days. Frames are the scans on disk: some
    drives have images whose scan was never published.

    Raises DataError if a calibration file, a folder or the image of a scan is missing.
    """

    name = "kitti_raw"
    LAYOUT = "KITTI raw needs calib_cam_to_cam.txt, calib_velo_to_cam.txt and *_sync drive folders in a day's folder"

    def __init__(self, root: Path | str) -> None:
        root = require_folder(Path(root).expanduser(), KittiRaw.LAYOUT)
        days = _days(root)
        self._calibrations: dict[Path, tuple[Matrix, Matrix, Matrix]] = {}
        self._files: list[tuple[Path, Path, Path]] = []  # day, scan, image
        for day in days:
            self._calibrations[day] = _day_calibration(day)
            drives = sorted(path for path in day.glob("*_sync") if path.is_dir())
            if not drives:
                raise DataError(f"{day} holds no *_sync folder; download the 'synced+rectified' drives of that day")
            for drive in drives:
                self._files.extend((day, scan, image) for scan, image in _drive_files(drive))

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return (root / "calib_cam_to_cam.txt").is_file() or any(root.glob("*/calib_cam_to_cam.txt"))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Frame:
        day, scan, image = self._files[index]
        projection, rectification, velo_to_cam = self._calibrations[day]
        camera = kitti_camera(
            image, projection=projection, rectification=rectification, velo_to_cam=velo_to_cam, name="image_02"
        )
        drive = scan.parents[2].name
        return Frame(f"{drive}_{scan.stem}", drive, (camera,), scan, self.name, read_kitti_points)


def _days(root: Path) -> list[Path]:
    if (root / "calib_cam_to_cam.txt").is_file():
        return [root]
    return sorted(path.parent for path in root.glob("*/calib_cam_to_cam.txt")) or [root]


def _day_calibration(day: Path) -> tuple[Matrix, Matrix, Matrix]:
    cameras_path, velodyne_path = day / "calib_cam_to_cam.txt", day / "calib_velo_to_cam.txt"
    cameras, velodyne = read_calibration(cameras_path), read_calibration(velodyne_path)
    rotation = matrix_entry(velodyne, "R", (3, 3), velodyne_path)
    translation = matrix_entry(velodyne, "T", (3, 1), velodyne_path)
    return (
        projection_entry(cameras, "P_rect_02", cameras_path),
        matrix_entry(cameras, "R_rect_00", (3, 3), cameras_path),
        np.hstack([rotation, translation]),
    )


def _drive_files(drive: Path) -> list[tuple[Path, Path]]:
    scans = frame_files(require_folder(drive / "velodyne_points" / "data", KittiRaw.LAYOUT), (".bin",))
    image_folder = require_folder(drive / "image_02" / "data", KittiRaw.LAYOUT)
    images = frame_files(image_folder, IMAGE_SUFFIXES)
    missing = [scan for number, scan in scans.items() if number not in images]
    if missing:
        expected = image_folder / f"{missing[0].stem}.png"
        raise DataError(f"{expected} is missing, but {missing[0]} exists; download it, or remove the scan")
    return [(scan, images[number]) for number, scan in sorted(scans.items())]
