"""Records, cards and folders: what is handed on with the weights, and `clever3d publish`. test_hub.py has the Hub."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from test_manifest import CONTENT, RECORD
from typer.testing import CliRunner

import clever3d
from clever3d.backbones import Backbone, create_backbone
from clever3d.cli import app
from clever3d.errors import CheckpointError, DataError
from clever3d.zoo import save_checkpoint, save_pretrained
from clever3d.zoo.card import model_card
from clever3d.zoo.publish import complete_record, record_template

FULL = {
    **RECORD,
    "weights_licence": "CC-BY-NC-SA-4.0",
    "metrics": [{"name": "mIoU", "value": 0.381, "protocol": "linear probe | frame 8"}],
    "limits": ["Was never driven at night."],
    "citation": ["arXiv 0000.00000"],
}


def weights_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return dict(backbone.state_dict())


def equal(one: Backbone, other: Backbone) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- the record ----


def test_record_is_completed_with_what_the_network_knows(small: Backbone) -> None:
    record = complete_record(small, FULL)
    assert record["architecture"] == "minkunet18" and record["config"]["width"] == 0.05
    assert record["parameters"] == sum(p.numel() for p in small.parameters())
    assert record["limits"] == FULL["limits"] and record["make"] is None
    assert not {"sha256", "status", "location", "bytes"} & set(record)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"surprise": 1}, "unknown fields"),
        ({"name": "minkunet34-dinov2_s.mine"}, "does not begin with its architecture 'minkunet18'"),
        ({"feature_dim": 95}, "feature_dim is 95, the network's"),
        ({"provenance": {"steps": 1}}, "provenance"),
        ({"data": "nuScenes"}, "data is a list of texts"),
        ({"weights_licence": ""}, "weights_licence is a text"),
    ],
)
def test_record_that_cannot_be_true_is_refused(small: Backbone, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        complete_record(small, {**FULL, **changes})


def test_template_filled_in_is_a_record(small: Backbone) -> None:
    template = record_template(small)
    with pytest.raises(DataError):
        complete_record(small, template)
    assert complete_record(small, {**template, **FULL})["name"] == FULL["name"]
    small.pretrained_cfg = {"recipe": "known already", "teacher": "vit", "scenes": []}  # as clever3d-train writes it
    assert record_template(small)["recipe"] == "known already"
    assert record_template(small)["teacher"] == {"model": "", "source": "", "licence": ""}


# ---- the card ----


def test_card_says_what_the_record_says(small: Backbone) -> None:
    record = complete_record(small, FULL)
    text = model_card(record, "someone/weights")
    card = ModelCard(text)  # the Hub's own reader
    assert card.data.license == "cc-by-nc-sa-4.0" and card.data.library_name == "clever3d"
    for part in (
        'load_backbone("hf-hub:someone/weights")',
        "| mIoU | 0.381 | linear probe \\| frame 8 |",
        "* Was never driven at night.",
        "* arXiv 0000.00000",
        "**For non-commercial use only.**",
        "| voxel_size | 0.25 m |",
        f"| revision | {'0' * 40} |",
        "vit_small_patch14_dinov2.lvd142m",
    ):
        assert part in text


def test_card_claims_nothing_that_the_record_does_not_have(small: Backbone) -> None:
    record = complete_record(small, {**RECORD, "weights_licence": "Our Own Licence 1.0"})
    text = model_card(record, "a/b")
    assert ModelCard(text).data.license == "other" and ModelCard(text).data.license_name == "our-own-licence-1.0"
    assert "None were measured." in text and "Its author states none." in text and "None is given." in text
    assert "non-commercial" not in text


@pytest.mark.parametrize("record", CONTENT["records"], ids=lambda record: record["name"])
def test_every_shipped_record_makes_a_card(record: dict[str, Any]) -> None:
    text = model_card(record, "a/b")
    assert text.startswith("---\n") and f"# {record['name']}" in text and "None\n" not in text.replace("None is", "")


# ---- the folder ----


def test_folder_loads_and_its_record_travels(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "a" / "b", record=FULL)
    backbone = clever3d.load_backbone(tmp_path / "a" / "b")
    assert equal(backbone, small) and backbone.input_spec == small.input_spec
    assert backbone.pretrained_cfg == complete_record(small, FULL)
    backbone.save_pretrained(tmp_path / "again")  # the record is known by now
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "a" / "b" / name).read_bytes()


def test_folder_without_a_record_has_no_card(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    assert equal(clever3d.load_backbone(tmp_path), small)
    assert clever3d.load_backbone(tmp_path).pretrained_cfg is None


def test_folder_in_half_precision(small: Backbone, tmp_path: Path) -> None:
    save_pretrained(small, tmp_path, dtype=torch.float16)
    loaded = clever3d.load_backbone(tmp_path)
    for name, parameter in small.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], parameter.half().float())


def test_untrained_from_a_folder_needs_no_weights(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert clever3d.load_backbone(tmp_path, pretrained=False).config == small.config
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        clever3d.load_backbone(tmp_path)


def test_folder_that_does_not_hold_together_is_refused(small: Backbone, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"folder without config\.json"):
        clever3d.load_backbone(tmp_path)
    small.save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    weights = tmp_path / "two" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"has .* bytes instead of"):
        clever3d.load_backbone(tmp_path / "two")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    (tmp_path / "one" / "config.json").write_text(json.dumps({**config, "architecture": "minkunet34"}))
    with pytest.raises(CheckpointError, match="does not belong to it"):
        clever3d.load_backbone(tmp_path / "one")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "clever3d.backbone.v1"}', '{"model_type": "bert"}'])
def test_foreign_or_damaged_config_is_named(small: Backbone, tmp_path: Path, text: str) -> None:
    small.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json (cannot be read|is not of clever3d|is damaged)"):
        clever3d.load_backbone(tmp_path)


def test_folder_that_cannot_be_written_is_named(small: Backbone, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        small.save_pretrained(tmp_path / "file" / "folder")


def test_record_does_not_stay_with_weights_that_were_changed(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "one", record=FULL)
    backbone = clever3d.load_backbone(tmp_path / "one")
    with torch.no_grad():
        backbone.get_parameter("stem.0.kernel").add_(1e-3)
    with pytest.raises(DataError, match=r"no longer minkunet18-dinov2_s\.mine: its weights"):
        backbone.save_pretrained(tmp_path / "two")
    backbone.save_pretrained(tmp_path / "two", record={**FULL, "name": "minkunet18-dinov2_s.changed", "metrics": []})
    backbone.pretrained_cfg = None
    backbone.save_pretrained(tmp_path / "three")
    assert not (tmp_path / "three" / "README.md").exists()


def test_record_does_not_stay_with_another_input(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "one", record=FULL)
    backbone = clever3d.load_backbone(tmp_path / "one")
    backbone.input_spec = dataclasses.replace(backbone.input_spec, voxel_size=0.5)
    with pytest.raises(DataError, match="or its input spec were changed"):
        backbone.save_pretrained(tmp_path / "two")


def test_card_does_not_stay_beside_other_weights(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path, record=FULL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"has a README\.md"):
        create_backbone("minkunet18", width=0.05).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_config_of_a_folder_cannot_name_a_file_elsewhere(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path / "folder")
    shutil.move(tmp_path / "folder" / "model.safetensors", tmp_path / "outside.safetensors")
    weights = json.loads((tmp_path / "folder" / "config.json").read_text())["weights"]
    for file in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        _config(tmp_path / "folder", weights={**weights, "file": file})
        with pytest.raises(CheckpointError, match="no plain path beside it"):
            clever3d.load_backbone(tmp_path / "folder")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "nested too deeply"),
        (" " * 2_000_000 + "{}", "2,000,002 bytes"),
        ('{"format": "clever3d.backbone.v1", "format": 1}', "stands there twice"),
    ],
)
def test_config_that_attacks_its_reader_is_an_error(small: Backbone, tmp_path: Path, text: str, complaint: str) -> None:
    small.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=complaint):
        clever3d.load_backbone(tmp_path)


def test_config_with_impossible_numbers_is_an_error(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"bytes": ', '"bytes": 1e999, "was": '))
    with pytest.raises(CheckpointError, match="is damaged"):
        clever3d.load_backbone(tmp_path)
    path.write_text(text.replace('"width": 0.05', '"width": 1e999'))
    with pytest.raises(CheckpointError, match="cannot build 'minkunet18'"):
        clever3d.load_backbone(tmp_path, pretrained=False)


def test_weights_file_that_asks_for_much_memory_is_refused_before_it_is_given(small: Backbone, tmp_path: Path) -> None:
    """At this width the network would have 10^13 parameters; the file has its thousands."""
    path = tmp_path / "small.safetensors"
    save_checkpoint(small, path)
    content = path.read_bytes()
    assert content.count(b'\\"width\\": 0.05') == 1
    path.write_bytes(content.replace(b'\\"width\\": 0.05', b'\\"width\\": 1e03'))
    with pytest.raises(CheckpointError, match="mis-shaped"):
        clever3d.load_backbone(path)


def test_record_of_a_newer_version_is_read_as_far_as_it_is_known(small: Backbone, tmp_path: Path) -> None:
    small.save_pretrained(tmp_path, record=FULL)
    record = json.loads((tmp_path / "config.json").read_text())["record"]
    _config(tmp_path, record={**record, "carbon": 3})
    loaded = clever3d.load_backbone(tmp_path).pretrained_cfg
    assert loaded is not None and loaded["name"] == FULL["name"] and "carbon" not in loaded
    _config(tmp_path, record={**record, "weights_licence": 5})
    with pytest.raises(CheckpointError, match="weights_licence is a text of one line, not 5"):
        clever3d.load_backbone(tmp_path)


def test_card_cannot_be_given_sections_by_a_record(small: Backbone) -> None:
    with pytest.raises(DataError, match="limits is a list of texts"):
        complete_record(small, {**FULL, "limits": ["fine\n\n## Metrics\n\nperfect"]})


# ---- the command ----


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["publish", *map(str, arguments)])


def test_command_prints_a_template_and_writes_a_folder(small: Backbone, tmp_path: Path) -> None:
    save_checkpoint(small, tmp_path / "mine.safetensors")
    printed = run(tmp_path / "mine.safetensors", "--template")
    assert printed.exit_code == 0
    template = json.loads(printed.stdout)
    (tmp_path / "record.json").write_text(json.dumps({**template, **FULL}))
    done = run(tmp_path / "mine.safetensors", "--record", tmp_path / "record.json", "--folder", tmp_path / "out")
    assert done.exit_code == 0 and "nothing was published" in done.stdout
    assert equal(clever3d.load_backbone(tmp_path / "out"), small)


def test_command_takes_a_student_of_the_trainer(small: Backbone, tmp_path: Path) -> None:
    """Its checkpoint has a record of another kind: the teacher is a name, and frames and options are in it."""
    trained = {
        "recipe": "feature similarity",
        "teacher": "vit_small",
        "frames": 3,
        "scenes": ["kitti/0"],
        "options": {},
    }
    save_checkpoint(small, tmp_path / "student.safetensors", record=trained)
    (tmp_path / "record.json").write_text(json.dumps({key: value for key, value in FULL.items() if key != "recipe"}))
    arguments = ("--record", tmp_path / "record.json", "--folder", tmp_path / "out")
    done = run(tmp_path / "student.safetensors", *arguments)
    assert done.exit_code == 0, done.stderr
    loaded = clever3d.load_backbone(tmp_path / "out").pretrained_cfg
    assert loaded is not None and loaded["recipe"] == "feature similarity" and "frames" not in loaded
    assert loaded["teacher"] == FULL["teacher"]


def test_command_says_what_it_lacks(small: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_checkpoint(small, path)
    (tmp_path / "list.json").write_text("[]")
    for arguments, complaint in (
        ((path,), "say where to"),
        ((path, "someone/new"), "The record lacks name, teacher"),
        ((path, "someone/new", "--record", tmp_path / "none.json"), "cannot be read as JSON"),
        ((path, "someone/new", "--record", tmp_path / "list.json"), "holds no JSON object"),
        (("minkunet-dinov2-b", "someone/new"), "Nobody has trained"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2 and complaint in done.stderr


def test_waffleiron_travels_as_well(tmp_path: Path) -> None:
    backbone = create_backbone("waffleiron48_256", width=8, depth=3).eval()
    backbone.save_pretrained(tmp_path)
    assert equal(clever3d.load_backbone(tmp_path), backbone)
