"""``clever3d bench``: how fast a backbone is on this machine, and how near to what the machine could do."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clever3d.cli.extract import Device, interrupt_later, say_progress
from clever3d.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from clever3d.points import InputSpec
    from clever3d.sparse import SparseTensor

_SIZES = "10k,30k,100k,300k,1M"


class Precision(str, Enum):
    """What matrix products are computed in; the half ones by autocast."""

    float32 = "float32"
    tf32 = "tf32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def bench(
    backbone: Annotated[
        str,
        typer.Option("--backbone", "-b", help="Architecture (minkunet34, ...), name in clever3d list, or checkpoint."),
    ] = "minkunet34",
    voxels: Annotated[
        list[str] | None,
        typer.Option("--voxels", metavar="N,...", show_default="10k to 1M", help="Voxels of a scan. May be repeated."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Scans in a batch, each with so many voxels.")] = 1,
    scan: Annotated[
        list[Path] | None,
        typer.Option(
            "--scan",
            metavar="FILE",
            show_default="synthetic streets",
            help="Scan to use, as it is; several make a batch. With --voxels, what clouds of that size are made of.",
        ),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where the network runs.")] = Device.auto,
    dtype: Annotated[Precision, typer.Option("--dtype", help="What is multiplied in.")] = Precision.float32,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="NAME", show_default="the device's", help="torch, triton or torchsparse."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, show_default="PyTorch's", help="Threads on the CPU.")
    ] = None,
    backward: Annotated[
        bool, typer.Option("--backward/--no-backward", help="Measure forward + backward in training too.")
    ] = True,
    budget: Annotated[
        float, typer.Option("--budget", min=1, help="Seconds at most; what does not fit is left out and said.")
    ] = 600.0,
    tune: Annotated[
        bool, typer.Option("--tune", help="Time and keep the best blocks of the triton engine's kernels first.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .json file to write.")] = Path(
        "clever3d-bench.json"
    ),
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw cost over voxels to this PNG.")] = None,
) -> None:
    """Measure a backbone: kernel maps, forward, forward + backward, peak memory.

    Beside the times of scans of growing size stand the bare matrix products of
    all convolutions, on blocks that lie ready in memory, and the limit: the
    larger of FLOPs over the rate of a large product and bytes over the rate of
    a large copy, both measured here. Weights are random. Times are medians of
    several turns; kernel maps are built anew in each.

    Example: clever3d bench --backbone minkunet34 --device cuda --dtype bfloat16
    --voxels 30k,100k,1M --plot bench.png
    """
    from clever3d.io import check_output

    check_output(output, (".json",))
    if plot is not None:
        check_output(plot, (".png",))
    say_progress("importing torch")
    with interrupt_later():
        from clever3d.evaluate import speed
        from clever3d.io import atomic_path
    if plot is not None:
        speed.check_plot()
    chosen = _device(device)
    if tune and chosen.type != "cuda":
        raise InputError("--tune is for the triton engine on CUDA; leave it out here")
    if tune:
        os.environ["CLEVER3D_TUNE"] = "1"  # clever3d.sparse.engines.tuning reads it
    with _engine(engine), speed.threads(threads), speed.precision(dtype.value, chosen):
        pass  # names and numbers are checked before anything takes time
    with _engine(engine), speed.threads(threads):
        where = speed.environment(chosen)
        if warning := speed.busy(where):
            typer.echo(f"WARNING: {warning}", err=True)
        say_progress(f"building {backbone}")
        network = speed.random_backbone(backbone).to(chosen)
        runs = _runs(network.input_spec, voxels, batch, scan)
        say_progress("measuring what the device can do")
        measuring = speed.Bench(speed.Runner(network, dtype.value), backward=backward, budget=budget)
        found = []
        for size, scans, make in runs:
            say_progress(f"measuring {size:,} voxels")
            found.append(measuring.measure(size, scans, make))
        report = {
            "format": "clever3d.bench.v1",
            "command": " ".join(["clever3d", *sys.argv[1:]]),
            **where,
            **speed.record(measuring, found),
        }
    title = f"{backbone}, {dtype.value}, engine {report['engine']}, {report['device']}"
    typer.echo(f"{title}, {report['threads']} threads; times in ms\n{speed.table(found)}")
    with atomic_path(output) as draft:
        draft.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"wrote {output}")
    if plot is not None:
        speed.save_plot(plot, found, title)
        typer.echo(f"plot  {plot}")


def _engine(name: str | None) -> AbstractContextManager[None]:
    """Without a name, the choice that ``CLEVER3D_ENGINE`` makes."""
    from clever3d.sparse import use_engine

    return nullcontext() if name is None else use_engine(name)


def _device(device: Device) -> torch.device:
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; leave --device out to use the CPU")
    return torch.device("cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu")


def _runs(
    spec: InputSpec, voxels: list[str] | None, batch: int, files: list[Path] | None
) -> list[tuple[int, int, Callable[[], SparseTensor]]]:
    """Voxels, scans and maker of each batch to measure, smallest first."""
    import functools

    from clever3d.evaluate import speed

    scans = [speed.read_scan(path) for path in files or ()]
    if scans and voxels is None:
        if batch != 1:
            raise InputError(f"--batch {batch} goes with --voxels: the {len(scans)} scans given make one batch")
        cloud = speed.voxelize_scans(scans, spec)
        return [(len(cloud), len(scans), lambda: cloud)]
    sizes = speed.parse_voxels(voxels or [_SIZES])
    source = (lambda number: scans[number % len(scans)]) if scans else speed.street
    return [
        (batch * size, batch, functools.partial(speed.make_cloud, size, spec, batch=batch, scan=source))
        for size in sizes
    ]
