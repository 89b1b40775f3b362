"""MinkUNet: the sparse residual U-Net of Choy et al., "4D Spatio-Temporal ConvNets" (arXiv 1904.08755).

Names and kernel layout are those of ``torchsparse.backbones.SparseResUNet``, the same network with two blocks a stage:
its checkpoints load as they are. SPVNAS names the stages differently; ``from_spvnas`` translates, by this table
(i = 0..3, j = 1, 2, ...)::

    SPVNAS                        here and torchsparse
    stem.*                        stem.*
    stage{i+1}.0.net.*            encoders.{i}.0.*
    stage{i+1}.{j}.net.*          encoders.{i}.{j}.main.*
    stage{i+1}.{j}.downsample.*   encoders.{i}.{j}.shortcut.*
    up{i+1}.0.net.*               decoders.{i}.upsample.*
    up{i+1}.1.{j-1}.net.*         decoders.{i}.fuse.{j-1}.main.*
    up{i+1}.1.{j-1}.downsample.*  decoders.{i}.fuse.{j-1}.shortcut.*
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clever3d.backbones.base import Backbone, FeatureInfo
from clever3d.errors import InputError
from clever3d.points import InputSpec
from clever3d.sparse import Conv3d, ConvTranspose3d, Epilogue, SparseTensor, cat


def from_spvnas(name: str) -> str:
    """Our name of a parameter of SPVNAS's MinkUNet; names that are the same in both are returned as they are."""
    parts = {"net": "main", "downsample": "shortcut"}
    if match := re.fullmatch(r"stage(\d)\.0\.net\.(.+)", name):
        return f"encoders.{int(match[1]) - 1}.0.{match[2]}"
    if match := re.fullmatch(r"stage(\d)\.(\d+)\.(net|downsample)\.(.+)", name):
        return f"encoders.{int(match[1]) - 1}.{match[2]}.{parts[match[3]]}.{match[4]}"
    if match := re.fullmatch(r"up(\d)\.0\.net\.(.+)", name):
        return f"decoders.{int(match[1]) - 1}.upsample.{match[2]}"
    if match := re.fullmatch(r"up(\d)\.1\.(\d+)\.(net|downsample)\.(.+)", name):
        return f"decoders.{int(match[1]) - 1}.fuse.{match[2]}.{parts[match[3]]}.{match[4]}"
    return name


@dataclass(frozen=True)
class MinkUNetConfig:
    """Shape of a MinkUNet.

    Attributes:
        blocks: residual blocks of the four encoder and the four decoder stages.
        planes: channels of those stages.
        stem: channels of the stem.
        width: multiplies all channels.
    """

    blocks: tuple[int, ...]
    planes: tuple[int, ...] = (32, 64, 128, 256, 256, 128, 96, 96)
    stem: int = 32
    width: float = 1.0

    def __post_init__(self) -> None:
        if len(self.blocks) != 8 or len(self.planes) != 8 or min(self.blocks) < 1:
            raise InputError(f"blocks {self.blocks} and planes {self.planes} must have 8 positive entries each")
        if min(self.channels) < 1:
            raise InputError(f"width {self.width} leaves a stage without channels")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the stem and the eight stages, after the width multiplier."""
        return tuple(int(self.width * c) for c in (self.stem, *self.planes))


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all voxels of the batch.

    In training a single voxel has no variance: it is normalised with the running statistics, which stay as they are
    (our choice; torch raises an error).
    """

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        if self.training and x.feats.shape[0] < 2:
            mean, variance = self.running_mean, self.running_var
            return x.with_feats(F.batch_norm(x.feats, mean, variance, self.weight, self.bias, False, 0.0, self.eps))
        return x.with_feats(super().forward(x.feats))

    def epilogue(self, residual: Tensor | None, relu: bool) -> Epilogue:
        """With fixed statistics: ``(x - mean) / sqrt(var + eps) * weight + bias`` as ``x * scale + shift``."""
        assert self.running_mean is not None and self.running_var is not None
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.weight.to(wide) * torch.rsqrt(self.running_var.to(wide) + self.eps)
        return Epilogue(scale, self.bias.to(wide) - self.running_mean.to(wide) * scale, residual, relu)


class ReLU(nn.Module):
    """max(x, 0)."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.with_feats(F.relu(x.feats))


class ConvSequence(nn.Sequential):
    """Convolutions, each followed by a BatchNorm and perhaps a ReLU; in inference each group is one pass."""

    def forward(self, x: SparseTensor, residual: Tensor | None = None) -> SparseTensor:
        """With ``residual`` ``[V, Cout]``: ReLU(sequence(x) + residual)."""
        layers = list(self)
        if self.training or torch.is_grad_enabled():
            for layer in layers:
                x = layer(x)
            return x if residual is None else x.with_feats(F.relu(x.feats + residual))
        for n, layer in enumerate(layers):
            if not isinstance(layer, BatchNorm):
                continue
            last = n == len(layers) - 1
            relu = residual is not None if last else isinstance(layers[n + 1], ReLU)
            x = layers[n - 1](x, layer.epilogue(residual if last else None, relu))
        return x


class ResidualBlock(nn.Module):
    """ReLU( BN(conv3(ReLU(BN(conv3(x))))) + shortcut(x) ), the shortcut a BN(conv1(x)) where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.main = ConvSequence(
            Conv3d(in_channels, out_channels, 3),
            BatchNorm(out_channels),
            ReLU(),
            Conv3d(out_channels, out_channels, 3),
            BatchNorm(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = ConvSequence(Conv3d(in_channels, out_channels, 1), BatchNorm(out_channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        y: SparseTensor = self.main(x, self.shortcut(x).feats)
        return y


def _residual_blocks(count: int, in_channels: int, out_channels: int) -> list[nn.Module]:
    return [ResidualBlock(in_channels if n == 0 else out_channels, out_channels) for n in range(count)]


def _stem(in_channels: int, out_channels: int) -> ConvSequence:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [Conv3d(channels, out_channels, 3), BatchNorm(out_channels), ReLU()]
    return ConvSequence(*layers)


class MinkUNet(Backbone):
    """Stem, four stages down (conv2 stride 2, residual blocks), four stages up (transposed conv2, skip, blocks)."""

    def __init__(self, config: MinkUNetConfig, input_spec: InputSpec, architecture: str) -> None:
        super().__init__(config, input_spec, architecture)
        width = config.channels
        self.feature_dim = width[8]
        names = ["encoders.3", *(f"decoders.{n}" for n in range(4))]
        self.feature_info = tuple(FeatureInfo(names[n], width[4 + n], 16 >> n) for n in range(5))
        self.num_layers = 9
        self.stem = _stem(len(input_spec.channels), width[0])
        self.encoders = nn.ModuleList()
        for n in range(4):
            down = ConvSequence(Conv3d(width[n], width[n], 2, stride=2), BatchNorm(width[n]), ReLU())
            self.encoders.append(nn.Sequential(down, *_residual_blocks(config.blocks[n], width[n], width[n + 1])))
        self.decoders = nn.ModuleList()
        for n in range(4):
            before, after, skip = width[4 + n], width[5 + n], width[3 - n]
            up = ConvSequence(ConvTranspose3d(before, after, 2, stride=2), BatchNorm(after), ReLU())
            fuse = nn.Sequential(*_residual_blocks(config.blocks[4 + n], after + skip, after))
            self.decoders.append(nn.ModuleDict({"upsample": up, "fuse": fuse}))

    def prepare(self, x: SparseTensor) -> None:
        stride = x.stride
        for level in range(5):
            x.pyramid.prepare(stride, (3, 3, 3), (1, 1, 1), x.feats)
            if level < 4:
                x.pyramid.prepare(stride, (2, 2, 2), (2, 2, 2), x.feats)
                stride = (2 * stride[0], 2 * stride[1], 2 * stride[2])

    def layer_of(self, parameter: str) -> int:
        """The stem is layer 0, the encoders are 1 to 4, the decoders 5 to 8 (our choice)."""
        first = {"stem": 0, "encoders": 1, "decoders": 5}
        part, number = parameter.split(".")[:2]
        return first[part] if part == "stem" else first[part] + int(number)

    def forward(self, x: SparseTensor) -> list[SparseTensor]:
        """Decoder features at strides 16 (bottleneck), 8, 4, 2, 1."""
        down = [self.stem(x)]  # strides 1, 2, 4, 8, 16
        for encoder in self.encoders:
            down.append(encoder(down[-1]))
        outputs = [down.pop()]
        for decoder in self.decoders:
            stage = cast(nn.ModuleDict, decoder)
            upsampled = stage["upsample"](outputs[-1])
            outputs.append(stage["fuse"](cat([upsampled, down.pop()])))
        return outputs
