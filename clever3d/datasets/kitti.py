"""KITTI in the layout of the object benchmark: training/{velodyne,image_2,calib}, with image_3, label_2 if present.

Source of the formulas: the KITTI object development kit, pixel = P2 * R0_rect * Tr_velo_to_cam * X.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from clever3d.datasets.base import Dataset, Frame, names, require_folder, require_unique, wanted_cameras
from clever3d.datasets.cityscapes_labels import CITYSCAPES_PSEUDO
from clever3d.datasets.geometry import rigid
from clever3d.datasets.kitti_boxes import read_object_boxes
from clever3d.datasets.kitti_files import (
    IMAGE_SUFFIXES,
    frame_files,
    kitti_camera,
    partner,
    projection_entry,
    read_calibration,
    read_kitti_points,
    read_label_values,
    read_lines,
    rigid_entry,
    rotation_entry,
    without_scan,
)
from clever3d.datasets.labels import PointLabels
from clever3d.errors import DataError, InputError

LAYOUT = "KITTI object needs training/{velodyne,image_2,calib} below it"
#: Camera -> its projection in the calibration file.
CAMERAS = {"image_2": "P2", "image_3": "P3"}
#: The folder of point labels that `labels=` may name.
PSEUDO_LABELS = "pseudo_sem"


class _Files(NamedTuple):
    scan: Path
    calibration: Path
    images: tuple[tuple[str, Path], ...]  # camera, image
    boxes: Path | None
    labels: Path | None


class KittiObject(Dataset):
    """KITTI object frames with the colour cameras `image_2` (left) and `image_3` (right).

    root: the folder that holds `training`, or a folder that holds `velodyne`, `image_2`, `calib` itself. Scans are
    `velodyne/*.bin`; copies without reflectance keep them as `points/*.pcd`, which gives intensity None.
    scene: how many leading characters of the frame's id name its scene. None: each frame is its own scene, because
    the ids of the real benchmark are shuffled and say nothing about the drive.
    cameras: None takes those whose folder is there, at least one; () reads no images.
    split: a name S takes the ids listed in root/ImageSets/S.txt, a file that KITTI does not come with; no list is
    built in. "test" means the folder `testing`, all of it if there is no list.
    labels: "pseudo_sem" gives point labels from `pseudo_sem/*.u1`, Cityscapes train ids as uint8. They are another
    network's **predictions**, not ground truth: a score against them measures agreement with that network.

    Boxes come from `label_2`; a frame without such a file has none. Only objects in the image of camera 2 have one.
    There are no timestamps and no poses; scan and images are of one trigger. Images differ in size, which the
    calibration does not tell, so cameras have no `image_size`.

    Raises DataError if a folder, an image or a calibration file is missing; InputError on a bad option.
    """

    name = "kitti"
    LAYOUT = LAYOUT
    OPTIONS: ClassVar = {"scene": int, "cameras": names, "split": str, "labels": str}

    def __init__(
        self,
        root: Path | str,
        *,
        scene: int | None = None,
        cameras: tuple[str, ...] | None = None,
        split: str | None = None,
        labels: str | None = None,
    ) -> None:
        root = require_folder(Path(root).expanduser(), LAYOUT)
        if scene is not None and scene < 1:
            raise InputError(f"scene={scene}: give the number (at least 1) of leading characters of the id")
        if labels not in (None, PSEUDO_LABELS):
            raise InputError(f"labels={labels!r}: the only point labels of KITTI object are {PSEUDO_LABELS!r}")
        files, self._orphans = _list_files(_subset_folder(root, split), cameras, labels)
        if split is not None and (chosen := _of_split(files, root, split)) is not files:
            files, self._orphans = chosen, []  # a listed frame without a scan is an error; the others are not asked for
        self._files = [files[number] for number in sorted(files)]
        require_unique((file.scan.stem for file in self._files), str(root))
        self._scene = scene
        self.label_spec = CITYSCAPES_PSEUDO if labels else None

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        folders = (root / "training", root)
        return any((folder / "calib").is_dir() and (folder / "image_2").is_dir() for folder in folders)

    def __len__(self) -> int:
        return len(self._files)

    def ids(self) -> list[str]:
        return [files.scan.stem for files in self._files]

    def orphans(self) -> list[tuple[Path, Path]]:
        return self._orphans

    def __getitem__(self, index: int) -> Frame:
        files = self._files[index]
        path = files.calibration
        values = read_calibration(path)
        rectify = rigid(rotation_entry(values, "R0_rect", path), np.zeros(3))
        velo_to_rectified = rectify @ rigid_entry(values, "Tr_velo_to_cam", path)
        frame_id = files.scan.stem
        return Frame(
            id=frame_id,
            scene=frame_id if self._scene is None else frame_id[: self._scene],
            cameras=tuple(
                kitti_camera(
                    image,
                    projection=projection_entry(values, CAMERAS[camera], path),
                    velo_to_rectified=velo_to_rectified,
                    name=camera,
                )
                for camera, image in files.images
            ),
            points_path=files.scan,
            dataset=self.name,
            read=read_kitti_points,
            read_boxes=None if files.boxes is None else partial(read_object_boxes, files.boxes, velo_to_rectified),
            read_labels=None if files.labels is None else partial(read_pseudo_labels, files.labels, files.scan),
        )


def read_pseudo_labels(path: Path, scan: Path) -> PointLabels:
    """Predicted Cityscapes train ids, one byte a point of `scan`; DataError if there are more or fewer."""
    semantic = read_label_values(path, scan, "u1").astype(np.int32)
    return PointLabels(semantic, CITYSCAPES_PSEUDO, path=str(path))


def _subset_folder(root: Path, split: str | None) -> Path:
    if split == "test":
        return require_folder(root / "testing", "split=test needs testing/{velodyne,image_2,calib}")
    return root / "training" if (root / "training").is_dir() else root


def _list_files(
    folder: Path, cameras: tuple[str, ...] | None, labels: str | None
) -> tuple[dict[int, _Files], list[tuple[Path, Path]]]:
    """The files of each frame by its number, every partner checked to be there; and the files without a scan."""
    if (folder / "points").is_dir() and not (folder / "velodyne").is_dir():
        scans = frame_files(folder / "points", (".pcd",))
    else:
        scans = frame_files(require_folder(folder / "velodyne", LAYOUT), (".bin",))
    wanted = _wanted_cameras(folder, cameras)
    calibrations = frame_files(require_folder(folder / "calib", LAYOUT), (".txt",))
    images = {name: frame_files(folder / name, IMAGE_SUFFIXES) for name in wanted}
    boxes = frame_files(folder / "label_2", (".txt",)) if (folder / "label_2").is_dir() else {}
    pseudo: dict[int, Path] = {}
    if labels is not None:
        needs = f"labels={labels} needs it; it is no part of KITTI, but a teacher's predictions"
        pseudo = frame_files(require_folder(folder / labels, needs), (".u1",))
    files: dict[int, _Files] = {}
    for number, scan in scans.items():
        files[number] = _Files(
            scan=scan,
            calibration=partner(calibrations, number, folder / "calib", ".txt", scan),
            images=tuple((c, partner(images[c], number, folder / c, ".png", scan)) for c in wanted),
            boxes=boxes.get(number),
            labels=None if labels is None else partner(pseudo, number, folder / labels, ".u1", scan),
        )
    return files, without_scan(scans, [*images.values(), boxes, pseudo, calibrations])


def _wanted_cameras(folder: Path, cameras: tuple[str, ...] | None) -> tuple[str, ...]:
    there = [name for name in CAMERAS if (folder / name).is_dir()]
    if cameras is None and not there:
        require_folder(folder / "image_2", f"{LAYOUT} (cameras=() reads no images)")
    return wanted_cameras(cameras, there, str(folder))


def _of_split(files: dict[int, _Files], root: Path, split: str) -> dict[int, _Files]:
    """The frames that root/ImageSets/SPLIT.txt lists, all of them if `split` is test and there is no list."""
    lists = root / "ImageSets"
    path = lists / f"{split}.txt"
    if not path.is_file():
        if split == "test":
            return files
        have = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        raise DataError(f"{path} does not exist, so nobody says which frames are in {split!r} (lists there: {have})")
    chosen: dict[int, _Files] = {}
    for line, text in enumerate(read_lines(path, "it lists the frames"), start=1):
        word = text.strip()
        if not word.isdecimal() or int(word) not in files:
            raise DataError(f"{path}: line {line} lists the frame {word!r}, which has no scan; download it")
        if int(word) in chosen:
            raise DataError(f"{path}: line {line} lists the frame {word!r} a second time; remove it")
        chosen[int(word)] = files[int(word)]
    if not chosen:
        raise DataError(f"{path} lists no frame")
    return chosen
