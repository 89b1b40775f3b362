"""What all layouts share: what was asked for, one scene of it, and the files that are written."""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clever3d.datasets.boxes import Boxes
from clever3d.datasets.geometry import Matrix, apply, inverse
from clever3d.datasets.synthetic.truth import CLASSES, CameraShot, Object, WorldFrame
from clever3d.errors import InputError
from clever3d.io import atomic_path

#: What a scene leaves for the tables of the whole data set: text, numbers, lists and mappings, so that JSON keeps it.
Rows: TypeAlias = dict[str, Any]

#: An object faster than this moves (m/s; our choice).
MOVING = 0.2
#: Of the scenes 0, 1, 2, ... those with `index % 5 == 1` are for validation: the second already, and one in five.
VAL_EVERY, VAL_FIRST = 5, 1


@dataclass(frozen=True)
class Plan:
    """Everything that the files depend on. `version` is nuScenes' alone, "" for the other layouts."""

    layout: str
    scenes: int
    frames: int
    sensor: str
    places: tuple[str, ...]
    seed: int
    image_scale: float
    motion_distortion: bool
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return {**asdict(self), "places": list(self.places)}


@dataclass(frozen=True)
class Scene:
    """One scene of a plan: the places take turns, the seeds come from the plan's and the index."""

    plan: Plan
    index: int

    @property
    def place(self) -> str:
        return self.plan.places[self.index % len(self.plan.places)]

    @property
    def seed(self) -> int:
        return int(np.random.SeedSequence([self.plan.seed, self.index]).generate_state(1)[0])

    @property
    def is_val(self) -> bool:
        return self.index % VAL_EVERY == VAL_FIRST

    def token(self, *parts: object) -> str:
        """32 hex digits that are the same in every run and differ for other parts, scenes or seeds."""
        text = "/".join(map(str, ("clever3d", self.plan.seed, self.index, *parts)))
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Layout(ABC):
    """One way to write a data set.

    `write_scene` writes the files of a scene below a folder of its own and returns what `finish` needs; the files then
    move, under the same relative names, to the data set's folder, where `finish` writes what belongs to all scenes.

    sensors: presets of the world that this layout can hold, the usual one first. frames: key frames a scene by default.
    versions: what `version` may be, "" for "choose one".
    """

    name: ClassVar[str]
    sensors: ClassVar[tuple[str, ...]]
    frames: ClassVar[int] = 10
    versions: ClassVar[tuple[str, ...]] = ("",)

    def version(self, wanted: str, scenes: int) -> str:
        """The version to write; InputError for one that the layout does not have."""
        if wanted not in self.versions:
            known = ", ".join(filter(None, self.versions)) or "none"
            raise InputError(f"layout {self.name} has no version {wanted!r} (it has: {known})")
        return wanted

    def check(self, plan: Plan) -> None:  # noqa: B027 (most layouts hold every plan)
        """Raises InputError for a plan that the layout cannot hold."""

    @abstractmethod
    def scene_name(self, scene: Scene) -> str:
        """What the scene is called in this layout."""

    @abstractmethod
    def write_scene(self, folder: Path, scene: Scene, frames: Iterable[WorldFrame]) -> Rows: ...

    @abstractmethod
    def finish(self, root: Path, plan: Plan, rows: Sequence[Rows]) -> None:
        """`rows` of all scenes in their order. Has to give the same files when it is called again."""

    @abstractmethod
    def describe(self, plan: Plan) -> str:
        """Lines for the README: what is where, and what is a choice of ours."""


def write_json(path: Path, value: object, *, indent: int | None = None) -> None:
    """JSON, whole or not at all. The folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        draft.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def write_text(path: Path, lines: Iterable[str]) -> None:
    """Lines of text, whole or not at all, with "\\n" on every system. The folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        draft.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))


def write_array(path: Path, values: NDArray[Any]) -> None:
    """The bytes of an array, in C order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.ascontiguousarray(values).tobytes())


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """An image [H, W, 3] as PNG, or as JPEG of quality 92 (our choice: little loss, a fifth of the size)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": 92} if path.suffix == ".jpg" else {"compress_level": 3}
    encoded = io.BytesIO()  # Pillow hides why a file cannot be written
    Image.fromarray(image).save(encoded, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
    path.write_bytes(encoded.getbuffer())


def class_table(ids: dict[str, int], dtype: type) -> NDArray[Any]:
    """[len(CLASSES)]: the id of each of the world's classes in a data set."""
    return np.array([ids[name] for name in CLASSES], dtype=dtype)


def lidar_to_world(frame: WorldFrame) -> Matrix:
    """[4, 4] from the scan's points (FLU) to the world."""
    return frame.scan.ego_to_world @ frame.scan.lidar_to_ego


def camera_to_world(shot: CameraShot) -> Matrix:
    """[4, 4] from camera axes to the world, at the camera's own moment."""
    return shot.ego_to_world @ shot.camera_to_ego


def boxes_in_scan(frame: WorldFrame, objects: Sequence[Object]) -> Boxes:
    """The boxes of objects in the scan's axes (FLU)."""
    if not objects:
        return Boxes.empty()
    to_scan = inverse(lidar_to_world(frame))
    return Boxes(
        centers=apply(to_scan, np.stack([item.center for item in objects])),
        sizes=np.stack([item.size for item in objects]),
        rotations=np.stack([to_scan[:3, :3] @ item.rotation for item in objects]),
        names=tuple(CLASSES[item.label] for item in objects),
    )


def undistorted(frame: WorldFrame, layout: str) -> list[CameraShot]:
    """The cameras without lens distortion; InputError if a frame has none, because `layout` has no field for it."""
    shots = [shot for shot in frame.cameras if shot.distortion is None]
    if not shots:
        raise InputError(f"{layout} needs a camera without lens distortion; choose another --sensor, or --layout rig")
    return shots
