"""PandaSet's semantic classes. Source: `annotations/semseg/classes.json` of the data set, as pandaset-devkit's README
(scaleapi/pandaset-devkit) prints it."""

from __future__ import annotations

from clever3d.datasets.labels import LabelSpec, spread_colors

_NAMES = (
    "Smoke", "Exhaust", "Spray or rain", "Reflection", "Vegetation", "Ground", "Road", "Lane Line Marking",
    "Stop Line Marking", "Other Road Marking", "Sidewalk", "Driveway", "Car", "Pickup Truck", "Medium-sized Truck",
    "Semi-truck", "Towed Object", "Motorcycle", "Other Vehicle - Construction Vehicle", "Other Vehicle - Uncommon",
    "Other Vehicle - Pedicab", "Emergency Vehicle", "Bus", "Personal Mobility Device", "Motorized Scooter", "Bicycle",
    "Train", "Trolley", "Tram / Subway", "Pedestrian", "Pedestrian with Object", "Animals - Bird", "Animals - Other",
    "Pylons", "Road Barriers", "Signs", "Cones", "Construction Signs", "Temporary Construction Barriers",
    "Rolling Containers", "Building", "Other Static Object",
)  # fmt: skip


#: The ids count from 1; 0 is a point without a class. Which of the 42 are trained on differs from paper to paper: here
#: all are, in their order. The data set publishes no colours.
PANDASET = LabelSpec(
    name="pandaset",
    raw_names={0: "unlabeled", **dict(enumerate(_NAMES, start=1))},
    classes=_NAMES,
    to_class={number + 1: number for number in range(len(_NAMES))},
    colors=spread_colors(len(_NAMES)),
)
