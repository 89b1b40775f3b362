"""KITTI in the layout of the object benchmark: training/{velodyne,image_2,calib}.

Source of the formulas: the KITTI object development kit, pixel = P2 * R0_rect * Tr_velo_to_cam * X.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import numpy as np

from clever3d.datasets.base import Dataset, Frame, require_folder
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, rigid
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud, read_bin, read_points

IMAGE_SUFFIXES = (".png", ".jpg")


class KittiObject(Dataset):
    """KITTI object frames with the left colour camera (`image_2`).

    root: the folder that holds `training`, or a folder that holds `velodyne`, `image_2`, `calib` itself. Scans are
    `velodyne/*.bin`; copies without reflectance keep them as `points/*.pcd`, which gives intensity None.
    scene: how many leading characters of the frame's id name its scene. None: each frame is its own scene, because
    the ids of the real benchmark are shuffled and say nothing about the drive.

    Raises DataError if a folder, an image or a calibration file is missing; InputError on a bad `scene`.
    """

    name = "kitti"
    LAYOUT = "KITTI object needs training/{velodyne,image_2,calib} below it"
    OPTIONS: ClassVar = {"scene": int}

    def __init__(self, root: Path | str, *, scene: int | None = None) -> None:
        root = Path(root).expanduser()
        layout = self.LAYOUT
        require_folder(root, layout)
        folder = root / "training" if (root / "training").is_dir() else root
        if scene is not None and scene < 1:
            raise InputError(f"scene={scene}: give the number (at least 1) of leading characters of the id")
        if (folder / "points").is_dir() and not (folder / "velodyne").is_dir():
            scans = frame_files(folder / "points", (".pcd",))
        else:
            scans = frame_files(require_folder(folder / "velodyne", layout), (".bin",))
        images = frame_files(require_folder(folder / "image_2", layout), IMAGE_SUFFIXES)
        calibrations = frame_files(require_folder(folder / "calib", layout), (".txt",))
        self._files: list[tuple[Path, Path, Path]] = []
        for number, scan in sorted(scans.items()):
            image = _partner(images, number, folder / "image_2" / f"{scan.stem}.png", scan)
            calibration = _partner(calibrations, number, folder / "calib" / f"{scan.stem}.txt", scan)
            self._files.append((scan, image, calibration))
        self._scene = scene

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        folders = (root / "training", root)
        return any((folder / "calib").is_dir() and (folder / "image_2").is_dir() for folder in folders)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Frame:
        scan, image, calibration = self._files[index]
        values = read_calibration(calibration)
        camera = kitti_camera(
            image,
            projection=projection_entry(values, "P2", calibration),
            rectification=matrix_entry(values, "R0_rect", (3, 3), calibration),
            velo_to_cam=matrix_entry(values, "Tr_velo_to_cam", (3, 4), calibration),
        )
        frame_id = scan.stem
        scene = frame_id if self._scene is None else frame_id[: self._scene]
        return Frame(frame_id, scene, (camera,), scan, self.name, read_kitti_points)


def read_kitti_points(path: Path) -> PointCloud:
    """A KITTI scan: x, y, z (already FLU, metres) and reflectance in [0, 1]; a PCD as `read_points` reads it."""
    if path.suffix == ".pcd":
        return read_points(path)
    values = read_bin(path, 4)  # [N, 4]
    return PointCloud(
        xyz=np.ascontiguousarray(values[:, :3]),
        intensity=np.ascontiguousarray(values[:, 3]),
        source="KITTI .bin: float32 x y z reflectance, x forward, y left, z up",
    )


def kitti_camera(
    image: Path, *, projection: Matrix, rectification: Matrix, velo_to_cam: Matrix, name: str = "image_2"
) -> Camera:
    """The camera whose pixel is `projection` [3, 4] * `rectification` [3, 3] * `velo_to_cam` [3, 4] * X.

    The projection is K [I | t] with t = K^-1 p4: its fourth column is the baseline from camera 0, folded into
    `points_to_camera`, so that depth is measured from this camera.
    """
    intrinsics = projection[:, :3]
    baseline = np.linalg.solve(intrinsics, projection[:, 3])
    rectify = rigid(rectification, np.zeros(3))
    to_camera = rigid(np.eye(3), baseline) @ rectify @ rigid(velo_to_cam[:, :3], velo_to_cam[:, 3])
    return Camera(name, image, np.array(intrinsics), to_camera)


def read_calibration(path: Path) -> dict[str, Matrix]:
    """The `KEY: number number ...` lines of a KITTI calibration file; lines that hold no numbers (dates) are left out.

    Raises DataError if the file is missing or no text.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); every frame needs its calibration") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no KITTI calibration text; download it again") from error
    values: dict[str, Matrix] = {}
    for line in lines:
        key, _, numbers = line.partition(":")
        try:
            values[key.strip()] = np.array([float(number) for number in numbers.split()])
        except ValueError:
            continue
    return values


def matrix_entry(values: dict[str, Matrix], key: str, shape: tuple[int, ...], path: Path) -> Matrix:
    """Entry `key` of the calibration file `path` in the given shape, or a DataError that names both."""
    if key not in values:
        found = ", ".join(values) or "none"
        raise DataError(f"{path} has no numeric entry {key!r} (it has: {found}); use KITTI's own file")
    entry = values[key]
    size = math.prod(shape)
    if entry.size != size or not np.isfinite(entry).all():
        raise DataError(f"{path}: {key} has {entry.size} values, expected {size} finite ones; download the file again")
    return entry.reshape(shape)


def projection_entry(values: dict[str, Matrix], key: str, path: Path) -> Matrix:
    """Entry `key` as a rectified camera's projection [3, 4], or a DataError if it cannot be one."""
    projection = matrix_entry(values, key, (3, 4), path)
    if not (projection[0, 0] > 0 and projection[1, 1] > 0 and np.array_equal(projection[2, :3], (0, 0, 1))):
        raise DataError(f"{path}: {key} is no projection to pixels ({projection.tolist()}); download the file again")
    return projection


def frame_files(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Files of `folder` by frame number. Public copies pad the number differently from folder to folder.

    Raises DataError if a name is no number, if two files share one, or if there is no file at all.
    """
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in suffixes:
            continue
        if not path.stem.isdecimal():
            raise DataError(f"{path}: the name is no frame number; keep only KITTI's own files in {folder.name}")
        if int(path.stem) in files:
            raise DataError(f"{path} and {files[int(path.stem)].name} have the same frame number; remove one")
        files[int(path.stem)] = path
    if not files:
        raise DataError(f"{folder} holds no {' or '.join(suffixes)} file; check the path and the download")
    return files


def _partner(files: dict[int, Path], number: int, expected: Path, scan: Path) -> Path:
    if number not in files:
        raise DataError(f"{expected} is missing, but {scan} exists; download it, or remove the scan")
    return files[number]
