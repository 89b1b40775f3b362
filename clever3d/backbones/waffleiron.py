"""WaffleIron: dense 2D convolutions on three planes, of Puy et al., "Using a Waffle Iron for Automotive Point Cloud
Semantic Segmentation" (arXiv 2301.10100); the network of ScaLR (arXiv 2310.17504) and ScaLR+ (arXiv 2604.01361).

A token is an occupied voxel. It stands at the mean of the voxel's points and carries their mean channels, so that no
point is drawn at random and the order of the points does not matter (our choice; the authors' code keeps one point of
each voxel). The grids cover ``input_spec.point_range``; points outside it are invalid, as for every backbone.

The authors' checkpoints fit after ``from_valeoai``, by this table (d = 0, 1, ...; kernels of size 1 become matrices)::

    valeoai                        here
    embed.norm                     embedding.point_norm
    embed.conv1                    embedding.point
    embed.conv2.{0,1,2,4}          embedding.{offset_norm,hidden,hidden_norm,neighbor}
    embed.final                    embedding.merge
    waffleiron.spatial_mix.d.*     layers.d.spatial.*    (ffn.0, ffn.2: conv1, conv2)
    waffleiron.channel_mix.d.*     layers.d.channel.*    (mlp.0, mlp.2: linear1, linear2)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from clever3d.backbones.base import Backbone, FeatureInfo
from clever3d.errors import InputError
from clever3d.points import InputSpec, nearest_neighbors
from clever3d.sparse import SparseTensor

#: The axes that a plane keeps; the authors name it by the axis along which it projects (2, 1, 0).
PLANES = {"xy": (0, 1), "xz": (0, 2), "yz": (1, 2)}
#: Tokens whose neighbours are embedded at a time in inference: 16 neighbours at width 768 then take 6 MB, not 1.5 GB.
_BLOCK = 128


#: The largest that a configuration may ask for (our choice): it may come with a stranger's weights, whose shapes say
#: nothing of neighbours and grids.
_MOST = {"width": 1 << 16, "depth": 1 << 12, "neighbors": 1 << 10}
_MOST_CELLS = 1 << 12


@dataclass(frozen=True)
class WaffleIronConfig:
    """Shape of a WaffleIron.

    Attributes:
        width: channels of a token.
        depth: layers, each a mixing in space and one over channels.
        planes: the planes of projection, in turn: ``"xy"``, ``"xz"``, ``"yz"``.
        grids: cells of each plane along its two axes.
        neighbors: nearest tokens that the embedding looks at.
        norm: ``"layer"`` or ``"batch"`` before each mixing.
        activation: ``"relu"`` or ``"gelu"`` within each mixing.
        drop_path: probability that a scan skips a mixing, in training.
    """

    width: int = 768
    depth: int = 48
    planes: tuple[str, ...] = ("xy", "xz", "yz")
    grids: tuple[tuple[int, int], ...] = ((256, 256), (256, 32), (256, 32))
    neighbors: int = 16
    norm: str = "layer"
    activation: str = "relu"
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", tuple(tuple(grid) for grid in self.grids))
        for name, most in _MOST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise InputError(f"{name} {value!r} of a WaffleIron must be a whole number from 1 to {most:,}")
        if not self.planes or any(plane not in PLANES for plane in self.planes):
            raise InputError(f"planes {self.planes} must be some of {', '.join(PLANES)}")
        sizes = [size for grid in self.grids for size in grid]
        pairs = len(self.grids) == len(self.planes) and all(len(grid) == 2 for grid in self.grids)
        if not pairs or any(type(size) is not int or not 1 <= size <= _MOST_CELLS for size in sizes):
            raise InputError(
                f"grids {self.grids} must have two sizes from 1 to {_MOST_CELLS:,} for each of the planes {self.planes}"
            )
        if self.norm not in ("layer", "batch") or self.activation not in ("relu", "gelu"):
            raise InputError(
                f"norm {self.norm!r} must be 'layer' or 'batch', activation {self.activation!r} 'relu' or 'gelu'"
            )
        if not 0 <= self.drop_path < 1:
            raise InputError(f"drop_path {self.drop_path} is a probability: 0 <= drop_path < 1")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and differences: at least float32."""
    return torch.promote_types(dtype, torch.float32)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over rows ``[M, C]``; with fixed statistics in at least float32.

    In training a single row has no variance: it is normalised with the running statistics, which stay as they are
    (our choice; torch raises an error).
    """

    def forward(self, rows: Tensor) -> Tensor:
        if self.training and len(rows) > 1:
            return super().forward(rows.to(self.weight.dtype))
        assert self.running_mean is not None and self.running_var is not None
        wide = _wide(self.weight.dtype)
        mean, variance = self.running_mean.to(wide), self.running_var.to(wide)
        return F.batch_norm(rows.to(wide), mean, variance, self.weight.to(wide), self.bias.to(wide), eps=self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of rows ``[M, C]``, in at least float32."""

    def forward(self, rows: Tensor) -> Tensor:
        wide = _wide(self.weight.dtype)
        return F.layer_norm(rows.to(wide), self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)


def _norm(config: WaffleIronConfig) -> nn.Module:
    return LayerNorm(config.width) if config.norm == "layer" else BatchNorm(config.width)


def _activation(config: WaffleIronConfig) -> nn.Module:
    return nn.GELU() if config.activation == "gelu" else nn.ReLU(inplace=True)


@dataclass(frozen=True)
class Plane:
    """Which cell of one grid each token of the batch lies in.

    Attributes:
        shape: ``(scans, H, W)``.
        cells: ``[V]`` in 0..scans * H * W - 1, scan by scan, row by row.
        order: ``[V]`` tokens by cell.
        starts: ``[scans * H * W]`` where in ``order`` each cell begins.
    """

    shape: tuple[int, int, int]
    cells: Tensor
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, cells: Tensor, shape: tuple[int, int, int]) -> Plane:
        ordered, order = torch.sort(cells, stable=True)
        every = torch.arange(shape[0] * shape[1] * shape[2], device=cells.device)
        return cls(shape, cells, order, torch.searchsorted(ordered, every))

    def flatten(self, rows: Tensor) -> Tensor:
        """The mean of ``[V, C]`` in each cell, zeros where it is empty: ``[scans, C, H, W]`` in channels_last.

        Sums are in a fixed order, unlike those of ``index_add`` on a GPU.
        """
        scans, height, width = self.shape
        mean = F.embedding_bag(self.order, rows, self.starts, mode="mean")  # [scans * H * W, C]
        return mean.view(scans, height, width, mean.shape[1]).permute(0, 3, 1, 2)

    def inflate(self, grid: Tensor) -> Tensor:
        """Each token's cell: ``[scans, C, H, W]`` to ``[V, C]``."""
        return grid.permute(0, 2, 3, 1).flatten(0, 2)[self.cells]


def _kept_scans(share: float, scans: int, scan: Tensor) -> Tensor:
    """Stochastic depth: ``[V, 1]``, 0 for the tokens of dropped scans, else 1 / probability of being kept."""
    kept = (torch.rand(scans, device=scan.device) >= share).float() / (1 - share)
    return kept[scan].unsqueeze(1)


class Embedding(nn.Module):
    """Linear( [Linear(x_i), max_j MLP(x_j - x_i)] ), x = BN(channels), j = the neighbours of i."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.point_norm = BatchNorm(channels)
        self.point = nn.Linear(channels, width)
        self.offset_norm = BatchNorm(channels)
        self.hidden = nn.Linear(channels, width, bias=False)
        self.hidden_norm = BatchNorm(width)
        self.neighbor = nn.Linear(width, width, bias=False)
        self.merge = nn.Linear(2 * width, width)

    def forward(self, feats: Tensor, neighbors: Tensor) -> Tensor:
        """Tokens ``[V, C]`` of voxels ``[V, Cin]`` with neighbours ``[V, K]``."""
        x = self.point_norm(feats)
        if self.training:  # batch statistics are over all of them
            near = self.nearby(x, x, neighbors)
        else:
            blocks = zip(x.split(_BLOCK), neighbors.split(_BLOCK), strict=True)
            near = torch.cat([self.nearby(x, of, their) for of, their in blocks])
        return self.join(x, near)

    def nearby(self, x: Tensor, of: Tensor, neighbors: Tensor) -> Tensor:
        """max_j MLP(x_j - x_i) of tokens ``of`` ``[M, Cin]`` with neighbours ``[M, K]`` among ``x``: ``[M, C]``."""
        dtype = self.point.weight.dtype
        offsets = (x[neighbors] - of.unsqueeze(1)).flatten(0, 1)  # [M * K, Cin]
        hidden: Tensor = self.hidden_norm(self.hidden(self.offset_norm(offsets).to(dtype)))  # [M * K, C]
        found: Tensor = self.neighbor(F.relu_(hidden).to(dtype))
        return found.view(*neighbors.shape, found.shape[1]).amax(dim=1)

    def join(self, x: Tensor, near: Tensor) -> Tensor:
        """Linear([Linear(x_i), near_i]), in at least float32: the sum to which all layers add."""
        tokens: Tensor = self.merge(torch.cat([self.point(x.to(self.point.weight.dtype)), near], dim=1))
        return tokens.to(_wide(tokens.dtype))


class SpatialMix(nn.Module):
    """tokens + scale * inflate( conv(act(conv( flatten(norm(tokens)) ))) ), 3 x 3 convolutions of each channel."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = _norm(config)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.activation = _activation(config)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.scale = nn.Parameter(torch.empty(width).uniform_(-1, 1))  # as the authors' grouped convolution starts

    def forward(self, tokens: Tensor, plane: Plane, kept: Tensor | None) -> Tensor:
        grid = plane.flatten(self.norm(tokens)).to(self.conv1.weight.dtype)  # [scans, C, H, W]
        mixed = plane.inflate(self.conv2(self.activation(self.conv1(grid))))  # [V, C]
        return _add(tokens, mixed, self.scale, kept)


class ChannelMix(nn.Module):
    """tokens + scale * Linear(act(Linear(norm(tokens))))."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.norm = _norm(config)
        self.linear1 = nn.Linear(config.width, config.width)
        self.activation = _activation(config)
        self.linear2 = nn.Linear(config.width, config.width)
        self.scale = nn.Parameter(torch.empty(config.width).uniform_(-1, 1))  # as above

    def forward(self, tokens: Tensor, kept: Tensor | None) -> Tensor:
        mixed = self.linear2(self.activation(self.linear1(self.norm(tokens).to(self.linear1.weight.dtype))))  # [V, C]
        return _add(tokens, mixed, self.scale, kept)


def _add(tokens: Tensor, mixed: Tensor, scale: Tensor, kept: Tensor | None) -> Tensor:
    """tokens + kept * scale * mixed, in the type of the tokens."""
    mixed = mixed.to(tokens.dtype)
    return torch.addcmul(tokens, mixed if kept is None else mixed * kept, scale.to(tokens.dtype))


class Layer(nn.Module):
    """A mixing in space and one over channels."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.spatial = SpatialMix(config)
        self.channel = ChannelMix(config)

    def forward(self, tokens: Tensor, plane: Plane, kept: tuple[Tensor | None, Tensor | None]) -> Tensor:
        mixed: Tensor = self.channel(self.spatial(tokens, plane, kept[0]), kept[1])
        return mixed


class WaffleIron(Backbone):
    """Embedding of each token and its neighbours, then layers that mix in space on the planes in turn."""

    config: WaffleIronConfig

    def __init__(self, config: WaffleIronConfig, input_spec: InputSpec, architecture: str) -> None:
        super().__init__(config, input_spec, architecture)
        if missing := [axis for axis in "xyz" if axis not in input_spec.channels]:
            raise InputError(
                f"channels {input_spec.channels} lack {', '.join(missing)}: a WaffleIron reads positions from them"
            )
        self._position = [input_spec.channels.index(axis) for axis in "xyz"]
        self._recompute = False
        self.feature_dim = config.width
        self.feature_info = (FeatureInfo(f"layers.{config.depth - 1}", config.width, 1),)
        self.num_layers = config.depth + 1
        self.embedding = Embedding(len(input_spec.channels), config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))

    def prepare(self, x: SparseTensor) -> None:
        """Nothing: cells and neighbours follow from the positions among the channels, and ``forward`` finds them."""

    def cast(self, feats: Tensor) -> Tensor:
        """Input channels stay in float32: in bfloat16 a position would be wrong by up to 0.25 m."""
        return feats

    def layer_of(self, parameter: str) -> int:
        """0 for the embedding, n for the n-th layer from 1, as ScaLR's fine-tuning counts them."""
        part, number = parameter.split(".")[:2]
        return 0 if part == "embedding" else int(number) + 1

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training keeps only the tokens between layers and computes the rest again in the backward pass."""
        self._recompute = enable

    def forward(self, x: SparseTensor) -> list[SparseTensor]:
        """Features ``[V, width]`` of the input's voxels: the one scale of this network.

        Args:
            x: voxels with the channels of ``input_spec``, as from ``voxelize``, in float32 also for a module of a
                narrower type.
        """
        feats = x.feats.to(_wide(x.feats.dtype))
        xyz = feats[:, self._position]  # [V, 3]
        scan, scans = x.coords[:, 0].long(), x.num_scans
        planes = [
            Plane.of(scan * (height * width) + cells, (scans, height, width))
            for cells, (height, width) in zip(self.cells(xyz), self.config.grids, strict=True)
        ]
        neighbors = nearest_neighbors(xyz, scan, self.config.neighbors)
        tokens = self._run_layer(self.embedding, feats, neighbors)
        for depth, layer in enumerate(self.layers):
            kept = (self._kept(scan, scans), self._kept(scan, scans))
            tokens = self._run_layer(layer, tokens, planes[depth % len(planes)], kept)
        return [x.with_feats(tokens.to(self.embedding.merge.weight.dtype))]

    def cells(self, xyz: Tensor) -> list[Tensor]:
        """For each plane the cell of positions ``[V, 3]``, row by row: int64 ``[V]``. Outside, the nearest cell."""
        low, high = (xyz.new_tensor(v, dtype=torch.float64) for v in self.input_spec.corners)
        found = []
        for plane, grid in zip(self.config.planes, self.config.grids, strict=True):
            axes = list(PLANES[plane])
            size = xyz.new_tensor(grid, dtype=torch.float64)  # [2]
            place = ((xyz[:, axes].double() - low[axes]) / ((high - low)[axes] / size)).long()  # [V, 2]
            place = place.clamp(min=torch.zeros_like(size).long(), max=size.long() - 1)
            found.append(place[:, 0] * grid[1] + place[:, 1])
        return found

    def _kept(self, scan: Tensor, scans: int) -> Tensor | None:
        share = self.config.drop_path
        return _kept_scans(share, scans, scan) if self.training and share > 0 else None

    def _run_layer(self, layer: nn.Module, *args: Any) -> Tensor:
        if not (self._recompute and torch.is_grad_enabled()):
            output: Tensor = layer(*args)
            return output
        again: Tensor = checkpoint(
            layer, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(layer))
        )
        return again


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """What is computed a second time must not enter the running statistics a second time."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [
        (norm.momentum, norm.num_batches_tracked.clone()) for norm in norms if norm.num_batches_tracked is not None
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count


_EMBEDDING = {
    "embed.norm": "point_norm",
    "embed.conv1": "point",
    "embed.conv2.0": "offset_norm",
    "embed.conv2.1": "hidden",
    "embed.conv2.2": "hidden_norm",
    "embed.conv2.4": "neighbor",
    "embed.final": "merge",
}
_MIX = {"norm": "norm", "ffn.0": "conv1", "ffn.2": "conv2", "mlp.0": "linear1", "mlp.2": "linear2"}


def from_valeoai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and shapes for the state dict of the authors' ``Segmenter``.

    Args:
        state: keys ``embed.*`` and ``waffleiron.*``, perhaps behind ``module.``; ``classif.*``, the head of a
            segmentation or a distillation, is no part of the backbone and is left out.

    Returns:
        A state dict for the `WaffleIron` of the same configuration. A key that is none of theirs is kept as it is, so
        that strict loading names it.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(_ours(name, tensor) for name, tensor in plain.items() if not name.startswith("classif."))


def _ours(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Kernels of size 1 become matrices, those of LayerScale vectors; values stay."""
    module, _, leaf = name.rpartition(".")
    if module in _EMBEDDING:
        return f"embedding.{_EMBEDDING[module]}.{leaf}", _without_unit_axes(tensor, 2)
    match = re.fullmatch(r"waffleiron\.(spatial|channel)_mix\.(\d+)\.(.+)", module)
    if match and match[3] in _MIX:
        ours = f"layers.{match[2]}.{match[1]}.{_MIX[match[3]]}.{leaf}"
        return ours, tensor if match[3].startswith("ffn") else _without_unit_axes(tensor, 2)
    if match and f"{match[3]}.{leaf}" == "scale.weight":
        return f"layers.{match[2]}.{match[1]}.scale", _without_unit_axes(tensor, 1)
    return name, tensor


def _without_unit_axes(tensor: Tensor, axes: int) -> Tensor:
    while tensor.ndim > axes and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    return tensor
