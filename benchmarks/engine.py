"""Speed of the sparse convolutions in a whole network: against the device's limit, and against other libraries.

    python benchmarks/engine.py [--device cpu|cuda] [--threads 2] [--budget 600]
    python benchmarks/engine.py --layers      the two ways of the torch engine, for the shape of each layer

Cases (--case): ``sweep``, scans of 10k to 1M voxels; ``batch``, forward + backward of eight whole streets, default on
CUDA; ``nuscenes``, inference on one scan of 32 beams and about 31k points in float16, default on CUDA. Each is timed in
turns with the bare matrix products and with the peers that can be had (benchmarks/peers.py), whose features must agree
with ours; a peer that cannot be had is listed with the reason. Writes JSON and, where matplotlib is, a PNG beside it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import find_peers

from clever3d.backbones import Backbone
from clever3d.datasets.synthetic import street_scan
from clever3d.errors import Clever3dError
from clever3d.evaluate import speed
from clever3d.evaluate.speed import BARE, LIMIT, TRAINING, Bench, Measurement, Runner
from clever3d.sparse import SparseTensor, use_engine
from clever3d.sparse.engines import torch_engine

RESULTS = Path(__file__).parent / "results"
CASES = {"cpu": ["sweep"], "cuda": ["batch", "nuscenes", "sweep"]}
SCANS = 8  # of the case batch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="minkunet34")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(speed.PRECISIONS), help="default: float32 on a CPU, bfloat16 on CUDA")
    parser.add_argument("--engine", help="torch, triton or torchsparse; default: the device's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--case", nargs="+", choices=CASES["cuda"], help="default: those the device has targets for")
    parser.add_argument("--voxels", default="10k,30k,100k,300k,1M", help="of the scans of the sweep")
    parser.add_argument("--scan", type=Path, nargs="+", help="scans instead of streets, for all cases")
    parser.add_argument("--no-backward", dest="backward", action="store_false")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--repeats", type=int, default=7, help="turns at most")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for everything")
    parser.add_argument("--tune", action="store_true", help="tune the Triton kernels; takes long the first time")
    parser.add_argument("--layers", action="store_true", help="only the comparison by layer (CPU)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/engine-DEVICE.json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    deadline = time.monotonic() + options.budget
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    if options.tune:
        os.environ["CLEVER3D_TUNE"] = "1"
    if options.engine:
        use_engine(options.engine)
    backbone = speed.random_backbone(options.backbone).to(device)
    name = "cpu" if device.type == "cpu" else re.sub(r"\W+", "-", speed.device_name(device)).lower()
    output = options.output or RESULTS / f"{'layers' if options.layers else 'engine'}-{name}.json"
    report: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), **speed.environment(device)}
    print(f"{options.backbone} on {report['device']}, {report['threads']} threads, torch {report['torch']}")
    if warning := speed.busy(report):
        print(f"WARNING: {warning}")
    if options.layers:
        report["layers"] = compare_layers(backbone)
    else:
        measure_cases(backbone, options, deadline, report, output)
    write(output, report)
    print(f"wrote {output}")


def write(output: Path, report: dict[str, Any]) -> None:
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure_cases(
    backbone: Backbone, options: argparse.Namespace, deadline: float, report: dict[str, Any], output: Path
) -> None:
    """Measures case by case into the report, which is written after each."""
    scans = [speed.read_scan(path) for path in options.scan or ()]
    usual = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    cases: dict[str, dict[str, Any]] = {}
    for case in options.case or CASES[options.device]:
        dtype = "float16" if case == "nuscenes" and not options.dtype and options.device == "cuda" else usual
        peers, absent = find_peers(backbone, dtype) if options.peers else ([], {})
        bench = Bench(
            Runner(backbone, dtype),
            backward=options.backward and case != "nuscenes",
            repeats=options.repeats,
            budget=max(0.0, deadline - time.monotonic()),
            peers=peers,
        )
        limits = f"{bench.limits.matmul / 1e12:.3g} TFLOP/s, {bench.limits.copy / 1e9:.3g} GB/s"
        print(f"\n{case}: {dtype}; the device does {limits}")
        for peer, reason in absent.items():
            print(f"  no {peer}: {reason.splitlines()[0]}")
        found = []
        for voxels, batch, make in clouds(case, backbone, options, scans):
            found.append(bench.measure(voxels, batch, make))
            print(speed.table(found[-1:]) if len(found) == 1 else speed.table(found[-1:]).split("\n", 1)[1], flush=True)
        cases[case] = {**speed.record(bench, found), "absent peers": absent}
        if fitted := cases[case]["slopes"]:
            print("slope over voxels (1 is linear): " + ", ".join(f"{k} {v:.2f}" for k, v in fitted.items()))
        report["cases"] = cases
        write(output, report)
        if case == "sweep":
            threads = f", {report['threads']} threads" if options.device == "cpu" else ""
            draw(output.with_suffix(".png"), found, f"{options.backbone}, {dtype}, {report['device']}{threads}")
    report["targets"] = targets(cases, options.device, options.threads)
    print("\ntargets")
    for target in report["targets"]:
        print(f"  {target['met']}: {target['what']}: {target['seen']} (asked: {target['asked']})")


def clouds(
    case: str, backbone: Backbone, options: argparse.Namespace, scans: Sequence[np.ndarray]
) -> list[tuple[int, int, Callable[[], SparseTensor]]]:
    """(voxels expected, scans in the batch, maker) of each cloud of a case, smallest first."""
    spec = backbone.input_spec
    source = (lambda number: scans[number % len(scans)]) if scans else speed.street
    if case == "sweep":
        sizes = speed.parse_voxels([options.voxels])
        return [(size, 1, functools.partial(speed.make_cloud, size, spec, scan=source)) for size in sizes]
    if case == "batch":
        cloud = speed.voxelize_scans([source(number) for number in range(SCANS)], spec)
        return [(len(cloud), SCANS, lambda: cloud)]
    points = scans[0] if scans else nuscenes_size()
    cloud = speed.voxelize_scans([points], spec)
    return [(len(cloud), 1, lambda: cloud)]


def nuscenes_size() -> np.ndarray:
    """A street seen by 32 beams of 1,090 shots a turn, as nuScenes' HDL-32E has them: about 31,000 points [N, 4]."""
    scan = street_scan(seed=0, beams=32, azimuth_steps=1090)
    return np.column_stack([scan.xyz, scan.intensity])


def draw(path: Path, found: Sequence[Measurement], title: str) -> None:
    if not any(one.seconds for one in found):
        return
    try:
        speed.save_plot(path, found, title)
    except Clever3dError as error:
        print(f"no plot: {error}")
    else:
        print(f"plot  {path}")


def targets(cases: dict[str, dict[str, Any]], device: str, threads: int) -> list[dict[str, str]]:
    """What the project asks of the engine on this device, and what was seen."""
    found: list[dict[str, str]] = []

    def ask(what: str, value: float | None, most: float, reason: str = "not measured") -> None:
        met = "not measured" if value is None else "met" if value <= most else "MISSED"
        seen = reason if value is None else f"{value:.3g}"
        found.append({"what": what, "asked": f"at most {most:g}", "seen": seen, "met": met})

    def one(case: str, voxels: int | None = None) -> dict[str, Any]:
        rows = cases.get(case, {}).get("measurements", [])
        row: dict[str, Any] = next((row for row in rows if voxels in (None, row["voxels"])), {})
        return row

    def ask_peers(row: dict[str, Any], case: str, peers: Sequence[str], what: str, text: str) -> None:
        missing = cases.get(case, {}).get("absent peers", {}) | row.get("skipped", {})
        for peer in peers:
            ratios = {k: v for k, v in row.get("ratios", {}).items() if f"{k} ".startswith(f"{what} / {peer} ")}
            reason = next((why for name, why in missing.items() if f"{name} ".startswith(f"{peer} ")), "not measured")
            ask(f"{text} / {peer}", next(iter(ratios.values()), None), 1.0, reason.splitlines()[0])

    slope = cases.get("sweep", {}).get("slopes", {}).get("total")
    if device == "cpu":
        row = one("sweep", 30_000)
        ratios = row.get("ratios", {})
        ask(f"30,000 voxels, {threads} thread(s): maps + forward / {BARE}", ratios.get(f"total / {BARE}"), 1.4)
        ask(f"30,000 voxels, {threads} thread(s): maps / (maps + forward)", ratios.get("maps / total"), 0.05)
        ask_peers(row, "sweep", ("spconv",), "total", "30,000 voxels, 1 thread: maps + forward")
        ask("sweep: slope of maps + forward over voxels (linear: 1)", slope, 1.1)
        return found
    rivals = ("spconv-triton", "torchsparse")
    ask_peers(one("batch"), "batch", rivals, TRAINING, f"{SCANS} whole scans: {TRAINING}, maps included")
    ratio = one("nuscenes").get("ratios", {}).get(f"total / {LIMIT}")
    ask("one scan of 31k points, float16: maps + forward / limit", ratio, 3.0)
    row = one("sweep", 1_000_000)
    fits = bool(row.get("seconds"))
    reasons = "; ".join(row.get("skipped", {}).values()) or "not measured"
    found.append({
        "what": "a scan of a million voxels", "asked": "fits and runs",
        "seen": f"{row['seconds']['total']:.3f} s" if fits else reasons, "met": "met" if fits else "not measured",
    })  # fmt: skip
    ask("sweep: slope of maps + forward over voxels (linear: 1)", slope, 1.1)
    return found


@torch.no_grad()
def compare_layers(backbone: Backbone, voxels: int = 30_000, repeats: int = 5) -> list[dict[str, Any]]:
    """For each shape of a layer: loop, gathered table and bare products in turns, and what the cost model says.

    The model (``torch_engine._table_is_cheaper``) decides only for thin inputs; here its figures stand for all shapes.
    """
    cloud = speed.make_cloud(voxels, backbone.input_spec)
    layers = speed.layers_on(speed.convolutions_of(backbone), cloud)
    bare = speed.BareProducts(torch.device("cpu"), "float32")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    print(f"{voxels:,} voxels, milliseconds; model in brackets; * is what the engine takes")
    print("stride      kernel   Cin  Cout   voxels  pairs/row  times      bare         loop          table")
    for layer in layers:
        how = layer.convolution
        key = how.fine, how.kernel_size, how.transposed, how.channels_in, how.channels_out
        if how.pointwise or key in rows:
            if key in rows:
                rows[key]["times"] += 1
            continue
        pairs = how.kernel_map(cloud.pyramid)
        feats, kernel = torch.randn(pairs.num_in, how.channels_in), torch.randn(pairs.volume, *key[-2:])
        rows_in, rows_out, sizes, table = pairs.in_rows, pairs.out_rows, pairs.sizes.tolist(), pairs.table
        ways: dict[str, Callable[[], Any]] = {
            "bare": functools.partial(speed.run_products, bare.products_of([layer])),
            "loop": functools.partial(
                torch_engine._loop, feats, kernel, rows_in, rows_out, sizes, pairs.num_out, pairs.identity
            ),
            "table": functools.partial(torch_engine._gathered, feats, kernel, table),
        }
        turns = [{way: speed.timed(run, feats.device)[0] for way, run in ways.items()} for _ in range(repeats + 1)][1:]
        values = {way: 1e3 * statistics.median(turn[way] for turn in turns) for way in ways}
        products = torch_engine._MULTIPLY * how.channels_in * how.channels_out
        gather = torch_engine._GATHER * how.channels_in
        rows[key] = {
            "stride": how.fine[0], "kernel": how.kernel_size[0], "transposed": how.transposed,
            "channels_in": how.channels_in, "channels_out": how.channels_out, "rows": pairs.num_out,
            "pairs": len(rows_in), "times": 1, **values,
            "model loop": len(rows_in) * (torch_engine._PAIR + gather + products) / 1e6,
            "model table": pairs.num_out * pairs.volume * (gather + products) / 1e6,
            "takes": "table" if torch_engine._table_is_cheaper(pairs, kernel) else "loop",
        }  # fmt: skip
    for row in rows.values():
        print(_layer_line(row))
    wrong = [
        row for row in rows.values() if row["channels_in"] <= 32 and row[row["takes"]] > min(row["loop"], row["table"])
    ]
    loss = sum(row["times"] * (row[row["takes"]] - min(row["loop"], row["table"])) for row in wrong)
    total = sum(row["times"] * row[row["takes"]] for row in rows.values())
    print(
        f"the model's choice costs {loss:.1f} ms over the better one, of {total:.0f} ms for all convolutions with a map"
    )
    return list(rows.values())


def _layer_line(row: dict[str, Any]) -> str:
    kind = f"{row['kernel']}^3" + (" up" if row["transposed"] else " down" if row["kernel"] == 2 else "")
    ways = ""
    for way in ("loop", "table"):
        ways += f" {row[way]:6.2f}{'*' if row['takes'] == way else ' '}({row[f'model {way}']:6.2f})"
    return (
        f"{row['stride']:6}  {kind:>10} {row['channels_in']:5} {row['channels_out']:5} {row['rows']:8} "
        f"{row['pairs'] / row['rows']:10.2f} {row['times']:6} {row['bare']:9.2f}{ways}"
    )


if __name__ == "__main__":
    main()
