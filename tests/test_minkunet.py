"""MinkUNet: published sizes, torchsparse's names, and shapes at every scale."""

from __future__ import annotations

import pytest
import torch

from clever3d.backbones import ARCHITECTURES, create_backbone
from clever3d.backbones.minkunet import from_spvnas
from clever3d.errors import InputError, UnknownNameError
from clever3d.points import InputSpec
from clever3d.sparse import SparseTensor

FOUR_CHANNELS = InputSpec(channels=("dx", "dy", "dz", "intensity"))


def voxels(count: int = 400, channels: int = 8, seed: int = 0) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-20, 20, (count, 3), generator=generator).unique(dim=0)
    coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.long), coords], dim=1)
    return SparseTensor(torch.randn(len(coords), channels, generator=generator), coords)


def torchsparse_names() -> set[str]:
    """State-dict keys of torchsparse's SparseResUNet (two blocks a stage), written down from its structure."""

    def conv_bn(prefix: str, first: int) -> list[str]:
        norm = [
            f"{prefix}{first + 1}.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ]
        return [f"{prefix}{first}.kernel", *norm]

    def block(prefix: str, widens: bool) -> list[str]:
        names = conv_bn(f"{prefix}main.", 0) + conv_bn(f"{prefix}main.", 3)
        return names + (conv_bn(f"{prefix}shortcut.", 0) if widens else [])

    names = conv_bn("stem.", 0) + conv_bn("stem.", 3)
    for i, widens in enumerate([False, True, True, True]):  # 32-32, 32-64, 64-128, 128-256
        names += conv_bn(f"encoders.{i}.0.", 0)
        names += block(f"encoders.{i}.1.", widens) + block(f"encoders.{i}.2.", False)
        names += conv_bn(f"decoders.{i}.upsample.", 0)
        names += block(f"decoders.{i}.fuse.0.", True) + block(f"decoders.{i}.fuse.1.", False)
    return set(names)


@pytest.mark.parametrize(("name", "millions"), [("minkunet18", 21.7), ("minkunet34", 37.9)])
def test_parameter_counts_are_the_published_ones(name: str, millions: float) -> None:
    """21.7 M: MinkowskiNet in the SPVNAS paper (arXiv 2007.16100); 37.9 M: MinkUNet34 in its authors' repository."""
    backbone = create_backbone(name, input_spec=FOUR_CHANNELS)
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 1) == millions
    assert backbone.feature_dim == 96


def test_a_torchsparse_checkpoint_has_our_names_and_shapes() -> None:
    backbone = create_backbone("minkunet18", input_spec=FOUR_CHANNELS)
    state = backbone.state_dict()
    assert set(state) == torchsparse_names()
    assert state["stem.0.kernel"].shape == (27, 4, 32)
    assert state["encoders.1.0.0.kernel"].shape == (8, 32, 32)
    assert state["encoders.1.1.shortcut.0.kernel"].shape == (32, 64)
    assert state["decoders.3.fuse.0.main.0.kernel"].shape == (27, 96 + 32, 96)


def test_spvnas_names_translate_onto_every_parameter() -> None:
    theirs = {
        "stem.4.running_var": "stem.4.running_var",
        "stage1.0.net.0.kernel": "encoders.0.0.0.kernel",
        "stage4.2.net.3.kernel": "encoders.3.2.main.3.kernel",
        "stage2.1.downsample.1.weight": "encoders.1.1.shortcut.1.weight",
        "up1.0.net.1.bias": "decoders.0.upsample.1.bias",
        "up4.1.0.net.0.kernel": "decoders.3.fuse.0.main.0.kernel",
        "up3.1.0.downsample.0.kernel": "decoders.2.fuse.0.shortcut.0.kernel",
    }
    state = create_backbone("minkunet18").state_dict()
    for name, ours in theirs.items():
        assert from_spvnas(name) == ours and ours in state


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("minkunet")])
def test_every_scale_is_returned_finest_last(name: str) -> None:
    x = voxels()
    backbone = create_backbone(name).eval()
    with torch.no_grad():
        scales = backbone(x)
    assert [s.stride[0] for s in scales] == [16, 8, 4, 2, 1]
    assert scales[-1].pyramid is x.pyramid and scales[-1].feats.shape == (len(x), backbone.feature_dim)
    assert all(torch.isfinite(s.feats).all() for s in scales)


def test_every_parameter_receives_a_gradient() -> None:
    backbone = create_backbone("minkunet_small", width=0.25)
    backbone(voxels())[-1].feats.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in backbone.parameters())


def test_width_multiplies_all_channels() -> None:
    backbone = create_backbone("minkunet34", width=0.5)
    assert backbone.feature_dim == 48 and backbone.stem[0].kernel.shape == (27, 8, 16)


def test_unknown_architecture_and_option_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'minkunet34'"):
        create_backbone("minkunet33")
    with pytest.raises(InputError, match="has no option depth"):
        create_backbone("minkunet18", depth=3)
    with pytest.raises(InputError, match="8 positive"):
        create_backbone("minkunet18", blocks=(1, 2))
