"""nuScenes' annotated boxes: as arrays over all key frames, and those of one frame in the axes of its points.

The tables are read at the first frame whose boxes are asked for, not when the data set is opened.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.boxes import Boxes
from clever3d.datasets.geometry import Matrix, unit_quaternions_to_rotations
from clever3d.datasets.index_cache import Arrays, cached_arrays
from clever3d.datasets.nuscenes_index import Index, open_index
from clever3d.datasets.nuscenes_tables import Numbering, dangling, stream, token_numbers, whole_table
from clever3d.errors import DataError

#: Annotations of one object further apart than this give no velocity; a central difference may span twice as much
#: (seconds; nuscenes-devkit, NuScenes.box_velocity).
LONGEST_GAP = 1.5


def read_boxes(tables: Path, key: str, sample: int, world_to_points: Matrix) -> Boxes:
    """The boxes of the sample of this number in the index, in axes to which `world_to_points` [4, 4] leads.

    key: of the index that has the number. Names are nuScenes' categories, such as "vehicle.car"; velocities follow
    `LONGEST_GAP`; track ids are instance tokens.
    Raises DataError for anything wrong in the tables, or if they have changed since the data set was opened.
    """
    arrays = _annotations(tables, key)
    start, stop = arrays.rows("begins", sample, sample + 2).tolist()
    if start == stop:
        return Boxes.empty()
    rotation = world_to_points[:3, :3]
    own = unit_quaternions_to_rotations(arrays.rows("quaternions", start, stop))  # [B, 3, 3]
    names = [arrays.rows("names", number, number + 1)[0] for number in arrays.rows("categories", start, stop).tolist()]
    tracks = [arrays.rows("tracks", number, number + 1)[0] for number in arrays.rows("instances", start, stop).tolist()]
    return Boxes(
        centers=arrays.rows("centers", start, stop) @ rotation.T + world_to_points[:3, 3],
        sizes=arrays.rows("sizes", start, stop)[:, [1, 0, 2]],  # width, length, height in the table
        rotations=rotation @ own,
        names=tuple(name.decode() for name in names),
        velocities=arrays.rows("velocities", start, stop) @ rotation.T,
        track_ids=tuple(track.decode() for track in tracks),
        num_points=arrays.rows("num_points", start, stop),
    )


def has_boxes(tables: Path) -> bool:
    """Whether there is a table of annotations with a row in it: the test set's is an empty list."""
    try:
        with (tables / "sample_annotation.json").open("rb") as file:
            return b"{" in file.read(256)
    except OSError:
        return False


@functools.lru_cache(maxsize=4)
def _annotations(tables: Path, key: str) -> Arrays:
    index = open_index(tables)
    if index.key != key:
        raise DataError(f"{tables}: the tables have changed since the data set was opened; open it again")
    return cached_arrays("nuscenes-boxes", tables, key, lambda: make_annotations(index))


def make_annotations(index: Index) -> dict[str, NDArray[Any]]:
    """Of all A annotations, sorted by sample: in global axes, columns as the table has them.

    centers, sizes (width, length, height), velocities [A, 3]; quaternions [A, 4], of length one; num_points [A];
    categories [A] and instances [A], numbers in names [categories] and tracks [instances]; begins [S + 1]: the rows of
    sample s are begins[s] to begins[s + 1].
    """
    tables = index.tables
    samples = {token.decode(): number for number, token in enumerate(index.arrays["tokens"].tolist())}
    categories = whole_table(tables, "category")
    instances = whole_table(tables, "instance")
    category_of = instances.links("category_token", token_numbers(categories), "category")
    instance_numbers = token_numbers(instances)
    path = tables / "sample_annotation.json"
    tokens = Numbering()
    parts: list[dict[str, NDArray[Any]]] = []
    for rows in stream(path):
        poses = rows.poses()
        part = {
            "samples": rows.links("sample_token", samples, "sample"),
            "instances": rows.links("instance_token", instance_numbers, "instance"),
            "centers": poses[:, :3],
            "quaternions": poses[:, 3:],
            "sizes": rows.numbers("size", (3,)),
            "num_points": rows.integers("num_lidar_pts"),
            **{column: tokens.of(rows, column) for column in ("token", "prev", "next")},
        }
        parts.append(part)
    if not parts:
        raise DataError(f"{path} has no row; use the tables of nuScenes v1.0")
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    table["velocities"] = _velocities(table, tokens, index.arrays["sample_times"], path)
    order = np.argsort(table["samples"], kind="stable")
    kept = ("instances", "centers", "quaternions", "sizes", "num_points", "velocities")
    arrays = {name: table[name][order] for name in kept}
    return arrays | {
        "categories": category_of[arrays["instances"]],
        "begins": np.searchsorted(table["samples"][order], np.arange(len(samples) + 1)),
        "names": categories.texts("name"),
        "tracks": instances.texts("token"),
    }


def _velocities(
    table: dict[str, NDArray[Any]], tokens: Numbering, sample_times: NDArray[np.int64], path: Path
) -> Matrix:
    """Velocities [A, 3] (m/s): where the object is next less where it was before, over the time between the two.

    At an end of its track the annotation itself takes the place of what is missing; NaN for one that is alone, or
    whose neighbours are too far in time. Source: nuscenes-devkit, NuScenes.box_velocity.
    """
    row_of = tokens.rows(table["token"], path)
    own = np.arange(len(table["token"]))
    ends = {}
    for column in ("prev", "next"):
        ends[column] = row_of[table[column]]
        wrong = np.flatnonzero((ends[column] < 0) & (table[column] > 0))
        if len(wrong):
            raise dangling(path, column, tokens.token(table[column][wrong[0]]), "sample_annotation")
    central = (ends["prev"] >= 0) & (ends["next"] >= 0)
    first, last = (np.where(ends[column] >= 0, ends[column], own) for column in ("prev", "next"))
    times = sample_times[table["samples"]]
    seconds = (times[last] - times[first]) * 1e-6  # [A]
    seconds[(seconds <= 0) | (seconds > np.where(central, 2, 1) * LONGEST_GAP)] = np.nan
    velocities: Matrix = (table["centers"][last] - table["centers"][first]) / seconds[:, None]
    return velocities
