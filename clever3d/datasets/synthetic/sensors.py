"""The sensors of the embedded world: LiDAR models after their data sheets, cameras, and the suites that carry them.

Sources. HDL-32E: Velodyne data sheet 97-0038 and user's manual 63-9113 (32 beams from +10.67 to -30.67 degrees, a
firing each 46.08 us, +-2 cm, 5-20 Hz). HDL-64E S2: Velodyne manual 63-HDL64ES2 (upper block +2 to -8.33 degrees in
steps of 1/3, lower block -8.83 to -24.33 in steps of 1/2; 0.09 degrees at 5 Hz, so 0.1728 at 10 Hz; under 2 cm; 50 m
for pavement, 120 m for cars and foliage). OS1-128: Ouster OS1 data sheet, Rev 6 (128 beams over +-22.5 degrees, 1024
columns at 10 Hz, +-1 to 3 cm, 120 m at 80 % reflectivity). Mounts: nuScenes (Caesar et al., CVPR 2020, figure 4:
20 Hz LiDAR, cameras of 70 degrees, 110 at the back) and KITTI (Geiger et al., IJRR 2013, figure 3 and table of the
sensors), rounded; KITTI's intrinsics are those of 2011_09_26. The third suite is our own.
Intensity: HDL-32E and OS1 report calibrated reflectivity, 0 to 100 of 255 for matt surfaces and 101 to 255 for
retro-reflectors (their manuals); for the HDL-64E the factor is chosen so that the mean meets that of KITTI's scans.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass

import numpy as np

from clever3d.datasets.camera import Distortion
from clever3d.datasets.geometry import Matrix, rigid, rotation_about_z
from clever3d.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class LidarModel:
    """A spinning LiDAR.

    elevations: degrees, from the lowest beam up. columns: firings a turn. rate: turns a second. reach: metres at which
    a surface of 80 % reflectance, seen squarely, is met half the time. nearest: metres below which nothing is reported.
    noise: standard deviation of the range in metres. white: the intensity of a white matt surface, met
    squarely nearby; above 1 where most of what is white saturates. dropout: share of returns lost for no reason.
    """

    name: str
    elevations: tuple[float, ...]
    columns: int
    rate: float
    reach: float
    nearest: float
    noise: float
    white: float
    dropout: float = 0.005

    @property
    def period(self) -> float:
        """Seconds a turn."""
        return 1.0 / self.rate

    def azimuths(self) -> Matrix:
        """Where each column looks [columns], radians from forward, left positive: clockwise from back to back."""
        turned: Matrix = np.pi * (1 - 2 * (np.arange(self.columns) + 0.5) / self.columns)
        return turned

    def times(self) -> Matrix:
        """When each column is fired [columns], seconds from the middle of the turn, when the sensor looks forward."""
        fired: Matrix = self.period * ((np.arange(self.columns) + 0.5) / self.columns - 0.5)
        return fired

    def directions(self) -> Matrix:
        """Unit directions [columns, beams, 3] in the sensor's axes (x forward, y left, z up)."""
        azimuth, elevation = self.azimuths()[:, None], np.radians(self.elevations)[None, :]
        unit = (np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation))
        return np.stack(np.broadcast_arrays(*unit), axis=-1)


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A camera and its mount. camera_to_ego [4, 4]. delay: seconds after the middle of the LiDAR's turn."""

    name: str
    size: tuple[int, int]
    intrinsics: Matrix
    camera_to_ego: Matrix
    delay: float = 0.0
    distortion: Distortion | None = None

    def scaled(self, scale: float) -> CameraModel:
        """The camera with images `scale` times as large in both directions, seeing the same."""
        width, height = (max(8, round(side * scale)) for side in self.size)
        factors = np.array([width / self.size[0], height / self.size[1]])
        intrinsics = self.intrinsics.copy()
        intrinsics[:2, :2] *= factors[:, None]
        # Whole numbers are pixel centres: the corner of the image, at -0.5, is what stays in place.
        intrinsics[:2, 2] = (self.intrinsics[:2, 2] + 0.5) * factors - 0.5
        return CameraModel(self.name, (width, height), intrinsics, self.camera_to_ego, self.delay, self.distortion)


@dataclass(frozen=True, eq=False)
class SensorSuite:
    """What one vehicle carries. scans_per_key: every how many turns is a key frame, with cameras and objects."""

    name: str
    lidar: LidarModel
    lidar_to_ego: Matrix
    cameras: tuple[CameraModel, ...]
    scans_per_key: int = 1


def sensor_suite(name: str) -> SensorSuite:
    """The suite of a name in SENSORS. Raises UnknownNameError."""
    if name not in SENSORS:
        near = difflib.get_close_matches(name, SENSORS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownNameError(f"there is no sensor suite {name!r}: choose one of {', '.join(SENSORS)}{hint}")
    return SENSORS[name]


@functools.lru_cache(maxsize=8)
def with_image_scale(suite: SensorSuite, scale: float) -> SensorSuite:
    """The suite with all its images that many times as large. Raises InputError for a scale outside (0, 4]."""
    if not 0 < scale <= 4:
        raise InputError(f"image_scale={scale}: give a number above 0 and up to 4")
    if scale == 1:
        return suite
    cameras = tuple(camera.scaled(scale) for camera in suite.cameras)
    return SensorSuite(suite.name, suite.lidar, suite.lidar_to_ego, cameras, suite.scans_per_key)


def _looking(yaw: float, pitch: float, position: tuple[float, float, float]) -> Matrix:
    """camera_to_ego of a camera that looks `yaw` degrees to the left of forward and `pitch` degrees down."""
    level = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # camera axes (right, down, ahead) in FLU
    down = np.radians(pitch)
    tilt = np.array([[1, 0, 0], [0, np.cos(down), np.sin(down)], [0, -np.sin(down), np.cos(down)]])
    return rigid(rotation_about_z(np.radians(yaw)) @ level @ tilt, position)


def _pinhole(width: int, height: int, degrees: float) -> Matrix:
    """Intrinsics with that horizontal field of view, the axis through the middle of the image."""
    focal = width / 2 / np.tan(np.radians(degrees) / 2)
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def _nuscenes() -> SensorSuite:
    lidar = LidarModel(
        "HDL-32E", tuple(np.linspace(-30.67, 10.67, 32).tolist()), 1085, 20.0, 100.0, 1.0, 0.012, 100 / 255
    )
    mounts = {
        "CAM_FRONT": (0.0, (1.70, 0.0, 1.51)),
        "CAM_FRONT_RIGHT": (-55.0, (1.55, -0.49, 1.50)),
        "CAM_FRONT_LEFT": (55.0, (1.52, 0.49, 1.51)),
        "CAM_BACK": (180.0, (0.03, 0.0, 1.57)),
        "CAM_BACK_LEFT": (110.0, (1.03, 0.48, 1.59)),
        "CAM_BACK_RIGHT": (-110.0, (1.01, -0.48, 1.56)),
    }
    cameras = []
    for name, (yaw, position) in mounts.items():
        intrinsics = _pinhole(1600, 900, 110.0 if name == "CAM_BACK" else 70.0)
        delay = -yaw / 360.0 * lidar.period  # each is triggered when the turning beams pass its axis
        cameras.append(CameraModel(name, (1600, 900), intrinsics, _looking(yaw, 0.0, position), delay))
    return SensorSuite("nuscenes", lidar, rigid(np.eye(3), (0.94, 0.0, 1.84)), tuple(cameras), scans_per_key=10)


def _kitti() -> SensorSuite:
    upper, lower = 2.0 - np.arange(32) / 3, -8.83 - np.arange(32) / 2
    elevations = np.sort(np.concatenate([upper, lower]))
    lidar = LidarModel("HDL-64E", tuple(elevations.tolist()), 2083, 10.0, 120.0, 0.9, 0.012, 1.55)
    intrinsics = np.array([[721.5377, 0.0, 609.5593], [0.0, 721.5377, 172.854], [0.0, 0.0, 1.0]])
    cameras = tuple(
        CameraModel(name, (1242, 375), intrinsics, _looking(0.0, 0.0, (1.03, y, 1.65)))
        for name, y in (("image_2", 0.06), ("image_3", -0.48))
    )
    return SensorSuite("kitti", lidar, rigid(np.eye(3), (0.76, 0.0, 1.73)), cameras)


def _ouster() -> SensorSuite:
    lidar = LidarModel(
        "OS1-128", tuple(np.linspace(-22.5, 22.5, 128).tolist()), 1024, 10.0, 120.0, 0.5, 0.015, 100 / 255
    )
    fisheye = Distortion("fisheye", (-0.01, -0.004, 0.001, -0.0002))
    intrinsics = np.array([[520.0, 0.0, 639.5], [0.0, 520.0, 479.5], [0.0, 0.0, 1.0]])
    cameras = (
        CameraModel("front", (1280, 720), _pinhole(1280, 720, 80.0), _looking(0.0, 2.0, (1.60, 0.0, 1.45))),
        CameraModel("left", (1280, 960), intrinsics, _looking(90.0, 15.0, (1.2, 0.75, 1.55)), -0.025, fisheye),
    )
    tilted = np.radians(1.5)  # looks down a little: points in its axes have no level ground
    tilt = np.array([[np.cos(tilted), 0, np.sin(tilted)], [0, 1, 0], [-np.sin(tilted), 0, np.cos(tilted)]])
    return SensorSuite("ouster", lidar, rigid(tilt, (1.0, 0.0, 1.95)), cameras)


#: The suites by name. "nuscenes": 32 beams at 20 Hz, key frames at 2 Hz, six cameras. "kitti": 64 beams at 10 Hz, the
#: two colour cameras. "ouster": 128 beams at 10 Hz, a pinhole camera ahead and a fisheye to the left.
SENSORS: dict[str, SensorSuite] = {suite.name: suite for suite in (_nuscenes(), _kitti(), _ouster())}
