"""What all backbones share: scales, freezing, learning rates by layer, engines, torch.hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import clever3d
from clever3d.backbones import ARCHITECTURES, Backbone, create_backbone
from clever3d.errors import InputError, UnknownNameError
from clever3d.sparse import use_engine

REPOSITORY = Path(__file__).resolve().parents[1]
SLIM = {"minkunet": {"width": 0.1}, "waffleiron": {"width": 8, "depth": 4}}


def slim(name: str) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(name, **SLIM[name.split("_")[0].rstrip("0123456789")])


every_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))


def cloud(count: int = 400) -> np.ndarray:
    return np.random.default_rng(0).uniform((-6, -6, -1.5), (6, 6, 1.5), (count, 3)).astype(np.float32)


# ---- scales ----


@every_architecture
def test_feature_info_tells_what_every_scale_is(name: str) -> None:
    backbone = slim(name).eval()
    points = cloud()
    scales = backbone.extract_scales(points)
    assert [one.features.shape for one in scales] == [(400, info.channels) for info in backbone.feature_info]
    assert backbone.feature_info[-1].stride == 1 and backbone.feature_info[-1].channels == backbone.feature_dim
    assert torch.equal(scales[-1].features, backbone.extract(points).features)
    modules = dict(backbone.named_modules())
    assert all(info.name in modules for info in backbone.feature_info)


def test_points_of_one_coarse_voxel_share_its_feature_and_others_do_not() -> None:
    """Voxels of 0.1 m: at stride 4 the cells are 0.4 m wide, also below zero."""
    backbone = slim("minkunet18").eval()
    points = torch.from_numpy(cloud())
    for scale, info in zip(backbone.extract_scales(points), backbone.feature_info, strict=True):
        cells = torch.floor(points.double() / 0.1).floor_divide(info.stride)
        same_cell = (cells[:, None] == cells[None]).all(dim=2)
        same_feature = (scale.features[:, None] == scale.features[None]).all(dim=2)
        assert same_feature[same_cell].all(), info
        if info.stride >= 4:  # finer voxels that stand alone may all have the same feature
            assert torch.equal(same_cell, same_feature), info


def test_scales_are_those_of_forward() -> None:
    backbone = slim("minkunet18").eval()
    captured = []
    backbone.register_forward_hook(lambda _, __, outputs: captured.extend(outputs))
    coarse, fine = backbone.extract_scales(cloud(), out_indices=(0, -1))
    assert [output.stride[0] for output in captured] == [info.stride for info in backbone.feature_info]
    assert set(map(tuple, coarse.features.tolist())) == set(map(tuple, captured[0].feats.tolist()))
    assert fine.features.shape[1] == backbone.feature_dim
    turned = backbone.extract_scales(cloud(), out_indices=[-1, 0])
    assert torch.equal(turned[0].features, fine.features) and torch.equal(turned[1].features, coarse.features)
    assert torch.equal(backbone.extract_scales(cloud(), out_indices=0)[0].features, coarse.features)
    with pytest.raises(InputError, match="has 5 scales, no 5"):
        backbone.extract_scales(cloud(), out_indices=[5])


# ---- learning ----


@every_architecture
def test_frozen_backbone_learns_nothing_even_in_train_mode(name: str) -> None:
    backbone = slim(name).freeze()
    backbone.train()
    assert not backbone.training and not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.parameter_groups(1e-3) == []
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.extract(cloud())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    backbone.unfreeze().train()
    assert backbone.training and all(parameter.requires_grad for parameter in backbone.parameters())


@every_architecture
def test_parameter_groups_hold_every_parameter_once_and_slow_down_towards_the_input(name: str) -> None:
    backbone = slim(name)
    groups = backbone.parameter_groups(0.1, weight_decay=0.01, layer_decay=0.5)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found)) == len(list(backbone.parameters()))
    layers = {group["layer"] for group in groups}
    assert layers == set(range(backbone.num_layers))
    for group in groups:
        assert group["lr"] == pytest.approx(0.1 / 2 ** (backbone.num_layers - group["layer"]))
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
    first = next(iter(dict(backbone.named_parameters())))
    assert backbone.layer_of(first) == 0
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("layer_decay", [0.0, -1.0, 1.5, float("nan")])
def test_layer_decay_that_is_none_is_refused(layer_decay: float) -> None:
    with pytest.raises(InputError, match="layer_decay"):
        slim("minkunet18").parameter_groups(0.1, layer_decay=layer_decay)


def test_scalr_layer_decay_is_that_of_its_fine_tuning() -> None:
    """finetune.py of valeoai/ScaLR: layers 0 (embedding) to 48, ``layer_decay ** (49 - layer)``; 0.95 for 1 %."""
    backbone = create_backbone("waffleiron48_768", width=8)
    rates = {group["layer"]: group["lr"] for group in backbone.parameter_groups(2e-3, layer_decay=0.95)}
    assert rates[0] == pytest.approx(2e-3 * 0.95**49) and rates[48] == pytest.approx(2e-3 * 0.95)


# ---- engines ----


def test_engine_of_a_backbone_is_used_in_extract_only(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    from clever3d.sparse.engines import engine_name

    asked = []
    small.register_forward_pre_hook(lambda _, inputs: asked.append(engine_name(inputs[0].feats)))
    with use_engine("torch"):
        small.engine = "triton"
        small.extract(cloud(60))
        small.engine = None
        small.extract(cloud(60))
    assert asked == ["triton", "torch"]


def test_engine_that_is_not_there_is_refused_at_loading() -> None:
    with pytest.raises(UnknownNameError, match="no engine 'spconv': choose torch"):
        clever3d.load_backbone("minkunet-dinov2-s", engine="spconv")
    assert clever3d.load_backbone("minkunet-dinov2-s", engine="torch").engine == "torch"
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="the engine 'torchsparse' was asked for, but"):
            clever3d.load_backbone("minkunet-dinov2-s", engine="torchsparse")


# ---- torch.hub ----


def test_torch_hub_finds_lists_and_loads() -> None:
    spec = importlib.util.spec_from_file_location("hubconf", REPOSITORY / "hubconf.py")
    assert spec is not None and spec.loader is not None
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    entries = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert entries == {"load_backbone", "list_backbones", "backbone_info"}  # as torch.hub.list finds them
    backbone = torch.hub.load(str(REPOSITORY), "load_backbone", "minkunet-dinov2-s", source="local")
    assert backbone.pretrained_cfg["status"] == "bundled"
