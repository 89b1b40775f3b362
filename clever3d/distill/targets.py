"""Statistics of the teacher's features over the training images, and the targets made with them.

One vector, the mean feature, holds most of the energy of DINOv2's patch features: a student trained on plain cosine can
score well by predicting that constant. Removing the mean from the targets removes that answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

TargetTransform = Literal["center", "none", "standardize"]


@dataclass(frozen=True)
class TargetStats:
    """Statistics of teacher features at paired points.

    Attributes:
        mean: ``[C]``.
        std: ``[C]``, per channel.
        length: mean norm of ``feature - mean``; gives a direction its scale back.
        direction: ``[C]`` mean of the normalised centred features: the best constant answer once the mean is gone.
        clusters: ``[K, C]`` unit vectors, k-means centres of the normalised centred features.
        shares: ``[K]`` share of the features in each cluster.
    """

    mean: Tensor
    std: Tensor
    length: Tensor
    direction: Tensor
    clusters: Tensor
    shares: Tensor

    @classmethod
    def from_features(cls, features: Tensor, *, clusters: int, seed: int) -> TargetStats:
        """Statistics of ``[N, C]`` features."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        centred = features - mean
        unit = F.normalize(centred, dim=1)
        centres, shares = _spherical_kmeans(unit, clusters, seed)
        return cls(mean, std.clamp(min=1e-6), centred.norm(dim=1).mean(), unit.mean(0), centres, shares)

    def transform(self, features: Tensor, kind: TargetTransform) -> Tensor:
        """Training targets of teacher features ``[N, C]``."""
        if kind == "none":
            return features
        centred = features - self.mean
        return centred / self.std if kind == "standardize" else centred

    def restore(self, predicted: Tensor, kind: TargetTransform) -> Tensor:
        """Predictions ``[N, C]`` of transformed targets, of any length, back in the teacher's space.

        A cosine loss leaves the length of a prediction open; the mean length of the centred features is taken.
        """
        if kind == "none":
            return predicted
        centred = predicted * self.std if kind == "standardize" else predicted
        return self.mean + F.normalize(centred, dim=1) * self.length

    def weights(self, features: Tensor, power: float) -> Tensor:
        """Sampling weights ``[N]`` that even out what the teacher distinguishes: ``share(cluster of feature) ** -power``.

        0 leaves the natural frequencies, 1 samples every cluster equally often. No labels are involved. Our choice.
        """
        if power == 0:
            return torch.ones(len(features))
        cluster = ((features - self.mean) @ self.clusters.T).argmax(dim=1)
        return self.shares[cluster].clamp(min=1e-4) ** -power


def _spherical_kmeans(unit: Tensor, count: int, seed: int, iterations: int = 20) -> tuple[Tensor, Tensor]:
    """Centres ``[K, C]`` (unit vectors) and shares ``[K]`` of Lloyd's algorithm on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    count = min(count, len(unit))
    centres = unit[torch.randperm(len(unit), generator=generator)[:count]]
    for _ in range(iterations):
        cluster = (unit @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, cluster, unit)
        empty = sums.norm(dim=1) == 0
        centres = torch.where(empty.unsqueeze(1), centres, F.normalize(sums, dim=1))
    cluster = (unit @ centres.T).argmax(dim=1)
    return centres, torch.bincount(cluster, minlength=count) / len(unit)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine of the angle between rows of ``[N, C]`` tensors."""
    return F.cosine_similarity(a, b, dim=1).mean()


def similarity_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """``mean(1 - cos(predicted, target))`` over rows ``[N, C]``."""
    return 1 - cosine(predicted, target)
