"""Time and memory of opening nuScenes: tables of its size are written, then opened in fresh processes.

    python benchmarks/nuscenes_index.py [--scenes 850] [--repeats 3] [--keep DIR] [--output FILE]

The tables have the size of v1.0-trainval (850 scenes, 34,149 key frames, 2.63 million rows of sample_data and of
ego_pose, 1.17 million annotations), all official columns, and the official way of writing: one value a line. Their
content is made up, by a seed. Measured, each in a new process with an empty or a filled cache: opening all frames
(`open`), the first boxes after that (`boxes`), and then the time of one frame and of one frame's boxes, averaged over
frames drawn at random. The tables are in the page cache when they are read: what a disk costs comes on top. `_s` is on
the clock, `_cpu_s` the processor's time: they differ where others use the machine. Peak memory is the largest resident
size of the process, imports included (VmHWM, so Linux only). Prints, and with --output writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

VERSION = "v1.0-trainval"
LIDAR = "LIDAR_TOP"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
#: Rows of sample_data that each sensor has in a scene, so that their sum is the published 2,631,083 within 0.02 %.
ROWS = {LIDAR: 390} | dict.fromkeys(CAMERAS, 220) | dict.fromkeys(RADARS, 277)
#: 850 scenes of 40 samples, and one more in the first 149: the published 34,149.
SAMPLES, LONGER_SCENES = 40, 149
#: 64,386 instances and 1,166,187 annotations in 850 scenes, rounded.
INSTANCES, LIFETIME = 76, 18
OFFICIAL_SCENES = 850

MEASURE = """
import json, random, sys, time
started = time.perf_counter()
from clever3d.datasets import NuScenes
figures = {"import_s": time.perf_counter() - started}
def peak_mb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
def timed(name, work):
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    figures[f"{name}_s"] = time.perf_counter() - wall
    figures[f"{name}_cpu_s"] = time.process_time() - cpu
    figures[f"{name}_peak_mb"] = peak_mb()
    return result
data = timed("open", lambda: NuScenes(sys.argv[1], sweeps=int(sys.argv[2])))
timed("boxes", data[len(data) // 2].boxes)
rows = random.Random(0).sample(range(len(data)), min(1000, len(data)))
frames = timed("frames", lambda: [data[row] for row in rows])
boxes = timed("their_boxes", lambda: [frame.boxes() for frame in frames])
figures["frame_ms"] = 1e3 * figures.pop("frames_s") / len(rows)
figures["boxes_ms"] = 1e3 * figures.pop("their_boxes_s") / len(rows)
figures = {key: value for key, value in figures.items() if not key.startswith(("frames_", "their_boxes_"))}
figures |= {"frames": len(data), "boxes_a_frame": sum(map(len, boxes)) / len(rows)}
print(json.dumps(figures))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=OFFICIAL_SCENES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sweeps", type=int, default=0, help="open with that many earlier sweeps linked")
    parser.add_argument("--keep", type=Path, help="write the tables there, and use them again if they are there")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="nuscenes-tables-"))
    try:
        if not (root / VERSION).is_dir():
            write_tables(root, options.scenes)
        report = measured(root, options)
    finally:
        if options.keep is None:
            shutil.rmtree(root)
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def measured(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures: medians over the runs, and each run's own."""
    import numpy

    tables = root / VERSION
    runs: dict[str, list[dict[str, float]]] = {"cold": [], "cached": []}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(options.repeats):
            shutil.rmtree(cache)
            Path(cache).mkdir()
            for kind in runs:
                run = [sys.executable, "-c", MEASURE, str(root), str(options.sweeps)]
                environment = os.environ | {"CLEVER3D_CACHE": cache}
                done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                runs[kind].append({key: round(value, 3) for key, value in json.loads(done.stdout).items()})
        cached_mb = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file()) / 1e6
    medians = {
        kind: {key: statistics.median(run[key] for run in many) for key in many[0]} for kind, many in runs.items()
    }
    return {
        "benchmark": "nuscenes_index",
        "date": date.today().isoformat(),
        "command": "python benchmarks/nuscenes_index.py "
        f"--scenes {options.scenes} --repeats {options.repeats} --sweeps {options.sweeps}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "versions": {"python": platform.python_version(), "numpy": numpy.__version__},
        "tables_mb": {path.name: round(path.stat().st_size / 1e6, 1) for path in sorted(tables.glob("*.json"))},
        "cache_mb": round(cached_mb, 1),
        "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
        "median": medians,
        "runs": runs,
    }


# ---------------------------------------------------------------- the tables


class Maker:
    """Writes the tables of a version row by row, as the official ones are written: one value a line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.random = random.Random(0)

    def token(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def numbers(self, count: int, size: float) -> list[float]:
        return [self.random.uniform(-size, size) for _ in range(count)]

    def write(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        with (self.folder / f"{name}.json").open("w") as file:
            file.write("[\n")
            for number, row in enumerate(rows):
                file.write((",\n" if number else "") + one_value_a_line(row))
            file.write("\n]")


def one_value_a_line(row: dict[str, Any]) -> str:
    """As json.dumps(row, indent=0), and much quicker; no text here has a bracket in it."""
    text = json.dumps(row, separators=(",\n", ": "))
    for bracket in "{[":
        text = text.replace(bracket, bracket + "\n")
    for bracket in "]}":
        text = text.replace(bracket, "\n" + bracket)
    return text.replace("[\n\n]", "[]")


def write_tables(root: Path, scenes: int) -> None:
    """The 13 tables of `scenes` scenes."""
    folder = root / VERSION
    folder.mkdir(parents=True)
    make = Maker(folder)
    sensors = {channel: make.token() for channel in ROWS}
    modality = {"L": "lidar", "C": "camera", "R": "radar"}
    make.write("sensor", ({"token": sensors[c], "channel": c, "modality": modality[c[0]]} for c in sensors))
    scene_rows, sample_rows, mount_rows = [], [], []
    plans = []  # per scene: its samples and its mounts
    for number in range(scenes):
        token = make.token()
        count = SAMPLES + (number < LONGER_SCENES)
        begin = 1_532_402_927_647_951 + number * 60_000_000
        samples = linked(make, [{"timestamp": begin + 500_000 * i, "scene_token": token} for i in range(count)])
        mounts = {channel: make.token() for channel in ROWS}
        mount_rows += [mount_row(make, mounts[c], sensors[c], c in CAMERAS) for c in ROWS]
        sample_rows += samples
        scene_rows.append(scene_row(make, number, token, samples))
        plans.append((samples, mounts))
    make.write("scene", scene_rows)
    make.write("sample", sample_rows)
    make.write("calibrated_sensor", mount_rows)
    write_data(make, plans)
    write_annotations(make, [samples for samples, _ in plans])
    for name in ("attribute", "visibility", "log", "map"):
        make.write(name, [])


def linked(make: Maker, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with tokens of their own, each naming the one before and the one after."""
    tokens = ["", *(make.token() for _ in rows), ""]
    return [{"token": tokens[i + 1], **row, "prev": tokens[i], "next": tokens[i + 2]} for i, row in enumerate(rows)]


def scene_row(make: Maker, number: int, token: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "token": token,
        "log_token": make.token(),
        "nbr_samples": len(samples),
        "first_sample_token": samples[0]["token"],
        "last_sample_token": samples[-1]["token"],
        "name": f"scene-{number + 1:04d}",
        "description": "Parked truck, construction, intersection, turn left, following a van",
    }


def mount_row(make: Maker, token: str, sensor: str, camera: bool) -> dict[str, Any]:
    intrinsic = [[1266.417203046554, 0.0, 816.2670197447984], [0.0, 1266.417203046554, 491.50706579294757], [0.0, 0, 1]]
    return {
        "token": token,
        "sensor_token": sensor,
        "translation": make.numbers(3, 2),
        "rotation": make.numbers(4, 1),
        "camera_intrinsic": intrinsic if camera else [],
    }


def write_data(make: Maker, plans: list[tuple[list[dict[str, Any]], dict[str, str]]]) -> None:
    """sample_data, and ego_pose, whose tokens are the same as officially."""
    with (make.folder / "sample_data.json").open("w") as data, (make.folder / "ego_pose.json").open("w") as poses:
        data.write("[")
        poses.write("[")
        comma = ""
        for samples, mounts in plans:
            for channel, count in ROWS.items():
                for row in data_rows(make, samples, mounts[channel], channel, count):
                    pose = {
                        "token": row["token"],
                        "timestamp": row["timestamp"],
                        "rotation": make.numbers(4, 1),
                        "translation": [*make.numbers(2, 2000), 0.0],
                    }
                    data.write(comma + "\n" + one_value_a_line(row))
                    poses.write(comma + "\n" + one_value_a_line(pose))
                    comma = ","
        data.write("\n]")
        poses.write("\n]")


def data_rows(make: Maker, samples: list[dict[str, Any]], mount: str, channel: str, count: int) -> list[dict[str, Any]]:
    """One sensor's rows in one scene: key frames at the samples, the others between them."""
    camera, lidar = channel in CAMERAS, channel == LIDAR
    kind, suffix = ("jpg", ".jpg") if camera else ("pcd", ".pcd.bin" if lidar else ".pcd")
    tokens = ["", *(make.token() for _ in range(count)), ""]
    keys = {i * (count - 1) // (len(samples) - 1): i for i in range(len(samples))}
    rows, sample = [], 0
    for i in range(count):
        sample = keys.get(i, sample)
        time = samples[0]["timestamp"] + i * 20_000_000 // count
        folder = "samples" if i in keys else "sweeps"
        rows.append(
            {
                "token": tokens[i + 1],
                "sample_token": samples[sample]["token"],
                "ego_pose_token": tokens[i + 1],
                "calibrated_sensor_token": mount,
                "timestamp": time,
                "fileformat": kind,
                "is_key_frame": i in keys,
                "height": 900 if camera else 0,
                "width": 1600 if camera else 0,
                "filename": f"{folder}/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{time}{suffix}",
                "prev": tokens[i],
                "next": tokens[i + 2],
            }
        )
    return rows


def write_annotations(make: Maker, scenes: list[list[dict[str, Any]]]) -> None:
    """category, instance and sample_annotation."""
    categories = [{"token": make.token(), "name": f"vehicle.kind{i}", "description": ""} for i in range(23)]
    make.write("category", categories)
    instances, annotations = [], []
    for samples in scenes:
        for number in range(INSTANCES):
            token, first = make.token(), make.random.randrange(len(samples) - LIFETIME)
            rows = [annotation_row(make, sample, token) for sample in samples[first : first + LIFETIME]]
            chain = linked(make, rows)
            annotations += chain
            instances.append(
                {
                    "token": token,
                    "category_token": categories[number % 23]["token"],
                    "nbr_annotations": LIFETIME,
                    "first_annotation_token": chain[0]["token"],
                    "last_annotation_token": chain[-1]["token"],
                }
            )
    make.write("instance", instances)
    make.write("sample_annotation", annotations)


def annotation_row(make: Maker, sample: dict[str, Any], instance: str) -> dict[str, Any]:
    return {
        "sample_token": sample["token"],
        "instance_token": instance,
        "visibility_token": "4",
        "attribute_tokens": [make.token()],
        "translation": [round(x, 3) for x in make.numbers(3, 2000)],
        "size": [0.621, 1.669, 1.642],
        "rotation": [*make.numbers(1, 1), 0.0, 0.0, *make.numbers(1, 1)],
        "num_lidar_pts": make.random.randrange(100),
        "num_radar_pts": 0,
    }


if __name__ == "__main__":
    main()
