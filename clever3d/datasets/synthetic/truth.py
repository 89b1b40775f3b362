"""What the embedded world hands to the writers of data sets: frames with everything that is true of them.

Three kinds of axes, all right-handed, in metres: *world* (z up, fixed for a scene), *ego* (x forward, y left, z up, on
the ground below the vehicle's rear axle) and the sensors' own (LiDAR: x forward, y left, z up; camera: x right, y down,
z forward). `a_to_b` [4, 4] moves points given in a's axes to b's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.camera import Distortion
from clever3d.datasets.geometry import Matrix

#: What a point or a pixel can belong to; a label is an index into this. 0 is what has no class (sky in images).
CLASSES = (
    "unlabeled", "road", "lane_marking", "parking", "sidewalk", "terrain", "building", "wall", "fence", "vegetation",
    "trunk", "pole", "traffic_sign", "traffic_light", "car", "truck", "bus", "bicycle", "motorcycle", "person",
    "bicyclist", "motorcyclist", "barrier", "traffic_cone", "other",
)  # fmt: skip
#: The classes whose objects have boxes and instance numbers.
THINGS = ("car", "truck", "bus", "bicycle", "motorcycle", "person", "bicyclist", "motorcyclist", "traffic_cone")


@dataclass(frozen=True, eq=False)
class Object:
    """One thing at one moment, in world axes.

    instance: 1, 2, ...: the same number in all frames of a scene. label: index into CLASSES. center [3]: of the box.
    size [3]: length, width, height. rotation [3, 3]: columns are the object's own axes (x its heading).
    velocity [3]: m/s. num_points: LiDAR points of this frame on it.
    """

    instance: int
    label: int
    center: Matrix
    size: Matrix
    rotation: Matrix
    velocity: Matrix
    num_points: int


@dataclass(frozen=True, eq=False)
class Picture:
    """What a camera shows. image [H, W, 3] uint8; depth [H, W] float32, metres along the axis, infinite in the sky;
    label [H, W] uint8, index into CLASSES; instance [H, W] int32, 0 for none."""

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    label: NDArray[np.uint8]
    instance: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class CameraShot:
    """One camera at its own moment.

    size: (W, H). intrinsics [3, 3], pixel centres at whole numbers. camera_to_ego: the mount. ego_to_world: where the
    vehicle is at `timestamp`. render: makes the picture; call it once and keep what is needed, nothing is cached.
    """

    name: str
    timestamp: float  # s, on the scene's clock
    size: tuple[int, int]
    intrinsics: Matrix
    distortion: Distortion | None
    camera_to_ego: Matrix
    ego_to_world: Matrix
    render: Callable[[], Picture]


@dataclass(frozen=True, eq=False)
class WorldScan:
    """One turn of the LiDAR, in its own axes at `timestamp` (which is the middle of the turn; without motion distortion
    all points are as if met at that moment).

    xyz [N, 3] float32; intensity [N] float32 in [0, 1]; ring [N] uint8 or uint16, 0 the lowest beam; time [N] float32,
    seconds after `timestamp`; label [N] uint8, index into CLASSES; instance [N] int32, 0 for none.
    lidar_to_ego: the mount. ego_to_world: where the vehicle is at `timestamp`.
    """

    timestamp: float
    xyz: NDArray[np.float32]
    intensity: NDArray[np.float32]
    ring: NDArray[np.uint8]
    time: NDArray[np.float32]
    label: NDArray[np.uint8]
    instance: NDArray[np.int32]
    lidar_to_ego: Matrix
    ego_to_world: Matrix


@dataclass(frozen=True, eq=False)
class WorldFrame:
    """One moment of a scene. is_key: frames between key frames (nuScenes' sweeps) have no cameras and no objects."""

    scene: str
    index: int
    is_key: bool
    scan: WorldScan
    cameras: tuple[CameraShot, ...]
    objects: tuple[Object, ...]
