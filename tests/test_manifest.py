"""The manifest and its schema: what is shipped, what is refused, and manifests of one's own."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import clever3d
from clever3d.backbones import ARCHITECTURES, Backbone
from clever3d.errors import CheckpointError, DataError
from clever3d.zoo import manifest, save_checkpoint
from clever3d.zoo.publish import complete_record
from clever3d.zoo.records import is_plain_path, is_repository

REPOSITORY = Path(__file__).resolve().parents[1]
CONTENT: dict[str, Any] = json.loads((REPOSITORY / "weights_manifest.json").read_text(encoding="utf-8"))
SCHEMA = json.loads((REPOSITORY / "clever3d" / "zoo" / "manifest.schema.json").read_text(encoding="utf-8"))
WEIGHTS = REPOSITORY / "clever3d" / "zoo" / "weights"
RECORD = {
    "name": "minkunet18-dinov2_s.mine",
    "teacher": {"model": "vit_small_patch14_dinov2.lvd142m", "source": "here", "licence": "Apache-2.0"},
    "recipe": "none",
    "data": ["nothing"],
    "weights_licence": "CC0-1.0",
    "data_licence": "CC0-1.0",
    "provenance": {"revision": "0" * 40, "steps": 1, "seed": 0, "date": "2026-11-22", "command": "none"},
}


def complaints_of_the_schema(content: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(content)]


# ---- what is shipped ----


def test_schema_is_a_schema_and_the_shipped_manifest_fits_it() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert complaints_of_the_schema(CONTENT) == []
    assert {record["architecture"] for record in CONTENT["records"]} <= set(ARCHITECTURES)


def test_bundled_files_and_records_match_both_ways() -> None:
    on_disk = {path.name for path in WEIGHTS.glob("*")}
    bundled = {record["location"]["file"]: record for record in CONTENT["records"] if record["status"] == "bundled"}
    assert on_disk == set(bundled)
    for file, record in bundled.items():
        content = (WEIGHTS / file).read_bytes()
        assert len(content) == record["bytes"] <= 10_000_000
        assert hashlib.sha256(content).hexdigest() == record["sha256"]


def test_shipped_manifest_is_written_as_the_code_writes_it() -> None:
    assert (REPOSITORY / "weights_manifest.json").read_text(encoding="utf-8") == manifest.format_manifest(CONTENT)


# ---- what is refused, by us and by the schema alike ----


def _first(status: str) -> dict[str, Any]:
    return copy.deepcopy(next(record for record in CONTENT["records"] if record["status"] == status))


def _hub(**place: str) -> dict[str, Any]:
    location = {"hub": "someone/weights", "commit": "a" * 40, "file": "model.safetensors", **place}
    return {**_first("bundled"), "status": "hub", "location": location}


def _changed(status: str, /, **changes: Any) -> dict[str, Any]:
    return {**_first(status), **changes}


UNSOUND: dict[str, tuple[Any, str]] = {
    "no object": ("minkunet", "a record is a JSON object"),
    "no name": ({}, "missing fields"),
    "unknown field": (_changed("bundled", surprise=1), r"unknown fields \['surprise'\]"),
    "missing field": ({k: v for k, v in _first("bundled").items() if k != "data"}, r"missing fields \['data'\]"),
    "status": (_changed("bundled", status="trained"), "none of bundled"),
    "name": (_changed("bundled", name="mine"), "architecture-teacher.tag"),
    "empty text": (_changed("bundled", recipe=" "), "recipe is a text of one line, not ' '"),
    "two lines": (_changed("bundled", limits=["a\n## Metrics"]), "limits is a list of texts"),
    "terminal codes": (_changed("bundled", weights_licence="\x1b[31mMIT"), "weights_licence is a text of one line"),
    "empty provenance": (
        _changed("bundled", provenance={"revision": "", "steps": 1, "seed": 0, "date": "x", "command": "x"}),
        "provenance: revision, date, command",
    ),
    "no steps": (
        _changed("bundled", provenance={"revision": "a", "steps": 0, "seed": 0, "date": "x", "command": "x"}),
        "steps .above 0",
    ),
    "recipe with provenance": (_changed("recipe", provenance={}), "a recipe has no weights"),
    "recipe with an empty place": (_changed("recipe", location={}), "location is null"),
    "hub with dashes": (_hub(hub="a--b/c"), "no repository of the Hub"),
    "hub with git": (_hub(hub="a/b.git"), "no repository of the Hub"),
    "number as text": (_changed("bundled", feature_dim="96"), "feature_dim is a positive whole number"),
    "true as number": (_changed("bundled", parameters=True), "parameters is a positive whole number"),
    "data as text": (_changed("bundled", data="KITTI"), "data is a list of texts"),
    "no data": (_changed("bundled", data=[]), "data is a list of texts, at least one"),
    "limits as text": (_changed("bundled", limits="none"), "limits is a list of texts"),
    "config as list": (_changed("bundled", config=[]), "config is a JSON object"),
    "teacher": (_changed("bundled", teacher={"model": "x"}), "the keys model, source, licence"),
    "metric": (_changed("bundled", metrics=[{"name": "mIoU", "value": 1}]), "the keys name, value"),
    "metric as text": (
        _changed("bundled", metrics=[{"name": "mIoU", "value": "high", "protocol": "x"}]),
        r"value \(a number\)",
    ),
    "no sha256": (_changed("bundled", sha256=None), "sha256"),
    "short sha256": (_changed("bundled", sha256="abc"), "sha256"),
    "no provenance": (_changed("bundled", provenance=None), "provenance"),
    "short provenance": (_changed("bundled", provenance={"steps": 1}), "provenance"),
    "no location": (_changed("bundled", location=None), "location None, but a bundled record has there: file"),
    "file outside": (_changed("bundled", location={"file": "../x.safetensors"}), "no plain relative path"),
    "file absolute": (_changed("bundled", location={"file": "/x.safetensors"}), "no plain relative path"),
    "file on Windows": (_changed("bundled", location={"file": "C:\\x.safetensors"}), "no plain relative path"),
    "hub path": (_hub(hub="../weights"), "no repository of the Hub"),
    "hub url": (_hub(hub="https://elsewhere/a/b"), "no repository of the Hub"),
    "branch": (_hub(commit="main"), "full commit"),
    "hub file outside": (_hub(file="a/../../b"), "no plain relative path"),
    "recipe with weights": (_changed("recipe", sha256="0" * 64), "a recipe has no weights"),
    "recipe with metrics": (
        _changed("recipe", metrics=[{"name": "mIoU", "value": 1, "protocol": "x"}]),
        "a recipe has no weights",
    ),
    "recipe without command": (_changed("recipe", make=None), "needs the command"),
    "recipe with place": (_changed("recipe", location={"file": "x"}), "nobody has trained it"),
    "external by http": (
        _changed("external", location={"url": "http://example.org/x.tar.gz", "layout": "valeoai"}),
        "no https address",
    ),
    "external layout": (_changed("external", location={"url": "https://a.b/x", "layout": "else"}), "none of valeoai"),
    "external half hashed": (_changed("external", sha256="0" * 64), "sha256"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_record_is_refused_by_the_loader_and_by_the_schema(case: str) -> None:
    record, complaint = UNSOUND[case]
    content = {"format": manifest.FORMAT, "aliases": {}, "records": [record]}
    assert complaints_of_the_schema(content)
    with pytest.raises(DataError, match=complaint):
        manifest.parse_manifest(content)


@pytest.mark.parametrize("status", ["bundled", "recipe", "external"])
def test_shipped_record_of_each_status_is_sound_alone(status: str) -> None:
    """So that the cases above are refused for what was changed."""
    content = {"format": manifest.FORMAT, "aliases": {}, "records": [_first(status)]}
    assert complaints_of_the_schema(content) == []
    manifest.parse_manifest(content)


def test_hub_record_is_sound() -> None:
    content = {"format": manifest.FORMAT, "aliases": {}, "records": [_hub()]}
    assert complaints_of_the_schema(content) == []
    manifest.parse_manifest(content)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": "clever3d.manifest.v9"}, "not of the format"),
        ({"extra": 1}, "has the keys"),
        ({"aliases": []}, "aliases are a JSON object"),
        ({"aliases": {"x": [1]}}, "aliases are a JSON object of texts"),
        ({"records": {}}, "records a list"),
        ({"aliases": {"x": "no.such"}}, r"'x' points at 'no\.such'"),
        ({"aliases": {_first("bundled")["name"]: _first("bundled")["name"]}}, "is also the name of a record"),
        ({"aliases": {"../x": _first("bundled")["name"]}}, "other signs"),
        ({"records": [_first("bundled"), _first("bundled")]}, "two records named"),
    ],
)
def test_unsound_manifest_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        manifest.parse_manifest(
            {**{"format": manifest.FORMAT, "aliases": {}, "records": [_first("bundled")]}, **changes}
        )


@pytest.mark.parametrize("path", ["a", "a/b.safetensors", "a..b", "..a/b"])
def test_plain_paths(path: str) -> None:
    assert is_plain_path(path)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\\b", "c:a", "a\nb", "a\0"]
)
def test_paths_that_lead_elsewhere(path: str) -> None:
    assert not is_plain_path(path)


@pytest.mark.parametrize("name", ["a/b", "org-1/name.v2", "A/b_c"])
def test_repository_names(name: str) -> None:
    assert is_repository(name)


@pytest.mark.parametrize(
    "name", ["a", "a/b/c", "../b", "a/..", "/a/b", "a/b/", "a/b\n", "a/-b", "a--b/c", "a/b.git", "a/ b"]
)
def test_names_that_are_no_repository(name: str) -> None:
    assert not is_repository(name)


# ---- manifests of one's own ----


@pytest.fixture()
def organisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Backbone) -> Path:
    """A folder with a manifest of its own and the weights beside it; gives the manifest."""
    (tmp_path / "files").mkdir()
    file = tmp_path / "files" / "mine.safetensors"
    save_checkpoint(small, file)
    place = {
        "status": "bundled",
        "location": {"file": "files/mine.safetensors"},
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": file.stat().st_size,
    }
    record = {**complete_record(small, RECORD), **place}
    path = tmp_path / "ours.json"
    path.write_text(
        json.dumps({"format": manifest.FORMAT, "aliases": {"our-best": RECORD["name"]}, "records": [record]})
    )
    monkeypatch.setenv("CLEVER3D_MANIFEST", str(path))
    return path


def _rewrite(path: Path, text: str) -> None:
    path.write_text(text)
    manifest.forget()


@pytest.fixture(autouse=True)
def forgetful() -> Any:
    manifest.forget()
    yield
    manifest.forget()


def test_own_manifest_adds_to_the_shipped_one(organisation: Path, small: Backbone) -> None:
    names = clever3d.list_backbones()
    assert set(names) == {RECORD["name"], *(record["name"] for record in CONTENT["records"])}
    backbone = clever3d.load_backbone("our-best")
    assert all((backbone.state_dict()[name] == tensor).all() for name, tensor in small.state_dict().items())
    assert clever3d.backbone_info("our-best").manifest == organisation
    assert clever3d.load_backbone("minkunet-dinov2-s")  # the shipped ones still load


def test_two_own_manifests_and_a_clash_between_them(
    organisation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.json"
    other.write_text(
        organisation.read_text().replace(RECORD["name"], "minkunet18-dinov2_s.second").replace("our-", "my-")
    )
    monkeypatch.setenv("CLEVER3D_MANIFEST", f"{organisation}{os.pathsep}{other}")
    assert clever3d.backbone_info("my-best").name == "minkunet18-dinov2_s.second"
    _rewrite(other, other.read_text().replace("my-best", "our-best"))
    with pytest.raises(DataError, match=r"other\.json has the name 'our-best', and so has another"):
        clever3d.list_backbones()


def test_own_manifest_cannot_take_a_shipped_name(organisation: Path) -> None:
    _rewrite(organisation, organisation.read_text().replace("our-best", "minkunet-dinov2-b"))
    with pytest.raises(DataError, match=r"ours\.json has the name 'minkunet-dinov2-b'.*another tag or alias"):
        clever3d.list_backbones()


def test_duplicate_alias_is_refused_though_json_allows_it(organisation: Path) -> None:
    text = organisation.read_text()
    _rewrite(organisation, text.replace('"our-best": ', f'"our-best": "{RECORD["name"]}", "our-best": ', 1))
    with pytest.raises(DataError, match="'our-best' stands there twice"):
        clever3d.list_backbones()


def test_features_that_a_record_gets_wrong_are_named(organisation: Path) -> None:
    _rewrite(organisation, organisation.read_text().replace('"feature_dim": ', '"feature_dim": 1'))
    with pytest.raises(CheckpointError, match=r"says 14 features per point, the network has 4"):
        clever3d.load_backbone("our-best")


def test_broken_manifest_of_ones_own_does_not_stop_a_file(organisation: Path) -> None:
    _rewrite(organisation, "{")
    assert clever3d.load_backbone(str(organisation.parent / "files" / "mine.safetensors"))


def test_wrong_hash_in_an_own_manifest_is_named(organisation: Path) -> None:
    _rewrite(
        organisation,
        organisation.read_text().replace(json.loads(organisation.read_text())["records"][0]["sha256"], "0" * 64),
    )
    with pytest.raises(CheckpointError, match=r"mine\.safetensors has the sha256 .* instead of 0{64}.*ours\.json"):
        clever3d.load_backbone("our-best")
    (organisation.parent / "files" / "mine.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"mine\.safetensors, the weights of .*, is missing: copy it there"):
        clever3d.load_backbone("our-best")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "not valid JSON"), ("[]", "format"), ("\udcff", "no UTF-8"), ("[" * 100_000, "nested too deeply")],
)
def test_unreadable_own_manifest_names_file_and_variable(organisation: Path, text: str, complaint: str) -> None:
    organisation.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=rf"ours\.json.*{complaint}"):
        clever3d.list_backbones()
    organisation.unlink()
    manifest.forget()
    with pytest.raises(DataError, match=r"ours\.json cannot be read \(No such file.*CLEVER3D_MANIFEST"):
        clever3d.list_backbones()
