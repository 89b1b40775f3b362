"""Segmentation scores from a confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from clever3d.errors import InputError

IGNORE = -1


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts int64 ``[num_classes, num_classes]``, rows the target, columns the prediction.

    Args:
        predicted: int ``[N]`` in 0..num_classes - 1.
        target: int ``[N]``; points with target ``IGNORE`` (-1) do not count.

    Raises:
        InputError: different lengths, or a class outside the range.
    """
    if predicted.shape != target.shape or predicted.ndim != 1:
        raise InputError(f"predicted {list(predicted.shape)} and target {list(target.shape)} must both be [N]")
    counted = target != IGNORE
    predicted, target = predicted[counted].long(), target[counted].long()
    for name, values in (("predicted", predicted), ("target", target)):
        if not len(values):
            continue
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= num_classes:
            raise InputError(f"{name} classes span {low}..{high}, expected 0..{num_classes - 1}")
    return torch.bincount(target * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """IoU of each class, ``TP / (TP + FP + FN)``, float64 ``[num_classes]``; NaN where a class never occurs."""
    hits = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return hits / union.double()


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU over the classes present in the target (absent ones would only measure the split)."""
    present = confusion.sum(1) > 0
    return float(intersection_over_union(confusion)[present].mean())


def accuracy(confusion: Tensor) -> float:
    """Share of the counted points whose class is right."""
    return float(confusion.diagonal().sum() / confusion.sum())
