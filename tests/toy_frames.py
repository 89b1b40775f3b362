"""A small data set of one scene with everything a frame can have, on disk, for the tests of its check.

Nothing heavy is imported: processes that check its frames import this module.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clever3d.datasets import Boxes, Camera, Dataset, Frame, LabelSpec, PointLabels
from clever3d.errors import DataError
from clever3d.io import PointCloud, read_bin

SIZE = (96, 64)  # pixels
FRAMES = 7
POINTS = 400
SPEC = LabelSpec("toy", {0: "nothing", 7: "thing"}, ("thing",), {7: 0}, ((255, 0, 0),))
FLU_TO_CAMERA = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


class Toy(Dataset):
    """Frames as they are given."""

    name = "toy"
    LAYOUT = "toy needs frames"

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = list(frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Frame:
        return self.frames[index]

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return False


class ToyFolder(Toy):
    """As `write` made it."""

    name = "toy_folder"

    def __init__(self, root: Path | str) -> None:
        super().__init__([frame(Path(root), number) for number in range(len(list(Path(root).glob("*.bin"))))])


class SlowToy(ToyFolder):
    """Whose scans take a tenth of a second to read."""

    def __getitem__(self, index: int) -> Frame:
        return replace(super().__getitem__(index), read=read_slowly)


def write(root: Path, frames: int = FRAMES) -> list[Frame]:
    """Writes `frames` frames, one every 0.1 s, of a vehicle that drives at 10 m/s."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        generator = np.random.default_rng(number)
        xyz = generator.uniform((4, -3, -1), (30, 3, 2), (POINTS, 3))
        np.column_stack([xyz, generator.uniform(0, 1, POINTS)]).astype("<f4").tofile(root / f"{number}.bin")
        image = generator.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(image).save(root / f"{number}.png")
        np.where(np.arange(POINTS) % 3, 0, 7).astype("<u4").tofile(root / f"{number}.label")
        box = {"center": [15.0, 0.0, 0.5], "size": [22.0, 6.0, 3.0], "yaw": 0.0, "track": "a"}
        inside = (np.abs(xyz - box["center"]) <= np.array(box["size"]) / 2).all(axis=1)
        boxes = [{**box, "points": int(inside.sum())}, {**box, "track": "b", "points": int(inside.sum())}]
        (root / f"{number}.json").write_text(json.dumps(boxes))
    return [frame(root, number) for number in range(frames)]


def frame(root: Path, number: int) -> Frame:
    """One frame of the folder."""
    pose = np.eye(4)
    pose[0, 3] = number  # metres
    scan = root / f"{number}.bin"
    return Frame(
        id=f"frame-{number}",
        scene="scene",
        cameras=(camera("front", root / f"{number}.png", number / 10 + 0.02),),
        points_path=scan,
        dataset="toy",
        read=read,
        timestamp=number / 10,
        points_to_world=pose,
        read_labels=functools.partial(read_labels, root / f"{number}.label", scan),
        read_boxes=functools.partial(read_boxes, root / f"{number}.json"),
    )


def camera(name: str, image: Path, timestamp: float | None = None) -> Camera:
    """One that looks ahead from the sensor."""
    intrinsics = np.array([[80.0, 0, 47.5], [0, 80.0, 31.5], [0, 0, 1]])
    return Camera(name, image, intrinsics, FLU_TO_CAMERA, image_size=SIZE, timestamp=timestamp)


def read(path: Path) -> PointCloud:
    """x, y, z, intensity."""
    rows = read_bin(path, 4)
    return PointCloud(rows[:, :3], rows[:, 3], "toy")


def read_and_log(path: Path, log: Path) -> PointCloud:
    """Leaves the file's name in `log`."""
    with log.open("a") as file:
        file.write(f"{path.name}\n")
    return read(path)


def read_slowly(path: Path) -> PointCloud:
    """As a disk far away."""
    time.sleep(0.1)
    return read(path)


def read_and_die(path: Path) -> PointCloud:
    """As when memory runs out: the kernel kills the process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    return read(path)


def read_and_crash(path: Path) -> PointCloud:
    """A reader with an error in it."""
    raise KeyError("intensity")


def read_and_die_in_company(path: Path, folder: Path) -> PointCloud:
    """As when memory is enough for one frame at a time: the first time the process dies, later it does not."""
    if not (mark := folder / "died").exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path)


def read_labels(path: Path, scan: Path) -> PointLabels:
    """uint32 ids; DataError where their number is not the scan's."""
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    ids = np.fromfile(path, dtype="<u4")
    if len(ids) != scan.stat().st_size // 16:
        raise DataError(f"{path} has {len(ids)} labels for {scan.stat().st_size // 16} points")
    return PointLabels(ids.astype(np.int32), SPEC, path=str(path))


def read_boxes(path: Path) -> Boxes:
    """Boxes from JSON."""
    rows: list[Mapping[str, Any]] = json.loads(path.read_text())
    if not rows:
        return Boxes.empty()
    turns = np.array([[[np.cos(row["yaw"]), -np.sin(row["yaw"]), 0], [np.sin(row["yaw"]), np.cos(row["yaw"]), 0],
                       [0, 0, row.get("zz", 1.0)]] for row in rows])  # fmt: skip
    return Boxes(
        centers=np.array([row["center"] for row in rows], dtype=np.float64),
        sizes=np.array([row["size"] for row in rows], dtype=np.float64),
        rotations=turns,
        names=tuple("car" for _ in rows),
        track_ids=tuple(row["track"] for row in rows),
        num_points=np.array([row["points"] for row in rows]),
    )
