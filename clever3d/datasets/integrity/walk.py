"""The check of a whole data set: every frame in processes of their own, then what only shows between frames."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from clever3d.datasets.base import Dataset, Frame
from clever3d.datasets.integrity.files import file_in, files_of, fingerprint, says, scan_keys
from clever3d.datasets.integrity.findings import Finding, Report
from clever3d.datasets.integrity.frames import Checked, check_frame
from clever3d.datasets.integrity.pool import ProcessDied, run_isolated
from clever3d.datasets.integrity.sequence import ENOUGH, ImageSizes, Track, few_points, number_gaps, uncompared
from clever3d.datasets.integrity.state import State
from clever3d.errors import DataError, InputError, MissingExtraError

LOOKED_AT = ("scans", "images", "labels", "boxes", "sweeps")
# nuScenes' LiDAR makes 20 turns a second, of which 2 are key frames, and only these are frames.
BETWEEN_KEY_FRAMES = 9
_Task = tuple[Frame, tuple[int, ...]]  # frame, places of the sweeps to read with it


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_dataset(
    dataset: Dataset,
    *,
    jobs: int | None = None,
    fast: bool = False,
    state: State | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read every file of a data set and report what is wrong with it; a bad frame never ends the walk.

    jobs: processes; None for one a core; 0 for none, where a frame that kills its process kills this one.
    fast: of the images only the header and the end mark. state: frames in it that have not changed are not read again,
    and new ones are added. progress: called with the frames done and all frames.

    What is in memory does not grow with the frames, but for some numbers a frame and the findings.
    Raises DataError if there are no frames; InputError on bad `jobs`; MissingExtraError if no scan can be read without.
    """
    if jobs is not None and jobs < 0:
        raise InputError(f"jobs={jobs}: give the number of processes, 0 for none")
    if len(dataset) == 0:
        raise DataError(
            f"the data set {dataset.name} has no frames: is the path the right one, or an option too narrow?"
        )
    return _Walk(dataset, fast, state, progress).run(min(cores() if jobs is None else jobs, len(dataset)))


class _Walk:
    """One check while it runs."""

    def __init__(
        self, dataset: Dataset, fast: bool, state: State | None, progress: Callable[[int, int], None] | None
    ) -> None:
        self.dataset, self.fast, self.state, self.progress = dataset, fast, state, progress
        self.findings: list[Finding] = []
        self.track, self.sizes = Track(), ImageSizes()
        self.points = np.full(len(dataset), -1, dtype=np.int64)  # [F]
        self.scenes = np.zeros(len(dataset), dtype=np.int64)  # [F]
        self.numbers = np.full(len(dataset), -1, dtype=np.int64)  # [F]
        self.looked_at = dict.fromkeys(LOOKED_AT, 0)
        self.most_sweeps = 0
        self.scans_met: set[int] = set()
        self.left_out: dict[str, Any] = {}  # fields of the frames that are not asked for
        self.done = self.kept = 0

    def run(self, jobs: int) -> Report:
        start = time.perf_counter()
        self._open_tables()
        for path, scan in self.dataset.orphans():
            kind = "image-without-scan" if self.dataset.LONE_FILES_ARE_USUAL else "orphan"
            self.findings.append(Finding(kind, -1, "", "", str(path), f"{path} is there, but its scan {scan} is not"))
        check = functools.partial(_check, fast=self.fast)
        for (index, frame, print_), result in run_isolated(check, self._frames(), jobs):
            if isinstance(result, MissingExtraError):
                raise result
            if isinstance(result, ProcessDied):
                self._add("process-died", index, frame, str(frame.points_path), str(result))
            elif isinstance(result, Exception):
                self._add("broken-frame", index, frame, "", f"frame {frame.id} cannot be checked: {says(result)}")
            else:
                if self.state is not None:
                    self.state.add(print_, frame.id, result, fast=self.fast)
                self._take(index, frame, result)
            self._count()
        self._compare()
        self.findings.sort(key=lambda finding: finding.index)
        known = self.points[self.points >= 0]
        return Report(
            dataset=self.dataset.name,
            frames=len(self.dataset),
            kept=self.kept,
            fast=self.fast,
            seconds=time.perf_counter() - start,
            points=int(known.sum()),
            findings=tuple(self.findings),
            looked_at=self.looked_at,
            unchecked=tuple(self._unchecked()),
        )

    def _frames(self) -> Iterator[tuple[tuple[int, Frame, str], _Task]]:
        """The frames to check, after what shows without reading them has been found."""
        for index in range(len(self.dataset)):
            try:
                frame = replace(self.dataset[index], **self.left_out)
                faults = list(self.track.follow(index, frame))
                unread = self._unread_sweeps(frame)
                print_ = fingerprint(frame, unread)
            except MissingExtraError:
                raise
            except Exception as error:
                message = says(error)
                self.findings.append(Finding("broken-frame", index, self._id(index), "", file_in(message), message))
                self._count()
                continue
            self.scenes[index] = self.track.scene(frame)
            self.most_sweeps = max(self.most_sweeps, len(frame.sweeps))
            if self.dataset.NUMBERED and frame.points_path.stem.isdecimal():
                self.numbers[index] = int(frame.points_path.stem)
            for kind, message in faults:
                self._add(kind, index, frame, str(frame.points_path), message)
            found = None if self.state is None else self.state.find(print_, fast=self.fast)
            if found is None:
                yield (index, frame, print_), (frame, unread)
            else:
                self.kept += 1
                self._take(index, frame, found)
                self._count()

    def _unread_sweeps(self, frame: Frame) -> tuple[int, ...]:
        """Places of the sweeps that are no scan or sweep of this frame or one before."""
        if not frame.sweeps and "sweeps" not in self.dataset.OPTIONS:
            return ()
        own, *keys = scan_keys(frame)
        self.scans_met.add(own)
        unread = tuple(place for place, key in enumerate(keys) if key not in self.scans_met)
        self.scans_met.update(keys)
        return unread

    def _unchecked(self) -> Iterator[str]:
        """What this check does not look at, though one might think so."""
        if self.dataset.name == "nuscenes" and self.most_sweeps < BETWEEN_KEY_FRAMES:
            which = f"sweeps further than {self.most_sweeps} before a key frame, if there are any"
            which = which if self.most_sweeps else "sweeps between key frames"
            yield f"{which} (add #sweeps={BETWEEN_KEY_FRAMES})"
        if few := uncompared(self.points, self.scenes):
            yield f"number of points of {few} scans (too few frames to compare them with, {ENOUGH} are needed)"
        if self.fast:
            yield "the inside of images (--fast)"

    def _open_tables(self) -> None:
        """Read labels and boxes of a frame first, so that what a reader makes of its tables is made once, here.

        An error that two frames share and that is in no file of theirs is in a table of the whole data set: it is
        reported once, and labels or boxes are not asked for again, which could take as long for every frame.
        """
        first, last = self._frame(0), self._frame(len(self.dataset) - 1)
        for part, kind in (("read_labels", "bad-labels"), ("read_boxes", "bad-boxes")):
            message = "" if first is None else _shared_error(first, part)
            if message and first and last and (first.id == last.id or _shared_error(last, part) == message):
                self.left_out[part] = None
                self._add(kind, 0, first, file_in(message), f"{message} (all frames)")

    def _frame(self, index: int) -> Frame | None:
        """A frame, if it can be made: one that cannot is reported when its turn comes."""
        try:
            return self.dataset[index]
        except Exception:
            return None

    def _id(self, index: int) -> str:
        """The id of a frame that cannot be made, where the data set knows its ids without making frames."""
        if type(self.dataset).ids is Dataset.ids:
            return f"number {index}"
        try:
            return self.dataset.ids()[index]
        except Exception:
            return f"number {index}"

    def _take(self, index: int, frame: Frame, checked: Checked) -> None:
        for kind, path, message in checked.faults:
            self._add(kind, index, frame, path, message)
        if checked.points is not None:
            self.points[index] = checked.points
        counts = (checked.points is not None, sum(size is not None for size in checked.sizes), *checked.looked_at)
        for what, count in zip(LOOKED_AT, counts, strict=True):
            self.looked_at[what] += count
        self.sizes.add(index, int(self.scenes[index]), frame, checked.sizes)

    def _compare(self) -> None:
        """Frames that differ from those around them."""
        for index, points, median in few_points(self.points, self.scenes):
            if frame := self._frame(index):
                message = f"{frame.points_path} has {points} points, the frames around have {median:.0f}"
                self._add("few-points", index, frame, str(frame.points_path), message)
        for index, low, high in number_gaps(self.numbers, self.scenes):
            if frame := self._frame(index):
                which = f"the number {low}" if low == high else f"the numbers {low} to {high}"
                message = f"{frame.points_path}: just before it, no scan has {which}"
                self._add("number-gap", index, frame, str(frame.points_path), message)
        for index, name, (width, height), usual in self.sizes.odd():
            if frame := self._frame(index):
                path = next(camera.image_path for camera in frame.cameras if camera.name == name)
                message = f"{path} has {width} x {height} pixels, the others of {name} have {usual[0]} x {usual[1]}"
                self._add("other-image-size", index, frame, str(path), message)

    def _add(self, kind: str, index: int, frame: Frame, path: str, message: str) -> None:
        self.findings.append(Finding(kind, index, frame.id, frame.scene, path, message))

    def _count(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, len(self.dataset))


def _check(task: _Task, fast: bool) -> Checked:
    frame, sweeps = task
    return check_frame(frame, fast=fast, sweeps=sweeps)


def _shared_error(frame: Frame, part: str) -> str:
    """What the reader of a frame's labels or boxes says of a file that is not the frame's own; else ""."""
    try:
        if (read := getattr(frame, part)) is not None:
            read()
    except MissingExtraError:
        raise
    except Exception as error:
        message = says(error)
        path = file_in(message)
        return message if path and path not in map(str, files_of(frame)) else ""
    return ""
