"""``clever3d.zoo.download`` against a real server on 127.0.0.1 that cuts, hangs, redirects and lies."""

from __future__ import annotations

import os
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from release_page import ARCHIVE, OTHER, Publisher

from clever3d.errors import CheckpointError, DataError
from clever3d.zoo import download as download_module
from clever3d.zoo.download import check_url, download

pytestmark = pytest.mark.usefixtures("impatient")


def test_a_cut_connection_is_resumed(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content, publisher.cuts = os.urandom(5_000_000), [2_000_000, 1, 2_500_000]
    download(publisher.url + ARCHIVE, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == publisher.content
    assert [wanted for _, wanted in publisher.seen] == [None, "bytes=2000000-", "bytes=2000001-", "bytes=4500001-"]


@pytest.mark.parametrize("changes", [{"ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}, {"part": "bytes 7-8/9"}])
def test_where_it_cannot_be_resumed_it_starts_again(
    publisher: Publisher, tmp_path: Path, changes: dict[str, Any]
) -> None:
    publisher.content, publisher.cuts = os.urandom(300_000), [200_000]
    for key, value in changes.items():
        setattr(publisher, key, value)
    download(publisher.url + ARCHIVE, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == publisher.content
    if "etag" in changes:  # nothing says for sure that it is still the same file
        assert publisher.seen == [(ARCHIVE, None)] * 2


def test_two_versions_are_never_mixed(publisher: Publisher, tmp_path: Path) -> None:
    old, new = os.urandom(300_000), os.urandom(300_000)
    publisher.content, publisher.cuts = old, [200_000]
    answer = publisher.answer

    def replaced_meanwhile(request: Any) -> None:
        answer(request)
        publisher.content, publisher.etag = new, '"two"'

    publisher.answer = replaced_meanwhile  # type: ignore[method-assign]
    download(publisher.url + ARCHIVE, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == new


def test_a_connection_that_is_always_cut_is_given_up(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content, publisher.cuts = os.urandom(300_000), [1000] * 50
    with pytest.raises(CheckpointError, match=r"cut after 5,000 of 300,000 bytes \(5 attempts\)"):
        download(publisher.url + ARCHIVE, tmp_path / "file")


def test_cuts_that_each_bring_something_are_not_counted(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content, publisher.cuts = os.urandom(9_000_000), [1_200_000] * 7
    download(publisher.url + ARCHIVE, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == publisher.content


def test_the_same_cut_again_and_again_is_counted(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content, publisher.cuts, publisher.ranges = bytes(2_000_000), [1_200_000] * 20, False
    with pytest.raises(CheckpointError, match="was cut after"):
        download(publisher.url + ARCHIVE, tmp_path / "file")
    assert len(publisher.seen) < 8


def test_a_body_without_a_length_is_taken_to_its_end(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content, publisher.length = os.urandom(300_000), False
    download(publisher.url + ARCHIVE, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == publisher.content


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_error_is_tried_again(publisher: Publisher, tmp_path: Path, status: int) -> None:
    publisher.content, publisher.statuses = b"content", [status, status]
    download(publisher.url + ARCHIVE, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"content" and len(publisher.seen) == 3


@pytest.mark.parametrize("hang_after", [0, 1000])
def test_a_server_that_hangs_is_left(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hang_after: int
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    publisher.content, publisher.hang_after = os.urandom(300_000), hang_after
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"timed out \(5 attempts\)"):
        download(publisher.url + ARCHIVE, tmp_path / "file")
    assert time.monotonic() - start < 5


def test_no_server_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Connection refused.*\(5 attempts\)"):
        download("http://127.0.0.1:9/file", tmp_path / "file")


def test_a_redirect_is_followed(publisher: Publisher, tmp_path: Path) -> None:
    publisher.content, publisher.cuts, publisher.redirect = os.urandom(300_000), [200_000], publisher.url + OTHER
    download(publisher.url + ARCHIVE, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == publisher.content
    resumed = "bytes=200000-"
    assert publisher.seen == [(ARCHIVE, None), (OTHER, None), (ARCHIVE, resumed), (OTHER, resumed)]


def test_a_redirect_in_a_circle_is_left(publisher: Publisher, tmp_path: Path) -> None:
    publisher.redirect = publisher.url + ARCHIVE
    with pytest.raises(CheckpointError, match="302"):
        download(publisher.url + ARCHIVE, tmp_path / "file")


@pytest.mark.parametrize(
    "to", ["http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "https:///x", "data:,x"]
)
def test_only_https_is_fetched_also_behind_a_redirect(publisher: Publisher, tmp_path: Path, to: str) -> None:
    with pytest.raises(CheckpointError, match="over https only"):
        download(to, tmp_path / "file")
    publisher.redirect = to
    with pytest.raises(CheckpointError, match=r"over https only|302"):
        download(publisher.url + ARCHIVE, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_server_abroad_may_not_send_us_to_this_machine() -> None:
    check_url("http://127.0.0.1:80/x")
    with pytest.raises(CheckpointError, match="over https only"):
        check_url("http://127.0.0.1:80/x", here_too=False)
    asked = urllib.request.Request("https://example.org/x")
    with pytest.raises(CheckpointError, match="over https only"):
        download_module._SafeRedirects().redirect_request(asked, None, 302, "", {}, "http://127.0.0.1:80/x")


def test_an_endless_file_is_left(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "MAX_BYTES", 100_000)
    for publisher.length in (True, False):
        publisher.content = bytes(3_000_000)
        with pytest.raises(CheckpointError, match="has more than 100,000 bytes"):
            download(publisher.url + ARCHIVE, tmp_path / "file")
        assert (tmp_path / "file").stat().st_size <= (70_000 if publisher.length else 200_000)


@pytest.mark.parametrize("size", [100, 300_000])
def test_a_full_disk_is_named(publisher: Publisher, size: int) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    publisher.content = bytes(size)
    with pytest.raises(DataError, match="No space left on device"):
        download(publisher.url + ARCHIVE, Path("/dev/full"))
