"""The 19 classes of Cityscapes, for labels that an image network painted on points.

Source of ids, names and colours: labels.py of cityscapesScripts, the rows with a train id.
"""

from __future__ import annotations

from clever3d.datasets.labels import IGNORE, LabelSpec

_CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

#: Predictions, not ground truth: the ids in the files are train ids, 255 where there is no prediction.
CITYSCAPES_PSEUDO = LabelSpec(
    name="cityscapes-pseudo",
    raw_names={**{i: name for i, (name, _) in enumerate(_CLASSES)}, IGNORE: "none"},
    classes=tuple(name for name, _ in _CLASSES),
    to_class={i: i for i in range(len(_CLASSES))},
    colors=tuple(color for _, color in _CLASSES),
)
