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
from clever3d.datasets.augment import AugmentConfig, change, keep_mask
from clever3d.datasets.loading import BadFrame, BadFrames, draw_usable, sample_generator
from clever3d.datasets.occlusion import OcclusionConfig
from clever3d.distill.config import DataConfig
from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.pairing import pair, paired_targets
from clever3d.distill.targets import TargetStats, TargetTransform, cosine, similarity_loss
from clever3d.errors import DataError
from clever3d.points import CheckedPoints, voxelize
from clever3d.sparse.coords import pack

logger = logging.getLogger(__name__)

#: Training frames on which the length of predictions is set, for validation (our choice).
GAIN_FRAMES = 8


@dataclass(frozen=True)
class Example:
    """A frame and the number of the data set it comes from, as listed in ``--data.sets``."""

    frame: Frame
    data_set: int

    @property
    def name(self) -> str:
        """What the patterns of ``--data.val`` and ``--data.exclude`` are matched with."""
        return f"{self.frame.dataset}/{self.frame.id}"

    @property
    def title(self) -> str:
        """Its name, with the data set's number after the first one: frames of two rigs may share their names."""
        return self.name if self.data_set == 0 else f"{self.name} (data set {self.data_set + 1})"


def scene_weights(examples: Sequence[Example], power: float) -> Tensor:
    """Sampling weights ``[F]`` such that a scene of n frames is drawn with weight ``n ** power``."""
    scenes = [(example.data_set, example.frame.scene) for example in examples]
    sizes = Counter(scenes)
    return torch.tensor([sizes[scene] ** (power - 1) for scene in scenes], dtype=torch.float64)


@dataclass(frozen=True)
class Batch:
    """Checked scans with the paired rows of each and the targets there."""

    scans: list[CheckedPoints]
    rows: list[Tensor]
    targets: Tensor  # [sum M, C]


def _crowd(xyz: Tensor, voxel_size: float) -> Tensor:
    """How many of the points ``[N, 3]`` share each one's voxel: divided by it, every voxel counts once."""
    grid = torch.floor(xyz.double() / voxel_size).long()
    first = grid[:, :1] * 0  # one scan
    _, voxel, counts = torch.unique(pack(torch.cat([first, grid], dim=1)), return_inverse=True, return_counts=True)
    crowd: Tensor = counts[voxel]
    return crowd


def _paired(rows: Tensor, valid: Tensor, example: Example) -> Tensor:
    """Which pairs lie on valid points: int64 indices into ``rows``, at least one."""
    alive = valid[rows].nonzero().squeeze(1)
    if not len(alive):
        raise DataError(f"frame {example.name} has no paired point inside the student's range: use --data.exclude")
    return alive


def predict(backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
    """The head's output ``[sum M, C]`` at the batch's pairs."""
    device = backbone.device
    voxels = voxelize([scan.to(device) for scan in batch.scans], backbone.input_spec)
    rows = [where[index.to(device)] for where, index in zip(voxels.point_to_voxel, batch.rows, strict=True)]
    finest = backbone(voxels.tensor)[-1].feats  # [V, D]
    predicted: Tensor = head(finest.index_select(0, torch.cat(rows)))
    return predicted


@torch.no_grad()
def compare(
    backbone: Backbone,
    head: nn.Module,
    stats: TargetStats,
    example: Example,
    cache: FeatureCache,
    target: TargetTransform,
    gain: float = 1.0,
) -> dict[str, float]:
    """Cosines of a student in eval mode on one whole frame, beside those of the training set's best constants.

    ``cosine`` is taken in the teacher's space (``gain``: see :meth:`TargetStats.restore`), ``centred_cosine`` after
    removing the data set's mean from both. All points that fall into an image count, whatever ``--data.below`` and
    ``--data.occlusion`` say, so that figures of runs with different options can be compared.

    Raises:
        DataError: no paired point lies inside the student's range.
    """
    scan = pair(example.frame, cache)
    rows, targets = paired_targets(scan)
    inside = backbone.input_spec.contains(scan.xyz)
    alive = _paired(rows, inside, example)
    truth = targets[alive]  # [M, C]
    batch = Batch([CheckedPoints(scan.xyz, scan.intensity, inside)], [rows[alive]], truth)
    predicted = predict(backbone, head, batch).float().cpu()
    restored = stats.restore(predicted, example.data_set, target, gain)
    mean = stats.mean[example.data_set]
    deviation = stats.restore(predicted, example.data_set, target) - mean  # without the gain, whatever its sign
    return {
        "loss": float(similarity_loss(predicted, stats.transform(truth, example.data_set, target))),
        "cosine": float(cosine(restored, truth)),
        "constant_cosine": float(cosine(mean.expand_as(truth), truth)),
        "centred_cosine": float(cosine(deviation, truth - mean)),
        "constant_centred_cosine": float(cosine(stats.direction.expand_as(truth), truth - mean)),
    }


def mean_centred_cosine(
    backbone: Backbone,
    head: nn.Module,
    stats: TargetStats,
    examples: Sequence[Example],
    cache: FeatureCache,
    target: TargetTransform,
) -> float:
    """Mean ``centred_cosine`` over frames: on training frames it is the gain of :meth:`TargetStats.restore`."""
    cosines = [compare(backbone, head, stats, example, cache, target)["centred_cosine"] for example in examples]
    return sum(cosines) / len(cosines)


class Distillation:
    """Feature distillation of a frozen teacher into a backbone with a projection head.

    Every random choice of a step comes from generators seeded with (seed, step), so a resumed run repeats the unbroken
    one without any state of its own. A frame with broken files is left out, in training another takes its place, and
    ``bad`` counts it.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        train: Sequence[Example],
        val: Sequence[Example],
        cache: FeatureCache,
        *,
        data: DataConfig,
        augment: AugmentConfig,
        target: TargetTransform,
        seed: int,
        bad: BadFrames | None = None,
    ) -> None:
        self.backbone, self.head = backbone, head
        self.module: nn.Module = nn.ModuleDict({"backbone": backbone, "head": head})
        self.train, self.val, self.cache = train, val, cache
        self.data, self.augment, self.target, self.seed = data, augment, target, seed
        self.occlusion = OcclusionConfig() if data.occlusion else None
        self.bad = BadFrames(len({e.title for e in (*train, *val)}), data.max_bad) if bad is None else bad
        self.frame_weights = scene_weights(train, data.scene_power)
        self.stats = self._target_stats()

    def _target_stats(self, draws: int = 200, points: int = 512, clusters: int = 32) -> TargetStats:
        """Statistics over pairs drawn as in training, of all cameras."""
        generator = sample_generator(self.seed, 0)
        picks = torch.multinomial(self.frame_weights, draws, replacement=True, generator=generator).tolist()
        features, sets = [], []
        for index, count in sorted(Counter(picks).items()):
            example = self.train[index]
            try:
                _, targets = paired_targets(
                    pair(example.frame, self.cache, below=self.data.below, occlusion=self.occlusion)
                )
            except DataError as error:
                self.bad.add([BadFrame(example.title, str(error))])
                continue
            chosen = torch.randperm(len(targets), generator=generator)[: count * points]
            features.append(targets[chosen])
            sets.append(torch.full((len(chosen),), example.data_set))
        if not features:
            raise self.bad.error()
        num_sets = 1 + max(example.data_set for example in (*self.train, *self.val))
        return TargetStats.from_features(
            torch.cat(features), torch.cat(sets), num_sets=num_sets, clusters=clusters, seed=self.seed
        )

    def _augmented(self, example: Example, generator: torch.Generator) -> tuple[CheckedPoints, Tensor, Tensor]:
        """One scan as the student sees it, the rows of its drawn pairs, and the targets there."""
        scan = pair(
            example.frame,
            self.cache,
            below=self.data.below,
            which=self.data.cameras,
            occlusion=self.occlusion,
            generator=generator,
        )
        rows, targets = paired_targets(scan)
        changed = change(scan, self.augment, generator)
        kept = keep_mask(scan.xyz, self.augment, generator)
        inside = self.backbone.input_spec.contains(changed.xyz)
        valid = kept & inside
        if not bool(valid[rows].any()):
            valid = inside  # better the whole scan than none of its pairs
        alive = _paired(rows, valid, example)
        weights = self.stats.weights(targets[alive], example.data_set, self.data.balance)
        weights = weights / _crowd(changed.xyz[rows[alive]], self.backbone.input_spec.voxel_size)
        count = min(self.data.pairs, len(alive))
        drawn = alive[torch.multinomial(weights, count, generator=generator)]
        wanted = self.stats.transform(targets[drawn], example.data_set, self.target)
        return CheckedPoints(changed.xyz, changed.intensity, valid), rows[drawn], wanted

    def _draw(self, step: int) -> Batch:
        generator = sample_generator(self.seed, 1, step)
        picks = torch.multinomial(self.frame_weights, self.data.batch, replacement=True, generator=generator).tolist()
        parts = [
            self.bad.take(
                draw_usable(
                    lambda number, own: self._augmented(self.train[number], own),
                    index,
                    (self.seed, 1, step, slot),
                    frames=len(self.train),
                    name=lambda number: self.train[number].title,
                    max_bad=self.bad.max_bad,
                    weights=self.frame_weights,
                )
            )
            for slot, index in enumerate(picks)
        ]
        return Batch([p[0] for p in parts], [p[1] for p in parts], torch.cat([p[2] for p in parts]))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of one step over ``batch`` scans."""
        batch = self._draw(step)
        return similarity_loss(predict(self.backbone, self.head, batch), batch.targets.to(self.backbone.device)), {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means of :func:`compare` over the validation frames; ``train_centred_cosine`` of a few training frames."""
        if not self.val:
            return {}
        self.module.eval()
        seen = self.train[:: max(1, len(self.train) // GAIN_FRAMES)][:GAIN_FRAMES]
        gain = self._compared(seen)["centred_cosine"]
        return {"train_centred_cosine": gain, **self._compared(self.val, max(gain, 0.0))}

    def _compared(self, examples: Sequence[Example], gain: float = 1.0) -> dict[str, float]:
        """Means of :func:`compare` over the frames that can be used."""
        figures = []
        for example in examples:
            try:
                figures.append(
                    compare(self.backbone, self.head, self.stats, example, self.cache, self.target, gain)
                )  # fmt: skip
            except DataError as error:
                self.bad.add([BadFrame(example.title, str(error))])
        if not figures:
            raise self.bad.error()
        return {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}
