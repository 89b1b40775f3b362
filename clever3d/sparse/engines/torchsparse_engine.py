"""The ``torchsparse`` engine: that library's convolution (2.1, CUDA only, optional) on our voxels, in our row order.

What the adapter pins, read from torchsparse 2.1.0 at commit 385f5ce (``torchsparse/nn/functional/conv``):

* ``kmap_mode="hashmap"`` with ``downsample_mode="minkowski"``: the coarse voxels are the distinct ``floor(c / stride)``
  in units of the coarse grid, without a spatial extent. The default, ``"hashmap_on_the_fly"``, heeds no
  ``downsample_mode``: it dilates as spconv does, and drops negative coordinates.
* Coordinates are not moved out of the negative: in the pinned mode they are hashed as 32-bit words, neighbours are
  looked up at ``stride * c + offset``, and no minimum or maximum is taken anywhere.
* ``ImplicitGEMM`` on unsorted maps, its default. Each call brings its configuration, so that the user's global one
  neither matters nor changes.
* A cache per kernel map replaces the one that ``torchsparse.SparseTensor`` brings, which may be a global one that tells
  clouds apart by their stride alone.

float32 is multiplied in TF32 where ``torchsparse.backends.allow_tf32`` says so: its default from compute capability 8.0
on, and the user's to change. bfloat16, for which torchsparse has no kernels, is computed in float32. Gradients in
float16 are added up from partial sums in float16.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clever3d.errors import Clever3dError, InputError
from clever3d.sparse.coords import pack
from clever3d.sparse.engines.epilogue import Epilogue, apply_, narrow
from clever3d.sparse.kernel_map import KernelMap

_OTHERS = "choose the engine 'triton' or 'torch'"

# From torchsparse's repository: its issues and pull requests by number. Its last commit is 385f5ce, which is 344.
_INSTALL = (
    "its wheels are gone, so build 2.1.0 on Linux, against the torch in use, with the nvcc of its CUDA "
    "and the headers of google-sparsehash (libsparsehash-dev):\n"
    "  FORCE_CUDA=1 python -m pip install --no-build-isolation "
    "git+https://github.com/mit-han-lab/torchsparse.git@385f5ce\n"
    "Its users report that it ran with torch 2.2 and CUDA 12.1 (issue 308); that torch 2.4 with CUDA 12.4 built (330) "
    "and did not build (371); that it compiles with torch 2.6 (344). Nothing is known of newer ones, and this engine "
    f"has not been run on a GPU yet. Otherwise {_OTHERS}"
)

_DTYPES = (torch.float16, torch.float32, torch.bfloat16)

#: Forward and backward read one bit per kernel offset from 32-bit masks, as a note in its ``conv.py`` says.
_MAX_VOLUME = 32

#: Its kernels index with 32-bit integers. Their largest arrays are the backward pass's partial sums: 3 of the features'
#: gradient, 32 of the kernel's (torchsparse issue 361: illegal memory access at 17.8 million voxels of 64 channels).
_MAX_ELEMENTS = 2**31

#: Channels of the empty convolution that makes a kernel map; a multiple of 16 takes its kernels' simplest path.
_PROBE = 16


def available() -> str | None:
    """None where torchsparse can be used, else why not and what to do, to follow "... but "."""
    try:
        torchsparse = importlib.import_module("torchsparse")
        importlib.import_module("torchsparse.nn.functional")
    except Exception as error:  # loads compiled code and asks for the GPU: anything can be raised
        if isinstance(error, ModuleNotFoundError) and error.name == "torchsparse":
            return f"torchsparse is not installed; {_INSTALL}"
        if not torch.cuda.is_available():
            return f"torchsparse computes on CUDA only, and torch sees no GPU here: {_OTHERS}"
        return (
            f"torchsparse is installed and does not import ({type(error).__name__}: {error}) under torch "
            f"{torch.__version__}, CUDA {torch.version.cuda}; {_INSTALL}"
        )
    version = getattr(torchsparse, "__version__", "of unknown version")
    if not version.startswith("2.1"):
        return f"torchsparse {version} is installed, and only 2.1 is known to this engine; {_INSTALL}"
    if not hasattr(importlib.import_module("torchsparse.backend"), "GPUHashTable"):
        return f"torchsparse {version} was built without CUDA; {_INSTALL}"
    return None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def unusable(feats: Tensor) -> str | None:
    """None where this engine can convolve these features, else why not and what to do, to follow "... but "."""
    reason = available()
    if reason is not None:
        return reason
    if not feats.is_cuda:
        return f"torchsparse computes on CUDA only, and the features are on {feats.device}: move them, or {_OTHERS}"
    if feats.dtype not in _DTYPES:
        return f"torchsparse has no kernels for {feats.dtype}: cast to float32, or choose the engine 'torch'"
    if torch.cuda.current_stream(feats.device) != torch.cuda.default_stream(feats.device):
        return f"torchsparse launches on CUDA's default stream, and another one is current: leave it, or {_OTHERS}"
    return None


def prepare(kernel_map: KernelMap) -> None:
    """Makes what ``convolve`` reads of the map."""
    if kernel_map.num_in and kernel_map.num_out:
        _plan(kernel_map, training=torch.is_grad_enabled())


@torch.compiler.disable  # type: ignore[untyped-decorator]
def convolve(feats: Tensor, kernel: Tensor, kernel_map: KernelMap, epilogue: Epilogue | None = None) -> Tensor:
    """See :func:`clever3d.sparse.convolve`.

    The first call on a kernel map waits for the device several times, later ones do not.

    Raises:
        InputError: torchsparse cannot convolve with a kernel this large, or this many features.
        Clever3dError: torchsparse's output voxels are not ours.
    """
    _check(kernel, kernel_map)
    dtype = feats.dtype
    if not (kernel_map.num_in and kernel_map.num_out):  # it would launch a grid of no blocks
        out = feats.new_zeros(kernel_map.num_out, kernel_map.num_in) @ feats @ kernel[0]  # [Vout, Cout]
    else:
        if dtype == torch.bfloat16:
            feats, kernel = feats.float(), kernel.float()
        training = torch.is_grad_enabled() and (feats.requires_grad or kernel.requires_grad)
        out = _convolve(feats, kernel, kernel_map, training)
    if epilogue is not None:
        out = apply_(out.float(), epilogue.scale, epilogue.shift, epilogue.residual, epilogue.relu)
    return narrow(out, dtype)


def _check(kernel: Tensor, kernel_map: KernelMap) -> None:
    if kernel_map.volume > _MAX_VOLUME:
        raise InputError(
            f"torchsparse handles kernels of up to {_MAX_VOLUME} offsets, and {kernel_map.kernel_size} has "
            f"{kernel_map.volume}: {_OTHERS}"
        )
    rows = max(kernel_map.num_in, kernel_map.num_out)
    if max(3 * rows * max(kernel.shape), 32 * kernel.numel()) >= _MAX_ELEMENTS:
        raise InputError(
            f"{rows} voxels under a kernel of {list(kernel.shape)} exceed torchsparse's 32-bit index: split the batch, "
            f"or {_OTHERS}"
        )


def _convolve(feats: Tensor, kernel: Tensor, kernel_map: KernelMap, training: bool) -> Tensor:
    plan = _plan(kernel_map, training)
    if not kernel_map.transposed:
        out: Tensor = _conv3d(feats, kernel, kernel_map, plan, training).feats
        return out if plan.to_ours is None else out.index_select(0, plan.to_ours)
    if plan.to_theirs is not None:
        feats = feats.index_select(0, plan.to_theirs)
    back: Tensor = _conv3d(feats, kernel, kernel_map, plan, training).feats  # its fine voxels are ours, row by row
    return back


@dataclass(frozen=True)
class _Plan:
    """What torchsparse needs for a kernel map and for its reverse.

    Attributes:
        caches: a ``torchsparse.utils.tensor_cache.TensorCache`` with its kernel map in it.
        config: how it is to compute.
        training: its map has the part that gradients need.
        to_ours, to_theirs: int64 ``[coarse voxels]``: its row of each of our coarse voxels, and the other way round;
            None where the orders are the same.
    """

    caches: Any
    config: Any
    training: bool
    to_ours: Tensor | None = None
    to_theirs: Tensor | None = None


def _plan(kernel_map: KernelMap, training: bool) -> _Plan:
    found: _Plan | None = kernel_map.cache.get("torchsparse")
    if found is None or (training and not found.training):
        found = kernel_map.cache["torchsparse"] = _make_plan(kernel_map, training)
    return found


def _make_plan(kernel_map: KernelMap, training: bool) -> _Plan:
    """Lets torchsparse make its kernel map by a convolution of zeros, and compares its coarse voxels with ours."""
    forward = kernel_map.reversed if kernel_map.transposed else kernel_map
    caches = importlib.import_module("torchsparse.utils.tensor_cache").TensorCache()
    caches.cmaps[(1, 1, 1)] = (forward.in_coords, None)  # where its transposed convolution takes the fine voxels from
    plan = _Plan(caches, _config(forward.volume), training)
    feats = torch.zeros(forward.num_in, _PROBE, device=forward.in_coords.device)
    with torch.no_grad():
        theirs = _conv3d(feats, feats.new_zeros(forward.volume, _PROBE, _PROBE), forward, plan, training).coords
    their_keys, their_rows = torch.sort(pack(theirs))
    our_keys, our_rows = torch.sort(pack(forward.out_coords))
    if not torch.equal(their_keys, our_keys):
        raise Clever3dError(
            f"torchsparse made {len(theirs)} output voxels, and they are not the {forward.num_out} distinct "
            f"floor(c / stride) for kernel {forward.kernel_size} and stride {forward.stride}, although "
            "kmap_mode='hashmap' and downsample_mode='minkowski' were asked of it: it is not the 2.1.0 known to this "
            f"engine; {_OTHERS}"
        )
    if torch.equal(their_rows, our_rows):
        return plan
    to_ours, to_theirs = torch.empty_like(our_rows), torch.empty_like(our_rows)
    to_ours[our_rows], to_theirs[their_rows] = their_rows, our_rows
    return _Plan(caches, plan.config, training, to_ours, to_theirs)


def _conv3d(feats: Tensor, kernel: Tensor, kernel_map: KernelMap, plan: _Plan, training: bool) -> Any:
    """torchsparse's convolution, or its transposed one; a ``torchsparse.SparseTensor`` in its own row order."""
    stride = kernel_map.stride if kernel_map.transposed else (1, 1, 1)
    x = importlib.import_module("torchsparse").SparseTensor(feats, kernel_map.in_coords, stride)
    x._caches = plan.caches  # as its own operators hand caches on
    pointwise = kernel_map.volume == 1 and kernel_map.stride == (1, 1, 1)  # there it takes a matrix
    with torch.cuda.device_of(feats):  # it launches on the current device
        return importlib.import_module("torchsparse.nn.functional").conv3d(
            x,
            kernel[0] if pointwise else kernel,
            kernel_map.kernel_size,
            stride=kernel_map.stride,
            config=plan.config,
            transposed=kernel_map.transposed,
            training=training,
        )


def _config(volume: int) -> Any:
    """A configuration of our own: its default one is a single object that everyone shares."""
    functional = importlib.import_module("torchsparse.nn.functional")
    config = functional.conv_config.get_default_conv_config().copy()
    config.update(
        {
            "dataflow": functional.Dataflow.ImplicitGEMM,
            "kmap_mode": "hashmap",
            "downsample_mode": "minkowski",
            "ifsort": False,
            "split_mask_num": 1,
            # Its default, 3, reads past the end of a map of a single offset.
            "split_mask_num_bwd": min(3, volume),
        }
    )
    return config
