"""The distillation task: draws scans, runs the student, compares with the teacher."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clever3d.backbones import Backbone
from clever3d.datasets import Frame
from clever3d.distill.augment import AugmentConfig, change_intensity, keep_mask, transform
from clever3d.distill.config import DataConfig
from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.pairing import PairedScan, pair
from clever3d.distill.targets import TargetStats, TargetTransform, cosine, similarity_loss
from clever3d.errors import DataError
from clever3d.points import CheckedPoints, voxelize

logger = logging.getLogger(__name__)


def scene_weights(frames: Sequence[Frame], power: float) -> Tensor:
    """Sampling weights ``[F]`` of frames such that a scene of n frames is drawn with weight ``n ** power``."""
    sizes = Counter((frame.dataset, frame.scene) for frame in frames)
    return torch.tensor([sizes[frame.dataset, frame.scene] ** (power - 1) for frame in frames], dtype=torch.float64)


@dataclass(frozen=True)
class Batch:
    """Checked scans with the paired rows of each and the teacher's features there."""

    scans: list[CheckedPoints]
    rows: list[Tensor]
    targets: Tensor  # [sum M, C]


class Distillation:
    """Feature distillation of a frozen teacher into a backbone with a projection head.

    Every random choice of a step comes from one generator seeded with (seed, step), so a resumed run repeats the
    unbroken one without any state of its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        frames: Sequence[Frame],
        val: Sequence[Frame],
        cache: FeatureCache,
        *,
        data: DataConfig,
        augment: AugmentConfig,
        target: TargetTransform,
        seed: int,
    ) -> None:
        self.backbone, self.head = backbone, head
        self.module = nn.ModuleDict({"backbone": backbone, "head": head})
        self.frames, self.val, self.cache = frames, val, cache
        self.data, self.augment, self.target, self.seed = data, augment, target, seed
        self.frame_weights = scene_weights(frames, data.scene_power)
        self.stats = self._target_stats()

    def _generator(self, stream: int, step: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 4 + stream) * 1_000_003 + step)

    def _target_stats(self, draws: int = 200, points: int = 512, clusters: int = 32) -> TargetStats:
        """Statistics over pairs drawn as in training."""
        generator = self._generator(0, 0)
        picks = torch.multinomial(self.frame_weights, draws, replacement=True, generator=generator).tolist()
        features = []
        for index, count in sorted(Counter(picks).items()):
            targets = pair(self.frames[index], self.cache).targets
            chosen = torch.randperm(len(targets), generator=generator)[: count * points]
            features.append(targets[chosen])
        return TargetStats.from_features(torch.cat(features), clusters=clusters, seed=self.seed)

    def _augmented(self, scan: PairedScan, generator: torch.Generator) -> tuple[CheckedPoints, Tensor, Tensor]:
        """One scan as the student sees it, the rows of its drawn pairs, and their teacher features."""
        xyz = transform(scan.xyz, self.augment, generator)
        kept = keep_mask(scan.xyz, self.augment, generator)
        intensity = change_intensity(scan.intensity, self.augment, generator)
        valid = kept & self.backbone.input_spec.contains(xyz)
        alive = valid[scan.rows].nonzero().squeeze(1)
        if not len(alive):
            alive, valid = torch.arange(len(scan.rows)), self.backbone.input_spec.contains(xyz)
        weights = self.stats.weights(scan.targets[alive], self.data.balance)
        count = min(self.data.pairs, len(alive))
        drawn = alive[torch.multinomial(weights, count, generator=generator)]
        return CheckedPoints(xyz, intensity, valid), scan.rows[drawn], scan.targets[drawn]

    def _draw(self, step: int) -> Batch:
        generator = self._generator(1, step)
        picks = torch.multinomial(self.frame_weights, self.data.batch, replacement=True, generator=generator).tolist()
        parts = [self._augmented(pair(self.frames[index], self.cache), generator) for index in picks]
        return Batch([p[0] for p in parts], [p[1] for p in parts], torch.cat([p[2] for p in parts]))

    def _predict(self, batch: Batch) -> Tensor:
        """The head's output ``[sum M, C]`` at the batch's pairs."""
        device = self.backbone.device
        voxels = voxelize([scan.to(device) for scan in batch.scans], self.backbone.input_spec)
        rows = [where[index.to(device)] for where, index in zip(voxels.point_to_voxel, batch.rows, strict=True)]
        finest = self.backbone(voxels.tensor)[-1].feats  # [V, D]
        predicted: Tensor = self.head(finest.index_select(0, torch.cat(rows)))
        return predicted

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of one step over ``batch`` scans, and the number of voxels."""
        batch = self._draw(step)
        targets = self.stats.transform(batch.targets, self.target).to(self.backbone.device)
        return similarity_loss(self._predict(batch), targets), {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cosines on the validation frames, whole and unaugmented, beside those of the best constant answers.

        ``cosine`` is taken in the teacher's space, ``centred_cosine`` after removing the training mean from both.
        """
        if not self.val:
            return {}
        self.module.eval()
        sums: Counter[str] = Counter()
        for frame in self.val:
            for name, value in self._validate_frame(frame).items():
                sums[name] += value / len(self.val)
        return dict(sums)

    def _validate_frame(self, frame: Frame) -> dict[str, float]:
        scan = pair(frame, self.cache)
        inside = self.backbone.input_spec.contains(scan.xyz)
        alive = inside[scan.rows].nonzero().squeeze(1)
        if not len(alive):
            raise DataError(
                f"validation frame {frame.dataset}/{frame.id} has no paired point inside the student's range"
            )
        target = scan.targets[alive]  # [M, C]
        batch = Batch([CheckedPoints(scan.xyz, scan.intensity, inside)], [scan.rows[alive]], target)
        predicted = self._predict(batch).float().cpu()
        restored = self.stats.restore(predicted, self.target)
        mean = self.stats.mean
        return {
            "loss": float(similarity_loss(predicted, self.stats.transform(target, self.target))),
            "cosine": float(cosine(restored, target)),
            "constant_cosine": float(cosine(mean.expand_as(target), target)),
            "centred_cosine": float(cosine(restored - mean, target - mean)),
            "constant_centred_cosine": float(cosine(self.stats.direction.expand_as(target), target - mean)),
        }
