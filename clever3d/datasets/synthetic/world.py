"""The embedded world: scenes by seed, a vehicle with a LiDAR and cameras that drives through, and all that is true."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from clever3d.datasets.geometry import Matrix
from clever3d.datasets.synthetic.lidar import scan
from clever3d.datasets.synthetic.places import PLACES, build_scene
from clever3d.datasets.synthetic.render import render
from clever3d.datasets.synthetic.scene import Scene
from clever3d.datasets.synthetic.sensors import (
    SENSORS,
    CameraModel,
    SensorSuite,
    sensor_suite,
    with_image_scale,
)
from clever3d.datasets.synthetic.truth import CameraShot, Object, Picture, WorldFrame, WorldScan
from clever3d.errors import InputError

__all__ = ["LONGEST", "PLACES", "SENSORS", "SensorSuite", "sensor_suite", "simulate"]

#: Seconds that a scene lasts at most: further on the vehicle would leave what was built.
LONGEST = 20.0


def simulate(
    sensor: SensorSuite | str,
    *,
    place: str,
    seed: int,
    frames: int,
    motion_distortion: bool = False,
    images: bool = True,
    sweeps: bool = True,
    image_scale: float = 1.0,
) -> Iterator[WorldFrame]:
    """Drive through a scene: `frames` key frames, and the scans between them where the suite has such.

    sensor: a name in SENSORS, or a suite of your own. place: one of PLACES. seed: picks the variant, the traffic, the
    weather and the noise; the same seed gives the same bytes on one machine, however many frames are asked for.
    motion_distortion: scans as a moving sensor makes them, each column at its own time, instead of all at one moment.
    images: False leaves the cameras out. sweeps: False leaves out the scans between key frames. image_scale: factor on
    the size of all images (0.5 makes nuScenes' 1600 x 900 into 800 x 450).

    Images are made when `CameraShot.render` is called, scans when the iterator gets there.

    Raises InputError for an unknown place, a seed below 0, or a number of frames that is below 1 or longer than a scene
    (LONGEST seconds); UnknownNameError for an unknown sensor; MissingExtraError without the extra `synthetic`.
    """
    suite = with_image_scale(sensor_suite(sensor) if isinstance(sensor, str) else sensor, image_scale)
    if place not in PLACES:
        raise InputError(f"there is no place {place!r}: choose one of {', '.join(PLACES)}")
    if seed < 0:
        raise InputError(f"seed={seed}: give a whole number of at least 0")
    most = int(LONGEST * suite.lidar.rate / suite.scans_per_key)
    if not 1 <= frames <= most:
        raise InputError(f"frames={frames}: a scene of {suite.name!r} has 1 to {most} key frames; use further seeds")
    return _drive(suite, place, seed, frames, motion_distortion, images, sweeps)


def _drive(
    suite: SensorSuite, place: str, seed: int, frames: int, motion_distortion: bool, images: bool, sweeps: bool
) -> Iterator[WorldFrame]:
    scene = build_scene(place, seed, LONGEST)
    name = f"{place}-{seed:04d}"
    for index in range((frames - 1) * suite.scans_per_key + 1):
        is_key = index % suite.scans_per_key == 0
        if not (is_key or sweeps):
            continue
        timestamp = (index + 0.5) * suite.lidar.period
        made = scan(
            suite.lidar,
            suite.lidar_to_ego,
            scene.pose,
            scene.view,
            scene.materials,
            timestamp,
            np.random.default_rng([seed, PLACES.index(place), index]),
            motion_distortion=motion_distortion,
        )
        cameras = suite.cameras if is_key and images else ()
        yield WorldFrame(
            scene=name,
            index=index,
            is_key=is_key,
            scan=made,
            cameras=tuple(_shot(scene, camera, timestamp, (seed, index, k)) for k, camera in enumerate(cameras)),
            objects=_objects(scene, made) if is_key else (),
        )


def _objects(scene: Scene, made: WorldScan) -> tuple[Object, ...]:
    counts = np.bincount(made.instance, minlength=scene.instances + 1)
    return tuple(thing.at(made.timestamp, int(counts[thing.instance])) for thing in scene.things)


def _shot(scene: Scene, camera: CameraModel, timestamp: float, key: tuple[int, ...]) -> CameraShot:
    moment = timestamp + camera.delay
    ego_to_world = scene.pose(moment)
    return CameraShot(
        name=camera.name,
        timestamp=moment,
        size=camera.size,
        intrinsics=camera.intrinsics,
        distortion=camera.distortion,
        camera_to_ego=camera.camera_to_ego,
        ego_to_world=ego_to_world,
        render=functools.partial(_picture, scene, camera, ego_to_world, moment, key),
    )


def _picture(scene: Scene, camera: CameraModel, ego_to_world: Matrix, moment: float, key: tuple[int, ...]) -> Picture:
    return render(scene, camera, ego_to_world @ camera.camera_to_ego, moment, np.random.default_rng(key))
