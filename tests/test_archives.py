"""Tar archives from strangers: what is read, and above all what is not."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clever3d.errors import CheckpointError, Clever3dError, DataError
from clever3d.zoo.archives import Limits, copy_torch_file, read_weights

MODEL = "logs/pretraining/WI_768/model.pth"
Members = list[tuple[tarfile.TarInfo, bytes]]


def file(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    return member, content


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return file(name, type=tarfile.DIRTYPE)


def packed(path: Path, members: Members, mode: str = "w:gz", **options: Any) -> Path:
    with tarfile.open(path, mode, **options) as tar:  # type: ignore[call-overload]
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def torch_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture()
def archive(tmp_path: Path) -> Path:
    return tmp_path / "weights.tar.gz"


@pytest.fixture()
def target(tmp_path: Path) -> Path:
    return tmp_path / "unpacked" / "weights.pth"


@pytest.fixture(autouse=True)
def nothing_lands_elsewhere(tmp_path: Path, target: Path) -> Any:
    target.parent.mkdir()
    yield
    assert {path.name for path in target.parent.iterdir()} <= {target.name}
    assert {path.name for path in tmp_path.iterdir()} <= {"weights.tar.gz", "unpacked", "state.pth"}
    assert not Path("/tmp/clever3d-escaped.pth").exists()


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_one_torch_file_is_copied_whatever_the_packing(archive: Path, target: Path, mode: str, form: int) -> None:
    content = os.urandom(3_000_000)
    members = [folder("logs"), file("logs/config.yaml", b"a: 1"), file(MODEL, content), file("logs/last.txt", b"x" * 9)]
    packed(archive, members, mode, format=form)
    assert copy_torch_file(archive, target) == MODEL
    assert target.read_bytes() == content


def test_names_longer_than_a_tar_header_are_read(archive: Path, target: Path) -> None:
    name = "/".join(["folder" * 10] * 5) + "/ckpt_last.pth"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        packed(archive, [file(name, b"1234")], format=form)
        assert copy_torch_file(archive, target) == name


def test_hidden_files_do_not_count(archive: Path, target: Path) -> None:
    packed(archive, [file("logs/._model.pth", b"finder"), file("logs/model.pth", b"weights")])
    assert copy_torch_file(archive, target) == "logs/model.pth"
    assert target.read_bytes() == b"weights"


ATTACKS: dict[str, tuple[Callable[[], tuple[tarfile.TarInfo, bytes]], str]] = {
    "symlink": (lambda: file("a", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'a' is a link to '/etc/passwd'"),
    "hard link": (lambda: file("a.pth", type=tarfile.LNKTYPE, linkname=MODEL), "is a link to"),
    "character device": (lambda: file("a.pth", type=tarfile.CHRTYPE), "neither a file nor a folder"),
    "block device": (lambda: file("a.pth", type=tarfile.BLKTYPE), "neither a file nor a folder"),
    "fifo": (lambda: file("a.pth", type=tarfile.FIFOTYPE), "neither a file nor a folder"),
    "unknown type": (lambda: file("a.pth", type=b"Z"), "neither a file nor a folder"),
    "absolute": (lambda: file("/tmp/clever3d-escaped.pth", b"1"), "leads out of the folder"),
    "upwards": (lambda: file("logs/../../escaped.pth", b"1"), "leads out of the folder"),
    "drive": (lambda: file("C:escaped.pth", b"1"), "leads out of the folder"),
    "backslash": (lambda: file("..\\escaped.pth", b"1"), "leads out of the folder"),
    "twice": (lambda: file(MODEL, b"other"), "is there twice"),
    "twice, spelt otherwise": (lambda: file(f"./{MODEL}", b"other"), "is there twice"),
    "folder upwards": (lambda: folder("../elsewhere"), "leads out of the folder"),
}


@pytest.mark.parametrize("first", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_archive_with_a_suspicious_member_is_refused(archive: Path, target: Path, attack: str, first: bool) -> None:
    make, message = ATTACKS[attack]
    members = [file(MODEL, b"weights"), make()]
    packed(archive, members[::-1] if first else members)
    with pytest.raises(CheckpointError, match=message) as caught:
        copy_torch_file(archive, target)
    assert str(archive) in str(caught.value)


def test_sparse_files_are_refused(archive: Path, target: Path) -> None:
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "600", "GNU.sparse.name": "a.pth"}
    packed(archive, [file("a.pth", b"1\n0\n512\n".ljust(1024, b"\0"), pax_headers=pax)], format=tarfile.PAX_FORMAT)
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        copy_torch_file(archive, target)


def test_the_number_of_members_is_limited(archive: Path, target: Path) -> None:
    packed(archive, [file(f"{i}.txt") for i in range(30)] + [file(MODEL, b"1")])
    assert copy_torch_file(archive, target, Limits(members=31)) == MODEL
    with pytest.raises(CheckpointError, match="comes after 30 others"):
        copy_torch_file(archive, target, Limits(members=30))


def test_the_size_of_a_member_is_limited(archive: Path, target: Path) -> None:
    packed(archive, [file(MODEL, b"1" * 2000)])
    assert copy_torch_file(archive, target, Limits(member_bytes=2000)) == MODEL
    with pytest.raises(CheckpointError, match="has 2,000 bytes, and 1,999 are the limit"):
        copy_torch_file(archive, target, Limits(member_bytes=1999))


def test_a_header_that_claims_more_than_there_is_is_found_out(archive: Path, target: Path) -> None:
    member, _ = file(MODEL)
    member.size = 100_000
    header = member.tobuf(tarfile.GNU_FORMAT)
    archive.write_bytes(header + b"only this")
    with pytest.raises(CheckpointError, match="521 bytes that hold no sound tar archive"):
        copy_torch_file(archive, target)


def test_a_bomb_is_given_up_early(archive: Path, target: Path) -> None:
    packed(archive, [file("zeros.txt", bytes(90_000_000)), file(MODEL, b"1")])
    assert archive.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        copy_torch_file(archive, target)
    assert not target.exists()


def test_a_bomb_in_the_torch_file_is_given_up_early(archive: Path, target: Path) -> None:
    packed(archive, [file(MODEL, bytes(9_000_000))])
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        copy_torch_file(archive, target, Limits(slack_bytes=1_000_000))
    assert target.stat().st_size < 2_500_000


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_header_does_not_fill_the_memory(archive: Path, target: Path, form: int) -> None:
    packed(archive, [file("a" * 20_000_000, b"1")], format=form)
    with pytest.raises(CheckpointError, match="bytes outside of its files"):
        copy_torch_file(archive, target)


def test_headers_of_headers_without_end_are_refused(archive: Path, target: Path) -> None:
    empty = file("x", type=tarfile.XHDTYPE)[0].tobuf(tarfile.USTAR_FORMAT)
    assert len(empty) == 512
    archive.write_bytes(empty * 500 + bytes(10240))
    with pytest.raises(CheckpointError, match=r"no sound tar archive|outside of its files"):
        copy_torch_file(archive, target)


def test_an_archive_without_a_torch_file_is_refused(archive: Path, target: Path) -> None:
    packed(archive, [folder("logs"), file("logs/readme.txt", b"1")])
    with pytest.raises(CheckpointError, match=r"no torch file \(.pth, .*'logs', 'logs/readme.txt'"):
        copy_torch_file(archive, target)


def test_an_archive_with_several_torch_files_is_refused(archive: Path, target: Path) -> None:
    packed(archive, [file("ckpt_7.pth", b"1"), file("ckpt_last.pth", b"2"), file("a/b.ckpt", b"3")])
    with pytest.raises(CheckpointError, match=r"3 torch files \('ckpt_7.pth', 'ckpt_last.pth', 'a/b.ckpt'\)"):
        copy_torch_file(archive, target)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
def test_an_empty_archive_is_refused(archive: Path, target: Path, mode: str) -> None:
    packed(archive, [], mode)
    with pytest.raises(
        CheckpointError, match=r"no torch file .* but nothing at all|no tar archive .* begins with b.\\x00"
    ):
        copy_torch_file(archive, target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "it is a web page"),
        (b"PK\x03\x04" + bytes(500), "it is a zip file"),
        (b"something else", "begins with b'somethin'"),
        (b"\x1f\x8b", "damaged or cut off"),
        (b"\xfd7zXZ\0", "damaged or cut off"),
    ],
)
def test_what_is_no_archive_is_named(archive: Path, target: Path, content: bytes, message: str) -> None:
    archive.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        copy_torch_file(archive, target)


def test_a_missing_archive_and_a_folder_are_named(tmp_path: Path, target: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        copy_torch_file(tmp_path / "none.tar.gz", target)
    with pytest.raises(CheckpointError, match="is a folder"):
        copy_torch_file(tmp_path, target)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
def test_an_archive_that_was_cut_off_anywhere_is_refused(archive: Path, target: Path, mode: str) -> None:
    whole = packed(archive, [folder("logs"), file(MODEL, os.urandom(5000))], mode).read_bytes()
    used = len(whole) if mode != "w" else 512 + 512 + 5000  # zeros follow
    for length in range(0, used, 97):
        archive.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            copy_torch_file(archive, target)


def test_the_checksum_of_gzip_counts(archive: Path, target: Path) -> None:
    content = bytearray(packed(archive, [file(MODEL, os.urandom(5000))]).read_bytes())
    content[-8] ^= 1
    archive.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        copy_torch_file(archive, target)


def test_what_follows_the_end_is_refused(archive: Path, target: Path) -> None:
    content = packed(archive, [file(MODEL, b"1")], "w").read_bytes()
    archive.write_bytes(content + bytes(20_000))
    assert copy_torch_file(archive, target) == MODEL
    archive.write_bytes(content + b"more" * 5000)
    with pytest.raises(CheckpointError, match="goes on after its end"):
        copy_torch_file(archive, target)


def test_a_full_disk_is_named(archive: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    packed(archive, [file(MODEL, b"1" * 100_000)])
    with pytest.raises(DataError, match="No space left on device"):
        copy_torch_file(archive, Path("/dev/full"))


SMALL = {"model_point": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}}


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
def test_a_damaged_archive_raises_errors_of_ours_only(archive: Path, target: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    whole = packed(archive, [folder("logs"), file(MODEL, torch_bytes(SMALL))], mode).read_bytes()
    expected, refused = SMALL["model_point"], 0
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), size=rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        archive.write_bytes(content)
        try:
            state = read_weights(archive, target.parent)
        except Clever3dError:
            refused += 1
            continue
        if mode != "w":  # these have checksums
            assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    assert refused > 10


class Unrelated:
    pass


def test_the_state_dict_of_a_training_checkpoint_is_found(archive: Path, tmp_path: Path) -> None:
    """As valeoai's trainers write it: beside the model the optimiser, the scheduler, the scaler and DDP's prefix."""
    module = torch.nn.Linear(2, 3)
    optim = torch.optim.AdamW(module.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda it: 1 / np.sqrt(1 + it))
    module(torch.ones(2)).sum().backward()
    optim.step()
    schedule.step()
    assert isinstance(schedule.state_dict()["_last_lr"][0], np.floating)  # a number of NumPy's: weights_only minds it
    checkpoint = {
        "epoch": 24,
        "model_point": {f"module.{name}": tensor for name, tensor in module.state_dict().items()},
        "optim": optim.state_dict(),
        "scheduler": schedule.state_dict(),
        "scaler": None,
    }
    (tmp_path / "state.pth").write_bytes(torch_bytes(checkpoint))
    with pytest.raises(Exception, match="Unsupported global: GLOBAL numpy"):
        torch.load(tmp_path / "state.pth", weights_only=True)
    packed(archive, [file(MODEL, torch_bytes(checkpoint))])
    torch.serialization.add_safe_globals([Unrelated])  # someone else's
    for path in (archive, tmp_path / "state.pth"):
        state = read_weights(path, tmp_path / "unpacked")
        assert state.keys() == {"weight", "bias"}
        assert torch.equal(state["weight"], module.weight)
    after = torch.serialization.get_safe_globals()
    assert Unrelated in after and not any("numpy" in one.__module__ for one in after)


def test_numbers_written_before_numpy_2_are_passed_over_too(archive: Path, tmp_path: Path) -> None:
    content = torch_bytes({"model": {"a": torch.ones(2)}, "lr": np.float64(0.5)})
    source, buffer = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as changed:
        for record in source.infolist():
            data = source.read(record).replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
            changed.writestr(record.filename, data)
    assert b"numpy.core.multiarray" in buffer.getvalue()
    packed(archive, [file(MODEL, buffer.getvalue())])
    assert torch.equal(read_weights(archive, tmp_path / "unpacked")["a"], torch.ones(2))


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_with_code_is_refused_and_not_run(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    packed(archive, [file(MODEL, torch_bytes({"model_point": {"a": torch.ones(1)}, "optim": Payload(marker)}))])
    with pytest.raises(CheckpointError, match=r"model.pth' is a pickle that needs code .*system") as caught:
        read_weights(archive, tmp_path / "unpacked")
    assert not marker.exists()
    assert str(archive) in str(caught.value) and "unpacked" not in str(caught.value)
    assert not any("numpy" in one.__module__ for one in torch.serialization.get_safe_globals())


def test_packed_records_in_the_torch_file_are_refused(archive: Path, tmp_path: Path) -> None:
    source, buffer = zipfile.ZipFile(io.BytesIO(torch_bytes({"a": torch.zeros(2_000_000)}))), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as small:
        for record in source.infolist():
            small.writestr(record.filename, source.read(record))
    assert len(buffer.getvalue()) < 100_000
    packed(archive, [file(MODEL, buffer.getvalue())])
    with pytest.raises(CheckpointError, match=r"unpacks from .* to 8,\d+,\d+ bytes, as no file of torch.save does"):
        read_weights(archive, tmp_path / "unpacked")


@pytest.mark.parametrize("content", [b"no torch file", b"PK\x03\x04 no torch file either", b""])
def test_a_member_that_is_no_torch_file_is_named(archive: Path, tmp_path: Path, content: bytes) -> None:
    packed(archive, [file(MODEL, content)])
    with pytest.raises(CheckpointError, match=r"weights.tar.gz: 'logs/pretraining/WI_768/model.pth'.*cannot be read"):
        read_weights(archive, tmp_path / "unpacked")
