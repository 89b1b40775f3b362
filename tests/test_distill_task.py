"""One step of distillation: what is drawn, what is compared, and what becomes of scans that lose their pairs."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clever3d.backbones import InputSpec, create_backbone
from clever3d.datasets import Camera, Frame
from clever3d.datasets.augment import AugmentConfig
from clever3d.distill.config import DataConfig, StudentConfig, TrainConfig
from clever3d.distill.head import projection_head
from clever3d.distill.targets import TargetTransform
from clever3d.distill.task import Distillation, Example
from clever3d.errors import DataError, InputError
from clever3d.io import PointCloud
from clever3d.training import LoopConfig

CHANNELS, WIDTH, HEIGHT = 5, 40, 20
STILL = AugmentConfig(rotation=0, flip=0, scale=0, height=0, keep=1, beams=0, intensity=0, no_intensity=0)
TO_CAMERA = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
INTRINSICS = np.array([[10, 0, WIDTH / 2], [0, 10, HEIGHT / 2], [0, 0, 1]], dtype=float)


class Grids:
    """Stands in for the teacher's cache: random features, another grid for every image, all far from zero."""

    def get(self, image_path: Path) -> Tensor:
        generator = torch.Generator().manual_seed(int(image_path.stem))
        return (torch.randn(CHANNELS, 4, 8, generator=generator) + 3.0).half()


def example(folder: Path, number: int, xyz: np.ndarray[Any, Any], data_set: int = 0) -> Example:
    path = folder / f"{number}.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    camera = Camera("camera", path, INTRINSICS, TO_CAMERA)
    cloud = PointCloud(xyz.astype(np.float32), None, "test")
    return Example(Frame(str(number), str(number), (camera,), path, "test", lambda _: cloud), data_set)


def street(seed: int, count: int = 300) -> np.ndarray[Any, Any]:
    """Points ahead that the camera sees, all of them."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(4, 20, count)
    return np.stack([x, generator.uniform(-1.5, 1.5, count) * x, generator.uniform(-0.4, 0.4, count) * x], axis=1)


def distillation(
    train: list[Example], augment: AugmentConfig = STILL, target: TargetTransform = "center", **data: Any
) -> Distillation:
    torch.manual_seed(0)
    backbone = create_backbone("minkunet_small", input_spec=InputSpec(voxel_size=0.5), width=0.25)
    head = projection_head(backbone.feature_dim, CHANNELS, layers=1)
    cache: Any = Grids()
    return Distillation(
        backbone,
        head,
        train,
        train[:2],
        cache,
        data=DataConfig(**{"batch": 1, "pairs": 64, **data}),
        augment=augment,
        target=target,
        seed=0,
    )


# ---- what a constant answer scores


def answer(task: Distillation, constant: Tensor) -> dict[str, float]:
    """Validation of a student whose answer is always the same."""
    last: Any = task.head
    with torch.no_grad():
        last[0].weight.zero_()
        last[0].bias.copy_(constant)
    return task.validate()


def test_a_constant_student_scores_what_the_constant_columns_say(tmp_path: Path) -> None:
    task = distillation([example(tmp_path, n, street(n), data_set=n % 2) for n in range(4)])
    silent = answer(task, torch.zeros(CHANNELS))  # no direction: what is left is the mean feature
    assert silent["cosine"] == silent["constant_cosine"]
    assert silent["constant_cosine"] > 0.8  # the mean alone looks like a good student
    assert silent["centred_cosine"] == 0
    best = answer(task, task.stats.direction)
    assert best["centred_cosine"] == pytest.approx(best["constant_centred_cosine"], abs=1e-5)
    assert best["loss"] == pytest.approx(1 - best["constant_centred_cosine"], abs=1e-5)
    worst = answer(task, -task.stats.direction)
    for name in ("centred_cosine", "train_centred_cosine"):
        assert worst[name] == pytest.approx(-best[name], abs=1e-5)
    assert worst["cosine"] == worst["constant_cosine"]  # of a direction that is wrong, nothing is used


def test_in_the_plain_form_the_mean_answer_scores_the_constant_cosine(tmp_path: Path) -> None:
    task = distillation([example(tmp_path, n, street(n)) for n in range(4)], target="none")
    figures = answer(task, task.stats.mean[0])
    assert figures["cosine"] == pytest.approx(figures["constant_cosine"], abs=1e-6)
    assert figures["loss"] == pytest.approx(1 - figures["constant_cosine"], abs=1e-6)


def test_without_validation_frames_there_are_no_figures(tmp_path: Path) -> None:
    task = distillation([example(tmp_path, 0, street(0))])
    task.val = []
    assert task.validate() == {}


# ---- what is drawn


def test_a_step_is_a_function_of_its_number(tmp_path: Path) -> None:
    frames = [example(tmp_path, n, street(n)) for n in range(3)]
    first, second = (distillation(frames, AugmentConfig(), batch=2) for _ in range(2))
    losses = [float(first.loss(step)[0].detach()) for step in (0, 1, 2)]
    torch.rand(7)  # the global state does not matter
    assert [float(second.loss(step)[0].detach()) for step in (0, 1, 2)] == losses
    assert len(set(losses)) == 3


def test_every_voxel_is_drawn_equally_often_however_many_points_it_holds(tmp_path: Path) -> None:
    single = np.array([[10.25, y, 0.25] for y in np.arange(-4.25, 4.5, 0.5)])  # 18 voxels of 0.5 m
    crowd = np.array([[6.25, 0.25, 0.25]]) + np.random.default_rng(0).uniform(-0.2, 0.2, (180, 3))  # one more
    task = distillation([example(tmp_path, 0, np.concatenate([crowd, single]))], pairs=1, balance=0.0)
    drawn = torch.cat([task._draw(step).rows[0] for step in range(500)])
    share = float((drawn < len(crowd)).float().mean())
    assert share == pytest.approx(1 / 19, abs=0.04)  # 4 sigma; 180 / 198 if points counted


def test_scenes_are_drawn_by_their_weight(tmp_path: Path) -> None:
    frames = [example(tmp_path, n, street(n, 20 + n)) for n in range(5)]
    scenes = ["a", "b", "b", "b", "b"]
    frames = [
        Example(Frame(e.frame.id, scene, e.frame.cameras, e.frame.points_path, "test", e.frame.read), 0)
        for e, scene in zip(frames, scenes, strict=True)
    ]
    task = distillation(frames, scene_power=0.5, batch=4)
    lengths = [len(scan.xyz) for step in range(150) for scan in task._draw(step).scans]
    share = np.mean(np.array(lengths) == 20)
    assert share == pytest.approx(1 / (1 + 4**0.5), abs=0.08)  # 4 sigma


def test_no_pair_is_drawn_twice_in_a_step_and_at_most_as_many_as_there_are(tmp_path: Path) -> None:
    task = distillation([example(tmp_path, 0, street(0, 50))], pairs=4096)
    rows = task._draw(0).rows[0]
    assert sorted(rows.tolist()) == list(range(50))


def test_targets_are_centred_by_the_frame_s_own_data_set(tmp_path: Path) -> None:
    frames = [example(tmp_path, n, street(n, 100 + n), data_set=n) for n in range(2)]
    task = distillation(frames, pairs=4096)
    plain = distillation(frames, pairs=4096, target="none")
    drawn = set()
    for step in range(8):
        batch = task._draw(step)
        own = len(batch.scans[0].xyz) - 100
        taken_away = plain._draw(step).targets - batch.targets
        torch.testing.assert_close(taken_away, task.stats.mean[own].expand_as(taken_away), atol=1e-5, rtol=0)
        drawn.add(own)
    assert drawn == {0, 1}
    assert not torch.allclose(task.stats.mean[0], task.stats.mean[1], atol=0.1)


# ---- scans that lose their pairs


def test_a_scan_whose_pairs_all_drop_out_is_taken_whole(tmp_path: Path) -> None:
    context = np.array([[10.0, 0.0, z] for z in np.linspace(12, 20, 200)])  # above the image
    xyz = np.concatenate([street(0, 2), context])
    task = distillation([example(tmp_path, 0, xyz)], AugmentConfig(keep=0.01))
    sizes = set()
    for step in range(20):
        batch = task._draw(step)
        assert len(batch.targets) == len(batch.rows[0]) >= 1
        assert batch.scans[0].valid[batch.rows[0]].all()
        sizes.add(int(batch.scans[0].valid.sum()))
        assert task.loss(step)[0].isfinite()
    assert len(xyz) in sizes and len(sizes) > 1


def test_pairs_beyond_the_student_s_range_are_not_drawn(tmp_path: Path) -> None:
    beyond = np.array([[90.0, float(y), 0.0] for y in range(20)])  # the range ends at 80 m
    xyz = np.concatenate([beyond, street(0, 30)])
    for augment in (STILL, dataclasses.replace(STILL, keep=0.01)):
        task = distillation([example(tmp_path, 0, xyz)], augment, pairs=4096)
        for step in range(5):
            assert task._draw(step).rows[0].min() >= 20
            assert task.loss(step)[0].isfinite()


def test_a_frame_all_beyond_the_student_s_range_is_named(tmp_path: Path) -> None:
    far = example(tmp_path, 7, np.array([[90.0, float(y), 0.0] for y in range(20)]))
    task = distillation([far])
    with pytest.raises(DataError, match=r"frame test/7 has no paired point inside .*--data\.exclude"):
        task.loss(0)
    with pytest.raises(DataError, match="frame test/7"):
        task.validate()


# ---- the head, and options


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_head_has_as_many_linear_layers_as_asked(layers: int) -> None:
    head = projection_head(6, 9, layers=layers, hidden=11)
    widths = [6, *[11] * (layers - 1), 9]
    shapes = [tuple(p.shape) for p in head.parameters() if p.ndim == 2]
    assert shapes == [(wide_out, wide_in) for wide_in, wide_out in itertools.pairwise(widths)]
    assert head(torch.randn(3, 6)).shape == (3, 9)
    at_zero, at_one, at_two = head(torch.zeros(1, 6)), head(torch.ones(1, 6)), head(torch.full((1, 6), 2.0))
    assert torch.allclose(at_two - at_one, at_one - at_zero, atol=1e-6) == (layers == 1)  # straight only alone


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (TrainConfig(Path("x"), data=DataConfig(batch=0)), "--data.batch 0"),
        (TrainConfig(Path("x"), data=DataConfig(pairs=0)), "--data.pairs 0"),
        (TrainConfig(Path("x"), student=StudentConfig(voxel=0.0)), "--student.voxel 0"),
        (TrainConfig(Path("x"), student=StudentConfig(head_layers=0)), "--student.head-layers 0"),
        (TrainConfig(Path("x"), augment=AugmentConfig(keep=0.0)), "--augment.keep 0"),
        (TrainConfig(Path("x"), loop=LoopConfig(lr=-1.0)), "--loop.lr -1"),
        (TrainConfig(Path("x"), loop=LoopConfig(save_every=0)), "--loop.save-every 0"),
    ],
)
def test_values_that_make_no_sense_are_named(config: TrainConfig, option: str) -> None:
    with pytest.raises(InputError, match=option):
        config.check()
    TrainConfig(Path("x")).check()


# ---- frames with broken files


def broken(folder: Path, number: int) -> Example:
    """A frame whose image is no image."""
    one = example(folder, number, street(number))
    one.frame.cameras[0].image_path.write_bytes(b"")
    return one


def test_a_broken_frame_does_not_end_the_training_and_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [example(tmp_path, n, street(n)) for n in range(3)] + [broken(tmp_path, 3)]
    with caplog.at_level(logging.WARNING):
        first, second = (distillation(frames, AugmentConfig(), batch=2) for _ in range(2))
        losses = [float(first.loss(step)[0].detach()) for step in range(6)]
        first.val = frames
        figures = first.validate()
    assert [float(second.loss(step)[0].detach()) for step in range(6)] == losses  # which frame comes instead is fixed
    assert list(first.bad.reasons) == ["test/3"] and first.bad.meetings["test/3"] > 1
    assert all(np.isfinite(value) for value in figures.values())
    first.val = frames[:3]
    assert first.validate() == figures
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and all("3.png is empty" in text for text in messages)  # one of each task


def test_too_many_broken_frames_end_the_training_with_their_names(tmp_path: Path) -> None:
    frames = [example(tmp_path, 0, street(0))] + [broken(tmp_path, n) for n in (1, 2)]
    with pytest.raises(DataError, match=r"2 of 3 frames cannot be used.*\n.*test/[12]: .*\n.*test/[12]: "):
        distillation(frames, max_bad=1)
    with pytest.raises(DataError, match="3 of 3 frames"):
        distillation([broken(tmp_path, n) for n in (7, 8, 9)])
    task = distillation(frames, max_bad=2)
    task.val = frames[1:]
    with pytest.raises(DataError, match="no other to take"):
        task.validate()


class Regions:
    """Features that say where in the image: in its left half, its right half, or the lower edge of that."""

    def get(self, image_path: Path) -> Tensor:
        grid = torch.zeros(CHANNELS, HEIGHT, WIDTH)  # a patch a pixel
        grid[0, :, :20], grid[1, :15, 20:], grid[2, 15:, 20:] = 1.0, 1.0, 1.0
        return grid.half()


def test_the_statistics_are_those_of_the_pairs_that_the_options_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean target counts the pairs: without what is hidden, and with the ground under the image, as asked."""
    monkeypatch.setattr("test_distill_task.Grids", Regions)
    near = np.array([[4.0, y, z] for y in np.arange(4, 7.5, 0.02) for z in np.arange(0.5, 3, 0.05)])  # u 1 to 10
    behind = np.array([[20.0, y, z] for y in np.arange(21, 36, 0.2) for z in np.arange(3, 14, 0.2)])  # same place
    right = np.array([[20.0, y, 10.0] for y in np.arange(-36, -21, 0.005)])  # u 30 to 38, v 5
    under = np.array([[4.0, y, -5.0] for y in np.arange(-7, -4, 0.001)])  # u 30 to 37, v 22
    frame = example(tmp_path, 0, np.concatenate([near, behind, right, under]))
    left = len(near) + len(behind)
    for data, counts in (
        ({}, [left, len(right), 0]),
        ({"occlusion": True}, [len(near), len(right), 0]),
        ({"below": 0.5}, [left, len(right), len(under)]),
    ):
        mean = distillation([frame], **data).stats.mean[0]
        np.testing.assert_allclose(mean[:3], np.array(counts) / sum(counts), atol=0.02)


def test_one_camera_and_the_occlusion_test_are_options_of_the_training(tmp_path: Path) -> None:
    near = np.array([[4.0, y, z] for y in np.arange(-2, 2, 0.02) for z in np.arange(-1.5, 1.5, 0.05)])
    behind = np.array([[20.0, y, z] for y in np.arange(-8, 8, 1.0) for z in np.arange(-5, 5, 1.0)])
    frames = [example(tmp_path, 0, np.concatenate([near, behind]))]
    plain = distillation(frames, pairs=1_000_000)._draw(0)
    tested = distillation(frames, pairs=1_000_000, occlusion=True)._draw(0)
    assert (plain.rows[0] >= len(near)).sum() == len(behind)
    assert (tested.rows[0] >= len(near)).sum() < 0.2 * len(behind)
    assert (tested.rows[0] < len(near)).sum() > 0.99 * len(near)
    turned = replace(frames[0].frame.cameras[0], points_to_camera=TO_CAMERA @ np.diag([-1.0, -1, 1, 1]))
    both = replace(frames[0].frame, cameras=(frames[0].frame.cameras[0], turned))
    around = np.concatenate([near, -near])
    both = replace(both, read=lambda _: PointCloud(around.astype(np.float32), None, "test"))
    one = distillation([Example(both, 0)], pairs=1_000_000, cameras="one")
    sizes = {len(one._draw(step).rows[0]) for step in range(8)}
    assert sizes == {len(near)}
