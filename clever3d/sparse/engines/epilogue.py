"""What follows a convolution in inference, done while its result is at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Epilogue:
    """``y = x * scale + shift + residual``, then max(y, 0) where ``relu``. For inference: it has no gradient.

    Attributes:
        scale, shift: ``[Cout]``, both or neither: a batch normalisation with fixed statistics.
        residual: ``[Vout, Cout]`` or None.
        relu: whether negative values become 0.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    relu: bool = False


def apply_(out: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    """An :class:`Epilogue` in place, for engines that have no kernel of their own for it."""
    if scale is not None and shift is not None:
        torch.addcmul(shift, out, scale, out=out)
    if residual is not None:
        out.add_(residual)
    return out.relu_() if relu else out


def narrow(out: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 sums as ``dtype``; float16 ends at +-65,504 instead of infinity (our choice: no NaN further on)."""
    if dtype == torch.float16:
        limit = torch.finfo(dtype).max
        out = out.clamp_(-limit, limit)
    return out.to(dtype)
