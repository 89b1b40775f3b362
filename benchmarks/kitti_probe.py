"""Linear probe on frozen features of held-out KITTI frames: student, untrained, raw input, teacher.

    python benchmarks/kitti_probe.py KITTI --teacher-weights TEACHER.safetensors [--run RUN] [--backbone NAME|PATH]

KITTI holds training/{velodyne,image_2,calib,pseudo_sem}. The labels (pseudo_sem/*.u1) are predictions of an image
network painted on the points, so this is a yardstick, not ground truth. Split: the probe learns on frames 000000-000007
and is tested on 000008-000011, which no distillation has seen. Eight classes, merged from Cityscapes. Only points in
the image have a label. The weight decay of each probe is chosen on frames 000006-000007 with a probe of 000000-000005.
With --run the cosines of the student's head on the test frames are given too.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import clever3d
from clever3d.backbones import Backbone, create_backbone
from clever3d.datasets import open_dataset
from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.pairing import View, view
from clever3d.distill.task import Example, compare, mean_centred_cosine
from clever3d.distill.teachers import Teacher, sample_grid
from clever3d.distill.train import load_head
from clever3d.evaluate.metrics import IGNORE, accuracy, confusion_matrix, intersection_over_union, mean_iou
from clever3d.evaluate.probe import fit_linear_probe

#: Merged classes and their Cityscapes train ids.
CLASSES = {
    "road": [0], "sidewalk": [1], "building": [2], "vegetation": [8], "terrain": [9],
    "pole, sign": [5, 6, 7], "vehicle": [13, 14, 15, 16], "other": [3, 4, 11, 12, 17, 18],
}  # fmt: skip
TRAIN, TUNE, TEST = range(6), range(6, 8), range(8, 12)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
BALANCE = 0.5  # class weights frequency ** -0.5: mIoU asks for the rare classes too
EVERY = 3  # the probe learns from every third point: same result to the second digit, a third of the time

Features = Callable[[Example, View], Tensor]


def labels(kitti: Path, frame: str) -> Tensor:
    """Merged classes int64 [N] of all points of a frame."""
    merge = np.full(256, IGNORE)
    for number, ids in enumerate(CLASSES.values()):
        merge[ids] = number
    folder = kitti / "training" if (kitti / "training").is_dir() else kitti
    return torch.from_numpy(merge[np.fromfile(folder / "pseudo_sem" / f"{frame}.u1", np.uint8)])


def student_features(backbone: Backbone) -> Features:
    """Features of the whole scan, at the points in the image."""

    def features(example: Example, seen: View) -> Tensor:
        cloud = example.frame.points()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return backbone.extract(cloud.xyz, cloud.intensity).features[seen.rows]

    return features


def raw_features(example: Example, seen: View) -> Tensor:
    """x, y, z, intensity and range."""
    cloud = example.frame.points()
    assert cloud.intensity is not None, "KITTI scans have intensity"
    columns = [cloud.xyz, cloud.intensity[:, None], np.linalg.norm(cloud.xyz, axis=1, keepdims=True)]
    return torch.from_numpy(np.concatenate(columns, axis=1)[seen.rows])


def teacher_features(cache: FeatureCache) -> Features:
    """The teacher's own features, read at the points' pixels."""

    def features(example: Example, seen: View) -> Tensor:
        return sample_grid(cache.get(example.frame.cameras[0].image_path), seen.pixels, seen.image_size)

    return features


def probe(features: Features, examples: list[Example], kitti: Path) -> dict[str, object]:
    """mIoU, accuracy and IoU of each class on the test frames."""
    x, y = {}, {}
    for number, example in enumerate(examples):
        seen = view(example.frame.points().xyz, example.frame.cameras[0])
        x[number], y[number] = features(example, seen), labels(kitti, example.frame.id)[seen.rows]

    def score(fit: list[int], test: list[int], decay: float) -> Tensor:
        learned = fit_linear_probe(
            torch.cat([x[n][::EVERY] for n in fit]),
            torch.cat([y[n][::EVERY] for n in fit]),
            len(CLASSES),
            weight_decay=decay,
            balance=BALANCE,
        )
        confusions = [confusion_matrix(learned.predict(x[n]), y[n], len(CLASSES)) for n in test]
        return torch.stack(confusions).sum(0)

    decay = max(DECAYS, key=lambda value: mean_iou(score([*TRAIN], [*TUNE], value)))
    confusion = score([*TRAIN, *TUNE], [*TEST], decay)
    ious = dict(zip(CLASSES, intersection_over_union(confusion).tolist(), strict=True))
    return {"mIoU": mean_iou(confusion), "accuracy": accuracy(confusion), "weight decay": decay, "IoU": ious}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kitti", type=Path)
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--teacher-tokens", type=int, default=1024)
    parser.add_argument("--backbone", default="minkunet-dinov2-s")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/teacher-cache"))
    parser.add_argument("--seed", type=int, default=0, help="of the untrained network")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kitti-probe.json")
    options = parser.parse_args()
    examples = [Example(frame, 0) for frame in open_dataset(f"kitti:{options.kitti}")]
    teacher = Teacher.create(weights=options.teacher_weights, image_tokens=options.teacher_tokens)
    cache = FeatureCache(options.cache, teacher)
    student = clever3d.load_backbone(options.backbone)
    torch.manual_seed(options.seed)
    untrained = create_backbone(student.architecture, input_spec=student.input_spec).eval()
    calibrate(untrained, examples)
    rows = {
        "student": student_features(student),
        "same network untrained": student_features(untrained),
        "raw x, y, z, intensity, range": raw_features,
        "teacher": teacher_features(cache),
    }
    report: dict[str, object] = {}
    print(f"{'':32s} mIoU   acc.   " + "  ".join(f"{name[:8]:8s}" for name in CLASSES))
    for name, features in rows.items():
        result = probe(features, examples, options.kitti)
        report[name] = result
        ious = "  ".join(f"{value:8.3f}" for value in result["IoU"].values())  # type: ignore[attr-defined]
        print(f"{name:32s} {result['mIoU']:.3f}  {result['accuracy']:.3f}  {ious}", flush=True)
    if options.run:
        head, stats, target = load_head(options.run)
        seen = [examples[n] for n in TRAIN]
        gain = mean_centred_cosine(student, head, stats, seen, cache, target)
        cosines = [compare(student, head, stats, examples[n], cache, target, gain) for n in TEST]
        report["cosine"] = {key: float(np.mean([c[key] for c in cosines])) for key in cosines[0]}
        print("cosines on the test frames:", ", ".join(f"{k} {v:.3f}" for k, v in report["cosine"].items()))  # type: ignore[attr-defined]
    options.output.write_text(json.dumps(report, indent=2) + "\n")


@torch.no_grad()
def calibrate(backbone: Backbone, examples: list[Example]) -> None:
    """Gives an untrained network batch-norm statistics of real scans, without which its features would be near zero."""
    from clever3d.points import check_points, voxelize

    backbone.train()
    for n in TRAIN:
        cloud = examples[n].frame.points()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checked = check_points(cloud.xyz, cloud.intensity, backbone.input_spec, backbone.device)
        backbone(voxelize([checked], backbone.input_spec).tensor)
    backbone.eval()


if __name__ == "__main__":
    main()
