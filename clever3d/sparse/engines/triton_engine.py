"""The ``triton`` engine: implicit matrix products over sorted tiles, with our own Triton kernels.

A convolution is, for a tile of output rows, a sum of products [TILE, Cin] x [Cin, Cout] over the kernel offsets, whose
left factors are gathered row by row through the neighbour table. In a LiDAR scan a voxel is met under 5 to 9 of 27
offsets, so the rows are first sorted by the set of their offsets: a tile then visits few beyond those that its rows
need. Everything a map needs is made without waiting for the device.

The kernels run on CUDA; with ``TRITON_INTERPRET=1`` (set before triton is imported) they also run, slowly, on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clever3d.sparse.engines import tuning
from clever3d.sparse.engines.epilogue import Epilogue
from clever3d.sparse.engines.operators import gradients_fake, library
from clever3d.sparse.kernel_map import KernelMap

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OLDEST = (3, 3)  # interpreter tests and ahead-of-time compilation pass with 3.3, 3.4, 3.5, 3.6 and 3.9


def _find_missing() -> str | None:
    """What keeps Triton from being used on any device; looked for once."""
    try:
        found = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed (PyTorch's CUDA builds for Linux bring it)"
    if tuple(int(part) for part in found.split(".")[:2]) < _OLDEST:
        return f"triton {found} is older than {_OLDEST[0]}.{_OLDEST[1]} (PyTorch 2.7), the oldest that is known to work"
    return None


_missing = _find_missing()


def unusable(feats: Tensor) -> str | None:
    """None where this engine works for these features, else why not."""
    if _missing is not None:
        return _missing
    if not feats.is_cuda and not _interpreted():
        return f"it needs a GPU, and these features are on {feats.device}; use the engine 'torch' there"
    if feats.dtype not in _DTYPES:
        return f"it has no {feats.dtype}; use float32, float16, bfloat16, or the engine 'torch'"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@dataclass(frozen=True)
class Tiling:
    """Rows of a kernel map's output in tiles, and which tile meets which offset.

    Attributes:
        table: int32 ``[K, R]``, R a multiple of the tile: neighbours of the sorted rows, -1 where absent.
        order: int32 ``[R]``: the output row of each sorted row (0 in the padding).
        active: int32 ``[T, K]``: offsets that a tile meets, ``counts`` int32 ``[T]`` of them, then the others.
        tiles: int32 ``[K, T]``: tiles that meet an offset, ``tile_counts`` int32 ``[K]`` of them, then the others.
    """

    table: Tensor
    order: Tensor
    active: Tensor
    counts: Tensor
    tiles: Tensor
    tile_counts: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.table, self.order, self.active, self.counts, self.tiles, self.tile_counts]


def make_tiling(table: Tensor, tile: int) -> Tiling:
    """Sorts the columns of a neighbour table ``[K, V]`` by their sets of present offsets and cuts them into tiles."""
    volume, num_out = table.shape
    device = table.device
    sorted_by = torch.arange(min(volume, 62), device=device).unsqueeze(
        1
    )  # 62 offsets fit a key; more need not be sorted
    key = ((table[: len(sorted_by)] >= 0).long() << sorted_by).sum(0)  # [V]
    order = torch.argsort(key, stable=True)  # stable: rows that are neighbours in space stay so
    count = -(-num_out // tile)
    sorted_table = table.new_full((volume, count * tile), -1)
    sorted_table[:, :num_out] = table.index_select(1, order)
    padded_order = torch.zeros(count * tile, dtype=torch.int32, device=device)
    padded_order[:num_out] = order
    idle = (sorted_table.view(volume, count, tile) < 0).all(2).to(torch.int8)  # [K, T]
    return Tiling(
        table=sorted_table,
        order=padded_order,
        active=torch.argsort(idle.T.contiguous(), dim=1, stable=True).int(),
        counts=(volume - idle.sum(0)).int(),
        tiles=torch.argsort(idle, dim=1, stable=True).int(),
        tile_counts=(count - idle.sum(1)).int(),
    )


def _tiling(kernel_map: KernelMap) -> list[Tensor]:
    name = "triton, to fine" if kernel_map.transposed else "triton, to coarse"
    if name not in kernel_map.cache:
        with torch.inference_mode(False):  # a later training step may save them
            kernel_map.cache[name] = make_tiling(kernel_map.table, tuning.tile_size(kernel_map.num_out)).tensors()
    tensors: list[Tensor] = kernel_map.cache[name]
    return tensors


def prepare(kernel_map: KernelMap) -> None:
    """Makes what ``convolve`` reads of the map."""
    _tiling(kernel_map)


def convolve(feats: Tensor, kernel: Tensor, kernel_map: KernelMap, epilogue: Epilogue | None = None) -> Tensor:
    """See :func:`clever3d.sparse.convolve`. No atomics are used: a configuration always gives the same bits."""
    end = epilogue or Epilogue()
    differentiated = torch.is_grad_enabled() and (feats.requires_grad or kernel.requires_grad)
    backward = _tiling(kernel_map.reversed) if differentiated and not kernel_map.symmetric else []
    out: Tensor = torch.ops.clever3d.convolve_tiles(
        feats, kernel, _tiling(kernel_map), backward,
        kernel_map.out_coords.shape[0], end.scale, end.shift, end.residual, end.relu,
    )  # fmt: skip
    return out


library.define(
    "convolve_tiles(Tensor feats, Tensor kernel, Tensor[] tiling, Tensor[] backward_tiling, SymInt num_out, "
    "Tensor? scale, Tensor? shift, Tensor? residual, bool relu) -> Tensor"
)
library.define(
    "convolve_tiles_backward(Tensor grad, Tensor feats, Tensor kernel, Tensor[] tiling, Tensor[] backward_tiling, "
    "bool need_feats, bool need_kernel) -> (Tensor, Tensor)"
)


def _precision(dtype: torch.dtype) -> str:
    """TF32 products for float32 where PyTorch's own switch for matrix products allows them."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _product(
    feats: Tensor,
    kernel: Tensor,
    tiling: list[Tensor],
    num_out: int,
    end: Epilogue,
    *,
    mirror: bool = False,
    saturate: bool = True,
) -> Tensor:
    """``gathered_product`` of ``kernel`` ``[K, Cin, Cout]``, which may be a transposed view."""
    import triton

    from clever3d.sparse.engines.triton_kernels import gathered_product

    volume, channels_in, channels_out = kernel.shape
    out = feats.new_empty(num_out, channels_out)
    if not num_out:
        return out
    table, order, active, counts = tiling[:4]
    tile = table.shape[1] // len(counts)
    feats = feats.contiguous()
    scale, shift, residual = (None if t is None else t.contiguous() for t in (end.scale, end.shift, end.residual))
    limit = torch.finfo(feats.dtype).max if feats.dtype == torch.float16 and saturate else 0.0

    def launch(config: tuning.ProductConfig) -> None:
        grid = (len(counts) * triton.cdiv(channels_out, config.block_n),)
        with torch.cuda.device_of(feats):  # Triton launches on the current device
            gathered_product[grid](
                feats, kernel, out, table, order, active, counts, scale, shift, residual,
                num_out, table.shape[1], channels_in, channels_out, volume, *kernel.stride(),
                TILE=tile, BLOCK_N=config.block_n, BLOCK_K=config.block_k, PRECISION=_precision(feats.dtype),
                MIRROR=mirror, AFFINE=scale is not None, RESIDUAL=residual is not None, RELU=end.relu,
                LIMIT=limit, UPCAST=_needs_upcast(feats), num_warps=config.warps, num_stages=config.stages,
            )  # fmt: skip

    shape = tuning.Shape("product", feats.dtype, channels_in, channels_out, volume, tile, num_out)
    launch(tuning.product_config(shape, launch))
    return out


def _needs_upcast(feats: Tensor) -> bool:
    """Triton's interpreter multiplies the bit patterns of bfloat16; the float32 products of its values are the same."""
    return not feats.is_cuda and feats.dtype == torch.bfloat16


def _forward(
    feats: Tensor,
    kernel: Tensor,
    tiling: list[Tensor],
    backward_tiling: list[Tensor],
    num_out: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    return _product(feats, kernel, tiling, num_out, Epilogue(scale, shift, residual, relu))


def _backward(
    grad: Tensor,
    feats: Tensor,
    kernel: Tensor,
    tiling: list[Tensor],
    backward_tiling: list[Tensor],
    need_feats: bool,
    need_kernel: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to features and kernel; empty tensors for those that are not needed."""
    grad = grad.contiguous()
    grad_feats, grad_kernel = feats.new_empty(0), kernel.new_empty(0)
    if need_feats:  # overflow in float16 must stay visible: the loss scaler looks for it
        transposed = kernel.transpose(1, 2)
        mirror = not backward_tiling
        grad_feats = _product(
            grad, transposed, backward_tiling or tiling, len(feats), Epilogue(), mirror=mirror, saturate=False
        )
    if need_kernel:
        grad_kernel = _kernel_gradient(grad, feats, kernel, tiling)
    return grad_feats, grad_kernel


def _kernel_gradient(grad: Tensor, feats: Tensor, kernel: Tensor, tiling: list[Tensor]) -> Tensor:
    import triton

    from clever3d.sparse.engines.triton_kernels import kernel_gradient

    volume, channels_in, channels_out = kernel.shape
    if not len(grad):
        return torch.zeros_like(kernel)
    table, order, _, counts, tiles, tile_counts = tiling
    tile = table.shape[1] // len(counts)
    feats = feats.contiguous()
    result = feats.new_empty(0)

    def launch(config: tuning.GradientConfig) -> None:
        nonlocal result
        partial = feats.new_empty(config.splits, volume, channels_in, channels_out, dtype=torch.float32)
        blocks = triton.cdiv(channels_in, config.block_i) * triton.cdiv(channels_out, config.block_o)
        with torch.cuda.device_of(feats):
            kernel_gradient[volume * blocks, config.splits](
                feats, grad, partial, table, order, tiles, tile_counts,
                len(counts), table.shape[1], channels_in, channels_out, volume,
                TILE=tile, BLOCK_I=config.block_i, BLOCK_O=config.block_o, SPLITS=config.splits,
                PRECISION=_precision(feats.dtype), UPCAST=_needs_upcast(feats),
                num_warps=config.warps, num_stages=config.stages,
            )  # fmt: skip
        result = partial[0] if config.splits == 1 else partial.sum(0)

    shape = tuning.Shape("gradient", feats.dtype, channels_in, channels_out, volume, tile, len(grad))
    launch(tuning.gradient_config(shape, launch))
    return result.to(kernel.dtype)


def _forward_fake(feats: Tensor, kernel: Tensor, *args: Any) -> Tensor:
    return feats.new_empty(args[2], kernel.shape[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, kernel, tiling, backward_tiling, *_ = inputs
    ctx.split = len(tiling)
    ctx.save_for_backward(feats, kernel, *tiling, *backward_tiling)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    feats, kernel, *tilings = ctx.saved_tensors
    need_feats, need_kernel = ctx.needs_input_grad[:2]
    grad_feats, grad_kernel = torch.ops.clever3d.convolve_tiles_backward(
        grad, feats, kernel, tilings[: ctx.split], tilings[ctx.split :], need_feats, need_kernel
    )
    return (
        grad_feats if need_feats else None,
        grad_kernel if need_kernel else None,
        [None] * ctx.split,
        [None] * (len(tilings) - ctx.split),
        *[None] * 5,
    )


for _device in ("CPU", "CUDA"):
    library.impl("convolve_tiles", _forward, _device)
    library.impl("convolve_tiles_backward", _backward, _device)
torch.library.register_fake("clever3d::convolve_tiles", _forward_fake)
torch.library.register_fake("clever3d::convolve_tiles_backward", gradients_fake)
torch.library.register_autograd("clever3d::convolve_tiles", _differentiate, setup_context=_keep)
