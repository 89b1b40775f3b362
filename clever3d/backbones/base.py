"""What all backbones share: ``extract``, from raw points to one feature per point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from clever3d.points import InputSpec, check_points, voxelize
from clever3d.sparse import SparseTensor


class DataclassInstance(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True)
class PointFeatures:
    """Features of a point cloud, one row per input point, in input order.

    Attributes:
        features: ``[N, D]`` float32; zeros where not valid.
        valid: ``[N]`` bool; False for points that are not finite, outside the backbone's range, or (0, 0, 0).
    """

    features: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.features)


class Backbone(nn.Module, ABC):
    """A LiDAR backbone: sparse tensor in, features at every scale out, finest last.

    Attributes:
        architecture: name in ``clever3d.backbones.ARCHITECTURES``.
        config: frozen dataclass from which the module was built.
        input_spec: what it expects of its points.
        feature_dim: D, width of a point's feature.
        pretrained_cfg: the zoo's record of the loaded weights, or None when they are random.
    """

    feature_dim: int

    def __init__(self, config: DataclassInstance, input_spec: InputSpec, architecture: str) -> None:
        super().__init__()
        self.config = config
        self.input_spec = input_spec
        self.architecture = architecture
        self.pretrained_cfg: dict[str, Any] | None = None

    @abstractmethod
    def forward(self, x: SparseTensor) -> list[SparseTensor]:
        """Features at every scale, coarsest first, finest (the input's voxels) last."""

    @abstractmethod
    def prepare(self, x: SparseTensor) -> None:
        """Builds every kernel map that ``forward`` needs of these voxels.

        Not necessary: ``forward`` builds what it misses. But a compiled ``forward`` is one graph only when nothing is
        missing, and on a GPU the few waits for the device are then over before the first layer starts.
        """

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def extract(self, points: Any, intensity: Any = None) -> PointFeatures:
        """A feature for every point of a cloud.

        Deterministic, and independent of the order of the points beyond rounding. The module is run in eval mode
        whatever mode it is in, and left as it was.

        Args:
            points: ``[N, 3]`` xyz or ``[N, 4]`` xyz + intensity; array or tensor of floats; metres; sensor frame with
                x forward, y left, z up.
            intensity: ``[N]`` in [0, 1], or None when the sensor gives none.

        Returns:
            Features ``[N, D]`` and validity ``[N]`` on the module's device.

        Raises:
            clever3d.Clever3dError: empty cloud, wrong shape, not floating point.

        Warns:
            InputWarning: invalid points (counted), coordinates that look like millimetres, odd intensity.
        """
        cloud = check_points(points, intensity, self.input_spec, self.device)
        features = torch.zeros(len(cloud.valid), self.feature_dim, device=self.device)
        if not bool(cloud.valid.any()):
            return PointFeatures(features, cloud.valid)
        voxels = voxelize([cloud], self.input_spec)
        tensor = voxels.tensor.with_feats(voxels.tensor.feats.to(next(self.parameters()).dtype))
        was_training = self.training
        self.eval()
        try:
            self.prepare(tensor)
            finest = self(tensor)[-1].feats.float()  # [V, D]
        finally:
            self.train(was_training)
        features[cloud.valid] = finest[voxels.point_to_voxel[0][cloud.valid]]
        return PointFeatures(features, cloud.valid)
