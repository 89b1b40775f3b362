"""RELLIS-3D: off-road scans of an Ouster OS1-64 with labels, and a Basler camera.

Sources: the repository unmannedlab/RELLIS-3D (README.md, utils/lidar2img.ipynb, utils/convert_ply2bin.py) and, for the
poses, output_pose.cc of unmannedlab/cartographer.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from clever3d.datasets.base import (
    Dataset,
    Frame,
    gaps_are_allowed,
    names,
    require_folder,
    require_unique,
    wanted_cameras,
)
from clever3d.datasets.camera import Camera, Distortion
from clever3d.datasets.geometry import Matrix, check_transform, inverse, quaternion_to_rotation, rigid
from clever3d.datasets.kitti_files import (
    frame_files,
    of_frame,
    partner,
    read_lines,
    read_numbers,
    read_point_labels,
    read_poses,
)
from clever3d.datasets.rellis3d_labels import RELLIS3D
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud, read_bin, to_flu

CAMERA = "pylon_camera_node"
SCANS, LABELS = "os1_cloud_node_kitti_bin", "os1_cloud_node_semantickitti_label_id"
#: Where x, y and z of the files point: the Ouster looks back. vel2os1.yaml of the repository, half a turn about z
#: between the Velodyne (x forward) and the Ouster, says the same.
AXES = "bru"
#: What the files divide the sensor's 16-bit signal by (convert_ply2bin.py).
FILE_SCALE = 65535.0
#: The signal that becomes intensity 1; brighter points, which are retroreflectors, are cut. Photon counts have no full
#: scale but 65535, at which nearly everything would be black: in the published example the median is 201, the 99 %
#: quantile 560, the largest value 754. 1000 is the same group's `norm_remission` for its other OS1-64 data.
FULL_SIGNAL = 1000.0
#: Lens of the Basler camera, k1 k2 p1 p2 k3; no file of the data set has it (lidar2img.ipynb).
DISTORTION = Distortion("pinhole", (-0.134313, -0.025905, 0.002181, 0.00084, 0.0))

# Row i of to_flu(identity) is the file's axis i in FLU: the transpose of the rotation from file to FLU.
_FLU_TO_FILE = rigid(to_flu(np.eye(3, dtype=np.float32), AXES), np.zeros(3))
_LOG = logging.getLogger(__name__)
_IMAGE = re.compile(r"frame(\d+)-(\d+)_(\d+)")
_TRANSFORM = "os1_cloud_node-pylon_camera_node"
_HINT = "get 'Camera Intrinsic' and 'Camera to LiDAR' of the data set's README, or pass cameras=()"


def yes_or_no(text: str) -> bool:
    """A value of OPTIONS. Raises InputError for another word."""
    if text not in ("yes", "no"):
        raise InputError(f"{text!r} is neither yes nor no")
    return text == "yes"


class Rellis3D(Dataset):
    """RELLIS-3D scans with point labels and the camera `pylon_camera_node`. A scene is a sequence.

    root: the folder of the sequences (`Rellis-3D`, with `00000` ... `00004` in it) or the one above it; the archives
    unpacked in one place make it. Or a folder of the shape of the repository's `utils/example`: `000104.bin`,
    `000104.label`, `frame000104-*.jpg`, camera_info.txt and transforms.yaml beside each other.
    sequences: these alone, such as ("00000",).
    split: "train", "val" or "test" takes the scans listed in pt_SPLIT.lst, a file of the data set beside the sequences.
    cameras: None takes the camera where its images are there; () reads none.
    distortion: False leaves the lens distortion out. The images are as the camera took them, and the coefficients are
    in the authors' notebook only.

    camera_info.txt and transforms.yaml are read from the sequence's folder, or from the one above it. transforms.yaml
    leads from the camera to the LiDAR; points are projected with its inverse. poses.txt, where there, leads from the
    LiDAR to the map of the sequence (calib.txt holds identities and is not read). Scans have no timestamp; an image's
    is in its name. No motion between the two is taken out: in the example they are 21 ms apart.

    Every slot of the sensor is a row, those without return as (0, 0, 0) with label 0 (void), because labels belong to
    rows; whoever uses the points drops them. Intensity: `FULL_SIGNAL`.

    Raises DataError for a missing folder, label or image, and for a bad calibration; InputError on a bad option.
    """

    name = "rellis3d"
    LAYOUT = f"RELLIS-3D needs 0000N/{SCANS} below it, or NNNNNN.bin with transforms.yaml in it"
    OPTIONS: ClassVar = {"sequences": names, "split": str, "cameras": names, "distortion": yes_or_no}
    label_spec = RELLIS3D

    def __init__(
        self,
        root: Path | str,
        *,
        sequences: tuple[str, ...] | None = None,
        split: str | None = None,
        cameras: tuple[str, ...] | None = None,
        distortion: bool = True,
    ) -> None:
        root = require_folder(Path(root).expanduser(), self.LAYOUT)
        flat = _is_flat(root)
        if flat and (sequences is not None or split is not None):
            raise InputError(f"{root} is a folder of single frames: it has no sequences and no split")
        folder = root if flat else _folder_of_sequences(root)
        paths = [root] if flat else [folder / name for name in _chosen(folder, sequences)]
        self._sequences = [_Sequence.open(path, flat, cameras, DISTORTION if distortion else None) for path in paths]
        if split is not None:
            self._sequences = _of_split(self._sequences, folder / f"pt_{split}.lst", whole=sequences is None)
        self._frames = [(seq, number) for seq in self._sequences for number in sorted(seq.scans)]
        require_unique(self.ids(), str(root))

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return _is_flat(root) or any(any(folder.glob(f"*/{SCANS}")) for folder in (root, root / "Rellis-3D"))

    def __len__(self) -> int:
        return len(self._frames)

    def ids(self) -> list[str]:
        return [sequence.id(number) for sequence, number in self._frames]

    def __getitem__(self, index: int) -> Frame:
        sequence, number = self._frames[index]
        scan = sequence.scans[number]
        label = sequence.labels.get(number)
        return Frame(
            id=sequence.id(number),
            scene=sequence.folder.name,
            cameras=sequence.cameras(number),
            points_path=scan,
            dataset=self.name,
            read=read_rellis_points,
            points_to_world=sequence.points_to_world(number),
            read_labels=None if label is None else partial(read_point_labels, label, scan, RELLIS3D),
        )


def read_rellis_points(path: Path) -> PointCloud:
    """A scan with x, y, z turned to FLU (metres) and the signal scaled to [0, 1]; every slot of the sensor a row."""
    values = read_bin(path, 4)  # [N, 4]
    return PointCloud(
        xyz=to_flu(values[:, :3], AXES),
        intensity=np.clip(values[:, 3] * np.float32(FILE_SCALE / FULL_SIGNAL), 0, 1),
        source=f"RELLIS-3D .bin: float32 x y z signal/65535, x back, y right, z up; a signal of {FULL_SIGNAL:g} is 1",
    )


@dataclass(frozen=True, eq=False)
class _Calibration:
    intrinsics: Matrix
    points_to_camera: Matrix
    distortion: Distortion | None

    @classmethod
    def read(cls, folder: Path, distortion: Distortion | None) -> _Calibration:
        camera_to_lidar = _read_transform(_calibration_file(folder, "transforms.yaml"))
        intrinsics = _read_intrinsics(_calibration_file(folder, "camera_info.txt"))
        return cls(intrinsics, inverse(camera_to_lidar) @ _FLU_TO_FILE, distortion)


@dataclass(frozen=True, eq=False)
class _Sequence:
    folder: Path
    flat: bool
    scans: dict[int, Path]
    labels: dict[int, Path]
    images: dict[int, tuple[Path, float | None]]  # image, its time in seconds
    calibration: _Calibration | None  # None without images
    poses: Matrix | None

    @classmethod
    def open(cls, folder: Path, flat: bool, cameras: tuple[str, ...] | None, lens: Distortion | None) -> _Sequence:
        parts = (folder, folder, folder) if flat else tuple(folder / name for name in (SCANS, LABELS, CAMERA))
        scan_folder, label_folder, image_folder = parts
        scans = frame_files(require_folder(scan_folder, Rellis3D.LAYOUT), (".bin",))
        images = _list_images(image_folder, flat)
        if not wanted_cameras(cameras, (CAMERA,) if images else (), str(folder)):
            images = {}
        labels: dict[int, Path] = {}
        if label_folder.is_dir() and (not flat or any(folder.glob("*.label"))):
            labels = frame_files(label_folder, (".label",))
            labels = {n: partner(labels, n, label_folder, ".label", scan) for n, scan in scans.items()}
        for number, scan in scans.items() if images else ():
            if number not in images and gaps_are_allowed():
                images[number] = (image_folder / f"frame{scan.stem}.jpg", None)
            elif number not in images:
                raise DataError(f"{image_folder}/frame{scan.stem}-*.jpg is missing, but {scan} exists; download it")
        poses = folder / "poses.txt"
        return cls(
            folder=folder,
            flat=flat,
            scans=scans,
            labels=labels,
            images=images,
            calibration=_Calibration.read(folder, lens) if images else None,
            poses=read_poses(poses) if poses.is_file() else None,
        )

    def id(self, number: int) -> str:
        stem = self.scans[number].stem
        return stem if self.flat else f"{self.folder.name}_{stem}"

    def cameras(self, number: int) -> tuple[Camera, ...]:
        if self.calibration is None:
            return ()
        image, seconds = self.images[number]
        to_camera = self.calibration.points_to_camera
        camera = Camera(CAMERA, image, self.calibration.intrinsics, to_camera, self.calibration.distortion)
        return (replace(camera, timestamp=seconds),)

    def points_to_world(self, number: int) -> Matrix | None:
        if self.poses is None:
            return None
        moved: Matrix = of_frame(self.poses, number, self.folder / "poses.txt") @ _FLU_TO_FILE
        return moved


def _is_flat(root: Path) -> bool:
    return (root / "transforms.yaml").is_file() and any(root.glob("*.bin"))


def _folder_of_sequences(root: Path) -> Path:
    for folder in (root, root / "Rellis-3D"):
        if any(folder.glob(f"*/{SCANS}")):
            return folder
    raise DataError(f"{root} has no 0000N/{SCANS}; {Rellis3D.LAYOUT}")


def _chosen(folder: Path, sequences: tuple[str, ...] | None) -> list[str]:
    there = sorted(path.name for path in folder.iterdir() if (path / SCANS).is_dir())
    for name in sequences or ():
        if name not in there:
            raise DataError(f"{folder} has no sequence {name!r} with {SCANS} (there: {', '.join(there)}); download it")
    return there if sequences is None else list(sequences)


def _list_images(folder: Path, flat: bool) -> dict[int, tuple[Path, float | None]]:
    """Images by frame number, with the time in their names: `frame000104-1581624663_149.jpg` is of 1581624663.149 s.

    In the example's folder a .png is the label of the .jpg.
    """
    suffixes = (".jpg",) if flat else (".jpg", ".png")
    images: dict[int, tuple[Path, float | None]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix not in suffixes:
            continue
        found = _IMAGE.fullmatch(path.stem)
        if found is None:
            raise DataError(f"{path}: the name is not frameNUMBER-SECONDS_MILLISECONDS; keep only RELLIS-3D's images")
        number = int(found[1])
        if number in images:
            raise DataError(f"{path} and {images[number][0].name} have the same frame number; remove one")
        images[number] = path, int(found[2]) + int(found[3]) / 1000
    if not images and not flat and folder.is_dir():
        raise DataError(f"{folder} holds no image; download the images, or remove the folder")
    return images


def _calibration_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder.parent / name):
        if path.is_file():
            return path
    raise DataError(f"{folder / name} does not exist, nor is it in the folder above; {_HINT}")


def _read_intrinsics(path: Path) -> Matrix:
    numbers = read_numbers(path, 4, "fx fy cx cy")
    if len(numbers) != 1 or min(numbers[0, :2]) <= 0:
        raise DataError(f"{path} has to be one line, fx fy cx cy in pixels with fx and fy above 0; {_HINT}")
    fx, fy, cx, cy = numbers[0]
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _read_transform(path: Path) -> Matrix:
    """The transform [4, 4] of transforms.yaml, from the camera to the LiDAR in the axes of the files."""
    try:
        tree: Any = yaml.safe_load("\n".join(read_lines(path, _HINT)))
        entry = tree[_TRANSFORM]
        quaternion = [float(entry["q"][axis]) for axis in "wxyz"]
        translation = [float(entry["t"][axis]) for axis in "xyz"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} has no {_TRANSFORM} with q (w x y z) and t (x y z): {error!r}; {_HINT}") from error
    where = f"{path}: {_TRANSFORM}"
    return check_transform(rigid(quaternion_to_rotation(quaternion, f"{where}.q"), translation), where)


def _of_split(sequences: list[_Sequence], path: Path, *, whole: bool) -> list[_Sequence]:
    """The scans that a line of `path` names first: `00000/os1_cloud_node_kitti_bin/000104.bin LABEL`."""
    listed: dict[str, dict[int, int]] = {}  # sequence -> frame number -> line
    for line, text in enumerate(read_lines(path, "it lists the split; get 'LiDAR Split File' of the README"), start=1):
        scan = Path(text.split()[0] if text.split() else "")
        if len(scan.parts) < 3 or not scan.stem.isdecimal():
            raise DataError(f"{path}: line {line} names no scan: {text[:60]!r}")
        listed.setdefault(scan.parts[-3], {})[int(scan.stem)] = line
    chosen: list[_Sequence] = []
    for sequence in sequences:
        numbers = listed.pop(sequence.folder.name, {})
        for number, line in numbers.items():
            if number not in sequence.scans:
                raise DataError(f"{path}: line {line} names scan {number} of {sequence.folder}, which is missing")
        if numbers:
            chosen.append(replace(sequence, scans={number: sequence.scans[number] for number in numbers}))
    if listed and whole:
        _LOG.warning("%s names the sequences %s, which are not there", path, ", ".join(sorted(listed)))
    if not chosen:
        raise DataError(f"{path} lists no scan of {', '.join(sequence.folder.name for sequence in sequences)}")
    return chosen
