"""Sparse convolution and pooling as functions of features and a kernel map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse.kernel_map import KernelMap


class _Convolve(torch.autograd.Function):
    """``out[o] = sum_k feats[i_k(o)] @ kernel[k]`` and its exact gradients, one matrix product per kernel offset.

    Gather, multiply, scatter-add per offset: the gathered block stays in the cache, empty offsets cost nothing, and
    memory beyond input and output is one offset's block (measured in ``benchmarks/engine.py``).
    """

    @staticmethod
    def forward(ctx: Any, feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(feats, kernel)
        ctx.kernel_map = kernel_map
        identity = kernel_map.identity
        shape = kernel_map.num_out, kernel.shape[2]
        out = feats.new_zeros(shape) if identity is None else feats @ kernel[identity]  # [Vout, Cout]
        for k, (rows_in, rows_out) in enumerate(kernel_map.pairs):
            if k != identity and len(rows_in):
                out.index_add_(0, rows_out, feats.index_select(0, rows_in) @ kernel[k])
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, kernel = ctx.saved_tensors
        kernel_map: KernelMap = ctx.kernel_map
        need_feats, need_kernel, _ = ctx.needs_input_grad
        grad_out = grad_out.contiguous()
        grad_feats = feats.new_zeros(feats.shape) if need_feats else None
        grad_kernel = kernel.new_zeros(kernel.shape) if need_kernel else None
        for k, (rows_in, rows_out) in enumerate(kernel_map.pairs):
            if not len(rows_in):
                continue
            identity = k == kernel_map.identity
            grad_block = grad_out if identity else grad_out.index_select(0, rows_out)  # [P, Cout]
            if grad_feats is not None:
                grad_feats.index_add_(0, rows_in, grad_block @ kernel[k].T)
            if grad_kernel is not None:
                block = feats if identity else feats.index_select(0, rows_in)  # [P, Cin]
                torch.mm(block.T, grad_block, out=grad_kernel[k])
        return grad_feats, grad_kernel, None


def convolve(feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sparse convolution (cross-correlation, as ``torch.nn.functional.conv3d``).

    ``out[o] = sum over offsets k and pairs (i, o) of k:  feats[i] @ kernel[k]``

    Args:
        feats: ``[Vin, Cin]``.
        kernel: ``[K, Cin, Cout]``, slices in the order of :func:`clever3d.sparse.kernel_offsets`.
        kernel_map: pairs for the K offsets; its ``reversed`` gives the transposed convolution.

    Returns:
        ``[Vout, Cout]``; rows that no pair reaches are zero.

    Raises:
        InputError: shapes that do not fit together.
    """
    if kernel.ndim != 3 or len(kernel) != len(kernel_map.sizes):
        raise InputError(f"kernel must be [{len(kernel_map.sizes)}, Cin, Cout], got {list(kernel.shape)}")
    if feats.shape != (kernel_map.num_in, kernel.shape[1]):
        raise InputError(
            f"feats must be [{kernel_map.num_in}, {kernel.shape[1]}] for this map and kernel, got {list(feats.shape)}"
        )
    if torch.is_autocast_enabled(feats.device.type):
        dtype = torch.get_autocast_dtype(feats.device.type)
        feats, kernel = feats.to(dtype), kernel.to(dtype)
    out: Tensor = _Convolve.apply(feats, kernel, kernel_map)
    return out


def pool(feats: Tensor, kernel_map: KernelMap, mode: str) -> Tensor:
    """Pooling over the occupied voxels under each output voxel.

    Args:
        feats: ``[Vin, C]``.
        mode: ``"max"``, ``"mean"`` (over occupied voxels only) or ``"sum"``.

    Returns:
        ``[Vout, C]``.
    """
    reduce = {"max": "amax", "mean": "mean", "sum": "sum"}.get(mode)
    if reduce is None:
        raise InputError(f"pooling mode {mode!r} is none of 'max', 'mean', 'sum'")
    rows = kernel_map.out_rows.unsqueeze(1).expand(-1, feats.shape[1])  # [P, C]
    out = feats.new_zeros(kernel_map.num_out, feats.shape[1])
    return out.scatter_reduce(0, rows, feats.index_select(0, kernel_map.in_rows), reduce, include_self=False)
