"""Weights that others publish in their own format: fetched once, read as an untrusted file, kept as one of ours.

Their publishers name no checksum, so the first download is trusted and recorded (``first_download.json`` beside the
converted file), and every later one is held to it. Where a record has a sha256, that of the archive, it rules.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clever3d._version import __version__
from clever3d.backbones import InputSpec, create_backbone
from clever3d.backbones.waffleiron import from_valeoai
from clever3d.errors import CheckpointError, DataError
from clever3d.zoo.archives import read_weights
from clever3d.zoo.checkpoint import Checkpoint, file_sha256, load_state, save_checkpoint
from clever3d.zoo.download import download, name_in, not_stored
from clever3d.zoo.records import BackboneInfo

NOTE_NAME = "first_download.json"

#: What changes a state dict of each layout into ours, and how the names begin that are no part of the backbone.
_TO_OURS = {"valeoai": from_valeoai}
_HEADS = {"valeoai": "classif."}  # the distillation head

_log = logging.getLogger("clever3d")


@dataclass(frozen=True)
class FirstDownload:
    """What is recorded of an archive when it is first trusted.

    Attributes:
        url: where it came from.
        archive_sha256, archive_bytes: of the archive, which is not kept.
        date: of the first download, UTC.
        network: architecture, config and input spec that it was converted for.
        left_out: its tensors that are no part of the backbone (the distillation head).
        file_sha256, file_bytes: of the converted file.
        clever3d: version that converted it.
    """

    url: str
    archive_sha256: str
    archive_bytes: int
    date: str
    network: Mapping[str, Any]
    left_out: tuple[str, ...]
    file_sha256: str
    file_bytes: int
    clever3d: str


def external_file(info: BackboneInfo, *, cache_dir: Path | None = None, local_files_only: bool = False) -> Path:
    """The converted safetensors checkpoint of an external record on this machine; the first call fetches it.

    It lies in the Hub client's folder for such files (``HF_ASSETS_CACHE``, by default ``HF_HOME/assets``), below
    ``clever3d/external/NAME``. Its sha256 is checked in every call; a file that was changed is fetched and converted
    again. The archive is deleted once it is converted. Where several processes call at once, one of them fetches.

    Args:
        info: a record of status ``external``.
        cache_dir: folder to use instead of ``HF_ASSETS_CACHE``.
        local_files_only: never use the network, as with ``HF_HUB_OFFLINE=1``.

    Raises:
        CheckpointError: it is not here and cannot or may not be fetched; the archive is not the one of the record or of
            the first download; it cannot be read or does not fit the network.
        DataError: the folder cannot be written (no permission, no space left).
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder = _folder(info, cache_dir)
    try:
        missing = _what_is_missing(info, folder)
        if missing and (local_files_only or constants.HF_HUB_OFFLINE):
            why = "local_files_only" if local_files_only else "HF_HUB_OFFLINE is set"
            raise CheckpointError(f"The weights of {info.name} cannot be fetched ({why}): {missing}. {_by_hand(info)}")
        if missing:
            with WeakFileLock(folder / ".lock") as lock:
                try:
                    if missing := _what_is_missing(info, folder):  # another process may have been faster
                        level = logging.WARNING if (folder / NOTE_NAME).exists() else logging.INFO
                        _log.log(level, "%s: %s. Fetching %s", info.name, missing, _url(info))
                        _fetch(info, folder)
                finally:
                    lock.release()  # huggingface_hub 0.23 does not where there was an error
    except OSError as error:
        raise not_stored(info.name, error) from error
    return folder / f"{info.name}.safetensors"


def read_archive(archive: str | Path, info: BackboneInfo) -> Checkpoint:
    """The weights of an external record from its publisher's archive, under our names; nothing is kept on disk.

    Args:
        archive: the archive, or the torch file that is in it.
        info: the record; its ``location["layout"]`` says how the weights are named.

    Returns:
        What `clever3d.zoo.checkpoint.load_state` takes. The distillation head is left out.

    Raises:
        CheckpointError: the file is missing, damaged, needs code, or breaks the rules of `clever3d.zoo.archives`.
        DataError: there is no room to unpack it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="clever3d-") as folder:
            return _read(Path(archive), info, Path(folder))[0]
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked: {error}. Set TMPDIR to a folder that has room.") from error


def convert_archive(archive: str | Path, info: BackboneInfo, target: str | Path) -> tuple[str, ...]:
    """Writes the weights of a publisher's archive as a checkpoint of ours, whole or not at all.

    Args:
        archive: the archive, or the torch file that is in it.
        info: the record that says which network the weights are for.
        target: safetensors file to write, ``load_backbone(target)`` reads it; the folder is used to unpack.

    Returns:
        Names of the tensors that are no part of the backbone and were left out.

    Raises:
        CheckpointError: as `read_archive`; or the weights do not fit the network (the differences are listed).
        DataError: ``target`` cannot be written.
    """
    target = Path(target)
    try:
        with tempfile.TemporaryDirectory(prefix=".clever3d-", dir=target.parent) as folder:
            checkpoint, left_out = _read(Path(archive), info, Path(folder))
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}. Make room, or name another folder.") from error
    backbone = create_backbone(info.architecture, input_spec=InputSpec.from_dict(dict(info.input_spec)), **info.config)
    load_state(backbone, checkpoint)
    save_checkpoint(backbone, target, record=info.to_dict())
    return left_out


def _folder(info: BackboneInfo, cache_dir: Path | None) -> Path:
    from huggingface_hub import cached_assets_path

    try:
        return Path(cached_assets_path("clever3d", namespace="external", subfolder=info.name, assets_dir=cache_dir))
    except (OSError, ValueError) as error:  # ValueError: a file stands where a folder should
        raise not_stored(info.name, error) from error


def _url(info: BackboneInfo) -> str:
    if info.status != "external" or info.location is None:
        raise CheckpointError(f"{info.name} is {info.status}, not external: use load_backbone.")
    return info.location["url"]


def _by_hand(info: BackboneInfo) -> str:
    name = name_in(_url(info))
    return f"Bring {_url(info)} here by other means, then load_backbone({info.name!r}, weights={name!r})."


def _network(info: BackboneInfo) -> dict[str, Any]:
    whole = {"architecture": info.architecture, "config": info.config, "input_spec": info.input_spec}
    return dict(json.loads(json.dumps(whole)))  # tuples as JSON has them


def _what_is_missing(info: BackboneInfo, folder: Path) -> str:
    """Why the converted file cannot be used as it is; empty when it can."""
    file, note = folder / f"{info.name}.safetensors", _read_note(folder)
    if note is None:
        return "they were never fetched"
    if note.url != _url(info):
        return f"those here came from {note.url}"
    if info.sha256 not in (None, note.archive_sha256):
        return f"those here are of the sha256 {note.archive_sha256}, the record says {info.sha256}"
    if note.network != _network(info):
        return "those here were converted for other settings of the network"
    if not file.is_file():
        return f"{file} is missing"
    if file.stat().st_size != note.file_bytes or file_sha256(file) != note.file_sha256:
        return f"{file} was changed since it was written"
    return ""


def _fetch(info: BackboneInfo, folder: Path) -> None:
    """Download, check, convert; the folder changes only when all of that went well."""
    url, known, now = _url(info), _read_note(folder), datetime.now(timezone.utc).isoformat(timespec="seconds")
    work = folder / "incomplete"
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    work.mkdir()
    try:
        archive, draft, note = work / "archive", work / f"{info.name}.safetensors", work / NOTE_NAME
        try:
            download(url, archive)
        except CheckpointError as error:
            raise CheckpointError(f"The weights of {info.name} could not be had: {error}. {_by_hand(info)}") from error
        found = file_sha256(archive)
        same = known if known is not None and known.url == url else None
        _check_archive(info, found, same, folder / NOTE_NAME)
        try:
            left_out = convert_archive(archive, info, draft)
        except CheckpointError as error:
            raise CheckpointError(f"What came from {url} cannot be used, and was deleted: {error}") from error
        new = FirstDownload(
            url=url,
            archive_sha256=found,
            archive_bytes=archive.stat().st_size,
            date=same.date if same is not None and same.archive_sha256 == found else now,
            network=_network(info),
            left_out=left_out,
            file_sha256=file_sha256(draft),
            file_bytes=draft.stat().st_size,
            clever3d=__version__,
        )
        note.write_text(json.dumps(asdict(new), indent=2) + "\n", encoding="utf-8")
        draft.replace(folder / draft.name)
        note.replace(folder / NOTE_NAME)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_archive(info: BackboneInfo, found: str, known: FirstDownload | None, note: Path) -> None:
    if info.sha256 is not None:
        if found != info.sha256:
            raise CheckpointError(
                f"{_url(info)} has the sha256 {found}, the record of {info.name} says {info.sha256}: the publisher has "
                "changed the file, or someone on the way has. It was deleted."
            )
    elif known is not None and found != known.archive_sha256:
        raise CheckpointError(
            f"{_url(info)} has the sha256 {found}: the publisher's file has changed since first downloaded on "
            f"{known.date} ({known.archive_sha256}). It was deleted. If that is right, delete {note} and load again."
        )


def _read_note(folder: Path) -> FirstDownload | None:
    path = folder / NOTE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return FirstDownload(**{**content, "left_out": tuple(content["left_out"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}, which says what the first download was, is damaged ({error}). Delete it to trust the publisher's "
            "file anew."
        ) from None


def _read(archive: Path, info: BackboneInfo, folder: Path) -> tuple[Checkpoint, tuple[str, ...]]:
    assert info.location is not None  # the manifest's check holds this, and that the layout is one of LAYOUTS
    given = read_weights(archive, folder)
    left_out = tuple(sorted(key for key in given if key.startswith(_HEADS[info.location["layout"]])))
    if left_out:
        _log.info("%s: left out what is no part of the backbone (%s)", archive, ", ".join(left_out))
    state = _TO_OURS[info.location["layout"]]({key: given[key] for key in given if key not in left_out})
    record = info.to_dict()
    return Checkpoint(archive, state, info.architecture, info.config, info.input_spec, record), left_out
