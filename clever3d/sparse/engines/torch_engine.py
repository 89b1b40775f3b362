"""The ``torch`` engine: matrix products over the kernel map, in PyTorch alone, on any device and in any float type.

Two ways to the same result, chosen per layer:

* the loop: for each kernel offset gather the input rows, multiply, add to the output rows. The gathered block stays in
  the cache, and offsets without pairs cost nothing.
* the table: for a few thousand output rows at a time gather the rows of all offsets side by side, ``[rows, K * Cin]``,
  and multiply once. It multiplies absent voxels too, so it pays for thin inputs in dense neighbourhoods.

float16 is multiplied in float32; products of bfloat16 are rounded to it offset by offset and summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clever3d.sparse.engines.epilogue import Epilogue, apply_, narrow
from clever3d.sparse.engines.operators import gradients_fake, library
from clever3d.sparse.kernel_map import KernelMap

_HALF = (torch.float16, torch.bfloat16)

#: Cost model of the choice, in nanoseconds, fitted on two cores of an AMD EPYC at 1,700 to 30,000 voxels and 8 to 256
#: channels (``benchmarks/engine.py --layers`` prints model and measurement side by side).
_PAIR, _GATHER, _MULTIPLY = 20.0, 0.6, 0.014

#: Values of a gathered block: 2 MB of float32. Measured at 300,000 voxels, 96 channels, 2 threads: blocks of whole
#: offsets 628 ms, of 8,192 pairs 404 ms, of 32,768 pairs 481 ms; at 30,000 voxels 40, 38 and 44 ms.
_BLOCK = 1 << 19

#: Rows of the table that are gathered at a time: 2,048 rows of 27 x 32 channels are 7 MB (our choice).
_TABLE_ROWS = 2048


def unusable(feats: Tensor) -> str | None:
    """None: this engine works everywhere."""
    return None


def prepare(kernel_map: KernelMap) -> None:
    """Makes what ``convolve`` reads of the map."""
    kernel_map.sizes  # noqa: B018 (made on first use)


def convolve(feats: Tensor, kernel: Tensor, kernel_map: KernelMap, epilogue: Epilogue | None = None) -> Tensor:
    """See :func:`clever3d.sparse.convolve`."""
    table = kernel_map.table if _table_is_cheaper(kernel_map, kernel) else None
    end = epilogue or Epilogue()
    out: Tensor = torch.ops.clever3d.convolve_pairs(
        feats, kernel, kernel_map.in_rows, kernel_map.out_rows, kernel_map.sizes, table,
        kernel_map.out_coords.shape[0], kernel_map.identity, end.scale, end.shift, end.residual, end.relu,
    )  # fmt: skip
    return out


def _table_is_cheaper(kernel_map: KernelMap, kernel: Tensor) -> bool:
    if kernel.is_cuda or kernel.shape[1] > 32 or torch.compiler.is_compiling():
        return False
    _, channels_in, channels_out = kernel.shape
    products = _MULTIPLY * channels_in * channels_out
    loop = len(kernel_map.in_rows) * (_PAIR + _GATHER * channels_in + products)
    table = kernel_map.num_out * kernel_map.volume * (_GATHER * channels_in + products)
    return table < loop


library.define(
    "convolve_pairs(Tensor feats, Tensor kernel, Tensor in_rows, Tensor out_rows, Tensor sizes, Tensor? table, "
    "SymInt num_out, int? identity, Tensor? scale, Tensor? shift, Tensor? residual, bool relu) -> Tensor"
)
library.define(
    "convolve_pairs_backward(Tensor grad, Tensor feats, Tensor kernel, Tensor in_rows, Tensor out_rows, Tensor sizes, "
    "int? identity, bool need_feats, bool need_kernel) -> (Tensor, Tensor)"
)


def _forward(
    feats: Tensor,
    kernel: Tensor,
    in_rows: Tensor,
    out_rows: Tensor,
    sizes: Tensor,
    table: Tensor | None,
    num_out: int,
    identity: int | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """``out[o] = sum_k feats[i_k(o)] @ kernel[k]``, then the epilogue."""
    dtype = feats.dtype
    feats, kernel = _wide_enough(feats), _wide_enough(kernel)
    with torch.autocast(feats.device.type, enabled=False):  # it would make float16 of these products again
        if table is None:
            out = _loop(feats, kernel, in_rows, out_rows, sizes.tolist(), num_out, identity)
        else:
            out = _gathered(feats, kernel, table)
    return narrow(apply_(out, scale, shift, residual, relu), dtype)


def _loop(
    feats: Tensor,
    kernel: Tensor,
    in_rows: Tensor,
    out_rows: Tensor,
    sizes: list[int],
    num_out: int,
    identity: int | None,
) -> Tensor:
    _, channels_in, channels_out = kernel.shape
    wide = _wide(feats)
    if identity is None:
        out = feats.new_zeros(num_out, channels_out, dtype=wide)
    else:
        out = (feats @ kernel[identity]).to(wide)  # [Vout, Cout]
    piece = _piece(feats, kernel)
    gathered, product = feats.new_empty(piece, channels_in), feats.new_empty(piece, channels_out)
    for k, rows_in, rows_out in _pieces(in_rows, out_rows, sizes, piece):
        if k != identity:
            count = len(rows_in)
            torch.index_select(feats, 0, rows_in, out=gathered[:count])
            block = torch.mm(gathered[:count], kernel[k], out=product[:count])  # [P, Cout]
            out.index_add_(0, rows_out, block.to(wide))
    return out


def _wide_enough(tensor: Tensor) -> Tensor:
    """float16 is multiplied in float32: a product of one offset may overflow where the sum over all does not."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _wide(feats: Tensor) -> torch.dtype:
    """The type that products are summed in."""
    return torch.float32 if feats.dtype in _HALF else feats.dtype


def _piece(feats: Tensor, kernel: Tensor) -> int:
    """How many pairs are gathered at a time. On a CPU the block stays in the cache, in memory that is used again and
    again: fresh blocks of tens of megabytes cost a page fault every 4 KB. On a GPU launches cost more than that."""
    pairs = max(len(feats), 1)
    return pairs if feats.is_cuda else min(pairs, _BLOCK // max(kernel.shape[1:]) + 1)


def _pieces(in_rows: Tensor, out_rows: Tensor, sizes: list[int], piece: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """``(offset, input rows, output rows)`` of at most ``piece`` pairs each."""
    for k, (rows_in, rows_out) in enumerate(zip(in_rows.split(sizes), out_rows.split(sizes), strict=True)):
        if len(rows_in) <= piece:
            if len(rows_in):
                yield k, rows_in, rows_out
            continue
        for pair in zip(rows_in.split(piece), rows_out.split(piece), strict=True):
            yield k, *pair


def _gathered(feats: Tensor, kernel: Tensor, table: Tensor) -> Tensor:
    volume, channels_in, channels_out = kernel.shape
    wide = _wide(feats)
    padded = torch.cat([feats, feats.new_zeros(1, channels_in)])  # absent voxels (-1) read the last row
    weight = kernel.reshape(volume * channels_in, channels_out)
    out = feats.new_empty(table.shape[1], channels_out, dtype=wide)
    for rows, part in zip(table.T.split(_TABLE_ROWS), out.split(_TABLE_ROWS), strict=True):
        index = torch.where(rows < 0, len(feats), rows).reshape(-1)  # [R * K]
        part.copy_(padded.index_select(0, index).view(len(rows), -1) @ weight)
    return out


def _backward(
    grad: Tensor,
    feats: Tensor,
    kernel: Tensor,
    in_rows: Tensor,
    out_rows: Tensor,
    sizes: Tensor,
    identity: int | None,
    need_feats: bool,
    need_kernel: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to features and kernel; empty tensors for those that are not needed."""
    types = feats.dtype, kernel.dtype
    grad, feats, kernel = _wide_enough(grad.contiguous()), _wide_enough(feats), _wide_enough(kernel)
    wide = _wide(feats)
    _, channels_in, channels_out = kernel.shape
    grad_feats = feats.new_zeros(feats.shape if need_feats else (0,), dtype=wide)
    grad_kernel = kernel.new_zeros(kernel.shape if need_kernel else (0,), dtype=wide)
    piece = _piece(feats, kernel)
    inputs, outputs = feats.new_empty(piece, channels_in), feats.new_empty(piece, channels_out)
    for k, rows_in, rows_out in _pieces(in_rows, out_rows, sizes.tolist(), piece):
        count = len(rows_in)
        block_out = torch.index_select(grad, 0, rows_out, out=outputs[:count])  # [P, Cout]
        if need_kernel:
            block_in = torch.index_select(feats, 0, rows_in, out=inputs[:count])  # [P, Cin]
            grad_kernel[k] += block_in.T @ block_out
        if need_feats:
            block = torch.mm(block_out, kernel[k].T, out=inputs[:count])
            grad_feats.index_add_(0, rows_in, block.to(wide))
    return grad_feats.to(types[0]), grad_kernel.to(types[1])


def _forward_fake(feats: Tensor, kernel: Tensor, *args: Any) -> Tensor:
    return feats.new_empty(args[4], kernel.shape[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, kernel, in_rows, out_rows, sizes, _, _, ctx.identity, *_ = inputs
    ctx.save_for_backward(feats, kernel, in_rows, out_rows, sizes)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_feats, need_kernel = ctx.needs_input_grad[:2]
    grad_feats, grad_kernel = torch.ops.clever3d.convolve_pairs_backward(
        grad, *ctx.saved_tensors, ctx.identity, need_feats, need_kernel
    )
    return grad_feats if need_feats else None, grad_kernel if need_kernel else None, *[None] * 10


for _device in ("CPU", "CUDA"):
    library.impl("convolve_pairs", _forward, _device)
    library.impl("convolve_pairs_backward", _backward, _device)
torch.library.register_fake("clever3d::convolve_pairs", _forward_fake)
torch.library.register_fake("clever3d::convolve_pairs_backward", gradients_fake)
torch.library.register_autograd("clever3d::convolve_pairs", _differentiate, setup_context=_keep)
