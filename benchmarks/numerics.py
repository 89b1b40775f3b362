"""How far the features of each engine and precision are from the torch engine's in float64, on a real scan.

    python benchmarks/numerics.py --scan SCAN.bin [--device cpu|cuda]
    TRITON_INTERPRET=1 python benchmarks/numerics.py --scan SCAN.bin --crop 300      Triton's interpreter too, on a CPU

The network has random weights (seed 0) and batch-norm statistics from three forward passes in training mode, each over
a whole synthetic street, so that the values are of order one at every layer. Differences are in units of the standard
deviation of the reference's features, the cosine is that of a voxel's features with the reference's; the points of a
voxel share them. The interpreter takes milliseconds for each step of a tile: its rows are of a sector of the scan with
few voxels, and say so. Prints a table in Markdown and writes JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clever3d.backbones import Backbone, create_backbone
from clever3d.evaluate import speed
from clever3d.sparse import SparseTensor, available_engines, use_engine
from clever3d.sparse.engines import ENGINES

STREETS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, help="default: a synthetic street")
    parser.add_argument("--backbone", default="minkunet34")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--crop", type=int, default=300, help="voxels for what runs in Triton's interpreter")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/numerics-DEVICE.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    backbone = network(options.backbone)
    points = speed.read_scan(options.scan) if options.scan else speed.street(0)
    whole = speed.voxelize_scans([points], backbone.input_spec)
    reference, spread = in_float64(backbone, whole)
    backbone = backbone.to(device)
    print(f"standard deviation of the features at each scale, coarsest first: {', '.join(f'{s:.2f}' for s in spread)}")
    rows = []
    for engine in ENGINES:
        interpreted = engine == "triton" and device.type == "cpu" and available_engines(device)[engine] is None
        cloud, target, where = whole, reference, options.device
        if interpreted:
            cloud = speed.make_cloud(options.crop, backbone.input_spec, scan=lambda number: points)
            target, _ = in_float64(backbone, cloud)
            where = "interpreter, a sector"
        for name in speed.PRECISIONS:
            if name == "tf32" and device.type == "cpu":
                continue
            rows.append(compare(engine, name, backbone, cloud, target, where))
            print(f"... {engine} {name}", file=sys.stderr)
    print(markdown(rows))
    report = {
        "command": " ".join(["python", *sys.argv]),
        **speed.environment(device),
        "backbone": options.backbone,
        "scan": options.scan.name if options.scan else "synthetic street 0",
        "calibration": f"{STREETS} synthetic streets",
        "standard deviations": spread,
        "rows": rows,
    }
    output = options.output or Path(__file__).parent / "results" / f"numerics-{options.device}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {output}")


def network(name: str) -> Backbone:
    """Random weights, always the same, whose layers give values of order one; on the CPU, in eval mode."""
    torch.manual_seed(0)
    backbone = create_backbone(name)
    streets = [speed.voxelize_scans([speed.street(number)], backbone.input_spec) for number in range(STREETS)]
    speed.calibrate(backbone, streets)
    return backbone.eval()


@torch.no_grad()
def in_float64(backbone: Backbone, cloud: SparseTensor) -> tuple[Tensor, list[float]]:
    """The torch engine's features [V, D] in float64 on the CPU, and the standard deviation at each scale."""
    wide = copy.deepcopy(backbone).cpu().double()
    with use_engine("torch"):
        outputs = wide(SparseTensor(cloud.feats.double(), cloud.coords))
    return outputs[-1].feats, [float(one.feats.std()) for one in outputs]


def compare(
    engine: str, name: str, backbone: Backbone, cloud: SparseTensor, reference: Tensor, where: str
) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": engine, "precision": name, "where": where, "voxels": len(cloud)}
    reason = available_engines(backbone.device, speed.PRECISIONS[name])[engine]
    if reason is not None:
        return row | {"not measured": reason}
    here = SparseTensor(cloud.feats.to(backbone.device), cloud.coords.to(backbone.device))
    with use_engine(engine):
        features = speed.Runner(backbone, name).forward(here)[1].cpu().double()
    mean, largest = speed.difference(features, reference)
    cosine = nn.functional.cosine_similarity(features, reference, dim=1)
    return row | {
        "mean": mean,
        "largest": largest,
        "least cosine": float(cosine.min()),
        "mean cosine": float(cosine.mean()),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| engine | precision | on | voxels | mean difference | largest | 1 - least cosine | 1 - mean cosine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| {row['engine']} | {row['precision']} | {row['where']} | {row['voxels']:,} |"
        if "not measured" in row:
            lines.append(f"{start} not measured: {row['not measured'].split(';')[0]} | | | |")
            continue
        gaps = " | ".join(f"{1 - row[key]:.1e}" for key in ("least cosine", "mean cosine"))
        lines.append(f"{start} {row['mean']:.1e} | {row['largest']:.1e} | {gaps} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
