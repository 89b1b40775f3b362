"""What the occlusion test of pairing removes: on real frames, and where the truth is known.

    python benchmarks/occlusion.py kitti:KITTI nuscenes:NUSCENES [--picture docs/images/occlusion.png]

On the data sets given: the share of the paired points that the test calls hidden. On the embedded world, whose cameras
know the depth of every pixel (two frames of three drives through each place, for each sensor suite): a point is hidden
if everything in the 3 x 3 pixels around it is clearly nearer, visible if nothing is, and left out of the count in
between. Prints a table in Markdown, place by place and over all, and writes JSON; `--picture` draws one camera of the
world, hidden points red.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from clever3d.datasets import Camera, open_dataset
from clever3d.datasets.geometry import inverse
from clever3d.datasets.occlusion import OcclusionConfig, hidden
from clever3d.datasets.synthetic.truth import CameraShot, WorldFrame
from clever3d.datasets.synthetic.world import PLACES, simulate
from clever3d.distill.pairing import MIN_DEPTH, view
from clever3d.evaluate import speed

SEEDS, FRAMES = (101, 102, 103), 2  # of each place; how the world falls out matters more than the number of frames
SCALES = {"kitti": 1.0, "nuscenes": 0.5}  # of the images: pixels of about 0.08 degrees in both, only depth counts
CLEARLY = (0.03, 0.3)  # nearer by this share of the depth and so many metres

Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="data sets, NAME:PATH")
    parser.add_argument("--frames", type=int, default=12, help="frames of each, at most")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "occlusion.json")
    options = parser.parse_args()
    rows = [real(spec, options.frames) for spec in options.sets]
    for sensor in SCALES:
        rows += world(sensor, options.picture if sensor == "kitti" else None)
    print("| frames | pairs | called hidden | truly hidden | found | right | visible lost |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        truth = [f"{row[k]:.3f}" if k in row else "-" for k in ("hidden", "recall", "precision", "lost")]
        print(f"| {row['frames']} | {row['pairs']:,} | {row['called hidden']:.3f} | {' | '.join(truth)} |")
    report = {
        "command": f"python benchmarks/occlusion.py {' '.join(s.split(':')[0] + ':...' for s in options.sets)}",
        **speed.environment(torch.device("cpu")),
        "test": vars(OcclusionConfig()),
        "rows": rows,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.output}", file=sys.stderr)


def real(spec: str, count: int) -> dict[str, Any]:
    data = open_dataset(spec)
    found = removed = 0
    for number in range(min(len(data), count)):
        frame = data[number]
        xyz = frame.points().xyz
        for camera in frame.cameras:
            seen = view(xyz, camera, occlusion=OcclusionConfig())
            found, removed = found + len(seen.rows) + seen.behind_others, removed + seen.behind_others
    name = f"{spec.split(':')[0]}, {min(len(data), count)} real"
    return {"frames": name, "pairs": found, "called hidden": removed / found}


def world(sensor: str, picture: Path | None) -> list[dict[str, Any]]:
    """A row for each place, and one over all of them."""
    places = {}
    for place in PLACES:
        parts: list[tuple[Array, Array, Array]] = []
        for seed in SEEDS:
            drive = simulate(sensor, place=place, seed=seed, frames=FRAMES, sweeps=False, image_scale=SCALES[sensor])
            for frame in drive:
                for shot in frame.cameras:
                    pixels, found, truth, certain, image = judged(frame, shot)
                    parts.append((found, truth, certain))
                    if picture is not None:
                        draw(picture, pixels, found, image)
                        picture = None
        places[place] = parts
    count = len(SEEDS) * FRAMES
    rows = [scored(f"world, {sensor}, {place}, {count}", parts) for place, parts in places.items()]
    everything = [part for parts in places.values() for part in parts]
    return [*rows, scored(f"world, {sensor}, all places, {count * len(places)}", everything)]


def scored(name: str, parts: list[tuple[Array, Array, Array]]) -> dict[str, Any]:
    """Shares over called hidden, truly hidden and certain [M] of many images."""
    called, truth, certain = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    found, truth = called[certain], truth[certain]
    return {
        "frames": name,
        "pairs": len(called),
        "called hidden": float(called.mean()),
        "uncertain": float(1 - certain.mean()),
        "hidden": float(truth.mean()),
        "recall": float(found[truth].mean()),
        "precision": float(truth[found].mean()),
        "lost": float(found[~truth].mean()),
    }


def judged(frame: WorldFrame, shot: CameraShot) -> tuple[Array, Array, Array, Array, Array]:
    """Pixels [M, 2], called hidden [M], truly hidden [M], certain [M] of the points in view, and the image."""
    to_world = frame.scan.ego_to_world @ frame.scan.lidar_to_ego
    to_camera = inverse(shot.ego_to_world @ shot.camera_to_ego) @ to_world
    camera = Camera(shot.name, Path("none"), shot.intrinsics, to_camera, shot.distortion, shot.size)
    pixels, depth = camera.project(frame.scan.xyz)
    width, height = shot.size
    seen = (depth > MIN_DEPTH) & (pixels >= -0.5).all(axis=1) & (pixels < [width - 0.5, height - 0.5]).all(axis=1)
    pixels, depth = pixels[seen], depth[seen]
    shown = shot.render()
    edge = np.pad(shown.depth, 1, mode="edge")
    u, v = np.rint(pixels).astype(int).clip(0, [width - 1, height - 1]).T
    around = np.stack([edge[v + dv, u + du] for dv in range(3) for du in range(3)])  # [9, M]
    nearer = around * (1 + CLEARLY[0]) + CLEARLY[1] < depth
    truth, visible = np.all(nearer, axis=0), ~np.any(nearer, axis=0)
    return pixels, hidden(pixels, depth, camera), truth, truth | visible, shown.image


def draw(path: Path, pixels: Array, found: Array, image: Array) -> None:
    """Dots on the darkened image: grey for points the camera sees, red for those called hidden."""
    canvas = Image.fromarray((image * 0.7).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for flag, colour, radius in ((False, (215, 215, 215), 0.7), (True, (255, 60, 40), 1.8)):
        for u, v in pixels[found == flag]:
            pen.ellipse([u - radius, v - radius, u + radius, v + radius], fill=colour)
    canvas.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)  # a third of the size


if __name__ == "__main__":
    main()
