"""Time and memory of WaffleIron on one scan: against the machine's limit, and against the authors' code.

    python benchmarks/waffleiron.py [--architecture waffleiron48_256] [--tokens 30000] [--threads 1] [--device cpu|cuda]
    python benchmarks/waffleiron.py --peer PATH      a checkout of github.com/valeoai/WaffleIron (v0.3.1)

The tokens are those of a synthetic street, thinned evenly to the number asked for. Random weights: speed does not
depend on them. The limit is the time of the matrix products at the rate of one large product, plus that of writing and
reading the grids at the rate of one large copy: seven passes a layer (the means; two convolutions and the activation,
in and out). Neighbours are timed beside scipy's k-d tree, which the authors use, where scipy is installed. What is
compared is timed in turns and ratios are medians over the turns; the peer's features must agree with ours. Prints, and
with --output writes JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clever3d.backbones import WaffleIron, create_backbone
from clever3d.backbones.waffleiron import from_valeoai
from clever3d.evaluate import speed
from clever3d.evaluate.speed.limits import with_peak
from clever3d.points import InputSpec, nearest_neighbors
from clever3d.sparse import SparseTensor

GRID_PASSES = 7


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", nargs="+", default=["waffleiron48_256", "waffleiron48_768"])
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--depth", type=int, help="fewer layers than the 48, for a short look")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(speed.PRECISIONS), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer", type=Path, help="folder that holds the authors' package waffleiron")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def street_tokens(count: int, spec: InputSpec) -> SparseTensor:
    """Tokens all around the sensor: so many of a street's, at even distances in their order."""
    whole = speed.voxelize_scans([speed.street(0)], spec)
    rows = torch.linspace(0, len(whole) - 1, min(count, len(whole))).long()
    return SparseTensor(whole.feats[rows], whole.coords[rows])


def limit(backbone: WaffleIron, tokens: int, rates: speed.Limits, itemsize: int) -> dict[str, float]:
    """Seconds that the matrix products and the grids must take, each alone."""
    config, channels = backbone.config, len(backbone.input_spec.channels)
    width = config.width
    embedding = tokens * (config.neighbors * (channels * width + width**2) + channels * width + 2 * width**2)
    products = 2 * (embedding + config.depth * 2 * tokens * width**2)
    cells = sum(rows * columns for rows, columns in (config.grids * config.depth)[: config.depth])
    traffic = GRID_PASSES * cells * width * itemsize
    return {"products": products / rates.matmul, "grids": traffic / rates.copy, "GFLOP": products / 1e9}


def valeoai(folder: Path, backbone: WaffleIron, x: SparseTensor) -> Callable[[], Tensor]:
    """Forward of the authors' network with the same weights; cells and neighbours are given to it ready."""
    sys.path.insert(0, str(folder))
    config = backbone.config
    kind = f"{config.norm}norm"
    theirs = importlib.import_module("waffleiron").Segmenter(
        len(backbone.input_spec.channels), config.width, 1, config.depth, config.grids, which_norm=kind,
        layer_norm=config.norm == "layer",
    )  # fmt: skip
    ours = backbone.state_dict()
    for name, given in theirs.state_dict().items():  # the way back through our names, so that both have equal weights
        for key in from_valeoai({name: given}):
            given.copy_(ours[key].view(given.shape))
    theirs.to(x.feats.device).eval()
    xyz = x.feats[:, [backbone.input_spec.channels.index(axis) for axis in "xyz"]]
    near = nearest_neighbors(xyz, None, config.neighbors)
    own = torch.arange(len(near), device=near.device).unsqueeze(1)
    neighbors = torch.cat([own, near], dim=1).T.unsqueeze(0).contiguous()
    cells = torch.stack(backbone.cells(xyz)).unsqueeze(0)
    feats, occupied = x.feats.T.unsqueeze(0).contiguous(), torch.ones(1, len(x), device=x.feats.device)

    def forward() -> Tensor:
        features: Tensor = theirs.waffleiron(theirs.embed(feats, neighbors), cells, occupied)
        return features[0].T

    return forward


def tree(x: SparseTensor, spec: InputSpec, k: int) -> Callable[[], object] | None:
    try:
        from scipy.spatial import cKDTree
    except ImportError:
        return None
    xyz = x.feats[:, [spec.channels.index(axis) for axis in "xyz"]].double().cpu().numpy()
    return lambda: cKDTree(xyz).query(xyz, k=k + 1)


def in_turns(works: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Any]:
    """Median seconds of each, and the median ratio of each to the first over the turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            elapsed, _ = speed.timed(work, device)
            if turn:  # the first call stands by itself
                seconds[name].append(elapsed)
    first = next(iter(works))
    ratios = {
        name: statistics.median(a / b for a, b in zip(found, seconds[first], strict=True))
        for name, found in seconds.items()
    }
    return {"seconds": {name: statistics.median(found) for name, found in seconds.items()}, "ratios": ratios}


@torch.no_grad()
def measure(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    overrides = {} if options.depth is None else {"depth": options.depth}
    backbone = create_backbone(name, **overrides)
    assert isinstance(backbone, WaffleIron)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm1d):  # nothing that would let the features vanish
            norm.running_var.uniform_(0.5, 1.5)
    backbone = backbone.to(device).eval()
    x = street_tokens(options.tokens, backbone.input_spec)
    x = SparseTensor(x.feats.to(device), x.coords.to(device))
    k = backbone.config.neighbors
    xyz = x.feats[:, [backbone.input_spec.channels.index(axis) for axis in "xyz"]]
    rates = speed.measure_limits(device, options.dtype)
    bound = limit(backbone, len(x), rates, speed.PRECISIONS[options.dtype].itemsize)

    def forward() -> Tensor:
        with speed.precision(options.dtype, device):
            return backbone(x)[0].feats

    works: dict[str, Callable[[], object]] = {"ours": forward}
    report: dict[str, Any] = {"architecture": name, "depth": backbone.config.depth, "tokens": len(x), "bound": bound}
    if options.peer is not None:
        peer = valeoai(options.peer, backbone, x)
        works["valeoai"] = lambda: _in_precision(peer, options.dtype, device)
        report["difference"] = speed.difference(forward().float(), _in_precision(peer, options.dtype, device).float())
    report |= in_turns(works, options.repeats, device)
    report["peak bytes"] = {one: with_peak(work, device)[1] for one, work in works.items()}
    near: dict[str, Callable[[], object]] = {"ours": lambda: nearest_neighbors(xyz, None, k)}
    if (kd := tree(x, backbone.input_spec, k)) is not None:
        near["k-d tree"] = kd
    report["neighbours"] = in_turns(near, 5, device)
    report["of the limit"] = (bound["products"] + bound["grids"]) / report["seconds"]["ours"]
    report["matmul GFLOP/s"], report["copy GB/s"] = rates.matmul / 1e9, rates.copy / 1e9
    return report


def _in_precision(work: Callable[[], Tensor], name: str, device: torch.device) -> Tensor:
    with speed.precision(name, device):
        return work()


def show(report: dict[str, Any]) -> None:
    seconds, bound, near = report["seconds"], report["bound"], report["neighbours"]
    print(f"{report['architecture']}, {report['depth']} layers, {report['tokens']:,} tokens")
    print(
        f"  forward     {seconds['ours']:.2f} s; limit {bound['products'] + bound['grids']:.2f} s "
        f"({bound['GFLOP']:,.0f} GFLOP at {report['matmul GFLOP/s']:.0f} GFLOP/s: {bound['products']:.2f} s; grids at "
        f"{report['copy GB/s']:.1f} GB/s: {bound['grids']:.2f} s); {100 * report['of the limit']:.0f} % of it reached"
    )
    for name, peak in report["peak bytes"].items():
        print(f"  peak        {name}: {'not known' if peak is None else f'{peak / 1e6:,.0f} MB'} above the start")
    if "valeoai" in seconds:
        mean, largest = report["difference"]
        print(
            f"  valeoai     {seconds['valeoai']:.2f} s without neighbours and cells: {report['ratios']['valeoai']:.2f} "
            f"times ours; features differ by {mean:.0e} (largest {largest:.0e}) standard deviations"
        )
    beside = f"; k-d tree {near['ratios']['k-d tree']:.2f} times that" if "k-d tree" in near["ratios"] else ""
    print(f"  neighbours  {near['seconds']['ours']:.3f} s, part of forward{beside}")


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    where = speed.environment(device)
    print(f"{where['device']}, {where['threads']} threads, torch {where['torch']}, {options.dtype}")
    if warning := speed.busy(where):
        print(f"WARNING: {warning}")
    reports, start = [], time.monotonic()
    for name in options.architecture:
        reports.append(measure(name, options, device))
        show(reports[-1])
    print(f"{time.monotonic() - start:.0f} s for everything")
    if options.output is not None:
        text = json.dumps({"command": " ".join(["python", *sys.argv]), **where, "cases": reports}, indent=2)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
