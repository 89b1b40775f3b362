"""WaffleIron: features of the authors' own code, dense grids written out, and what a training needs of it."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_waffleiron_golden import DEPTH, FORMS, GOLDEN, GRIDS, HIGH, LOW, WIDTH, tokens, weights
from torch import Tensor

import clever3d
from clever3d.backbones import WaffleIron, create_backbone
from clever3d.backbones.waffleiron import Plane, WaffleIronConfig, _kept_scans, from_valeoai
from clever3d.errors import CheckpointError, InputError, InputWarning
from clever3d.points import InputSpec, check_points, voxelize
from clever3d.sparse import SparseTensor
from clever3d.zoo import save_checkpoint
from clever3d.zoo.checkpoint import load_state, read_checkpoint

FIVE = ("intensity", "x", "y", "z", "radius")
every_form = pytest.mark.parametrize("form", FORMS)


def tiny(form: str = "layer_relu", **options: Any) -> WaffleIron:
    """A network with the weights of the golden file, in eval mode."""
    spec = InputSpec(point_range=(*LOW, *HIGH), channels=FIVE, voxel_size=0.1)
    norm, activation = form.split("_")
    overrides = {"width": WIDTH, "depth": DEPTH, "grids": GRIDS, "norm": norm, "activation": activation} | options
    backbone = create_backbone("waffleiron48_768", input_spec=spec, **overrides)
    state = {name: tensor.float() if tensor.ndim else tensor for name, tensor in from_valeoai(weights(norm)).items()}
    backbone.load_state_dict(state, strict=True)
    assert isinstance(backbone, WaffleIron)
    return backbone.eval()


def golden_voxels() -> SparseTensor:
    """The tokens of the golden file; which voxels they stand in plays no part."""
    coords = [
        torch.cat([torch.full((len(scan), 1), n), torch.arange(len(scan)).unsqueeze(1).expand(-1, 3)], dim=1)
        for n, scan in enumerate(tokens())
    ]
    return SparseTensor(torch.from_numpy(np.concatenate(tokens())), torch.cat(coords))


def cloud(count: int = 300, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(LOW, HIGH, (count, 3)), rng.uniform(0, 1, (count, 1))], axis=1).astype("f4")


# ---- the authors' network ----


@every_form
def test_features_are_those_of_the_authors_code(form: str) -> None:
    """Theirs divides by count + 1e-6 in two of the forms, hence 1e-5."""
    expected = torch.from_numpy(np.load(GOLDEN)[form])
    with torch.no_grad():
        features = tiny(form)(golden_voxels())[0].feats
        wide = tiny(form).double()(golden_voxels())[0].feats.float()
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * float(expected.std()))
    torch.testing.assert_close(wide, expected, rtol=0, atol=(5e-6 if "relu" in form else 5e-7) * float(expected.std()))


@every_form
def test_valeoai_names_map_onto_every_parameter_one_to_one(form: str) -> None:
    theirs = weights(form.split("_")[0])
    ours = tiny(form).state_dict()
    head = {"classif.weight": torch.zeros(2, WIDTH, 1), "classif.0.bias": torch.zeros(4)}
    found = from_valeoai({f"module.{name}": tensor for name, tensor in {**theirs, **head}.items()})
    assert found.keys() == ours.keys() and len(found) == len(theirs)
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in ours.items()}


def test_unknown_and_misshapen_parameters_reach_the_strict_loader_under_a_name_it_lists(tmp_path: Path) -> None:
    theirs = {name: tensor.float() for name, tensor in weights("layer").items()}
    theirs["waffleiron.spatial_mix.0.gate.weight"] = torch.zeros(1)
    theirs["embed.conv1.weight"] = torch.zeros(WIDTH, 5, 3)
    del theirs["embed.final.bias"]
    save_checkpoint(tiny(), tmp_path / "any.safetensors")
    found = from_valeoai(theirs)
    checkpoint = read_checkpoint(tmp_path / "any.safetensors")
    with pytest.raises(CheckpointError) as error:
        load_state(tiny(), type(checkpoint)(**{**vars(checkpoint), "state": found}))
    assert "1 missing: embedding.merge.bias" in str(error.value)
    assert "1 unknown: waffleiron.spatial_mix.0.gate.weight" in str(error.value)
    assert f"embedding.point.weight [{WIDTH}, 5, 3] instead of [{WIDTH}, 5]" in str(error.value)


def test_sizes_are_those_of_the_authors_configurations() -> None:
    """Counted by hand for ScaLR's: a layer has 2 C^2 + 2 C (channels), 20 C (3 x 3), 4 C (norms), 2 C (scales)."""
    backbone = create_backbone("waffleiron48_768")
    width, channels = 768, 5
    layer = 2 * width**2 + 2 * width + 20 * width + 4 * width + 2 * width
    embedding = (channels + 1) * width + channels * width + width**2 + 2 * width**2 + width + 2 * (2 * channels + width)
    assert sum(p.numel() for p in backbone.parameters()) == 48 * layer + embedding
    assert backbone.config == WaffleIronConfig()
    assert backbone.input_spec.point_range == (-64, -64, -8, 64, 64, 8) and backbone.input_spec.channels == FIVE
    kitti, nuscenes = create_backbone("waffleiron48_256", depth=1), create_backbone("waffleiron48_384", depth=1)
    assert kitti.config.grids == ((250, 250), (250, 12), (250, 12)) and kitti.config.norm == "batch"
    assert kitti.input_spec.point_range == (-50, -50, -3, 50, 50, 2) and kitti.input_spec.intensity_std == 1
    assert nuscenes.config.grids == ((166, 166), (166, 16), (166, 16)) and nuscenes.feature_dim == 384


def test_intensity_is_what_the_authors_datasets_give() -> None:
    """nuScenes counts to 255: ScaLR takes (v - 18.742355) / 22.04632 of it, WaffleIron v itself."""
    points = np.array([[5.0, 5, 0], [9, 9, 1]], np.float32)
    for name, expected in {
        "waffleiron48_768": (51 - 18.742355) / 22.04632,
        "waffleiron48_384": 51.0,
        "waffleiron48_256": 0.2,
    }.items():
        spec = create_backbone(name, depth=1).input_spec
        scan = check_points(points, np.array([0.2, np.nan], np.float32), spec, torch.device("cpu"))
        feats = voxelize([scan], spec).tensor.feats
        assert feats[0, 0] == pytest.approx(expected, rel=1e-5) and feats[1, 0] == 0
        np.testing.assert_allclose(feats[:, 1:4], points)


# ---- planes ----


def test_cells_are_counted_from_the_corner_of_the_range_row_by_row() -> None:
    backbone = tiny()  # 8 x 8 cells of 2 x 2 m, 8 x 4 of 2 x 1 m
    xyz = torch.tensor([[-8.0, -8, -2], [-5.9, -8, -2], [-8, -5.9, -0.9], [7.99, 7.99, 1.99], [0, 0, 0]])
    xy, xz, yz = (cells.tolist() for cells in backbone.cells(xyz))
    assert xy == [0, 8, 1, 63, 4 * 8 + 4]
    assert xz == [0, 4, 1, 31, 4 * 4 + 2]
    assert yz == [0, 0, 5, 31, 4 * 4 + 2]
    below_eight = torch.nextafter(torch.tensor(8.0), torch.tensor(0.0))
    assert backbone.cells(below_eight.expand(1, 3))[0].tolist() == [63]
    assert backbone.cells(torch.tensor([[100.0, -100, 0]]))[0].tolist() == [56]


def test_flatten_is_the_mean_of_each_cell_and_inflate_its_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, cells = (2, 3, 4), torch.randint(0, 24, (50,), generator=generator)
    cells[cells == 5] = 6  # an empty one
    rows = torch.randn(50, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    plane = Plane.of(cells, shape)
    grid = plane.flatten(rows)
    assert grid.shape == (2, 7, 3, 4) and grid.is_contiguous(memory_format=torch.channels_last)
    dense = torch.zeros(24, 7, dtype=torch.float64)
    for cell in cells.unique():
        dense[cell] = rows[cells == cell].mean(dim=0)
    torch.testing.assert_close(grid.permute(0, 2, 3, 1).reshape(24, 7), dense, rtol=1e-12, atol=1e-12)
    assert not grid[0, :, 1, 1].any()
    torch.testing.assert_close(plane.inflate(grid), dense[cells], rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda values: plane.inflate(plane.flatten(values)), (rows,))


@every_form
def test_a_scan_in_a_batch_has_the_features_it_has_alone(form: str) -> None:
    backbone, both = tiny(form), golden_voxels()
    with torch.no_grad():
        together = backbone(both)[0].feats
        for scan in (0, 1):
            rows = both.coords[:, 0] == scan
            coords = both.coords[rows].clone()
            coords[:, 0] = 0
            alone = backbone(SparseTensor(both.feats[rows], coords))[0].feats
            torch.testing.assert_close(together[rows], alone, rtol=1e-5, atol=1e-5)


# ---- extract ----


@every_form
def test_extract_gives_each_point_its_feature_whatever_the_order(form: str) -> None:
    backbone, points = tiny(form), cloud()
    result = backbone.extract(points)
    assert result.features.shape == (300, WIDTH) and result.valid.all() and result.features.std() > 0
    order = np.random.default_rng(1).permutation(300)
    torch.testing.assert_close(backbone.extract(points[order]).features, result.features[order], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(backbone.extract(points[:, :3]).features, result.features)


@every_form
def test_any_cloud_extracts(form: str) -> None:
    backbone = tiny(form).train()
    for points in (cloud(1), cloud(2)[:, :3], cloud(5), np.full((50, 3), 0.05, np.float32)):
        features = backbone.extract(points).features
        assert features.shape == (len(points), WIDTH) and features.isfinite().all()
    with pytest.warns(InputWarning, match="4 of 4 points are outside|millimetres"):
        result = backbone.extract(cloud(4) + 100)
    assert not result.valid.any() and not result.features.any()
    empty = backbone(SparseTensor(torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int32)))
    assert empty[0].feats.shape == (0, WIDTH)


@every_form
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-5)])
def test_other_float_types_give_the_same_features(form: str, dtype: torch.dtype, tolerance: float) -> None:
    """64 m away bfloat16 has steps of 0.25 to 0.5 m: positions must not be rounded to it."""
    backbone = tiny(form)
    far = (*(value + 64 for value in LOW), *(value + 64 for value in HIGH))
    backbone.input_spec = InputSpec(point_range=far, channels=FIVE, voxel_size=0.1)
    backbone.embedding.point_norm.running_mean.add_(torch.tensor([0, 64.0, 64, 64, 110]))
    points = cloud() + np.array([64, 64, 64, 0], np.float32)
    expected = backbone.extract(points).features
    scale = float(expected.std())
    converted = copy.deepcopy(backbone).to(dtype).extract(points).features
    assert float((converted - expected).square().mean().sqrt()) < tolerance * scale
    if dtype != torch.float64:
        with torch.autocast("cpu", dtype):
            cast = backbone.extract(points).features
        assert float((cast - expected).square().mean().sqrt()) < tolerance * scale


def test_checkpoint_round_trip_builds_the_same_network(tmp_path: Path) -> None:
    backbone = tiny("layer_gelu")
    save_checkpoint(backbone, tmp_path / "one.safetensors")
    again = clever3d.load_backbone(tmp_path / "one.safetensors")
    assert again.config == backbone.config and again.input_spec == backbone.input_spec
    assert json.loads(json.dumps(asdict(again.config)))["grids"] == [[8, 8], [8, 4], [8, 4]]
    assert torch.equal(again.extract(cloud()).features, backbone.extract(cloud()).features)


def test_compiled_network_gives_the_same_features() -> None:
    backbone, x = tiny("layer_gelu"), golden_voxels()
    with torch.no_grad():
        compiled = torch.compile(backbone, backend="eager")(x)[0].feats
        torch.testing.assert_close(compiled, backbone(x)[0].feats)


# ---- training ----


def gradients(backbone: WaffleIron) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Features, gradients and buffers after a step's forward and backward, always with the same drawn numbers."""
    torch.manual_seed(0)
    backbone = copy.deepcopy(backbone).train()
    features = backbone(golden_voxels())[0].feats
    features.square().mean().backward()
    found = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    return features.detach(), found, {name: buffer.clone() for name, buffer in backbone.named_buffers()}


@every_form
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_recomputed_activations_change_neither_gradients_nor_statistics(form: str, drop_path: float) -> None:
    backbone = tiny(form, drop_path=drop_path)
    plain = gradients(backbone)
    assert plain[1].keys() == dict(backbone.named_parameters()).keys()
    calls = []
    backbone.layers[3].register_forward_pre_hook(lambda *_: calls.append(1))
    backbone.set_grad_checkpointing()
    again = gradients(backbone)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len(calls) == 2  # forward, and again in backward
    backbone.set_grad_checkpointing(False)
    gradients(backbone)
    assert len(calls) == 3


@every_form
def test_every_parameter_receives_a_gradient(form: str) -> None:
    _, found, _ = gradients(tiny(form))
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found.values())


def test_gradient_of_the_whole_network_is_that_of_finite_differences() -> None:
    backbone, x = tiny("layer_gelu", depth=DEPTH).double(), golden_voxels()
    parameter = backbone.embedding.merge.weight
    loss = backbone(x)[0].feats.sin().sum()
    (gradient,) = torch.autograd.grad(loss, [parameter])
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            values.append(backbone(x)[0].feats.sin().sum())
            parameter.sub_(direction, alpha=step)
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, (gradient * direction).sum(), rtol=1e-5, atol=1e-5)


def test_drop_path_drops_whole_scans_in_training_and_nothing_in_eval() -> None:
    torch.manual_seed(0)
    scan = torch.arange(2000).repeat_interleave(3)
    kept = _kept_scans(0.25, 2000, scan)
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(kept[::3], kept[1::3]) and torch.equal(kept[::3], kept[2::3])
    assert float((kept > 0).float().mean()) == pytest.approx(0.75, abs=0.03)

    dropping, plain, x = tiny(drop_path=0.999999), tiny(), golden_voxels()
    with torch.no_grad():
        assert torch.equal(dropping(x)[0].feats, plain(x)[0].feats)
        dropping.train()
        before = dropping(x)[0].feats
        for name, parameter in dropping.named_parameters():  # no layer takes part any more
            if not name.startswith("embedding"):
                parameter.normal_()
        assert torch.equal(dropping(x)[0].feats, before)


def test_parameters_belong_to_the_embedding_or_to_their_layer() -> None:
    backbone = tiny()
    assert backbone.num_layers == DEPTH + 1
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert layers["embedding.merge.bias"] == 0 and layers["layers.0.spatial.scale"] == 1
    assert layers["layers.5.channel.linear2.weight"] == 6 and set(layers.values()) == set(range(DEPTH + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.5}, "width 0.5 of a WaffleIron must be a whole number"),
        ({"depth": 0}, "depth 0"),
        ({"planes": ("xy", "zy", "yz")}, "planes"),
        ({"grids": ((8, 8),)}, "two sizes from 1 to 4,096 for each"),
        ({"grids": ((8, 8), (10**6, 10**6), (8, 4))}, "two sizes from 1 to 4,096"),
        ({"neighbors": 10**9}, "neighbors 1000000000 of a WaffleIron must be a whole number from 1 to 1,024"),
        ({"norm": "instance"}, "norm 'instance'"),
        ({"activation": "silu"}, "activation 'silu'"),
        ({"drop_path": 1.0}, "drop_path 1.0"),
        ({"input_spec": InputSpec()}, "lack x, y, z"),
    ],
)
def test_unusable_configuration_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_backbone("waffleiron48_768", **options)
