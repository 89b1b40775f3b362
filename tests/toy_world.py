"""A world of a floor and a few boxes, in closed form: frames for the writers of data sets, without the renderer.

`frames(scene)` gives what the embedded world gives. Points lie on the floor and on the boxes' faces, a little inside;
pictures are cast ray by ray. Everything is a function of the scene's seed and the time.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clever3d.datasets.camera import Camera, Distortion
from clever3d.datasets.geometry import apply, inverse, rigid, rotation_about_z
from clever3d.datasets.synthetic.layouts import Scene
from clever3d.datasets.synthetic.truth import CLASSES, CameraShot, Object, Picture, WorldFrame, WorldScan

SIZE = (192, 108)
KEY_PERIOD = 0.5
SWEEPS = 2  # scans a key frame
FLOOR = -0.02  # m: the boxes stand clear of it, so that none of its points is in one
LOOKING = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # camera axes, in columns of FLU
LIDAR_TO_EGO = rigid(rotation_about_z(0.02), [0.9, 0.05, 1.8])


@dataclass(frozen=True)
class Thing:
    """One box: class, size, place at time 0 of its middle, heading, speed along it, pitch."""

    name: str
    size: tuple[float, float, float]
    start: tuple[float, float, float]
    yaw: float
    speed: float = 0.0
    pitch: float = 0.0
    until: float = np.inf  # no point is on it later

    def at(self, seconds: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Middle, rotation, velocity."""
        c, s = np.cos(self.pitch), np.sin(self.pitch)
        rotation = rotation_about_z(self.yaw) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        velocity = rotation_about_z(self.yaw) @ [self.speed, 0, 0]
        return np.array(self.start) + velocity * seconds, rotation, velocity


def things(scene: Scene) -> list[Thing]:
    """A car ahead, one partly behind it and one wholly (the last), a truck half out of the image, people, riders."""
    shift = 0.1 * (scene.seed % 7)
    tilt = 0.05 if scene.plan.sensor == "nuscenes" else 0.0  # KITTI's boxes are upright
    return [
        Thing("car", (4.0, 1.8, 1.6), (12 + shift, 0.3, 0.8), 0.0, speed=2.0, pitch=tilt),
        Thing("car", (4.2, 1.9, 1.7), (19 + shift, 2.3, 0.85), 0.1),
        Thing("truck", (8.0, 2.5, 3.2), (7.0, 5.0, 1.6), np.pi - 0.2, speed=6.0),
        Thing("person", (0.6, 0.7, 1.8), (9.0, -3.0, 0.9), 1.2, speed=1.0),
        Thing("bicyclist", (1.8, 0.6, 1.7), (15.0, -5.0, 0.85), -2.5, speed=4.0),
        Thing("bicycle", (1.7, 0.5, 1.1), (11.0, -6.0, 0.55), 0.4),
        Thing("bus", (11.0, 2.6, 3.0), (-14.0, 4.0, 1.5), 0.02, speed=3.0, until=0.6),
        Thing("traffic_cone", (0.4, 0.4, 0.7), (8.0, 2.5, 0.35), 0.0),
        Thing("car", (4.0, 1.8, 1.5), (90.0, -8.0, 0.75), 0.3),
        Thing("car", (2.0, 1.0, 1.0), (18 + shift, 0.4, 0.5), 0.0),
    ]


def ego_to_world(scene: Scene, seconds: float) -> np.ndarray:
    """A gentle curve, 5 m/s; nodding unless the data set has to be level."""
    pitch = 0.03 * np.sin(3 * seconds) if scene.plan.sensor == "nuscenes" else 0.0
    nod = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
    return rigid(rotation_about_z(0.1 * seconds) @ nod, [5.0 * seconds, 0.25 * seconds**2, 0.0])


def frames(scene: Scene) -> Iterator[WorldFrame]:
    """The frames of a scene, sweeps only for nuScenes."""
    every = SWEEPS if scene.plan.layout == "nuscenes" else 1
    for index in range((scene.plan.frames - 1) * every + 1):
        seconds = 0.05 + index * KEY_PERIOD / every
        made, is_key = scan(scene, seconds, index), index % every == 0
        yield WorldFrame(
            scene=f"toy-{scene.seed}",
            index=index,
            is_key=is_key,
            scan=made,
            cameras=cameras(scene, seconds) if is_key else (),
            objects=objects(scene, made) if is_key else (),
        )


def scan(scene: Scene, seconds: float, index: int) -> WorldScan:
    rng = np.random.default_rng([scene.seed, index])
    floor = np.column_stack([rng.uniform(-40, 60, 3000), rng.uniform(-30, 30, 3000), np.full(3000, FLOOR)])
    places, labels, instances = [floor], [np.full(3000, CLASSES.index("road"))], [np.zeros(3000, int)]
    for number, thing in enumerate(things(scene), start=1):
        count = 0 if seconds > thing.until or thing.start[0] > 80 else 60
        unit = rng.uniform(-0.45, 0.45, (count, 3))
        unit[np.arange(count), rng.integers(0, 3, count)] = rng.choice([-0.49, 0.49], count)
        middle, rotation, _ = thing.at(seconds)
        places.append(unit * thing.size @ rotation.T + middle)
        labels.append(np.full(count, CLASSES.index(thing.name)))
        instances.append(np.full(count, number))
    world = np.concatenate(places)
    pose = ego_to_world(scene, seconds)
    return WorldScan(
        timestamp=seconds,
        xyz=apply(inverse(pose @ LIDAR_TO_EGO), world).astype(np.float32),
        intensity=rng.random(len(world)).astype(np.float32),
        ring=rng.integers(0, 32, len(world)).astype(np.uint8),
        time=np.zeros(len(world), np.float32),
        label=np.concatenate(labels).astype(np.uint8),
        instance=np.concatenate(instances).astype(np.int32),
        lidar_to_ego=LIDAR_TO_EGO,
        ego_to_world=pose,
    )


def objects(scene: Scene, made: WorldScan) -> tuple[Object, ...]:
    found = []
    for number, thing in enumerate(things(scene), start=1):
        middle, rotation, velocity = thing.at(made.timestamp)
        met = int((made.instance == number).sum())
        size = np.array(thing.size)
        found.append(Object(number, CLASSES.index(thing.name), middle, size, rotation, velocity, met))
    return tuple(found)


def cameras(scene: Scene, seconds: float) -> tuple[CameraShot, ...]:
    """nuScenes' six at moments of their own, KITTI's two with the scan, or a pinhole and a fisheye."""
    fisheye = Distortion("fisheye", (-0.01, -0.004, 0.001, -0.0002))
    mounts: dict[str, tuple[float, float, Distortion | None]] = {  # degrees to the left, seconds after the scan, lens
        "nuscenes": {
            "CAM_FRONT": (0, 0.0, None),
            "CAM_FRONT_RIGHT": (-55, 0.01, None),
            "CAM_FRONT_LEFT": (55, -0.01, None),
            "CAM_BACK": (180, 0.025, None),
            "CAM_BACK_LEFT": (110, -0.02, None),
            "CAM_BACK_RIGHT": (-110, 0.02, None),
        },
        "kitti": {"image_2": (0, 0.0, None), "image_3": (0, 0.0, None)},
        "ouster": {"front": (0, 0.0, None), "left": (80, -0.02, fisheye)},
    }[scene.plan.sensor]
    shots = []
    for name, (degrees, delay, lens) in mounts.items():
        turn = rotation_about_z(np.deg2rad(degrees))
        aside = -0.54 if name == "image_3" else 0.0  # m to the left: KITTI's baseline
        mount = rigid(turn @ LOOKING, turn @ [0.6, aside, 0.0] + [1.0, 0.06, 1.6])
        focal = 60.0 if lens else 120.0
        intrinsics = np.array([[focal, 0, 95.5], [0, focal, 53.5], [0, 0, 1.0]])
        moment = seconds + delay
        pose = ego_to_world(scene, moment)
        render = functools.partial(picture, scene, moment, pose @ mount, intrinsics, lens)
        shots.append(CameraShot(name, moment, SIZE, intrinsics, lens, mount, pose, render))
    return tuple(shots)


def picture(
    scene: Scene, seconds: float, camera_to_world: np.ndarray, intrinsics: np.ndarray, lens: Distortion | None
) -> Picture:
    """Ray by ray: the floor and the boxes, each in a grey of its own."""
    v, u = np.mgrid[: SIZE[1], : SIZE[0]]
    rays = Camera("", Path(), intrinsics, np.eye(4), lens).rays(np.column_stack([u.ravel(), v.ravel()]))
    rays = np.nan_to_num(rays / rays[:, 2:], nan=0.0)  # depth 1
    ways, eye = rays @ camera_to_world[:3, :3].T, camera_to_world[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = (FLOOR - eye[2]) / ways[:, 2]
    depth = np.where(floor > 0, floor, np.inf)
    label, instance = np.where(floor > 0, CLASSES.index("road"), 0), np.zeros(len(rays), int)
    for number, thing in enumerate(things(scene), start=1):
        middle, rotation, _ = thing.at(seconds)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes, begin = (ways @ rotation).T, (eye - middle) @ rotation  # [3, R], [3]
            one, other = (((side * np.array(thing.size) - begin)[:, None] / slopes) for side in (-0.5, 0.5))
        near, far = np.minimum(one, other).max(axis=0), np.maximum(one, other).min(axis=0)
        met = (near < far) & (near > 0) & (near < depth)
        depth, label = np.where(met, near, depth), np.where(met, CLASSES.index(thing.name), label)
        instance = np.where(met, number, instance)
    shape = SIZE[::-1]
    grey = (label * 10).reshape(shape).astype(np.uint8)
    image = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    return Picture(
        image,
        depth.reshape(shape).astype(np.float32),
        label.reshape(shape).astype(np.uint8),
        instance.reshape(shape).astype(np.int32),
    )


def slow_frames(scene: Scene) -> Iterator[WorldFrame]:
    """As `frames`, but each takes a while; says on the disk that it has begun."""
    for frame in frames(scene):
        Path(os.environ["TOY_WORLD_BEGUN"]).touch()
        time.sleep(0.15)
        yield frame


def dying_frames(scene: Scene) -> Iterator[WorldFrame]:
    """As `frames`, but the process is killed within the third scene, as by a system that is out of memory."""
    for frame in frames(scene):
        if scene.index == 2:
            os.kill(os.getpid(), 9)
        yield frame


def faulty_frames(scene: Scene) -> Iterator[WorldFrame]:
    """As `frames`, but the third scene has a fault."""
    for frame in frames(scene):
        if scene.index == 2:
            raise ZeroDivisionError("a fault of the world")
        yield frame
