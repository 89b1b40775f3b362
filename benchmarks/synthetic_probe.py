"""Linear probe on patch features of rendered images: what a real teacher sees in the embedded world.

    python benchmarks/synthetic_probe.py --teacher-weights TEACHER.safetensors [--kitti KITTI]

Every patch of an 800 x 450 image with three fifths of its pixels of one merged class is an example. The probe learns on
scenes of some seeds (all four places), its weight decay is chosen on further ones, it is tested on seeds that neither
has seen. Rows: the teacher; the same network with random weights; mean and deviation of the patch's RGB; the same with
the patch's height in the image. With --kitti (a folder with training/{velodyne,image_2,calib,pseudo_sem}) the probes
learned on the world are also tested on real images, at the pixels of LiDAR points with predicted Cityscapes classes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from clever3d.datasets import open_dataset
from clever3d.datasets.synthetic import world
from clever3d.datasets.synthetic.truth import CLASSES
from clever3d.distill.pairing import view
from clever3d.distill.teachers import DEFAULT_MODEL, Teacher
from clever3d.evaluate.metrics import IGNORE, accuracy, confusion_matrix, intersection_over_union, mean_iou
from clever3d.evaluate.probe import LinearProbe, fit_linear_probe

#: Merged classes: names in truth.CLASSES, and Cityscapes train ids of the real labels.
MERGED: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "road": (("road", "lane_marking", "parking"), (0,)),
    "sidewalk": (("sidewalk",), (1,)),
    "terrain": (("terrain",), (9,)),
    "building": (("building",), (2,)),
    "wall, fence, barrier": (("wall", "fence", "barrier"), (3, 4)),
    "vegetation": (("vegetation", "trunk"), (8,)),
    "pole, sign, light": (("pole", "traffic_sign", "traffic_light"), (5, 6, 7)),
    "vehicle": (("car", "truck", "bus"), (13, 14, 15, 16)),
    "two-wheeler": (("bicycle", "motorcycle"), (17, 18)),
    "person, rider": (("person", "bicyclist", "motorcyclist"), (11, 12)),
    "sky": (("unlabeled",), (10,)),
}
TRAIN, TUNE, TEST = (10, 11, 12), (13,), (20, 21)
KEY_FRAMES = (0, 8)  # the first moment, and 4 s later
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK")
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
BALANCE = 0.5  # class weights frequency ** -0.5: mIoU asks for the rare classes too
PURE = 0.6

Features = Callable[[NDArray[np.uint8]], Tensor]  # of an image [H, W, 3] to a grid [C, h, w]


@dataclass(frozen=True)
class Shown:
    """A rendered image and the merged class of each of its patches [h, w], IGNORE where none has PURE of it."""

    seed: int
    image: NDArray[np.uint8]
    labels: Tensor


def patch_labels(label: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """Merged classes int64 [h, w] of the patches of a label map [H, W]."""
    merge = np.full(len(CLASSES), len(MERGED))
    for number, (members, _) in enumerate(MERGED.values()):
        merge[[CLASSES.index(name) for name in members]] = number
    rows = np.arange(label.shape[0]) * grid[0] // label.shape[0]
    columns = np.arange(label.shape[1]) * grid[1] // label.shape[1]
    cell = rows[:, None] * grid[1] + columns[None]
    counts = np.zeros((grid[0] * grid[1], len(MERGED) + 1))
    np.add.at(counts, (cell.ravel(), merge[label].ravel()), 1)
    most = counts.argmax(axis=1)
    pure = (counts.max(axis=1) >= PURE * counts.sum(axis=1)) & (most < len(MERGED))
    return torch.from_numpy(np.where(pure, most, IGNORE)).reshape(grid)


def render_all(grid: tuple[int, int]) -> list[Shown]:
    """The images of all seeds and places."""
    shown = []
    for place in world.PLACES:
        for seed in (*TRAIN, *TUNE, *TEST):
            frames = world.simulate(
                "nuscenes", place=place, seed=seed, frames=KEY_FRAMES[-1] + 1, sweeps=False, image_scale=0.5
            )
            for number, frame in enumerate(frames):
                for shot in frame.cameras if number in KEY_FRAMES else ():
                    if shot.name in CAMERAS:
                        picture = shot.render()
                        shown.append(Shown(seed, picture.image, patch_labels(picture.label, grid)))
        print(f"rendered {place}: {len(shown)} images so far", flush=True)
    return shown


def colour_features(grid: tuple[int, int], height: bool) -> Features:
    """Mean and standard deviation of the RGB of each patch, with its height in the image (v and v^2) or without."""

    def features(image: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255
        mean = torch.nn.functional.adaptive_avg_pool2d(pixels, grid)[0]
        square = torch.nn.functional.adaptive_avg_pool2d(pixels**2, grid)[0]
        columns = [mean, (square - mean**2).clamp(min=0).sqrt()]
        if height:
            v = torch.linspace(0, 1, grid[0])[None, :, None].expand(1, *grid)
            columns += [v, v**2]
        return torch.cat(columns)

    return features


def learn(features: list[Tensor], shown: list[Shown]) -> tuple[LinearProbe, float, Tensor]:
    """The probe, its weight decay, and the confusion on the test seeds; features: a grid [C, h, w] an image."""
    x = [grid.flatten(1).T for grid in features]
    y = [item.labels.flatten() for item in shown]

    def rows(seeds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        chosen = [n for n, item in enumerate(shown) if item.seed in seeds]
        return torch.cat([x[n] for n in chosen]), torch.cat([y[n] for n in chosen])

    def confusion(probe: LinearProbe, seeds: tuple[int, ...]) -> Tensor:
        inputs, target = rows(seeds)
        return confusion_matrix(probe.predict(inputs), target, len(MERGED))

    def fit(seeds: tuple[int, ...], decay: float) -> LinearProbe:
        return fit_linear_probe(*rows(seeds), len(MERGED), weight_decay=decay, balance=BALANCE)

    decay = max(DECAYS, key=lambda value: mean_iou(confusion(fit(TRAIN, value), TUNE)))
    probe = fit((*TRAIN, *TUNE), decay)
    return probe, decay, confusion(probe, TEST)


def real_confusion(probe: LinearProbe, features: Features, kitti: Path) -> Tensor:
    """The probe on real KITTI images, at the pixels of the points that have a label (each patch as one grid cell)."""
    merge = np.full(256, IGNORE)
    for number, (_, ids) in enumerate(MERGED.values()):
        merge[list(ids)] = number
    total = torch.zeros(len(MERGED), len(MERGED), dtype=torch.int64)
    for frame in open_dataset(f"kitti:{kitti}"):
        from PIL import Image

        image = np.asarray(Image.open(frame.cameras[0].image_path).convert("RGB"))
        grid = features(image)
        seen = view(frame.points().xyz, frame.cameras[0])
        target = torch.from_numpy(merge[np.fromfile(kitti / "training" / "pseudo_sem" / f"{frame.id}.u1", np.uint8)])[
            seen.rows
        ]
        u, v = ((torch.as_tensor(seen.pixels).T + 0.5) / torch.tensor(seen.image_size)[:, None]).clamp(0, 1 - 1e-6)
        cells = grid[:, (v * grid.shape[1]).long(), (u * grid.shape[2]).long()].T
        total += confusion_matrix(probe.predict(cells), target, len(MERGED))
    return total


def scores(confusion: Tensor) -> dict[str, object]:
    """mIoU, accuracy, IoU of each class."""
    ious = dict(zip(MERGED, intersection_over_union(confusion).tolist(), strict=True))
    return {
        "mIoU": mean_iou(confusion),
        "accuracy": accuracy(confusion),
        "IoU": {k: v for k, v in ious.items() if v == v},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--kitti", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "synthetic-probe.json")
    options = parser.parse_args()
    teacher = Teacher.create(weights=options.teacher_weights, image_tokens=options.tokens)
    torch.manual_seed(0)
    plain = timm.create_model(DEFAULT_MODEL, pretrained=False, dynamic_img_size=True, num_classes=0)
    untrained = Teacher(plain, name="random", image_tokens=options.tokens)
    grid = teacher.grid_size(450, 800)
    shown = render_all(grid)
    makers: dict[str, Features] = {
        "teacher": teacher.features,
        "same network, random weights": untrained.features,
        "colour": colour_features(grid, height=False),
        "colour and height in the image": colour_features(grid, height=True),
    }
    report: dict[str, object] = {
        "command": "python "
        + " ".join(["benchmarks/synthetic_probe.py", *(Path(a).name if "/" in a else a for a in sys.argv[1:])]),
        "images": {
            name: sum(item.seed in seeds for item in shown)
            for name, seeds in (("train", TRAIN), ("tune", TUNE), ("test", TEST))
        },
        "patches of the test images": int(sum((item.labels != IGNORE).sum() for item in shown if item.seed in TEST)),
    }
    for name, features in makers.items():
        start = time.perf_counter()
        probe, decay, confusion = learn([features(item.image) for item in shown], shown)
        result: dict[str, object] = {**scores(confusion), "weight decay": decay}
        if options.kitti:
            result["real KITTI images"] = scores(real_confusion(probe, features, options.kitti))
        report[name] = result
        real = f"  real {result['real KITTI images']['mIoU']:.3f}" if options.kitti else ""  # type: ignore[index]
        print(
            f"{name:32s} mIoU {result['mIoU']:.3f} accuracy {result['accuracy']:.3f}{real}"
            f" ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
