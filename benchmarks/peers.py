"""The same MinkUNet, with the same weights, in other libraries' layers.

    python benchmarks/peers.py        says which peers can be had here, and why the others cannot

spconv        its CPU wheel, inference at one thread (above one its results are wrong, and it cannot train there), or a
              CUDA build of it
spconv-triton on CUDA. Its autocast knows float16 only, so half precision is asked of it as its README says, by weights
              in that type; in training they are cast anew in each step from float32, as autocast does for ours
torchsparse   through our own engine of that name, on CUDA. It has no bfloat16, so float16 stands in for it
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from clever3d.backbones import Backbone
from clever3d.backbones.minkunet import BatchNorm, ConvSequence, MinkUNet, ReLU, ResidualBlock
from clever3d.errors import InputError
from clever3d.evaluate.speed import PRECISIONS, Peer, Runner, precision
from clever3d.sparse import Conv3d, ConvTranspose3d, SparseTensor, available_engines, use_engine

#: Mean difference of features, in their standard deviations, that rounding explains (our choice; benchmarks/numerics.py
#: has what is seen).
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}
_COARSEST = 16  # stride


def find_peers(backbone: Backbone, name: str) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run this network on its device in this precision, and for each of the others why not."""
    found: list[Peer] = []
    absent: dict[str, str] = {}
    makers: dict[str, Callable[[Backbone, str], Peer | str]] = {
        "spconv": _spconv,
        "spconv-triton": _spconv_triton,
        "torchsparse": _torchsparse,
    }
    for peer, make in makers.items():
        try:
            made = make(backbone, name)
        except Exception as error:  # a library that is half installed may raise anything
            made = f"{type(error).__name__}: {error}"
        if isinstance(made, str):
            absent[peer] = made
        else:
            found.append(made)
    return found, absent


def _spconv(backbone: Backbone, name: str) -> Peer | str:
    try:
        library = importlib.import_module("spconv.pytorch")
    except ImportError as error:
        return f"not installed ({error}): pip install spconv"
    version = f"spconv {importlib.import_module('spconv').__version__}"
    if importlib.import_module("spconv.cppconstants").CPU_ONLY_BUILD:
        if backbone.device.type != "cpu":
            return f"{version} here is its CPU wheel, and the device is {backbone.device}"
        if name != "float32":
            return f"the CPU code of {version} has float32 only"
        return _peer(f"{version} (1 thread)", library, backbone, name, threads=1, trains=False)
    if backbone.device.type == "cpu":
        return f"{version} here is a CUDA build, whose CPU code is not meant for use"
    importlib.import_module("spconv.constants").SPCONV_ALLOW_TF32 = name == "tf32"
    return _peer(version, library, backbone, name)


def _spconv_triton(backbone: Backbone, name: str) -> Peer | str:
    if backbone.device.type != "cuda":
        return f"it runs on a GPU only, and the device is {backbone.device}"
    try:
        library = importlib.import_module("spconv_triton.pytorch")
    except ImportError as error:
        return f"not installed ({error}): pip install spconv-triton"
    package = importlib.import_module("spconv_triton")
    package.constants.SPCONV_ALLOW_TF32 = name == "tf32"
    return _peer(f"spconv-triton {package.__version__}", library, backbone, name)


def _torchsparse(backbone: Backbone, name: str) -> Peer | str:
    reason = available_engines(backbone.device, PRECISIONS[name])["torchsparse"]
    if reason is not None:
        return reason
    used = "float16" if name == "bfloat16" else name
    runner = Runner(backbone, used)

    def forward(cloud: SparseTensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with use_engine("torchsparse"):
                return runner.forward(cloud)[1]

        return run

    def training(cloud: SparseTensor) -> Callable[[], object]:
        def run() -> float:
            with use_engine("torchsparse"):
                return runner.training(cloud)

        return run

    label = "torchsparse" if used == name else f"torchsparse ({used})"
    return Peer(label, forward, training, tolerance=TOLERANCES[name])


def _peer(
    label: str, library: ModuleType, backbone: Backbone, name: str, *, threads: int | None = None, trains: bool = True
) -> Peer:
    """The network in the layers of spconv, or of a library with the same interface."""
    network = build(library, backbone)
    dtype = PRECISIONS[name]
    ready = _with_kernels(copy.deepcopy(network), dtype).eval()
    trained = network.train() if trains else None

    def forward(cloud: SparseTensor) -> Callable[[], Tensor]:
        tensor = as_spconv(library, cloud, dtype)

        def run() -> Tensor:
            with torch.no_grad(), _products(name, backbone.device):
                finest: Tensor = ready(tensor()).features
            return finest

        return run

    def training(cloud: SparseTensor) -> Callable[[], object]:
        assert trained is not None
        tensor = as_spconv(library, cloud, dtype)

        def run() -> None:
            trained.zero_grad(set_to_none=True)
            with _products(name, backbone.device):
                cast = {key: value.to(dtype) for key, value in trained.named_parameters() if value.ndim == 5}
                finest = torch.func.functional_call(trained, cast, (tensor(),)).features
                finest.backward(torch.ones_like(finest))

        return run

    return Peer(label, forward, training if trains else None, threads, TOLERANCES[name])


def _products(name: str, device: torch.device) -> Any:
    """TF32 where it is asked for; no autocast."""
    return precision(name if name == "tf32" else "float32", device)


def _with_kernels(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with its kernels in another type; what is normalised stays in float32."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(dtype)
    return network


def as_spconv(library: ModuleType, cloud: SparseTensor, dtype: torch.dtype) -> Callable[[], Any]:
    """What makes the cloud anew, without anything derived from it; rows and axes (batch, x, y, z) stay as they are.

    spconv knows no negative coordinates and has a spatial extent: the cloud is moved by whole voxels of the coarsest
    grid, so that the voxels of all grids are the same as ours.
    """
    low = torch.div(cloud.coords[:, 1:].amin(0), _COARSEST, rounding_mode="floor") * _COARSEST  # [3]
    move = torch.cat([low.new_zeros(1), low])
    indices = (cloud.coords - move).int().contiguous()  # [V, 4]
    shape = [(int(high) // _COARSEST + 1) * _COARSEST for high in indices[:, 1:].amax(0)]
    feats = cloud.feats.to(dtype)
    return functools.partial(library.SparseConvTensor, feats, indices, shape, cloud.num_scans)


def build(library: ModuleType, backbone: Backbone) -> nn.Module:
    """Our network in spconv's layers, with its weights, on its device.

    Raises:
        InputError: it is no MinkUNet.
    """
    from clever3d.zoo.convert import convert_state

    if not isinstance(backbone, MinkUNet):
        raise InputError(f"only a MinkUNet can be built in spconv's layers, not a {type(backbone).__name__}")
    network = _MinkUNet(library, backbone)
    network.load_state_dict(convert_state(backbone.state_dict(), "clever3d", "spconv", axes="xyz"))
    return network.to(backbone.device)


class _MinkUNet(nn.Module):
    """Module by module what `clever3d.backbones.MinkUNet` is; the names are the same. Level n has stride 2^n."""

    def __init__(self, library: ModuleType, ours: MinkUNet) -> None:
        super().__init__()
        self.stem = _sequence(library, ours.stem, 0)
        self.encoders = nn.ModuleList()
        for level, encoder in enumerate(ours.encoders):
            down, *blocks = encoder  # type: ignore[misc]
            parts = [_sequence(library, down, level), *(_Residual(library, block, level + 1) for block in blocks)]
            self.encoders.append(nn.Sequential(*parts))
        self.decoders = nn.ModuleList()
        for level, decoder in zip((3, 2, 1, 0), ours.decoders, strict=True):
            up = _sequence(library, decoder["upsample"], level)  # type: ignore[index]
            fuse = nn.Sequential(*(_Residual(library, block, level) for block in decoder["fuse"]))  # type: ignore[index]
            self.decoders.append(nn.ModuleDict({"upsample": up, "fuse": fuse}))

    def forward(self, x: Any) -> Any:
        down = [self.stem(x)]
        for encoder in self.encoders:
            down.append(encoder(down[-1]))
        out = down.pop()
        for decoder in self.decoders:
            up = decoder["upsample"](out)  # type: ignore[index]
            out = decoder["fuse"](up.replace_feature(torch.cat([up.features, down.pop().features], dim=1)))  # type: ignore[index]
        return out


class _Residual(nn.Module):
    def __init__(self, library: ModuleType, ours: ResidualBlock, level: int) -> None:
        super().__init__()
        self.main = _sequence(library, ours.main, level)
        plain = isinstance(ours.shortcut, nn.Identity)
        self.shortcut = nn.Identity() if plain else _sequence(library, ours.shortcut, level)

    def forward(self, x: Any) -> Any:
        y = self.main(x)
        return y.replace_feature(torch.relu(y.features + self.shortcut(x).features))


def _sequence(library: ModuleType, ours: ConvSequence, level: int) -> nn.Module:
    sequence: nn.Module = library.SparseSequential(*(_layer(library, layer, level) for layer in ours))
    return sequence


def _layer(library: ModuleType, ours: nn.Module, level: int) -> nn.Module:
    """``level`` is the finer one that the layer touches; layers on the same voxels share their pairs by its key."""
    layer: nn.Module
    if isinstance(ours, BatchNorm):
        layer = nn.BatchNorm1d(ours.num_features, eps=ours.eps, momentum=ours.momentum)
    elif isinstance(ours, ReLU):
        layer = nn.ReLU(inplace=True)
    elif isinstance(ours, (Conv3d, ConvTranspose3d)):
        channels, size = (ours.in_channels, ours.out_channels), ours.kernel_size[0]
        if isinstance(ours, ConvTranspose3d):
            layer = library.SparseInverseConv3d(*channels, size, indice_key=f"down{level}", bias=False)
        elif ours.stride == (1, 1, 1):
            layer = library.SubMConv3d(*channels, size, indice_key=f"same{level}, {size}", bias=False)
        else:
            layer = library.SparseConv3d(*channels, size, stride=2, indice_key=f"down{level}", bias=False)
    else:
        raise InputError(f"{type(ours).__name__} has no equal in spconv")
    return layer


def main() -> None:
    from clever3d.backbones import create_backbone

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = create_backbone("minkunet18", width=0.25).to(device)
    for name in ("float32", "bfloat16"):
        found, absent = find_peers(backbone, name)
        print(f"{device}, {name}:")
        for peer in found:
            print(f"  {peer.name}")
        for peer_name, reason in absent.items():
            print(f"  no {peer_name}: {reason}")


if __name__ == "__main__":
    main()
