"""Writes a tiny Argoverse 2 log in the published layout: two sweeps, two cameras, boxes at three times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import feather

HALF = 0.5**0.5
#: Sweeps and annotations; the middle one is the frame that the tests look at.
TIMES = (1_000_000_000, 1_100_000_000, 1_200_000_000)
#: Camera to ego, looking ahead: its x is the vehicle's right, y down, z forward.
AHEAD = (0.5, -0.5, 0.5, -0.5)
#: In ego axes.
POINTS = np.array([[11.5, 2.0, 1.5], [-8.0, 0.25, 0.5]])


def write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table(columns), path)


def poses(times: list[int]) -> dict[str, Any]:
    """The ego heads along the city's y (a quarter turn) at 10 m/s; at 1.1 s it is at (100, 200)."""
    seconds = np.array(times) * 1e-9
    n = len(times)
    return {
        "timestamp_ns": np.array(times, dtype=np.int64),
        "qw": np.full(n, HALF),
        "qx": np.zeros(n),
        "qy": np.zeros(n),
        "qz": np.full(n, HALF),
        "tx_m": np.full(n, 100.0),
        "ty_m": 200.0 + 10.0 * (seconds - 1.1),
        "tz_m": np.full(n, 30.0),
    }


def box_rows() -> list[dict[str, Any]]:
    """A car that the ego follows at its own speed, with 1 m/s to the left besides; a bollard seen once."""
    car = {"track_uuid": "car", "category": "REGULAR_VEHICLE", "length_m": 4.0, "width_m": 2.0, "height_m": 1.5}
    upright = {"qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0}
    rows = [
        {"timestamp_ns": time, **car, **upright, "tx_m": 11.0, "ty_m": 2.0 + 0.1 * step, "tz_m": 1.0}
        for step, time in zip((-1, 0, 1), TIMES, strict=True)
    ]
    bollard = {"track_uuid": "pole", "category": "BOLLARD", "length_m": 0.2, "width_m": 0.2, "height_m": 1.0}
    turned = {"qw": HALF, "qx": 0.0, "qy": 0.0, "qz": HALF}
    rows.append({"timestamp_ns": TIMES[1], **bollard, **turned, "tx_m": -8.0, "ty_m": 0.25, "tz_m": 0.5})
    return [{**row, "num_interior_pts": 1} for row in rows]


def write_log(log: Path, *, images: bool = True, annotations: bool = True) -> Path:
    """`log` as a folder with sweeps at 1.0 and 1.1 s. The image times of ring_front_center are 0.98, 1.06 and 1.12 s
    (0.02 s after the second sweep), that of ring_rear_left is 0.07 s before it."""
    image_times = {"ring_front_center": [980_000_000, 1_060_000_000, 1_120_000_000], "ring_rear_left": [1_030_000_000]}
    for time in TIMES[:2]:
        columns: dict[str, Any] = {axis: POINTS[:, i].astype(np.float16) for i, axis in enumerate("xyz")}
        columns["intensity"] = np.array([51, 255], dtype=np.uint8)
        columns["laser_number"] = np.array([3, 40], dtype=np.uint8)
        columns["offset_ns"] = np.array([0, 5000], dtype=np.int32)
        write(log / "sensors" / "lidar" / f"{time}.feather", columns)
    every = sorted({*TIMES, *(time for times in image_times.values() for time in times)})
    write(log / "city_SE3_egovehicle.feather", poses(every))
    mounts = {
        "ring_front_center": (*AHEAD, 1.5, 0.0, 1.5),
        "ring_rear_left": (*AHEAD, 1.0, 0.5, 1.5),
        "up_lidar": (0.99999, 0.0, 0.0, 0.005, 1.25, 0.0, 1.5),
        "down_lidar": (0.0, 1.0, 0.0, 0.0, 1.25, 0.0, 1.25),
    }
    columns = {"sensor_name": list(mounts)}
    for i, column in enumerate(("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")):
        columns[column] = [mount[i] for mount in mounts.values()]
    write(log / "calibration" / "egovehicle_SE3_sensor.feather", columns)
    write(
        log / "calibration" / "intrinsics.feather",
        {
            "sensor_name": ["ring_front_center", "ring_rear_left"],
            "fx_px": [1000.0, 900.0],
            "fy_px": [1000.0, 900.0],
            "cx_px": [775.0, 1024.0],
            "cy_px": [1024.0, 775.0],
            "k1": [-0.25, -0.25],  # of the raw lens: the images are undistorted
            "k2": [-0.1, -0.1],
            "k3": [0.1, 0.1],
            "height_px": np.array([2048, 1550], dtype=np.uint16),
            "width_px": np.array([1550, 2048], dtype=np.uint16),
        },
    )
    if annotations:
        write(log / "annotations.feather", {key: [row[key] for row in box_rows()] for key in box_rows()[0]})
    if images:
        for camera, times in image_times.items():
            (log / "sensors" / "cameras" / camera).mkdir(parents=True)
            for time in times:
                (log / "sensors" / "cameras" / camera / f"{time}.jpg").write_bytes(b"never decoded here")
    return log
