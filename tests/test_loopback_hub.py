"""The loopback Hub against the real client, so that the tests which stand on it stand on something."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, upload_file
from huggingface_hub.utils import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import RepositoryNotFoundError as NoRepo
from huggingface_hub.utils import RevisionNotFoundError as NoRevision
from loopback_hub import LoopbackHub

NAME = "org/name"
WEIGHTS = bytes(range(256)) * 400  # 102,400 bytes
OTHERS = WEIGHTS[::-1]
SMALL = "/org/name/resolve/main/sub/a%20b.json"
MODEL = "resolve/*/model.safetensors"
VERSION = tuple(map(int, huggingface_hub.__version__.split(".")[:2]))
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # the client's own
retries = pytest.mark.skipif(VERSION < (1, 33), reason="older clients give up earlier, each in its own way")


@pytest.fixture()
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """With two files in one repository, and this process's client turned to it, logged in as someone."""
    if VERSION < (1, 0):
        pytest.skip("clients before 1.0 copy the endpoint at import")
    with LoopbackHub() as hub, hub.client(tmp_path / "home", "hf_good"):
        hub.tokens = {"hf_good": "someone", "hf_other": "another", "hf_reads": "reader"}
        hub.read_only = {"reader"}
        hub.add_repo(NAME, files={"model.safetensors": WEIGHTS, "sub/a b.json": b"hello"})
        yield hub


def head(hub: LoopbackHub) -> str:
    return hub.history(NAME)[0]


def download(file: str = "model.safetensors", **options: Any) -> bytes:
    return Path(hf_hub_download(NAME, file, **options)).read_bytes()


def upload(content: bytes, path: str = "n.bin", **options: Any) -> Any:
    return upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=NAME, **options)


def another_process(hub: LoopbackHub, home: Path, code: str) -> subprocess.Popen[str]:
    env, pipe = hub.environment(home, "hf_good"), subprocess.PIPE
    code = f"from huggingface_hub import *; {code}"
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=pipe, stderr=pipe, text=True)


def raw(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.headers)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# Downloads.


def test_downloads_lie_in_the_cache_as_the_real_hub_s_do(hub: LoopbackHub, tmp_path: Path) -> None:
    assert (download(), download("sub/a b.json")) == (WEIGHTS, b"hello")
    repo = tmp_path / "home" / "hub" / "models--org--name"
    assert (repo / "refs" / "main").read_text() == head(hub)
    git_hello = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"  # printf hello | git hash-object --stdin
    blobs = {path.name: path.read_bytes() for path in (repo / "blobs").iterdir()}
    assert blobs == {hashlib.sha256(WEIGHTS).hexdigest(): WEIGHTS, git_hello: b"hello"}
    assert (repo / "snapshots" / head(hub) / "sub" / "a b.json").resolve().name == git_hello


def test_large_files_come_from_another_origin_to_which_no_token_goes(hub: LoopbackHub) -> None:
    download(library_name="clever3d")
    download("sub/a b.json")
    asked = [(request.method, request.cdn, request.authorization) for request in hub.requests]
    sent = "Bearer hf_good"
    assert asked == [("HEAD", False, sent), ("GET", True, None), ("HEAD", False, sent), ("GET", False, sent)]
    assert (hub.requests[0].user_agent or "").startswith("clever3d/")


def test_a_second_download_asks_for_the_head_only_and_of_a_pinned_commit_nothing(hub: LoopbackHub) -> None:
    download()
    hub.requests.clear()
    assert download() == WEIGHTS
    assert [request.method for request in hub.requests] == ["HEAD"]
    assert download(revision=head(hub)) == WEIGHTS
    assert len(hub.requests) == 1


def test_each_commit_branch_and_tag_has_its_own_files(hub: LoopbackHub) -> None:
    first = head(hub)
    later = hub.commit(NAME, {"model.safetensors": OTHERS})
    HfApi().create_tag(NAME, tag="v1", revision=first)
    HfApi().create_branch(NAME, branch="try/2", revision=first)
    assert hub.history(NAME) == [later, first]
    assert hub.refs(NAME) == {"main": later, "try/2": first, "v1": first}
    assert download() == download(revision=later) == OTHERS
    assert download(revision="v1") == download(revision="try/2") == download(revision=first) == WEIGHTS


def test_a_renamed_repository_is_found_by_its_old_name(hub: LoopbackHub) -> None:
    hub.rename(NAME, "org/now")
    assert (download(), download("sub/a b.json")) == (WEIGHTS, b"hello")
    info = HfApi().model_info(NAME, files_metadata=True)
    weights = next(file for file in info.siblings or [] if file.rfilename == "model.safetensors")
    assert (info.id, info.sha, weights.size) == ("org/now", hub.history("org/now")[0], len(WEIGHTS))
    assert weights.lfs and weights.lfs["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()


def test_private_and_gated_files_are_for_members_only(hub: LoopbackHub) -> None:
    for kind, error, status in (("private", NoRepo, 404), ("gated", GatedRepoError, 403)):
        hub.add_repo(NAME, members={"someone"}, files={"model.safetensors": WEIGHTS}, **{kind: True})
        for token, code in ((False, 401), ("hf_other", status)):
            with pytest.raises(error) as refused:
                download(token=token)
            assert type(refused.value) is error and refused.value.response.status_code == code
    assert HfApi(token="hf_other").model_info(NAME).gated == "auto"
    assert download(token="hf_good") == WEIGHTS


def test_what_does_not_exist_is_named_by_the_client(hub: LoopbackHub) -> None:
    with pytest.raises(NoRepo):
        hf_hub_download("org/none", "model.safetensors")
    with pytest.raises(NoRevision):
        download(revision="none")
    with pytest.raises(EntryNotFoundError) as absent:
        download("none")
    assert isinstance(absent.value, HfHubHTTPError)  # that the server said so, not only that the cache has it not
    assert HfApi().whoami()["name"] == "someone"
    for ask in (download, HfApi().whoami):
        with pytest.raises(HfHubHTTPError, match="Invalid"):
            ask(token="hf_expired")


def test_parts_of_a_file_are_served_as_rfc_9110_says(hub: LoopbackHub) -> None:
    answers = [raw(hub.url, "GET", SMALL, Range=f"bytes={part}") for part in ("1-2", "3-", "-2", "4-99", "5-")]
    assert [answer[:2] for answer in answers] == [(206, b"el"), (206, b"lo"), (206, b"lo"), (206, b"o"), (416, b"")]
    assert answers[0][2]["Content-Range"] == "bytes 1-2/5"
    assert answers[-1][2]["Content-Range"] == "bytes */5"


# Uploads.


def test_an_upload_comes_back_as_it_was(hub: LoopbackHub, tmp_path: Path) -> None:
    card = b"---\nlicense: apache-2.0\n---\nA card.\n"
    files = {"README.md": card, "m.safetensors": OTHERS, "sub/note.txt": b"hello", "long.txt": b"l" * 10_000_001}
    for name, content in files.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    api = HfApi()
    api.create_repo("org/new", private=True)
    done = api.upload_folder(repo_id="org/new", folder_path=tmp_path / "up")
    assert hub.history("org/new")[0] == done.oid
    assert {name: content for name, content in hub.files("org/new").items() if name != ".gitattributes"} == files
    large = {hashlib.sha256(files[name]).hexdigest() for name in ("m.safetensors", "long.txt")}  # by name, by size
    assert {request.path.split("/")[-1] for request in hub.asked("PUT")} == large
    assert all(request.cdn and request.authorization is None for request in hub.asked("PUT"))
    assert set(api.list_repo_files("org/new")) == {".gitattributes", *files}
    for name, content in files.items():
        assert Path(hf_hub_download("org/new", name, revision=done.oid)).read_bytes() == content
    assert api.upload_folder(repo_id="org/new", folder_path=tmp_path / "up").oid == done.oid
    assert len(hub.history("org/new")) == 2 and len(hub.asked("PUT")) == 2


def test_a_commit_goes_to_its_branch_and_only_on_the_head_it_was_made_for(hub: LoopbackHub) -> None:
    first = head(hub)
    HfApi().create_branch(NAME, branch="try")
    upload(b"1", "n", revision="try", parent_commit=first)
    assert hub.history(NAME) == [first] and hub.files(NAME, "try")["n"] == b"1"
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        upload(b"2", "n", revision="try", parent_commit=first)
    for no_branch in ("none", first):
        with pytest.raises(NoRevision):
            upload(b"2", "n", revision=no_branch)
    HfApi().delete_file("n", repo_id=NAME, revision="try")
    assert hub.files(NAME, "try") == hub.files(NAME)


def test_who_may_not_write_cannot(hub: LoopbackHub) -> None:
    for token, status in (("hf_expired", 401), ("hf_reads", 403)):
        for act in (lambda token: HfApi().create_repo("org/new", token=token), lambda token: upload(b"1", token=token)):
            with pytest.raises(HfHubHTTPError) as refused:
                act(token)
            assert refused.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().create_repo(NAME)
    assert len(hub.history(NAME)) == 1


def test_a_licence_that_is_no_identifier_is_refused(hub: LoopbackHub) -> None:
    with pytest.raises(ValueError, match="license"):
        upload(b"---\nlicense: CC BY\n---\n", "README.md")
    with pytest.warns(UserWarning, match="yaml metadata"):
        upload(b"no head", "README.md")


def test_only_what_was_put_whole_is_committed_and_all_of_it_or_nothing(hub: LoopbackHub) -> None:
    oid = hashlib.sha256(b"other").hexdigest()
    small = {"key": "file", "value": {"path": "a", "content": ""}}
    large = {"key": "lfsFile", "value": {"path": "b.bin", "oid": oid, "size": 5}}
    lines = [{"key": "header", "value": {"summary": "s"}}, small, large]
    body = "\n".join(json.dumps(line) for line in lines).encode()

    def put(size: int, content: bytes) -> int:
        return raw(hub.cdn_url, "PUT", f"/org/name/lfs/{oid}?size={size}", content)[0]

    def commit() -> int:
        return raw(hub.url, "POST", "/api/models/org/name/commit/main", body, Authorization="Bearer hf_good")[0]

    assert (put(4, b"othe"), put(5, b"OTHER"), put(6, b"other"), commit()) == (400, 400, 400, 400)
    assert "a" not in hub.files(NAME) and len(hub.history(NAME)) == 1
    assert (put(5, b"other"), commit()) == (200, 200)
    assert (hub.files(NAME)["a"], hub.files(NAME)["b.bin"]) == (b"", b"other")
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))  # a client that dies within its request
    connection.putrequest("POST", "/api/models/org/name/commit/main")
    connection.putheader("Authorization", "Bearer hf_good")
    connection.putheader("Content-Length", "999")
    connection.endheaders(body)
    connection.close()
    wait_until(lambda: len(hub.asked("POST")) == 3)
    assert len(hub.history(NAME)) == 2


# Faults.


@retries
def test_a_cut_download_goes_on_where_it_ended(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at a time, and so what is kept
    hub.fail(MODEL, cut_after=30_500, times=2)
    assert download() == WEIGHTS
    assert [request.range for request in hub.asked("GET")] == [None, "bytes=30000-", "bytes=60000-"]


@retries
@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ("RemoteProtocolError", {"cut_after": 30_000, "times": 6}),
        ("ReadError", {"cut_after": 30_000, "reset": True}),
        ("OSError", {"truncate_to": 30_000}),
        ("HfHubHTTPError", {"status": 401}),
        ("GatedRepoError", {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}),
        ("LocalEntryNotFoundError", {"status": 404}),
        ("HfHubHTTPError", {"status": 500, "method": "GET"}),
        ("LocalEntryNotFoundError", {"status": 503, "times": 7}),
        (None, {"status": 500, "times": 2}),
        (None, {"status": 429, "headers": {"Retry-After": "9"}, "times": 2}),
        (None, {"lose_answer": True, "method": "GET"}),
        (None, {"slow": 0.02, "block": 20_000}),
        (None, {"slow": 1.4, "block": 60_000}),
        (None, {"hang": 9, "method": "HEAD"}),
        (None, {"hang": 9, "method": "GET"}),
    ],
    ids=str,
)
def test_a_fault_meets_the_client_and_is_used_up(hub: LoopbackHub, error: str | None, fault: dict[str, Any]) -> None:
    hub.fail(MODEL, **fault)
    if error:
        with pytest.raises(Exception) as failure:
            download()
        assert type(failure.value).__name__ == error
    assert download() == WEIGHTS
    assert len(hub.requests) > 2 or fault.get("slow") == 0.02  # slow, but not for so long that the client gives up


def test_the_client_keeps_wrong_bytes_until_it_is_forced(hub: LoopbackHub) -> None:
    """It compares sizes only, so whoever must be sure has to hash."""
    hub.fail(MODEL, wrong_bytes=True)
    commit = head(hub)
    assert download(revision=commit) == download(revision=commit) == bytes(255 - byte for byte in WEIGHTS)
    assert download(revision=commit, force_download=True) == WEIGHTS


def test_faults_come_one_after_the_other(hub: LoopbackHub) -> None:
    hub.fail("*.json", status=500)
    hub.fail("*.json", status=503, times=2, method="GET")
    hub.fail("org/*", status=403)
    answers = [raw(hub.url, method, SMALL)[0] for method in ("HEAD", "HEAD", "GET", "GET", "GET")]
    assert answers == [500, 403, 503, 503, 200]
    hub.fail("*", status=500, times=9)
    hub.mend()
    assert raw(hub.url, "GET", SMALL)[0] == 200


@retries
@pytest.mark.parametrize("fault", [{"cut_after": 50_000}, {"cut_after": 0}, {"status": 500}, {"lose_answer": True}])
def test_a_put_that_fails_is_sent_again(hub: LoopbackHub, fault: dict[str, Any]) -> None:
    hub.fail("lfs/*", method="PUT", **fault)
    upload(OTHERS)
    assert hub.files(NAME)["n.bin"] == OTHERS and len(hub.asked("PUT")) == 2


@retries
def test_a_failed_upload_leaves_no_commit_unless_only_the_answer_was_lost(hub: LoopbackHub) -> None:
    commit = "commit/main"
    faults: list[tuple[str, dict[str, Any]]] = [("lfs/*", {"method": "PUT", "cut_after": 10, "times": 6})]
    for pattern, fault in [*faults, (commit, {"status": 503}), (commit, {"cut_after": 10})]:
        hub.fail(pattern, **fault)
        with pytest.raises(Exception, match=r"uploading|503|disconnected"):
            upload(OTHERS)
        assert len(hub.history(NAME)) == 1
    hub.fail(commit, lose_answer=True)
    with pytest.raises(Exception, match="disconnected"):
        upload(OTHERS)
    assert len(hub.history(NAME)) == 2 and hub.files(NAME)["n.bin"] == OTHERS


# Processes, threads, and what is left behind.


def test_two_processes_at_once_download_once(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail(MODEL, slow=0.1, block=20_000)
    code = f"print(open(hf_hub_download('{NAME}', 'model.safetensors'), 'rb').read().hex())"
    processes = [another_process(hub, tmp_path / "shared", code) for _ in range(2)]
    assert all(bytes.fromhex(process.communicate(timeout=30)[0]) == WEIGHTS for process in processes)
    assert len(hub.asked("HEAD", MODEL)) == 2 and len(hub.asked("GET", MODEL)) == 1


def test_a_killed_upload_leaves_no_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail("lfs/*", method="PUT", slow=0.1, block=5_000)
    code = f"upload_file(repo_id='{NAME}', path_in_repo='n.bin', path_or_fileobj=bytes(10**7))"
    process = another_process(hub, tmp_path / "home", code)
    wait_until(lambda: bool(hub.asked("PUT")))
    process.kill()
    process.communicate(timeout=30)
    assert len(hub.history(NAME)) == 1
    process = another_process(hub, tmp_path / "home", code)
    assert process.communicate(timeout=30) and process.returncode == 0
    assert hub.files(NAME)["n.bin"] == bytes(10**7)


def test_leaving_ends_every_thread_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())
    with LoopbackHub() as hub:
        hub.fail("hangs", hang=60)
        connections = [http.client.HTTPConnection(hub.url.removeprefix("http://")) for _ in range(2)]
        for connection, path in zip(connections, ("/waits", "/hangs"), strict=True):
            connection.request("GET", path)
        connections[0].getresponse().read()  # and stays connected
        wait_until(lambda: len(hub.requests) == 2)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert set(threading.enumerate()) <= before
    assert capfd.readouterr() == ("", "")
    for connection in connections:
        connection.close()


def test_the_client_is_given_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_own")
    before = {**vars(constants)}, {**os.environ}
    with LoopbackHub() as hub, hub.client(tmp_path, "hf_good"):
        assert (constants.ENDPOINT, constants.HF_HUB_OFFLINE, os.environ["HF_TOKEN"]) == (hub.url, False, "hf_good")
        assert Path(constants.HF_HUB_CACHE).is_relative_to(tmp_path)
    assert ({**vars(constants)}, {**os.environ}) == before
    assert constants.HF_HUB_OFFLINE is True
    with pytest.raises(LocalEntryNotFoundError):
        download()
