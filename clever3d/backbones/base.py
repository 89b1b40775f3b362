"""What all backbones share: ``extract``, every scale, freezing, layer-wise learning rates, and the way to the Hub."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from clever3d.errors import InputError
from clever3d.points import CheckedPoints, InputSpec, Voxels, check_points, voxelize
from clever3d.sparse import SparseTensor, use_engine
from clever3d.sparse.coords import SortedKeys, pack

Self = TypeVar("Self", bound="Backbone")


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


@dataclass(frozen=True)
class FeatureInfo:
    """One of the outputs of a backbone's ``forward``.

    Attributes:
        name: of the module that gives it, as in ``named_modules()``.
        channels: width of its features.
        stride: edge of its voxels in voxels of the input.
    """

    name: str
    channels: int
    stride: int


class Backbone(nn.Module, ABC):
    """A LiDAR backbone: sparse tensor in, features at every scale out, finest last.

    Attributes:
        architecture: name in ``clever3d.backbones.ARCHITECTURES``.
        config: frozen dataclass from which the module was built.
        input_spec: what it expects of its points.
        feature_dim: D, width of a point's feature.
        feature_info: what ``forward`` returns, in that order: names, widths, strides.
        num_layers: layers that `layer_of` counts.
        engine: engine of its sparse convolutions (``clever3d.sparse.engines``), None for the one in force.
        pretrained_cfg: the zoo's record of the loaded weights, or None when they are random.
    """

    feature_dim: int
    feature_info: tuple[FeatureInfo, ...]
    num_layers: int

    def __init__(self, config: DataclassInstance, input_spec: InputSpec, architecture: str) -> None:
        super().__init__()
        self.config = config
        self.input_spec = input_spec
        self.architecture = architecture
        self.engine: str | None = None
        self.pretrained_cfg: dict[str, Any] | None = None
        self.fingerprint: str | None = None  # of the weights that pretrained_cfg describes; set by the zoo
        self._frozen = False

    @abstractmethod
    def forward(self, x: SparseTensor) -> list[SparseTensor]:
        """Features at every scale, coarsest first, finest (the input's voxels) last."""

    @abstractmethod
    def prepare(self, x: SparseTensor) -> None:
        """Builds all that ``forward`` needs of these voxels, such as kernel maps.

        Not necessary: ``forward`` builds what it misses. But a compiled ``forward`` is one graph only when nothing is
        missing, and on a GPU the few waits for the device are then over before the first layer starts.
        """

    @abstractmethod
    def layer_of(self, parameter: str) -> int:
        """The layer that a parameter belongs to, from 0 at the input to ``num_layers - 1`` at the output."""

    def cast(self, feats: Tensor) -> Tensor:
        """Input channels in the type that ``forward`` takes: that of the parameters."""
        return feats.to(next(self.parameters()).dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training recomputes activations in the backward pass: less memory, about a third more time.

        Raises:
            InputError: this architecture cannot.
        """
        if enable:
            raise InputError(f"{self.architecture} cannot recompute activations; WaffleIron can")

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
        return self._at_points(cloud, [len(self.feature_info) - 1])[0]

    @torch.no_grad()
    def extract_scales(
        self, points: Any, intensity: Any = None, *, out_indices: int | Iterable[int] | None = None
    ) -> list[PointFeatures]:
        """Features of every scale (timm's ``features_only``), for every point: those of the voxel that it lies in.

        Args:
            points: as in `extract`.
            intensity: as in `extract`.
            out_indices: which of ``feature_info``, one or several in any order; negative ones count from the finest;
                None for all.

        Returns:
            For each index its features ``[N, C]``, C being that scale's ``channels``.

        Raises:
            clever3d.Clever3dError: as `extract`, or an index that there is none of.
        """
        count = len(self.feature_info)
        if isinstance(out_indices, int):
            out_indices = [out_indices]
        wanted = list(range(count) if out_indices is None else out_indices)
        if wrong := [index for index in wanted if not -count <= index < count]:
            raise InputError(f"{self.architecture} has {count} scales, no {wrong[0]}: see its feature_info")
        cloud = check_points(points, intensity, self.input_spec, self.device)
        return self._at_points(cloud, [index % count for index in wanted])

    def _at_points(self, cloud: CheckedPoints, indices: list[int]) -> list[PointFeatures]:
        """Features of these outputs of ``forward``, for every point of a checked cloud."""
        widths = [self.feature_info[index].channels for index in indices]
        found = [torch.zeros(len(cloud.valid), width, device=self.device) for width in widths]
        if bool(cloud.valid.any()):
            voxels = voxelize([cloud], self.input_spec)
            outputs = self._run(voxels)
            rows = voxels.point_to_voxel[0][cloud.valid]  # [M]
            for features, index in zip(found, indices, strict=True):
                features[cloud.valid] = _rows_at(outputs[index], voxels.tensor)[rows].float()
        return [PointFeatures(features, cloud.valid) for features in found]

    def _run(self, voxels: Voxels) -> list[SparseTensor]:
        """``forward`` in eval mode and in the type of the parameters."""
        tensor = voxels.tensor.with_feats(self.cast(voxels.tensor.feats))
        was_training = self.training
        self.eval()
        try:
            with nullcontext() if self.engine is None else use_engine(self.engine):
                self.prepare(tensor)
                outputs: list[SparseTensor] = self(tensor)
        finally:
            self.train(was_training)
        return outputs

    def freeze(self: Self) -> Self:
        """Ends all learning: no gradients, and eval mode even after ``train()``, so that statistics stay too."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def unfreeze(self: Self) -> Self:
        """Undoes `freeze`; the module stays in eval mode until ``train()``."""
        self._frozen = False
        return self.requires_grad_(True)

    def train(self: Self, mode: bool = True) -> Self:
        return super().train(mode and not self._frozen)

    def parameter_groups(
        self, lr: float, *, weight_decay: float = 0.0, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer of ``torch.optim``, layers near the input learning slower.

        The learning rate of layer n is ``lr * layer_decay ** (num_layers - n)``: that of a head above the last layer
        would be ``lr`` (BEiT's rule, arXiv 2106.08254; ScaLR fine-tunes with 0.95 and 0.99). Parameters of one axis
        (biases, norms) get no weight decay.

        Args:
            lr: learning rate of a head.
            weight_decay: for the parameters with more than one axis.
            layer_decay: factor between neighbouring layers, in (0, 1].

        Returns:
            Dicts with ``params``, ``lr``, ``weight_decay``, ``layer``; frozen parameters are in none of them.

        Raises:
            InputError: ``layer_decay`` is not in (0, 1].
        """
        if not 0 < layer_decay <= 1:
            raise InputError(f"layer_decay {layer_decay} must be above 0 and at most 1")
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((self.layer_of(name), parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * layer_decay ** (self.num_layers - layer),
                "weight_decay": weight_decay if decays else 0.0,
                "layer": layer,
            }
            for (layer, decays), parameters in sorted(groups.items(), key=lambda group: group[0])
        ]

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Writes weights, ``config.json`` and card into a folder: see `clever3d.zoo.save_pretrained`."""
        from clever3d.zoo.publish import save_pretrained

        save_pretrained(self, folder, **options)

    def push_to_hub(self, repository: str, **options: Any) -> Any:
        """Publishes the backbone on the Hugging Face Hub: see `clever3d.zoo.push_to_hub`."""
        from clever3d.zoo.publish import push_to_hub

        return push_to_hub(self, repository, **options)

    @classmethod
    def from_pretrained(cls: type[Self], name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """`clever3d.load_backbone`; as a method of an architecture's class it must be of that class.

        ``organisation/name`` is taken as a repository of the Hub where no such folder exists.
        """
        from clever3d.zoo.loading import from_pretrained

        return from_pretrained(cls, name_or_path, **options)


def _rows_at(output: SparseTensor, finest: SparseTensor) -> Tensor:
    """Features ``[V, C]`` of an output at the voxels of the input."""
    if output.stride == finest.stride:
        return output.feats
    factor = torch.tensor([1, *output.stride], dtype=torch.int32, device=output.coords.device)
    parents = torch.div(finest.coords, factor, rounding_mode="floor")  # [V, 4]
    return output.feats[SortedKeys(output.coords).lookup(pack(parents))]
