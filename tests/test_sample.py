"""A frame becomes tensors, and a batch gives every scan back: hand-made frames whose points carry marks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clever3d.datasets import IGNORE, Boxes, Camera, Frame, LabelSpec, PointLabels, Sweep, open_dataset
from clever3d.datasets.batch import Batch, collate
from clever3d.datasets.sample import BoxTensors, Pairs, Sample, returned, sample_from_frame
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud

SPEC = LabelSpec("test", {0: "nothing", 7: "road", 9: "car"}, ("road", "car"), {7: 0, 9: 1}, ((0, 0, 0), (1, 1, 1)))
XYZ = np.array([[1, 2, 3], [np.nan, 0, 0], [0, 0, 0], [4, 5, 6], [np.inf, 1, 1], [0, 0, 1e-3]], dtype=np.float32)
KEPT = [0, 3, 5]


def cloud(xyz: np.ndarray[Any, Any] = XYZ) -> PointCloud:
    return PointCloud(xyz, np.linspace(0, 1, len(xyz), dtype=np.float32), "test")


def labels(count: int = len(XYZ)) -> PointLabels:
    semantic = np.array([7, 9, 0, 9, 7, 0], dtype=np.int32)[:count]
    return PointLabels(semantic, SPEC, instance=np.arange(count, dtype=np.int32))


def boxes() -> Boxes:
    return Boxes(
        np.ones((2, 3)), np.full((2, 3), 2.0), np.stack([np.eye(3)] * 2), ("car", "bus"), num_points=np.array([3, 0])
    )


def frame(folder: Path, **changes: Any) -> Frame:
    path = folder / "scan.bin"
    path.write_bytes(b"x")
    parts: dict[str, Any] = {"read": lambda _: cloud(), "read_labels": labels, "read_boxes": boxes, **changes}
    return Frame("7", "scene", (), path, "set", points_to_world=np.eye(4), **parts)


# ---- one frame


def test_points_that_are_no_returns_leave_with_their_labels(tmp_path: Path) -> None:
    sample = sample_from_frame(frame(tmp_path))
    assert sample.name == "set/7"
    np.testing.assert_array_equal(sample.xyz, XYZ[KEPT])
    assert sample.labels is not None and sample.instances is not None and sample.intensity is not None
    assert sample.labels.dtype == torch.uint8 and sample.labels.tolist() == [0, 1, IGNORE]
    assert sample.instances.tolist() == KEPT
    np.testing.assert_allclose(sample.intensity, np.array(KEPT) / 5)
    assert returned(torch.from_numpy(XYZ)).nonzero().squeeze(1).tolist() == KEPT


def test_boxes_become_tensors(tmp_path: Path) -> None:
    found = sample_from_frame(frame(tmp_path)).boxes
    assert found is not None and found.names == ("car", "bus")
    assert found.sizes.dtype == torch.float32 and found.sizes.tolist() == [[2, 2, 2]] * 2
    assert found.num_points is not None and found.num_points.tolist() == [3, 0]
    assert found.velocities is None


def test_labels_and_boxes_are_read_only_when_asked_for(tmp_path: Path) -> None:
    def refuse() -> Any:
        raise AssertionError("read")

    sample = sample_from_frame(frame(tmp_path, read_labels=refuse, read_boxes=refuse), labels=False, boxes=False)
    assert sample.labels is None and sample.boxes is None


def test_earlier_sweeps_have_no_label(tmp_path: Path) -> None:
    shift = np.eye(4)
    shift[0, 3] = 10.0
    path = tmp_path / "scan.bin"
    sample = sample_from_frame(frame(tmp_path, sweeps=(Sweep(path, shift, -0.1),)), sweeps=True)
    assert sample.time is not None and sample.labels is not None and sample.instances is not None
    own = sample.time == 0
    np.testing.assert_array_equal(sample.xyz[own], XYZ[KEPT])
    assert sample.labels[own].tolist() == [0, 1, IGNORE]
    np.testing.assert_array_equal(sample.xyz[~own], [[11, 2, 3], [14, 5, 6]])  # the others are too near or no returns
    assert sample.labels[~own].tolist() == [IGNORE] * 2 and sample.instances[~own].tolist() == [0, 0]
    assert sample_from_frame(frame(tmp_path, sweeps=(Sweep(path, shift, -0.1),))).time is None


def test_labels_of_another_length_are_an_error_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scan\.bin has 6 points, but frame 7 has 4 labels"):
        sample_from_frame(frame(tmp_path, read_labels=lambda: labels(4)))


def test_a_scan_without_a_return_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scan\.bin: none of the 2 points of frame 7"):
        sample_from_frame(frame(tmp_path, read=lambda _: cloud(XYZ[1:3])))


def test_read_only_arrays_are_copied_and_others_are_not(tmp_path: Path) -> None:
    xyz = np.ones((4, 3), dtype=np.float32)
    xyz.flags.writeable = False
    sample = sample_from_frame(frame(tmp_path, read=lambda _: cloud(xyz), read_labels=None))
    sample.xyz[0, 0] = 5  # would be an error, or change the file's memory
    assert xyz[0, 0] == 1


def test_rows_that_do_not_belong_to_the_points_are_refused() -> None:
    with pytest.raises(InputError, match="sample a: intensity has 3 rows, the points 2"):
        Sample("a", torch.zeros(2, 3), intensity=torch.zeros(3))


def test_selecting_points_renumbers_pairs() -> None:
    pairs = Pairs(torch.tensor([3, 1, 0, 3]), torch.tensor([0, 0, 1, 1]), torch.arange(8.0).view(4, 2))
    sample = Sample("a", torch.arange(12.0).view(4, 3), pairs=pairs).select(torch.tensor([False, True, False, True]))
    assert sample.pairs is not None
    assert sample.pairs.rows.tolist() == [1, 0, 1]
    assert sample.pairs.cameras.tolist() == [0, 0, 1]
    assert sample.pairs.pixels.tolist() == [[0, 1], [2, 3], [6, 7]]


# ---- a batch


def scan(number: int, count: int, **changes: Any) -> Sample:
    """Everything carries the scan's number."""
    mark = float(number)
    parts: dict[str, Any] = {
        "intensity": torch.full((count,), mark / 10),
        "labels": torch.full((count,), number, dtype=torch.uint8),
        "boxes": BoxTensors(
            torch.full((number, 3), mark),
            torch.ones(number, 3),
            torch.eye(3).expand(number, 3, 3),
            (str(number),) * number,
        ),
        "cameras": (Camera(str(number), Path("x"), np.eye(3), np.eye(4)),) * number,
        "pairs": Pairs(
            torch.arange(count - 1, -1, -1), torch.zeros(count, dtype=torch.long), torch.full((count, 2), mark),
            torch.full((count, 4), mark),
        ),
        "points_to_world": torch.eye(4, dtype=torch.float64) * (number + 1),
        **changes,
    }  # fmt: skip
    return Sample(f"set/{number}", torch.full((count, 3), mark), **parts)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (Pairs, BoxTensors)):
        return all(same(getattr(a, name), getattr(b, name)) for name in vars(a))
    return bool(a == b)


def test_a_batch_gives_every_scan_back() -> None:
    scans = [scan(2, 5), scan(1, 0), scan(0, 3), scan(3, 1)]
    batch = collate(scans, [20, 10, 0, 30])
    assert batch.counts == (5, 0, 3, 1) and batch.frames == (20, 10, 0, 30) and len(batch) == 4
    assert batch.xyz.shape == (9, 3)
    assert batch.scan_numbers.tolist() == [0] * 5 + [2] * 3 + [3]
    for number, one in enumerate(scans):
        back = batch.scan(number)
        for name in vars(one):
            assert same(getattr(back, name), getattr(one, name)), name
    assert (
        batch.pairs is not None and batch.pairs.targets is not None
    )  # rows count through the batch: each pair's point carries its mark
    assert torch.equal(batch.xyz[batch.pairs.rows][:, :1].expand(-1, 4), batch.pairs.targets)
    with pytest.raises(InputError, match="scan 4 of a batch of 4"):
        batch.scan(4)


def test_what_a_scan_lacks_is_filled_with_what_says_so() -> None:
    bare = {"intensity": None, "labels": None, "points_to_world": None}
    batch = collate([scan(1, 2), scan(2, 3, **bare)])
    assert batch.intensity is not None and batch.labels is not None
    assert batch.intensity[2:].isnan().all() and batch.intensity[:2].tolist() == pytest.approx([0.1] * 2)
    assert batch.labels.tolist() == [1, 1] + [IGNORE] * 3
    assert batch.points_to_world is None
    empty = collate([scan(1, 2, **bare, boxes=None, pairs=None)] * 2)
    assert empty.intensity is None and empty.labels is None and empty.boxes is None and empty.pairs is None


def test_boxes_without_velocities_beside_ones_with_them_are_unknown() -> None:
    moving = BoxTensors(torch.zeros(1, 3), torch.ones(1, 3), torch.eye(3)[None], ("a",), torch.ones(1, 3), ("t",))
    batch = collate([scan(1, 1), scan(0, 1, boxes=moving)])
    assert batch.boxes is not None and batch.boxes.velocities is not None
    assert batch.boxes.velocities[0].isnan().all() and batch.boxes.velocities[1].tolist() == [1, 1, 1]
    assert batch.boxes.track_ids is None


@pytest.mark.parametrize("missing", ["boxes", "pairs"])
def test_a_scan_that_nobody_annotated_does_not_pass_for_an_empty_one(missing: str) -> None:
    with pytest.raises(InputError, match=f"only 1 of the 2 scans set/1, set/2 have {missing}"):
        collate([scan(1, 2), scan(2, 2, **{missing: None})])
    with pytest.raises(InputError, match="at least one sample"):
        collate([])


def test_a_batch_moves_with_all_its_tensors_and_can_be_pickled() -> None:
    batch = collate([scan(1, 2), scan(2, 3)])
    moved = batch.to("meta")
    tensors = [t for t in (moved.xyz, moved.intensity, moved.labels, moved.points_to_world) if t is not None]
    assert moved.pairs is not None and moved.boxes is not None and moved.pairs.targets is not None
    tensors += [moved.pairs.rows, moved.pairs.targets, moved.boxes.centers]
    assert len(tensors) == 7 and all(t.is_meta for t in tensors)
    assert moved.names == batch.names and moved.scan_numbers.is_meta
    again: Batch = pickle.loads(pickle.dumps(batch))
    assert same(again.pairs, batch.pairs) and again.cameras[1][0].name == "2"


@pytest.mark.cuda
def test_a_batch_in_pinned_memory_reaches_the_gpu() -> None:
    batch = collate([scan(1, 2), scan(2, 3)]).pin_memory()
    assert batch.pairs is not None and batch.xyz.is_pinned() and batch.pairs.rows.is_pinned()
    on_gpu = batch.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert on_gpu.xyz.is_cuda and torch.equal(on_gpu.xyz.cpu(), batch.xyz)


# ---- real frames


@pytest.mark.parametrize("spec", ["kitti/", "nuscenes/", "semantickitti/", "av2/", "rellis3d/"])
def test_real_frames_become_samples(shared_data: Path, spec: str) -> None:
    data = open_dataset(shared_data / spec)
    sample = sample_from_frame(data[0])
    assert len(sample) > 30_000 and sample.xyz.isfinite().all()
    assert sample.intensity is None or (len(sample.intensity) == len(sample) and sample.intensity.max() <= 1)
    if sample.boxes is not None:
        torch.testing.assert_close(
            torch.linalg.det(sample.boxes.rotations), torch.ones(len(sample.boxes)), atol=1e-4, rtol=0
        )
    batch = collate([sample, sample])
    assert torch.equal(batch.scan(1).xyz, sample.xyz)
