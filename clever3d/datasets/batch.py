"""Scans of different lengths in one batch: everything concatenated, with the number of rows that each scan has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor

from clever3d.datasets.camera import Camera
from clever3d.datasets.labels import IGNORE
from clever3d.datasets.sample import BoxTensors, Pairs, Sample
from clever3d.errors import InputError

_T = TypeVar("_T", "Batch", Pairs, BoxTensors)


@dataclass(frozen=True, eq=False)
class Batch:
    """B scans, one after the other. A few long tensors move between processes and to a GPU faster than many short ones,
    and a loss over points or pairs needs them in one piece; :meth:`scan` gives one scan back without copying.

    names, frames: DATASET/ID and the number of the frame in the data set, of each scan. counts: its points.
    xyz [N, 3], intensity [N] (NaN in scans without), time [N] (0), labels [N] (IGNORE), instances [N] (0) as in
    `Sample`, N points in all; None where no scan has them, the value in brackets where only some have.
    boxes, box_counts: all boxes, and how many each scan has. pairs, pair_counts: all pairs; `rows` count through the
    whole batch, `cameras` within their own scan. cameras: of each scan. points_to_world [B, 4, 4]: float64; None
    unless every scan has a pose.
    """

    names: tuple[str, ...]
    frames: tuple[int, ...]
    counts: tuple[int, ...]
    xyz: Tensor
    intensity: Tensor | None
    time: Tensor | None
    labels: Tensor | None
    instances: Tensor | None
    boxes: BoxTensors | None
    box_counts: tuple[int, ...]
    pairs: Pairs | None
    pair_counts: tuple[int, ...]
    cameras: tuple[tuple[Camera, ...], ...]
    points_to_world: Tensor | None

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def scan_numbers(self) -> Tensor:
        """Which scan of the batch each point belongs to: int64 [N], on the points' device."""
        counts = torch.tensor(self.counts, device=self.xyz.device)
        numbers = torch.arange(len(self), device=self.xyz.device)
        return torch.repeat_interleave(numbers, counts, output_size=len(self.xyz))  # the size spares a wait for the GPU

    def scan(self, number: int) -> Sample:
        """One scan of the batch; its points, labels and targets are views."""
        if not 0 <= number < len(self):
            raise InputError(f"scan {number} of a batch of {len(self)}: they count from 0")
        points = _part(self.counts, number)
        boxes, pairs = self.boxes, self.pairs
        if boxes is not None:
            boxes = _cut_boxes(boxes, _part(self.box_counts, number))
        if pairs is not None:
            where = _part(self.pair_counts, number)
            targets = None if pairs.targets is None else pairs.targets[where]
            pairs = Pairs(pairs.rows[where] - points.start, pairs.cameras[where], pairs.pixels[where], targets)

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[points]

        return Sample(
            name=self.names[number],
            xyz=self.xyz[points],
            intensity=cut(self.intensity),
            time=cut(self.time),
            labels=cut(self.labels),
            instances=cut(self.instances),
            boxes=boxes,
            cameras=self.cameras[number],
            pairs=pairs,
            points_to_world=None if self.points_to_world is None else self.points_to_world[number],
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """All tensors on `device`; the cameras' matrices stay numpy arrays."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """All tensors in page-locked memory, from where `to(..., non_blocking=True)` does not wait. The data loader
        calls this if it was made with `pin_memory=True`."""
        return _mapped(self, Tensor.pin_memory)


def collate(samples: Sequence[Sample], frames: Sequence[int] | None = None) -> Batch:
    """Samples as one batch; `frames` are their numbers in the data set (default: -1).

    Raises InputError for no samples at all, and where only some have boxes, pairs or targets: a scan that nobody has
    annotated must not pass for an empty one.
    """
    if not samples:
        raise InputError("a batch needs at least one sample")
    counts = tuple(len(sample) for sample in samples)

    def join(field: str, filling: float, dtype: torch.dtype) -> Tensor | None:
        values: list[Tensor | None] = [getattr(sample, field) for sample in samples]
        if all(value is None for value in values):
            return None
        pieces = zip(values, counts, strict=True)
        return torch.cat([torch.full((n,), filling, dtype=dtype) if v is None else v for v, n in pieces])

    boxes = [sample.boxes for sample in samples if sample.boxes is not None]
    pairs = [sample.pairs for sample in samples if sample.pairs is not None]
    _all_or_none("boxes", len(boxes), samples)
    _all_or_none("pairs", len(pairs), samples)
    _all_or_none("targets", sum(p.targets is not None for p in pairs), samples)
    poses = [sample.points_to_world for sample in samples if sample.points_to_world is not None]
    return Batch(
        names=tuple(sample.name for sample in samples),
        frames=(-1,) * len(samples) if frames is None else tuple(frames),
        counts=counts,
        xyz=torch.cat([sample.xyz for sample in samples]),
        intensity=join("intensity", torch.nan, torch.float32),
        time=join("time", 0, torch.float32),
        labels=join("labels", IGNORE, torch.uint8),
        instances=join("instances", 0, torch.int32),
        boxes=_join_boxes(boxes) if boxes else None,
        box_counts=tuple(map(len, boxes)) if boxes else (0,) * len(samples),
        pairs=_join_pairs(pairs, counts) if pairs else None,
        pair_counts=tuple(map(len, pairs)) if pairs else (0,) * len(samples),
        cameras=tuple(sample.cameras for sample in samples),
        points_to_world=torch.stack(poses) if len(poses) == len(samples) else None,
    )


def _all_or_none(what: str, having: int, samples: Sequence[Sample]) -> None:
    if 0 < having < len(samples):
        names = ", ".join(sample.name for sample in samples)
        raise InputError(
            f"only {having} of the {len(samples)} scans {names} have {what}: leave them out everywhere "
            "(sample_from_frame(..., boxes=False)), or take data sets that all have them"
        )


def _join_boxes(boxes: Sequence[BoxTensors]) -> BoxTensors:
    known = [b for b in boxes if b.velocities is not None]
    tracks = [b.track_ids for b in boxes if b.track_ids is not None]
    counted = [b.num_points for b in boxes if b.num_points is not None]
    speeds = [torch.full_like(b.centers, torch.nan) if b.velocities is None else b.velocities for b in boxes]
    return BoxTensors(
        centers=torch.cat([b.centers for b in boxes]),
        sizes=torch.cat([b.sizes for b in boxes]),
        rotations=torch.cat([b.rotations for b in boxes]),
        names=tuple(name for b in boxes for name in b.names),
        velocities=torch.cat(speeds) if known else None,
        track_ids=tuple(track for ids in tracks for track in ids) if len(tracks) == len(boxes) else None,
        num_points=torch.cat(counted) if len(counted) == len(boxes) else None,
    )


def _cut_boxes(boxes: BoxTensors, part: slice) -> BoxTensors:
    return BoxTensors(
        centers=boxes.centers[part],
        sizes=boxes.sizes[part],
        rotations=boxes.rotations[part],
        names=boxes.names[part],
        velocities=None if boxes.velocities is None else boxes.velocities[part],
        track_ids=None if boxes.track_ids is None else boxes.track_ids[part],
        num_points=None if boxes.num_points is None else boxes.num_points[part],
    )


def _join_pairs(pairs: Sequence[Pairs], counts: tuple[int, ...]) -> Pairs:
    starts = accumulate(counts, initial=0)
    targets = [p.targets for p in pairs if p.targets is not None]
    return Pairs(
        rows=torch.cat([p.rows + start for p, start in zip(pairs, starts, strict=False)]),
        cameras=torch.cat([p.cameras for p in pairs]),
        pixels=torch.cat([p.pixels for p in pairs]),
        targets=torch.cat(targets) if targets else None,
    )


def _part(counts: tuple[int, ...], number: int) -> slice:
    """Where the rows of one scan are."""
    return slice(*list(pairwise(accumulate(counts, initial=0)))[number])


def _mapped(value: _T, change: Callable[[Tensor], Tensor]) -> _T:
    """The same with every tensor changed, those of boxes and pairs too."""
    changes: dict[str, object] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, Tensor):
            changes[field.name] = change(part)
        elif isinstance(part, (Pairs, BoxTensors)):
            changes[field.name] = _mapped(part, change)  # type: ignore[type-var]
    return replace(value, **changes)  # type: ignore[arg-type]
