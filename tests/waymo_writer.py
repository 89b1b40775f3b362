"""Writes a tiny Waymo v2 segment: the columns and their types are those of waymo-open-dataset's v2 components."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

SEGMENT = "1000_0_20_0"
TIMES = (1_000_000, 1_100_000, 1_200_000)
NAMES = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT")
TIME, LASER, CAMERA = "key.frame_timestamp_micros", "key.laser_name", "key.camera_name"

#: The TOP LiDAR looks to the left of the vehicle: a quarter turn.
EXTRINSIC = np.array([[0.0, -1, 0, 1.5], [1, 0, 0, 0], [0, 0, 1, 2.0], [0, 0, 0, 1]])
INCLINATIONS = [-0.3, -0.1, 0.0]  # from the lowest beam up: the image's rows are the other way round
H, W = 3, 9

#: camera_model_test.cc of waymo-open-dataset: pixel (100, 1000) at depth 20 is (21.44064, 8.32240, -1.62938) in the
#: vehicle's axes, for this calibration of FRONT and a global shutter.
INTRINSIC = {
    "f_u": 2055.55614936, "f_v": 2055.55614936, "c_u": 939.657469886, "c_v": 641.072182194, "k1": 0.032316008498,
    "k2": -0.321412482553, "p1": 0.000793258395371, "p2": -0.000625749354133, "k3": 0.0,
}  # fmt: skip
FRONT = np.array(
    [
        [0.999892684989, -0.00599320840002, 0.0133678704017, 1.53891424471],
        [0.00604223652133, 0.999975156055, -0.0036302411765, -0.0236339408393],
        [-0.0133457814992, 0.00371062343188, 0.999904056092, 2.11527057298],
        [0, 0, 0, 1],
    ]
)

_MATRIX, _FLOATS, _SHAPE = pa.list_(pa.float64(), 16), pa.list_(pa.float32()), pa.list_(pa.int32(), 3)


def vehicle_to_world(position: float) -> np.ndarray:
    """Heading along the world's y, driving 1 m a frame: at (100, 200 + position, 0)."""
    return np.array([[0.0, -1, 0, 100], [1, 0, 0, 200 + position], [0, 0, 1, 0], [0, 0, 0, 1]])


def range_image(number: int = 0) -> np.ndarray:
    """[H, W, 4]: two pixels with a return. (0, 4): the beam at 0 rad, straight ahead, 10 m; (1, 4): -0.1 rad, 20 m."""
    image = np.full((H, W, 4), -1.0, dtype=np.float32)
    image[..., 1] = 0.0
    image[0, 4, :2] = 10.0, 0.5 + 0.1 * number
    image[1, 4, :2] = 20.0, 100.0
    return image


def pixel_poses(position: float) -> np.ndarray:
    """[H, W, 6]: row 1 was met half a metre before the frame's pose, row 0 at it."""
    poses = np.zeros((H, W, 6), dtype=np.float32)
    poses[..., 2] = np.pi / 2
    poses[..., 3] = 100
    poses[..., 4] = 200 + position
    poses[1, :, 4] -= 0.5
    return poses


def write(root: Path, component: str, rows: Sequence[dict[str, Any]], types: dict[str, Any], **options: Any) -> Path:
    keys = {"key.segment_context_name": pa.string(), TIME: pa.int64(), LASER: pa.int8(), CAMERA: pa.int8()}
    keys["key.laser_object_id"] = pa.string()
    schema = pa.schema([(name, {**keys, **types}[name]) for name in rows[0]])
    path = root / component / f"{SEGMENT}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, **options)
    return path


def image_columns(field: str, image: np.ndarray) -> dict[str, Any]:
    return {f"{field}.values": image.ravel().tolist(), f"{field}.shape": list(image.shape)}


def write_lidar(root: Path, image: np.ndarray | None = None) -> Path:
    """Two lasers, the later frames first: rows are in no useful order in published files either."""
    field = "[LiDARComponent].range_image_return1"
    rows = []
    for number, time in reversed(list(enumerate(TIMES))):
        side = np.ones((2, 2, 4), dtype=np.float32)
        for laser, pixels in ((2, side), (1, range_image(number) if image is None else image)):
            rows.append({"key.segment_context_name": SEGMENT, TIME: time, LASER: laser, **image_columns(field, pixels)})
    return write(root, "lidar", rows, {f"{field}.values": _FLOATS, f"{field}.shape": _SHAPE})


def write_poses(root: Path, times: Sequence[int] = TIMES) -> Path:
    column = "[VehiclePoseComponent].world_from_vehicle.transform"
    rows = [{TIME: time, column: vehicle_to_world(i).ravel().tolist()} for i, time in enumerate(times)]
    return write(root, "vehicle_pose", rows, {column: _MATRIX})


def write_pixel_poses(root: Path, shape: tuple[int, int] = (H, W)) -> Path:
    field = "[LiDARPoseComponent].range_image_return1"
    rows = []
    for i, time in enumerate(TIMES):
        poses = pixel_poses(i)[: shape[0], : shape[1]]
        rows.append({TIME: time, LASER: 1, **image_columns(field, poses)})
    return write(root, "lidar_pose", rows, {f"{field}.values": _FLOATS, f"{field}.shape": _SHAPE})


def write_laser(root: Path, extrinsic: np.ndarray = EXTRINSIC, values: list[float] | None = INCLINATIONS) -> Path:
    prefix = "[LiDARCalibrationComponent]"
    rows = [
        {
            LASER: laser,
            f"{prefix}.extrinsic.transform": extrinsic.ravel().tolist(),
            f"{prefix}.beam_inclination.min": -0.3,
            f"{prefix}.beam_inclination.max": 0.3,
            f"{prefix}.beam_inclination.values": values if laser == 1 else None,
        }
        for laser in (3, 1)
    ]
    types = {f"{prefix}.extrinsic.transform": _MATRIX, f"{prefix}.beam_inclination.values": pa.list_(pa.float64())}
    types |= {f"{prefix}.beam_inclination.{end}": pa.float64() for end in ("min", "max")}
    return write(root, "lidar_calibration", rows, types)


def write_boxes(root: Path, kind: int = 1) -> Path:
    prefix = "[LiDARBoxComponent]"
    rows = []
    for time in TIMES:
        for name, speed in (("a", 3.0), ("b", None)):
            row: dict[str, Any] = {TIME: time, "key.laser_object_id": name}
            values = {"center": (11.5, 0.0, 2.0), "size": (4.0, 2.0, 1.5)}
            row |= {
                f"{prefix}.box.{what}.{axis}": v
                for what, xyz in values.items()
                for axis, v in zip("xyz", xyz, strict=True)
            }
            row |= {f"{prefix}.box.heading": np.pi / 2, f"{prefix}.type": kind}
            row |= {f"{prefix}.num_lidar_points_in_box": 5, f"{prefix}.num_top_lidar_points_in_box": 1}
            # along the world's y, in which the vehicle heads
            row |= {f"{prefix}.speed.{axis}": None if speed is None else speed * (axis == "y") for axis in "xyz"}
            rows.append(row)
    types = {name: pa.float64() for name in rows[0]}
    types |= {f"{prefix}.type": pa.int8()}
    types |= {f"{prefix}.num_{which}_points_in_box": pa.int64() for which in ("lidar", "top_lidar")}
    keys = {TIME: pa.int64(), "key.laser_object_id": pa.string()}
    return write(root, "lidar_box", rows, types | keys)


def write_labels(root: Path, shape: tuple[int, int] = (H, W)) -> Path:
    """Only the second frame is labelled: (0, 4) a car, instance 7; (1, 4) road."""
    labels = np.zeros((H, W, 2), dtype=np.int32)
    labels[0, 4] = 7, 1
    labels[1, 4] = 0, 18
    field = "[LiDARSegmentationLabelComponent].range_image_return1"
    rows = [{TIME: TIMES[1], LASER: 1, **image_columns(field, labels[: shape[0], : shape[1]])}]
    types = {f"{field}.values": pa.list_(pa.int32()), f"{field}.shape": _SHAPE}
    return write(root, "lidar_segmentation", rows, types)


def jpeg(time: int, camera: str) -> bytes:
    return f"JPEG of {camera} at {time}".encode()


def write_images(
    root: Path, group: int = 5, names: bool = False, images: dict[tuple[int, str], bytes | None] | None = None
) -> Path:
    """The images of each frame were taken 0.25 m later than its pose. `group`: rows a row group."""
    prefix = "[CameraImageComponent]"
    pose, moment = f"{prefix}.pose.transform", f"{prefix}.pose_timestamp"
    if images is None:
        images = {(time, name): jpeg(time, name) for time in TIMES for name in NAMES}
    rows = [
        {
            TIME: time,
            CAMERA: name if names else NAMES.index(name) + 1,
            f"{prefix}.image": data,
            pose: vehicle_to_world(TIMES.index(time) + 0.25).ravel().tolist(),
            moment: time * 1e-6 + 0.025,
        }
        for (time, name), data in images.items()
    ]
    types = {f"{prefix}.image": pa.binary(), pose: _MATRIX, moment: pa.float64()}
    if names:
        types[CAMERA] = pa.string()
    return write(root, "camera_image", rows, types, row_group_size=group)


def write_cameras(root: Path, extrinsic: np.ndarray = FRONT, **intrinsic: float) -> Path:
    prefix = "[CameraCalibrationComponent]"
    rows = [
        {
            CAMERA: camera,
            **{f"{prefix}.intrinsic.{name}": value for name, value in {**INTRINSIC, **intrinsic}.items()},
            f"{prefix}.extrinsic.transform": extrinsic.ravel().tolist(),
            f"{prefix}.width": 1920,
            f"{prefix}.height": 1280,
        }
        for camera in range(1, 6)
    ]
    types = {f"{prefix}.intrinsic.{name}": pa.float64() for name in INTRINSIC}
    types |= {f"{prefix}.extrinsic.transform": _MATRIX, f"{prefix}.width": pa.int32(), f"{prefix}.height": pa.int32()}
    return write(root, "camera_calibration", rows, types)


def write_segment(root: Path) -> Path:
    """All components of one segment, in the folder of a split."""
    for make in (write_poses, write_lidar, write_pixel_poses, write_laser, write_boxes, write_labels, write_images):
        make(root)
    write_cameras(root)
    return root
