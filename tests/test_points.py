"""From raw points to features: checks, voxels, and the promises of ``extract``."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from clever3d.backbones import Backbone, create_backbone
from clever3d.errors import Clever3dError, InputError, InputWarning
from clever3d.points import CheckedPoints, InputSpec, voxelize


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    module = create_backbone("minkunet_small", width=0.25)
    for buffer_name, buffer in module.named_buffers():  # statistics as after training, so that features differ
        if buffer_name.endswith("running_var"):
            buffer.fill_(0.05)
    return module.eval()


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    rng = np.random.default_rng(0)
    xyz = rng.uniform((-30, -30, -2), (30, 30, 3), (3000, 3))
    return np.concatenate([xyz, rng.uniform(0, 1, (3000, 1))], axis=1).astype(np.float32)


def test_voxel_channels_are_means_over_the_points_of_the_voxel() -> None:
    spec = InputSpec(voxel_size=0.5, ground_height=-2.0)
    xyz = torch.tensor([[10.1, 0.2, 0.3], [10.3, 0.4, 0.1], [-0.1, -0.1, -0.1]])
    scan = CheckedPoints(xyz, torch.tensor([0.2, 0.6, float("nan")]), torch.ones(3, dtype=torch.bool))
    voxels = voxelize([scan], spec)
    assert voxels.tensor.coords.tolist() == [[0, -1, -1, -1], [0, 20, 0, 0]]
    assert voxels.point_to_voxel[0].tolist() == [1, 1, 0]
    named = dict(zip(spec.channels, voxels.tensor.feats[1].tolist(), strict=True))
    ranges = np.linalg.norm(xyz[:2].numpy(), axis=1)
    expected = {
        "one": 1.0,
        "dx": 10.2 / 0.5 - 20.5,
        "dy": 0.3 / 0.5 - 0.5,
        "dz": 0.2 / 0.5 - 0.5,
        "height": 2.2 / 3.0,
        "range": ranges.mean() / 40.0,
        "intensity": 0.4,
        "has_intensity": 1.0,
    }
    assert named == pytest.approx(expected, abs=1e-5)
    corner = dict(zip(spec.channels, voxels.tensor.feats[0].tolist(), strict=True))
    assert corner["has_intensity"] == 0 and corner["intensity"] == 0 and corner["range"] == pytest.approx(5 / 40)


def test_channels_in_metres_and_normalised_intensity_are_means_over_the_voxel() -> None:
    channels = ("intensity", "x", "y", "z", "radius", "has_intensity")
    spec = InputSpec(voxel_size=0.5, channels=channels, intensity_mean=0.25, intensity_std=0.5)
    xyz = torch.tensor([[3.0, 4.0, 0.1], [3.4, 4.2, 0.3], [1.0, 2.0, 2.0], [1.2, 2.0, 2.0]])
    scan = CheckedPoints(xyz, torch.tensor([0.75, 0.25, 1.0, float("nan")]), torch.ones(4, dtype=torch.bool))
    feats = voxelize([scan], spec).tensor.feats
    radius = np.linalg.norm(xyz.numpy(), axis=1)
    near = [1.5 / 2, 1.1, 2.0, 2.0, radius[2:].mean(), 0.5]  # of the point without intensity 0, not (0 - 0.25) / 0.5
    far = [0.5, 3.2, 4.1, 0.2, radius[:2].mean(), 1.0]
    np.testing.assert_allclose(feats.numpy(), [near, far], rtol=1e-6)
    close = voxelize([CheckedPoints(torch.full((1, 3), 0.1), None, torch.ones(1, dtype=torch.bool))], spec).tensor.feats
    np.testing.assert_allclose(close.numpy(), [[0, 0.1, 0.1, 0.1, 0.1 * 3**0.5, 0]], rtol=1e-6)


def test_default_channels_and_their_scales_stay_as_they_are() -> None:
    """Checkpoints without these fields exist."""
    assert InputSpec().channels == ("one", "dx", "dy", "dz", "height", "range", "intensity", "has_intensity")
    written = InputSpec().to_dict()
    assert "intensity_mean" not in written and "intensity_std" not in written
    assert InputSpec.from_dict(written) == InputSpec()
    statistics = InputSpec(intensity_mean=0.1, intensity_std=0.2)
    assert InputSpec.from_dict(statistics.to_dict()) == statistics
    assert statistics.to_dict()["intensity_mean"] == 0.1 and statistics.to_dict()["intensity_std"] == 0.2


def test_batched_scans_keep_their_own_voxels() -> None:
    xyz = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    scan = CheckedPoints(xyz, None, torch.tensor([True, False]))
    voxels = voxelize([scan, CheckedPoints(xyz, None, torch.tensor([True, True]))], InputSpec())
    assert voxels.tensor.coords[:, 0].tolist() == [0, 1, 1]
    assert voxels.point_to_voxel[0].tolist() == [0, -1] and voxels.point_to_voxel[1].tolist() == [1, 2]


def test_extract_gives_one_row_per_point_in_input_order(backbone: Backbone, cloud: np.ndarray) -> None:
    result = backbone.extract(cloud)
    assert result.features.shape == (len(cloud), backbone.feature_dim) and result.features.dtype == torch.float32
    assert bool(result.valid.all()) and float(result.features.std()) > 0
    order = np.random.default_rng(1).permutation(len(cloud))
    shuffled = backbone.extract(cloud[order])
    torch.testing.assert_close(shuffled.features, result.features[order], rtol=1e-5, atol=1e-6)


def test_extract_is_deterministic_and_leaves_the_mode_alone(backbone: Backbone, cloud: np.ndarray) -> None:
    first = backbone.extract(cloud).features
    backbone.train()
    assert torch.equal(backbone.extract(cloud).features, first) and backbone.training
    backbone.eval()
    assert torch.equal(backbone.extract(cloud).features, first)


def test_points_of_one_voxel_share_a_feature_and_points_elsewhere_do_not(backbone: Backbone) -> None:
    xyz = np.array([[5.01, 5.01, 0.01], [5.09, 5.09, 0.09], [9.0, -3.0, 1.0]], dtype=np.float32)
    features = backbone.extract(xyz).features
    assert torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda a: a.astype(np.float64), lambda a: a[:, :4].tolist()])
def test_tensors_doubles_and_lists_are_taken(backbone: Backbone, cloud: np.ndarray, convert: object) -> None:
    expected = backbone.extract(cloud[:500]).features
    torch.testing.assert_close(backbone.extract(convert(cloud[:500])).features, expected)  # type: ignore[operator]


def test_intensity_as_column_or_argument_is_the_same_and_matters(backbone: Backbone, cloud: np.ndarray) -> None:
    column = backbone.extract(cloud).features
    assert torch.equal(backbone.extract(cloud[:, :3], cloud[:, 3]).features, column)
    assert not torch.allclose(backbone.extract(cloud[:, :3]).features, column)


def test_broken_and_distant_points_are_invalid_counted_and_harmless(backbone: Backbone, cloud: np.ndarray) -> None:
    bad = np.array([[np.nan, 0, 0, 0], [0, np.inf, 0, 0], [500, 0, 0, 0], [0, 0, 90, 0]], dtype=np.float32)
    mixed = np.concatenate([bad[:2], cloud, bad[2:]])
    with pytest.warns(InputWarning) as caught:
        result = backbone.extract(mixed)
    messages = " ".join(str(w.message) for w in caught)
    assert "2 of 3004 points are not finite" in messages and "2 of 3004 points are outside" in messages
    assert len(result) == len(mixed) and int(result.valid.sum()) == len(cloud)
    assert not result.features[~result.valid].any()
    torch.testing.assert_close(result.features[2:-2], backbone.extract(cloud).features)


def test_slots_without_a_return_are_invalid(backbone: Backbone, cloud: np.ndarray) -> None:
    """Ouster and others write (0, 0, 0) where a ray did not return: 41 % of a RELLIS-3D file."""
    padded = np.concatenate([np.zeros((40, 4), np.float32), cloud])
    with pytest.warns(InputWarning, match=r"40 of 3040 points are \(0, 0, 0\)"):
        result = backbone.extract(padded)
    assert not result.valid[:40].any() and not result.features[:40].any() and result.valid[40:].all()
    torch.testing.assert_close(result.features[40:], backbone.extract(cloud).features)


def test_a_cloud_without_a_valid_point_is_not_fatal(backbone: Backbone) -> None:
    with pytest.warns(InputWarning, match="2 of 2 points are not finite"):
        result = backbone.extract(np.full((2, 3), np.nan, dtype=np.float32))
    assert result.features.shape == (2, backbone.feature_dim) and not result.valid.any()


def test_millimetres_are_recognised(backbone: Backbone, cloud: np.ndarray) -> None:
    with pytest.warns(InputWarning, match=r"points / 1000\.0"):
        backbone.extract(cloud[:, :3] * 1000)


def test_metres_give_no_warning(backbone: Backbone, cloud: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone.extract(cloud)


def test_intensity_up_to_255_is_pointed_out(backbone: Backbone, cloud: np.ndarray) -> None:
    with pytest.warns(InputWarning, match="divide it by 255"):
        result = backbone.extract(cloud[:, :3], cloud[:, 3] * 255)
    clipped = backbone.extract(cloud[:, :3], (cloud[:, 3] * 255).clip(0, 1))
    assert torch.equal(result.features, clipped.features)


def test_intensity_of_invalid_points_gives_no_warning(backbone: Backbone, cloud: np.ndarray) -> None:
    cloud = cloud.copy()
    cloud[0] = [np.nan, 0, 0, 200]
    with pytest.warns(InputWarning) as caught:
        backbone.extract(cloud)
    assert ["not finite" in str(w.message) for w in caught] == [True]
    assert caught[0].filename == __file__  # the warning points at the caller of extract


@pytest.mark.parametrize("kind", ["reversed", "big-endian", "fortran", "read-only"])
def test_any_layout_of_an_array_is_taken(backbone: Backbone, cloud: np.ndarray, kind: str) -> None:
    expected = backbone.extract(cloud[:500]).features
    given = {
        "reversed": cloud[:500][::-1].copy()[::-1],
        "big-endian": cloud[:500].astype(">f4"),
        "fortran": np.asfortranarray(cloud[:500]),
        "read-only": np.broadcast_to(cloud[:500], (500, 4)),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(backbone.extract(given).features, expected)


@pytest.mark.parametrize(
    ("points", "intensity", "message"),
    [
        (np.zeros((0, 3), np.float32), None, "empty"),
        (np.zeros((5, 2), np.float32), None, r"\[N, 3\]"),
        (np.zeros((5, 6), np.float32), None, r"points\[:, :4\]"),
        (np.zeros((3, 50), np.float32), None, r"points\.T"),
        (np.zeros(3, np.float32), None, r"\[N, 3\]"),
        (np.zeros((5, 3), np.int32), None, "astype"),
        (np.zeros((5, 3), bool), None, "astype"),
        (np.array([["a", "b", "c"]]), None, "numeric"),
        ("scan.bin", None, "numeric"),
        (np.zeros((5, 3), np.float32), np.zeros(4, np.float32), "N = 5"),
        (np.zeros((5, 4), np.float32), np.zeros(5, np.float32), "twice"),
    ],
)
def test_unusable_input_says_what_to_do(backbone: Backbone, points: object, intensity: object, message: str) -> None:
    with pytest.raises(Clever3dError, match=message):
        backbone.extract(points, intensity)


def test_input_spec_survives_json_and_refuses_nonsense() -> None:
    spec = InputSpec(voxel_size=0.2, trained_sensors=("kitti",))
    assert InputSpec.from_dict({**spec.to_dict(), "point_range": list(spec.point_range)}) == spec
    for values, message in [
        ({"voxel_size": 0.0}, "positive"),
        ({"channels": ("colour",)}, "subset"),
        ({"frame": "RDF"}, "FLU"),
        ({"point_range": (1, 0, 0, 0, 1, 1)}, "x_min"),
        ({"intensity_std": 0.0}, "intensity_std"),
    ]:
        with pytest.raises(InputError, match=message):
            InputSpec(**values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="newer clever3d"):
        InputSpec.from_dict({"voxels": 1})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.1), (torch.float64, 1e-5)])
def test_a_backbone_of_another_float_type_extracts(small: Backbone, dtype: torch.dtype, tolerance: float) -> None:
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 10 + 1
    expected = small.extract(points).features
    features = small.to(dtype).extract(points).features
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=0, atol=tolerance * float(expected.std()))
