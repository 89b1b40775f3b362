"""Your own rig: a folder with scans, images and one `rig.yaml` (`clever3d rig new FOLDER` writes a template)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.base import Dataset, Frame, names, require_folder, require_unique, wanted_cameras
from clever3d.datasets.camera import Camera
from clever3d.datasets.geometry import Matrix, inverse, rigid
from clever3d.datasets.labels import LabelSpec, PointLabels
from clever3d.datasets.rig_camera import CameraConfig
from clever3d.datasets.rig_config import (
    FILE_NAME,
    UNITS,
    LidarConfig,
    RigConfig,
    axes_matrix,
    load_config,
)
from clever3d.datasets.rig_files import (
    LABEL_SUFFIXES,
    SCAN_SUFFIXES,
    Partners,
    Trajectory,
    by_stem,
    glob,
    list_files,
    match_images,
    read_tum,
    stem,
    timestamps,
)
from clever3d.errors import DataError
from clever3d.io import PointCloud, read_points, to_flu


@dataclass(frozen=True, eq=False)
class _Scene:
    """One recording: its scans, and what belongs to each."""

    name: str
    scans: list[Path]
    times: NDArray[np.float64] | None
    partners: dict[str, Partners]  # by camera
    trajectory: Trajectory | None
    labels: list[Path] | None


class Rig(Dataset):
    """A rig folder: `rig.yaml` says where scans and images are, how the sensors are mounted and what goes together.

    root: the folder that holds `rig.yaml`. cameras: the names to use, all of them for None. Opening lists the files
    and reads the YAML, the timestamps and the poses; points and images are read when asked for. A frame lacks a camera
    only where `missing_images: skip` allows it.
    config: what the file says, checked. ground_height: z of the ground in the points' axes (metres), None if not given;
    it is for you to pass on, such as to `clever3d-train --student.ground`: nothing reads it here.

    Raises DataError, with file and field, for anything missing or wrong.
    """

    name = "rig"
    LAYOUT = "a rig of your own needs a rig.yaml (clever3d rig new FOLDER writes one)"
    OPTIONS: ClassVar = {"cameras": names}

    def __init__(self, root: Path | str, *, cameras: tuple[str, ...] | None = None) -> None:
        root = require_folder(Path(root).expanduser(), self.LAYOUT)
        self.root = root
        self.config: RigConfig = load_config(root / FILE_NAME)
        known = {camera.name: camera for camera in self.config.cameras}
        self._cameras = tuple(known[name] for name in wanted_cameras(cameras, known, str(self.config.path)))
        self.ground_height = self.config.lidar.ground_height
        self.label_spec: LabelSpec | None = self.config.labels.spec if self.config.labels else None
        self._scenes = [self._scene(folder, name) for folder, name in self._folders()]
        self._rows = [(scene, row) for scene in self._scenes for row in range(len(scene.scans))]
        require_unique(self.ids(), str(self.config.path))
        lidar = self.config.lidar
        self._read = partial(
            read_rig_points,
            axes=lidar.axes,
            columns=lidar.columns,
            intensity_scale=lidar.intensity_scale,
            metres=UNITS[lidar.unit],
            min_range=lidar.min_range,
        )
        flu_to_extrinsics = np.linalg.inv(axes_matrix(lidar.extrinsics_axes))
        self._flu_to_lidar = rigid(flu_to_extrinsics, np.zeros(3))

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return (root / FILE_NAME).is_file()

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self) -> list[str]:
        return [self._id(scene, row) for scene, row in self._rows]

    def __getitem__(self, index: int) -> Frame:
        scene, row = self._rows[index]
        time = None if scene.times is None else float(scene.times[row])
        pose = None if scene.trajectory is None or time is None else self._pose(scene.trajectory, time)
        scan = scene.scans[row]
        return Frame(
            id=self._id(scene, row),
            scene=scene.name,
            cameras=self._frame_cameras(scene, row, pose),
            points_path=scan,
            dataset=self.name,
            read=self._read,
            timestamp=time,
            points_to_world=pose,
            read_labels=None if scene.labels is None else self._label_reader(scan, scene.labels[row]),
        )

    def _id(self, scene: _Scene, row: int) -> str:
        name = stem(scene.scans[row])
        return name if self.config.scenes is None else f"{scene.name}/{name}"

    def _pose(self, trajectory: Trajectory, time: float) -> Matrix:
        """From FLU points to the world at `time`."""
        assert self.config.poses is not None
        return trajectory.at(time) @ self.config.poses.lidar_to_body @ self._flu_to_lidar

    def _frame_cameras(self, scene: _Scene, row: int, pose: Matrix | None) -> tuple[Camera, ...]:
        cameras = []
        for config in self._cameras:
            image = scene.partners[config.name].images[row]
            if image is None:
                continue
            seconds = float(scene.partners[config.name].times[row])
            time = None if np.isnan(seconds) else seconds
            to_camera = config.to_camera @ self._flu_to_lidar
            if pose is not None and time is not None:
                assert scene.trajectory is not None
                to_camera = to_camera @ inverse(self._pose(scene.trajectory, time)) @ pose
            cameras.append(
                Camera(
                    name=config.name,
                    image_path=image,
                    intrinsics=config.intrinsics,
                    points_to_camera=to_camera,
                    distortion=config.distortion,
                    image_size=config.image_size,
                    timestamp=time,
                )
            )
        return tuple(cameras)

    def _label_reader(self, scan: Path, path: Path) -> partial[PointLabels]:
        assert self.label_spec is not None
        return partial(read_rig_labels, path, scan=scan, lidar=self.config.lidar, spec=self.label_spec)

    def _folders(self) -> list[tuple[Path, str]]:
        pattern = self.config.scenes
        if pattern is None:
            return [(self.root, self.root.resolve().name)]
        found = glob(self.root, pattern, f"{self.config.path}: scenes")
        folders = sorted(path for path in found if path.is_dir())
        if not folders:
            raise DataError(f"{self.config.path}: scenes: {self.root / pattern} finds no folder; correct the pattern")
        return [(folder, folder.relative_to(self.root).as_posix()) for folder in folders]

    def _scene(self, folder: Path, name: str) -> _Scene:
        config = self.config
        lidar = config.lidar
        scans = list_files(folder, lidar.files, SCAN_SUFFIXES, self._where("lidar.files"))
        by_stem(scans)  # two scans of one name are an error before anything else
        times = None
        if lidar.times is not None:
            times = timestamps(scans, folder, lidar.times, self._where("lidar.timestamps"))
        partners = {camera.name: self._partners(scans, times, folder, camera) for camera in self._cameras}
        trajectory = None
        if config.poses is not None:
            trajectory = read_tum(folder / config.poses.file, self._where("poses.file"))
        return _Scene(name, scans, times, partners, trajectory, self._label_files(folder, scans))

    def _partners(
        self, scans: list[Path], times: NDArray[np.float64] | None, folder: Path, camera: CameraConfig
    ) -> Partners:
        where = self._where(f"cameras.{camera.name}")
        return match_images(scans, times, folder, camera, self.config.matching, where)

    def _label_files(self, folder: Path, scans: list[Path]) -> list[Path] | None:
        labels = self.config.labels
        if labels is None:
            return None
        where = self._where("labels.files")
        files = by_stem(list_files(folder, labels.files, LABEL_SUFFIXES, where))
        missing = next((scan for scan in scans if stem(scan) not in files), None)
        if missing is not None:
            raise DataError(f"{where}: {folder / labels.files} has no file for {missing}; add it, or remove the scan")
        return [files[stem(scan)] for scan in scans]

    def _where(self, field: str) -> str:
        line = self.config.lines.get(field)
        return f"{self.config.path}{f', line {line}' if line else ''}: {field}"


def read_rig_points(
    path: Path, *, axes: str, columns: int | None, intensity_scale: float | None, metres: float, min_range: float
) -> PointCloud:
    """One scan in FLU and metres. axes: of the file. metres: one unit of the file. Points nearer to the sensor than
    `min_range` metres are left out where it is above 0, and with them those that are not finite."""
    cloud = read_points(
        path, columns=columns if path.suffix.lower() == ".bin" else None, intensity_scale=intensity_scale
    )
    xyz = to_flu(cloud.xyz, axes)
    if metres != 1:
        xyz = xyz * np.float32(metres)
    kept = _kept(xyz, min_range)
    intensity = cloud.intensity
    return PointCloud(
        xyz=xyz if kept is None else xyz[kept],
        intensity=intensity if kept is None or intensity is None else intensity[kept],
        source=f"{cloud.source}; axes {axes}",
    )


def _kept(xyz: NDArray[np.float32], min_range: float) -> NDArray[np.bool_] | None:
    if min_range <= 0:
        return None
    near_enough: NDArray[np.bool_] = np.linalg.norm(xyz, axis=1) >= min_range  # False for NaN
    return near_enough & np.isfinite(xyz).all(axis=1)


def read_rig_labels(path: Path, *, scan: Path, lidar: LidarConfig, spec: LabelSpec) -> PointLabels:
    """The labels [N] of the points that `read_rig_points` gives of `scan`, from a .label or .npy file.

    Raises DataError if the file is missing, no labels, or of another length than the scan.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{path} is not a readable .npy file of numbers: {error}") from error
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iu":
            raise DataError(f"{path} does not hold whole numbers [N], one a point; save the array of ids")
        semantic, instance = values.astype(np.int32), None
    else:
        if path.stat().st_size % 4:
            raise DataError(f"{path} has {path.stat().st_size} bytes, not a whole number of uint32: it is truncated")
        packed = np.fromfile(path, dtype="<u4")
        semantic, instance = (packed & 0xFFFF).astype(np.int32), (packed >> 16).astype(np.int32)
    if lidar.min_range <= 0 and lidar.columns is not None and scan.suffix.lower() == ".bin":
        count, kept = scan.stat().st_size // (4 * lidar.columns), None
    else:
        columns = lidar.columns if scan.suffix.lower() == ".bin" else None
        xyz = read_points(scan, columns=columns, intensity_scale=lidar.intensity_scale).xyz
        count, kept = len(xyz), _kept(xyz * np.float32(UNITS[lidar.unit]), lidar.min_range)
    if len(semantic) != count:
        raise DataError(f"{path} has {len(semantic)} labels, {scan} has {count} points; they do not belong together")
    if kept is not None:
        semantic, instance = semantic[kept], None if instance is None else instance[kept]
    return PointLabels(semantic, spec, instance, str(path))
