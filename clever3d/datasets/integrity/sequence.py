"""Checks that need more than one frame: ids, times, poses, and counts and sizes that differ from those around."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clever3d.datasets.base import Frame
from clever3d.datasets.geometry import Matrix

# Our choices: 70 m/s is 252 km/h; a car that turns on the spot as fast as it can reaches about 90 degrees a second.
TOP_SPEED = 70.0  # m/s
TOP_TURN = 180.0  # degrees/s
LONGEST_STEP = 50.0  # metres from frame to frame, where there are no timestamps
FEW = 0.7  # of the median of the frames around; a truncated scan of KITTI raw in public copies has 0.62
AROUND = 5  # frames before, and as many after, make the median
ENOUGH = 5  # frames that a scene must have for a median of its own; else the whole data set's order is taken

_Fault = tuple[str, str]  # kind, message
_Sizes = dict[tuple[int, int], list[int]]  # (W, H) -> frame indices


class Track:
    """Follows the frames in their order: what only depends on the frame before is found at once."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._last: dict[str, tuple[str, float | None, Matrix | None]] = {}
        self._scenes: dict[str, int] = {}

    def follow(self, index: int, frame: Frame) -> Iterator[_Fault]:
        """Faults of this frame, given the ones before."""
        first = self._ids.setdefault(frame.id, index)
        if first != index:
            yield "duplicate-id", f"frames number {first} and {index} have the id {frame.id!r}"
        self._scenes.setdefault(frame.scene, len(self._scenes))
        usable = frame.points_to_world is not None and np.isfinite(frame.points_to_world).all()
        pose = frame.points_to_world if usable else None
        before = self._last.get(frame.scene)
        self._last[frame.scene] = frame.id, frame.timestamp, pose
        if before is None:
            return
        last, time, last_pose = before
        seconds = None if time is None or frame.timestamp is None else frame.timestamp - time
        if seconds is not None and not seconds >= 0:
            yield "time-backwards", f"frame {frame.id}: its timestamp is {-seconds:.6g} s before that of {last}"
        if seconds == 0:
            yield "same-time", f"frame {frame.id}: its timestamp is that of {last}"
        if pose is not None and last_pose is not None and (message := _jump(last_pose, pose, seconds)):
            yield "pose-jump", f"from frame {last} to {frame.id} {message}"

    def scene(self, frame: Frame) -> int:
        """A number for the frame's scene."""
        return self._scenes[frame.scene]


def _jump(before: Matrix, after: Matrix, seconds: float | None) -> str:
    step = float(np.linalg.norm(after[:3, 3] - before[:3, 3]))
    if seconds is None:
        return f"the pose moves by {step:.1f} m" if step > LONGEST_STEP else ""
    if seconds <= 0:
        return ""
    cosine = (np.trace(before[:3, :3].T @ after[:3, :3]) - 1) / 2
    turn = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    if step > TOP_SPEED * seconds:
        return f"the pose moves by {step:.1f} m in {seconds:.3f} s"
    if turn > TOP_TURN * seconds:
        return f"the pose turns by {turn:.0f} degrees in {seconds:.3f} s"
    return ""


def few_points(counts: NDArray[np.int64], scenes: NDArray[np.int64]) -> Iterator[tuple[int, int, float]]:
    """(index, points, median around) of the frames with far fewer points than the frames around.

    counts [F]: points of each frame, -1 where they are not known. scenes [F]: the number of its scene.
    """
    known = np.flatnonzero(counts >= 0)
    numbers, sizes = np.unique(scenes[known], return_counts=True)
    large = np.isin(scenes[known], numbers[sizes >= ENOUGH])
    groups = [known[scenes[known] == number] for number in numbers[sizes >= ENOUGH]]
    groups.append(known[~large])
    for rows in groups:
        values = counts[rows]
        for at in range(len(rows) if len(rows) >= ENOUGH else 0):
            low = max(0, min(at - AROUND, len(rows) - 2 * AROUND - 1))
            others = np.delete(values[low : low + 2 * AROUND + 1], at - low)
            median = float(np.median(others))
            if values[at] < FEW * median:
                yield int(rows[at]), int(values[at]), median


def uncompared(counts: NDArray[np.int64], scenes: NDArray[np.int64]) -> int:
    """How many frames `few_points` compares with none, because there are too few around them."""
    known = scenes[counts >= 0]
    _, sizes = np.unique(known, return_counts=True)
    rest = int(sizes[sizes < ENOUGH].sum())
    return rest if rest < ENOUGH else 0


def number_gaps(numbers: NDArray[np.int64], scenes: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(index, first number, last number) of the runs of numbers that no scan has; index: of the frame after.

    numbers [F]: of each frame in its scene, -1 where it is not known. scenes [F]: the number of its scene. Numbers that
    go up by another step than 1 throughout have no gaps.
    """
    for scene in np.unique(scenes[numbers >= 0]):
        rows = np.flatnonzero((scenes == scene) & (numbers >= 0))
        steps = np.diff(numbers[rows])
        if len(steps) == 0 or (usual := int(np.sort(steps)[(len(steps) - 1) // 2])) < 1:
            continue
        between = np.diff(rows)  # more than 1 where a frame's number is not known: it is there
        for at in np.flatnonzero(steps > usual * between):
            before, after = int(numbers[rows[at]]), int(numbers[rows[at + 1]])
            yield int(rows[at + 1]), before + usual * int(between[at]), after - usual


class ImageSizes:
    """Sizes of the images of each camera of each scene, where the calibration does not say what they must be.

    Frames of one camera with other intrinsics are apart.
    """

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, str, bytes], _Sizes] = defaultdict(lambda: defaultdict(list))

    def add(self, index: int, scene: int, frame: Frame, sizes: Sequence[tuple[int, int] | None]) -> None:
        """Take note of the sizes of one frame's images."""
        for camera, size in zip(frame.cameras, sizes, strict=True):
            if size is not None and camera.image_size is None:
                self._sizes[scene, camera.name, camera.intrinsics.tobytes()][size].append(index)

    def odd(self) -> Iterator[tuple[int, str, tuple[int, int], tuple[int, int]]]:
        """(index, camera, its size, the others' size) of the images that are not as most of their camera's are."""
        for (_, camera, _), sizes in self._sizes.items():
            usual = max(sizes, key=lambda size: (len(sizes[size]), -sizes[size][0]))
            for size, indices in sizes.items():
                for index in indices if size != usual else ():
                    yield index, camera, size, usual
