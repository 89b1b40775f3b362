"""nuScenes key frames: LIDAR_TOP, the six cameras, earlier sweeps, lidarseg labels and boxes.

Source of the transforms: nuscenes-devkit, docs/schema_nuscenes.md. A point goes
lidar -> ego (lidar time) -> global -> ego (camera time) -> camera.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from clever3d.datasets.base import Dataset, Frame, Sweep, names, require_folder, wanted_cameras
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, inverse, rigid
from clever3d.datasets.nuscenes_boxes import has_boxes, read_boxes
from clever3d.datasets.nuscenes_index import CAMERAS, CHANNELS, LIDAR, Index, open_index
from clever3d.datasets.nuscenes_labels import read_lidarseg, spec_of_tables
from clever3d.datasets.nuscenes_splits import scenes_of
from clever3d.datasets.nuscenes_tables import transforms
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud, read_bin

__all__ = ["CAMERAS", "FLU_TO_LIDAR", "LIDAR", "NuScenes", "read_nuscenes_points"]

# LIDAR_TOP's axes are x right, y forward, z up: lidar = FLU_TO_LIDAR @ flu
FLU_TO_LIDAR = rigid(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.zeros(3))


class NuScenes(Dataset):
    """nuScenes key frames (2 Hz). A scene is a nuScenes scene, its name `scene-0061`; the id is the sample's token.

    root: the folder that holds `samples` and the tables' folder `v1.0-*`.
    version: the tables' folder, needed only if there are several.
    split: train, val, test, mini_train, mini_val, train_detect, train_track; SLidR's parametrizing and verifying; or a
    split of one's own in `v1.0-*/splits.json`. None: all scenes. Scenes that the tables do not have are passed over.
    every: of the split's scenes, in the order of their table, only the `every`-th, the 2 `every`-th, ...: 100 with
    `train` is the 1 % of SLidR and of those who follow it; 20, 10 and 4 are 5, 10 and 25 % by the same rule.
    cameras: these channels, in this order; None: all six; () for a copy without images.
    sweeps: how many earlier sweeps of LIDAR_TOP (20 Hz, key frames among them) `Frame.sweeps` links; fewer at the
    beginning of a scene.

    Labels are nuScenes-lidarseg's, where its table is there. Boxes are those of all 23 categories; the first ones that
    are asked for take the time to read their table. Timestamps are LIDAR_TOP's and the cameras' own.
    No point is dropped: the few on the ego vehicle and at the origin are there as recorded.
    What is read from the tables is kept in the user's cache folder (see `index_cache`), so that the next time is quick.

    Raises DataError if a table is missing, is no JSON, lacks a column, or points to a row that does not exist, if no
    scene of the split is there, or a sample lacks a key frame; InputError for an unknown split.
    """

    name = "nuscenes"
    LAYOUT = "nuScenes needs a folder with samples/ and v1.0-*/ in it"
    OPTIONS: ClassVar = {"version": str, "split": str, "every": int, "cameras": names, "sweeps": int}

    def __init__(
        self,
        root: Path | str,
        *,
        version: str | None = None,
        split: str | None = None,
        every: int = 1,
        cameras: tuple[str, ...] | None = None,
        sweeps: int = 0,
    ) -> None:
        self.root = require_folder(Path(root).expanduser(), self.LAYOUT)
        self.tables = _tables_folder(self.root, version)
        if sweeps < 0:
            raise InputError(f"sweeps={sweeps}: give how many earlier sweeps to link, 0 or more")
        self._sweeps = sweeps
        wanted = wanted_cameras(cameras, CAMERAS, str(self.root))
        self._channels = np.array([0, *(CHANNELS.index(camera) for camera in wanted)])
        index = open_index(self.tables)
        self._load(index)
        present = [name.decode() for name in index.arrays["scene_names"].tolist()]
        chosen = scenes_of(split, every, present, self.tables)
        self._samples = np.flatnonzero(np.isin(self._arrays["scenes"], chosen))  # [frames] numbers in the index
        self._scene_names = present
        self._require_key_frames()
        self._has_boxes = has_boxes(self.tables)
        labelled = bool((self._arrays["label_files"][self._samples] != b"").any())
        self.label_spec = spec_of_tables(self.tables) if labelled else None

    def _load(self, index: Index) -> None:
        """Takes the arrays that frames need out of the index."""
        wanted = ["tokens", "scenes", "files", "times", "image_sizes", "poses", "mounts", "intrinsics", "label_files"]
        if self._sweeps:
            wanted += ["sweeps", "sweep_files", "sweep_times", "sweep_poses", "sweep_mounts", "sweep_before"]
        self._key, self._stored = index.key, index.arrays.path is not None
        self._arrays = {name: index.arrays[name] for name in wanted}
        self._mount_poses = transforms(index.arrays["mount_poses"])  # [M, 4, 4] sensor to ego

    def _require_key_frames(self) -> None:
        files = self._arrays["files"][self._samples][:, self._channels]  # [frames, channels]
        for row, sample in enumerate(self._samples):
            if not files[row].all():
                missing = ", ".join(CHANNELS[i] for i, file in zip(self._channels, files[row], strict=True) if not file)
                token = self._arrays["tokens"][sample].decode()
                table = self.tables / "sample_data.json"
                raise DataError(f"{table}: no key frame of {missing} for sample {token}; unpack it again")

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays where the cache has them: what a worker process gets is small."""
        state = self.__dict__.copy()
        if self._stored:
            del state["_arrays"], state["_mount_poses"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_arrays" not in state:
            index = open_index(self.tables)
            if index.key != self._key:
                raise DataError(f"{self.tables}: the tables have changed since the data set was opened; open it again")
            self._load(index)

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return any(path.is_dir() for path in root.glob("v1.0-*"))

    def __len__(self) -> int:
        return len(self._samples)

    def ids(self) -> list[str]:
        return [token.decode() for token in self._arrays["tokens"][self._samples].tolist()]

    def __getitem__(self, index: int) -> Frame:
        sample, arrays = int(self._samples[index]), self._arrays
        files = [self.root / file.decode() for file in arrays["files"][sample, self._channels].tolist()]
        times = (arrays["times"][sample, self._channels] * 1e-6).tolist()
        mounts = arrays["mounts"][sample, self._channels]
        to_world = transforms(arrays["poses"][sample, self._channels]) @ self._mount_poses[mounts]  # [channels, 4, 4]
        points_to_world = to_world[0] @ FLU_TO_LIDAR
        cameras = tuple(
            Camera(
                name=CHANNELS[channel],
                image_path=files[i],
                intrinsics=arrays["intrinsics"][mounts[i]],
                points_to_camera=inverse(to_world[i]) @ points_to_world,
                image_size=_image_size(*arrays["image_sizes"][sample, channel].tolist()),
                timestamp=times[i],
            )
            for i, channel in enumerate(self._channels.tolist())
            if i
        )
        labels, spec = arrays["label_files"][sample].decode(), self.label_spec
        return Frame(
            id=arrays["tokens"][sample].decode(),
            scene=self._scene_names[arrays["scenes"][sample]],
            cameras=cameras,
            points_path=files[0],
            dataset=self.name,
            read=read_nuscenes_points,
            timestamp=times[0],
            points_to_world=points_to_world,
            read_labels=partial(read_lidarseg, self.root / labels, files[0], spec) if labels and spec else None,
            read_boxes=partial(read_boxes, self.tables, self._key, sample, inverse(points_to_world))
            if self._has_boxes
            else None,
            sweeps=self._earlier(sample, inverse(points_to_world)) if self._sweeps else (),
        )

    def _earlier(self, sample: int, world_to_points: Matrix) -> tuple[Sweep, ...]:
        """The sweeps before the sample's own, the latest first."""
        arrays = self._arrays
        own = int(arrays["sweeps"][sample])
        earlier: list[int] = []
        number = int(arrays["sweep_before"][own])
        while number >= 0 and len(earlier) < self._sweeps:
            earlier.append(number)
            number = int(arrays["sweep_before"][number])
        if not earlier:
            return ()
        mounts = self._mount_poses[arrays["sweep_mounts"][earlier]]
        to_points = world_to_points @ transforms(arrays["sweep_poses"][earlier]) @ mounts @ FLU_TO_LIDAR  # [n, 4, 4]
        seconds = (arrays["sweep_times"][earlier] - arrays["sweep_times"][own]) * 1e-6
        files = [self.root / arrays["sweep_files"][number].decode() for number in earlier]
        return tuple(map(Sweep, files, to_points, seconds.tolist()))


def read_nuscenes_points(path: Path) -> PointCloud:
    """A LIDAR_TOP sweep (float32 x y z intensity ring; x right, y forward) as FLU, intensity / 255."""
    values = read_bin(path, 5)  # [N, 5]
    xyz = np.stack([values[:, 1], -values[:, 0], values[:, 2]], axis=1)  # [N, 3]
    return PointCloud(
        xyz=xyz,
        intensity=values[:, 3] / np.float32(255),
        source="nuScenes .pcd.bin: float32 x y z intensity ring; x right, y forward turned to FLU, intensity / 255",
    )


def _image_size(width: int, height: int) -> tuple[int, int] | None:
    return (width, height) if width > 0 and height > 0 else None


def _tables_folder(root: Path, version: str | None) -> Path:
    found = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    if version is None:
        if len(found) != 1:
            hint = "name one with version=..." if found else "unpack the metadata archive there"
            raise DataError(f"{root} holds {len(found)} tables' folders v1.0-* ({', '.join(found) or 'none'}); {hint}")
        version = found[0]
    elif version not in found:
        raise DataError(f"{root / version} is no folder; there is {', '.join(found) or 'no v1.0-* folder'}")
    return root / version
