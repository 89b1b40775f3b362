"""Waymo's semantic classes and box types. Source: waymo-research/waymo-open-dataset, `protos/segmentation.proto` and
`v2/perception/box.py` (BoxType)."""

from __future__ import annotations

from clever3d.datasets.labels import LabelSpec, spread_colors

#: Box type -> its name.
BOX_TYPES = {0: "unknown", 1: "vehicle", 2: "pedestrian", 3: "sign", 4: "cyclist"}

_NAMES = (
    "car", "truck", "bus", "other_vehicle", "motorcyclist", "bicyclist", "pedestrian", "sign", "traffic_light", "pole",
    "construction_cone", "bicycle", "motorcycle", "building", "vegetation", "tree_trunk", "curb", "road",
    "lane_marker", "other_ground", "walkable", "sidewalk",
)  # fmt: skip


#: 22 classes, and 0 ("undefined": also the points that nobody labelled in a labelled frame), which is not scored.
WAYMO = LabelSpec(
    name="waymo",
    raw_names={0: "undefined", **dict(enumerate(_NAMES, start=1))},
    classes=_NAMES,
    to_class={number + 1: number for number in range(len(_NAMES))},
    colors=spread_colors(len(_NAMES)),
)
