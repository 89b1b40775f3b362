"""Waymo Open Dataset, perception, version 2 (Parquet): {training,validation,testing}/COMPONENT/SEGMENT.parquet.

Source of the layout, axes and formulas: waymo-research/waymo-open-dataset, `src/waymo_open_dataset/v2` (components and
their columns), `dataset.proto` and `wdl_limited/camera/camera_model.cc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.arrow import read_parquet, read_parquet_row, stack, table_columns
from clever3d.datasets.base import Dataset, Frame, Sweep, names, require_folder, require_unique, wanted_cameras
from clever3d.datasets.boxes import Boxes
from clever3d.datasets.geometry import Matrix, inverse, rigid, rotation_about_z
from clever3d.datasets.labels import PointLabels
from clever3d.datasets.waymo_images import image_folder
from clever3d.datasets.waymo_labels import BOX_TYPES, WAYMO
from clever3d.datasets.waymo_range_image import Laser, to_vehicle
from clever3d.datasets.waymo_segment import CAMERAS, TIME, Segment
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud

_RETURN = "range_image_return1"


class Waymo(Dataset):
    """Waymo frames (10 Hz, about 199 a segment): the points of the TOP LiDAR, with five cameras.

    A scene is a segment; the id is SEGMENT_TIMESTAMP (microseconds). No real file but a `vehicle_pose` table was at
    hand when this was written: it was checked against the published code (see docs/data.md).

    root: the folder of the splits, or of the components (`lidar`, `vehicle_pose`, ...) of one split.
    split: only this folder. cameras: only these (FRONT, FRONT_LEFT, FRONT_RIGHT, SIDE_LEFT, SIDE_RIGHT), in this order.
    sweeps: how many earlier frames of the segment each frame has. images: the folder for the images, see below
    (an argument only: an option after `#` cannot hold a path; CLEVER3D_CACHE does the same).

    **Components.** Needed: vehicle_pose, lidar, lidar_calibration. With camera_image and camera_calibration there are
    cameras, with lidar_box boxes, with lidar_segmentation labels (a few frames a segment). lidar_pose corrects the
    points for the vehicle's motion during the turn; without that folder they are smeared by it, and `source` says so.

    **Points.** The first return, row by row of the range image; in the vehicle's directions (FLU) with the TOP
    LiDAR's place as origin (the ground, about the vehicle's z = 0, is then about 2.2 m below). Waymo's intensity has no
    upper bound: it is put through tanh, as OpenPCDet's and MMDetection3D's Waymo readers do.

    **Images** lie inside the Parquet files. The first time that a frame is asked for, its images are copied, byte for
    byte, into `images` (default: `waymo` in CLEVER3D_CACHE or in the user's cache folder), with all others in the same
    row group of the file. This takes as much room again as the images, and happens once. `cameras` names those that
    are copied. The images are distorted; the model is OpenCV's. The cameras have rolling shutters: a camera's pose is
    that of the middle of its image, so towards the edges it is off by the vehicle's motion in half the readout.

    **Cost.** A Parquet file is decoded by row groups: of the columns needed only, and up to the row needed. Files with
    few rows a group, sorted by sensor, are much faster to read in random order (waymo-open-dataset issue #841).

    Raises DataError if a component is missing or damaged, MissingExtraError without pyarrow.
    """

    name = "waymo"
    LAYOUT = "Waymo v2 needs vehicle_pose/, lidar/ and lidar_calibration/ with SEGMENT.parquet, in training, validation"
    OPTIONS: ClassVar = {"split": str, "cameras": names, "sweeps": int}
    label_spec = WAYMO

    def __init__(
        self,
        root: Path | str,
        *,
        split: str | None = None,
        cameras: tuple[str, ...] | None = None,
        sweeps: int = 0,
        images: Path | str | None = None,
    ) -> None:
        root = require_folder(Path(root).expanduser(), self.LAYOUT)
        if sweeps < 0:
            raise InputError(f"sweeps={sweeps}: give the number of earlier sweeps, 0 or more")
        self._cameras = wanted_cameras(cameras, CAMERAS.values(), str(root))
        self._sweeps = sweeps
        cache = image_folder() if images is None else Path(images).expanduser()
        self._segments = [Segment(folder, name, cache) for folder, name in _segments(root, split, self.LAYOUT)]
        self._frames = [
            (n, position) for n, segment in enumerate(self._segments) for position in range(len(segment.times))
        ]
        require_unique(self.ids(), f"{root}: vehicle_pose")

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        folders = (root, *(root / split for split in ("training", "validation", "testing")))
        return any((folder / "vehicle_pose").is_dir() and (folder / "lidar").is_dir() for folder in folders)

    def __len__(self) -> int:
        return len(self._frames)

    def ids(self) -> list[str]:
        return [f"{self._segments[n].name}_{self._segments[n].times[position]}" for n, position in self._frames]

    def __getitem__(self, index: int) -> Frame:
        number, position = self._frames[index]
        segment = self._segments[number]
        time = segment.times[position]
        scan = top_scan(segment, position)
        points_to_world = scan.vehicle_to_world @ scan.shift
        world_to_points = inverse(points_to_world)
        read_boxes = read_labels = None
        if segment.table("lidar_box").is_file():
            read_boxes = partial(read_waymo_boxes, segment.table("lidar_box"), time, scan)
        if (row := segment.row("lidar_segmentation", time)) is not None:
            read_labels = partial(read_waymo_labels, segment.table("lidar_segmentation"), row, scan)
        earlier = range(position - 1, max(-1, position - 1 - self._sweeps), -1)
        return Frame(
            id=f"{segment.name}_{time}",
            scene=segment.name,
            cameras=tuple(segment.cameras(time, points_to_world, self._cameras)),
            points_path=scan.path,
            dataset=self.name,
            read=partial(read_waymo_points, scan=scan),
            timestamp=time * 1e-6,
            points_to_world=points_to_world,
            read_labels=read_labels,
            read_boxes=read_boxes,
            sweeps=tuple(
                _sweep(top_scan(segment, before), world_to_points, (segment.times[before] - time) * 1e-6)
                for before in earlier
            ),
        )


@dataclass(frozen=True, eq=False)
class TopScan:
    """Where the range image of one frame is, and what makes points of it.

    path, row: in the lidar component. pose_path, pose_row: in lidar_pose, or None. vehicle_to_world [4, 4]: at the
    frame's time.
    """

    path: Path
    row: int
    pose_path: Path | None
    pose_row: int
    laser: Laser
    vehicle_to_world: Matrix

    @property
    def shift(self) -> Matrix:
        """From the points' axes to the vehicle's [4, 4]: the LiDAR's place, without its turn."""
        return rigid(np.eye(3), self.laser.extrinsic[:3, 3])


def top_scan(segment: Segment, position: int) -> TopScan:
    """The scan of frame number `position` of a segment. Raises DataError if a component lacks it."""
    time = segment.times[position]
    row = segment.row("lidar", time)
    if row is None:
        raise DataError(f"{segment.table('lidar')} has no range image of laser TOP at {TIME} {time}; download it again")
    pose_path: Path | None = segment.table("lidar_pose")
    pose_row = None
    if (segment.folder / "lidar_pose").is_dir():
        pose_row = segment.row("lidar_pose", time)
        if pose_row is None:
            raise DataError(f"{pose_path} has no poses of laser TOP at {TIME} {time}; download it again")
    return TopScan(
        path=segment.table("lidar"),
        row=row,
        pose_path=None if pose_row is None else pose_path,
        pose_row=pose_row or 0,
        laser=segment.laser,
        vehicle_to_world=segment.vehicle_to_world(position),
    )


def read_waymo_points(path: Path, scan: TopScan) -> PointCloud:
    """The points of a TOP range image's first return; see the class."""
    image = _range_image(path, scan.row, f"[LiDARComponent].{_RETURN}", 4)
    poses = None
    if scan.pose_path is not None:
        poses = _range_image(scan.pose_path, scan.pose_row, f"[LiDARPoseComponent].{_RETURN}", 6)
        if poses.shape[:2] != image.shape[:2]:
            raise DataError(f"{scan.pose_path}: poses {poses.shape} for a range image {image.shape}; download it again")
    if scan.laser.inclinations is not None and len(scan.laser.inclinations) != len(image):
        raise DataError(
            f"{path}: {len(image)} rows of range image for {len(scan.laser.inclinations)} beams of lidar_calibration"
        )
    vehicle = to_vehicle(image[..., 0], scan.laser, poses, scan.vehicle_to_world)
    how = "moved with lidar_pose" if poses is not None else "without lidar_pose: smeared by the vehicle's motion"
    return PointCloud(
        xyz=(vehicle - scan.shift[:3, 3]).astype(np.float32),
        intensity=np.tanh(np.maximum(image[..., 1][image[..., 0] > 0], 0)).astype(np.float32),
        source=f"Waymo v2 range image of TOP, first return, {how}; intensity through tanh",
    )


def read_waymo_labels(path: Path, row: int, scan: TopScan) -> PointLabels:
    """The class and instance of each point that `read_waymo_points` gives."""
    labels = _range_image(path, row, f"[LiDARSegmentationLabelComponent].{_RETURN}", 2)
    image = _range_image(scan.path, scan.row, f"[LiDARComponent].{_RETURN}", 4)
    if labels.shape[:2] != image.shape[:2]:
        raise DataError(
            f"{path} has labels for {labels.shape[0]} x {labels.shape[1]} pixels, but the range image in {scan.path} "
            f"has {image.shape[0]} x {image.shape[1]}; download them again"
        )
    instance, semantic = labels[image[..., 0] > 0].T.astype(np.int32)
    return PointLabels(semantic, WAYMO, instance, str(path))


def read_waymo_boxes(path: Path, time: int, scan: TopScan) -> Boxes:
    """The boxes of one frame, of all LiDARs; num_points counts those of TOP. Speeds are along the world's axes
    (waymo-open-dataset issue #39)."""
    prefix = "[LiDARBoxComponent]"
    flat = [f"{prefix}.box.{what}.{axis}" for what in ("center", "size") for axis in "xyz"]
    flat += [f"{prefix}.box.heading", f"{prefix}.type", TIME]
    optional = [f"{prefix}.speed.{axis}" for axis in "xyz"] + [f"{prefix}.num_top_lidar_points_in_box"]
    table = read_parquet(path, [*flat, *optional, "key.laser_object_id"], "the boxes need")
    here = np.flatnonzero(table[TIME].to_numpy() == time)
    table = table.take(here)
    columns = table_columns(table, [*flat, "key.laser_object_id"], path)
    kinds = columns[f"{prefix}.type"].tolist()
    if unknown := sorted(set(kinds) - set(BOX_TYPES)):
        raise DataError(f"{path}: {prefix}.type has {unknown}, known are {sorted(BOX_TYPES)}; download it again")
    to_points = inverse(scan.vehicle_to_world)[:3, :3]
    *speeds, counts = (_optional(table[column]) for column in optional)  # [B], NaN where unknown
    return Boxes(
        centers=stack(columns, flat[:3]) - scan.shift[:3, 3],
        sizes=stack(columns, flat[3:6]),
        rotations=np.array([rotation_about_z(yaw) for yaw in columns[flat[6]]]).reshape(-1, 3, 3),
        names=tuple(BOX_TYPES[kind] for kind in kinds),
        velocities=np.stack(speeds, axis=1) @ to_points.T,
        track_ids=tuple(map(str, columns["key.laser_object_id"].tolist())),
        num_points=counts.astype(np.int64) if np.isfinite(counts).all() else None,
    )


def _optional(column: Any) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in column.to_pylist()], dtype=np.float64)


def _sweep(scan: TopScan, world_to_points: Matrix, seconds: float) -> Sweep:
    to_frame = world_to_points @ scan.vehicle_to_world @ scan.shift
    return Sweep(scan.path, to_frame, seconds, partial(read_waymo_points, scan=scan))


def _range_image(path: Path, row: int, field: str, channels: int) -> NDArray[Any]:
    """[H, W, channels] of the columns `field`.values and `field`.shape."""
    cells = read_parquet_row(path, row, (f"{field}.values", f"{field}.shape"), "the points need")
    values, shape = cells[f"{field}.values"], cells[f"{field}.shape"]
    if not (isinstance(values, np.ndarray) and isinstance(shape, np.ndarray)):
        raise DataError(f"{path}: {field} of row {row} is empty or no list of numbers; download it again")
    if len(shape) != 3 or shape[2] != channels or values.size != np.prod(shape):
        raise DataError(
            f"{path}: {field} of row {row} has {values.size} values for the shape {shape.tolist()}, which should end "
            f"in {channels}; download it again"
        )
    image: NDArray[Any] = values.reshape(shape)
    return image


def _segments(root: Path, split: str | None, layout: str) -> list[tuple[Path, str]]:
    """The folder of the components and the name of each segment, by split and name."""
    folders = (
        [root] if (root / "vehicle_pose").is_dir() else sorted(path.parent for path in root.glob("*/vehicle_pose"))
    )
    if split is not None:
        known = [folder.resolve().name for folder in folders]
        folders = [folder for folder in folders if folder.resolve().name == split]
        if not folders:
            raise DataError(f"{root} has no split {split!r} (it has: {', '.join(known) or 'none'})")
    found = [
        (folder, path.stem)
        for folder in folders
        for path in sorted((folder / "vehicle_pose").glob("*.parquet"))
        if not path.name.startswith(".")
    ]
    if not found:
        raise DataError(f"{root} holds no vehicle_pose/*.parquet; {layout}")
    return found
