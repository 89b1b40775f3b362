"""How fast frames become batches with point-pixel pairs, stage by stage, and how far that is from reading and copying.

    python benchmarks/data.py kitti:KITTI nuscenes:NUSCENES [--frames 24] [--batch 2] [--workers 2]

Each argument is a data set as `clever3d.open_dataset` takes it; `clever3d synth` writes some. One thread computes, the
files are in the page cache (all are read once before), and the teacher is a stand-in that fills the cache with random
features of the size of a ViT-S/14's on 2,048 patches (C = 384, float16): what is measured is everything but the
teacher. Stages,
in milliseconds of processor time of one thread, which others on the machine disturb less than the clock's:

  open       opening the data set, once
  index      one `data[i]`: paths and calibration
  read       points from the file to tensors without empty returns
  project    which points fall into which image, with the images' sizes read from their headers
  occlusion  what the z-buffer test costs beside that (not in the loader's figures; off by default)
  augment    the trainer's defaults: moved, thinned out, intensity changed; the pairs go along
  grids      the teacher's cached grids from disk (the image's bytes are read and hashed, for they are the key)
  sample     the grids at the pixels of 4,096 pairs drawn (the trainer's default), bilinear
  collate    a batch
  sample all the grids at the pixels of all pairs (not in the loader's figures)

The limit is what no program can avoid: reading the bytes of scan, images and grids (at the rate measured for the same
files) and writing the batch once (at the rate measured for a copy of as many bytes in memory). Prints tables in
Markdown and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from clever3d.datasets import Frame, open_dataset
from clever3d.datasets.augment import AugmentConfig, augment
from clever3d.datasets.batch import Batch, collate
from clever3d.datasets.loading import Loader, sample_generator
from clever3d.datasets.occlusion import OcclusionConfig
from clever3d.datasets.sample import Sample, draw_pairs, sample_from_frame
from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.pairing import add_targets, find_pairs, pair
from clever3d.distill.teachers import Teacher
from clever3d.evaluate import speed

CHANNELS, PATCHES, PAIRS = 384, 2048, 4096
T = TypeVar("T")


class RandomTeacher:
    """Stands in for a ViT-S/14: features of the right size, at no cost."""

    name, layer, dim, fingerprint = "random", "prenorm", CHANNELS, "0" * 32

    def features(self, image: np.ndarray[Any, Any]) -> Tensor:
        height, width = image.shape[:2]
        h, w = round((PATCHES * height / width) ** 0.5), round((PATCHES * width / height) ** 0.5)
        return torch.randn(CHANNELS, h, w, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Make:
    """From a frame to an augmented sample with targets at some of its pairs; workers pickle it."""

    cache: FeatureCache

    def __call__(self, frame: Frame, generator: torch.Generator) -> Sample:
        sample = find_pairs(sample_from_frame(frame, labels=False, boxes=False))
        return add_targets(draw_pairs(augment(sample, AugmentConfig(), generator), PAIRS, generator), self.cache)


@dataclass(frozen=True)
class Held:
    """Grids in memory, to measure sampling without reading."""

    grids: dict[Path, Tensor]

    def get(self, image_path: Path) -> Tensor:
        return self.grids[image_path]


class Clock:
    """Seconds of each stage, a list each."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        start = time.thread_time()
        result = work()
        self.seconds.setdefault(stage, []).append(time.thread_time() - start)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="data sets, NAME:PATH")
    parser.add_argument("--frames", type=int, default=24, help="frames measured of each; again from the first if fewer")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "data-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = speed.environment(torch.device("cpu")) | {"numpy": np.__version__}
    if warning := speed.busy(where):
        print(warning, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, cast(Teacher, RandomTeacher()))
        results = [measure(spec, cache, options.frames, options.batch, options.workers) for spec in options.sets]
    print(markdown(results))
    report = {
        "command": " ".join(["python", "benchmarks/data.py", *(spec.split(":")[0] + ":..." for spec in options.sets)])
        + f" --frames {options.frames} --batch {options.batch} --workers {options.workers}",
        **where,
        "teacher": f"random features, {CHANNELS} channels, about {PATCHES} patches an image, float16",
        "peak memory, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "sets": results,
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.output}")


def measure(spec: str, cache: FeatureCache, count: int, batch: int, workers: int) -> dict[str, Any]:
    """All figures of one data set."""
    clock = Clock()
    data = clock("open", lambda: open_dataset(spec))
    frames = [data[number % len(data)] for number in range(count)]
    usable = [frame for frame in frames if frame.cameras]
    if not usable:
        raise SystemExit(f"{spec}: no frame has a camera")
    pairs = [len(pair(frame, cache).pairs or ()) for frame in usable]  # fills the cache of grids, and the page cache
    points = [len(frame.points().xyz) for frame in usable]
    for start in range(0, len(usable), batch):
        stages(clock, data, usable[start : start + batch], cache)
    made = [Make(cache)(frame, sample_generator(0, number)) for number, frame in enumerate(usable[:batch])]
    times = {stage: 1e3 * statistics.median(seconds) for stage, seconds in clock.seconds.items()}
    times["grids"] *= len(usable[0].cameras)  # measured one by one
    pairing = times["project"] + times["grids"] + times["sample all"]
    limit = least_time(usable, cache, size_of(collate(made)) / len(made))
    return {
        "set": f"{spec.split(':')[0]}:{Path(spec.split('#')[0]).name}",
        "frames": len(usable),
        "different frames": min(len(data), count),
        "cameras": len(usable[0].cameras),
        "points a frame": round(statistics.mean(points)),
        "pairs a frame": round(statistics.mean(pairs)),
        "milliseconds": {stage: round(time, 3) for stage, time in times.items()},
        "pairs a second, all with targets, one thread": round(1e3 * statistics.mean(pairs) / pairing),
        "limit": limit,
        "one process": loaded(usable, cache, batch, 0, limit["seconds"]),
        f"{workers} workers": loaded(usable, cache, batch, workers, limit["seconds"]),
    }


def stages(clock: Clock, data: Any, frames: list[Frame], cache: FeatureCache) -> None:
    """One batch, each stage by itself; the batch's time is shared among its frames."""
    samples = []
    for number, frame in enumerate(frames):
        generator = sample_generator(1, number)
        clock("index", lambda number=number: data[number % len(data)])
        sample = clock("read", lambda frame=frame: sample_from_frame(frame, labels=False, boxes=False))
        found = clock("project", lambda s=sample: find_pairs(s))
        start = time.thread_time()
        find_pairs(sample, occlusion=OcclusionConfig())
        extra = time.thread_time() - start - clock.seconds["project"][-1]
        clock.seconds.setdefault("occlusion", []).append(max(extra, 0.0))
        changed = clock("augment", lambda s=found, g=generator: augment(s, AugmentConfig(), g))
        held = Held({c.image_path: clock("grids", lambda c=c: cache.get(c.image_path)) for c in found.cameras})
        drawn = draw_pairs(changed, PAIRS, generator)
        samples.append(clock("sample", lambda s=drawn, h=held: add_targets(s, cast(FeatureCache, h))))
        clock("sample all", lambda s=found, h=held: add_targets(s, cast(FeatureCache, h)))
    start = time.thread_time()
    collate(samples)
    clock.seconds.setdefault("collate", []).append((time.thread_time() - start) / len(frames))


def loaded(frames: list[Frame], cache: FeatureCache, batch: int, workers: int, limit: float) -> dict[str, float]:
    """Frames a second through the loader by the clock, the best of three epochs once the workers are there."""
    loader = Loader(frames, Make(cache), batch=batch, workers=workers)
    seconds, used, pairs = [], [], 0.0
    for epoch in range(4):
        start, busy = time.perf_counter(), time.process_time()
        seen = paired = 0
        for one in loader.epoch(epoch):  # not kept: a step uses a batch and lets it go
            seen, paired = seen + len(one), paired + sum(one.pair_counts)
        seconds.append((time.perf_counter() - start) / seen)
        used.append((time.process_time() - busy) / seen)
        pairs = paired / seen
    best = min(seconds[1:])
    processes = max(workers, 1)
    figures = {
        "frames a second": round(1 / best, 1),
        "frames a second and process": round(1 / best / processes, 1),
        "pairs a second": round(pairs / best),
        "share of the limit": round(limit / best / processes, 3),
    }
    if not workers:  # what others take of the machine does not count here
        figures["frames a second of processor time"] = round(1 / min(used[1:]), 1)
        figures["share of the limit, of processor time"] = round(limit / min(used[1:]), 3)
    return figures


def least_time(frames: list[Frame], cache: FeatureCache, written: float) -> dict[str, float]:
    """What reading a frame's files and writing its part of the batch cost at the rates of this machine, now."""
    paths = [
        path
        for frame in frames
        for camera in frame.cameras
        for path in (camera.image_path, cache_file(cache, camera.image_path))
    ] + [frame.points_path for frame in frames]
    total = sum(path.stat().st_size for path in paths)
    buffer = bytearray(max(path.stat().st_size for path in paths))

    def read_all() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                file.readinto(buffer)

    read_rate = total / min(seconds_of(read_all) for _ in range(7))
    source = np.ones(int(written), dtype=np.uint8)
    # a fresh array each time, as a batch is: the pages have to be had from the system
    copy_rate = written / min(seconds_of(lambda: source.copy()) for _ in range(15))
    return {
        "bytes read a frame": round(total / len(frames)),
        "bytes written a frame": round(written),
        "page cache GB/s": round(read_rate / 1e9, 2),
        "memory copy GB/s": round(copy_rate / 1e9, 2),
        "seconds": total / len(frames) / read_rate + written / copy_rate,
    }


def cache_file(cache: FeatureCache, image: Path) -> Path:
    import hashlib

    return cache.folder / f"{hashlib.sha256(image.read_bytes()).hexdigest()[:32]}.safetensors"


def seconds_of(work: Callable[[], object]) -> float:
    """Of processor time: reading from the page cache is copying."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def size_of(value: Batch) -> int:
    """Bytes of all its tensors."""
    found = 0
    for part in (value, value.pairs, value.boxes):
        for field in fields(part) if part is not None else ():
            tensor = getattr(part, field.name)
            found += tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0
    return found


def markdown(results: list[dict[str, Any]]) -> str:
    names = list(results[0]["milliseconds"])
    lines = [
        "Milliseconds a frame (medians)",
        "",
        f"| set | cameras | points | pairs | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for row in results:
        times = " | ".join(f"{row['milliseconds'][name]:.2f}" for name in names)
        lines.append(
            f"| {row['set']} | {row['cameras']} | {row['points a frame']:,} | {row['pairs a frame']:,} | {times} |"
        )
    lines += ["", "| set | processes | frames/s | frames/s each | pairs/s | share of the limit |", "|---" * 6 + "|"]
    for row in results:
        for name in [key for key in row if key.endswith((" workers", " process"))]:
            figures = row[name]
            lines.append(
                f"| {row['set']} | {name} | {figures['frames a second']:.1f} "
                f"| {figures['frames a second and process']:.1f} "
                f"| {figures['pairs a second']:,} | {figures['share of the limit']:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
