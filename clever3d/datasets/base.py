"""What every data set gives: frames with lazy points, and cameras that project those points into their image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera of one frame.

    intrinsics [3, 3]: float64, in pixels of the image file, last row (0, 0, 1).
    points_to_camera [4, 4]: float64, from the frame's points (FLU, metres) to camera axes (x right, y down, z forward,
    metres). It already holds the sensor's motion between the two timestamps where the data set knows it.
    """

    name: str
    image_path: Path
    intrinsics: Matrix
    points_to_camera: Matrix

    def project(self, xyz: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
        """Pixels [N, 2] (u right, v down, float64) and depths [N] (metres) of points [N, 3] in the frame's axes.

        A point with depth <= 0 is behind the camera and has no pixel: its row is NaN, which fails every comparison.
        Pixels are not clipped to the image: the caller knows its size.

        Raises InputError if `xyz` is not [N, 3].
        """
        if xyz.ndim != 2 or xyz.shape[1] != 3:
            raise InputError(f"xyz has shape {tuple(xyz.shape)}; pass [N, 3], metres, in the frame's axes")
        rotation, translation = self.points_to_camera[:3, :3], self.points_to_camera[:3, 3]
        camera = xyz.astype(np.float64) @ rotation.T + translation  # [N, 3]
        image = camera @ self.intrinsics.T  # [N, 3] homogeneous
        depth = camera[:, 2]  # [N]
        pixels = np.full((len(xyz), 2), np.nan)
        ahead = depth > 0
        pixels[ahead] = image[ahead, :2] / depth[ahead, None]
        return pixels, depth


@dataclass(frozen=True, eq=False)
class Frame:
    """One scan with the cameras that saw the same moment. Nothing is decoded before it is asked for.

    `scene` names the recording the frame belongs to: split train from test by scene, never inside one.
    `read` makes the points from the file; a module-level function or a partial of one, so that a frame can be pickled.
    """

    id: str
    scene: str
    cameras: tuple[Camera, ...]
    points_path: Path
    dataset: str
    read: Callable[[Path], PointCloud]

    def points(self) -> PointCloud:
        """The points: FLU sensor axes, metres, float32 [N, 3]; intensity in [0, 1] or None.

        Raises DataError if the file is missing or truncated.
        """
        if not self.points_path.is_file():
            raise DataError(f"{self.points_path} does not exist; the {self.dataset} download is incomplete")
        return self.read(self.points_path)


class Dataset(Protocol):
    """A sequence of frames, in a fixed order. A class that derives from it needs no `__iter__` of its own."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))


def rigid(rotation: NDArray[np.floating], translation: NDArray[np.floating]) -> Matrix:
    """The 4x4 matrix [R t; 0 1] of a rotation [3, 3] and a translation [3]."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def require_folder(path: Path, what: str) -> Path:
    """`path` if it is a folder; else a DataError that says which folder `what` needs."""
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"{path} {state}; {what}")
    return path
