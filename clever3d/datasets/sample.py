"""A frame as tensors: what augmentation changes and batches are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clever3d.datasets.base import Frame
from clever3d.datasets.boxes import Boxes
from clever3d.datasets.camera import Camera
from clever3d.datasets.labels import IGNORE
from clever3d.errors import DataError, InputError


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which point a camera saw at which pixel: M pairs, camera by camera; a point that two cameras see occurs twice.

    rows [M]: int64, the points. cameras [M]: int64, which of the sample's cameras. pixels [M, 2]: float32, (u right,
    v down) in the image file, whole numbers at pixel centres. targets [M, C]: what the teacher says there, or None.
    """

    rows: Tensor
    cameras: Tensor
    pixels: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, chosen: Tensor) -> Pairs:
        """The pairs of a mask [M] or of int64 numbers."""
        targets = None if self.targets is None else self.targets[chosen]
        return Pairs(self.rows[chosen], self.cameras[chosen], self.pixels[chosen], targets)


@dataclass(frozen=True, eq=False)
class BoxTensors:
    """`Boxes` as float32 tensors: B boxes in the points' axes, metres.

    centers [B, 3]; sizes [B, 3]: length, width, height; rotations [B, 3, 3]: columns are the box's own axes, the
    determinant is always +1. names: B class names as the data set has them. velocities [B, 3]: m/s, NaN where unknown.
    track_ids: B names. num_points [B]: int64, points inside as the data set says, before any augmentation. The last
    three are None where the data set has none.
    """

    centers: Tensor
    sizes: Tensor
    rotations: Tensor
    names: tuple[str, ...]
    velocities: Tensor | None = None
    track_ids: tuple[str, ...] | None = None
    num_points: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_boxes(cls, boxes: Boxes) -> BoxTensors:
        """The same boxes as tensors."""
        counts = boxes.num_points
        return cls(
            centers=torch.from_numpy(boxes.centers.astype(np.float32)),
            sizes=torch.from_numpy(boxes.sizes.astype(np.float32)),
            rotations=torch.from_numpy(boxes.rotations.astype(np.float32)),
            names=boxes.names,
            velocities=None if boxes.velocities is None else torch.from_numpy(boxes.velocities.astype(np.float32)),
            track_ids=boxes.track_ids,
            num_points=None if counts is None else torch.from_numpy(counts.astype(np.int64)),
        )

    def moved(self, matrix: Tensor) -> BoxTensors:
        """The boxes under the map of :meth:`Sample.moved`.

        In a mirror image of the world a box's axes would be left-handed: its own y axis is turned round, which leaves
        the box itself and its heading (x) as they are. Velocities are displacements over time and turn, mirror and
        scale as those do.
        """
        linear = matrix[:3, :3]
        determinant = float(torch.linalg.det(linear))
        scale = abs(determinant) ** (1 / 3)
        own = torch.tensor([1.0, -1.0 if determinant < 0 else 1.0, 1.0], dtype=torch.float64)
        rotations = (linear / scale) @ self.rotations.double() * own  # [B, 3, 3]
        velocities = None if self.velocities is None else (self.velocities.double() @ linear.T).float()
        return replace(
            self,
            centers=move_points(self.centers, matrix),
            sizes=self.sizes * scale,
            rotations=rotations.float(),
            velocities=velocities,
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """One scan as tensors on the CPU, with all that belongs to its points.

    name: DATASET/ID of the frame. xyz [N, 3]: float32, metres, FLU. intensity [N]: float32 in [0, 1]. time [N]:
    float32, seconds after the scan, where sweeps are accumulated. labels [N]: uint8 classes, IGNORE where none is
    scored. instances [N]: int32, 0 for none. cameras: their `points_to_camera` takes the sample's points as they are
    now, whatever was done to them (it is then no longer rigid); pixels are those of the image files.
    points_to_world [4, 4]: float64, of the points as they are now. All but the points are None or empty where the
    frame has none or they were not asked for.

    Raises InputError if something has another length than the points.
    """

    name: str
    xyz: Tensor
    intensity: Tensor | None = None
    time: Tensor | None = None
    labels: Tensor | None = None
    instances: Tensor | None = None
    boxes: BoxTensors | None = None
    cameras: tuple[Camera, ...] = ()
    pairs: Pairs | None = None
    points_to_world: Tensor | None = None

    def __post_init__(self) -> None:
        for field in ("intensity", "time", "labels", "instances"):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.xyz):
                raise InputError(f"sample {self.name}: {field} has {len(values)} rows, the points {len(self.xyz)}")

    def __len__(self) -> int:
        return len(self.xyz)

    def moved(self, matrix: Tensor) -> Sample:
        """The scan moved by an affine map [4, 4] float64: a rotation times a positive scale, mirrored or not, then a
        shift. Boxes go along, and cameras and poses are changed so that every point keeps its pixel and its place in
        the world.

        Raises InputError for a map of another kind, under which boxes would not stay boxes.
        """
        linear = matrix[:3, :3]
        gram = linear @ linear.T
        scale = gram.diagonal().mean()
        if not torch.allclose(gram, scale * torch.eye(3, dtype=gram.dtype), atol=1e-6 * float(scale)) or scale <= 0:
            raise InputError(f"a scan can be turned, mirrored, scaled evenly and shifted, but not by {linear.tolist()}")
        back = torch.linalg.inv(matrix)
        cameras = tuple(replace(c, points_to_camera=c.points_to_camera @ back.numpy()) for c in self.cameras)
        return replace(
            self,
            xyz=move_points(self.xyz, matrix),
            boxes=None if self.boxes is None else self.boxes.moved(matrix),
            cameras=cameras,
            points_to_world=None if self.points_to_world is None else self.points_to_world @ back,
        )

    def select(self, kept: Tensor) -> Sample:
        """The points of a mask [N], in their order, with what belongs to them; a pair goes with its point.

        Boxes stay, empty or not.
        """
        rows = kept.nonzero().squeeze(1)

        def take(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        pairs = self.pairs
        if pairs is not None:
            pairs = pairs.select(kept[pairs.rows])
            pairs = replace(pairs, rows=(kept.cumsum(0) - 1)[pairs.rows])
        return replace(
            self,
            xyz=self.xyz[rows],
            intensity=take(self.intensity),
            time=take(self.time),
            labels=take(self.labels),
            instances=take(self.instances),
            pairs=pairs,
        )


def move_points(xyz: Tensor, matrix: Tensor) -> Tensor:
    """Points [N, 3] on the CPU under an affine map [4, 4], computed in float64: [N, 3] float32.

    Written out, because a matrix product may round differently with another number of threads, and a sample must not
    depend on whether a worker or the main process makes it; in place, because fresh memory costs more than the sums.
    """
    x, y, z = np.ascontiguousarray(xyz.numpy().T, dtype=np.float64)
    moved = np.empty((len(xyz), 3), dtype=np.float32)
    total, term = np.empty(len(xyz)), np.empty(len(xyz))
    for row, (a, b, c, d) in enumerate(matrix[:3].tolist()):
        np.multiply(x, a, out=total)
        total += np.multiply(y, b, out=term)
        total += np.multiply(z, c, out=term)
        total += d
        moved[:, row] = total
    return torch.from_numpy(moved)


def draw_pairs(sample: Sample, count: int, generator: torch.Generator) -> Sample:
    """The sample with at most `count` of its pairs, drawn evenly, in their order."""
    pairs = sample.pairs
    if pairs is None or len(pairs) <= count:
        return sample
    drawn = torch.randperm(len(pairs), generator=generator)[:count].sort()[0]
    return replace(sample, pairs=pairs.select(drawn))


def returned(xyz: Tensor) -> Tensor:
    """Which points [N, 3] on the CPU are finite and not (0, 0, 0), the filling of slots without a return: bool [N]."""
    x, y, z = np.abs(xyz.numpy()).T
    size = x + y + z  # NaN fails both comparisons
    return torch.from_numpy((size > 0) & (size < np.inf))


def sample_from_frame(frame: Frame, *, labels: bool = True, boxes: bool = True, sweeps: bool = False) -> Sample:
    """Reads a frame; points that are not finite or (0, 0, 0) are left out, with their labels.

    labels, boxes: whether to read them where the frame has them. sweeps: whether to add the points of the frame's
    earlier sweeps; these have the label IGNORE.

    Raises DataError for missing or broken files, and for a scan without a single return.
    """
    cloud = frame.accumulated() if sweeps else frame.points()
    xyz = _tensor(cloud.xyz)
    kept = returned(xyz)
    if not bool(kept.any()):
        raise DataError(f"{frame.points_path}: none of the {len(xyz)} points of frame {frame.id} is a return")
    marked = frame.labels() if labels else None
    annotated = frame.boxes() if boxes else None
    classes = None if marked is None else _fill(marked.train_ids, len(xyz), IGNORE, frame)
    things = None if marked is None or marked.instance is None else _fill(marked.instance, len(xyz), 0, frame)
    pose = frame.points_to_world
    sample = Sample(
        name=f"{frame.dataset}/{frame.id}",
        xyz=xyz,
        intensity=None if cloud.intensity is None else _tensor(cloud.intensity),
        time=None if cloud.time is None else _tensor(cloud.time),
        labels=classes,
        instances=things,
        boxes=None if annotated is None else BoxTensors.from_boxes(annotated),
        cameras=frame.cameras,
        points_to_world=None if pose is None else torch.from_numpy(pose),
    )
    return sample if bool(kept.all()) else sample.select(kept)


def _fill(values: NDArray[np.generic], count: int, filling: int, frame: Frame) -> Tensor:
    """`values` of the scan's own points, and `filling` for those of earlier sweeps, which come after: [count]."""
    if len(values) > count or (len(values) < count and not frame.sweeps):
        raise DataError(f"{frame.points_path} has {count} points, but frame {frame.id} has {len(values)} labels")
    if len(values) == count:
        return _tensor(values)
    return _tensor(np.concatenate([values, np.full(count - len(values), filling, dtype=values.dtype)]))


def _tensor(values: NDArray[np.generic]) -> Tensor:
    """A tensor on the same memory where torch can have it: contiguous and writable."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
