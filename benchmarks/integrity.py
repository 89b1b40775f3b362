"""How fast `clever3d data check` reads a data set, against reading the same files and nothing else.

    python benchmarks/integrity.py [--kitti KITTI] [--frames 60] [--rounds 5] [--jobs 1 2]

Without --kitti, frames like KITTI's are made: 120,000 points and a PNG of 1242 x 375. In turns, in one process: `plain`
reads the scan with numpy.fromfile and decodes the image with Pillow; `check` does everything that the check does with a
frame; `fast` does so but for decoding the image. Processor time of the fastest round, and all rounds. Then whole checks
over --jobs processes, their start included, in wall time. Last, the peak memory of the checking process for two numbers
of frames (small ones, each read many times): the difference is what a frame costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from clever3d.datasets import Dataset, Frame, open_dataset
from clever3d.datasets.integrity import check_dataset, check_frame

MEMORY_FRAMES = (1000, 21_000)
CALIBRATION = """\
P2: 721.5 0 609.6 44.9 0 721.5 172.9 0.2 0 0 1 0.003
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27
"""


def write_frames(root: Path, count: int, points: int, size: tuple[int, int]) -> Path:
    """KITTI's layout; images of smooth shapes with a camera's noise, which PNG packs to about the size of KITTI's."""
    for folder in ("velodyne", "image_2", "calib"):
        (root / "training" / folder).mkdir(parents=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        rows = generator.uniform((-70, -70, -2, 0), (70, 70, 3, 1), (points, 4)).astype("<f4")
        rows.tofile(root / "training" / "velodyne" / f"{number:06d}.bin")
        coarse = Image.fromarray(generator.integers(0, 255, (12, 40, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
        noisy = np.asarray(coarse) + generator.normal(0, 3, (size[1], size[0], 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(root / "training" / "image_2" / f"{number:06d}.png")
        (root / "training" / "calib" / f"{number:06d}.txt").write_text(CALIBRATION)
    return root


class Repeated(Dataset):
    """The frames of another data set over and over."""

    name, LAYOUT = "repeated", "frames"

    def __init__(self, frames: list[Frame], count: int) -> None:
        self.frames, self.count = frames, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Frame:
        return replace(self.frames[index % len(self.frames)], id=f"frame {index}", scene=f"scene {index // 40}")

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return False


def plain(frame: Frame) -> None:
    np.fromfile(frame.points_path, dtype="<f4")
    for camera in frame.cameras:
        with Image.open(camera.image_path) as image:
            image.load()


def in_turns(works: dict[str, Callable[[Frame], object]], frames: list[Frame], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time a frame, of each work in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            for frame in frames:
                work(frame)
            seconds[name].append((time.process_time() - start) / len(frames))
    return seconds


def peak_memory(count: int) -> float:
    """Peak MB of a process that checks `count` small frames, started anew."""
    output = subprocess.run([sys.executable, __file__, "--memory", str(count)], check=True, capture_output=True)
    return float(output.stdout)


def measure_memory(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        frames = list(open_dataset(f"kitti:{write_frames(Path(folder), 8, 2000, (124, 38))}"))
        check_dataset(Repeated(frames, count), jobs=2)
    # Of this program alone: getrusage counts what its parent had before the program was started. Linux only.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024)


def report(options: argparse.Namespace, kitti: Path) -> dict[str, object]:
    dataset = open_dataset(f"kitti:{kitti}")
    frames = [dataset[index] for index in range(min(options.frames, len(dataset)))]
    for frame in frames:
        plain(frame)  # the files come from memory afterwards, for all alike
    works: dict[str, Callable[[Frame], object]] = {
        "plain": plain,
        "check": check_frame,
        "fast": lambda frame: check_frame(frame, fast=True),
    }
    seconds = in_turns(works, frames, options.rounds)
    best = {name: min(values) for name, values in seconds.items()}
    whole = {}
    for jobs in options.jobs:
        start = time.perf_counter()
        found = check_dataset(Repeated(frames, 10 * len(frames)), jobs=jobs)
        whole[f"{jobs}"] = round(found.frames / (time.perf_counter() - start), 1)
    peaks = {str(count): round(peak_memory(count), 1) for count in MEMORY_FRAMES}
    few, many = (peaks[str(count)] for count in MEMORY_FRAMES)
    megabytes = sum(f.points_path.stat().st_size + f.cameras[0].image_path.stat().st_size for f in frames) / 1e6
    return {
        "command": command(options),
        "data": "made frames" if options.kitti is None else options.kitti.name,
        "frames": len(frames),
        "MB a frame": round(megabytes / len(frames), 2),
        "ms of processor time a frame, all rounds": {
            name: [round(1000 * value, 2) for value in values] for name, values in seconds.items()
        },
        "frames a second a core": {name: round(1 / value, 1) for name, value in best.items()},
        "check / plain": round(best["check"] / best["plain"], 2),
        "fast / plain": round(best["fast"] / best["plain"], 2),
        "whole check, frames a second of wall time, by processes": whole,
        "peak MB of the checking process, by frames": peaks,
        "kB a frame": round(1000 * (many - few) / (MEMORY_FRAMES[1] - MEMORY_FRAMES[0]), 2),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__},
    }


def output_path(options: argparse.Namespace) -> Path:
    name = "integrity.json" if options.kitti is None else "integrity-kitti.json"
    return options.output or Path(__file__).parent / "results" / name


def command(options: argparse.Namespace) -> str:
    """The command with all that the figures depend on; of the data's path the name only."""
    words = ["--frames", options.frames, "--rounds", options.rounds, "--jobs", *options.jobs]
    if options.kitti is not None:
        words = ["--kitti", options.kitti.name, *words]
    return shlex.join(["python", "benchmarks/integrity.py", *map(str, words)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kitti", type=Path, help="real frames in KITTI's object layout")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, help="default: results/integrity.json or integrity-kitti.json")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory is not None:
        measure_memory(options.memory)
        return
    with tempfile.TemporaryDirectory() as folder:
        kitti = options.kitti or write_frames(Path(folder) / "made", options.frames, 120_000, (1242, 375))
        result = report(options, kitti)
    text = json.dumps(result, indent=2)
    output_path(options).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
