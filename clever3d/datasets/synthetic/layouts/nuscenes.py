"""nuScenes: samples, sweeps, lidarseg and the tables. Source: nuscenes-devkit, docs/schema_nuscenes.md."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from clever3d.datasets.geometry import Matrix, rigid, rotation_about_z, rotation_to_quaternion
from clever3d.datasets.nuscenes_index import CAMERAS, LIDAR
from clever3d.datasets.nuscenes_labels import CATEGORIES
from clever3d.datasets.synthetic.layouts.base import (
    MOVING,
    Layout,
    Plan,
    Rows,
    Scene,
    boxes_in_scan,
    class_table,
    write_array,
    write_image,
    write_json,
)
from clever3d.datasets.synthetic.layouts.nuscenes_names import (
    CATEGORY_OF,
    SCENES,
    Row,
    attribute,
    shared_tables,
    shared_token,
)
from clever3d.datasets.synthetic.layouts.outline import outline
from clever3d.datasets.synthetic.truth import CLASSES, CameraShot, Object, Picture, WorldFrame
from clever3d.errors import InputError
from clever3d.io import atomic_path

_MINI, _WHOLE = "v1.0-mini", "v1.0-trainval"
# nuScenes' LiDAR has x right, y forward, z up: a quarter turn from FLU.
_RFU_TO_FLU = rigid(rotation_about_z(-np.pi / 2).round(), np.zeros(3))
# The clock of scene 0 begins on 2020-09-13 at 12:26:40 UTC, each further scene an hour later (our choice).
_FIRST_SECOND, _SECONDS_APART = 1_600_000_000, 3600
# Upper ends of the first three levels of visibility, as their names say (v0-40, v40-60, v60-80, v80-100).
_VISIBLE = (0.4, 0.6, 0.8)
_CATEGORY_IDS = class_table({name: CATEGORIES.index(category) for name, category in CATEGORY_OF.items()}, np.uint8)


class NuScenesLayout(Layout):
    """13 tables and lidarseg. One scene is one log. The scenes have official names: the official splits hold."""

    name: ClassVar = "nuscenes"
    sensors: ClassVar = ("nuscenes",)
    frames: ClassVar = 10
    versions: ClassVar = ("", _MINI, _WHOLE)

    def version(self, wanted: str, scenes: int) -> str:
        mini = sum(map(len, SCENES[_MINI]))
        return super().version(wanted, scenes) or (_MINI if scenes <= mini else _WHOLE)

    def check(self, plan: Plan) -> None:
        """InputError if a split has fewer names than the plan has scenes."""
        train, val = SCENES[plan.version]
        scenes = [Scene(plan, index) for index in range(plan.scenes)]
        in_val = sum(scene.is_val for scene in scenes)
        if in_val > len(val) or plan.scenes - in_val > len(train):
            raise InputError(
                f"{plan.version} has {len(train)} training and {len(val)} validation scenes, {plan.scenes} scenes of "
                f"which one in five is for validation do not fit; ask for fewer --scenes and more --frames"
            )

    def scene_name(self, scene: Scene) -> str:
        names = SCENES[scene.plan.version][scene.is_val]
        return names[sum(Scene(scene.plan, earlier).is_val == scene.is_val for earlier in range(scene.index))]

    def write_scene(self, folder: Path, scene: Scene, frames: Iterable[WorldFrame]) -> Rows:
        tables = _SceneTables(folder, scene, self.scene_name(scene))
        for frame in frames:
            tables.add(frame)
        return tables.rows()

    def finish(self, root: Path, plan: Plan, rows: Sequence[Rows]) -> None:
        folder = root / plan.version
        tables = {name: list(itertools.chain.from_iterable(row[name] for row in rows)) for name in rows[0]}
        tables |= shared_tables(plan, [log["token"] for log in tables["log"]])
        for name, table in tables.items():
            write_json(folder / f"{name}.json", table)
        mask = root / tables["map"][0]["filename"]
        mask.parent.mkdir(exist_ok=True)
        with atomic_path(mask) as draft:
            Image.new("L", (8, 8)).save(draft)

    def describe(self, plan: Plan) -> str:
        return f"""\
Layout: nuScenes {plan.version}, with lidarseg. Scene names are official ones (one scene in five from the validation
split), so that tools that know the splits work; nothing else of the real scenes is here. Timestamps begin in 2020.
Choices: LIDAR_TOP's timestamp is the middle of its turn; sweeps exist for LIDAR_TOP only; the map is a placeholder;
no radar. num_lidar_pts counts the points inside the box. Visibility is measured in the rendered images. Riders belong
to vehicle.bicycle and vehicle.motorcycle, as in nuScenes. Lane markings and parking areas are flat.driveable_surface;
walls, fences, poles, signs and lights static.manmade."""


@dataclass(eq=False)
class _SceneTables:
    """The files and the rows of one scene, frame by frame."""

    folder: Path
    scene: Scene
    name: str
    samples: list[Row] = field(default_factory=list)
    data: dict[str, list[Row]] = field(default_factory=dict)  # channel -> its sample_data, in time
    poses: list[Row] = field(default_factory=list)
    mounts: dict[str, Row] = field(default_factory=dict)  # channel -> calibrated_sensor
    lidarseg: list[Row] = field(default_factory=list)
    seen: dict[int, list[tuple[int, Object, int, str]]] = field(default_factory=dict)
    """instance -> (number of the sample, the object then, points inside its box, visibility)."""

    @property
    def start(self) -> int:
        """Seconds since 1970 at the scene's time 0."""
        return _FIRST_SECOND + _SECONDS_APART * self.scene.index

    @property
    def log_file(self) -> str:
        return f"synth-{datetime.fromtimestamp(self.start, timezone.utc):%Y-%m-%d-%H-%M-%S}+0000"

    def add(self, frame: WorldFrame) -> None:
        """Write the frame's files and remember its rows."""
        points, channel = _points(frame), LIDAR
        row = self._sample_data(channel, frame.scan.timestamp, frame.is_key, frame.scan.ego_to_world, (0, 0))
        self._mount(channel, frame.scan.lidar_to_ego @ _RFU_TO_FLU, [])
        write_array(self.folder / row["filename"], points)
        if not frame.is_key:
            return
        number = len(self.samples)
        sample = {"token": self.scene.token("sample", number), "timestamp": row["timestamp"]}
        self.samples.append({**sample, "prev": "", "next": "", "scene_token": self.scene.token("scene")})
        segmented = f"lidarseg/{self.scene.plan.version}/{row['token']}_lidarseg.bin"
        write_array(self.folder / segmented, _CATEGORY_IDS[frame.scan.label])
        self.lidarseg.append({"token": row["token"], "sample_data_token": row["token"], "filename": segmented})
        self._add_objects(frame, number, self._add_cameras(frame))

    def _add_cameras(self, frame: WorldFrame) -> list[tuple[CameraShot, Picture]]:
        shots = {shot.name: shot for shot in frame.cameras}
        lacking = [name for name in CAMERAS if name not in shots or shots[name].distortion is not None]
        if lacking:
            raise InputError(f"layout nuscenes needs {', '.join(lacking)} without distortion; take --sensor nuscenes")
        pictures = []
        for name in CAMERAS:
            shot, picture = shots[name], shots[name].render()
            row = self._sample_data(name, shot.timestamp, True, shot.ego_to_world, shot.size)
            self._mount(name, shot.camera_to_ego, shot.intrinsics.tolist())
            write_image(self.folder / row["filename"], picture.image)
            pictures.append((shot, picture))
        return pictures

    def _add_objects(self, frame: WorldFrame, number: int, pictures: list[tuple[CameraShot, Picture]]) -> None:
        boxes = boxes_in_scan(frame, frame.objects)
        inside = boxes.contains(frame.scan.xyz).sum(axis=1)  # [B]
        for item, count in zip(frame.objects, inside.tolist(), strict=True):
            outlines = [
                outline(shot, picture, item, shot.timestamp - frame.scan.timestamp) for shot, picture in pictures
            ]
            covered = sum(found.pixels for found in outlines if found)
            visible = sum(found.pixels * found.visible for found in outlines if found)
            level = 1 + int(np.searchsorted(_VISIBLE, visible / covered, side="right")) if covered else 1
            self.seen.setdefault(item.instance, []).append((number, item, count, str(level)))

    def _sample_data(
        self, channel: str, seconds: float, is_key: bool, ego_to_world: Matrix, size: tuple[int, int]
    ) -> Row:
        """The row of one file, with its ego_pose, which has the same token, as in the real tables."""
        microseconds = self.start * 1_000_000 + round(seconds * 1e6)
        rows = self.data.setdefault(channel, [])
        token = self.scene.token("sample_data", channel, len(rows))
        suffix = "pcd.bin" if channel == LIDAR else "jpg"
        kind = "samples" if is_key else "sweeps"
        self.poses.append({"token": token, "timestamp": microseconds, **_pose(ego_to_world)})
        rows.append(
            {
                "token": token,
                "sample_token": "",  # known when all samples are
                "ego_pose_token": token,
                "calibrated_sensor_token": self.scene.token("calibrated_sensor", channel),
                "timestamp": microseconds,
                "fileformat": suffix.partition(".")[0],
                "is_key_frame": is_key,
                "height": size[1],
                "width": size[0],
                "filename": f"{kind}/{channel}/{self.log_file}__{channel}__{microseconds}.{suffix}",
                "prev": "",
                "next": "",
            }
        )
        return rows[-1]

    def _mount(self, channel: str, sensor_to_ego: Matrix, intrinsics: list[list[float]]) -> None:
        token = self.scene.token("calibrated_sensor", channel)
        row = {"token": token, "sensor_token": shared_token(self.scene.plan, "sensor", channel), **_pose(sensor_to_ego)}
        self.mounts.setdefault(channel, {**row, "camera_intrinsic": intrinsics})

    def rows(self) -> Rows:
        """The rows of all tables, linked."""
        if not self.samples:
            raise InputError(f"scene {self.name} has no key frame; ask for more --frames")
        times = np.array([sample["timestamp"] for sample in self.samples])
        for rows in self.data.values():
            _link(rows)
            for row in rows:
                # A sweep belongs to the sample nearest in time.
                row["sample_token"] = self.samples[int(np.abs(times - row["timestamp"]).argmin())]["token"]
        _link(self.samples)
        instances, annotations = self._annotations()
        scene, log = self.scene.token("scene"), self.scene.token("log")
        return {
            "log": [
                {
                    "token": log,
                    "logfile": self.log_file,
                    "vehicle": "synth",
                    "date_captured": f"{datetime.fromtimestamp(self.start, timezone.utc):%Y-%m-%d}",
                    "location": f"synthetic-{self.scene.place}",
                }
            ],
            "scene": [
                {
                    "token": scene,
                    "log_token": log,
                    "nbr_samples": len(self.samples),
                    "first_sample_token": self.samples[0]["token"],
                    "last_sample_token": self.samples[-1]["token"],
                    "name": self.name,
                    "description": f"Synthetic {self.scene.place}, seed {self.scene.seed}",
                }
            ],
            "sample": self.samples,
            "sample_data": [row for rows in self.data.values() for row in rows],
            "ego_pose": self.poses,
            "calibrated_sensor": list(self.mounts.values()),
            "lidarseg": self.lidarseg,
            "instance": instances,
            "sample_annotation": annotations,
        }

    def _annotations(self) -> tuple[list[Row], list[Row]]:
        """An object is annotated from the first to the last sample that has a point of it."""
        instances: list[Row] = []
        annotations: list[Row] = []
        for instance, seen in sorted(self.seen.items()):
            met = [number for number, item, _, _ in seen if item.num_points]
            kept = [entry for entry in seen if met and met[0] <= entry[0] <= met[-1]]
            if not kept:
                continue
            ever_moves = any(_speed(item) > MOVING for _, item, _, _ in seen)
            own = [self._annotation(*entry, ever_moves) for entry in kept]
            _link(own)
            category = CATEGORY_OF[CLASSES[kept[0][1].label]]
            instances.append(
                {
                    "token": self.scene.token("instance", instance),
                    "category_token": shared_token(self.scene.plan, "category", category),
                    "nbr_annotations": len(own),
                    "first_annotation_token": own[0]["token"],
                    "last_annotation_token": own[-1]["token"],
                }
            )
            annotations += own
        return instances, annotations

    def _annotation(self, number: int, item: Object, inside: int, visibility: str, ever_moves: bool) -> Row:
        length, width, height = item.size.tolist()
        kind = attribute(CLASSES[item.label], _speed(item) > MOVING, ever_moves)
        return {
            "token": self.scene.token("sample_annotation", item.instance, number),
            "sample_token": self.samples[number]["token"],
            "instance_token": self.scene.token("instance", item.instance),
            "visibility_token": visibility,
            "attribute_tokens": [shared_token(self.scene.plan, "attribute", kind)] if kind else [],
            "translation": item.center.tolist(),
            "size": [width, length, height],
            "rotation": rotation_to_quaternion(item.rotation).tolist(),
            "prev": "",
            "next": "",
            "num_lidar_pts": inside,
            "num_radar_pts": 0,
        }


def _points(frame: WorldFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
    """x right, y forward, z up, intensity 0..255 in whole numbers, ring: float32 [N, 5]."""
    scan = frame.scan
    columns = (-scan.xyz[:, 1], scan.xyz[:, 0], scan.xyz[:, 2], np.round(scan.intensity * 255), scan.ring)
    return np.stack(columns, axis=1).astype("<f4")


def _pose(transform: Matrix) -> Row:
    return {
        "rotation": rotation_to_quaternion(transform[:3, :3]).tolist(),
        "translation": transform[:3, 3].tolist(),
    }


def _speed(item: Object) -> float:
    return float(np.linalg.norm(item.velocity))


def _link(rows: list[Row]) -> None:
    """Fill `prev` and `next` of rows that follow each other."""
    for row, follower in itertools.pairwise(rows):
        row["next"], follower["prev"] = follower["token"], row["token"]
