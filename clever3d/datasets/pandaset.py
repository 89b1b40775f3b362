"""PandaSet: NNN/{lidar,camera,annotations} of one sequence each.

Source of the layout, axes and transforms: scaleapi/pandaset-devkit (README.md, `python/pandaset/{sensors,annotations,
geometry}.py`, `docs/static_extrinsic_calibration.yaml`) and Xiao et al., "PandaSet" (ITSC 2021).
"""

from __future__ import annotations

import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.base import Dataset, Frame, Sweep, names, require_folder, require_unique, wanted_cameras
from clever3d.datasets.boxes import Boxes
from clever3d.datasets.camera import Camera
from clever3d.datasets.frame_pickle import read_frame_pickle
from clever3d.datasets.geometry import Matrix, apply, inverse, quaternion_to_rotation, rigid, rotation_about_z
from clever3d.datasets.labels import PointLabels
from clever3d.datasets.pandaset_labels import PANDASET
from clever3d.datasets.velocity import Sighting, central_velocities
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud

CAMERAS = ("front_camera", "front_left_camera", "front_right_camera", "left_camera", "right_camera", "back_camera")
#: Which points of a frame, by the column `d`: the turning LiDAR, the one that looks ahead, or all.
LIDARS: dict[str, tuple[int, ...]] = {"pandar64": (0,), "pandargt": (1,), "both": (0, 1)}

#: From the points' axes (FLU, origin in the Pandar64) to those of `lidar/poses.json`, which are the vehicle's: x right,
#: y forward, z up, origin between the rear wheels 0.34 m above the road. The data set has no file with the place of
#: the Pandar64; (0.000, 0.807, 1.850) is camera pose * LiDAR-to-camera of the devkit's static calibration, brought to
#: the vehicle's axes at the image's time: the mean of six cameras over 79 frames of sequence 002, which agree within
#: 2 mm sideways and ahead and 2 cm in height. The Pandar64's own axes look backwards, turned by 1.8 degrees and
#: tilted by 0.9; the points keep the vehicle's directions.
POINTS_TO_EGO = rigid([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0.0, 0.807, 1.850])


class PandaSet(Dataset):
    """PandaSet frames (10 Hz, 80 a sequence) with six cameras. A scene is a sequence; the id is SEQUENCE_FRAME.

    root: the folder of the sequences (001, 002, ...), or one sequence. cameras: only these, in this order.
    lidar: whose points, `pandar64` (turning, the default), `pandargt` (ahead, 60 degrees wide) or `both`; the axes and
    the origin are the same for all three: the vehicle's directions (FLU) and the place of the Pandar64, with the road
    at about z = -2.2 m. sweeps: how many earlier frames of the sequence each frame has.

    The files have points and cuboids in world axes; poses bring them back. A frame's timestamp is the end of the
    Pandar64's turn (point times in sequence 002: -0.101 to 0.002 s from it), the images lie 20 to 100 ms before; their
    poses are those of their own times. Images are published undistorted (range edges of sequence 002 lie on image
    edges without the devkit's coefficients, and beside them with these); a copy without `camera` has frames without
    cameras. Where an object that moves has one cuboid for each LiDAR (`cuboids.sensor_id`), the other LiDAR's is left
    out, except for `both`. Not every sequence has labels.

    The tables are pickles; they are read by `frame_pickle`, which runs nothing of them, and need no pandas.

    Raises DataError if a folder, an image or a pose is missing or damaged, InputError for an unknown `lidar`.
    """

    name = "pandaset"
    LAYOUT = "PandaSet needs sequence folders (001, 002, ...) with lidar/*.pkl.gz and lidar/poses.json"
    OPTIONS: ClassVar = {"lidar": str, "cameras": names, "sweeps": int}
    label_spec = PANDASET

    def __init__(
        self,
        root: Path | str,
        *,
        lidar: str = "pandar64",
        cameras: tuple[str, ...] | None = None,
        sweeps: int = 0,
    ) -> None:
        root = require_folder(Path(root).expanduser(), self.LAYOUT)
        if lidar not in LIDARS:
            raise InputError(f"lidar={lidar!r}: choose one of {', '.join(LIDARS)}")
        if sweeps < 0:
            raise InputError(f"sweeps={sweeps}: give the number of earlier sweeps, 0 or more")
        folders = [root] if (root / "lidar").is_dir() else sorted(path.parent for path in root.glob("*/lidar"))
        if not folders:
            raise DataError(f"{root} holds no sequence; {self.LAYOUT}")
        self._lidar = lidar
        self._sweeps = sweeps
        self._cameras = cameras
        self._sequences = [_Sequence(folder) for folder in folders]
        self._frames = [
            (n, position) for n, sequence in enumerate(self._sequences) for position in range(len(sequence.scans))
        ]
        require_unique(self.ids(), str(root))

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        below = ("camera/front_camera", "annotations/cuboids", "meta")
        folders = [path.parents[1] for path in (*root.glob("lidar/poses.json"), *root.glob("*/lidar/poses.json"))]
        return any((folder / name).is_dir() for folder in folders[:1] for name in below)

    def __len__(self) -> int:
        return len(self._frames)

    def ids(self) -> list[str]:
        return [_frame_id(self._sequences[n], self._sequences[n].scans[p]) for n, p in self._frames]

    def __getitem__(self, index: int) -> Frame:
        number, position = self._frames[index]
        sequence = self._sequences[number]
        scan = sequence.scans[position]
        frame = _number(scan)
        points_to_world = sequence.lidar.pose(frame) @ POINTS_TO_EGO
        world_to_points = inverse(points_to_world)
        timestamp = sequence.lidar.timestamp(frame)
        earlier = sequence.scans[max(0, position - self._sweeps) : position][::-1]
        sensors = LIDARS[self._lidar]
        semseg = sequence.folder / "annotations" / "semseg" / scan.name
        cuboids = sequence.folder / "annotations" / "cuboids" / scan.name
        return Frame(
            id=_frame_id(sequence, scan),
            scene=sequence.name,
            cameras=tuple(sequence.cameras(frame, points_to_world, self._cameras)),
            points_path=scan,
            dataset=self.name,
            read=partial(read_pandaset_points, sensors=sensors),
            timestamp=timestamp,
            points_to_world=points_to_world,
            read_labels=partial(read_pandaset_labels, semseg, scan, sensors) if semseg.is_file() else None,
            read_boxes=partial(read_pandaset_boxes, cuboids, scan, sensors) if cuboids.is_file() else None,
            sweeps=tuple(
                Sweep(
                    path,
                    world_to_points @ sequence.lidar.pose(_number(path)) @ POINTS_TO_EGO,
                    sequence.lidar.timestamp(_number(path)) - timestamp,
                )
                for path in earlier
            ),
        )


def read_pandaset_points(path: Path, sensors: tuple[int, ...]) -> PointCloud:
    """The points of `sensors` (values of the column d) of one frame, from world axes to the axes of the class."""
    columns = read_frame_pickle(path, ("x", "y", "z", "i", "d"))
    rows = np.isin(columns["d"], sensors)
    world = np.stack([columns[axis][rows] for axis in "xyz"], axis=1).astype(np.float64)  # [N, 3]
    world_to_points = inverse(_Track(path.parent).pose(_number(path)) @ POINTS_TO_EGO)
    return PointCloud(
        xyz=apply(world_to_points, world).astype(np.float32),
        intensity=columns["i"][rows].astype(np.float32) / np.float32(255),
        source="PandaSet: x y z i t d in world axes, brought to the Pandar64 by lidar/poses.json; intensity / 255",
    )


def read_pandaset_labels(path: Path, scan: Path, sensors: tuple[int, ...]) -> PointLabels:
    """The class of each point that `read_pandaset_points` gives; the file has those of both LiDARs."""
    classes = read_frame_pickle(path, ("class",))["class"]
    sensor = read_frame_pickle(scan, ("d",))["d"]
    if len(classes) != len(sensor):
        raise DataError(f"{path} has {len(classes)} labels, but {scan} has {len(sensor)} points; download them again")
    return PointLabels(classes[np.isin(sensor, sensors)].astype(np.int32), PANDASET, path=str(path))


def read_pandaset_boxes(path: Path, scan: Path, sensors: tuple[int, ...]) -> Boxes:
    """The cuboids of one frame, in the axes of the points. Yaw 0 looks along the world's +y; x is the width."""
    number = _number(scan)
    track = _Track(scan.parent)
    world_to_points = inverse(track.pose(number) @ POINTS_TO_EGO)
    table = _cuboids(path)
    rows = np.isin(table["cuboids.sensor_id"], (-1, *sensors))
    table = {column: values[rows] for column, values in table.items()}
    yaws = table["yaw"].astype(np.float64) + np.pi / 2
    upright = np.array([rotation_about_z(yaw) for yaw in yaws]).reshape(-1, 3, 3)
    tracks = tuple(map(str, table["uuid"].tolist()))
    before, after = (_sightings(path, track, number, step) for step in (-1, 1))
    return Boxes(
        centers=apply(world_to_points, _triple(table, "position")),
        sizes=_triple(table, "dimensions")[:, [1, 0, 2]],
        rotations=world_to_points[:3, :3] @ upright,
        names=tuple(map(str, table["label"].tolist())),
        velocities=central_velocities(tracks, before, after, world_to_points),
        track_ids=tracks,
    )


def _cuboids(path: Path) -> dict[str, NDArray[Any]]:
    columns = [f"{what}.{axis}" for what in ("position", "dimensions") for axis in "xyz"]
    return read_frame_pickle(path, ("uuid", "label", "yaw", "cuboids.sensor_id", *columns))


def _triple(table: dict[str, NDArray[Any]], what: str) -> Matrix:
    return np.stack([table[f"{what}.{axis}"] for axis in "xyz"], axis=1).astype(np.float64)


def _sightings(path: Path, track: _Track, number: int, step: int) -> dict[str, Sighting]:
    """Where everything is in the frame before (`step` -1) or after `number`; nothing where there is no such frame."""
    neighbour = path.with_name(f"{number + step:02d}.pkl.gz")
    if not neighbour.is_file():
        return {}
    table = _cuboids(neighbour)
    seconds = track.timestamp(number + step)
    return {
        str(uuid): (center, seconds) for uuid, center in zip(table["uuid"], _triple(table, "position"), strict=True)
    }


class _Track:
    """The poses and timestamps of one sensor's folder, by frame number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _poses(self) -> list[Any]:
        return _json_list(self._folder / "poses.json")

    @cached_property
    def _timestamps(self) -> list[Any]:
        return _json_list(self._folder / "timestamps.json")

    def pose(self, number: int) -> Matrix:
        """Sensor axes -> world [4, 4]."""
        path = self._folder / "poses.json"
        entry = _entry(self._poses, number, path)
        try:
            heading = [entry["heading"][key] for key in "wxyz"]
            position = np.array([entry["position"][key] for key in "xyz"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: entry {number} has no heading w x y z or no position x y z; download it again"
            ) from error
        rotation = quaternion_to_rotation(heading, f"{path}: heading of entry {number}")
        if not np.isfinite(position).all():
            raise DataError(f"{path}: position of entry {number} is {position.tolist()}; download it again")
        return rigid(rotation, position)

    def timestamp(self, number: int) -> float:
        path = self._folder / "timestamps.json"
        entry = _entry(self._timestamps, number, path)
        if not isinstance(entry, (int, float)):
            raise DataError(f"{path}: entry {number} is {entry!r}, no time in seconds; download it again")
        return float(entry)


class _Sequence:
    """One sequence; its poses and intrinsics are read when its first frame is asked for, and kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name  # the root may be "."
        self.lidar = _Track(folder / "lidar")
        self.scans = sorted((folder / "lidar").glob("*.pkl.gz"), key=_number)
        if not self.scans:
            raise DataError(f"{folder / 'lidar'} holds no .pkl.gz frame; download the sequence again, or remove it")
        self._tracks: dict[str, _Track] = {}
        self._intrinsics: dict[str, Matrix] = {}

    @cached_property
    def _known(self) -> list[str]:
        camera = self.folder / "camera"
        found = {path.name for path in camera.iterdir() if path.is_dir()} if camera.is_dir() else set()
        return [*(name for name in CAMERAS if name in found), *sorted(found - set(CAMERAS))]

    def cameras(self, number: int, points_to_world: Matrix, wanted: tuple[str, ...] | None) -> list[Camera]:
        if not self._known:
            return []
        cameras = []
        for name in wanted_cameras(wanted, self._known, str(self.folder / "camera")):
            folder = self.folder / "camera" / name
            if name not in self._tracks:
                self._tracks[name], self._intrinsics[name] = _Track(folder), _intrinsics(folder / "intrinsics.json")
            image = folder / f"{number:02d}.jpg"
            if not image.is_file():
                raise DataError(f"{image} is missing, but its scan exists; download it, or leave the camera out")
            track = self._tracks[name]
            cameras.append(
                Camera(
                    name=name,
                    image_path=image,
                    intrinsics=self._intrinsics[name],
                    points_to_camera=inverse(track.pose(number)) @ points_to_world,
                    timestamp=track.timestamp(number),
                )
            )
        return cameras


def _frame_id(sequence: _Sequence, scan: Path) -> str:
    return f"{sequence.name}_{scan.name.removesuffix('.pkl.gz')}"


def _number(path: Path) -> int:
    """The frame number that a file NN.pkl.gz is named by."""
    stem = path.name.partition(".")[0]
    if not stem.isdecimal():
        raise DataError(f"{path}: the name is no frame number; keep only PandaSet's own files in {path.parent.name}")
    return int(stem)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); every sequence needs it") from error
    except ValueError as error:  # broken JSON, or no UTF-8
        raise DataError(f"{path} is no valid JSON ({error}); download it again") from error


def _json_list(path: Path) -> list[Any]:
    values = _json(path)
    if not isinstance(values, list):
        raise DataError(f"{path} is not a list with one entry a frame; download it again")
    return values


def _entry(values: list[Any], number: int, path: Path) -> Any:
    if number >= len(values):
        raise DataError(f"{path} has {len(values)} entries, none for frame {number}; download the sequence again")
    return values[number]


def _intrinsics(path: Path) -> Matrix:
    """K [3, 3] of {fx, fy, cx, cy}."""
    values = _json(path)
    try:
        fx, fy, cx, cy = (float(values[key]) for key in ("fx", "fy", "cx", "cy"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} has no numbers fx, fy, cx, cy; download it again") from error
    if not (np.isfinite([cx, cy]).all() and 0 < fx < np.inf and 0 < fy < np.inf):
        raise DataError(f"{path}: fx fy cx cy are {fx} {fy} {cx} {cy}; download it again")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
