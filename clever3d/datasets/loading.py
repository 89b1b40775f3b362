"""From frames to batches, by any number of workers: the same batches every time, whatever a few broken files do."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from clever3d.datasets.base import Frame
from clever3d.datasets.batch import Batch, collate
from clever3d.datasets.sample import Sample
from clever3d.errors import DataError, InputError

logger = logging.getLogger(__name__)

#: Bad frames that a run puts up with unless it is told otherwise: this many, or one in so many (our choice).
MAX_BAD, BAD_SHARE = 10, 100
#: Bad frames that the error lists; all of them are in the log.
LISTED = 20

T = TypeVar("T")
Make = Callable[[Frame, torch.Generator], Sample]


def sample_generator(*key: int) -> torch.Generator:
    """A generator of its own for each key, such as (seed, epoch, index): nothing depends on what was drawn before.

    The key is hashed by numpy's SeedSequence, so that neighbouring keys give unrelated streams. (torch's CPU generator
    takes 32 bits of a seed: of a million keys about a hundred pairs share their random numbers, which does no harm.)
    Raises InputError for a negative number.
    """
    if min(key, default=0) < 0:
        raise InputError(f"seeds, epochs and indices are 0 or more, got {key}")
    # 64 bits each and their number first: two different keys never make the same words
    words = [len(key), *(word for number in key for word in (number & 0xFFFFFFFF, number >> 32))]
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)


# ---- frames that cannot be used


@dataclass(frozen=True)
class BadFrame:
    """A frame that could not be used: its name, DATASET/ID, and the error's message, which names the file."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Drawn(Generic[T]):
    """What a draw gave (None if no frame could be used), the number of the frame, and the bad frames met before it."""

    value: T | None
    frame: int
    bad: tuple[BadFrame, ...] = ()


class BadFrames:
    """Counts the frames that cannot be used, names each once in the log, and ends the run when there are too many.

    frames: how many the data set has. max_bad: how many different ones may fail; None: `MAX_BAD`, or one in
    `BAD_SHARE` where that is more. A run also ends when no frame at all is left.
    """

    def __init__(self, frames: int, max_bad: int | None = None) -> None:
        if max_bad is not None and max_bad < 0:
            raise InputError(f"max_bad={max_bad}: how many frames may fail, 0 or more")
        self.frames = frames
        self.max_bad = max(MAX_BAD, frames // BAD_SHARE) if max_bad is None else max_bad
        self.reasons: dict[str, str] = {}
        self.meetings: Counter[str] = Counter()  # how often each was drawn

    def __len__(self) -> int:
        """How many different frames have failed."""
        return len(self.reasons)

    def add(self, bad: Iterable[BadFrame]) -> None:
        """Counts frames; one that has failed before counts once.

        Raises DataError, which lists them, when more than `max_bad` frames have failed, or all there are.
        """
        for one in bad:
            self.meetings[one.name] += 1
            if one.name not in self.reasons:
                self.reasons[one.name] = one.reason
                logger.warning("frame %s is left out (bad frame no. %d): %s", one.name, len(self), one.reason)
        if len(self) > self.max_bad or 0 < self.frames <= len(self):
            raise self.error()

    def take(self, drawn: Drawn[T]) -> T:
        """What was drawn, its bad frames counted. Raises DataError as `add` does, and where nothing could be drawn."""
        self.add(drawn.bad)
        if drawn.value is None:
            raise self.error()
        return drawn.value

    def error(self) -> DataError:
        """The error that lists the bad frames."""
        lines = [f"  {name}: {reason}" for name, reason in list(self.reasons.items())[:LISTED]]
        if len(self) > LISTED:
            lines.append(f"  ... and {len(self) - LISTED} more, all of them in the log")
        too_many = len(self) > self.max_bad
        allowed = f"more than the {self.max_bad} allowed (max_bad)" if too_many else "and there is no other to take"
        remedy = "mend the files or leave these frames out"
        return DataError(
            "\n".join([f"{len(self)} of {self.frames} frames cannot be used, {allowed}: {remedy}", *lines])
        )


def draw_usable(
    use: Callable[[int, torch.Generator], T],
    first: int,
    key: tuple[int, ...],
    *,
    frames: int,
    name: Callable[[int], str],
    max_bad: int,
    weights: Tensor | None = None,
) -> Drawn[T]:
    """What `use` makes of frame number `first`, or, if that raises DataError, of the next frame drawn in its place.

    The replacements are drawn with `weights` [frames] (default: all alike) by a generator of `key`, as is everything
    random in `use`: the same key gives the same result. It gives up after `max_bad` + 1 different frames, which ends
    any run, or when none is left.
    """
    bad: list[BadFrame] = []
    number = first
    while True:
        try:
            return Drawn(use(number, sample_generator(*key, len(bad))), number, tuple(bad))
        except DataError as error:
            bad.append(BadFrame(name(number), str(error)))
        if len(bad) == 1:
            left = torch.ones(frames, dtype=torch.float64) if weights is None else weights.double().clone()
            picks = sample_generator(*key)
        left[number] = 0
        if len(bad) > max_bad or not bool(left.any()):
            return Drawn(None, number, tuple(bad))
        number = int(torch.multinomial(left, 1, generator=picks))


# ---- the loader


class FrameSource(Protocol):
    """What `Loader` reads: a `Dataset`, or a list of frames. `name` and `ids()` are used where there are any."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Frame: ...


class Key(NamedTuple):
    """What a sample is made from, beside the seed: `repeat` counts how often the epoch drew the frame before."""

    epoch: int
    frame: int
    repeat: int = 0


class SampleDataset(TorchDataset[Drawn[Sample]]):
    """A map-style torch data set: `data[Key(epoch, frame)]` is a function of the seed and the key alone.

    frames: indexable by number. make: turns a frame into a sample, all that is random by the generator it is given;
    a module-level function or a partial of one, for workers pickle it. A DataError of `frames[index]` or `make` means
    a bad frame, in whose place another is drawn; every other error ends the run, for it is no matter of one file.
    """

    def __init__(
        self, frames: FrameSource, make: Make, *, seed: int = 0, max_bad: int = MAX_BAD, weights: Tensor | None = None
    ) -> None:
        self.frames, self.make, self.seed, self.max_bad, self.weights = frames, make, seed, max_bad, weights

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: Key) -> Drawn[Sample]:
        return draw_usable(
            lambda number, generator: self.make(self.frames[number], generator),
            key.frame,
            (self.seed, *key),
            frames=len(self),
            name=self._name,
            max_bad=self.max_bad,
            weights=self.weights,
        )

    def _name(self, number: int) -> str:
        try:
            frame = self.frames[number]
        except DataError:  # its calibration, say, is what cannot be read
            return f"{getattr(self.frames, 'name', 'frames')}/number {number}"
        return f"{frame.dataset}/{frame.id}"


class _Order:
    """The batches of keys of one epoch; `epoch` and `skip` are set before each."""

    def __init__(self, frames: int, batch: int, seed: int, shuffle: bool, weights: Tensor | None, draws: int) -> None:
        self.frames, self.batch, self.seed, self.shuffle = frames, batch, seed, shuffle
        self.weights, self.draws = weights, draws
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return -(-self.draws // self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = sample_generator(self.seed, self.epoch)
        if self.weights is not None:
            order = torch.multinomial(self.weights, self.draws, replacement=True, generator=generator).tolist()
        elif self.shuffle:
            order = torch.randperm(self.frames, generator=generator).tolist()
        else:
            order = list(range(self.frames))
        seen: Counter[int] = Counter()
        keys = []
        for index in order:
            keys.append(Key(self.epoch, index, seen[index]))
            seen[index] += 1
        for start in range(self.skip * self.batch, len(keys), self.batch):
            yield keys[start : start + self.batch]


class Loader:
    """Batches of a data set, epoch by epoch.

    frames: a `Dataset`, or a list of frames. make: frame and generator to sample, such as
    `lambda frame, generator: augment(sample_from_frame(frame), config, generator)` written as a module-level function.
    batch: scans of a batch (the last one of an epoch may have fewer). shuffle: in a new order every epoch.
    weights [F]: draw frames with these instead, with replacement, `draws` of them an epoch (default: F).
    workers: processes; 0 makes the samples here. context: "fork", "spawn" or "forkserver", None for Python's default.
    max_bad: bad frames put up with, see `BadFrames`; `bad` counts them, over all workers and epochs.
    pin_memory: batches in page-locked memory, for a GPU.

    The batches of an epoch are a function of (seed, epoch), in the same order with any number of workers; torch's
    global generator is neither used nor changed.
    """

    def __init__(
        self,
        frames: FrameSource,
        make: Make,
        *,
        batch: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        weights: Tensor | None = None,
        draws: int | None = None,
        workers: int = 0,
        context: str | None = None,
        max_bad: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        if not len(frames):
            raise DataError(f"the data set {getattr(frames, 'name', '')} has no frames: check its path and its split")
        if batch < 1 or workers < 0:
            raise InputError(f"batch={batch}, workers={workers}: at least 1 scan a batch, and 0 or more workers")
        if weights is not None and (weights.shape != (len(frames),) or not _is_distribution(weights)):
            raise InputError(
                f"weights must be [{len(frames)}] finite numbers, none below 0 and not all 0; got {weights}"
            )
        if draws is not None and (weights is None or draws < 1):
            raise InputError(f"draws={draws}: at least 1, and only with weights")
        self.bad = BadFrames(len(frames), max_bad)
        self._order = _Order(len(frames), batch, seed, shuffle, weights, len(frames) if draws is None else draws)
        self._loader: DataLoader[Drawn[Sample]] = DataLoader(
            SampleDataset(frames, make, seed=seed, max_bad=self.bad.max_bad, weights=weights),
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=collate_drawn,
            multiprocessing_context=multiprocessing.get_context(context) if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else every epoch would take a number from the global one
        )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, without the first `skip`, which are not even read: for a run that goes on.

        Raises DataError, which lists them, when more frames than `max_bad` cannot be used.
        """
        if epoch < 0 or skip < 0:
            raise InputError(f"epoch={epoch}, skip={skip}: 0 or more")
        self._order.epoch, self._order.skip = epoch, skip
        batch: Batch | None
        for batch, bad in self._loader:
            self.bad.add(bad)
            if batch is None:
                raise self.bad.error()
            yield batch


def collate_drawn(drawn: Sequence[Drawn[Sample]]) -> tuple[Batch | None, tuple[BadFrame, ...]]:
    """A batch of what was drawn, None if nothing was, and the bad frames met."""
    bad = tuple(one for draw in drawn for one in draw.bad)
    samples = [(draw.value, draw.frame) for draw in drawn if draw.value is not None]
    if not samples:
        return None, bad
    return collate([sample for sample, _ in samples], [frame for _, frame in samples]), bad


def _is_distribution(weights: Tensor) -> bool:
    return bool((weights >= 0).all() and weights.isfinite().all() and weights.sum() > 0)
