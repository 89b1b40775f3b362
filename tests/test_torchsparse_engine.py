"""The torchsparse engine against torch's dense convolutions.

torchsparse needs a GPU and a build of its own, so the adapter meets a stand-in here, which behaves as torchsparse 2.1.0
does by its source: other rows, other voxels, shared settings and caches, backward maps that are not there. The tests
marked ``cuda`` meet the real one.
"""

from __future__ import annotations

import enum
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from dense import LOW, SIZE, dense_kernel, from_dense, random_scan, to_dense
from torch import Tensor
from torch.nn import functional as F

from clever3d.errors import Clever3dError, InputError
from clever3d.sparse import Conv3d, ConvTranspose3d, KernelMap, SparseTensor, use_engine
from clever3d.sparse.engines import torch_engine, torchsparse_engine
from clever3d.sparse.engines.epilogue import Epilogue

ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums of some hundred products of numbers around 1


class Settings(dict[str, Any]):
    """A dictionary whose entries are attributes too, as torchsparse's ``AttributeDict``."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def copy(self) -> Settings:
        return Settings(self)


class Dataflow(enum.Enum):
    ImplicitGEMM = 0
    GatherScatter = 1


class TensorCache:
    def __init__(self) -> None:
        self.cmaps: dict[Any, Any] = {}
        self.kmaps: dict[Any, Any] = {}
        self.hashmaps: dict[Any, Any] = {}


class FakeTorchsparse:
    """What the adapter touches of torchsparse, on the CPU: voxel by voxel, through a dictionary."""

    def __init__(self) -> None:
        self.default_config = Settings(
            dataflow=Dataflow.ImplicitGEMM,
            ifsort=False,
            kmap_mode="hashmap_on_the_fly",
            downsample_mode="spconv",
            split_mask_num=1,
            split_mask_num_bwd=3,
        )
        self.global_config: Settings | None = None
        self.global_cache: TensorCache | None = None
        self.knows_minkowski = True
        self.maps_made: list[tuple[Any, ...]] = []
        fake = self

        class FakeSparseTensor:
            def __init__(self, feats: Tensor, coords: Tensor, stride: Any = 1, spatial_range: Any = None) -> None:
                self.feats, self.coords, self.spatial_range = feats, coords, spatial_range
                self.stride = (stride,) * 3 if isinstance(stride, int) else stride
                self._caches = fake.global_cache or TensorCache()

        self.SparseTensor = FakeSparseTensor

    def get_default_conv_config(self, conv_mode: int = 0, training: bool = False) -> Settings:
        if conv_mode:
            self.default_config.ifsort = True
        return self.default_config

    def conv3d(
        self,
        input: Any,
        weight: Tensor,
        kernel_size: tuple[int, int, int],
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        config: Settings | None = None,
        transposed: bool = False,
        generative: bool = False,
        training: bool = False,
    ) -> Any:
        config = config or self.global_config or self.default_config
        assert config.dataflow is Dataflow.ImplicitGEMM and bias is None and not generative and dilation == 1
        stride = (stride,) * 3 if isinstance(stride, int) else stride
        volume = math.prod(kernel_size)
        if input.feats.dtype not in (torch.float16, torch.float32):
            raise RuntimeError(f"expected scalar type Float but found {input.feats.dtype}")
        if not len(input.feats):
            raise RuntimeError("CUDA error: invalid configuration argument")
        caches = input._caches
        if volume == 1 and stride == (1, 1, 1):
            coords, feats, to_stride = input.coords, input.feats.matmul(weight), input.stride
        elif not transposed:
            name = (input.stride, kernel_size, stride, (1, 1, 1))
            if name not in caches.kmaps:
                caches.kmaps[name] = self._make_map(input.coords, kernel_size, stride, config, training)
                self.maps_made.append(name)
            coords, pairs, has_backward = caches.kmaps[name]
            feats = self._convolve(input.feats, weight, pairs, len(coords), has_backward)
            to_stride = tuple(a * b for a, b in zip(input.stride, stride, strict=True))
        else:
            to_stride = tuple(a // b for a, b in zip(input.stride, stride, strict=True))
            _, pairs, _ = caches.kmaps[to_stride, kernel_size, stride, (1, 1, 1)]
            coords = caches.cmaps[to_stride][0]
            swapped = [(coarse, fine) for fine, coarse in pairs]
            feats = self._convolve(input.feats, weight, swapped, len(coords), training)
        output = self.SparseTensor(feats, coords, to_stride)
        output._caches = caches
        caches.cmaps.setdefault(to_stride, (coords, None))
        return output

    def _make_map(
        self, coords: Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...], config: Settings, training: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]], bool]:
        volume = math.prod(kernel_size)
        splits = config.split_mask_num_bwd
        assert volume <= 32, "masks have 32 bits"
        assert not training or (splits - 1) * math.ceil(volume / splits) <= volume, "reads past the end of the map"
        fine = [tuple(row) for row in coords.tolist()]
        floored = config.kmap_mode == "hashmap" and (
            (config.downsample_mode == "minkowski" and self.knows_minkowski)
            or all(s in (1, k) for s, k in zip(stride, kernel_size, strict=True))
        )
        if stride == (1, 1, 1):
            out = fine
        else:
            coarse = self._floored(fine, stride) if floored else self._dilated(fine, kernel_size, stride)
            out = sorted(coarse, key=hash)  # an order that is neither the input's nor ours
        row = {voxel: i for i, voxel in enumerate(fine)}
        pairs = []
        for k in range(volume):
            axes = (0, 1, 2) if volume % 2 else (2, 1, 0)
            offset, rest = [0, 0, 0], k
            for axis in axes:
                offset[axis] = rest % kernel_size[axis] - (kernel_size[axis] - 1) // 2
                rest //= kernel_size[axis]
            met = [
                (row[source], o)
                for o, (b, *xyz) in enumerate(out)
                if (source := (b, *(c * s + d for c, s, d in zip(xyz, stride, offset, strict=True)))) in row
            ]
            pairs.append(tuple(torch.tensor(met, dtype=torch.long).reshape(-1, 2).unbind(1)))
        return torch.tensor(out, dtype=torch.int32), pairs, training

    @staticmethod
    def _floored(fine: list[tuple[int, ...]], stride: tuple[int, ...]) -> set[tuple[int, ...]]:
        return {(b, *(c // s for c, s in zip(xyz, stride, strict=True))) for b, *xyz in fine}

    @staticmethod
    def _dilated(
        fine: list[tuple[int, ...]], kernel_size: tuple[int, ...], stride: tuple[int, ...]
    ) -> set[tuple[int, ...]]:
        """spconv's rule: every output whose window meets an input, from 0 to the largest input's."""
        largest = (np.max(np.array(fine)[:, 1:], axis=0) - np.array(kernel_size) + 1) // np.array(stride)
        found = set()
        for b, *xyz in fine:
            for offset in itertools.product(*(range(k) for k in kernel_size)):
                voxel, rest = np.divmod(np.array(xyz) - offset, stride)
                if not rest.any() and (voxel >= 0).all() and (voxel <= largest).all():
                    found.add((b, *voxel.tolist()))
        return found

    @staticmethod
    def _convolve(
        feats: Tensor, weight: Tensor, pairs: list[tuple[Tensor, Tensor]], rows: int, has_backward: bool
    ) -> Tensor:
        out = feats.new_zeros(rows, weight.shape[2])
        for k, (rows_in, rows_out) in enumerate(pairs):
            out = out.index_add(0, rows_out, feats[rows_in] @ weight[k])
        if out.requires_grad and not has_backward:

            def fail(_: Tensor) -> None:
                raise TypeError("conv_forward_implicit_gemm_sorted_cuda(): incompatible function arguments (None)")

            out.register_hook(fail)
        return out

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ("", ".backend", ".nn", ".nn.functional", ".utils", ".utils.tensor_cache")
        modules = {name: ModuleType(f"torchsparse{name}") for name in names}
        modules[""].__version__ = "2.1.0"
        modules[""].SparseTensor = self.SparseTensor
        modules[".backend"].GPUHashTable = object
        modules[".utils.tensor_cache"].TensorCache = TensorCache
        modules[".nn.functional"].conv3d = self.conv3d
        modules[".nn.functional"].Dataflow = Dataflow
        modules[".nn.functional"].conv_config = SimpleNamespace(
            get_default_conv_config=self.get_default_conv_config, get_global_conv_config=lambda: self.global_config
        )
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, f"torchsparse{name}", module)


@pytest.fixture
def torchsparse(monkeypatch: pytest.MonkeyPatch) -> FakeTorchsparse:
    fake = FakeTorchsparse()
    fake.install(monkeypatch)
    return fake


def scan(channels: int = 3, seed: int = 1) -> SparseTensor:
    """Shuffled voxels on both sides of the origin, float32 features that require grad."""
    x = random_scan(0.3, channels, seed)
    return SparseTensor(x.feats.detach().float().requires_grad_(), x.coords)


def map_of(x: SparseTensor, kernel_size: int, stride: int) -> KernelMap:
    return x.pyramid.kernel_map((1, 1, 1), (kernel_size,) * 3, (stride,) * 3)


def random_kernel(kernel_size: int, channels_in: int = 3, channels_out: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(kernel_size**3, channels_in, channels_out, generator=generator).requires_grad_()


def dense_convolution(feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """The result by torch's dense convolutions, in float64; the rows are those of the map."""
    size, stride = kernel_map.kernel_size[0], kernel_map.stride[0]
    padding = (size - 1) // 2
    feats, weight = feats.double(), dense_kernel(kernel.double(), size)
    if kernel_map.transposed:
        volume = F.conv_transpose3d(
            to_dense(feats, kernel_map.in_coords, LOW // stride, SIZE // stride),
            weight.transpose(0, 1),
            stride=stride,
            padding=padding,
            output_padding=size - stride if stride > 1 else 0,
        )
        return from_dense(volume, kernel_map.out_coords, LOW)
    volume = F.pad(to_dense(feats, kernel_map.in_coords, LOW, SIZE), (padding, size // 2) * 3)
    return from_dense(F.conv3d(volume, weight, stride=stride), kernel_map.out_coords, LOW // stride)


def assert_dense(ours: Tensor, feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> None:
    """Result and both gradients equal those of the dense convolution."""
    dense = dense_convolution(feats, kernel, kernel_map)
    torch.testing.assert_close(ours.double(), dense, **ROUNDING)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    expected = torch.autograd.grad(dense, [feats, kernel], upstream.double())
    for got, want in zip(torch.autograd.grad(ours, [feats, kernel], upstream), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # sums over all voxels


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (2, 1), (2, 2), (3, 2), (1, 2), (1, 1)])
def test_convolution_equals_dense_conv3d(torchsparse: FakeTorchsparse, kernel_size: int, stride: int) -> None:
    x, kernel = scan(), random_kernel(kernel_size)
    kernel_map = map_of(x, kernel_size, stride)
    assert_dense(torchsparse_engine.convolve(x.feats, kernel, kernel_map), x.feats, kernel, kernel_map)


@pytest.mark.parametrize("after_a_convolution", [True, False])
@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_transposed_convolution_equals_dense_conv_transpose3d(
    torchsparse: FakeTorchsparse, kernel_size: int, stride: int, after_a_convolution: bool
) -> None:
    fine, kernel = scan(), random_kernel(kernel_size)
    kernel_map = map_of(fine, kernel_size, stride)
    if after_a_convolution:
        torchsparse_engine.convolve(fine.feats, kernel, kernel_map)
    back = kernel_map.reversed
    feats = torch.randn(back.num_in, 3, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert_dense(torchsparse_engine.convolve(feats, kernel, back), feats, kernel, back)
    assert len(torchsparse.maps_made) == 1


def test_a_unet_of_layers_gives_what_the_torch_engine_gives(
    torchsparse: FakeTorchsparse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchsparse_engine, "unusable", lambda feats: None)  # it wants a GPU
    x = scan()
    layers = [Conv3d(3, 4, 3), Conv3d(4, 4, 3), Conv3d(4, 5, 2, 2), Conv3d(5, 5, 3), ConvTranspose3d(5, 4, 2, 2)]
    results = []
    for engine in ("torch", "torchsparse"):
        with use_engine(engine):
            y = SparseTensor(x.feats, x.coords)
            for layer in layers:
                y = layer(y)
            results.append((y.feats, *torch.autograd.grad(y.feats.square().sum(), [layer.kernel for layer in layers])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert len(torchsparse.maps_made) == 3  # fine, fine to coarse and back, coarse


def test_kernel_map_is_made_once_for_inference_and_once_more_for_gradients(torchsparse: FakeTorchsparse) -> None:
    x, kernel = scan(), random_kernel(2)
    kernel_map = map_of(x, 2, 2)
    with torch.no_grad():
        for _ in range(3):
            torchsparse_engine.convolve(x.feats, kernel, kernel_map)
    assert len(torchsparse.maps_made) == 1
    for _ in range(2):
        assert_dense(torchsparse_engine.convolve(x.feats, kernel, kernel_map), x.feats, kernel, kernel_map)
    with torch.no_grad():
        torchsparse_engine.convolve(x.feats, kernel, kernel_map)
    assert len(torchsparse.maps_made) == 2


def test_prepared_maps_are_used(torchsparse: FakeTorchsparse) -> None:
    x, kernel = scan(), random_kernel(3)
    kernel_map = map_of(x, 3, 1)
    torchsparse_engine.prepare(kernel_map)
    made = len(torchsparse.maps_made)
    torchsparse_engine.convolve(x.feats, kernel, kernel_map)
    assert len(torchsparse.maps_made) == made == 1


def test_settings_of_the_user_neither_matter_nor_change(torchsparse: FakeTorchsparse) -> None:
    torchsparse.default_config.update(ifsort=True, split_mask_num=3, dataflow=Dataflow.GatherScatter)
    torchsparse.global_config = Settings(torchsparse.default_config, kmap_mode="grid")
    default, own = dict(torchsparse.default_config), dict(torchsparse.global_config)
    x, kernel = scan(), random_kernel(3)
    kernel_map = map_of(x, 3, 2)
    assert_dense(torchsparse_engine.convolve(x.feats, kernel, kernel_map), x.feats, kernel, kernel_map)
    assert torchsparse.default_config == default and torchsparse.global_config == own


def test_a_global_tensor_cache_does_not_mix_clouds(torchsparse: FakeTorchsparse) -> None:
    torchsparse.global_cache = TensorCache()
    kernel = random_kernel(3)
    for seed in (1, 2):
        x = scan(seed=seed)
        kernel_map = map_of(x, 3, 1)
        assert_dense(torchsparse_engine.convolve(x.feats, kernel, kernel_map), x.feats, kernel, kernel_map)
    assert not torchsparse.global_cache.kmaps


@pytest.mark.parametrize("transposed", [False, True])
def test_other_output_voxels_are_an_error(torchsparse: FakeTorchsparse, transposed: bool) -> None:
    torchsparse.knows_minkowski = False
    x, kernel = scan(), random_kernel(3)
    kernel_map = map_of(x, 3, 2)
    if transposed:
        kernel_map = kernel_map.reversed
    with pytest.raises(Clever3dError, match=r"floor\(c / stride\)[\s\S]*minkowski[\s\S]*'torch'"):
        torchsparse_engine.convolve(torch.zeros(kernel_map.num_in, 3), kernel, kernel_map)


def test_half_precision_is_rounded_once(torchsparse: FakeTorchsparse) -> None:
    """bfloat16 has no kernels in torchsparse: it is computed in float32, gradients too."""
    x, kernel = scan(), random_kernel(3)
    kernel_map = map_of(x, 3, 1)
    feats = x.feats.detach().bfloat16().requires_grad_()
    half = kernel.detach().bfloat16()
    got = torchsparse_engine.convolve(feats, half, kernel_map)
    want = dense_convolution(feats, half, kernel_map)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-5)
    assert torch.autograd.grad(got.sum(), feats)[0].dtype == torch.bfloat16
    huge = torchsparse_engine.convolve(torch.full_like(feats, 6e4).half(), half.abs().half(), kernel_map)
    assert huge.dtype == torch.float16 and bool(huge.isfinite().all())


def test_epilogue_is_applied_in_our_row_order(torchsparse: FakeTorchsparse) -> None:
    x, kernel = scan(), random_kernel(2)
    kernel_map = map_of(x, 2, 2)
    generator = torch.Generator().manual_seed(4)
    scale, shift = torch.randn(2, 4, generator=generator)
    residual = torch.randn(kernel_map.num_out, 4, generator=generator)
    with torch.no_grad():
        got = torchsparse_engine.convolve(x.feats, kernel, kernel_map, Epilogue(scale, shift, residual, relu=True))
        want = dense_convolution(x.feats, kernel, kernel_map) * scale + shift + residual
    torch.testing.assert_close(got.double(), want.clamp(min=0), **ROUNDING)


@pytest.mark.parametrize("transposed", [False, True])
def test_no_voxels_give_no_features(torchsparse: FakeTorchsparse, transposed: bool) -> None:
    x = SparseTensor(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 4, dtype=torch.int32))
    kernel_map, kernel = map_of(x, 2, 2), random_kernel(2)
    torchsparse_engine.prepare(kernel_map)
    y = torchsparse_engine.convolve(x.feats, kernel, kernel_map.reversed if transposed else kernel_map)
    assert y.shape == (0, 4)
    assert not torch.autograd.grad(y.sum(), kernel)[0].any()


def test_kernels_and_clouds_too_large_for_torchsparse_are_refused(torchsparse: FakeTorchsparse) -> None:
    x = scan()
    with pytest.raises(InputError, match=r"up to 32 offsets.*\(5, 5, 5\) has 125.*'triton' or 'torch'"):
        torchsparse_engine.convolve(x.feats, random_kernel(5), map_of(x, 5, 1))
    large: Any = SimpleNamespace(volume=27, kernel_size=(3, 3, 3), num_in=2**23, num_out=2**20)
    with pytest.raises(InputError, match=r"8388608 voxels under a kernel of \[27, 128, 64\]"):
        torchsparse_engine.convolve(x.feats, torch.empty(27, 128, 64, device="meta"), large)


def test_installed_torchsparse_can_be_used(torchsparse: FakeTorchsparse) -> None:
    assert torchsparse_engine.available() is None


def test_absent_torchsparse_is_explained_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchsparse", None)
    x = scan()
    with use_engine("torchsparse"), pytest.raises(InputError) as error:
        Conv3d(3, 4, 3)(x)
    message = str(error.value)
    assert "torchsparse is not installed" in message
    assert "pip install" in message and "git+https://github.com/mit-han-lab/torchsparse.git@385f5ce" in message
    assert all(version in message for version in ("2.1.0", "torch 2.2 and CUDA 12.1", "torch 2.6", "not been run"))
    assert "'triton' or 'torch'" in message


def test_features_that_torchsparse_cannot_take_are_explained(
    torchsparse: FakeTorchsparse, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = scan()
    with use_engine("torchsparse"), pytest.raises(InputError, match="CUDA only, and the features are on cpu"):
        Conv3d(3, 4, 3)(x)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "mine")
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "default")
    on_gpu = {"is_cuda": True, "device": "cuda:0"}
    double: Any = SimpleNamespace(dtype=torch.float64, **on_gpu)
    assert "no kernels for torch.float64" in str(torchsparse_engine.unusable(double))
    single: Any = SimpleNamespace(dtype=torch.float32, **on_gpu)
    assert "default stream" in str(torchsparse_engine.unusable(single))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "default")
    assert torchsparse_engine.unusable(single) is None


def test_other_builds_of_torchsparse_are_explained(
    torchsparse: FakeTorchsparse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["torchsparse"], "__version__", "2.0.0b0")
    assert "torchsparse 2.0.0b0 is installed, and only 2.1" in str(torchsparse_engine.available())
    monkeypatch.setattr(sys.modules["torchsparse"], "__version__", "2.1.0")
    monkeypatch.delattr(sys.modules["torchsparse.backend"], "GPUHashTable")
    assert "built without CUDA" in str(torchsparse_engine.available())


@pytest.mark.parametrize(("gpu", "said"), [(True, "OSError: undefined symbol"), (False, "torch sees no GPU")])
def test_a_torchsparse_that_does_not_import_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, said: str
) -> None:
    (tmp_path / "torchsparse.py").write_text('raise OSError("undefined symbol")\n')
    monkeypatch.delitem(sys.modules, "torchsparse", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert said in str(torchsparse_engine.available())


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself, without TF32."""
    backends = pytest.importorskip("torchsparse", exc_type=ImportError).backends
    monkeypatch.setattr(backends, "allow_tf32", False)
    reason = torchsparse_engine.available()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.cuda
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("channels", [5, 32])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "transposed"), [(3, 1, False), (2, 2, False), (2, 2, True), (3, 2, False), (1, 2, False)]
)
def test_cuda_layers_and_gradients_are_those_of_the_torch_engine(
    kernel_size: int, stride: int, transposed: bool, channels: int
) -> None:
    x = scan()
    on_gpu = SparseTensor(x.feats.detach().cuda(), x.coords.cuda())
    kernel_map = map_of(on_gpu, kernel_size, stride)
    if transposed:
        kernel_map = kernel_map.reversed
    feats = torch.randn(kernel_map.num_in, channels, generator=torch.Generator().manual_seed(3)).cuda().requires_grad_()
    kernel = random_kernel(kernel_size, channels, 16).detach().cuda().requires_grad_()
    results = []
    for engine in (torch_engine, torchsparse_engine):
        out = engine.convolve(feats, kernel, kernel_map)
        results.append((out, *torch.autograd.grad(out.square().sum(), [feats, kernel])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4 * float(ours.detach().abs().max()))


@pytest.mark.cuda
@pytest.mark.usefixtures("real")
def test_cuda_minkunet34_features_and_gradients_are_those_of_the_torch_engine() -> None:
    from clever3d.backbones import create_backbone
    from clever3d.datasets.synthetic import street_scan

    street = street_scan(azimuth_steps=512)
    torch.manual_seed(0)
    backbone = create_backbone("minkunet34").cuda().eval()
    kernels = [p for name, p in backbone.named_parameters() if name.endswith("kernel")]
    results = []
    for engine in ("torch", "torchsparse"):
        with use_engine(engine):
            features = backbone.extract(street.xyz, street.intensity).features
            x = scan(channels=len(backbone.input_spec.channels))
            y = backbone(SparseTensor(x.feats.detach().cuda(), x.coords.cuda()))[-1]
            results.append((features, *torch.autograd.grad(y.feats.square().mean(), kernels)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-3 * float(ours.detach().abs().max()))
