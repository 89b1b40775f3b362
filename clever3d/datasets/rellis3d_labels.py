"""What the labels of RELLIS-3D mean.

Source: benchmarks/SalsaNext/train/tasks/semantic/config/labels/rellis.yaml of unmannedlab/RELLIS-3D (ids, names,
colours, learning_map). That file says "bgr" above its colours, but they are (r, g, b): water and sky are blue in it.
The LiDAR benchmark has 14 classes; void and the five that hardly a point has are ignored.
"""

from __future__ import annotations

from clever3d.datasets.labels import LabelSpec

# In the order of the benchmark's classes: id, name, colour.
_CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
    (3, "grass", (0, 102, 0)),
    (4, "tree", (0, 255, 0)),
    (5, "pole", (0, 153, 153)),
    (6, "water", (0, 128, 255)),
    (8, "vehicle", (255, 255, 0)),
    (15, "log", (102, 0, 0)),
    (17, "person", (204, 153, 255)),
    (18, "fence", (102, 0, 204)),
    (19, "bush", (255, 153, 204)),
    (23, "concrete", (170, 170, 170)),
    (27, "barrier", (41, 121, 255)),
    (31, "puddle", (134, 255, 239)),
    (33, "mud", (99, 66, 34)),
    (34, "rubble", (110, 22, 138)),
)
_IGNORED = {0: "void", 1: "dirt", 7: "sky", 9: "object", 10: "asphalt", 12: "building"}

RELLIS3D = LabelSpec(
    name="rellis3d",
    raw_names={**_IGNORED, **{raw: name for raw, name, _ in _CLASSES}},
    classes=tuple(name for _, name, _ in _CLASSES),
    to_class={raw: number for number, (raw, _, _) in enumerate(_CLASSES)},
    colors=tuple(color for _, _, color in _CLASSES),
)
