"""Time and memory of one full scan, split into parts, beside the bare matrix products of the same shapes.

    python benchmarks/engine.py [--scan SCAN.bin] [--backbone minkunet_small minkunet34] [--threads 2]

The limit of a sparse convolution on a CPU is its arithmetic: one product [pairs, Cin] x [Cin, Cout] per kernel offset.
"Overhead" is (maps + convolutions + rest) / (those products on blocks that are already gathered), in the same run.
Without --scan the demo's synthetic street is used. Prints a table and writes benchmarks/results/engine-DEVICE.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clever3d import read_points
from clever3d.backbones import ARCHITECTURES, Backbone, create_backbone
from clever3d.datasets.synthetic import street_scan
from clever3d.points import InputSpec, check_points, voxelize
from clever3d.sparse import KernelMap, modules
from clever3d.sparse.tensor import Geometry


class Stopwatch:
    """Seconds by part. Parts inside a part are not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner = [0.0]
        self.products: list[tuple[KernelMap, int, int]] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self.inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[part] += elapsed - self.inner.pop()
                self.inner[-1] += elapsed

        return wrapper


@contextmanager
def watch() -> Iterator[Stopwatch]:
    """Times kernel maps and convolutions wherever they happen, and notes the shapes of the convolutions."""
    stopwatch = Stopwatch()
    convolve, kernel_map, coarser = modules.convolve, Geometry.kernel_map, Geometry.coarser

    def noted(feats: torch.Tensor, kernel: torch.Tensor, pairs: KernelMap) -> torch.Tensor:
        stopwatch.products.append((pairs, kernel.shape[1], kernel.shape[2]))
        return convolve(feats, kernel, pairs)

    modules.convolve = stopwatch.timed("convolutions", noted)
    Geometry.kernel_map = stopwatch.timed("maps", kernel_map)  # type: ignore[method-assign]
    Geometry.coarser = stopwatch.timed("maps", coarser)  # type: ignore[method-assign]
    try:
        yield stopwatch
    finally:
        modules.convolve = convolve
        Geometry.kernel_map, Geometry.coarser = kernel_map, coarser  # type: ignore[method-assign]


def bare_products(products: list[tuple[KernelMap, int, int]]) -> tuple[float, float]:
    """Seconds and GFLOP of the products alone, on blocks that lie ready in memory."""
    seconds = flops = 0.0
    for pairs, channels_in, channels_out in products:
        total = len(pairs.in_rows)
        block, out = torch.randn(total, channels_in), torch.randn(total, channels_out)  # pages touched before the clock
        kernel = torch.randn(len(pairs.sizes), channels_in, channels_out)
        sizes = list(pairs.sizes)
        blocks = list(zip(torch.split(block, sizes), kernel, torch.split(out, sizes), strict=True))
        start = time.perf_counter()
        for rows, weight, result in blocks:
            torch.mm(rows, weight, out=result)
        seconds += time.perf_counter() - start
        flops += 2.0 * total * channels_in * channels_out
    return seconds, flops / 1e9


@torch.no_grad()
def measure(backbone: Backbone, points: np.ndarray, repeats: int) -> dict[str, float]:
    """Medians over ``repeats`` runs, each followed by the bare products of the same shapes."""
    rows = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            voxels = voxelize([check_points(points, None, backbone.input_spec, backbone.device)], backbone.input_spec)
        ready = time.perf_counter()
        with watch() as stopwatch:
            finest = backbone(voxels.tensor)[-1].feats
        done = time.perf_counter()
        finest[voxels.point_to_voxel[0].clamp(min=0)]
        end = time.perf_counter()
        bare, gflop = bare_products(stopwatch.products)
        parts = dict(stopwatch.seconds)
        rows.append({
            "voxelise": ready - start,
            "maps": parts["maps"],
            "convolutions": parts["convolutions"],
            "rest of network": done - ready - parts["maps"] - parts["convolutions"],
            "back to points": end - done,
            "total": end - start,
            "bare products": bare,
            "convolutions / bare": parts["convolutions"] / bare,
            "overhead (network / bare)": (done - ready) / bare,
            "voxels": float(len(voxels.tensor)),
            "GFLOP": gflop,
        })  # fmt: skip
    return {key: float(np.median([row[key] for row in rows[1:]])) for key in rows[0]}


def peak_memory(backbone: Backbone, points: np.ndarray) -> float:
    """MB by which ``extract`` raises the memory of the process above what it holds already (Linux)."""

    def status(key: str) -> float:
        return float(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed is given back first
    Path("/proc/self/clear_refs").write_text("5")  # the peak (VmHWM) starts again from here
    before = status("VmRSS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone.extract(points)
    return status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--backbone", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "engine-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.scan:
        cloud = read_points(options.scan)
        points = cloud.xyz if cloud.intensity is None else np.column_stack([cloud.xyz, cloud.intensity])
    else:
        scan = street_scan(seed=0)
        points = np.column_stack([scan.xyz, scan.intensity])
    report: dict[str, Any] = {
        "date": date.today().isoformat(), "torch": torch.__version__, "processor": platform.machine(),
        "threads": options.threads, "points": len(points), "scan": options.scan.name if options.scan else "synthetic",
        "command": "python benchmarks/engine.py", "seconds": {},
    }  # fmt: skip
    for name in options.backbone:
        backbone = create_backbone(name, input_spec=InputSpec()).eval()
        peak = peak_memory(backbone, points)
        row = {**measure(backbone, points, options.repeats), "peak memory, MB": peak}
        report["seconds"][name] = {key: round(value, 4) for key, value in row.items()}
        print(f"\n{name}, {len(points)} points, {options.threads} threads, median of {options.repeats}")
        for key, value in row.items():
            print(f"  {key:28s} {value:10.3f}")
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
