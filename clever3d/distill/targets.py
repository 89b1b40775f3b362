"""Statistics of the teacher's features over the training images, and the targets made with them.

One vector, the mean feature, holds most of the energy of DINOv2's patch features: a student trained on plain cosine can
score well by predicting that constant. Removing the mean from the targets removes that answer. The mean is taken for
each data set by itself: sharpness, exposure and size of a camera's images shift all features of that camera, which no
LiDAR can see and no student should have to guess.
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
    """Statistics of teacher features at paired points, S data sets, K clusters.

    Attributes:
        mean: ``[S, C]``, of each data set; the mean of all where a set has no training frame.
        std: ``[C]``, per channel, of ``feature - mean``.
        length: mean norm of ``feature - mean``; gives a direction its scale back.
        direction: ``[C]`` mean of the normalised centred features: over these, the best constant once the mean is gone.
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
    def from_features(cls, features: Tensor, sets: Tensor, *, num_sets: int, clusters: int, seed: int) -> TargetStats:
        """Statistics of ``[N, C]`` features of data sets int64 ``[N]``."""
        counts = torch.bincount(sets, minlength=num_sets).unsqueeze(1)  # [S, 1]
        sums = features.new_zeros(num_sets, features.shape[1]).index_add_(0, sets, features)
        mean = torch.where(counts > 0, sums / counts.clamp(min=1), features.mean(0))
        centred = features - mean[sets]
        unit = F.normalize(centred, dim=1)
        centres, shares = _spherical_kmeans(unit, clusters, seed)
        std = centred.square().mean(0).sqrt().clamp(min=1e-6)
        return cls(mean, std, centred.norm(dim=1).mean(), unit.mean(0), centres, shares)

    def transform(self, features: Tensor, data_set: int, kind: TargetTransform) -> Tensor:
        """Training targets of teacher features ``[N, C]`` of one data set."""
        if kind == "none":
            return features
        centred = features - self.mean[data_set]
        return centred / self.std if kind == "standardize" else centred

    def restore(self, predicted: Tensor, data_set: int, kind: TargetTransform, gain: float = 1.0) -> Tensor:
        """Predictions ``[N, C]`` of transformed targets, of any length, back in the teacher's space.

        A cosine loss leaves the length of a prediction open: ``gain`` times the mean length of the centred features is
        taken. Of all lengths, the least-squares one is that with ``gain`` the cosine of prediction and target.
        """
        if kind == "none":
            return predicted
        centred = predicted * self.std if kind == "standardize" else predicted
        return self.mean[data_set] + F.normalize(centred, dim=1) * (self.length * gain)

    def weights(self, features: Tensor, data_set: int, power: float) -> Tensor:
        """Sampling weights ``[N]`` that even out what the teacher tells apart: ``share(cluster of feature) ** -power``.

        0 leaves the natural frequencies, 1 samples every cluster equally often. No labels are involved. Our choice.
        """
        if power == 0:
            return torch.ones(len(features))
        cluster = ((features - self.mean[data_set]) @ self.clusters.T).argmax(dim=1)
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
