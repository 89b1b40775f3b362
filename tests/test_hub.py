"""Loading from the Hub: the real client against a real server on 127.0.0.1, faults included."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_tools import TOKEN, in_another_process, same
from huggingface_hub import constants
from loopback_hub import LoopbackHub
from test_manifest import RECORD

import clever3d
from clever3d.backbones import Backbone, MinkUNet, WaffleIron
from clever3d.errors import CheckpointError, InputError, UnknownNameError
from clever3d.zoo import hub as hub_module
from clever3d.zoo import manifest, save_pretrained

WEIGHTS = "resolve/*/model.safetensors"


@pytest.fixture()
def files(small: Backbone, tmp_path: Path) -> dict[str, bytes]:
    """What a repository made by clever3d holds."""
    save_pretrained(small, tmp_path / "files", record=RECORD)
    return {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()}


@pytest.fixture()
def repository(hub: LoopbackHub, files: dict[str, bytes]) -> str:
    """The commit of ``someone/weights``."""
    return hub.add_repo("someone/weights", files=files)


def cached(home: Path) -> list[Path]:
    """Files of the cache that are not empty, locks and branch names aside."""
    found = [path for path in (home / "hub").rglob("*") if path.is_file() and path.stat().st_size]
    return [path for path in found if not {"refs", ".locks"} & set(path.parts)]


# ---- by hf-hub: name ----


def test_repository_loads_bit_for_bit_and_says_where_it_came_from(
    hub: LoopbackHub, repository: str, online: Path, small: Backbone
) -> None:
    backbone = clever3d.load_backbone("hf-hub:someone/weights")
    assert same(backbone, small)
    record = backbone.pretrained_cfg
    assert record is not None and record["status"] == "hub" and record["name"] == RECORD["name"]
    assert record["location"] == {"hub": "someone/weights", "commit": repository, "file": "model.safetensors"}
    assert record["sha256"] == hashlib.sha256(hub.files("someone/weights")["model.safetensors"]).hexdigest()


def test_revision_may_be_a_commit_a_branch_or_beside_the_name(hub: LoopbackHub, repository: str, online: Path) -> None:
    hub.commit("someone/weights", {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match="not of clever3d"):
        clever3d.load_backbone("hf-hub:someone/weights")
    assert clever3d.load_backbone(f"hf-hub:someone/weights@{repository}")
    assert clever3d.load_backbone("hf-hub:someone/weights", revision=repository)
    with pytest.raises(CheckpointError, match=r"someone/weights@v9 .* no revision 'v9'"):
        clever3d.load_backbone("hf-hub:someone/weights", revision="v9")
    with pytest.raises(InputError, match="leave one of them out"):
        clever3d.load_backbone(f"hf-hub:someone/weights@{repository}", revision="main")


def test_weights_come_from_the_commit_of_the_config_though_the_branch_moves(
    hub: LoopbackHub, repository: str, online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = hub_module.fetch

    def move(place: Any, file: str, *rest: Any, **options: Any) -> Path:
        path = fetch(place, file, *rest, **options)
        if file == "config.json":
            hub.commit("someone/weights", {"model.safetensors": b"other weights"})
        return path

    monkeypatch.setattr(hub_module, "fetch", move)
    assert clever3d.load_backbone("hf-hub:someone/weights")
    assert [one.path.split("/")[4] for one in hub.asked("GET", WEIGHTS)] == [repository]


def test_pinned_commit_in_the_cache_needs_no_request(hub: LoopbackHub, repository: str, online: Path) -> None:
    clever3d.load_backbone(f"hf-hub:someone/weights@{repository}")
    hub.requests.clear()
    clever3d.load_backbone(f"hf-hub:someone/weights@{repository}")
    assert hub.requests == []


def test_cache_dir_and_local_files_only(hub: LoopbackHub, repository: str, online: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not in the cache, and local_files_only was given"):
        clever3d.load_backbone("hf-hub:someone/weights", local_files_only=True)
    assert hub.requests == []
    clever3d.load_backbone("hf-hub:someone/weights", cache_dir=tmp_path / "elsewhere")
    assert not (online / "hub").exists() and (tmp_path / "elsewhere").is_dir()
    assert clever3d.load_backbone("hf-hub:someone/weights", cache_dir=tmp_path / "elsewhere", local_files_only=True)


def test_untrained_needs_the_config_only(hub: LoopbackHub, repository: str, online: Path, small: Backbone) -> None:
    backbone = clever3d.load_backbone("hf-hub:someone/weights", pretrained=False)
    assert backbone.config == small.config and backbone.input_spec == small.input_spec
    assert backbone.pretrained_cfg is None and not same(backbone, small)
    assert not hub.asked(pattern=WEIGHTS)


def test_from_pretrained_takes_a_bare_repository_and_checks_the_class(
    hub: LoopbackHub, repository: str, online: Path
) -> None:
    assert isinstance(MinkUNet.from_pretrained("someone/weights"), MinkUNet)
    assert Backbone.from_pretrained(f"someone/weights@{repository}")
    with pytest.raises(CheckpointError, match="is a MinkUNet, not a WaffleIron"):
        WaffleIron.from_pretrained("someone/weights")
    with pytest.raises(UnknownNameError, match=r"A repository of the Hub is hf-hub:someone/weights\."):
        clever3d.load_backbone("someone/weights")


@pytest.mark.parametrize(
    "name",
    [
        "weights",
        "../weights",
        "a/../b",
        "/etc/passwd",
        "someone/weights/main",
        "https://elsewhere/a/b",
        "a/b@",
        "a/b@../c",
        "a/b@/c",
    ],
)
def test_repository_names_with_path_tricks_are_refused_before_any_request(
    hub: LoopbackHub, online: Path, name: str
) -> None:
    with pytest.raises(InputError, match=r"no repository of the Hub|revision"):
        clever3d.load_backbone(f"hf-hub:{name}")
    assert hub.requests == [] and not online.exists()


@pytest.mark.parametrize("file", ["../../../../outside", "/etc/passwd", "a\\b"])
def test_config_that_names_a_file_elsewhere_is_refused(
    hub: LoopbackHub, files: dict[str, bytes], online: Path, file: str
) -> None:
    config = json.loads(files["config.json"])
    config["weights"]["file"] = file
    hub.add_repo("someone/weights", files={**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(CheckpointError, match="no plain path"):
        clever3d.load_backbone("hf-hub:someone/weights")


def test_revision_goes_with_the_hub_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="goes with hf-hub:"):
        clever3d.load_backbone("minkunet-dinov2-s", revision="main")
    with pytest.raises(InputError, match="has weights already"):
        clever3d.load_backbone("hf-hub:a/b", weights=tmp_path / "x.safetensors")


# ---- who may read ----


def test_private_repository_needs_a_token(
    hub: LoopbackHub, files: dict[str, bytes], tmp_path: Path, small: Backbone
) -> None:
    hub.add_repo("someone/weights", private=True, files=files)
    with (
        hub.client(tmp_path / "without"),
        pytest.raises(CheckpointError, match=r"private and the token is missing.*HF_TOKEN"),
    ):
        clever3d.load_backbone("hf-hub:someone/weights")
    with hub.client(tmp_path / "with", TOKEN):
        assert same(clever3d.load_backbone("hf-hub:someone/weights"), small)
    assert not any(one.authorization for one in hub.requests if one.cdn)  # the token goes to no other host


def test_refusals_are_told_apart(hub: LoopbackHub, files: dict[str, bytes], online: Path, tmp_path: Path) -> None:
    hub.add_repo("someone/gated", gated=True, members=set(), files=files)
    hub.add_repo("someone/empty", files={"a.txt": b"a"})
    for name, complaint in (("missing", "no such repository"), ("gated", "asked for"), ("empty", "no such file")):
        with pytest.raises(CheckpointError, match=complaint):
            clever3d.load_backbone(f"hf-hub:someone/{name}")
    with (
        hub.client(tmp_path / "other", "hf_expired"),
        pytest.raises(CheckpointError, match=r"denied \(401\).*HF_TOKEN"),
    ):
        clever3d.load_backbone("hf-hub:someone/empty")
    hub.fail("resolve/*/config.json", status=403)
    with pytest.raises(CheckpointError, match=r"denied \(403\)"):
        clever3d.load_backbone("hf-hub:someone/empty")


def test_renamed_repository_is_followed(hub: LoopbackHub, repository: str, online: Path, small: Backbone) -> None:
    hub.rename("someone/weights", "someone/renamed")
    assert same(clever3d.load_backbone("hf-hub:someone/weights"), small)


# ---- faults on the way ----


def test_cut_connection_is_taken_up_again(hub: LoopbackHub, repository: str, online: Path, small: Backbone) -> None:
    hub.fail(WEIGHTS, method="GET", cut_after=3000, times=2)
    assert same(clever3d.load_backbone(f"hf-hub:someone/weights@{repository}"), small)


def test_cut_download_goes_on_where_it_stopped(
    hub: LoopbackHub, repository: str, online: Path, small: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept of a piece that was cut
    hub.fail(WEIGHTS, method="GET", cut_after=30_500, times=1)
    assert same(clever3d.load_backbone(f"hf-hub:someone/weights@{repository}"), small)
    assert [one.range for one in hub.asked("GET", WEIGHTS) if one.cdn] == [None, "bytes=30000-"]


def test_reset_connection_is_tried_again_and_then_named(
    hub: LoopbackHub, repository: str, online: Path, small: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail(WEIGHTS, method="GET", cut_after=1000, reset=True, times=1)
    assert same(clever3d.load_backbone(f"hf-hub:someone/weights@{repository}"), small)
    assert "broke off" in caplog.text


def test_connection_that_always_breaks_ends_in_an_error_and_leaves_nothing(
    hub: LoopbackHub, repository: str, online: Path
) -> None:
    hub.fail(WEIGHTS, method="GET", cut_after=1000, reset=True, times=99)
    with pytest.raises(CheckpointError, match=r"model\.safetensors .* could not be had .* Check the network"):
        clever3d.load_backbone(f"hf-hub:someone/weights@{repository}")
    assert len([one for one in hub.asked("GET", WEIGHTS) if one.cdn]) == hub_module.ATTEMPTS
    assert {path.name for path in cached(online) if "snapshots" in path.parts} == {"config.json"}
    hub.mend()
    assert clever3d.load_backbone(f"hf-hub:someone/weights@{repository}")


@pytest.mark.parametrize("status", [500, 503])
def test_broken_server_is_named(hub: LoopbackHub, repository: str, online: Path, status: int) -> None:
    hub.fail(WEIGHTS, method="GET", status=status, times=99)
    with pytest.raises(CheckpointError, match=f"the server answered {status}"):
        clever3d.load_backbone(f"hf-hub:someone/weights@{repository}")


def test_slow_server_is_waited_for(hub: LoopbackHub, repository: str, online: Path, small: Backbone) -> None:
    hub.fail(WEIGHTS, method="GET", slow=0.05, block=50_000)
    assert same(clever3d.load_backbone("hf-hub:someone/weights"), small)


def test_silent_server_ends_in_an_error(hub: LoopbackHub, repository: str, online: Path) -> None:
    hub.fail("resolve/*/config.json", hang=1.2, times=99)
    with pytest.raises(CheckpointError, match="Check the network"):
        clever3d.load_backbone("hf-hub:someone/weights")


def test_no_server_ends_in_an_error(tmp_path: Path) -> None:
    with LoopbackHub() as gone:
        pass
    with gone.client(tmp_path), pytest.raises(CheckpointError, match=r"Check the network \(HF_ENDPOINT"):
        clever3d.load_backbone("hf-hub:someone/weights")


def test_full_disk_is_named_and_leaves_nothing(hub: LoopbackHub, repository: str, tmp_path: Path) -> None:
    """No file may grow beyond 100,000 bytes in that process: the system's own refusal, as of a full disk."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "import clever3d; clever3d.load_backbone('hf-hub:someone/weights')"
    )
    process = in_another_process(code, hub.environment(tmp_path / "home"))
    said = process.communicate(timeout=120)[1]
    assert "CheckpointError: model.safetensors of someone/weights" in said and "File too large" in said
    assert "HF_HOME or cache_dir names another place" in said
    assert {path.name for path in cached(tmp_path / "home") if "snapshots" in path.parts} == {"config.json"}


# ---- what arrives is what was published ----


def test_broken_file_in_the_cache_is_replaced_once(
    hub: LoopbackHub, repository: str, online: Path, small: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"hf-hub:someone/weights@{repository}"
    clever3d.load_backbone(name)
    (blob,) = [path for path in cached(online) if path.stat().st_size > 100_000 and not path.is_symlink()]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    hub.requests.clear()
    assert same(clever3d.load_backbone(name), small)
    assert "downloaded again" in caplog.text and len([one for one in hub.asked("GET", WEIGHTS) if one.cdn]) == 1
    hub.requests.clear()
    clever3d.load_backbone(name)
    assert hub.requests == []  # it was mended for good
    blob.write_bytes(content[:-5])
    assert same(clever3d.load_backbone(name), small)


def test_broken_file_offline_says_which_to_delete(hub: LoopbackHub, repository: str, online: Path) -> None:
    name = f"hf-hub:someone/weights@{repository}"
    clever3d.load_backbone(name)
    (blob,) = [path for path in cached(online) if path.stat().st_size > 100_000 and not path.is_symlink()]
    (config,) = [path for path in cached(online) if path.name == "config.json"]
    text = config.read_text()
    config.resolve().write_text(text[:100])
    with pytest.raises(CheckpointError, match=r"config\.json is damaged.*delete it and load again online"):
        clever3d.load_backbone(name, local_files_only=True)
    config.resolve().write_text(text)
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged.*delete it and load again online"):
        clever3d.load_backbone(name, local_files_only=True)


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_broken_config_in_the_cache_is_replaced(
    hub: LoopbackHub, repository: str, online: Path, small: Backbone, how: str
) -> None:
    name = f"hf-hub:someone/weights@{repository}"
    clever3d.load_backbone(name)
    (config,) = [path.resolve() for path in cached(online) if path.name == "config.json"]
    text = config.read_text()
    digit = text[text.index('"sha256": "') + 11]
    changed = text.replace(f'"sha256": "{digit}', f'"sha256": "{"1" if digit == "0" else "0"}')
    config.write_text(text[:100] if how == "cut" else changed)
    assert same(clever3d.load_backbone(name), small)
    assert config.read_text() == text


def test_wrong_file_on_the_hub_is_refused_and_not_kept(hub: LoopbackHub, repository: str, online: Path) -> None:
    hub.fail(WEIGHTS, method="GET", wrong_bytes=True, times=4)
    with pytest.raises(CheckpointError, match=r"has the sha256 .* also after a second download.*not kept"):
        clever3d.load_backbone(f"hf-hub:someone/weights@{repository}")
    assert {path.name for path in cached(online) if "snapshots" in path.parts} == {"config.json"}
    assert all(path.stat().st_size < 100_000 for path in cached(online))


def test_two_processes_load_at_once(hub: LoopbackHub, repository: str, tmp_path: Path) -> None:
    hub.fail(WEIGHTS, method="GET", slow=0.02, block=20_000, times=1)
    code = "import clever3d; clever3d.load_backbone('hf-hub:someone/weights')"
    both = [in_another_process(code, hub.environment(tmp_path / "home")) for _ in range(2)]
    assert [process.communicate(timeout=120)[1] and process.returncode for process in both] == ["", ""]
    assert len([one for one in hub.asked("GET", WEIGHTS) if one.cdn]) == 1


def test_killed_download_leaves_nothing_that_loads_and_the_next_one_is_whole(
    hub: LoopbackHub, repository: str, tmp_path: Path, small: Backbone
) -> None:
    hub.fail(WEIGHTS, method="GET", slow=0.2, block=5_000, times=1)
    code = "import clever3d; clever3d.load_backbone('hf-hub:someone/weights')"
    process = in_another_process(code, hub.environment(tmp_path / "home"))
    while not [one for one in hub.asked("GET", WEIGHTS) if one.cdn]:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with hub.client(tmp_path / "home"):
        assert not list((tmp_path / "home" / "hub").rglob("model.safetensors"))
        assert same(clever3d.load_backbone("hf-hub:someone/weights"), small)


# ---- by a name of the manifest ----


@pytest.fixture()
def pinned(
    repository: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """The record of ``someone/weights`` in a manifest of one's own."""
    config = json.loads(files["config.json"])
    place = {"hub": "someone/weights", "commit": repository, "file": "model.safetensors"}
    weights = {"sha256": config["weights"]["sha256"], "bytes": config["weights"]["bytes"]}
    record = {**config["record"], "status": "hub", "location": place, **weights}
    path = tmp_path / "ours.json"
    path.write_text(json.dumps({"format": manifest.FORMAT, "aliases": {"ours": record["name"]}, "records": [record]}))
    monkeypatch.setenv("CLEVER3D_MANIFEST", str(path))
    manifest.forget()
    yield record
    manifest.forget()


def test_hub_record_is_fetched_at_its_commit_and_nothing_else(
    hub: LoopbackHub, pinned: dict[str, Any], online: Path, small: Backbone
) -> None:
    hub.commit("someone/weights", {"model.safetensors": b"newer"})
    backbone = clever3d.load_backbone("ours")
    assert same(backbone, small) and backbone.pretrained_cfg == pinned
    assert {one.path for one in hub.asked() if not one.cdn} == {
        f"/someone/weights/resolve/{pinned['location']['commit']}/model.safetensors"
    }
    assert any(one.user_agent and "clever3d" in one.user_agent for one in hub.requests)


def test_hub_record_whose_hash_the_hub_does_not_have_is_refused(
    hub: LoopbackHub, pinned: dict[str, Any], online: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ours.json"
    path.write_text(path.read_text().replace(pinned["sha256"], "0" * 64))
    manifest.forget()
    with pytest.raises(CheckpointError, match=r"instead of 0{64}, also after a second download"):
        clever3d.load_backbone("ours")
    assert not [path for path in cached(online) if path.stat().st_size > 100_000]


def test_hub_record_offline_says_how_to_go_on(pinned: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"not in the cache, and HF_HUB_OFFLINE is set"):
        clever3d.load_backbone("ours")
