"""The zoo: every name of the manifest, and every way in which loading can go wrong."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from safetensors.torch import load_file, save_file
from test_manifest import RECORD as PLAIN_RECORD

import clever3d
from clever3d.backbones import Backbone
from clever3d.distill.config import TrainConfig
from clever3d.errors import CheckpointError, DataError, InputError, UnknownNameError
from clever3d.zoo import loading, manifest, save_checkpoint
from clever3d.zoo.bundle import add_bundled

REPOSITORY = Path(__file__).resolve().parents[1]
MANIFEST: dict[str, Any] = json.loads((REPOSITORY / "weights_manifest.json").read_text(encoding="utf-8"))
RECORDS: dict[str, dict[str, Any]] = {record["name"]: record for record in MANIFEST["records"]}
every_record = pytest.mark.parametrize("name", RECORDS)


# ---- every entry of the manifest ----


@every_record
def test_every_name_builds_untrained_as_its_record_says(name: str) -> None:
    record = RECORDS[name]
    backbone = clever3d.load_backbone(name, pretrained=False)
    assert not backbone.training
    assert backbone.architecture == record["architecture"]
    assert backbone.feature_dim == record["feature_dim"]
    assert sum(parameter.numel() for parameter in backbone.parameters()) == record["parameters"]
    assert json.loads(json.dumps(backbone.input_spec.to_dict())) == record["input_spec"]
    assert backbone.pretrained_cfg is None


@every_record
def test_every_name_has_a_printable_info(name: str) -> None:
    info = clever3d.backbone_info(name)
    text = str(info)
    for part in (name, info.status, info.teacher["model"], info.weights_licence, str(info.feature_dim)):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    assert info.to_dict() == RECORDS[name]


@every_record
def test_every_name_loads_or_says_that_nobody_trained_it(name: str) -> None:
    if RECORDS[name]["status"] == "bundled":
        backbone = clever3d.load_backbone(name)
        assert backbone.pretrained_cfg == RECORDS[name]
        features = backbone.extract(np.random.default_rng(0).uniform(-5, 5, (500, 3)).astype(np.float32)).features
        assert features.isfinite().all() and features.std() > 0
    elif RECORDS[name]["status"] == "recipe":
        with pytest.raises(CheckpointError, match="Nobody has trained"):
            clever3d.load_backbone(name)


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if record["status"] == "recipe"])
def test_command_of_every_recipe_is_understood_by_the_trainer(name: str) -> None:
    program, *arguments = shlex.split(RECORDS[name]["make"])
    options = tyro.cli(TrainConfig, args=arguments)
    assert program == "clever3d-train"
    assert options.student.architecture == RECORDS[name]["architecture"]
    assert options.teacher.model == RECORDS[name]["teacher"]["model"]


def test_names_the_user_asked_for_resolve_and_the_first_one_loads() -> None:
    for size in "sbl":
        assert f"-dinov2_{size}." in clever3d.backbone_info(f"minkunet-dinov2-{size}").name
    assert clever3d.load_backbone("minkunet-dinov2-s").pretrained_cfg is not None


# ---- looking up ----


def test_list_matches_full_and_short_names_and_returns_full_ones() -> None:
    assert clever3d.list_backbones() == sorted(RECORDS)
    assert clever3d.list_backbones("minkunet34*") == sorted(name for name in RECORDS if name.startswith("minkunet34"))
    assert clever3d.list_backbones("minkunet-dinov2-b") == ["minkunet34-dinov2_b.clever_nuscenes"]
    assert clever3d.list_backbones("no-such*") == []
    recipes = clever3d.list_backbones(status="recipe")
    assert recipes == sorted(name for name, record in RECORDS.items() if record["status"] == "recipe")
    with pytest.raises(InputError, match="'trained' is none of bundled, hub"):
        clever3d.list_backbones(status="trained")


def test_list_by_teacher_takes_the_names_middle_or_the_models_name() -> None:
    small = sorted(name for name in RECORDS if "-dinov2_s." in name)
    assert clever3d.list_backbones(teacher="dinov2_s") == small
    assert clever3d.list_backbones(teacher="vit_small") == clever3d.list_backbones(teacher="VIT_SMALL*") == small
    assert clever3d.list_backbones("waffle*", teacher="dinov2_s") == []


def test_list_by_licence_takes_its_name_or_what_it_allows() -> None:
    free = sorted(name for name, record in RECORDS.items() if "NC" not in record["weights_licence"])
    assert clever3d.list_backbones(licence="commercial") == free != []
    assert clever3d.list_backbones(licence="non-commercial") == sorted(set(RECORDS) - set(free)) != []
    assert clever3d.list_backbones(licence="apache-2.0") == free
    assert clever3d.list_backbones(licence="MIT") == []


def test_looking_up_does_not_import_torch() -> None:
    code = (
        "import sys, clever3d; clever3d.list_backbones(); str(clever3d.backbone_info('minkunet-dinov2-b'));"
        "assert not {'torch', 'numpy', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("look_up", [clever3d.backbone_info, clever3d.load_backbone])
def test_unknown_name_suggests_the_nearest(look_up: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean .*'minkunet-dinov2-b'.*list_backbones\(\)"):
        look_up("minkunet-dinov2-bb")
    with pytest.raises(UnknownNameError, match=r"'minkunet34-dinov2_l\.clever_nuscenes'"):
        look_up("MinkUNet34-DINOv2-L")
    with pytest.raises(UnknownNameError) as error:
        look_up("zzz")
    assert "Did you mean" not in str(error.value)


# ---- a zoo of one's own, so that the errors do not depend on what is trained today ----


RECORD = {
    **PLAIN_RECORD,
    "weights_licence": "CC-BY-NC-SA-4.0",
    "metrics": [{"name": "mIoU", "value": 0.5, "protocol": "invented"}],
}


@pytest.fixture()
def own_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Backbone) -> Path:
    """A manifest with the shipped recipes and one bundled checkpoint; gives the checkpoint's file."""
    recipes = [record for record in RECORDS.values() if record["status"] == "recipe"]
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps({"format": manifest.FORMAT, "aliases": {}, "records": recipes}))
    monkeypatch.setattr(manifest, "manifest_path", lambda: path)
    monkeypatch.setattr(manifest, "WEIGHTS_FOLDER", tmp_path / "weights")
    save_checkpoint(small, tmp_path / "small.safetensors")
    add_bundled(tmp_path / "small.safetensors", RECORD, aliases=["mine"])
    return tmp_path / "weights" / "minkunet18-dinov2_s.mine.safetensors"


def _same_weights(one: Backbone, other: Backbone) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_added_checkpoint_loads_by_full_and_short_name(own_zoo: Path, small: Backbone) -> None:
    for name in ("mine", "minkunet18-dinov2_s.mine"):
        backbone = clever3d.load_backbone(name)
        assert _same_weights(backbone, small)
        assert backbone.input_spec == small.input_spec
        assert backbone.pretrained_cfg is not None
        assert backbone.pretrained_cfg["sha256"] == hashlib.sha256(own_zoo.read_bytes()).hexdigest()


def test_adding_the_same_checkpoint_again_changes_nothing(own_zoo: Path) -> None:
    before = manifest.manifest_path().read_text()
    add_bundled(own_zoo, RECORD, aliases=["mine"])
    assert manifest.manifest_path().read_text() == before


def test_adding_an_unsound_record_changes_nothing(own_zoo: Path) -> None:
    before = manifest.manifest_path().read_text()
    with pytest.raises(DataError, match="provenance"):
        add_bundled(own_zoo, {**RECORD, "provenance": None})
    assert manifest.manifest_path().read_text() == before


def test_recipe_error_names_command_own_copy_and_nearest(own_zoo: Path) -> None:
    name = "minkunet34-dinov2_s.clever_nuscenes"
    with pytest.raises(CheckpointError) as error:
        clever3d.load_backbone(name)
    message = str(error.value)
    assert f"Nobody has trained {name} yet" in message
    assert RECORDS[name]["make"] in message
    assert f'load_backbone("{name}", weights=' in message
    assert "pretrained=False" in message
    assert 'load_backbone("minkunet18-dinov2_s.mine")' in message


def test_recipe_error_without_any_weights_names_no_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipes = [record for record in RECORDS.values() if record["status"] == "recipe"]
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({"format": manifest.FORMAT, "aliases": {}, "records": recipes}))
    monkeypatch.setattr(manifest, "manifest_path", lambda: path)
    with pytest.raises(CheckpointError) as error:
        clever3d.load_backbone(recipes[0]["name"])
    assert "nearest" not in str(error.value)


def test_changed_bundled_file_is_refused(own_zoo: Path) -> None:
    content = bytearray(own_zoo.read_bytes())
    content[-1] ^= 1
    own_zoo.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"has the sha256 \w+ instead of \w+, the manifest's: install clever3d again"
    ):
        clever3d.load_backbone("mine")
    own_zoo.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"has {len(content) - 1:,} bytes instead of {len(content):,}"):
        clever3d.load_backbone("mine")
    own_zoo.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        clever3d.load_backbone("mine")
    assert clever3d.load_backbone("mine", pretrained=False)


def test_non_commercial_weights_warn_once(own_zoo: Path, caplog: pytest.LogCaptureFixture) -> None:
    loading._licence_said.clear()
    with caplog.at_level(logging.WARNING, logger="clever3d"):
        clever3d.load_backbone("mine", pretrained=False)
        assert not caplog.records
        clever3d.load_backbone("mine")
        clever3d.load_backbone("mine")
    assert [record.getMessage() for record in caplog.records] == [
        "The weights of minkunet18-dinov2_s.mine are for non-commercial use only (CC-BY-NC-SA-4.0)."
    ]


def test_file_without_metadata_asks_for_the_architecture(own_zoo: Path, small: Backbone) -> None:
    save_file(load_file(own_zoo), own_zoo)
    with pytest.raises(CheckpointError, match=r"no clever3d metadata.*load_backbone\(NAME, weights="):
        clever3d.load_backbone(own_zoo)
    assert _same_weights(clever3d.load_backbone("mine", weights=own_zoo), small)


def test_a_name_that_is_neither_text_nor_path_is_refused() -> None:
    with pytest.raises(InputError, match="not NoneType"):
        clever3d.load_backbone(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:99", "leave it out to run on the CPU"), ("gpu", "none: 'cpu'"), ("xpu", "cannot be used here")],
)
def test_a_device_that_is_not_there_is_named(device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        clever3d.load_backbone("minkunet-dinov2-s", device=device)
