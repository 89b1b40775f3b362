"""Sparse layers. Parameter names and layouts are torchsparse's: ``kernel`` [K, Cin, Cout] and ``bias`` [Cout]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clever3d.errors import InputError
from clever3d.sparse.functional import convolve, pool
from clever3d.sparse.kernel_map import Triple, as_triple
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

    def _finish(self, feats: Tensor) -> Tensor:
        return feats if self.bias is None else feats + self.bias.to(feats.dtype)


class Conv3d(_ConvBase):
    """Sparse convolution: submanifold when ``stride`` is 1, else onto the voxels ``floor(c / stride)``.

    ``out[o] = bias + sum_k x[stride * o + offset_k] @ kernel[k]`` over the occupied input voxels.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self.volume == 1 and self.stride == (1, 1, 1):
            return x.with_feats(self._finish(x.feats @ self.kernel))
        kernel = self.kernel if self.kernel.ndim == 3 else self.kernel.unsqueeze(0)
        target = x.geometry.coarser(self.stride)
        kernel_map = x.geometry.kernel_map(self.kernel_size, self.stride)
        feats = self._finish(convolve(x.feats, kernel, kernel_map))
        return x.at(target, feats, x.scale_stride(self.stride))


class ConvTranspose3d(_ConvBase):
    """Transposed convolution back onto the voxels from which ``Conv3d`` with this kernel and stride came.

    It uses that convolution's map reversed, with the kernel not flipped:
    ``out[stride * i + offset_k] += x[i] @ kernel[k]``.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Raises InputError when ``x`` was not made by a convolution of the same stride."""
        finer = x.geometry.finer
        if finer is None or x.geometry.stride_to_finer != self.stride:
            raise InputError(f"ConvTranspose3d with stride {self.stride} needs the output of a Conv3d of that stride")
        kernel = self.kernel if self.kernel.ndim == 3 else self.kernel.unsqueeze(0)
        kernel_map = finer.kernel_map(self.kernel_size, self.stride).reversed
        feats = self._finish(convolve(x.feats, kernel, kernel_map))
        stride = tuple(a // b for a, b in zip(x.stride, self.stride, strict=True))
        return x.at(finer, feats, stride)  # type: ignore[arg-type]


class Pool3d(nn.Module):
    """Max, mean or sum pooling over occupied voxels, onto the voxels ``floor(c / stride)``."""

    def __init__(self, kernel_size: int | Triple = 2, stride: int | Triple = 2, *, mode: str = "max") -> None:
        super().__init__()
        self.kernel_size, self.stride, self.mode = as_triple(kernel_size), as_triple(stride), mode

    def forward(self, x: SparseTensor) -> SparseTensor:
        target = x.geometry.coarser(self.stride)
        kernel_map = x.geometry.kernel_map(self.kernel_size, self.stride)
        return x.at(target, pool(x.feats, kernel_map, self.mode), x.scale_stride(self.stride))
