"""Tiny data sets of KITTI's family with round numbers, so that what readers should say can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from clever3d.datasets import Frame

P2 = "100 0 50 200 0 100 20 -50 0 0 1 0.5"
P3 = "100 0 50 -300 0 100 20 0 0 0 1 0"
P0 = "100 0 50 0 0 100 20 0 0 0 1 0"
QUARTER_TURN = "0 -1 0 1 0 0 0 0 1"  # about the camera's z: (x, y, z) -> (-y, x, z)
IDENTITY = "1 0 0 0 1 0 0 0 1"
VELO_ROTATION = "0 -1 0 0 0 -1 1 0 0"
VELO_TO_CAM = "0 -1 0 0.1 0 0 -1 0.2 1 0 0 0.3"
SCAN = np.array([[10, 2, 1, 0.25], [-10, 2, 1, 0.5]], dtype="<f4")

# By hand, for (10, 2, 1): velodyne to camera 0 gives (-2 + 0.1, -1 + 0.2, 10 + 0.3) = (-1.9, -0.8, 10.3); the quarter
# turn gives (0.8, -1.9, 10.3); P2 gives (80 + 515 + 200, -190 + 206 - 50, 10.3 + 0.5) = (795, -34, 10.8), and P3
# (80 + 515 - 300, -190 + 206, 10.3) = (295, 16, 10.3).
PIXEL_2, DEPTH_2 = (795 / 10.8, -34 / 10.8), 10.8
PIXEL_3, DEPTH_3 = (295 / 10.3, 16 / 10.3), 10.3

NOT_AN_IMAGE = b"never decoded here"


def write_kitti(root: Path, ids: tuple[str, ...] = ("001000", "001004", "005000"), *, stereo: bool = False) -> Path:
    training = root / "training"
    for name in ("velodyne", "image_2", "calib", *(("image_3",) if stereo else ())):
        (training / name).mkdir(parents=True)
    calibration = f"P0: {P0}\nP2: {P2}\nP3: {P3}\nR0_rect: {QUARTER_TURN}\nTr_velo_to_cam: {VELO_TO_CAM}\n\n"
    for frame in ids:
        SCAN.tofile(training / "velodyne" / f"{frame}.bin")
        for folder in training.glob("image_*"):
            (folder / f"{frame}.png").write_bytes(NOT_AN_IMAGE)
        (training / "calib" / f"{frame}.txt").write_text(calibration)
    return root


def write_kitti_raw(day: Path, drives: tuple[str, ...] = ("2011_09_26_drive_0001_sync",)) -> Path:
    for drive in drives:
        scans, images = day / drive / "velodyne_points" / "data", day / drive / "image_02" / "data"
        scans.mkdir(parents=True)
        images.mkdir(parents=True)
        for number in (0, 5):
            SCAN.tofile(scans / f"{number:010d}.bin")
            (images / f"{number:010d}.png").write_bytes(NOT_AN_IMAGE)
        (images / "0000000009.png").write_bytes(b"an image whose scan was never published")
    (day / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\nR_rect_00: {QUARTER_TURN}\nP_rect_00: {P0}\n"
        f"R_rect_02: {IDENTITY}\nP_rect_02: {P2}\nS_rect_02: 1.242000e+03 3.750000e+02\nP_rect_03: {P3}\n"
    )
    (day / "calib_velo_to_cam.txt").write_text(f"calib_time: 15-Mar-2012\nR: {VELO_ROTATION}\nT: 0.1 0.2 0.3\n")
    return day


def write_semantickitti(root: Path, sequences: tuple[str, ...] = ("00", "08")) -> Path:
    """Three scans a sequence, numbered 0, 1, 3, with all that the data set can have."""
    for name in sequences:
        folder = root / "sequences" / name
        for part in ("velodyne", "labels", "image_2"):
            (folder / part).mkdir(parents=True)
        for number in (0, 1, 3):
            SCAN.tofile(folder / "velodyne" / f"{number:06d}.bin")
            labels = np.array([5 << 16 | 252, 40], dtype="<u4")  # a moving car, the fifth one, and road
            labels.tofile(folder / "labels" / f"{number:06d}.label")
            (folder / "image_2" / f"{number:06d}.png").write_bytes(NOT_AN_IMAGE)
        (folder / "calib.txt").write_text(f"P0: {P0}\nP2: {P2}\nP3: {P3}\nTr: {VELO_TO_CAM}\n")
        # the camera goes 5 m ahead a frame and has turned right by a quarter in the last
        poses = [f"1 0 0 0 0 1 0 0 0 0 1 {5 * frame}" for frame in range(3)]
        (folder / "poses.txt").write_text("\n".join([*poses, "0 0 1 0 0 1 0 0 -1 0 0 15"]) + "\n")
        (folder / "times.txt").write_text("0.000000e+00\n1.037875e-01\n2.074319e-01\n3.110000e-01\n")
    return root


def write_rellis(root: Path, sequences: tuple[str, ...] = ("00000", "00001")) -> Path:
    """The full release's folders, two scans a sequence, numbered 103 and 104."""
    for name in sequences:
        folder = root / "Rellis-3D" / name
        scans, labels = folder / "os1_cloud_node_kitti_bin", folder / "os1_cloud_node_semantickitti_label_id"
        images = folder / "pylon_camera_node"
        for part in (scans, labels, images):
            part.mkdir(parents=True)
        for number in (103, 104):
            write_rellis_scan(scans / f"{number:06d}.bin")
            np.array([3, 0, 4], dtype="<u4").tofile(labels / f"{number:06d}.label")
            (images / f"frame{number:06d}-1581624663_{number - 60:03d}.jpg").write_bytes(NOT_AN_IMAGE)
        write_rellis_calibration(folder)
    return root


def write_rellis_scan(path: Path) -> None:
    """A point at (10, 2, 1) in FLU, which is (-10, -2, 1) in the file; a slot without return; a very bright point."""
    rows = [[-10, -2, 1, 250 / 65535], [0, 0, 0, 0], [5, 1, -1, 4000 / 65535]]
    np.array(rows, dtype="<f4").tofile(path)


def write_rellis_calibration(folder: Path) -> None:
    (folder / "camera_info.txt").write_text("2800 2700 960 600\n")
    (folder / "transforms.yaml").write_text(
        "os1_cloud_node-pylon_camera_node:\n"
        "  q:\n    w: 0.5\n    x: -0.5\n    y: -0.5\n    z: 0.5\n"
        "  t:\n    x: -0.2\n    y: 0.1\n    z: -0.1\n"
    )


def seen_by(frame: Frame) -> tuple[int, int]:
    """Number of points, and of those inside at least one image."""
    xyz = frame.points().xyz
    seen = np.zeros(len(xyz), dtype=bool)
    for camera in frame.cameras:
        with Image.open(camera.image_path) as image:
            width, height = image.size
        (u, v), depth = (pixels := camera.project(xyz))[0].T, pixels[1]
        seen |= (depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return len(xyz), int(seen.sum())
