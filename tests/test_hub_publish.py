"""Publishing on the Hub: the real client against a real server on 127.0.0.1, faults included."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hub_tools import POINTS, TOKEN, in_another_process, same
from loopback_hub import LoopbackHub
from test_manifest import RECORD
from typer.testing import CliRunner

import clever3d
from clever3d.backbones import Backbone
from clever3d.cli import app
from clever3d.errors import CheckpointError, DataError, InputError
from clever3d.zoo import manifest, push_to_hub, save_pretrained


def test_published_backbone_loads_bit_for_bit_in_another_process(
    hub: LoopbackHub, online: Path, small: Backbone, tmp_path: Path
) -> None:
    done = small.push_to_hub("someone/new", record=RECORD)
    assert done.commit == hub.history("someone/new")[0] and done.address == f"{hub.url}/someone/new"
    assert set(hub.files("someone/new")) >= {"model.safetensors", "config.json", "README.md"}
    np.save(tmp_path / "points.npy", POINTS)
    code = (
        "import clever3d, numpy as np\n"
        f"backbone = clever3d.load_backbone('hf-hub:someone/new@{done.commit}')\n"
        f"points = np.load({str(tmp_path / 'points.npy')!r})\n"
        f"np.save({str(tmp_path / 'features.npy')!r}, backbone.extract(points).features)"
    )
    process = in_another_process(code, hub.environment(tmp_path / "elsewhere"))
    assert (process.communicate(timeout=120)[1], process.returncode) == ("", 0)
    assert np.array_equal(np.load(tmp_path / "features.npy"), small.extract(POINTS).features.numpy())


def test_record_of_a_published_backbone_goes_into_a_manifest_as_it_is(
    hub: LoopbackHub, online: Path, small: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = push_to_hub(small, "someone/new", record=RECORD).record
    path = tmp_path / "ours.json"
    path.write_text(json.dumps({"format": manifest.FORMAT, "aliases": {}, "records": [record]}))
    monkeypatch.setenv("CLEVER3D_MANIFEST", str(path))
    manifest.forget()
    backbone = clever3d.load_backbone(RECORD["name"])
    assert same(backbone, small) and backbone.pretrained_cfg == record
    manifest.forget()


def test_publish_command_prints_the_record_alone_on_stdout(
    hub: LoopbackHub, online: Path, small: Backbone, tmp_path: Path
) -> None:
    small.save_pretrained(tmp_path / "folder", record=RECORD)
    done = CliRunner().invoke(app, ["publish", str(tmp_path / "folder"), "someone/new", "--private", "--half"])
    assert done.exit_code == 0
    record = json.loads(done.stdout)
    assert record["location"]["commit"] == hub.history("someone/new")[0] and hub.url in done.stderr
    content = hub.files("someone/new")["model.safetensors"]
    assert record["sha256"] == hashlib.sha256(content).hexdigest() and record["bytes"] == len(content)
    assert 'load_backbone("hf-hub:someone/new")' in hub.files("someone/new")["README.md"].decode()


def test_publishing_is_one_commit_private_if_asked_and_on_a_branch_if_named(
    hub: LoopbackHub, online: Path, small: Backbone
) -> None:
    push_to_hub(small, "someone/new", record=RECORD, private=True)
    assert len(hub.history("someone/new")) == 2  # the Hub's own first one, and ours
    before = hub.history("someone/new")
    done = push_to_hub(small, "someone/new", record={**RECORD, "recipe": "another"}, revision="next")
    assert hub.refs("someone/new")["next"] == done.commit and hub.history("someone/new") == before
    with hub.client(online.parent / "anonymous"), pytest.raises(CheckpointError, match="private"):
        clever3d.load_backbone("hf-hub:someone/new")
    assert clever3d.load_backbone("hf-hub:someone/new@next").pretrained_cfg["recipe"] == "another"  # type: ignore[index]


def test_private_does_not_publish_into_a_public_repository(hub: LoopbackHub, online: Path, small: Backbone) -> None:
    hub.add_repo("someone/new")
    with pytest.raises(InputError, match="exists and is public: nothing was published"):
        push_to_hub(small, "someone/new", record=RECORD, private=True)
    assert "model.safetensors" not in hub.files("someone/new")


def test_token_that_is_given_is_the_one_that_is_used(hub: LoopbackHub, small: Backbone, tmp_path: Path) -> None:
    hub.tokens["hf_other"] = "other"
    with hub.client(tmp_path / "home"):
        push_to_hub(small, "other/new", record=RECORD, token="hf_other")
    assert {one.authorization for one in hub.requests if not one.cdn} == {"Bearer hf_other"}


def test_published_but_not_verified_is_no_failure(
    hub: LoopbackHub, online: Path, small: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("paths-info/*", status=500, times=99)
    done = push_to_hub(small, "someone/new", record=RECORD)
    assert done.commit == hub.history("someone/new")[0] and "did not say what it has" in caplog.text


def test_other_bytes_on_the_hub_than_were_sent_are_an_error(
    hub: LoopbackHub, online: Path, small: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(lfs=SimpleNamespace(sha256="0" * 64))
    monkeypatch.setattr("huggingface_hub.HfApi.get_paths_info", lambda *_, **__: [other])
    with pytest.raises(CheckpointError, match=r"with the sha256 0{64}, but .* was sent"):
        push_to_hub(small, "someone/new", record=RECORD)


def test_gateway_that_gives_up_on_a_commit_is_asked_again(hub: LoopbackHub, online: Path, small: Backbone) -> None:
    hub.fail("commit/main", status=504)
    done = push_to_hub(small, "someone/new", record=RECORD)
    assert done.commit == hub.history("someone/new")[0] and len(hub.history("someone/new")) == 2


def test_publishing_offline_says_so(small: Backbone) -> None:
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(small, "someone/new", record=RECORD)


def test_publishing_the_same_again_makes_no_commit(hub: LoopbackHub, online: Path, small: Backbone) -> None:
    first = push_to_hub(small, "someone/new", record=RECORD)
    assert push_to_hub(small, "someone/new", record=RECORD) == first
    assert len(hub.history("someone/new")) == 2


def test_lost_answer_of_the_commit_is_no_second_commit(hub: LoopbackHub, online: Path, small: Backbone) -> None:
    hub.fail("commit/main", lose_answer=True)
    done = push_to_hub(small, "someone/new", record=RECORD)
    assert hub.history("someone/new")[0] == done.commit and len(hub.history("someone/new")) == 2
    assert same(clever3d.load_backbone("hf-hub:someone/new"), small)


@pytest.mark.parametrize("fault", [{"status": 403}, {"cut_after": 1000}])
def test_failed_upload_publishes_nothing(
    hub: LoopbackHub, online: Path, small: Backbone, fault: dict[str, Any]
) -> None:
    hub.fail("lfs/*", method="PUT", times=99, **fault)
    with pytest.raises(CheckpointError, match=r"may not write there|broke off"):
        push_to_hub(small, "someone/new", record=RECORD)
    assert "model.safetensors" not in hub.files("someone/new") and len(hub.history("someone/new")) == 1


def test_publishing_without_the_right_to_write_is_named(hub: LoopbackHub, small: Backbone, tmp_path: Path) -> None:
    with hub.client(tmp_path / "anonymous"), pytest.raises(CheckpointError, match=r"\(401\).*HF_TOKEN"):
        push_to_hub(small, "someone/new", record=RECORD)
    hub.read_only = {"someone"}
    with hub.client(tmp_path / "reader", TOKEN), pytest.raises(CheckpointError, match=r"may not write there \(403\)"):
        push_to_hub(small, "someone/new", record=RECORD)
    assert len(hub.refs("someone/new") if "someone/new" in hub._repos else {}) == 0


def test_publishing_without_a_record_says_what_is_missing_and_asks_nobody(
    hub: LoopbackHub, online: Path, small: Backbone
) -> None:
    with pytest.raises(DataError, match=r"lacks name, teacher, recipe, data, .*--template"):
        push_to_hub(small, "someone/new")
    with pytest.raises(InputError, match="give it as revision='v1'"):
        push_to_hub(small, "someone/new@v1", record=RECORD)
    with pytest.raises(InputError, match="no repository of the Hub"):
        push_to_hub(small, "../new", record=RECORD)
    assert hub.requests == []


def test_killed_publisher_leaves_no_commit(hub: LoopbackHub, small: Backbone, tmp_path: Path) -> None:
    save_pretrained(small, tmp_path / "folder", record=RECORD)
    hub.fail("lfs/*", method="PUT", slow=0.2, block=5_000, times=1)
    code = f"import clever3d; clever3d.load_backbone({str(tmp_path / 'folder')!r}).push_to_hub('someone/new')"
    process = in_another_process(code, hub.environment(tmp_path / "home", TOKEN))
    while not hub.asked("PUT"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(hub.history("someone/new")) == 1
    with hub.client(tmp_path / "home", TOKEN):
        clever3d.load_backbone(tmp_path / "folder").push_to_hub("someone/new")
        assert same(clever3d.load_backbone("hf-hub:someone/new"), small)


def test_licence_of_published_weights_is_said(
    hub: LoopbackHub, online: Path, small: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    record = {**RECORD, "name": "minkunet18-dinov2_s.not_for_sale", "weights_licence": "CC-BY-NC-4.0"}
    push_to_hub(small, "someone/new", record=record)
    with caplog.at_level(logging.WARNING, logger="clever3d"):
        clever3d.load_backbone("hf-hub:someone/new")
    assert "minkunet18-dinov2_s.not_for_sale are for non-commercial use only (CC-BY-NC-4.0)" in caplog.text
