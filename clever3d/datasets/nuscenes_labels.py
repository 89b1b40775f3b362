"""nuScenes-lidarseg: 32 categories in the files, 16 classes in the benchmark.

Sources: nuscenes-devkit 1.2.0: utils/color_map.py (categories in the order of their index) and
eval/lidarseg/utils.py (which category counts as which class, and the classes' order and colours).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clever3d.datasets.labels import LabelSpec, PointLabels
from clever3d.datasets.nuscenes_tables import whole_table
from clever3d.errors import DataError

CATEGORIES = (
    "noise", "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck", "flat.driveable_surface",
    "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade", "static.other", "static.vegetation",
    "vehicle.ego",
)  # fmt: skip

#: Class -> its colour, in the order of the benchmark, whose index is one more than the train id: 0 is "ignore" there.
COLORS = {
    "barrier": (112, 128, 144),
    "bicycle": (220, 20, 60),
    "bus": (255, 127, 80),
    "car": (255, 158, 0),
    "construction_vehicle": (233, 150, 70),
    "motorcycle": (255, 61, 99),
    "pedestrian": (0, 0, 230),
    "traffic_cone": (47, 79, 79),
    "trailer": (255, 140, 0),
    "truck": (255, 99, 71),
    "driveable_surface": (0, 207, 191),
    "other_flat": (175, 0, 75),
    "sidewalk": (75, 0, 75),
    "terrain": (112, 180, 60),
    "manmade": (222, 184, 135),
    "vegetation": (0, 175, 0),
}

#: Category -> class; the categories that are not here are ignored.
CLASS_OF = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.vegetation": "vegetation",
}


def lidarseg_spec(names: dict[int, str]) -> LabelSpec:
    """What the ids mean, where the files' numbering of the categories is `names`."""
    classes = tuple(COLORS)
    return LabelSpec(
        name="nuscenes-lidarseg",
        raw_names=names,
        classes=classes,
        to_class={index: classes.index(CLASS_OF[name]) for index, name in names.items() if name in CLASS_OF},
        colors=tuple(COLORS.values()),
    )


#: With the official numbering.
LIDARSEG = lidarseg_spec(dict(enumerate(CATEGORIES)))


def spec_of_tables(tables: Path) -> LabelSpec:
    """The spec with the numbering in the column `index` of category.json, as nuscenes-devkit goes by.

    Raises DataError if the column is missing, two categories have one index, or a name is none of lidarseg's.
    """
    table = whole_table(tables, "category")
    if any("index" not in row for row in table.rows):
        raise DataError(
            f"{table.path}: a row has no index; unpack the metadata of nuScenes-lidarseg over nuScenes' own"
        )
    indices, texts = table.integers("index").tolist(), [name.decode() for name in table.texts("name").tolist()]
    names = dict(zip(indices, texts, strict=True))
    if len(names) != len(texts) or not all(0 <= index < 256 for index in indices):
        raise DataError(f"{table.path}: index must be a number of its own in each row, 0 to 255; unpack it again")
    if unknown := [name for name in texts if name not in CATEGORIES]:
        raise DataError(f"{table.path}: {unknown[0]!r} is no category of nuScenes-lidarseg; unpack it again")
    return LIDARSEG if names == LIDARSEG.raw_names else lidarseg_spec(names)


def read_lidarseg(path: Path, points_path: Path, spec: LabelSpec) -> PointLabels:
    """The labels of one scan: a byte a point, in the points' order.

    Raises DataError if the file is missing, or of another length than the scan (20 bytes a point).
    """
    try:
        labels = np.fromfile(path, dtype=np.uint8)
        points = points_path.stat().st_size // 20
    except OSError as error:
        missing = error.filename or path
        raise DataError(f"{missing} cannot be read ({error.strerror}); the nuscenes download is incomplete") from error
    if len(labels) != points:
        raise DataError(f"{path} has {len(labels)} labels, but {points_path} has {points} points; download both again")
    return PointLabels(labels.astype(np.int32), spec, path=str(path))
