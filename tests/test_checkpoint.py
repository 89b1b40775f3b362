"""Checkpoint files: what is written is read again, and what does not fit is refused with a reason."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import clever3d
from clever3d.backbones import Backbone
from clever3d.errors import CheckpointError, DataError, InputError
from clever3d.zoo import save_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]


def _same_weights(one: Backbone, other: Backbone) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture()
def file(tmp_path: Path, small: Backbone) -> Path:
    path = tmp_path / "small.safetensors"
    save_checkpoint(small, path)
    return path


def _rewrite(path: Path, metadata: dict[str, str] | None, **tensors: torch.Tensor | None) -> None:
    """Writes the file again with other metadata, and with some tensors added, replaced or (None) left out."""
    state = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path, metadata)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as opened:
        return dict(opened.metadata())


def test_saved_backbone_loads_as_it_was(file: Path, small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = clever3d.load_backbone(file)
    assert _same_weights(loaded, small)
    assert (loaded.config, loaded.input_spec, loaded.training) == (small.config, small.input_spec, False)
    assert loaded.pretrained_cfg is None
    monkeypatch.chdir(file.parent)
    for spelling in ("small.safetensors", "./small.safetensors", str(file)):
        assert _same_weights(clever3d.load_backbone(spelling), small)


def test_file_without_the_usual_ending_is_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.rename("weights")
    assert clever3d.load_backbone("weights")


def test_untrained_network_of_a_file_has_other_weights(file: Path, small: Backbone) -> None:
    untrained = clever3d.load_backbone(file, pretrained=False)
    assert untrained.config == small.config
    assert not _same_weights(untrained, small)


def test_record_in_the_file_becomes_pretrained_cfg(tmp_path: Path, small: Backbone) -> None:
    save_checkpoint(small, tmp_path / "a.safetensors", record={"name": "x", "data": ["y"]})
    assert clever3d.load_backbone(tmp_path / "a.safetensors").pretrained_cfg == {"name": "x", "data": ["y"]}


def test_saving_twice_gives_the_same_bytes_in_any_process(file: Path, small: Backbone, tmp_path: Path) -> None:
    contents = {file.read_bytes()}
    for _ in range(4):
        save_checkpoint(small, tmp_path / "again.safetensors")
        contents.add((tmp_path / "again.safetensors").read_bytes())
    code = (
        "import sys; from clever3d.zoo import load_backbone, save_checkpoint;"
        "save_checkpoint(load_backbone(sys.argv[1]), sys.argv[2])"
    )
    again = tmp_path / "process.safetensors"
    subprocess.run([sys.executable, "-c", code, str(file), str(again)], check=True, cwd=REPOSITORY)
    assert contents == {again.read_bytes()}


def test_half_precision_file_loads_as_float32(tmp_path: Path, small: Backbone) -> None:
    half = tmp_path / "half.safetensors"
    save_checkpoint(small, half, dtype=torch.float16)
    stored = load_file(half)
    assert {stored[name].dtype for name, _ in small.named_parameters()} == {torch.float16}
    assert {stored[name].dtype for name in stored if name.endswith("running_var")} == {torch.float32}
    loaded = clever3d.load_backbone(half)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(
            parameter, small.get_parameter(name), rtol=2**-11, atol=2**-25
        )  # half a step of float16
    assert next(clever3d.load_backbone(half, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_value_too_large_for_half_precision_is_refused(tmp_path: Path, small: Backbone) -> None:
    with torch.no_grad():
        next(small.parameters()).view(-1)[0] = 1e6
    with pytest.raises(CheckpointError, match=r"too large for torch\.float16"):
        save_checkpoint(small, tmp_path / "half.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(file: Path, small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(self: Path, content: bytes) -> None:
        with self.open("wb") as half_written:
            half_written.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left"):
        save_checkpoint(small, file, dtype=torch.float16)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_misfitting_keys_are_counted_and_listed(file: Path, small: Backbone) -> None:
    names = sorted(small.state_dict())
    _rewrite(file, _metadata(file), extra=torch.zeros(1), **{names[0]: None, names[1]: torch.zeros(7, 7)})
    own = list(small.state_dict()[names[1]].shape)
    with pytest.raises(CheckpointError) as error:
        clever3d.load_backbone(file)
    message = str(error.value)
    assert f"1 missing: {names[0]}" in message
    assert "1 unknown: extra" in message
    assert f"1 mis-shaped: {names[1]} [7, 7] instead of {own}" in message


def test_long_list_of_missing_keys_is_cut(file: Path, small: Backbone) -> None:
    names = sorted(small.state_dict())
    _rewrite(file, _metadata(file), **dict.fromkeys(names[:30]))
    with pytest.raises(CheckpointError, match=r"30 missing: .*, \.\.\.") as error:
        clever3d.load_backbone(file)
    assert len(str(error.value)) < 600


def test_own_weights_load_under_a_recipe_name(tmp_path: Path) -> None:
    name = "minkunet18-dinov2_s.clever_nuscenes"
    untrained = clever3d.load_backbone(name, pretrained=False)
    save_checkpoint(untrained, tmp_path / "my.safetensors", dtype=torch.float16)
    loaded = clever3d.load_backbone(name, weights=tmp_path / "my.safetensors")
    assert loaded.pretrained_cfg is None
    assert torch.equal(next(loaded.parameters()), next(untrained.parameters()).half().float())


def test_own_weights_under_a_name_keep_their_own_input(tmp_path: Path) -> None:
    name = "minkunet18-dinov2_s.clever_nuscenes"
    network = clever3d.load_backbone(name, pretrained=False)
    network.input_spec = replace(network.input_spec, voxel_size=0.07)
    save_checkpoint(network, tmp_path / "my.safetensors")
    assert clever3d.load_backbone(name, weights=tmp_path / "my.safetensors").input_spec.voxel_size == 0.07


def test_own_weights_of_another_network_are_refused(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not the network of minkunet34.*architecture minkunet18 instead of"):
        clever3d.load_backbone("minkunet34-dinov2_s.clever_nuscenes", weights=file)
    with pytest.raises(CheckpointError, match=r"width 0\.05 instead of 1\.0"):
        clever3d.load_backbone("minkunet18-dinov2_s.clever_nuscenes", weights=file)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("format", "clever3d.backbone.v9", r"reads 'clever3d\.backbone\.v1'"),
        ("kernel_order", "spconv", "reads 'torchsparse'"),
        ("config", "{", "config is not JSON"),
        ("config", "[]", "not a JSON object"),
        ("config", '{"colour": 3}', "colour"),
        ("input_spec", '{"colour": 3}', "colour"),
        ("architecture", "pointnet", "cannot build 'pointnet'"),
    ],
)
def test_foreign_metadata_are_refused(file: Path, key: str, value: str, complaint: str) -> None:
    _rewrite(file, {**_metadata(file), key: value})
    with pytest.raises(CheckpointError, match=complaint):
        clever3d.load_backbone(file)


def test_truncated_or_foreign_file_is_refused(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    pickle = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(3)}, pickle)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    for path in (file, pickle, empty):
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            clever3d.load_backbone(path)


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        clever3d.load_backbone("no-such.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        clever3d.load_backbone(tmp_path / "no-such")
    with pytest.raises(CheckpointError, match="is a folder"):
        clever3d.load_backbone(tmp_path)


def test_weights_that_are_no_weights_are_refused(file: Path, small: Backbone) -> None:
    name = "stem.0.kernel"
    with torch.no_grad():
        small.get_parameter(name)[0, 0, 0] = torch.nan
    save_checkpoint(small, file)
    with pytest.raises(CheckpointError, match=rf"not finite in {name}"):
        clever3d.load_backbone(file)
    state = {key: value.clone() for key, value in small.state_dict().items()}
    state[name] = torch.zeros_like(state[name], dtype=torch.int64)
    metadata = safe_open(file, framework="pt").metadata()
    save_file(state, file, metadata)
    with pytest.raises(CheckpointError, match=rf"1 of another kind: {name} int64"):
        clever3d.load_backbone(file)


@pytest.mark.parametrize("dtype", [torch.int32, "float16", torch.complex64])
def test_dtype_that_is_none_is_refused(file: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match="is no type of parameters"):
        clever3d.load_backbone(file, dtype=dtype)


def test_contradicting_arguments_are_refused(file: Path) -> None:
    with pytest.raises(InputError, match="contradict"):
        clever3d.load_backbone("minkunet18-dinov2_s.clever_nuscenes", weights=file, pretrained=False)
    with pytest.raises(InputError, match="has weights already"):
        clever3d.load_backbone(file, weights=file)


def test_a_plain_file_of_another_kernel_order_is_refused(tmp_path: Path, small: Backbone) -> None:
    """Same names and shapes, other meaning: nothing but the metadata can tell."""
    path = tmp_path / "theirs.safetensors"
    save_file(small.state_dict(), path, metadata={"kernel_order": "minkowski"})
    with pytest.raises(CheckpointError, match="clever3d convert"):
        clever3d.load_backbone("minkunet-dinov2-s", weights=path)
