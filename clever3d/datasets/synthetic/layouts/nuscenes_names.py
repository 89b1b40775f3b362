"""The names in nuScenes' tables, which of them the world's classes get, and the tables that belong to no scene.

Source: nuscenes-devkit, docs/schema_nuscenes.md and the README's lists of attributes and visibilities.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from clever3d.datasets.nuscenes_index import CAMERAS, LIDAR
from clever3d.datasets.nuscenes_labels import CATEGORIES
from clever3d.datasets.nuscenes_splits import SPLITS
from clever3d.datasets.synthetic.layouts.base import Plan, Scene

Row: TypeAlias = dict[str, Any]

_NO_SCENE = 2**32 - 1

#: The world's class -> nuScenes' category. In nuScenes riders belong to their bicycle or motorcycle.
CATEGORY_OF = {
    "unlabeled": "noise",
    "road": "flat.driveable_surface",
    "lane_marking": "flat.driveable_surface",
    "parking": "flat.driveable_surface",
    "sidewalk": "flat.sidewalk",
    "terrain": "flat.terrain",
    "building": "static.manmade",
    "wall": "static.manmade",
    "fence": "static.manmade",
    "vegetation": "static.vegetation",
    "trunk": "static.vegetation",
    "pole": "static.manmade",
    "traffic_sign": "static.manmade",
    "traffic_light": "static.manmade",
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "bicycle": "vehicle.bicycle",
    "motorcycle": "vehicle.motorcycle",
    "person": "human.pedestrian.adult",
    "bicyclist": "vehicle.bicycle",
    "motorcyclist": "vehicle.motorcycle",
    "barrier": "movable_object.barrier",
    "traffic_cone": "movable_object.trafficcone",
    "other": "static.other",
}

ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip
VISIBILITIES = ("v0-40", "v40-60", "v60-80", "v80-100")


def _scenes(split: str) -> tuple[str, ...]:
    return tuple(f"scene-{number:04d}" for number in sorted(SPLITS[split]))


#: Version -> names of training scenes, names of validation scenes: the official splits.
SCENES = {
    "v1.0-mini": (_scenes("mini_train"), _scenes("mini_val")),
    "v1.0-trainval": (_scenes("train"), _scenes("val")),
}


def attribute(name: str, moves: bool, ever_moves: bool) -> str:
    """The one attribute that nuScenes gives to this kind of object, "" where it gives none."""
    if name == "person":
        return "pedestrian.moving" if moves else "pedestrian.standing"
    if name in ("bicycle", "motorcycle"):
        return "cycle.without_rider"
    if name in ("bicyclist", "motorcyclist"):
        return "cycle.with_rider"
    if name in ("car", "truck", "bus"):
        return "vehicle.moving" if moves else "vehicle.stopped" if ever_moves else "vehicle.parked"
    return ""


def shared_token(plan: Plan, *parts: str) -> str:
    """A token of what all scenes share."""
    return Scene(plan, _NO_SCENE).token(*parts)


def shared_tables(plan: Plan, logs: list[str]) -> dict[str, list[Row]]:
    """The tables that belong to no scene."""
    whole_map = shared_token(plan, "map")
    modality = {LIDAR: "lidar"} | dict.fromkeys(CAMERAS, "camera")
    return {
        "category": [
            {"token": shared_token(plan, "category", name), "name": name, "description": "", "index": index}
            for index, name in enumerate(CATEGORIES)
        ],
        "attribute": [
            {"token": shared_token(plan, "attribute", name), "name": name, "description": ""} for name in ATTRIBUTES
        ],
        "visibility": [
            {"token": str(number), "level": level, "description": f"{level[1:]} % of the object are visible"}
            for number, level in enumerate(VISIBILITIES, start=1)
        ],
        "sensor": [
            {"token": shared_token(plan, "sensor", channel), "channel": channel, "modality": kind}
            for channel, kind in modality.items()
        ],
        "map": [
            {
                "token": whole_map,
                "log_tokens": logs,
                "category": "semantic_prior",
                "filename": f"maps/{whole_map}.png",
            }
        ],
    }
