"""Point labels: the ids in the files, what they mean, and the classes that the benchmark trains and scores."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clever3d.errors import DataError, InputError

#: The class of points that are neither trained on nor scored.
IGNORE = 255


def spread_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` colours for a data set that publishes none: hues a golden angle apart, so that neighbours differ."""
    colors = []
    for number in range(count):
        red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.55 + 0.15 * (number % 3), 0.95)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


@dataclass(frozen=True, eq=False)
class LabelSpec:
    """What the label ids of a data set mean.

    name: of the benchmark, such as "semantickitti".
    raw_names: id in the files -> its name.
    classes: names of the C classes of the benchmark, in the order of its train ids, which count from 0.
    to_class: id in the files -> class 0..C-1; an id that is absent here is IGNORE.
    colors: C colours (r, g, b), 0..255, one a class.
    """

    name: str
    raw_names: Mapping[int, str]
    classes: tuple[str, ...]
    to_class: Mapping[int, int]
    colors: tuple[tuple[int, int, int], ...]
    _table: NDArray[np.int64] = field(init=False, repr=False)  # [largest id + 1], -1 where an id is unknown

    def __post_init__(self) -> None:
        if len(self.colors) != len(self.classes) or not set(self.to_class) <= set(self.raw_names):
            raise InputError(f"label spec {self.name}: one colour a class, and only known ids in to_class")
        if len(self.classes) > IGNORE:  # classes are stored as bytes, of which IGNORE is taken
            raise InputError(f"label spec {self.name}: {len(self.classes)} classes; there can be at most {IGNORE}")
        table = np.full(max(self.raw_names) + 1, -1, dtype=np.int64)
        for raw in self.raw_names:
            table[raw] = self.to_class.get(raw, IGNORE)
        object.__setattr__(self, "_table", table)

    def train_ids(self, raw: NDArray[np.integer], where: str = "labels") -> NDArray[np.uint8]:
        """Classes [N] uint8, IGNORE where the benchmark does not score, of ids [N] as the files have them.

        Raises DataError, beginning with `where`, for an id that the data set does not have.
        """
        outside = (raw < 0) | (raw >= len(self._table))
        classes = self._table[np.where(outside, 0, raw)]
        unknown = np.unique(raw[outside | (classes < 0)])
        if len(unknown):
            raise DataError(
                f"{where}: {self.name} has no label {', '.join(map(str, unknown[:5].tolist()))}"
                f"{' ...' if len(unknown) > 5 else ''}; the file is damaged, or it belongs to another data set"
            )
        return classes.astype(np.uint8)


@dataclass(frozen=True, eq=False)
class PointLabels:
    """Labels of the points of one scan, in their order.

    semantic [N]: int32 ids as the file has them. instance [N]: int32, 0 where a point belongs to none, or None where
    the data set has no instances. spec: what the ids mean. path: the file they are from.
    """

    semantic: NDArray[np.int32]
    spec: LabelSpec
    instance: NDArray[np.int32] | None = None
    path: str = ""

    def __len__(self) -> int:
        return len(self.semantic)

    @property
    def train_ids(self) -> NDArray[np.uint8]:
        """Classes [N] of the benchmark, IGNORE where it does not score; DataError for an id that it does not have."""
        return self.spec.train_ids(self.semantic, self.path or "labels")
