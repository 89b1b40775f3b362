"""Weights published by others: fetched from a server of the test's, converted, and held to the first download."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from release_page import ARCHIVE, OTHER, Publisher

from clever3d.errors import CheckpointError, DataError
from clever3d.zoo import external, load_backbone
from clever3d.zoo.checkpoint import load_state, read_checkpoint
from clever3d.zoo.external import NOTE_NAME, convert_archive, external_file, read_archive
from clever3d.zoo.manifest import read_manifest
from clever3d.zoo.records import LAYOUTS, BackboneInfo

pytestmark = pytest.mark.usefixtures("impatient")
NAME = "waffleiron48_768-test.tiny"
WIDTH, DEPTH = 8, 3


def segmenter(seed: int = 0, mlp_head: bool = False) -> dict[str, torch.Tensor]:
    """A state dict as the authors' ``Segmenter`` has it: their names and shapes, random values."""
    w, i, classes = WIDTH, 5, 6
    shapes: dict[str, tuple[int, ...]] = {
        "embed.conv1.weight": (w, i, 1),
        "embed.conv1.bias": (w,),
        "embed.conv2.1.weight": (w, i, 1, 1),
        "embed.conv2.4.weight": (w, w, 1, 1),
        "embed.final.weight": (w, 2 * w, 1),
        "embed.final.bias": (w,),
    }
    for norm, size in (("norm", i), ("conv2.0", i), ("conv2.2", w)):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"embed.{norm}.{part}"] = (size,)
    for layer in range(DEPTH):
        for mix, inner, kernel in (("channel_mix", "mlp", (w, w, 1)), ("spatial_mix", "ffn", (w, 1, 3, 3))):
            prefix = f"waffleiron.{mix}.{layer}"
            shapes |= {f"{prefix}.norm.weight": (w,), f"{prefix}.norm.bias": (w,), f"{prefix}.scale.weight": (w, 1, 1)}
            for place in ("0", "2"):
                shapes |= {f"{prefix}.{inner}.{place}.weight": kernel, f"{prefix}.{inner}.{place}.bias": (w,)}
    head = {"classif.0": (16, w), "classif.2": (classes, 16)} if mlp_head else {"classif": (classes, w)}
    for name, (to, source) in head.items():
        shapes |= {f"{name}.weight": (to, source, 1), f"{name}.bias": (to,)}
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    counts = {f"embed.{norm}.num_batches_tracked": torch.tensor(7) for norm in ("norm", "conv2.0", "conv2.2")}
    return {**state, **counts}


def packed(content: Any, name: str = "logs/pretraining/WI_768/ckpt_last.pth") -> bytes:
    buffer, archive = io.BytesIO(), io.BytesIO()
    torch.save(content, buffer)
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(buffer.getvalue())
        tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return archive.getvalue()


def published(seed: int = 0, **state: Any) -> bytes:
    model = {f"module.{name}": tensor for name, tensor in segmenter(seed, **state).items()}
    return packed({"epoch": 24, "model_point": model, "optim": {"state": {}}, "scheduler": None, "scaler": None})


def record(publisher: Publisher, **changes: Any) -> BackboneInfo:
    known = next(iter(read_manifest().records.values()))
    spec = {"channels": ["intensity", "x", "y", "z", "radius"], "voxel_size": 0.5}
    tiny = dataclasses.replace(
        known,
        name=NAME,
        architecture="waffleiron48_768",
        config={"width": WIDTH, "depth": DEPTH, "neighbors": 4, "grids": [[8, 8], [8, 4], [8, 4]]},
        input_spec=spec,
        feature_dim=WIDTH,
        status="external",
        location={"url": publisher.url + ARCHIVE, "layout": "valeoai"},
        sha256=None,
        bytes=None,
        metrics=(),
        provenance=None,
        make=None,
        aliases=(),
    )
    return dataclasses.replace(tiny, **changes)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def note_of(file: Path) -> dict[str, Any]:
    return dict(json.loads((file.parent / NOTE_NAME).read_text()))


def assert_clean(folder: Path) -> None:
    """Neither the archive nor anything half written."""
    allowed = {".lock", NOTE_NAME, f"{NAME}.safetensors"}
    assert {path.name for path in folder.rglob("*") if path.is_file()} <= allowed
    assert not [path for path in folder.rglob("*") if path.name == "incomplete"]


@pytest.mark.parametrize("mlp_head", [False, True], ids=["ScaLR", "ScaLR+"])
def test_the_first_call_fetches_and_converts(publisher: Publisher, tmp_path: Path, mlp_head: bool) -> None:
    publisher.content = published(mlp_head=mlp_head)
    info = record(publisher)
    file = external_file(info, cache_dir=tmp_path)
    assert file.name == f"{NAME}.safetensors" and tmp_path in file.parents
    backbone = load_backbone(file)
    assert backbone.architecture == "waffleiron48_768"
    # Not by name: all the numbers of the backbone are there, each once, and none of the head's.
    theirs = [tensor for name, tensor in segmenter(mlp_head=mlp_head).items() if not name.startswith("classif")]
    ours = list(backbone.state_dict().values())
    flat = [torch.cat([tensor.double().flatten() for tensor in some]).sort().values for some in (theirs, ours)]
    assert torch.equal(flat[0], flat[1])
    assert backbone.extract(torch.rand(50, 3) * 4).features.shape == (50, WIDTH)
    assert_clean(tmp_path)


def test_what_was_trusted_is_written_down(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published()
    before = time.strftime("%Y-%m-%d", time.gmtime())
    file = external_file(record(publisher), cache_dir=tmp_path)
    note = note_of(file)
    assert note["url"] == publisher.url + ARCHIVE
    assert (note["archive_sha256"], note["archive_bytes"]) == (sha256(publisher.content), len(publisher.content))
    assert (note["file_sha256"], note["file_bytes"]) == (sha256(file.read_bytes()), file.stat().st_size)
    assert note["left_out"] == ["classif.bias", "classif.weight"]
    assert note["date"][:10] in (before, time.strftime("%Y-%m-%d", time.gmtime()))
    assert re.fullmatch(r"\d+\.\d+.*", note["clever3d"])


def test_the_second_call_asks_nobody(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published()
    info = record(publisher)
    first = external_file(info, cache_dir=tmp_path)
    publisher.statuses = [500] * 50
    assert external_file(info, cache_dir=tmp_path) == first
    assert external_file(info, cache_dir=tmp_path, local_files_only=True) == first
    assert len(publisher.seen) == 1


def test_offline_the_message_says_how_to_bring_the_file(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, name = record(publisher), "WI_768-tiny-pretrained.tar.gz"
    expected = rf"{re.escape(publisher.url + ARCHIVE)} .*load_backbone\('{NAME}', weights='{name}'\)"
    with pytest.raises(CheckpointError, match=rf"local_files_only\).* never fetched.*{expected}"):
        external_file(info, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=rf"HF_HUB_OFFLINE is set\).*{expected}"):
        external_file(info, cache_dir=tmp_path)
    assert publisher.seen == []
    assert_clean(tmp_path)


@pytest.mark.parametrize("unpacked", [False, True])
def test_an_archive_brought_by_hand_loads(publisher: Publisher, tmp_path: Path, unpacked: bool) -> None:
    brought = tmp_path / ("model.pth" if unpacked else "brought.tar.gz")
    brought.write_bytes(published())
    if unpacked:
        torch.save({"model_point": segmenter()}, brought)
    info = record(publisher)
    checkpoint = read_archive(brought, info)
    assert (checkpoint.architecture, checkpoint.config) == (info.architecture, info.config)
    left_out = convert_archive(brought, info, tmp_path / "mine.safetensors")
    assert left_out == ("classif.bias", "classif.weight")
    backbone = load_backbone(tmp_path / "mine.safetensors")
    assert backbone.pretrained_cfg is not None and backbone.pretrained_cfg["name"] == NAME
    loaded = backbone.state_dict()
    load_state(backbone, checkpoint)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in backbone.state_dict().items())
    assert {path.name for path in tmp_path.iterdir()} == {brought.name, "mine.safetensors"}


def test_a_changed_archive_is_refused_when_it_is_fetched_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published(seed=0)
    info = record(publisher)
    file = external_file(info, cache_dir=tmp_path)
    note, first = note_of(file), file.read_bytes()
    file.unlink()
    publisher.content = published(seed=1)
    when = re.escape(note["date"])
    expected = rf"{sha256(publisher.content)}.*changed since first downloaded on {when}.*delete .*{NOTE_NAME}"
    with pytest.raises(CheckpointError, match=expected):
        external_file(info, cache_dir=tmp_path)
    assert not file.exists() and note_of(file) == note
    assert_clean(tmp_path)
    (file.parent / NOTE_NAME).unlink()  # as the message says
    assert external_file(info, cache_dir=tmp_path).read_bytes() != first


def test_a_lost_file_comes_back_from_the_same_archive(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published()
    info = record(publisher)
    file = external_file(info, cache_dir=tmp_path)
    note, first = note_of(file), file.read_bytes()
    note["date"] = "2020-02-02T00:00:00+00:00"
    (file.parent / NOTE_NAME).write_text(json.dumps(note))
    file.unlink()
    assert external_file(info, cache_dir=tmp_path).read_bytes() == first
    assert note_of(file) == note  # the date too: it is the first download that is trusted


@pytest.mark.parametrize("longer", [False, True])
def test_a_changed_file_is_replaced_or_refused(
    publisher: Publisher, tmp_path: Path, longer: bool, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.content = published()
    info = record(publisher)
    file = external_file(info, cache_dir=tmp_path)
    first = file.read_bytes()
    changed = first + b"\0" if longer else first[:-1] + bytes([first[-1] ^ 1])
    file.write_bytes(changed)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(file))} was changed since it was written"):
        external_file(info, cache_dir=tmp_path, local_files_only=True)
    assert file.read_bytes() == changed
    with caplog.at_level(logging.WARNING, "clever3d"):
        assert external_file(info, cache_dir=tmp_path).read_bytes() == first
    assert "was changed since it was written" in caplog.text
    assert len(publisher.seen) == 2


def test_a_damaged_note_is_not_trusted_anew_silently(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published()
    info = record(publisher)
    note = external_file(info, cache_dir=tmp_path).parent / NOTE_NAME
    for damaged in ("", "[]", "{}", note.read_text()[:-20], '{"url": 1, "left_out": []}'):
        note.write_text(damaged)
        with pytest.raises(CheckpointError, match=rf"{NOTE_NAME}, which says .* is damaged .*Delete it"):
            external_file(info, cache_dir=tmp_path)
    assert len(publisher.seen) == 1


def test_the_checksum_of_the_record_rules(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published(seed=0)
    external_file(record(publisher), cache_dir=tmp_path)  # trusted on first use, and wrong as it turns out
    right = published(seed=1)
    pinned = record(publisher, sha256=sha256(right), bytes=len(right))
    with pytest.raises(
        CheckpointError, match=rf"has the sha256 {sha256(publisher.content)}, the record .*{sha256(right)}"
    ):
        external_file(pinned, cache_dir=tmp_path)
    publisher.content = right
    file = external_file(pinned, cache_dir=tmp_path)
    assert note_of(file)["archive_sha256"] == sha256(right)
    assert external_file(pinned, cache_dir=tmp_path) == file and len(publisher.seen) == 3


def test_another_address_or_network_in_the_record_is_fetched_anew(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published(seed=0)
    info = record(publisher)
    external_file(info, cache_dir=tmp_path)
    other_spec = {**info.input_spec, "intensity_mean": 0.25}
    file = external_file(record(publisher, input_spec=other_spec), cache_dir=tmp_path)
    assert (read_checkpoint(file).input_spec or {})["intensity_mean"] == 0.25
    publisher.content = published(seed=1)
    place = {"url": publisher.url + OTHER, "layout": "valeoai"}
    moved = record(publisher, input_spec=other_spec, location=place)
    file = external_file(moved, cache_dir=tmp_path)
    assert note_of(file)["url"] == publisher.url + OTHER
    assert [path for path, _ in publisher.seen] == [ARCHIVE, ARCHIVE, OTHER]


def test_weights_of_another_network_are_refused_with_the_differences(publisher: Publisher, tmp_path: Path) -> None:
    state = segmenter()
    state["embed.conv1.bias"] = torch.zeros(3)
    state["embed.conv9.bias"] = state.pop("embed.final.bias")
    publisher.content = packed({"model_points": state})
    with pytest.raises(CheckpointError) as caught:
        external_file(record(publisher), cache_dir=tmp_path)
    message = str(caught.value)
    assert publisher.url in message and "was deleted" in message
    assert "1 missing" in message and "1 unknown: embed.conv9.bias" in message and "[3] instead of [8]" in message
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob(NOTE_NAME))
    assert_clean(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>please log in</html>", "it is a web page"),
        (published()[:-500], "damaged or cut off"),
        (packed({"net": 1}, "logs/readme.txt"), "has no torch file"),
    ],
)
def test_what_is_no_archive_of_weights_is_not_kept(
    publisher: Publisher, tmp_path: Path, content: bytes, message: str
) -> None:
    publisher.content = content
    with pytest.raises(CheckpointError, match=message):
        external_file(record(publisher), cache_dir=tmp_path)
    assert not list(tmp_path.rglob(NOTE_NAME))
    assert_clean(tmp_path)


@pytest.mark.parametrize(("status", "requests"), [(401, 1), (403, 1), (404, 1), (410, 1), (500, 5)])
def test_a_lasting_error_is_named(publisher: Publisher, tmp_path: Path, status: int, requests: int) -> None:
    publisher.statuses = [status] * 9
    with pytest.raises(CheckpointError, match=rf"{re.escape(publisher.url + ARCHIVE)}: .*{status}") as caught:
        external_file(record(publisher), cache_dir=tmp_path)
    assert len(publisher.seen) == requests
    assert "Bring" in str(caught.value) and "load_backbone" in str(caught.value)
    assert_clean(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be stored.*HF_HOME"):
        external_file(record(publisher), cache_dir=tmp_path / "file")
    folder = tmp_path / "clever3d" / "external" / NAME
    folder.mkdir(parents=True)
    (folder / "incomplete").write_bytes(b"")  # a file where the folder for the work should be
    with pytest.raises(DataError, match="cannot be stored"):
        external_file(record(publisher), cache_dir=tmp_path)


def test_a_disk_that_fills_up_leaves_nothing_behind(publisher: Publisher, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    publisher.content = published()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, len(publisher.content) + 100):  # while downloading, while unpacking
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the system answers "File too large"
        try:
            with pytest.raises(DataError, match="File too large"):
                external_file(record(publisher), cache_dir=tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.rglob(NOTE_NAME))
        assert_clean(tmp_path)
    external_file(record(publisher), cache_dir=tmp_path)


def started(info: BackboneInfo, home: Path) -> subprocess.Popen[str]:
    """Another process that wants the weights, in the folder that the Hub client would use."""
    home.mkdir(exist_ok=True)
    (home / "info.pickle").write_bytes(pickle.dumps(info))
    script = (
        "import os, pickle, sys; from pathlib import Path; from clever3d.zoo.external import external_file; "
        "source = Path(sys.argv[1]); (source.parent / f'ready-{os.getpid()}').touch(); "
        "print(external_file(pickle.loads(source.read_bytes())))"
    )
    own = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "20", "OMP_NUM_THREADS": "1"}
    variables = {key: value for key, value in os.environ.items() if key != "HF_ASSETS_CACHE"} | own
    command = [sys.executable, "-c", script, str(home / "info.pickle")]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_of_two_processes_at_once_one_fetches(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content = published()
    publisher.hang_after = 5000  # until the other one has come
    processes = [started(record(publisher), tmp_path / "home") for _ in range(2)]
    wait_for(lambda: len(list(tmp_path.rglob("ready-*"))) == 2 and publisher.seen)
    time.sleep(0.5)
    publisher.slow.set()
    answers = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert answers[0] == answers[1] and answers[0][1] == ""  # no bar where there is no terminal
    assert len(publisher.seen) == 1
    file = Path(answers[0][0].strip())
    assert file.parent == tmp_path / "home" / "assets" / "clever3d" / "external" / NAME
    load_backbone(file)
    assert_clean(file.parent)


def test_after_a_process_was_killed_the_next_starts_cleanly(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content, publisher.hang_after = os.urandom(500_000), 300_000
    process = started(record(publisher), tmp_path / "home")
    wait_for(lambda: any(path.stat().st_size for path in tmp_path.rglob("archive")))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert list(tmp_path.rglob("incomplete"))
    publisher.content, publisher.hang_after = published(), None
    file = external_file(record(publisher), cache_dir=tmp_path / "home" / "assets")
    load_backbone(file)
    assert_clean(tmp_path / "home" / "assets")


def test_interrupted_by_hand_nothing_stays(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.content = published()

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(external, "convert_archive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            external_file(record(publisher), cache_dir=tmp_path)
    assert_clean(tmp_path)
    external_file(record(publisher), cache_dir=tmp_path)


def test_every_layout_of_the_manifest_can_be_read() -> None:
    assert set(external._TO_OURS) == set(external._HEADS) == set(LAYOUTS)


def test_the_zoo_loads_external_weights_by_name(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.content = published()
    content = {"format": "clever3d.manifest.v1", "aliases": {}, "records": [record(publisher).to_dict()]}
    (tmp_path / "zoo.json").write_text(json.dumps(content))
    monkeypatch.setenv("CLEVER3D_MANIFEST", str(tmp_path / "zoo.json"))
    backbone = load_backbone(NAME, cache_dir=tmp_path / "cache")
    (tmp_path / "brought.tar.gz").write_bytes(publisher.content)
    by_hand = load_backbone(NAME, weights=tmp_path / "brought.tar.gz")
    assert all(torch.equal(tensor, by_hand.state_dict()[name]) for name, tensor in backbone.state_dict().items())
    assert len(publisher.seen) == 1
