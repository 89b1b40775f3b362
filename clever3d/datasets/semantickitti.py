"""SemanticKITTI: sequences/NN/{velodyne,labels,image_2,image_3} with calib.txt, poses.txt and times.txt.

Sources: semantic-kitti.org ("Data format"), and the KITTI odometry development kit: pixel = P2 * Tr * X, where Tr leads
from the velodyne to rectified camera 0.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from clever3d.datasets.base import Dataset, Frame, Sweep, names, require_folder, require_unique, wanted_cameras
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, inverse
from clever3d.datasets.kitti_files import (
    IMAGE_SUFFIXES,
    frame_files,
    kitti_camera,
    of_frame,
    partner,
    projection_entry,
    read_calibration,
    read_kitti_points,
    read_numbers,
    read_point_labels,
    read_poses,
    rigid_entry,
    without_scan,
)
from clever3d.datasets.semantickitti_labels import SEMANTICKITTI, SPLITS
from clever3d.errors import DataError, InputError

_LOG = logging.getLogger(__name__)

#: Camera -> its projection in calib.txt. The images are those of KITTI odometry, a download of their own.
CAMERAS = {"image_2": "P2", "image_3": "P3"}


class SemanticKitti(Dataset):
    """SemanticKITTI scans with labels, instances, poses and KITTI odometry's colour cameras. A scene is a sequence.

    root: the folder that holds `sequences`, or `dataset/sequences` as in KITTI's archives.
    split: "train" (00-07, 09, 10), "val" (08) or "test" (11-21); the log names sequences of it that are not there.
    sequences: these alone, such as ("00", "08"). Neither: all that are there.
    cameras: None takes those whose folder is there, none being fine: images are an optional download.
    sweeps: how many earlier scans of the sequence each frame carries; needs calib.txt, poses.txt and times.txt.

    Read where they are there, else None: `labels` (the test sequences have none; `instance` counts within a class),
    times.txt (the timestamp), poses.txt together with calib.txt. A pose in poses.txt is that of camera 0;
    `points_to_world` is Tr^-1 pose Tr, whose world is the velodyne of the sequence's first scan.

    Scan and images are of one trigger, so the transform between them is the calibration alone. The points are those of
    KITTI odometry, whose scans were corrected for the vehicle's motion during the turn.

    Raises DataError if a folder, the label or the image of a scan, or the calibration of an image is missing;
    InputError on a bad option.
    """

    name = "semantickitti"
    LAYOUT = "SemanticKITTI needs sequences/NN/velodyne below it"
    OPTIONS: ClassVar = {"split": str, "sequences": names, "cameras": names, "sweeps": int}
    NUMBERED = True
    label_spec = SEMANTICKITTI

    def __init__(
        self,
        root: Path | str,
        *,
        split: str | None = None,
        sequences: tuple[str, ...] | None = None,
        cameras: tuple[str, ...] | None = None,
        sweeps: int = 0,
    ) -> None:
        root = require_folder(Path(root).expanduser(), self.LAYOUT)
        if sweeps < 0:
            raise InputError(f"sweeps={sweeps}: give the number of earlier scans, 0 or more")
        folder = root / "dataset" / "sequences" if (root / "dataset").is_dir() else root / "sequences"
        require_folder(folder, self.LAYOUT)
        self._sweeps = sweeps
        self._frames: list[tuple[_Sequence, int]] = []
        self._orphans: list[tuple[Path, Path]] = []
        for number in _chosen(folder, split, sequences):
            sequence = _Sequence.open(folder / number, cameras)
            if sweeps:
                sequence.require_poses_and_times()
            self._frames.extend((sequence, place) for place in range(len(sequence.numbers)))
            self._orphans += sequence.orphans
        require_unique(self.ids(), str(folder))

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return any(root.glob("sequences/*/velodyne")) or any(root.glob("dataset/sequences/*/velodyne"))

    def __len__(self) -> int:
        return len(self._frames)

    def ids(self) -> list[str]:
        return [sequence.id(place) for sequence, place in self._frames]

    def orphans(self) -> list[tuple[Path, Path]]:
        return self._orphans

    def __getitem__(self, index: int) -> Frame:
        sequence, place = self._frames[index]
        number = sequence.numbers[place]
        scan = sequence.scans[number]
        label = sequence.labels.get(number)
        return Frame(
            id=sequence.id(place),
            scene=sequence.folder.name,
            cameras=sequence.cameras(number),
            points_path=scan,
            dataset=self.name,
            read=read_kitti_points,
            timestamp=sequence.seconds(number),
            points_to_world=sequence.points_to_world(number),
            read_labels=None if label is None else partial(read_point_labels, label, scan, SEMANTICKITTI),
            sweeps=sequence.sweeps(place, self._sweeps),
        )


@dataclass(frozen=True, eq=False)
class _Sequence:
    folder: Path
    scans: dict[int, Path]
    numbers: list[int]
    labels: dict[int, Path]
    images: dict[str, dict[int, Path]]
    projections: dict[str, Matrix]  # of each camera [3, 4]
    velo_to_camera: Matrix | None  # Tr [4, 4]
    poses: Matrix | None  # of camera 0 [F, 4, 4]
    times: Matrix | None  # [F, 1]
    orphans: list[tuple[Path, Path]]  # label or image, scan

    @classmethod
    def open(cls, folder: Path, cameras: tuple[str, ...] | None) -> _Sequence:
        scans = frame_files(require_folder(folder / "velodyne", SemanticKitti.LAYOUT), (".bin",))
        wanted = wanted_cameras(cameras, [name for name in CAMERAS if (folder / name).is_dir()], str(folder))
        calibration = folder / "calib.txt"
        values = read_calibration(calibration) if calibration.is_file() or wanted else None
        poses, times = folder / "poses.txt", folder / "times.txt"
        labels = frame_files(folder / "labels", (".label",)) if (folder / "labels").is_dir() else None
        images = {name: frame_files(folder / name, IMAGE_SUFFIXES) for name in wanted}
        return cls(
            folder=folder,
            scans=scans,
            numbers=sorted(scans),
            labels={} if labels is None else _partners(labels, folder / "labels", ".label", scans),
            images={name: _partners(files, folder / name, ".png", scans) for name, files in images.items()},
            projections={name: projection_entry(values or {}, CAMERAS[name], calibration) for name in wanted},
            velo_to_camera=None if values is None else rigid_entry(values, "Tr", calibration),
            poses=read_poses(poses) if poses.is_file() else None,
            times=read_numbers(times, 1, "times") if times.is_file() else None,
            orphans=without_scan(scans, [*([] if labels is None else [labels]), *images.values()]),
        )

    def id(self, place: int) -> str:
        return f"{self.folder.name}_{self.scans[self.numbers[place]].stem}"

    def cameras(self, number: int) -> tuple[Camera, ...]:
        if self.velo_to_camera is None:
            return ()
        return tuple(
            kitti_camera(
                images[number],
                projection=self.projections[name],
                velo_to_rectified=self.velo_to_camera,
                name=name,
                timestamp=self.seconds(number),
            )
            for name, images in self.images.items()
        )

    def seconds(self, number: int) -> float | None:
        return None if self.times is None else float(of_frame(self.times, number, self.folder / "times.txt")[0])

    def points_to_world(self, number: int) -> Matrix | None:
        if self.poses is None or self.velo_to_camera is None:
            return None
        pose = of_frame(self.poses, number, self.folder / "poses.txt")
        moved: Matrix = inverse(self.velo_to_camera) @ pose @ self.velo_to_camera
        return moved

    def require_poses_and_times(self) -> None:
        if self.poses is None or self.velo_to_camera is None or self.times is None:
            lacks = [name for name in ("calib.txt", "poses.txt", "times.txt") if not (self.folder / name).is_file()]
            raise DataError(f"{self.folder}: sweeps need {', '.join(lacks)}; download it, or leave sweeps out")

    def sweeps(self, place: int, count: int) -> tuple[Sweep, ...]:
        number = self.numbers[place]
        pose, now = self.points_to_world(number), self.seconds(number)
        if not count or pose is None or now is None:
            return ()
        back = inverse(pose)
        earlier: list[Sweep] = []
        for before in reversed(self.numbers[max(0, place - count) : place]):
            then_pose, then = self.points_to_world(before), self.seconds(before)
            if then_pose is not None and then is not None:
                earlier.append(Sweep(self.scans[before], back @ then_pose, then - now))
        return tuple(earlier)


def _partners(files: dict[int, Path], folder: Path, suffix: str, scans: dict[int, Path]) -> dict[int, Path]:
    return {n: partner(files, n, folder, suffix, scan) for n, scan in scans.items()}


def _chosen(folder: Path, split: str | None, sequences: tuple[str, ...] | None) -> list[str]:
    """Names of the sequences to read, in order."""
    there = sorted(path.name for path in folder.iterdir() if (path / "velodyne").is_dir())
    if split is not None and sequences is not None:
        raise InputError(f"split={split} and sequences={','.join(sequences)}: give one of the two")
    if split is not None and split not in SPLITS:
        raise InputError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    if split is not None:
        wanted = [name for name in SPLITS[split] if name in there]
        missing = [name for name in SPLITS[split] if name not in there]
        if missing and wanted:
            _LOG.warning(
                "%s: split %s without the sequences %s, which are not there", folder, split, ", ".join(missing)
            )
    else:
        wanted = there if sequences is None else list(sequences)
        missing = [name for name in wanted if name not in there]
    if not wanted or (missing and split is None):
        raise DataError(
            f"{folder} lacks the sequence {', '.join(missing) or 'NN/velodyne'} (there: {', '.join(there) or 'none'}); "
            "download it, or name those you want with sequences="
        )
    return wanted
