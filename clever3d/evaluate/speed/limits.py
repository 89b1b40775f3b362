"""Clocks, memory and what a device could do at best: the means of measuring."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.evaluate.speed.workload import Layer

PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
T = TypeVar("T")


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Products in float32, TF32 (CUDA only), or by autocast in float16 or bfloat16.

    Raises:
        InputError: there is no such precision, or TF32 is asked of a CPU.
    """
    if name not in PRECISIONS:
        raise InputError(f"there is no precision {name!r}: choose {', '.join(PRECISIONS)}")
    if name == "tf32" and device.type != "cuda":
        raise InputError(f"tf32 is CUDA's, and the device is {device}: choose float32, float16 or bfloat16")
    before = torch.backends.cuda.matmul.allow_tf32
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        half = PRECISIONS[name] != torch.float32
        with torch.autocast(device.type, PRECISIONS[name]) if half else contextlib.nullcontext():
            yield
    finally:
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads inside the block; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds of the work, the device's included, and its result."""
    _wait(device)
    start = time.perf_counter()
    result = work()
    _wait(device)
    return time.perf_counter() - start, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# What the device could do


@dataclass(frozen=True)
class Limits:
    """What the device was measured to do: products in FLOP/s, and copies in bytes/s, read and written."""

    matmul: float
    copy: float

    def seconds(self, layers: Sequence[Layer], itemsize: int) -> float:
        """The larger of the time for all FLOPs and that for all bytes (a roofline, with nothing overlapping it)."""
        traffic = sum(layer.traffic(itemsize) for layer in layers)
        return max(sum(layer.flops for layer in layers) / self.matmul, traffic / self.copy)


def measure_limits(device: torch.device, name: str, repeats: int = 5) -> Limits:
    """Rate of one large square product in this precision, and of one large copy; the best of the repeats."""
    big = device.type == "cuda"
    with precision(name, device), torch.no_grad():
        side = 8192 if big else 1024
        left, right = (torch.randn(side, side, device=device, dtype=PRECISIONS[name]) for _ in range(2))
        result = torch.empty_like(left)
        products = [timed(lambda: torch.mm(left, right, out=result), device)[0] for _ in range(repeats + 1)]
        source = torch.ones((1 << 30 if big else 1 << 28) // 4, device=device)
        target = torch.zeros_like(source)
        copies = [timed(lambda: target.copy_(source), device)[0] for _ in range(repeats + 1)]
    return Limits(2 * side**3 / min(products[1:]), 2 * 4 * len(source) / min(copies[1:]))


class BareProducts:
    """The matrix products of all convolutions alone, on blocks that lie gathered in memory.

    Each product ``[pairs, Cin] x [Cin, Cout]`` of an offset takes the next piece of a ring of memory, larger than any
    cache, and writes into that of another ring. Their pages have been touched.
    """

    def __init__(self, device: torch.device, name: str, values: int | None = None) -> None:
        size = values or (1 << 28 if device.type == "cuda" else 1 << 25)
        self.rings = [torch.randn(size, device=device).to(PRECISIONS[name]) for _ in range(2)]
        self.kernels = torch.randn(min(size, 1 << 24), device=device).to(PRECISIONS[name])

    def products_of(self, layers: Sequence[Layer]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(rows, kernel, result) of each product; those larger than the ring are cut into pieces."""
        found, places = [], [0, 0, 0]

        def piece(ring: int, rows: int, columns: int) -> Tensor:
            memory = (*self.rings, self.kernels)[ring]
            start = places[ring] if places[ring] + rows * columns <= len(memory) else 0
            places[ring] = start + rows * columns
            return memory[start : places[ring]].view(rows, columns)

        for layer in layers:
            channels_in, channels_out = layer.convolution.channels_in, layer.convolution.channels_out
            most = len(self.rings[0]) // max(channels_in, channels_out)
            for pairs in layer.pairs:
                kernel = piece(2, channels_in, channels_out)
                for start in range(0, pairs, most):
                    rows = min(most, pairs - start)
                    found.append((piece(0, rows, channels_in), kernel, piece(1, rows, channels_out)))
        return found


def run_products(products: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Multiplies."""
    with torch.no_grad():
        for rows, kernel, result in products:
            torch.mm(rows, kernel, out=result)


# Memory


def with_peak(work: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """The result, and the bytes by which the work raised the memory in use; None where that cannot be known."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed is given back first (glibc)
    resident = _status("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak (VmHWM) starts again from here
    except OSError:
        resident = None
    result = work()
    peak = _status("VmHWM")
    return result, None if resident is None or peak is None else max(0, peak - resident)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had; None where that is not known."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return _status("MemAvailable", Path("/proc/meminfo"))


def _status(key: str, file: Path = Path("/proc/self/status")) -> int | None:
    """Bytes from a line ``KEY:   12345 kB`` (Linux)."""
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", file.read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
