"""Features as colours, and pictures of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clever3d.errors import Clever3dError, DataError, InputError, MissingExtraError
from clever3d.features import PCABasis, fit_pca, pca_colors
from clever3d.view import height_colors, save_feature_picture
from clever3d.view.pictures import _render, _Splats

GREY = [90, 90, 90]


def mixture(count: int = 3000, dim: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [count, dim] around five centres, and the centre of each."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, count)
    centers = rng.normal(size=(5, dim)) * np.linspace(3.0, 0.3, dim)
    return (centers[label] + 0.2 * rng.normal(size=(count, dim)) + 5.0).astype(np.float32), label


def cloud(count: int = 4000, seed: int = 0) -> np.ndarray:
    """A flat ground with a wall on the left, [count, 3]."""
    rng = np.random.default_rng(seed)
    xyz = np.column_stack([rng.uniform(-25, 40, count), rng.uniform(-20, 20, count), rng.normal(-1.7, 0.02, count)])
    wall = rng.random(count) < 0.3
    xyz[wall, 1], xyz[wall, 2] = 12.0, rng.uniform(-1.7, 4.0, wall.sum())
    return xyz.astype(np.float32)


def directions(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.sqrt((features**2).sum(axis=1, keepdims=True))


# ------------------------------------------------------------------------------------------------- the basis


def test_components_are_those_of_numpy_s_svd() -> None:
    features, _ = mixture()
    basis = fit_pca(features)
    centred = directions(features) - directions(features).mean(axis=0)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs((basis.components * rows[:3]).sum(axis=1)), 1.0, atol=1e-8)
    np.testing.assert_allclose(np.abs(basis.project(features)), np.abs(centred @ rows[:3].T), atol=1e-6)
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(basis.low, np.quantile(basis.project(features), 0.01, axis=0))
    np.testing.assert_allclose(basis.high, np.quantile(basis.project(features), 0.99, axis=0))


def test_components_survive_a_mean_that_dwarfs_the_variation() -> None:
    features = mixture()[0].astype(np.float64) * 1e-2 + 100.0
    centred = directions(features) - directions(features).mean(axis=0)
    rows = np.linalg.svd(centred, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs((fit_pca(features).components * rows).sum(axis=1)), 1.0, atol=1e-6)


def test_length_of_a_feature_does_not_change_its_colour() -> None:
    features, _ = mixture()
    lengths = np.random.default_rng(2).uniform(0.1, 10.0, (len(features), 1))
    difference = pca_colors(features * lengths).astype(int) - pca_colors(features).astype(int)
    assert np.abs(difference).max() <= 1


def test_crowded_places_do_not_decide_the_colours() -> None:
    """With xyz, a hundred points in one cube weigh as much as one: the basis is that of the cloud without the crowd."""
    features, _ = mixture(400)
    xyz = np.arange(400)[:, None] * np.array([1.0, 0.0, 0.0]) + 0.25
    crowd = np.repeat(features[:1] + 0.01, 5000, axis=0)
    crowded_xyz = np.concatenate([xyz, np.full((5000, 3), 0.3)])
    colors = pca_colors(np.concatenate([features, crowd]), xyz=crowded_xyz)
    np.testing.assert_array_equal(colors[:400], pca_colors(features, xyz=xyz))
    order = np.random.default_rng(0).permutation(len(crowded_xyz))
    shuffled = pca_colors(np.concatenate([features, crowd])[order], xyz=crowded_xyz[order])
    assert np.abs(shuffled.astype(int) - colors[order].astype(int)).max() <= 1
    with pytest.raises(InputError, match="xyz must be"):
        pca_colors(features, xyz=xyz[1:])


def test_sign_is_fixed_by_the_largest_entry() -> None:
    features, _ = mixture()
    for sign in (1.0, -1.0):
        components = fit_pca(sign * features).components
        assert (components[np.arange(3), np.abs(components).argmax(axis=1)] > 0).all()


def test_row_order_does_not_change_colours_beyond_rounding() -> None:
    features, _ = mixture()
    order = np.random.default_rng(1).permutation(len(features))
    difference = pca_colors(features)[order].astype(int) - pca_colors(features[order]).astype(int)
    assert np.abs(difference).max() <= 1


def test_more_rows_than_one_chunk_give_the_same_as_all_at_once() -> None:
    features, _ = mixture(count=40_000, dim=6)
    covariance = np.cov(directions(features).T, bias=True)
    variances = np.sort(np.linalg.eigvalsh(covariance))[::-1][:3]
    np.testing.assert_allclose(fit_pca(features).project(features).var(axis=0), variances, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_give_the_colours_of_arrays(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(mixture()[0]).to(dtype).requires_grad_()
    valid = torch.arange(len(tensor)) % 3 > 0
    expected = pca_colors(tensor.detach().double().numpy(), valid.numpy())
    difference = pca_colors(tensor, valid).astype(int) - expected.astype(int)
    assert np.abs(difference).max() <= 1


def test_a_basis_gives_the_same_feature_the_same_colour_in_another_cloud(tmp_path: Path) -> None:
    first, _ = mixture(seed=0)
    other = np.concatenate([first[:100], mixture(seed=1)[0]])
    basis = fit_pca(first)
    np.testing.assert_array_equal(pca_colors(other, basis=basis)[:100], pca_colors(first)[:100])
    basis.save(tmp_path / "basis.safetensors")
    loaded = PCABasis.load(tmp_path / "basis.safetensors")
    np.testing.assert_array_equal(pca_colors(other, basis=loaded), pca_colors(other, basis=basis))
    assert [path.name for path in tmp_path.iterdir()] == ["basis.safetensors"]


def test_loading_something_else_says_so(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(DataError, match="missing"):
        PCABasis.load(tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("not a basis")
    with pytest.raises(DataError, match="text"):
        PCABasis.load(tmp_path / "text")
    save_file({"kernel": np.zeros((3, 2))}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match="kernel"):
        PCABasis.load(tmp_path / "weights.safetensors")


# ------------------------------------------------------------------------------------------------- the colours


def test_colours_are_bright_and_tell_clusters_apart() -> None:
    features, label = mixture()
    colors = pca_colors(features).astype(float)
    assert np.quantile(colors.max(axis=1), 0.01) > 150
    means = np.stack([colors[label == cluster].mean(axis=0) for cluster in range(5)])
    spread = max(colors[label == cluster].std(axis=0).max() for cluster in range(5))
    apart = np.linalg.norm(means[:, None] - means[None], axis=-1)[np.triu_indices(5, 1)]
    assert apart.min() > 2 * spread


def test_invalid_and_nonfinite_rows_are_grey_and_do_not_count() -> None:
    features, _ = mixture()
    valid = np.ones(len(features), dtype=bool)
    valid[:50] = False
    spoiled = features.copy()
    spoiled[:50] = 1e6
    spoiled[50:60, 3] = np.nan
    spoiled[60:70, 2] = np.inf
    colors = pca_colors(spoiled, valid)
    assert (colors[:70] == GREY).all()
    np.testing.assert_array_equal(colors[70:], pca_colors(features[70:]))


def test_outliers_do_not_wash_the_colours_out() -> None:
    features, _ = mixture()
    spoiled = np.concatenate([features, features[:5] * 1e3])
    spread = pca_colors(spoiled)[:-5].astype(float).std(axis=0)
    # The axis may follow an outlier; its range must not, so the colours still vary.
    assert spread.max() > 40


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_few_points_and_few_channels_have_colours(count: int, dim: int) -> None:
    features = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    colors = pca_colors(features)
    assert colors.dtype == np.uint8 and colors.shape == (count, 3)
    basis = fit_pca(features)
    assert all(np.isfinite(part).all() for part in (basis.mean, basis.components, basis.low, basis.high))


def test_constant_features_and_no_valid_point_have_neutral_colours() -> None:
    constant = np.full((100, 8), 0.1, dtype=np.float32)
    colors = pca_colors(constant)
    assert len(np.unique(colors, axis=0)) == 1 and np.ptp(colors[0].astype(int)) == 0
    assert (pca_colors(constant, np.zeros(100, dtype=bool)) == GREY).all()


def test_shapes_that_do_not_fit_are_named() -> None:
    features, _ = mixture()
    with pytest.raises(InputError, match=r"\[N, D\]"):
        pca_colors(features[0])
    with pytest.raises(InputError, match="3000"):
        pca_colors(features, np.ones(7, dtype=bool))
    with pytest.raises(InputError, match="24 channels"):
        pca_colors(features, basis=fit_pca(features[:, :5]))
    with pytest.raises(InputError, match="quantiles"):
        fit_pca(features, quantiles=(0.9, 0.1))


# ------------------------------------------------------------------------------------------------ the pictures


def test_height_colours_rise_from_blue_to_red_and_ignore_strays() -> None:
    xyz = cloud()
    colors = height_colors(xyz).astype(int)
    ground, top = colors[xyz[:, 2] < -1.6].mean(axis=0), colors[xyz[:, 2] > 3.0].mean(axis=0)
    assert ground[2] > ground[0] + 60 and top[0] > top[2] + 60
    strays = np.array([[3, 3, 500], [np.nan, 0, 0], [0, 0, -90]], dtype=np.float32)
    spoiled = height_colors(np.concatenate([xyz, strays])).astype(int)
    assert np.abs(spoiled[:-3] - colors).max() < 12
    assert spoiled[-2].tolist() == GREY


def test_picture_is_large_dark_and_shows_the_colours(tmp_path: Path) -> None:
    xyz = cloud()
    xyz[:20] = np.nan
    colors = np.full((len(xyz), 3), (255, 0, 255), dtype=np.uint8)
    colors[:2000] = (0, 255, 0)
    valid = np.arange(len(xyz)) < 3000
    pyplot = "matplotlib.pyplot" in sys.modules
    save_feature_picture(tmp_path / "scan.png", xyz, colors, title="a scan", valid=valid)
    assert ("matplotlib.pyplot" in sys.modules) == pyplot
    assert [path.name for path in tmp_path.iterdir()] == ["scan.png"]
    picture = np.asarray(Image.open(tmp_path / "scan.png").convert("RGB")).astype(int)
    assert picture.shape[0] >= 1400 and picture.shape[1] >= 2000
    assert np.median(picture) < 40
    for color in ((255, 0, 255), (0, 255, 0), (90, 90, 90)):
        assert np.count_nonzero(np.abs(picture - color).max(axis=2) < 8) > 300, color


@pytest.mark.parametrize("count", [1, 2, 50])
def test_tiny_clouds_are_drawn(tmp_path: Path, count: int) -> None:
    save_feature_picture(tmp_path / "few.png", cloud(count), np.full((count, 3), 200, dtype=np.uint8))
    assert (tmp_path / "few.png").stat().st_size > 1000


def test_the_nearer_point_hides_the_farther() -> None:
    near, far = (255, 0, 0), (0, 0, 255)
    both = np.array([10.0, 10.0], dtype=np.float32)
    for depth in ([5.0, 9.0], [9.0, 5.0]):
        splats = _Splats(both, both, np.array(depth, dtype=np.float32), np.full(2, 3.0, np.float32), np.arange(2))
        colors = np.array([near, far] if depth[0] < depth[1] else [far, near], dtype=np.uint8)
        image = _render(splats, colors, (20, 20))
        assert image[10, 10, 0] > 150 and image[10, 10, 2] < 30


def test_an_interrupted_picture_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / "scan.png"
    path.write_bytes(b"old")

    def interrupted(self: Figure, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_feature_picture(path, cloud(50), np.zeros((50, 3), dtype=np.uint8))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.png"]


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "clever3d\[view\]"'):
        save_feature_picture(tmp_path / "scan.png", cloud(10), np.zeros((10, 3), dtype=np.uint8))


def test_unusable_input_is_named(tmp_path: Path) -> None:
    xyz, colors = cloud(10), np.zeros((10, 3), dtype=np.uint8)
    path = tmp_path / "scan.png"
    with pytest.raises(InputError, match=r"\[N, 3\]"):
        save_feature_picture(path, xyz[:, :2], colors)
    with pytest.raises(InputError, match="float32"):
        save_feature_picture(path, xyz, colors.astype(np.float32))
    with pytest.raises(InputError, match=r"valid must be \[10\]"):
        save_feature_picture(path, xyz, colors, valid=np.ones(3, dtype=bool))
    with pytest.raises(InputError, match="no finite point"):
        save_feature_picture(path, np.full_like(xyz, np.nan), colors)
    with pytest.raises(Clever3dError, match="nowhere"):
        save_feature_picture(tmp_path / "nowhere" / "scan.png", xyz, colors)
    assert list(tmp_path.iterdir()) == []
