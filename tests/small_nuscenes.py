"""A nuScenes of two samples with round numbers, written by hand: what is true of it can be worked out on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from clever3d.datasets.nuscenes_labels import CATEGORIES

Rows = list[dict[str, Any]]

HALF = 0.5**0.5
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
# LIDAR_TOP as recorded: x right, y forward. In FLU these are (10, 2, -0.5) and (0, -20, -0.5).
SWEEP = np.array([[-2, 10, -0.5, 51, 7], [20, 0, -0.5, 255, 31]], dtype="<f4")
#: Labels of the two points: a car, driveable surface.
LABELS = np.array([17, 24], dtype=np.uint8)
AHEAD = [HALF, 0, 0, HALF]  # the ego vehicle's rotation: it heads along global y


def pose(token: str, translation: list[float], rotation: list[float], **columns: object) -> dict[str, Any]:
    return {"token": token, "translation": translation, "rotation": rotation, **columns}


def nuscenes_tables() -> dict[str, Rows]:
    """Two samples of one scene, the later one first; every camera looks ahead, except CAM_BACK.

    At LIDAR_TOP's key frames the ego is at (100, 200), heading along global y; at the sweep before each of them, 50 ms
    earlier, it was 2 m behind. At the cameras' time it has driven 0.5 m further; for CAM_BACK it is where it was but
    turned left by a quarter. The late sample is 0.5 s after the early one.
    """
    intrinsic = [[1000.0, 0.0, 800.0], [0.0, 1000.0, 450.0], [0.0, 0.0, 1.0]]
    channels = ("LIDAR_TOP", *CAMERAS, "RADAR_FRONT")
    mounts = [
        pose("mount LIDAR_TOP", [1, 0, 2], [HALF, 0, 0, -HALF], sensor_token="sensor LIDAR_TOP", camera_intrinsic=[]),
        pose("mount RADAR_FRONT", [3, 0, 0], [1, 0, 0, 0], sensor_token="sensor RADAR_FRONT", camera_intrinsic=[]),
    ]
    for channel in CAMERAS:
        back = channel == "CAM_BACK"
        place: list[float] = [0, 0, 1.5] if back else [1.5, 0, 1.6]
        turn = [0.5, -0.5, -0.5, 0.5] if back else [0.5, -0.5, 0.5, -0.5]
        columns = {"sensor_token": f"sensor {channel}", "camera_intrinsic": intrinsic}
        mounts.append(pose(f"mount {channel}", place, turn, **columns))
    poses = [
        pose("at lidar time", [100, 200, 0], AHEAD),
        pose("at sweep time", [100, 198, 0], AHEAD),
        pose("at camera time", [100, 200.5, 0], AHEAD),
        pose("turned", [100, 200, 0], [0, 0, 0, 1]),
    ]
    return {
        "scene": [{"token": "s", "name": "scene-0001"}],
        "sample": [
            {"token": "late", "scene_token": "s", "timestamp": 1_500_000},
            {"token": "early", "scene_token": "s", "timestamp": 1_000_000},
        ],
        "sensor": [{"token": f"sensor {channel}", "channel": channel} for channel in channels],
        "calibrated_sensor": mounts,
        "ego_pose": poses,
        "sample_data": [row for channel in channels for row in _data(channel)],
        **_annotations(),
        "category": [{"token": f"is {name}", "name": name, "index": i} for i, name in enumerate(CATEGORIES)],
        "lidarseg": [
            {
                "token": f"LIDAR_TOP {sample}",
                "sample_data_token": f"LIDAR_TOP {sample}",
                "filename": f"lidarseg/v1.0-mini/{sample}_lidarseg.bin",
            }
            for sample in ("early", "late")
        ],
    }


def _data(channel: str) -> Rows:
    """Of one channel: a sweep, the early key frame, a sweep, the late key frame; in another order."""
    camera = channel.startswith("CAM")
    names = ["before early", "early", "before late", "late"]
    rows = []
    for i, name in enumerate(names):
        key = i % 2 == 1
        place = {"LIDAR_TOP": "at lidar time" if key else "at sweep time", "CAM_BACK": "turned"}
        row = {
            "token": f"{channel} {name}",
            "sample_token": "early" if i < 2 else "late",
            "ego_pose_token": place.get(channel, "at camera time"),
            "calibrated_sensor_token": f"mount {channel}",
            "timestamp": 1_000_000 + (i // 2) * 500_000 - (not key) * 50_000 - camera * 10_000,
            "is_key_frame": key,
            "width": 1600 * camera,
            "height": 900 * camera,
            "filename": f"{'samples' if key else 'sweeps'}/{channel}/{name}",
            "prev": f"{channel} {names[i - 1]}" if i else "",
        }
        rows.append(row)
    return [rows[i] for i in (3, 0, 1, 2)]


def _annotations() -> dict[str, Rows]:
    """A car ahead that drives along global y at 4 m/s, and a pedestrian that is seen only once."""

    def row(token: str, sample: str, instance: str, y: float, before: str, after: str, points: int) -> dict[str, Any]:
        size = [2.0, 4.0, 1.5] if instance == "car" else [0.6, 0.8, 1.8]
        return pose(
            token,
            [100, y, 1],
            AHEAD,
            sample_token=sample,
            instance_token=instance,
            size=size,
            prev=before,
            next=after,
            num_lidar_pts=points,
        )

    return {
        "instance": [
            {"token": "car", "category_token": "is vehicle.car"},
            {"token": "walker", "category_token": "is human.pedestrian.adult"},
        ],
        "sample_annotation": [
            row("car late", "late", "car", 212, "car early", "", 5),
            row("car early", "early", "car", 210, "", "car late", 7),
            row("walker early", "early", "walker", 205, "", "", 1),
        ],
    }


def write_nuscenes(root: Path, tables: dict[str, Rows] | None = None) -> Path:
    """Tables, scans and labels; no images."""
    for folder in ("v1.0-mini", "samples/LIDAR_TOP", "sweeps/LIDAR_TOP", "lidarseg/v1.0-mini"):
        (root / folder).mkdir(parents=True)
    for sample in ("late", "early"):
        SWEEP.tofile(root / "samples" / "LIDAR_TOP" / sample)
        SWEEP.tofile(root / "sweeps" / "LIDAR_TOP" / f"before {sample}")
        LABELS.tofile(root / "lidarseg" / "v1.0-mini" / f"{sample}_lidarseg.bin")
    write_tables(root, tables or nuscenes_tables())
    return root


def write_tables(root: Path, tables: dict[str, Rows]) -> None:
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
