"""Sparse convolution against torch's dense one, in float64."""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest
import torch
from dense import dense_convolution, dense_transposed, random_scan
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse import (
    Conv3d,
    ConvTranspose3d,
    Pool3d,
    SparseTensor,
    cat,
    convolve,
    downsample_coords,
    kernel_offsets,
    pool,
)
from clever3d.sparse.coords import pack, unpack


def assert_same_with_gradients(ours: Tensor, dense: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    expected = torch.autograd.grad(dense, inputs, upstream)
    for got, want in zip(torch.autograd.grad(ours, inputs, upstream), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("density", [0.02, 0.2, 0.9])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (5, 1), (2, 2), (3, 2)])
def test_convolution_equals_dense_conv3d(kernel_size: int, stride: int, density: float) -> None:
    x = random_scan(density, 3, seed=kernel_size)
    layer = Conv3d(3, 4, kernel_size, stride).double()
    y = layer(x)
    dense = dense_convolution(x.feats, x, y.coords, layer.kernel, kernel_size, stride)
    assert_same_with_gradients(y.feats, dense, [x.feats, layer.kernel])


@pytest.mark.parametrize("density", [0.05, 0.5])
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_transposed_convolution_equals_dense_conv_transpose3d(kernel_size: int, density: float) -> None:
    fine = random_scan(density, 3, seed=4)
    coarse = Pool3d(2, 2, mode="sum")(fine)
    x = coarse.with_feats(torch.randn(len(coarse), 3, dtype=torch.float64).requires_grad_())
    layer = ConvTranspose3d(3, 4, kernel_size, 2).double()
    y = layer(x)
    assert torch.equal(y.coords, fine.coords) and y.stride == (1, 1, 1)
    dense = dense_transposed(x.feats, x.coords, fine.coords, layer.kernel, kernel_size, 2)
    assert_same_with_gradients(y.feats, dense, [x.feats, layer.kernel])


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_one_hot_kernel_reads_the_voxel_at_its_offset(kernel_size: int) -> None:
    """A kernel with a single one moves features by exactly that slice's documented offset."""
    volume = kernel_size**3
    stride = 1 if kernel_size == 3 else 2
    x = random_scan(0.5, 1, seed=7)
    lookup = {tuple(c): f for c, f in zip(x.coords.tolist(), x.feats[:, 0].tolist(), strict=True)}
    written = {3: lambda k: (k % 3 - 1, k // 3 % 3 - 1, k // 9 - 1), 2: lambda k: (k // 4, k // 2 % 2, k % 2)}
    for k in range(volume):
        dx, dy, dz = written[kernel_size](k)
        layer = Conv3d(1, 1, kernel_size, stride).double()
        with torch.no_grad():
            layer.kernel.zero_()[k] = 1
            y = layer(x)
        for (b, cx, cy, cz), value in zip(y.coords.tolist(), y.feats[:, 0].tolist(), strict=True):
            assert value == lookup.get((b, stride * cx + dx, stride * cy + dy, stride * cz + dz), 0.0)


def test_offsets_are_in_torchsparse_order() -> None:
    assert kernel_offsets(3)[:4] == [(-1, -1, -1), (0, -1, -1), (1, -1, -1), (-1, 0, -1)]  # x fastest
    assert kernel_offsets(2)[:3] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]  # z fastest
    assert kernel_offsets((3, 1, 1)) == [(-1, 0, 0), (0, 0, 0), (1, 0, 0)]


def test_pointwise_convolution_is_a_matrix_product_with_bias() -> None:
    x = random_scan(0.3, 3, seed=1)
    layer = Conv3d(3, 5, 1, bias=True).double()
    torch.testing.assert_close(layer(x).feats, x.feats @ layer.kernel + layer.bias)


@pytest.mark.parametrize("mode", ["max", "mean", "sum"])
def test_pooling_equals_a_loop_over_voxels(mode: str) -> None:
    x = random_scan(0.3, 2, seed=2)
    y = Pool3d(2, 2, mode=mode)(x)
    reduce = {"max": lambda t: t.amax(0), "mean": lambda t: t.mean(0), "sum": lambda t: t.sum(0)}[mode]
    parents = torch.cat([x.coords[:, :1], torch.div(x.coords[:, 1:], 2, rounding_mode="floor")], dim=1)
    for coord, feat in zip(y.coords, y.feats, strict=True):
        torch.testing.assert_close(feat, reduce(x.feats[(parents == coord).all(1)]))


def test_downsampling_floors_negative_coordinates() -> None:
    coords = torch.tensor([[0, -1, 0, 1], [0, -2, 1, 0], [0, -3, 0, 0], [1, 3, 2, 2]])
    assert downsample_coords(coords, 2).tolist() == [[0, -2, 0, 0], [0, -1, 0, 0], [1, 1, 1, 1]]


def test_row_order_does_not_change_a_voxels_result() -> None:
    x = random_scan(0.4, 3, seed=3)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = SparseTensor(x.feats[order], x.coords[order])
    layer = Conv3d(3, 4, 3).double()
    torch.testing.assert_close(layer(shuffled).feats, layer(x).feats[order], rtol=1e-12, atol=1e-12)


def test_scans_of_a_batch_do_not_see_each_other() -> None:
    x = random_scan(0.5, 3, seed=5)
    layer = Conv3d(3, 4, 3).double()
    together = layer(x)
    for scan in (0, 1):
        rows = x.coords[:, 0] == scan
        alone = SparseTensor(x.feats[rows], x.coords[rows] * torch.tensor([0, 1, 1, 1]))
        torch.testing.assert_close(layer(alone).feats, together.feats[rows], rtol=1e-12, atol=1e-12)


def test_gradients_pass_gradcheck() -> None:
    x = random_scan(0.1, 2, seed=6)
    kernel_map = x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1))
    kernel = torch.randn(27, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, k: convolve(f, k, kernel_map), (x.feats, kernel))


def test_autocast_reaches_the_convolution_and_its_gradients() -> None:
    tensor = random_scan(0.2, 4, seed=0)
    tensor = SparseTensor(tensor.feats.detach().float(), tensor.coords)
    conv = Conv3d(4, 5, 3)
    exact = conv(tensor).feats
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feats = conv(tensor).feats
    assert feats.dtype == torch.bfloat16
    torch.testing.assert_close(feats.float(), exact, rtol=0.05, atol=0.05)
    feats.float().sum().backward()
    assert conv.kernel.grad is not None and conv.kernel.grad.dtype == torch.float32


def test_maps_are_shared_by_layers_of_one_resolution() -> None:
    x = random_scan(0.2, 3, seed=8)
    first, second = Conv3d(3, 3, 3).double(), Conv3d(3, 3, 3).double()
    y = second(first(x))
    assert y.pyramid is x.pyramid and len(x.pyramid._maps) == 1
    down = Conv3d(3, 3, 2, 2).double()
    kept = down(x)
    assert down(x).pyramid is kept.pyramid


def test_a_dropped_batch_is_freed_without_garbage_collection() -> None:
    gc.disable()
    try:
        x = random_scan(0.2, 3, seed=8)
        down, up = Conv3d(3, 3, 2, 2).double(), ConvTranspose3d(3, 3, 2, 2).double()
        y = up(down(x))
        geometry = weakref.ref(x.pyramid)
        del x, y
        assert geometry() is None
    finally:
        gc.enable()


def test_single_voxel_and_empty_neighbourhoods_work() -> None:
    x = SparseTensor(torch.ones(1, 2), torch.tensor([[0, 5, -5, 0]]))
    y = Conv3d(2, 3, 3)(x)
    assert y.feats.shape == (1, 3) and torch.isfinite(y.feats).all()
    assert ConvTranspose3d(3, 2, 2, 2)(Conv3d(3, 3, 2, 2)(y)).feats.shape == (1, 2)


def test_packed_keys_invert_and_order_like_rows() -> None:
    rows = list(itertools.product([0, 511], [-100000, -1, 0, 99999], [-7, 8], [-131007, 131007]))
    coords = torch.tensor(rows, dtype=torch.int32)
    keys = pack(coords)
    assert torch.equal(unpack(keys), coords)
    assert [tuple(c) for c in coords[keys.argsort()].tolist()] == sorted(rows)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[0, 1, 2, 3], [0, 1, 2, 3]], "twice"),
        ([[0, 1 << 20, 0, 0]], "larger voxels"),
        ([[600, 0, 0, 0]], "batch"),
    ],
)
def test_bad_coordinates_say_what_to_do(coords: list[list[int]], message: str) -> None:
    for dtype in (torch.int64, torch.int32):
        with pytest.raises(InputError, match=message):
            Conv3d(2, 2, 3)(SparseTensor(torch.ones(len(coords), 2), torch.tensor(coords, dtype=dtype)))
        with pytest.raises(InputError, match=message):
            Conv3d(2, 2, 2, 2)(SparseTensor(torch.ones(len(coords), 2), torch.tensor(coords, dtype=dtype)))


def test_a_coordinate_beyond_32_bits_does_not_wrap_round() -> None:
    with pytest.raises(InputError, match="larger voxels"):
        SparseTensor(torch.ones(1, 2), torch.tensor([[0, (1 << 32) + 5, 0, 0]]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = random_scan(0.2, 3, seed=1)
    with pytest.raises(InputError, match="feats must be"):
        SparseTensor(x.feats[1:], x.coords)
    with pytest.raises(InputError, match="integer"):
        SparseTensor(x.feats, x.coords.double())
    with pytest.raises(InputError, match="Conv3d of that stride"):
        ConvTranspose3d(3, 3, 2, 2).double()(x)
    with pytest.raises(InputError, match="feats must be"):
        Conv3d(4, 4, 3).double()(x)
    with pytest.raises(InputError, match="same voxels"):
        cat([x, random_scan(0.2, 3, seed=2)])
    with pytest.raises(InputError, match="none of"):
        pool(x.feats, x.pyramid.kernel_map((1, 1, 1), (3, 3, 3), (1, 1, 1)), "median")


@pytest.mark.cuda
def test_cuda_gives_the_cpu_result() -> None:
    x = random_scan(0.3, 3, seed=1)
    layer = Conv3d(3, 4, 3).double()
    expected = layer(x).feats
    on_gpu = SparseTensor(x.feats.detach().cuda(), x.coords.cuda())
    torch.testing.assert_close(layer.cuda()(on_gpu).feats.cpu(), expected, rtol=1e-10, atol=1e-10)


def test_a_kernel_without_extent_is_refused() -> None:
    with pytest.raises(InputError, match="must be positive"):
        kernel_offsets((3, 0, 3))


def test_gradients_of_any_memory_layout_are_taken() -> None:
    x = random_scan(0.3, 3, seed=1)
    layer = Conv3d(3, 4, 3).double()
    upstream = torch.randn(4, len(x), dtype=torch.float64).T  # not contiguous
    direct = torch.autograd.grad(layer(x).feats, x.feats, upstream)[0]
    torch.testing.assert_close(torch.autograd.grad(layer(x).feats, x.feats, upstream.contiguous())[0], direct)


@pytest.mark.parametrize("size", [(3, 3, 3), (2, 2, 2), (5, 1, 3), (1, 1, 5), (4, 2, 3), (3, 3, 2), (2, 3, 4)])
@pytest.mark.parametrize("step", [(1, 1, 1), (2, 2, 2), (1, 2, 3)])
def test_pairs_and_table_are_what_the_coordinates_say(size: tuple[int, int, int], step: tuple[int, int, int]) -> None:
    """Both forms of a kernel map, and of its reverse, against a dictionary; rows in order and shuffled."""
    x = random_scan(0.2, 1, seed=5)
    order = torch.argsort(pack(x.coords))
    for coords in (x.coords, x.coords[order]):
        kernel_map = SparseTensor(x.feats, coords).pyramid.kernel_map((1, 1, 1), size, step)
        rows = {tuple(c): n for n, c in enumerate(coords.tolist())}
        expected = torch.full((kernel_map.volume, kernel_map.num_out), -1, dtype=torch.int32)
        for k, (dx, dy, dz) in enumerate(kernel_offsets(size)):
            for o, (b, cx, cy, cz) in enumerate(kernel_map.out_coords.tolist()):
                expected[k, o] = rows.get((b, cx * step[0] + dx, cy * step[1] + dy, cz * step[2] + dz), -1)
        assert torch.equal(kernel_map.table, expected)
        for form in (kernel_map, kernel_map.reversed):
            listed = torch.full_like(form.table, -1)
            for k, (rows_in, rows_out) in enumerate(form.pairs):
                listed[k, rows_out] = rows_in.int()
            assert torch.equal(listed, form.table)
