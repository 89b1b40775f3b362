"""What the ``torch.library`` operators of our engines share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

library = torch.library.Library("clever3d", "FRAGMENT")


def gradients_fake(grad: Tensor, feats: Tensor, kernel: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """Shapes of (features' gradient, kernel's gradient) of any engine; the last two arguments say which are needed."""
    need_feats, need_kernel = args[-2:]
    return feats.new_empty(feats.shape if need_feats else (0,)), kernel.new_empty(kernel.shape if need_kernel else (0,))
