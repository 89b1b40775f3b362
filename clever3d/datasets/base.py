"""What every data set gives: frames with points, cameras, labels, boxes and poses, each read when asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from clever3d.datasets.boxes import Boxes
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, apply
from clever3d.datasets.labels import LabelSpec, PointLabels
from clever3d.errors import DataError
from clever3d.io import PointCloud

#: Points of earlier sweeps this near to their own sensor, in x and in y, are left out when sweeps are accumulated:
#: they lie on the vehicle, which has moved since (metres; nuscenes-devkit's LidarPointCloud.from_file_multisweep).
NEAR = 1.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """An earlier scan of the same sensor: its file, and the way from its points to those of the frame.

    to_frame [4, 4]: float64, from the sweep's points (FLU at its time) to the frame's, the ego motion included.
    seconds: its timestamp minus the frame's: negative for an earlier one.
    read: makes its points from the file, where that differs from the frame's way (one file that holds many scans).
    """

    points_path: Path
    to_frame: Matrix
    seconds: float
    read: Callable[[Path], PointCloud] | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """One scan with the cameras that saw the same moment. Nothing is decoded before it is asked for.

    id: unique in its data set. scene: the recording the frame belongs to: split train from test by scene, never inside.
    cameras: empty where the data set, or this copy of it, has no images.
    read: makes the points from the file. It, `read_labels` and `read_boxes` are module-level functions or partials of
    them, so that a frame can be pickled; the latter two are None where there are no labels or boxes.
    timestamp: of the scan, in seconds (on the data set's clock), or None.
    points_to_world [4, 4]: the ego pose, from this frame's points to axes that stay fixed for the whole scene, or None.
    sweeps: earlier scans, the latest first; only where the data set was opened with `sweeps=`.
    """

    id: str
    scene: str
    cameras: tuple[Camera, ...]
    points_path: Path
    dataset: str
    read: Callable[[Path], PointCloud]
    timestamp: float | None = None
    points_to_world: Matrix | None = None
    read_labels: Callable[[], PointLabels] | None = None
    read_boxes: Callable[[], Boxes] | None = None
    sweeps: tuple[Sweep, ...] = ()

    def points(self) -> PointCloud:
        """The points: FLU sensor axes, metres, float32 [N, 3]; intensity in [0, 1] or None.

        Raises DataError if the file is missing or truncated.
        """
        return self._read(self.points_path)

    def labels(self) -> PointLabels | None:
        """One label a point, in the points' order; None where the data set has none.

        Raises DataError if the file is missing, truncated, or of another length than the scan.
        """
        return None if self.read_labels is None else self.read_labels()

    def boxes(self) -> Boxes | None:
        """The annotated boxes in the points' axes; None where the data set has none. Raises DataError."""
        return None if self.read_boxes is None else self.read_boxes()

    def accumulated(self) -> PointCloud:
        """The points of this scan, then those of `sweeps` moved into its axes, with `time` [N] (seconds, <= 0).

        Points within NEAR of the vehicle, and those not finite, are left out of the earlier sweeps. Labels belong to
        the first rows only.
        """
        own = self.points()
        clouds, times = [own], [np.zeros(len(own.xyz), dtype=np.float32)]
        for sweep in self.sweeps:
            cloud = self._read(sweep.points_path, sweep.read)
            kept = (np.abs(cloud.xyz[:, :2]) >= NEAR).any(axis=1) & np.isfinite(cloud.xyz).all(axis=1)
            xyz = apply(sweep.to_frame, cloud.xyz[kept]).astype(np.float32)
            intensity = None if cloud.intensity is None else cloud.intensity[kept]
            clouds.append(replace(cloud, xyz=xyz, intensity=intensity))
            times.append(np.full(len(xyz), sweep.seconds, dtype=np.float32))
        intensities = [cloud.intensity for cloud in clouds if cloud.intensity is not None]
        return PointCloud(
            xyz=np.concatenate([cloud.xyz for cloud in clouds]),
            intensity=np.concatenate(intensities) if len(intensities) == len(clouds) else None,
            source=f"{own.source}; {len(clouds)} sweeps",
            time=np.concatenate(times),
        )

    def _read(self, path: Path, read: Callable[[Path], PointCloud] | None = None) -> PointCloud:
        if not path.is_file():
            raise DataError(f"{path} does not exist; the {self.dataset} download is incomplete")
        return (read or self.read)(path)


class Dataset(ABC):
    """A sequence of frames, in a fixed order. `data[3]`, `len(data)` and `for frame in data` read no points.

    name: as in `open_dataset("NAME:PATH")`. LAYOUT: the folders that it needs, in words. OPTIONS: what may follow
    the path, `NAME:PATH#key=value&key=value`, and how each value is made from text; the keys are keyword arguments of
    the constructor. label_spec: what its point labels mean, None where it has none. NUMBERED: the names of the scans
    count the frames of a scene, so that a number left out is a frame left out. LONE_FILES_ARE_USUAL: the data set was
    published with images that have no scan.
    """

    name: str
    LAYOUT: ClassVar[str]
    OPTIONS: ClassVar[Mapping[str, Callable[[str], Any]]] = {}
    NUMBERED: ClassVar[bool] = False
    LONE_FILES_ARE_USUAL: ClassVar[bool] = False
    label_spec: LabelSpec | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Frame: ...

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def ids(self) -> list[str]:
        """The ids of all frames, in order. A data set that knows them without making frames overrides this."""
        return [frame.id for frame in self]

    def orphans(self) -> Iterable[tuple[Path, Path]]:
        """(file, scan) of each frame whose scan is not there though another file of it is. By default none."""
        return ()

    @classmethod
    @abstractmethod
    def looks_like(cls, root: Path) -> bool:
        """Whether the folder `root` has this layout: looks at names only, and is quick."""


_gaps_allowed: ContextVar[bool] = ContextVar("gaps_allowed", default=False)


@contextmanager
def gaps_allowed() -> Iterator[None]:
    """A data set opened in this block may lack files of single frames: each such frame fails when it is read.

    Outside, its reader names the first missing file and opens nothing. For the check that lists them all.
    """
    token = _gaps_allowed.set(True)
    try:
        yield
    finally:
        _gaps_allowed.reset(token)


def gaps_are_allowed() -> bool:
    """Whether the caller runs inside `gaps_allowed`."""
    return _gaps_allowed.get()


def require_folder(path: Path, what: str) -> Path:
    """`path` if it is a folder; else a DataError that says which folder `what` needs."""
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"{path} {state}; {what}")
    return path


def require_unique(ids: Iterable[str], where: str) -> None:
    """Raises DataError, beginning with `where`, if two frames have one id."""
    seen: set[str] = set()
    for frame_id in ids:
        if frame_id in seen:
            raise DataError(f"{where}: two frames have the id {frame_id!r}; remove one of them")
        seen.add(frame_id)


def wanted_cameras(wanted: tuple[str, ...] | None, known: Iterable[str], where: str) -> tuple[str, ...]:
    """`wanted` camera names in the order given, or all `known` ones for None.

    Raises DataError, beginning with `where`, for a name that the data set does not have.
    """
    known = tuple(known)
    for name in wanted or ():
        if name not in known:
            raise DataError(f"{where}: there is no camera {name!r}; it has {', '.join(known) or 'none'}")
    return known if wanted is None else wanted


def names(text: str) -> tuple[str, ...]:
    """The names in `a,b,c`: a value of OPTIONS."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
