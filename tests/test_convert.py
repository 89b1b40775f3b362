"""Conversion of checkpoints: each kernel layout is held to the other library's own rule, one weight at a time.

The rules stand here a second time, as the other libraries state them, and not through the code under test. For spconv
there is also a file written by spconv itself (tests/make_spconv_golden.py) and, where it is installed, spconv.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_spconv_golden import GOLDEN, compute, one_hot_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import clever3d
from clever3d.backbones import Backbone, InputSpec, create_backbone
from clever3d.cli import app
from clever3d.errors import CheckpointError, Clever3dError, DataError, InputError
from clever3d.sparse import Conv3d, ConvTranspose3d, SparseTensor
from clever3d.sparse.layouts import convert_kernel
from clever3d.zoo import save_checkpoint
from clever3d.zoo.convert import convert_file, convert_state

REPOSITORY = Path(__file__).resolve().parents[1]
Offset = tuple[int, int, int]
FOREIGN = [("minkowski", "zyx"), ("spconv", "zyx"), ("spconv", "xyz")]
EVERY = [("torchsparse", "zyx"), *FOREIGN]
LAYERS = [("subm", 3, 1), ("down", 2, 2), ("down", 3, 2), ("up", 2, 2), ("up", 3, 2)]


# The rules of the other libraries


def minkowski_offset(k: int, size: int) -> Offset:
    """Offset of slice k: as MinkowskiEngine 0.5.4, src/kernel_region.hpp, coordinate_at, for a tensor stride of 1."""
    offset = []
    for _ in range(3):
        step = k % size
        offset.append(step if size % 2 == 0 else step - size // 2)
        k //= size
    return offset[0], offset[1], offset[2]


def spconv_offset(place: Offset, size: int, axes: str) -> Offset:
    """Offset (x, y, z) of the weights [:, a, b, c, :]: a dense convolution's with padding (size - 1) // 2."""
    by_axis = {axis: place[n] - (size - 1) // 2 for n, axis in enumerate(axes)}
    return by_axis["x"], by_axis["y"], by_axis["z"]


def one_hot(layout: str, axes: str, size: int) -> Iterator[tuple[Tensor, Offset]]:
    """Kernels of a library with a single 1, from input channel 1 to output channel 2, and the offset it is for."""
    if layout == "minkowski":
        for k in range(size**3):
            kernel = torch.zeros(size**3, 2, 3)
            kernel[k, 1, 2] = 1
            yield kernel, minkowski_offset(k, size)
    else:
        places = itertools.product(range(size), repeat=3)
        for weight, place in zip(one_hot_weights(size), places, strict=True):
            yield weight, spconv_offset(place, size, axes)  # type: ignore[arg-type]


def voxels(seed: int = 0) -> SparseTensor:
    """Two scans around the origin, with distinct features that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(2, 7, 8, 9, generator=generator) < 0.3).nonzero() - torch.tensor([0, 3, 4, 5])
    feats = torch.randperm(2 * len(coords), generator=generator).view(-1, 2) + 1.0
    return SparseTensor(feats, coords.int())


def our_layer(kind: str, size: int, stride: int, kernel: Tensor, bias: Tensor | None = None) -> nn.Module:
    layer = (ConvTranspose3d if kind == "up" else Conv3d)(*kernel.shape[-2:], size, stride, bias=bias is not None)
    layer.load_state_dict({"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias})
    return layer


def our_output(
    kind: str, size: int, stride: int, kernel: Tensor, fine: SparseTensor
) -> tuple[SparseTensor, SparseTensor]:
    """Input and output of one of our layers with that kernel; the input of a transposed one is the coarse level."""
    x = fine
    if kind == "up":
        coarse = Conv3d(2, 2, size, stride)(fine)
        x = coarse.with_feats(torch.arange(2.0 * len(coarse)).view(-1, 2) + 1)
    with torch.no_grad():
        y = our_layer(kind, size, stride, kernel)(x)
    return x, y


def moved(kind: str, stride: int, x: SparseTensor, at: Tensor, offset: Offset) -> Tensor:
    """What a one-hot kernel gives at the voxels ``at``: [V, 3], in channel 2 channel 1 of the voxel at the offset."""
    lookup = {tuple(c): float(f) for c, f in zip(x.coords.tolist(), x.feats[:, 1], strict=True)}
    out = torch.zeros(len(at), 3)
    for row, (batch, *xyz) in enumerate(at.tolist()):
        if kind == "up":  # out[stride * i + offset] += in[i]
            back = [c - o for c, o in zip(xyz, offset, strict=True)]
            source = None if any(c % stride for c in back) else (batch, *(c // stride for c in back))
        else:  # out[o] = in[stride * o + offset]
            source = (batch, *(stride * c + o for c, o in zip(xyz, offset, strict=True)))
        out[row, 2] = lookup.get(source, 0.0) if source else 0.0
    return out


@pytest.mark.parametrize(("kind", "size", "stride"), LAYERS)
@pytest.mark.parametrize(("layout", "axes"), FOREIGN)
def test_every_single_weight_of_another_library_acts_at_its_offset(
    layout: str, axes: str, kind: str, size: int, stride: int
) -> None:
    fine = voxels()
    seen = set()
    for kernel, offset in one_hot(layout, axes, size):
        ours = convert_kernel(kernel, layout, "clever3d", axes=axes)
        x, y = our_output(kind, size, stride, ours, fine)
        expected = moved(kind, stride, x, y.coords, offset)
        assert expected.any()
        torch.testing.assert_close(y.feats, expected, rtol=0, atol=0)
        seen.add(offset)
    assert len(seen) == size**3


@pytest.mark.parametrize(("kind", "size", "stride"), LAYERS)
@pytest.mark.parametrize(("layout", "axes"), FOREIGN)
def test_every_single_weight_of_ours_stands_at_its_offset_in_another_library(
    layout: str, axes: str, kind: str, size: int, stride: int
) -> None:
    fine = voxels(1)
    for k in range(size**3):
        ours = torch.zeros(size**3, 2, 3)
        ours[k, 1, 2] = 1
        theirs = convert_kernel(ours, "clever3d", layout, axes=axes)
        (offset,) = [where for kernel, where in one_hot(layout, axes, size) if torch.equal(kernel, theirs)]
        x, y = our_output(kind, size, stride, ours, fine)
        torch.testing.assert_close(y.feats, moved(kind, stride, x, y.coords, offset), rtol=0, atol=0)


# spconv itself: the file that it wrote, and the library where it is installed


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays}


def turned(indices: Tensor, axes: str) -> Tensor:
    """spconv's indices as our coordinates (batch, x, y, z), their three columns being called ``axes``."""
    return indices[:, [0, *(1 + axes.index(axis) for axis in "xyz")]].int()


def at_rows(y: SparseTensor, coords: Tensor) -> Tensor:
    """Features of y in the order of these coordinates."""
    row = {tuple(c): n for n, c in enumerate(y.coords.tolist())}
    assert len(row) == len(coords)
    return y.feats[[row[tuple(c)] for c in coords.tolist()]]


@pytest.mark.parametrize("axes", ["zyx", "xyz"])
@pytest.mark.parametrize(("kind", "name", "size"), [("subm", "subm3", 3), ("down", "down2", 2), ("up", "up2", 2)])
def test_one_hot_outputs_are_those_that_spconv_wrote(
    golden: dict[str, Tensor], kind: str, name: str, size: int, axes: str
) -> None:
    fine = SparseTensor(golden["feats"], turned(golden["indices"], axes))
    coarse_coords = turned(golden["coarse_indices"], axes)
    stride = 1 if kind == "subm" else 2
    outputs = golden[name]
    assert len(outputs) == size**3
    assert len(outputs.flatten(1).unique(dim=0)) == size**3
    for weight, expected in zip(one_hot_weights(size), outputs, strict=True):
        layer = our_layer(kind, size, stride, convert_kernel(weight, "spconv", "clever3d", axes=axes))
        with torch.no_grad():
            if kind == "up":
                coarse = Conv3d(2, 2, 2, 2)(fine)
                feats = at_rows(SparseTensor(golden["coarse_feats"], coarse_coords), coarse.coords)
                y = layer(coarse.with_feats(feats))
            else:
                y = layer(fine)
        given = at_rows(y, coarse_coords if kind == "down" else fine.coords)
        torch.testing.assert_close(given, expected, rtol=0, atol=0)


@pytest.mark.parametrize("axes", ["zyx", "xyz"])
@pytest.mark.parametrize(("name", "size"), [("subm1", 1), ("dense3", 3)])
def test_layers_with_bias_compute_what_spconv_wrote(golden: dict[str, Tensor], name: str, size: int, axes: str) -> None:
    """Size 1 is spconv's odd case: its memory is [Cin, Cout], whatever its shape says."""
    state = {"weight": golden[f"{name}_weight"], "bias": golden[f"{name}_bias"]}
    converted = convert_state(state, "spconv", "clever3d", axes=axes)
    x = SparseTensor(golden["feats"], turned(golden["indices"], axes))
    with torch.no_grad():
        y = our_layer("subm", size, 1, **converted)(x)
    torch.testing.assert_close(y.feats, golden[name], rtol=0, atol=0)


@pytest.fixture()
def spconv() -> Iterator[Any]:
    """The real library, on one thread: on more its CPU code gives wrong sums."""
    library = pytest.importorskip("spconv.pytorch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield library
    torch.set_num_threads(threads)


def test_installed_spconv_gives_the_golden_file(spconv: Any, golden: dict[str, Tensor]) -> None:
    again = compute()
    assert again.keys() == golden.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, golden[name].numpy(), err_msg=name)


@pytest.mark.parametrize("axes", ["zyx", "xyz"])
def test_our_weights_compute_the_same_in_spconv(spconv: Any, axes: str) -> None:
    """Down, a convolution of each size on either level, and up again, with biases and batch norm between."""
    generator = torch.Generator().manual_seed(3)
    norm = nn.BatchNorm1d(6)
    ours = nn.ModuleDict(
        {
            "stem": Conv3d(4, 6, 3, bias=True),
            "norm": norm,
            "down": Conv3d(6, 8, 2, 2, bias=True),
            "same": Conv3d(8, 8, 1, bias=True),
            "mix": Conv3d(8, 5, 1),
            "up": ConvTranspose3d(5, 7, 2, 2, bias=True),
        }
    )
    key = {"indice_key": "down"}
    theirs = nn.ModuleDict(
        {
            "stem": spconv.SubMConv3d(4, 6, 3),
            "norm": nn.BatchNorm1d(6),
            "down": spconv.SparseConv3d(6, 8, 2, 2, **key),
            "same": spconv.SubMConv3d(8, 8, 1),
            "mix": spconv.SubMConv3d(8, 5, 1, bias=False),
            "up": spconv.SparseInverseConv3d(5, 7, 2, **key),
        }
    )
    with torch.no_grad():
        for tensor in ours.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        norm.running_var += 1
    state = convert_state(ours.state_dict(), "clever3d", "spconv", axes=axes)
    theirs.load_state_dict(state, strict=True)
    indices = (torch.rand(2, 6, 8, 10, generator=generator) < 0.3).nonzero().int().contiguous()
    feats = torch.randn(len(indices), 4, generator=generator)
    ours["norm"].eval()
    theirs["norm"].eval()
    x: Any = SparseTensor(feats, turned(indices, axes))
    y: Any = spconv.SparseConvTensor(feats, indices, [6, 8, 10], 2)
    with torch.no_grad():
        for name, layer in ours.items():
            x = x.with_feats(layer(x.feats)) if name == "norm" else layer(x)
            other = theirs[name]
            y = y.replace_feature(other(y.features)) if name == "norm" else other(y)
            torch.testing.assert_close(
                at_rows(x, turned(y.indices, axes)), y.features, msg=lambda m, n=name: f"{n}: {m}"
            )
    back = convert_state(theirs.state_dict(), "spconv", "clever3d", axes=axes)
    assert_same(back, ours.state_dict())


# State dicts


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def network(seed: int = 0, **options: Any) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = create_backbone("minkunet18", width=0.05, **options)
        for buffer in backbone.buffers():
            if buffer.is_floating_point():
                buffer += torch.rand(buffer.shape)
        return backbone.eval()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(network().state_dict())


@pytest.mark.parametrize(("layout", "axes"), EVERY)
def test_there_and_back_gives_the_same_network(state: dict[str, Tensor], layout: str, axes: str) -> None:
    theirs = convert_state(state, "clever3d", layout, axes=axes)
    assert_same(convert_state(theirs, layout, "clever3d", axes=axes), state)
    through = convert_state(convert_state(theirs, layout, "minkowski", axes=axes), "minkowski", layout, axes=axes)
    assert_same(through, theirs)


def test_torchsparse_is_our_own_layout(state: dict[str, Tensor]) -> None:
    assert_same(convert_state(state, "torchsparse", "clever3d"), state)


def test_other_libraries_differ_where_they_do(state: dict[str, Tensor]) -> None:
    """MinkowskiEngine's odd kernels are ours, its even ones are not; spconv's two orders of axes differ for both."""
    minkowski = convert_state(state, "clever3d", "minkowski")
    assert {name for name in state if not torch.equal(state[name], minkowski[name])} == {
        name for name in state if state[name].ndim == 3 and len(state[name]) == 8
    }
    zyx, xyz = (convert_state(state, "clever3d", "spconv", axes=axes) for axes in ("zyx", "xyz"))
    assert {name for name in zyx if not torch.equal(zyx[name], xyz[name])} == {
        name for name in zyx if zyx[name].ndim == 5 and zyx[name].shape[1] > 1
    }


def test_only_kernels_and_their_names_change_for_spconv(state: dict[str, Tensor]) -> None:
    theirs = convert_state({**state, "head.weight": torch.rand(19, 4)}, "clever3d", "spconv")
    assert theirs["stem.0.weight"].shape == (1, 3, 3, 3, 8)
    assert theirs["encoders.2.0.0.weight"].shape[1:4] == (2, 2, 2)
    assert theirs["encoders.1.1.shortcut.0.weight"].shape[1:4] == (1, 1, 1)
    assert theirs["head.weight"].shape == (19, 4)
    for name, tensor in state.items():
        if not name.endswith(".kernel"):
            assert theirs[name] is tensor
    assert all(tensor.is_contiguous() for tensor in theirs.values())


def test_bias_has_two_axes_in_minkowskiengine_only() -> None:
    state = {"a.kernel": torch.rand(27, 2, 3), "a.bias": torch.rand(3), "norm.bias": torch.rand(3)}
    theirs = convert_state(state, "clever3d", "minkowski")
    assert (theirs["a.bias"].shape, theirs["norm.bias"].shape) == ((1, 3), (3,))
    assert_same(convert_state(theirs, "minkowski", "clever3d"), state)
    assert convert_state(theirs, "minkowski", "spconv")["a.bias"].shape == (3,)


def test_strided_kernel_of_size_1_in_minkowskiengine_loses_its_first_axis() -> None:
    kernel = torch.rand(1, 2, 3)
    assert torch.equal(convert_kernel(kernel, "minkowski", "clever3d"), kernel[0])
    assert torch.equal(convert_kernel(kernel, "minkowski", "minkowski"), kernel)
    with pytest.raises(InputError, match="stride above 1"):
        convert_kernel(kernel, "minkowski", "spconv")


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize(("layout", "axes"), FOREIGN)
def test_larger_kernels_are_converted_where_the_offsets_are_the_same(layout: str, axes: str, size: int) -> None:
    kernel = torch.rand(size**3, 2, 3)
    if (layout, size) == ("minkowski", 4):  # 0 .. 3 there, -1 .. 2 here
        with pytest.raises(InputError, match=r"-1 \.\. 2.*0 \.\. 3"):
            convert_kernel(kernel, "clever3d", layout)
        return
    theirs = convert_kernel(kernel, "clever3d", layout, axes=axes)
    assert torch.equal(convert_kernel(theirs, layout, "clever3d", axes=axes), kernel)


FLAT = {"a.kernel": torch.rand(27, 2, 3)}
CUBE = {"a.weight": torch.rand(3, 3, 3, 3, 2)}


@pytest.mark.parametrize(
    ("state", "source", "target", "message"),
    [
        (FLAT, "spconv", "clever3d", "a.kernel .*torchsparse's or MinkowskiEngine's"),
        (CUBE, "clever3d", "spconv", "a.weight .*spconv's"),
        (CUBE, "minkowski", "spconv", "a.weight .*spconv's"),
        ({**FLAT, **CUBE}, "clever3d", "spconv", "a.weight .*--drop"),
        ({"a.weight": torch.rand(3, 2)}, "clever3d", "spconv", r"no kernel of clever3d .*a\.weight \[3, 2\]"),
        ({"a.weight": torch.rand(3, 2)}, "spconv", "clever3d", "no kernel of spconv"),
        ({}, "spconv", "clever3d", "among 0 tensors"),
        ({"a.kernel": torch.rand(9, 2, 3)}, "torchsparse", "spconv", "a.kernel: .*9 slices.*no cube.*volume"),
        ({"a.kernel": torch.rand(0, 2, 3)}, "torchsparse", "spconv", "0 slices"),
        ({"a.kernel": torch.rand(3)}, "torchsparse", "spconv", r"a.kernel: shape \[3\]"),
        ({"a.kernel": torch.rand(3, 3, 3, 2)}, "minkowski", "spconv", r"shape \[3, 3, 3, 2\]"),
        ({"a.kernel": torch.rand(1, 2, 3)}, "torchsparse", "spconv", "MinkowskiEngine has"),
        ({"a.weight": torch.rand(16, 3, 1, 1, 8)}, "spconv", "clever3d", "a.weight: .*not a cubic kernel"),
        ({"a.weight": torch.rand(3, 3, 3, 8, 16)}, "spconv", "clever3d", "SPCONV_SAVED_WEIGHT_LAYOUT"),
        ({**FLAT, "a.bias": torch.rand(1, 3)}, "torchsparse", "spconv", "a.bias .*MinkowskiEngine"),
        ({**FLAT, "a.bias": torch.rand(3)}, "minkowski", "spconv", "a.bias .*elsewhere"),
        ({**FLAT, "a.weight": torch.rand(3)}, "clever3d", "spconv", "would be called a.weight"),
        ({"a.kernel": torch.rand(64, 2, 3)}, "minkowski", "clever3d", "a.kernel: size 4 covers 0 .. 3"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_a_reason(
    state: dict[str, Tensor], source: str, target: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_state(state, source, target)


@pytest.mark.parametrize("options", [{"source": "torch"}, {"target": "torch"}, {"axes": "yzx"}])
def test_unknown_layout_and_axes_are_named(options: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"'(torch|yzx)'.*(minkowski, spconv|zyx, xyz)"):
        convert_state(FLAT, **{"source": "clever3d", "target": "spconv", **options})


# Files


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def metadata_of(path: str) -> dict[str, str]:
    with safe_open(path, framework="pt") as opened:
        return dict(opened.metadata() or {})


SPVNAS_PARTS = [("main", "net"), ("shortcut", "downsample")]


def spvnas_name(name: str) -> str:
    """SPVNAS's name of a parameter of ours, from the table in clever3d/backbones/minkunet.py, read the other way."""
    parts = name.split(".")
    if parts[0] == "stem":
        return name
    for ours, theirs in SPVNAS_PARTS:
        parts = [theirs if part == ours else part for part in parts]
    stage = int(parts[1]) + 1
    if parts[0] == "encoders":
        rest = ["0", "net", *parts[3:]] if parts[2] == "0" else parts[2:]
        return ".".join([f"stage{stage}", *rest])
    rest = ["0", "net", *parts[3:]] if parts[2] == "upsample" else ["1", *parts[3:]]
    return ".".join([f"up{stage}", *rest])


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".tar", ".safetensors"])
@pytest.mark.parametrize(("layout", "axes"), EVERY)
def test_checkpoint_of_another_library_becomes_a_backbone(layout: str, axes: str, ending: str) -> None:
    """A whole network, as a training script leaves it, to the file that load_backbone takes at once."""
    spec = InputSpec(channels=("dx", "dy", "dz", "intensity"), voxel_size=0.05)
    backbone = create_backbone("minkunet_small", input_spec=spec).eval()
    theirs = convert_state(backbone.state_dict(), "clever3d", layout, axes=axes)
    if ending == ".safetensors":
        save_file(theirs, "in.safetensors")
    else:
        wrapped = {f"module.{name}": tensor for name, tensor in theirs.items()}
        torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, f"in{ending}")
    done = convert_file(
        f"in{ending}",
        "out.safetensors",
        layout,
        "clever3d",
        axes=axes,
        architecture="minkunet_small",
        channels=spec.channels,
        voxel_size=0.05,
    )
    assert (done.kernels, done.tensors, done.architecture) == (
        sum(name.endswith(".kernel") for name in backbone.state_dict()),
        len(theirs),
        "minkunet_small",
    )
    loaded = clever3d.load_backbone("out.safetensors")
    assert loaded.input_spec == spec
    assert_same(dict(loaded.state_dict()), dict(backbone.state_dict()))


@pytest.mark.parametrize(
    "content",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 1},
        lambda state: {"model_state_dict": state},
        lambda state: {"model_points": state, "model_images": {"conv1.weight": torch.rand(2, 2)}},
        lambda state: {"network": {"state_dict": state}},
        lambda state: {f"module.module.{name}": tensor for name, tensor in state.items()},
    ],
)
def test_state_dict_is_found_in_the_usual_places(content: Any, state: dict[str, Tensor]) -> None:
    torch.save(content(state), "in.pt")
    convert_file("in.pt", "out.safetensors", "torchsparse", "clever3d")
    assert_same(load_file("out.safetensors"), state)
    assert metadata_of("out.safetensors") == {"kernel_order": "torchsparse"}


class _Runs:
    """Unpickled by a careless reader, this writes a file."""

    def __reduce__(self) -> Any:
        return os.system, ("touch it-ran",)


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_pickle_that_runs_code_is_refused_and_does_not_run(protocol: str) -> None:
    content = {"state_dict": FLAT, "config": _Runs()}
    if protocol == "torch":
        torch.save(content, "in.pt")
    else:
        Path("in.pt").write_bytes(pickle.dumps({"config": _Runs()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"needs code \(\w+\.system\).*not loaded.*state_dict\(\)"):
        convert_file("in.pt", "out.safetensors", "torchsparse", "clever3d")
    assert files() == ["in.pt"]


def test_files_that_hold_no_state_dict_are_refused() -> None:
    torch.save(FLAT, "whole.pt")
    Path("cut.pt").write_bytes(Path("whole.pt").read_bytes()[:-200])
    Path("empty.pt").touch()
    Path("text.pth").write_text("hello, this is no checkpoint")
    Path("cut.safetensors").write_bytes(b"12345678901")
    Path("weights.onnx").touch()
    Path("folder.pt").mkdir()
    torch.save([1, 2], "list.pt")
    torch.save({"epoch": 3, "params": FLAT}, "elsewhere.pt")
    torch.save({}, "nothing.pt")
    before = files()
    for name, message in [
        ("cut.pt", "cannot be read as a file of torch.save"),
        ("empty.pt", "cannot be read as a file of torch.save"),
        ("text.pth", "cannot be read as a file of torch.save"),
        ("cut.safetensors", "not a whole safetensors file"),
        ("weights.onnx", "ends in '.onnx'"),
        ("folder.pt", "is a folder"),
        ("nowhere.pt", "does not exist"),
        ("list.pt", "holds a list"),
        ("elsewhere.pt", "epoch, params there is no tensor"),
        ("nothing.pt", "nothing there"),
    ]:
        with pytest.raises(CheckpointError, match=message) as caught:
            convert_file(name, "out.safetensors", "torchsparse", "clever3d")
        assert name in str(caught.value)
    assert files() == before


def test_spvnas_names_and_a_dropped_classifier(state: dict[str, Tensor]) -> None:
    theirs = {spvnas_name(name): tensor for name, tensor in state.items()}
    assert len(theirs) == len(state) and "up4.1.0.downsample.0.kernel" in theirs
    torch.save(
        {"model": {**theirs, "classifier.0.weight": torch.rand(19, 4), "classifier.0.bias": torch.rand(19)}}, "in.pt"
    )
    convert_file("in.pt", "out.safetensors", "torchsparse", "clever3d", spvnas_names=True, drop=["classifier.*"])
    assert_same(load_file("out.safetensors"), state)
    with pytest.raises(CheckpointError, match="not those of SPVNAS"):
        convert_file("out.safetensors", "two.safetensors", "torchsparse", "clever3d", spvnas_names=True)
    with pytest.raises(CheckpointError, match="no name matches --drop 'head'"):
        convert_file("out.safetensors", "two.safetensors", "torchsparse", "clever3d", drop=["head"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("layout", "axes"), EVERY)
def test_our_checkpoint_comes_back_byte_for_byte(small: Backbone, dtype: torch.dtype, layout: str, axes: str) -> None:
    """Out to another library and home: the metadata travel along, the record of data and licence among them."""
    save_checkpoint(small, "ours.safetensors", record={"weights_licence": "CC0-1.0"}, dtype=dtype)
    convert_file("ours.safetensors", "theirs.safetensors", "clever3d", layout, axes=axes)
    assert json.loads(metadata_of("theirs.safetensors")["record"]) == {"weights_licence": "CC0-1.0"}
    if layout != "torchsparse":
        with pytest.raises(CheckpointError, match="kernel_order"):
            clever3d.load_backbone("theirs.safetensors")
    convert_file("theirs.safetensors", "home.safetensors", layout, "clever3d", axes=axes)
    assert Path("home.safetensors").read_bytes() == Path("ours.safetensors").read_bytes()


def test_file_that_names_its_layout_is_not_read_as_another(small: Backbone) -> None:
    save_checkpoint(small, "ours.safetensors")
    convert_file("ours.safetensors", "theirs.safetensors", "clever3d", "spconv", axes="xyz")
    with pytest.raises(CheckpointError, match="--from spconv --axes xyz"):
        convert_file("theirs.safetensors", "home.safetensors", "spconv", "clever3d")
    with pytest.raises(CheckpointError, match="--from torchsparse"):
        convert_file("ours.safetensors", "home.safetensors", "minkowski", "clever3d")


@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_plain_state_dict_for_another_library(state: dict[str, Tensor], ending: str) -> None:
    save_file(state, "in.safetensors")
    convert_file("in.safetensors", f"out{ending}", "clever3d", "spconv")
    theirs = torch.load(f"out{ending}", weights_only=True)
    assert_same(theirs, convert_state(state, "clever3d", "spconv"))
    assert Path(f"out{ending}").stat().st_size < 1.5 * Path("in.safetensors").stat().st_size


def test_wrong_network_is_refused_with_the_differences(small: Backbone) -> None:
    torch.save(small.state_dict(), "in.pt")
    for options, message in [
        ({"architecture": "minkunet34"}, r"does not fit minkunet34: \d+ missing.*--drop"),
        ({"architecture": "minkunet18"}, "mis-shaped"),
        ({"architecture": "minkunet18", "channels": ["dx", "dy"]}, "reads 8 input channels.*has 2 .*--channels"),
        ({"architecture": "minkunet18", "channels": ["red"]}, "channels .*red"),
        ({"architecture": "minkunet18", "voxel_size": 0.0}, "voxel_size 0.0"),
        ({"architecture": "minkunet19"}, "minkunet18"),
        ({"channels": ["dx"]}, "--architecture"),
    ]:
        with pytest.raises(Clever3dError, match=message):
            convert_file("in.pt", "out.safetensors", "torchsparse", "clever3d", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="target clever3d"):
        convert_file("in.pt", "out.pt", "torchsparse", "spconv", architecture="minkunet18")
    assert files() == ["in.pt"]


def test_stem_of_other_width_asks_for_the_channels() -> None:
    backbone = create_backbone("minkunet18", input_spec=InputSpec(channels=("dx", "dy", "dz", "intensity")))
    torch.save(backbone.state_dict(), "in.pt")
    with pytest.raises(CheckpointError, match=r"reads 4 input channels, the input spec has 8 .*--channels dx,dy"):
        convert_file("in.pt", "out.safetensors", "torchsparse", "clever3d", architecture="minkunet18")


def test_nothing_is_written_over_unless_asked(state: dict[str, Tensor]) -> None:
    torch.save(state, "in.pt")
    Path("out.safetensors").write_text("precious")
    with pytest.raises(DataError, match=r"out\.safetensors exists already.*--overwrite"):
        convert_file("in.pt", "out.safetensors", "torchsparse", "clever3d")
    with pytest.raises(CheckpointError):
        convert_file("in.pt", "out.safetensors", "spconv", "clever3d", overwrite=True)
    assert Path("out.safetensors").read_text() == "precious"
    convert_file("in.pt", "out.safetensors", "torchsparse", "clever3d", overwrite=True)
    assert_same(load_file("out.safetensors"), state)
    assert files() == ["in.pt", "out.safetensors"]


def test_file_may_be_converted_in_its_place(state: dict[str, Tensor]) -> None:
    save_file(state, "one.safetensors")
    convert_file("one.safetensors", "one.safetensors", "clever3d", "minkowski", overwrite=True)
    assert_same(load_file("one.safetensors"), convert_state(state, "clever3d", "minkowski"))


def test_failed_write_leaves_no_file(state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state, "in.pt")

    def full(self: Path, content: bytes) -> None:
        with self.open("wb") as half_written:
            half_written.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("out.safetensors", "out.pt"):
        with pytest.raises(DataError, match="No space left"):
            convert_file("in.pt", name, "torchsparse", "spconv")
    assert files() == ["in.pt"]


def test_tensors_that_share_memory_are_written_apart() -> None:
    table = torch.rand(4, 3)
    given = {**FLAT, "head.weight": table, "tied.weight": table, "row.weight": table[1:2], "turned.weight": table.mT}
    torch.save(given, "in.pt")
    convert_file("in.pt", "out.safetensors", "torchsparse", "clever3d")
    assert_same(load_file("out.safetensors"), given)


# The command


def run(*args: str | Path) -> tuple[int, str]:
    """Exit status and all output."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_command_converts_and_says_so(small: Backbone) -> None:
    theirs = convert_state(small.state_dict(), "clever3d", "spconv", axes="xyz")
    torch.save({"state_dict": theirs}, "in.ckpt")
    status, output = run(
        "convert", "in.ckpt", "out.safetensors", "--from", "spconv", "--to", "clever3d", "--axes", "xyz"
    )
    assert status == 0
    kernels = sum(name.endswith(".kernel") for name in small.state_dict())
    first, second = output.splitlines()
    for part in (f"{kernels} kernels", f"{len(theirs)} tensors", "from spconv to clever3d", "axes xyz"):
        assert part in first
    assert "out.safetensors" in second and "MB" in second
    assert_same(load_file("out.safetensors"), dict(small.state_dict()))


def test_command_writes_a_backbone_that_loads() -> None:
    spec = InputSpec(channels=("dx", "dy", "dz", "intensity"), voxel_size=0.05)
    backbone = create_backbone("minkunet_small", input_spec=spec).eval()
    theirs = {spvnas_name(name): tensor for name, tensor in backbone.state_dict().items()}
    torch.save({"model": {**theirs, "classifier.0.weight": torch.rand(19, 96)}}, "in.pt")
    command = ["convert", "in.pt", "out.safetensors", "--from", "torchsparse", "--to", "clever3d", "--names", "spvnas"]
    checked = [*command, "--architecture", "minkunet_small", "--voxel-size", "0.05"]
    for missing, message in [
        ([], "--channels dx,dy,dz,intensity"),
        (["--channels", "dx,dy,dz,intensity"], "1 unknown: classifier.0.weight. --names"),
    ]:
        status, output = run(*checked, *missing)
        assert (status, files()) == (2, ["in.pt"])
        assert message in output.replace("\n", " ")
    status, output = run(*checked, "--channels", "dx, dy, dz, intensity", "--drop", "classifier.*")
    assert status == 0 and "fits minkunet_small" in output
    loaded = clever3d.load_backbone("out.safetensors")
    assert loaded.input_spec == spec
    assert_same(dict(loaded.state_dict()), dict(backbone.state_dict()))
    status, output = run(*command, "--drop", "classifier.*")
    assert status == 2 and "--overwrite" in output
    assert run(*command, "--drop", "classifier.*", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.pt", "out.safetensors"], "nowhere.pt does not exist"),
        (["in.pt", "out.pt"], "must end in .safetensors"),
        (["in.pt", "no/out.safetensors"], "no folder no"),
        (["in.pt", "out.safetensors", "--from", "spconv"], "torchsparse's or MinkowskiEngine's"),
        (["in.pt", "out.safetensors", "--from", "mxnet"], "torchsparse"),
    ],
)
def test_command_answers_mistakes_in_one_message(args: list[str], message: str) -> None:
    torch.save(FLAT, "in.pt")
    status, output = run("convert", "--from", "torchsparse", "--to", "clever3d", *args)
    assert status == 2
    assert message in output
    assert "Traceback" not in output
    assert files() == ["in.pt"]


def test_help_has_every_option_and_an_example() -> None:
    wide = {**os.environ, "COLUMNS": "120", "TERM": "dumb"}
    command = [sys.executable, "-c", "from clever3d.cli import main; main()", "convert", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=wide, cwd=REPOSITORY)
    options = ["from", "to", "axes", "names", "drop", "architecture", "channels", "voxel-size", "overwrite"]
    for option in options:
        assert f"--{option} " in done.stdout
    assert "Example: clever3d convert" in done.stdout
