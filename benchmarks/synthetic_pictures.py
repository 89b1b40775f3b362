"""The contact sheet of the embedded world: each place as image, labels and scan seen from above.

python benchmarks/synthetic_pictures.py [--seed 5] [--output docs/images/world.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clever3d.datasets.synthetic import world
from clever3d.datasets.synthetic.truth import CLASSES, WorldScan

#: Colours of the classes, after Cityscapes where it has them.
COLORS: dict[str, tuple[int, int, int]] = {
    "unlabeled": (150, 190, 225), "road": (128, 64, 128), "lane_marking": (230, 230, 240), "parking": (190, 140, 170),
    "sidewalk": (244, 35, 232), "terrain": (152, 251, 152), "building": (90, 90, 90), "wall": (120, 120, 170),
    "fence": (190, 153, 153), "vegetation": (60, 120, 30), "trunk": (120, 75, 30), "pole": (200, 200, 150),
    "traffic_sign": (220, 220, 0), "traffic_light": (250, 170, 30), "car": (20, 40, 200), "truck": (0, 100, 140),
    "bus": (0, 160, 190), "bicycle": (150, 20, 40), "motorcycle": (110, 0, 160), "person": (240, 30, 60),
    "bicyclist": (255, 90, 0), "motorcyclist": (255, 0, 150), "barrier": (90, 60, 140), "traffic_cone": (255, 130, 0),
    "other": (70, 130, 130),
}  # fmt: skip
PALETTE = np.array([COLORS[name] for name in CLASSES], dtype=np.uint8)


def from_above(scan: WorldScan, height: int, reach: float = 32.0) -> NDArray[np.uint8]:
    """The scan [height, height, 3] coloured by class and brightened by intensity, forward up."""
    picture = np.full((height, height, 3), 12, dtype=np.uint8)
    u = np.floor((reach - scan.xyz[:, 1]) / (2 * reach) * height).astype(int)
    v = np.floor((reach - scan.xyz[:, 0]) / (2 * reach) * height).astype(int)
    order = np.argsort(scan.xyz[:, 2])
    keep = order[((u >= 0) & (u < height) & (v >= 0) & (v < height))[order]]
    light = 0.55 + 0.45 * np.clip(scan.intensity[keep, None] * 4, 0, 1)
    color = (PALETTE[scan.label[keep]] * light).astype(np.uint8)
    for dv, du in ((1, 1), (1, 0), (0, 1), (0, 0)):  # two by two pixels a point
        picture[np.minimum(v[keep] + dv, height - 1), np.minimum(u[keep] + du, height - 1)] = color
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--sensor", default="nuscenes")
    parser.add_argument("--key-frame", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "world.png")
    options = parser.parse_args()
    rows = []
    for place in world.PLACES:
        count = options.key_frame + 1
        *_, frame = world.simulate(options.sensor, place=place, seed=options.seed, frames=count, sweeps=False)
        picture = frame.cameras[0].render()
        size = (480, round(480 * picture.image.shape[0] / picture.image.shape[1]))
        image = np.asarray(Image.fromarray(picture.image).resize(size, Image.Resampling.LANCZOS))
        labels = np.asarray(Image.fromarray(PALETTE[picture.label]).resize(size, Image.Resampling.NEAREST))
        rows.append(np.concatenate([image, labels, from_above(frame.scan, size[1])], axis=1))
    sheet = Image.fromarray(np.concatenate(rows))
    if options.output.suffix == ".png":  # 255 colours keep the file small
        sheet = sheet.quantize(255, dither=Image.Dither.FLOYDSTEINBERG)
    sheet.save(options.output)


if __name__ == "__main__":
    main()
