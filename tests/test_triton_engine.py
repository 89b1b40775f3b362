"""The triton engine: dense convolutions, closed forms, and code that compiles for GPUs.

Without a GPU the kernels run in Triton's interpreter, on few voxels; with one, the same tests run on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense import dense_convolution, dense_transposed, random_scan
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse import Conv3d, Epilogue, SparseTensor, convolve, kernel_offsets, use_deterministic, use_engine
from clever3d.sparse.engines import triton_engine, tuning
from clever3d.sparse.engines.triton_engine import make_tiling

triton = pytest.importorskip("triton", reason="triton is not installed")


def _version(module: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in module.__version__.split(".")[:2])


if not torch.cuda.is_available() and _version(np) >= (2, 4) and _version(triton) < (3, 9):
    reason = "the interpreter of Triton before 3.9 cannot loop up to a loaded number under numpy 2.4 and newer"
    pytest.skip(reason, allow_module_level=True)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # conftest.py turns the interpreter on
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def triton_everywhere() -> Iterator[None]:
    with use_engine("triton"):
        yield


def few_voxels(channels: int, seed: int = 1, density: float = 0.04) -> SparseTensor:
    """About 80 voxels on the CPU, float64, with values that every dtype here holds exactly."""
    x = random_scan(density, channels, seed)
    return x.with_feats(x.feats.detach().to(torch.bfloat16).double())


def on_device(x: SparseTensor, dtype: torch.dtype) -> SparseTensor:
    return SparseTensor(x.feats.to(DEVICE, dtype), x.coords.to(DEVICE))


def kernel_of(volume: int, channels_in: int, channels_out: int) -> Tensor:
    generator = torch.Generator().manual_seed(volume)
    kernel = torch.randn(volume, channels_in, channels_out, generator=generator) / (volume * channels_in) ** 0.5
    return kernel.to(torch.bfloat16).double()


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Within rounding of the largest value: sums of products cancel, so single small values may be further off."""
    assert got.dtype == dtype
    torch.testing.assert_close(got.double().cpu(), want, rtol=0, atol=TOLERANCE[dtype] * float(want.abs().max()))


def assert_same_with_gradients(
    out: Tensor, leaves: list[Tensor], dense: Tensor, dense_leaves: list[Tensor], dtype: torch.dtype
) -> None:
    assert_close(out.detach(), dense.detach(), dtype)
    upstream = torch.randn(dense.shape).to(torch.bfloat16).double()
    expected = torch.autograd.grad(dense, dense_leaves, upstream)
    for got, want in zip(torch.autograd.grad(out, leaves, upstream.to(DEVICE, dtype)), expected, strict=True):
        assert_close(got, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "stride", "channels"),
    [(3, 1, (5, 20)), (3, 1, (40, 33)), (2, 2, (16, 32)), (3, 2, (3, 7)), (1, 2, (4, 4))],
)
def test_convolution_and_gradients_equal_dense_conv3d(
    size: int, stride: int, channels: tuple[int, int], dtype: torch.dtype
) -> None:
    x, kernel = few_voxels(channels[0]), kernel_of(size**3, *channels).requires_grad_()
    feats = x.feats.clone().requires_grad_()
    ours = on_device(x, dtype)
    kernel_map = ours.pyramid.kernel_map((1, 1, 1), (size,) * 3, (stride,) * 3)
    dense = dense_convolution(feats, x, kernel_map.out_coords.cpu(), kernel, size, stride)
    leaves = [ours.feats.requires_grad_(), kernel.detach().to(DEVICE, dtype).requires_grad_()]
    out = convolve(leaves[0], leaves[1], kernel_map)
    assert_same_with_gradients(out, leaves, dense, [feats, kernel], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_transposed_convolution_and_gradients_equal_dense_conv_transpose3d(size: int, dtype: torch.dtype) -> None:
    fine, kernel = few_voxels(1), kernel_of(size**3, 6, 18).requires_grad_()
    ours = on_device(fine, dtype)
    kernel_map = ours.pyramid.kernel_map((1, 1, 1), (size,) * 3, (2, 2, 2)).reversed
    feats = few_voxels(6, density=0.5).feats[: kernel_map.num_in].clone().requires_grad_()
    dense = dense_transposed(feats, kernel_map.in_coords.cpu(), fine.coords, kernel, size, 2)
    leaves = [t.detach().to(DEVICE, dtype).requires_grad_() for t in (feats, kernel)]
    out = convolve(leaves[0], leaves[1], kernel_map)
    assert_same_with_gradients(out, leaves, dense, [feats, kernel], dtype)


@pytest.mark.parametrize("size", [2, 3])
def test_one_hot_kernel_reads_the_voxel_at_its_offset(size: int) -> None:
    x = on_device(few_voxels(1), torch.float32)
    stride = 1 if size == 3 else 2
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (size,) * 3, (stride,) * 3)
    lookup = {tuple(c): f for c, f in zip(x.coords.tolist(), x.feats[:, 0].tolist(), strict=True)}
    for k, (dx, dy, dz) in enumerate(kernel_offsets(size)):
        kernel = torch.zeros(size**3, 1, 1, device=DEVICE)
        kernel[k] = 1
        out = convolve(x.feats, kernel, kernel_map)[:, 0].tolist()
        for (b, cx, cy, cz), value in zip(kernel_map.out_coords.tolist(), out, strict=True):
            assert value == lookup.get((b, stride * cx + dx, stride * cy + dy, stride * cz + dz), 0.0)


def test_a_kernel_of_125_offsets_works() -> None:
    """More offsets than fit a sorting key."""
    x, kernel = few_voxels(3, density=0.02), kernel_of(125, 3, 4)
    ours = on_device(x, torch.float32)
    kernel_map = ours.pyramid.kernel_map((1, 1, 1), (5, 5, 5), (1, 1, 1))
    out = convolve(ours.feats, kernel.to(DEVICE, torch.float32), kernel_map)
    assert_close(out, dense_convolution(x.feats, x, x.coords, kernel, 5, 1), torch.float32)


def test_epilogue_is_normalisation_residual_and_relu() -> None:
    x = on_device(few_voxels(4), torch.float32)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    kernel = kernel_of(27, 4, 20).to(DEVICE, torch.float32)
    scale, shift = torch.rand(20, 2, device=DEVICE).unbind(1)  # not contiguous
    residual = torch.randn(len(x), 20, device=DEVICE)
    plain = convolve(x.feats, kernel, kernel_map)
    for end, expected in [
        (Epilogue(scale, shift), plain * scale + shift),
        (Epilogue(scale, shift, residual, True), (plain * scale + shift + residual).relu()),
        (Epilogue(relu=True), plain.relu()),
    ]:
        torch.testing.assert_close(convolve(x.feats, kernel, kernel_map, end), expected, rtol=1e-5, atol=1e-5)


def test_a_nan_is_not_hidden() -> None:
    x = on_device(few_voxels(4), torch.float32)
    feats = x.feats.clone()
    feats[0] = float("nan")
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    out = convolve(feats, kernel_of(27, 4, 4).to(DEVICE, torch.float32), kernel_map, Epilogue(relu=True))
    assert bool(out[0].isnan().all())


def test_float16_saturates_forward_and_overflows_backward() -> None:
    """Features stay finite; gradients become infinite, which is what a loss scaler looks for."""
    x = on_device(few_voxels(4), torch.float16)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    feats = torch.full_like(x.feats, 30000.0).requires_grad_()
    kernel = torch.ones(27, 4, 4, device=DEVICE, dtype=torch.float16)
    out = convolve(feats, kernel, kernel_map)
    assert out.detach().min() == out.detach().max() == 65504
    out.backward(torch.full_like(out, 30000.0))
    assert feats.grad is not None and bool(feats.grad.isinf().any())


def test_scans_without_voxels_or_with_one_work() -> None:
    for count in (0, 1):
        coords = torch.zeros(count, 4, dtype=torch.int32, device=DEVICE)
        x = SparseTensor(torch.ones(count, 2, device=DEVICE), coords)
        for size, stride in ((3, 1), (2, 2)):
            layer = Conv3d(2, 3, size, stride).to(DEVICE)
            y = layer(x)
            assert y.feats.shape == (count, 3)
            y.feats.sum().backward()
            assert layer.kernel.grad is not None and bool(layer.kernel.grad.isfinite().all())


@pytest.mark.parametrize("tile", [16, 32])
def test_tiles_visit_exactly_the_offsets_that_their_rows_need(tile: int) -> None:
    x = few_voxels(1, density=0.1)
    table = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1)).table
    tiling = make_tiling(table, tile)
    assert sorted(tiling.order[: len(x)].tolist()) == list(range(len(x)))
    assert torch.equal(tiling.table[:, : len(x)], table[:, tiling.order[: len(x)].long()])
    assert bool((tiling.table[:, len(x) :] == -1).all())
    needed = {
        (t, k)
        for t in range(len(tiling.counts))
        for k in range(27)
        if bool((tiling.table[k, t * tile : (t + 1) * tile] >= 0).any())
    }
    by_tile = {(t, k) for t, n in enumerate(tiling.counts.tolist()) for k in tiling.active[t, :n].tolist()}
    by_offset = {(t, k) for k, n in enumerate(tiling.tile_counts.tolist()) for t in tiling.tiles[k, :n].tolist()}
    assert by_tile == by_offset == needed
    unsorted = sum(bool((part >= 0).any()) for row in table for part in row.split(tile))
    assert len(needed) < unsorted


def test_gradient_splits_add_up_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many programs share the tiles, the sum is the same, and the same again bit for bit."""
    x = on_device(few_voxels(4, density=0.15), torch.float32)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    kernel = kernel_of(27, 4, 4).to(DEVICE, torch.float32).requires_grad_()
    gradients = []
    for splits in (1, 5, 5):
        config = tuning.GradientConfig(16, 16, splits, 4, 2)
        monkeypatch.setattr(tuning, "gradient_rule", lambda shape, config=config: config)
        gradients.append(torch.autograd.grad(convolve(x.feats, kernel, kernel_map).square().sum(), kernel)[0])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert torch.equal(gradients[1], gradients[2])


def test_operators_are_what_they_say_they_are() -> None:
    """torch's own checks of schema, fake kernel, autograd registration and compilation."""
    x = on_device(few_voxels(4, density=0.02), torch.float32)
    kernel = kernel_of(8, 4, 4).to(DEVICE, torch.float32).requires_grad_()
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (2, 2, 2), (2, 2, 2))
    tiling, backward = triton_engine._tiling(kernel_map), triton_engine._tiling(kernel_map.reversed)
    arguments = (x.feats.requires_grad_(), kernel, tiling, backward, kernel_map.num_out, None, None, None, False)
    torch.library.opcheck(torch.ops.clever3d.convolve_tiles.default, arguments)


def test_what_it_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"asked for, but it has no torch.float64"):
        Conv3d(2, 2, 3).double().to(DEVICE)(on_device(few_voxels(2), torch.float64))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(InputError, match="it needs a GPU"):
        Conv3d(2, 2, 3)(few_voxels(2).with_feats(few_voxels(2).feats.float()))


def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """Ahead of time, for Ampere and Hopper: they fit into shared memory, and half precision runs on tensor cores.

    The limits are those of the CUDA programming guide: 163 KB of shared memory per block at compute capability 8.0,
    227 KB at 9.0.
    """
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_kernels.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    rows = json.loads(run.stdout)
    assert len(rows) == 2 * 4 * 3
    for row in rows:
        assert row["shared"] <= {80: 163, 90: 227}[row["capability"]] * 1024, row
        assert row["tensor cores"] == (row["precision"] != "fp32"), row  # float32 proper has none to run on


class FakeGpu:
    """A machine on which tuning happens, without one: configurations with more warps are faster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.timed = 0
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Made-up GPU 1")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(tuning, "fastest", self.fastest)
        monkeypatch.setattr(tuning, "_known", {})
        monkeypatch.setattr(tuning, "_loaded_from", None)
        monkeypatch.setenv("CLEVER3D_CACHE", str(folder))

    def fastest(self, candidates: list[tuning.ProductConfig], launch: object) -> tuning.ProductConfig:
        self.timed += 1
        return max(candidates, key=lambda config: config.warps)

    def forget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a new process."""
        monkeypatch.setattr(tuning, "_known", {})
        monkeypatch.setattr(tuning, "_loaded_from", None)


SHAPE = tuning.Shape("product", torch.float16, 32, 32, 27, 64, 20_000)


def configure(shape: tuning.Shape = SHAPE) -> tuning.ProductConfig:
    return tuning.product_config(shape, lambda config: None)


def test_tuned_configurations_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = FakeGpu(monkeypatch, tmp_path)
    rule = tuning.product_rule(SHAPE)
    assert configure() == rule and gpu.timed == 0  # nobody asked for tuning
    monkeypatch.setenv("CLEVER3D_TUNE", "1")
    tuned = configure()
    assert tuned.warps == 8 != rule.warps and gpu.timed == 1
    assert configure() == tuned and gpu.timed == 1
    assert configure(tuning.Shape("product", torch.float16, 32, 32, 27, 64, 30_000)) == tuned  # same power of two
    assert gpu.timed == 1
    monkeypatch.delenv("CLEVER3D_TUNE")
    gpu.forget(monkeypatch)
    assert configure() == tuned and gpu.timed == 1  # read from the file
    (file,) = tmp_path.iterdir()
    assert "Made-up-GPU-1" in file.name
    with use_deterministic(True):
        assert configure() == rule
    torch.use_deterministic_algorithms(True)
    try:
        assert configure() == rule
        with use_deterministic(False):
            assert configure() == tuned
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("content", ["", "[1]", '{"product x": {"warps": 3}}', '{"product x": 1}'])
def test_a_damaged_tuning_file_is_replaced(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FakeGpu(monkeypatch, tmp_path)
    tuning.cache_file().write_text(content)
    monkeypatch.setenv("CLEVER3D_TUNE", "1")
    assert configure().warps == 8
    assert "cannot be read" in caplog.text
    assert list(json.loads(tuning.cache_file().read_text())) == [SHAPE.key]


def test_a_folder_that_cannot_be_written_costs_only_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    FakeGpu(monkeypatch, tmp_path / "file" / "below")
    monkeypatch.setenv("CLEVER3D_TUNE", "1")
    assert configure().warps == 8
    assert "could not be kept" in caplog.text
