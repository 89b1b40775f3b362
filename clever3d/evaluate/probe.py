"""The linear probe: how much a linear classifier finds in frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clever3d.errors import InputError
from clever3d.evaluate.metrics import IGNORE


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on standardised features: ``logits = ((x - mean) / std) @ weight + bias``."""

    mean: Tensor  # [D]
    std: Tensor  # [D]
    weight: Tensor  # [D, classes]
    bias: Tensor  # [classes]

    def logits(self, features: Tensor) -> Tensor:
        """Class scores ``[N, classes]`` of features ``[N, D]``."""
        return ((features.float() - self.mean) / self.std) @ self.weight + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Classes int64 ``[N]`` of features ``[N, D]``."""
        return self.logits(features).argmax(dim=1)


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    weight_decay: float = 1e-4,
    balance: float = 0.0,
    iterations: int = 200,
) -> LinearProbe:
    """Multinomial logistic regression to its optimum by full-batch L-BFGS: no seed, no learning rate, no schedule.

    Minimises ``mean cross-entropy + weight_decay * |weight|^2`` from zero (the problem is convex). Features are
    standardised with the training set's statistics, so that every input is treated alike. All values are our choice.

    Args:
        features: ``[N, D]``.
        labels: int ``[N]``; points labelled ``IGNORE`` (-1) are left out.
        num_classes: number of classes.
        balance: each point is weighted with its class's frequency to the power of minus this: 0 is plain cross-entropy,
            which gives up rare classes; 1 treats all classes alike.

    Raises:
        InputError: shapes that do not fit, no labelled point, a label outside the range, or features that are not
            finite where there is a label.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(f"features {list(features.shape)} and labels {list(labels.shape)} must be [N, D] and [N]")
    used = labels != IGNORE
    if not bool(used.any()):
        raise InputError("no point has a label: the probe has nothing to learn from")
    x, y = features[used].float(), labels[used].long()
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise InputError(f"labels span {low}..{high}, expected 0..{num_classes - 1}, or {IGNORE} for none")
    broken = int((~x.isfinite()).any(dim=1).sum())
    if broken:
        raise InputError(f"{broken} of {len(x)} labelled points have features that are not finite: label them {IGNORE}")
    frequency = torch.bincount(y, minlength=num_classes) / len(y)
    class_weight = frequency.clamp(min=1 / len(y)) ** -balance
    std, mean = torch.std_mean(x, dim=0, correction=0)
    std = std.clamp(min=1e-6)
    x = (x - mean) / std
    weight = torch.zeros(x.shape[1], num_classes, device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, history_size=20, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y, weight=class_weight) + weight_decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return LinearProbe(mean, std, weight.detach(), bias.detach())
