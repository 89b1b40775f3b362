"""Sparse convolution and pooling as functions of features and a kernel map."""

from __future__ import annotations

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse.engines import engine_for
from clever3d.sparse.engines.epilogue import Epilogue
from clever3d.sparse.kernel_map import KernelMap


def convolve(feats: Tensor, kernel: Tensor, kernel_map: KernelMap, epilogue: Epilogue | None = None) -> Tensor:
    """Sparse convolution (cross-correlation, as ``torch.nn.functional.conv3d``), by the engine that is chosen.

    ``out[o] = sum over offsets k and pairs (i, o) of k:  feats[i] @ kernel[k]``

    Products are summed in float32 (float64 for float64). Under autocast features and kernel are cast to its dtype;
    values beyond the range of float16 end at +-65,504. There is a first derivative, no second.

    Args:
        feats: ``[Vin, Cin]``.
        kernel: ``[K, Cin, Cout]``, slices in the order of :func:`clever3d.sparse.kernel_offsets`.
        kernel_map: pairs for the K offsets; its ``reversed`` gives the transposed convolution.
        epilogue: what to do with the result in the same pass; inference only.

    Returns:
        ``[Vout, Cout]``; rows that no pair reaches are zero.

    Raises:
        InputError: shapes, types or devices that do not fit together, or the engine that was asked for cannot be used.
    """
    if kernel.ndim != 3 or len(kernel) != kernel_map.volume:
        raise InputError(f"kernel must be [{kernel_map.volume}, Cin, Cout], got {list(kernel.shape)}")
    if feats.ndim != 2 or feats.shape[0] != kernel_map.in_coords.shape[0] or feats.shape[1] != kernel.shape[1]:
        raise InputError(
            f"feats must be [{kernel_map.num_in}, {kernel.shape[1]}] for this map and kernel, got {list(feats.shape)}"
        )
    if not feats.device == kernel.device == kernel_map.in_coords.device:
        raise InputError(
            f"feats are on {feats.device}, the kernel on {kernel.device}, the voxels on {kernel_map.in_coords.device}: "
            "move them to one device"
        )
    if epilogue is not None and torch.is_grad_enabled() and (feats.requires_grad or kernel.requires_grad):
        raise InputError("an epilogue has no gradient: use it under torch.no_grad(), or leave it out")
    if epilogue is not None:
        _check_epilogue(epilogue, kernel_map.num_out, kernel)
    feats, kernel = autocast(feats), autocast(kernel)
    if feats.dtype != kernel.dtype or not feats.is_floating_point():
        raise InputError(f"feats are {feats.dtype}, the kernel is {kernel.dtype}: use one float type, or autocast")
    out: Tensor = engine_for(feats).convolve(feats, kernel, kernel_map, epilogue)
    return out


def _check_epilogue(epilogue: Epilogue, num_out: int, kernel: Tensor) -> None:
    channels = kernel.shape[2]
    if (epilogue.scale is None) != (epilogue.shift is None):
        raise InputError("an epilogue has scale and shift, or neither")
    expected = {"scale": (channels,), "shift": (channels,), "residual": (num_out, channels)}
    for name, shape in expected.items():
        tensor: Tensor | None = getattr(epilogue, name)
        if tensor is not None and (tensor.shape != shape or tensor.device != kernel.device):
            raise InputError(
                f"the epilogue's {name} must be {list(shape)} on {kernel.device}, "
                f"got {list(tensor.shape)} on {tensor.device}"
            )


def autocast(tensor: Tensor) -> Tensor:
    """The tensor in autocast's dtype where autocast is on (float64 stays, as in torch), else as it is."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    dtype = torch.get_autocast_dtype(device)
    if tensor.dtype == torch.float32 and dtype == torch.float16:
        limit = torch.finfo(dtype).max
        tensor = tensor.clamp(-limit, limit)
    return tensor.to(dtype)


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
