"""The loader: the same batches whatever the number of workers, and a few broken files do not end a run."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clever3d.datasets import Frame
from clever3d.datasets.augment import AugmentConfig, augment
from clever3d.datasets.batch import Batch
from clever3d.datasets.loading import (
    BadFrame,
    BadFrames,
    Key,
    Loader,
    SampleDataset,
    draw_usable,
    sample_generator,
)
from clever3d.datasets.sample import Sample, sample_from_frame
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud, read_bin

CONFIG = AugmentConfig(jitter=0.01, tilt=2.0)


def read(path: Path) -> PointCloud:
    rows = read_bin(path, 4)
    return PointCloud(rows[:, :3].copy(), rows[:, 3].copy(), "test")


def make(frame: Frame, generator: torch.Generator) -> Sample:
    return augment(sample_from_frame(frame), CONFIG, generator)


def plain(frame: Frame, generator: torch.Generator) -> Sample:
    return sample_from_frame(frame)


def rough(frame: Frame, generator: torch.Generator) -> Sample:
    raise ZeroDivisionError("a mistake in the program")


def write(folder: Path, count: int, broken: tuple[int, ...] = ()) -> list[Frame]:
    """Frames of 50 + number points; the broken ones end in the middle of a row."""
    frames = []
    for number in range(count):
        path = folder / f"{number}.bin"
        points = np.random.default_rng(number).uniform(1, 10, (50 + number, 4)).astype(np.float32)
        path.write_bytes(points.tobytes()[: -6 if number in broken else None])
        frames.append(Frame(str(number), "scene", (), path, "set", partial(read)))
    return frames


def key(batch: Batch) -> tuple[Any, ...]:
    assert batch.xyz is not None
    intensity = None if batch.intensity is None else batch.intensity.nan_to_num(-1).numpy().tobytes()
    return (batch.names, batch.frames, batch.counts, batch.xyz.numpy().tobytes(), intensity)


def epochs(loader: Loader, count: int = 2) -> list[list[tuple[Any, ...]]]:
    return [[key(batch) for batch in loader.epoch(number)] for number in range(count)]


# ---- the generators


def test_generators_of_different_keys_give_unrelated_numbers() -> None:
    keys = [(s, e, i) for s in range(4) for e in range(4) for i in range(64)]
    numbers = torch.stack([torch.rand(4, generator=sample_generator(*k)) for k in keys])  # [1024, 4]
    assert len(numbers[:, 0].unique()) == len(keys)
    assert (torch.corrcoef(numbers.T) - torch.eye(4)).abs().max() < 0.12
    neighbours = torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))[0, 1]
    assert neighbours.abs() < 0.12 and (numbers.mean() - 0.5).abs() < 0.03


def test_a_generator_depends_on_its_whole_key_and_nothing_else() -> None:
    first = torch.rand(3, generator=sample_generator(1, 2, 3))
    torch.rand(5)
    assert torch.equal(torch.rand(3, generator=sample_generator(1, 2, 3)), first)
    for other in [(3, 2, 1), (1, 2), (1, 2, 3, 0), (1, 2 + 2**32, 3), (1 + 2**40, 2, 3)]:
        assert not torch.equal(torch.rand(3, generator=sample_generator(*other)), first)
    with pytest.raises(InputError, match="0 or more"):
        sample_generator(1, -1)


# ---- the same, whoever makes it


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors, on purpose
@pytest.mark.parametrize(("workers", "context"), [(1, "fork"), (3, "fork"), (2, "spawn")])
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int, context: str) -> None:
    frames = write(tmp_path, 11, broken=(2, 7))
    here = Loader(frames, make, batch=3, seed=5)
    there = Loader(frames, make, batch=3, seed=5, workers=workers, context=context)
    expected = epochs(here)
    assert epochs(there) == expected
    assert there.bad.reasons == here.bad.reasons and there.bad.meetings == here.bad.meetings
    assert len(here) == 4 and [len(epoch) for epoch in expected] == [4, 4]
    assert expected[0] != expected[1]


def test_a_sample_is_a_function_of_seed_epoch_and_frame_in_whatever_order_it_is_drawn(tmp_path: Path) -> None:
    data = SampleDataset(write(tmp_path, 4), make, seed=3)
    keys = [Key(epoch, frame) for epoch in range(2) for frame in range(4)]

    def content(one: Key) -> bytes:
        sample = data[one].value
        assert sample is not None
        return bytes(sample.xyz.numpy().tobytes())

    forwards = {one: content(one) for one in keys}
    assert {one: content(one) for one in reversed(keys)} == forwards
    assert len(set(forwards.values())) == len(keys)
    assert content(Key(0, 1, repeat=1)) not in forwards.values()
    other = SampleDataset(data.frames, make, seed=4)[keys[0]].value
    assert other is not None and other.xyz.numpy().tobytes() != forwards[keys[0]]


def test_an_epoch_has_every_frame_once_and_another_order_each_time(tmp_path: Path) -> None:
    loader = Loader(write(tmp_path, 10), plain, batch=4)
    orders = [[frame for batch in loader.epoch(n) for frame in batch.frames] for n in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2] and orders[0] != list(range(10))
    unshuffled = Loader(loader._loader.dataset.frames, plain, batch=4, shuffle=False)  # type: ignore[attr-defined]
    assert [batch.frames for batch in unshuffled.epoch(1)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    for batch in unshuffled.epoch(0):
        assert batch.counts == tuple(50 + frame for frame in batch.frames)


def test_frames_are_drawn_by_their_weights_and_a_second_drawing_is_another_sample(tmp_path: Path) -> None:
    weights = torch.tensor([0.0, 1.0, 3.0])
    loader = Loader(write(tmp_path, 3), make, batch=5, weights=weights, draws=400)
    batches = list(loader.epoch(0))
    drawn = Counter(frame for batch in batches for frame in batch.frames)
    assert drawn[0] == 0 and drawn.total() == 400 and abs(drawn[2] - 300) < 40
    assert len({batch.scan(n).xyz.numpy().tobytes() for batch in batches for n in range(5)}) == 400


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, workers: int) -> None:
    frames = write(tmp_path, 9)
    loader = Loader(frames, make, batch=2, workers=workers, context="fork")
    whole = epochs(loader)
    assert [key(batch) for batch in loader.epoch(1, skip=2)] == whole[1][2:]
    for batch in loader.epoch(0):  # left early
        assert key(batch) == whole[0][0]
        break
    assert [key(batch) for batch in loader.epoch(1)] == whole[1]


def test_the_global_generators_are_neither_used_nor_changed(tmp_path: Path) -> None:
    loader = Loader(write(tmp_path, 6, broken=(1,)), make, batch=2)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = epochs(loader)
    after = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert epochs(loader) == first
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert (torch.rand(1), np.random.rand()) == after  # noqa: NPY002


# ---- bad frames


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_frame_is_replaced_counted_and_named_once(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = Loader(write(tmp_path, 8, broken=(3, 5)), plain, batch=3, workers=workers, context="fork")
    with caplog.at_level(logging.WARNING):
        batches = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    assert [len(batch) for batch in batches] == [3, 3, 2] * 3
    drawn = {frame for batch in batches for frame in batch.frames}
    assert drawn == {0, 1, 2, 4, 6, 7}
    for batch in batches:  # name and number are those of the frame that is really there
        assert batch.counts == tuple(50 + frame for frame in batch.frames)
        assert batch.names == tuple(f"set/{frame}" for frame in batch.frames)
    assert len(loader.bad) == 2 and loader.bad.meetings["set/3"] >= 3
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    for number in (3, 5):
        assert any(f"set/{number} " in text and f"{number}.bin has" in text for text in messages)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_frames_end_the_run_with_a_list(tmp_path: Path, workers: int) -> None:
    frames = write(tmp_path, 12, broken=(1, 4, 6, 9))
    loader = Loader(frames, plain, batch=2, max_bad=3, workers=workers, context="fork")
    with pytest.raises(DataError, match=r"4 of 12 frames cannot be used, more than the 3 allowed") as caught:
        for epoch in range(3):
            for _ in loader.epoch(epoch):
                pass
    for number in (1, 4, 6, 9):
        assert f"  set/{number}: {frames[number].points_path} has " in str(caught.value)
    patient = Loader(frames, plain, batch=2, max_bad=4)
    for epoch in range(3):
        assert len(list(patient.epoch(epoch))) == 6
    with pytest.raises(DataError, match="1 of 12 frames"):
        list(Loader(frames, plain, max_bad=0).epoch(0))


def test_a_data_set_with_nothing_but_bad_frames_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 of 3 frames cannot be used, and there is no other"):
        list(Loader(write(tmp_path, 3, broken=(0, 1, 2)), plain).epoch(0))
    with pytest.raises(DataError, match="no frames"):
        Loader([], plain)


def test_a_frame_whose_calibration_cannot_be_read_is_bad_too(tmp_path: Path) -> None:
    class Crooked:
        name = "crooked"

        def __init__(self) -> None:
            self.frames = write(tmp_path, 3)

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Frame:
            if index == 1:
                raise DataError("calib/1.txt: P2 has 11 values")
            return self.frames[index]

    loader = Loader(Crooked(), plain)
    assert sorted(batch.frames[0] for batch in loader.epoch(0)) in ([0, 0, 2], [0, 2, 2])
    assert loader.bad.reasons == {"crooked/number 1": "calib/1.txt: P2 has 11 values"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_program_is_no_bad_frame(tmp_path: Path, workers: int) -> None:
    loader = Loader(write(tmp_path, 2), rough, workers=workers, context="fork")
    with pytest.raises(ZeroDivisionError, match="a mistake in the program"):
        list(loader.epoch(0))


def test_replacements_come_by_weight_and_never_twice_the_same() -> None:
    calls: list[int] = []

    def use(number: int, generator: torch.Generator) -> int:
        calls.append(number)
        if number != 4:
            raise DataError(f"no {number}")
        return number

    weights = torch.tensor([1.0, 1, 1, 0, 1])
    found = draw_usable(use, 0, (7, 1), frames=5, name=str, max_bad=10, weights=weights)
    assert found.value == found.frame == 4 and [bad.name for bad in found.bad] == [str(n) for n in calls[:-1]]
    assert calls[0] == 0 and 3 not in calls and len(set(calls)) == len(calls)
    again = draw_usable(use, 0, (7, 1), frames=5, name=str, max_bad=10, weights=weights)
    assert again.bad == found.bad
    nothing = draw_usable(use, 0, (7, 1), frames=4, name=str, max_bad=1)
    assert nothing.value is None and len(nothing.bad) == 2  # one more than allowed: enough to end the run


def test_the_bound_is_ten_or_one_in_a_hundred() -> None:
    assert BadFrames(12).max_bad == 10 and BadFrames(34_149).max_bad == 341
    assert BadFrames(5000, 0).max_bad == 0
    with pytest.raises(InputError, match="max_bad=-1"):
        BadFrames(5, -1)
    many = BadFrames(100, 30)
    many.add(BadFrame(str(n), "broken") for n in range(30))
    with pytest.raises(DataError, match=r"31 of 100 frames(.*\n){21}  ... and 11 more"):
        many.add([BadFrame("30", "broken")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"workers": -1}, "workers=-1"),
        ({"weights": torch.zeros(3)}, "weights must be"),
        ({"weights": torch.ones(2)}, r"weights must be \[3\]"),
        ({"draws": 5}, "draws=5"),
        ({"max_bad": -2}, "max_bad=-2"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loader(write(tmp_path, 3), plain, **options)
    with pytest.raises(InputError, match="epoch=-1"):
        next(Loader(write(tmp_path, 3), plain).epoch(-1))
