"""What the labels of SemanticKITTI mean, and which sequences are for what.

Source: semantic-kitti.yaml of PRBonn/semantic-kitti-api (ids, names, colours, learning_map, split). Its learning_map
counts the 19 classes from 1 and gives 0 to what is ignored; here they count from 0, and that is IGNORE. Its colours are
(b, g, r), here they are (r, g, b).
"""

from __future__ import annotations

from clever3d.datasets.labels import LabelSpec

#: The sequences of each split.
SPLITS: dict[str, tuple[str, ...]] = {
    "train": tuple(f"{number:02d}" for number in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10)),
    "val": ("08",),
    "test": tuple(f"{number:02d}" for number in range(11, 22)),
}

# Class, its colour, and the ids that count as it: the class itself first, then those that move, then those merged in.
_CLASSES: tuple[tuple[str, tuple[int, int, int], dict[int, str]], ...] = (
    ("car", (100, 150, 245), {10: "car", 252: "moving-car"}),
    ("bicycle", (100, 230, 245), {11: "bicycle"}),
    ("motorcycle", (30, 60, 150), {15: "motorcycle"}),
    ("truck", (80, 30, 180), {18: "truck", 258: "moving-truck"}),
    (
        "other-vehicle",
        (0, 0, 255),
        {
            20: "other-vehicle",
            259: "moving-other-vehicle",
            13: "bus",
            257: "moving-bus",
            16: "on-rails",
            256: "moving-on-rails",
        },
    ),
    ("person", (255, 30, 30), {30: "person", 254: "moving-person"}),
    ("bicyclist", (255, 40, 200), {31: "bicyclist", 253: "moving-bicyclist"}),
    ("motorcyclist", (150, 30, 90), {32: "motorcyclist", 255: "moving-motorcyclist"}),
    ("road", (255, 0, 255), {40: "road", 60: "lane-marking"}),
    ("parking", (255, 150, 255), {44: "parking"}),
    ("sidewalk", (75, 0, 75), {48: "sidewalk"}),
    ("other-ground", (175, 0, 75), {49: "other-ground"}),
    ("building", (255, 200, 0), {50: "building"}),
    ("fence", (255, 120, 50), {51: "fence"}),
    ("vegetation", (0, 175, 0), {70: "vegetation"}),
    ("trunk", (135, 60, 0), {71: "trunk"}),
    ("terrain", (150, 240, 80), {72: "terrain"}),
    ("pole", (255, 240, 150), {80: "pole"}),
    ("traffic-sign", (255, 0, 0), {81: "traffic-sign"}),
)
_IGNORED = {0: "unlabeled", 1: "outlier", 52: "other-structure", 99: "other-object"}

SEMANTICKITTI = LabelSpec(
    name="semantickitti",
    raw_names={**_IGNORED, **{raw: name for _, _, ids in _CLASSES for raw, name in ids.items()}},
    classes=tuple(name for name, _, _ in _CLASSES),
    to_class={raw: number for number, (_, _, ids) in enumerate(_CLASSES) for raw in ids},
    colors=tuple(color for _, color, _ in _CLASSES),
)
