"""Sparse layers. Parameter names and layouts are torchsparse's: ``kernel`` [K, Cin, Cout] and ``bias`` [Cout]."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from clever3d.errors import InputError
from clever3d.sparse.engines.epilogue import Epilogue, apply_, narrow
from clever3d.sparse.functional import autocast, convolve, pool
from clever3d.sparse.kernel_map import KernelMap, Triple, as_triple
from clever3d.sparse.tensor import SparseTensor


class _ConvBase(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        stride: int | Triple = 1,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = as_triple(kernel_size), as_triple(stride)
        self.volume = math.prod(self.kernel_size)
        shape = (in_channels, out_channels) if self.volume == 1 else (self.volume, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(fan-in), the default of ``torch.nn.Conv3d`` and of torchsparse."""
        bound = 1 / math.sqrt(self.in_channels * self.volume)
        nn.init.uniform_(self.kernel, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"

    def _convolve(self, feats: Tensor, kernel_map: KernelMap, epilogue: Epilogue | None) -> Tensor:
        kernel = self.kernel if self.kernel.ndim == 3 else self.kernel.unsqueeze(0)
        if epilogue is None:
            feats = convolve(feats, kernel, kernel_map)
            return feats if self.bias is None else feats + self.bias.to(feats.dtype)
        return convolve(feats, kernel, kernel_map, self._with_bias(epilogue))

    def _with_bias(self, epilogue: Epilogue) -> Epilogue:
        """The bias comes before the normalisation: ``(x + bias) * scale + shift``."""
        if self.bias is None:
            return epilogue
        if epilogue.scale is None or epilogue.shift is None:
            return replace(epilogue, scale=torch.ones_like(self.bias), shift=self.bias)
        return replace(epilogue, shift=self.bias * epilogue.scale + epilogue.shift)


class Conv3d(_ConvBase):
    """Sparse convolution: submanifold when ``stride`` is 1, else onto the voxels ``floor(c / stride)``.

    ``out[o] = bias + sum_k x[stride * o + offset_k] @ kernel[k]`` over the occupied input voxels.
    """

    def forward(self, x: SparseTensor, epilogue: Epilogue | None = None) -> SparseTensor:
        """``epilogue`` is applied to the result in the same pass (inference only)."""
        if self.volume == 1 and self.stride == (1, 1, 1):
            return x.with_feats(self._pointwise(x.feats, epilogue))
        kernel_map = x.pyramid.kernel_map(x.stride, self.kernel_size, self.stride)
        return x.at(x.coarser(self.stride), self._convolve(x.feats, kernel_map, epilogue))

    def _pointwise(self, feats: Tensor, epilogue: Epilogue | None) -> Tensor:
        if feats.shape[1] != self.in_channels:
            raise InputError(f"feats must be [V, {self.in_channels}], got {list(feats.shape)}")
        feats, kernel = autocast(feats), autocast(self.kernel)
        out = narrow(feats @ kernel, feats.dtype)
        if epilogue is None:
            return out if self.bias is None else out + self.bias.to(out.dtype)
        end = self._with_bias(epilogue)
        wide = out.to(torch.promote_types(out.dtype, torch.float32))
        return narrow(apply_(wide, end.scale, end.shift, end.residual, end.relu), out.dtype)


class ConvTranspose3d(_ConvBase):
    """Transposed convolution back onto the voxels from which ``Conv3d`` with this kernel and stride came.

    It uses that convolution's map reversed, with the kernel not flipped:
    ``out[stride * i + offset_k] += x[i] @ kernel[k]``.
    """

    def forward(self, x: SparseTensor, epilogue: Epilogue | None = None) -> SparseTensor:
        """Raises InputError when there are no finer voxels to go to: x has not come down by this stride."""
        finer = tuple(a // b for a, b in zip(x.stride, self.stride, strict=True))
        if finer not in x.pyramid.levels or x.stride != tuple(a * b for a, b in zip(finer, self.stride, strict=True)):
            raise InputError(f"ConvTranspose3d with stride {self.stride} needs the output of a Conv3d of that stride")
        kernel_map = x.pyramid.kernel_map(finer, self.kernel_size, self.stride).reversed
        return x.at(finer, self._convolve(x.feats, kernel_map, epilogue))


class Pool3d(nn.Module):
    """Max, mean or sum pooling over occupied voxels, onto the voxels ``floor(c / stride)``."""

    def __init__(self, kernel_size: int | Triple = 2, stride: int | Triple = 2, *, mode: str = "max") -> None:
        super().__init__()
        self.kernel_size, self.stride, self.mode = as_triple(kernel_size), as_triple(stride), mode

    def forward(self, x: SparseTensor) -> SparseTensor:
        kernel_map = x.pyramid.kernel_map(x.stride, self.kernel_size, self.stride)
        return x.at(x.coarser(self.stride), pool(x.feats, kernel_map, self.mode))
