"""Handing a backbone on: a folder or a Hub repository that ``load_backbone`` takes, and its model card."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clever3d.backbones import Backbone
from clever3d.errors import CheckpointError, DataError, InputError
from clever3d.io import atomic_path
from clever3d.zoo.card import model_card
from clever3d.zoo.checkpoint import FORMAT, file_sha256, fingerprint, save_checkpoint
from clever3d.zoo.hub import ATTEMPTS, Repository, broke_off, denied, parse_repository
from clever3d.zoo.loading import CONFIG_FILE
from clever3d.zoo.manifest import format_json, ordered
from clever3d.zoo.records import RECORD_FIELDS, parse_record

WEIGHTS_FILE, CARD_FILE = "model.safetensors", "README.md"
#: Fields of a record that are known from the network and its file, not from who trained it.
KNOWN_FIELDS = ("architecture", "config", "input_spec", "feature_dim", "parameters")
PLACE_FIELDS = ("status", "location", "sha256", "bytes")
_OPTIONAL: dict[str, Any] = {"metrics": [], "limits": [], "citation": [], "make": None}
_log = logging.getLogger("clever3d")
_ANYWHERE = {"hub": "organisation/name", "commit": "0" * 40, "file": WEIGHTS_FILE}


@dataclass(frozen=True)
class Published:
    """What `push_to_hub` did.

    Attributes:
        repository: ``organisation/name``.
        commit: the commit that has the files.
        address: of the repository's page.
        record: the manifest record, complete: what others paste into a manifest.
    """

    repository: str
    commit: str
    address: str
    record: dict[str, Any]


def known_fields(backbone: Backbone) -> dict[str, Any]:
    """The fields of a record that the network itself knows, as JSON values."""
    values = {
        "architecture": backbone.architecture,
        "config": asdict(backbone.config),
        "input_spec": backbone.input_spec.to_dict(),
        "feature_dim": backbone.feature_dim,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def complete_record(backbone: Backbone, given: Mapping[str, Any]) -> dict[str, Any]:
    """A whole record but for where the weights are: ``given``, and what the network itself knows.

    Args:
        backbone: the network that the record is of.
        given: name, teacher, recipe, data, weights_licence, data_licence and provenance; metrics, limits, citation and
            make where there are any. What the network knows and where its weights are may stand in it too.

    Raises:
        DataError: a field is missing, unknown or unsound, or contradicts the network.
    """
    own = known_fields(backbone)
    given = {key: value for key, value in given.items() if key not in PLACE_FIELDS}
    for key, value in own.items():
        if key in given and json.loads(json.dumps(given[key])) != value:
            raise DataError(
                f"The record's {key} is {given[key]!r}, the network's {value!r}: leave it out, it is known."
            )
    missing = [key for key in RECORD_FIELDS if key not in {*given, *own, *_OPTIONAL, *PLACE_FIELDS}]
    if missing:
        raise DataError(
            f"The record lacks {', '.join(missing)}, and without them no card could tell what these weights are. Give "
            "them: clever3d publish CHECKPOINT --template prints a record to fill in."
        )
    record = {**_OPTIONAL, **given, **own}
    parse_record({**record, "status": "hub", "location": _ANYWHERE, "sha256": "0" * 64, "bytes": 1}, {})
    return {key: record[key] for key in RECORD_FIELDS if key not in PLACE_FIELDS}


def known_record(backbone: Backbone) -> dict[str, Any]:
    """What the checkpoint says of itself, as far as it belongs in a record (clever3d-train writes other things too).

    Raises:
        DataError: weights, configuration or input spec have been changed since it was loaded, so that it is another's.
    """
    if backbone.pretrained_cfg is not None and backbone.fingerprint not in (None, fingerprint(backbone)):
        raise DataError(
            f"This backbone is no longer {backbone.pretrained_cfg.get('name', 'what was loaded')}: its weights or its "
            "input spec were changed, and that record's metrics and provenance are not its own. Give record=... of "
            "what it is now, or set backbone.pretrained_cfg = None to save it without a record."
        )
    return {key: value for key, value in (backbone.pretrained_cfg or {}).items() if key in RECORD_FIELDS}


def record_template(backbone: Backbone) -> dict[str, Any]:
    """A record to fill in, with what is known already."""
    known = known_record(backbone)
    empty: dict[str, Any] = {
        "name": f"{backbone.architecture}-TEACHER.TAG",
        "teacher": {"model": "", "source": "", "licence": ""},
        "recipe": "",
        "data": [""],
        "weights_licence": "",
        "data_licence": "",
        "metrics": [{"name": "", "value": 0.0, "protocol": ""}],
        "limits": [""],
        "citation": [""],
        "provenance": {"revision": "", "steps": 0, "seed": 0, "date": "", "command": ""},
    }
    fits = {key: known[key] for key in empty if key in known and isinstance(known[key], type(empty[key]))}
    return {**empty, **fits}


def save_pretrained(
    backbone: Backbone,
    folder: str | os.PathLike[str],
    *,
    record: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    repository: str = "ORGANISATION/NAME",
) -> None:
    """Writes ``model.safetensors``, ``config.json`` and, where a record is known, ``README.md`` (the model card).

    ``load_backbone(folder)`` reads it, and so does the Hub: the folder is what `push_to_hub` uploads.

    Args:
        backbone: what to write.
        folder: made where it does not exist; files of these names in it are replaced, each at once.
        record: see `complete_record`; None is ``backbone.pretrained_cfg`` where that is a whole record.
        dtype: stored type of the parameters (``torch.float16`` halves the file); None keeps theirs.
        repository: named in the card's code.

    Raises:
        DataError: the record is unsound or another's, or a file cannot be written.
        CheckpointError: values too large for ``dtype``.
    """
    folder = Path(folder)
    whole = None
    if record is not None:
        whole = complete_record(backbone, record)
    elif _is_whole(known := known_record(backbone)):
        whole = complete_record(backbone, known)
    elif (folder / CARD_FILE).exists():
        raise DataError(
            f"{folder} has a {CARD_FILE}, which would now stand beside weights that it does not describe. Give "
            "record=..., or another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror or error}") from error
    save_checkpoint(backbone, folder / WEIGHTS_FILE, record=whole, dtype=dtype)
    weights = folder / WEIGHTS_FILE
    content = {
        "format": FORMAT,
        "library_name": "clever3d",
        **known_fields(backbone),
        "weights": {"file": WEIGHTS_FILE, "sha256": file_sha256(weights), "bytes": weights.stat().st_size},
        "record": whole,
    }
    _write(folder / CONFIG_FILE, format_json(content))
    if whole is not None:
        _write(folder / CARD_FILE, model_card(whole, repository))


def push_to_hub(
    backbone: Backbone,
    repository: str,
    *,
    record: Mapping[str, Any] | None = None,
    private: bool = False,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    token: str | None = None,
    message: str | None = None,
) -> Published:
    """Publishes a backbone in a repository of the Hugging Face Hub: all files in one commit, or none.

    Args:
        backbone: what to publish.
        repository: ``organisation/name``; made where it does not exist.
        record: see `complete_record`; None is ``backbone.pretrained_cfg``.
        private: make the repository a private one; one that exists and is public is then an error.
        revision: branch to commit to, made where it does not exist; None is the default branch.
        dtype: stored type of the parameters; None keeps theirs.
        token: None is ``HF_TOKEN`` or the one of ``hf auth login``.
        message: of the commit.

    Raises:
        DataError: the record is missing something or unsound; nothing has been published then.
        CheckpointError: the Hub refused, could not be reached, or has another file than was sent.
        InputError: no such repository name or revision.
    """
    place = parse_repository(repository)
    if place.revision is not None:
        raise InputError(f"{repository!r} names a revision: give it as revision={place.revision!r}")
    branch = parse_repository(repository, revision).revision
    whole = complete_record(backbone, known_record(backbone) if record is None else record)
    with tempfile.TemporaryDirectory(prefix="clever3d-publish-") as scratch:
        folder = Path(scratch)
        save_pretrained(backbone, folder, record=whole, dtype=dtype, repository=place.name)
        sha256, size = file_sha256(folder / WEIGHTS_FILE), (folder / WEIGHTS_FILE).stat().st_size
        commit, address = _upload(folder, place.name, branch, private, token, message or f"{whole['name']}")
        _check_uploaded(place.name, commit, sha256, token)
    location = {"hub": place.name, "commit": commit, "file": WEIGHTS_FILE}
    return Published(
        repository=place.name,
        commit=commit,
        address=address,
        record=ordered({**whole, "status": "hub", "location": location, "sha256": sha256, "bytes": size}),
    )


def _upload(
    folder: Path, repository: str, branch: str | None, private: bool, token: str | None, message: str
) -> tuple[str, str]:
    """One commit with the folder's files; its id and the repository's address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, library_name="clever3d")
    for attempt in range(1, ATTEMPTS + 1):
        operations = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
        try:
            address = str(api.create_repo(repository, private=private, exist_ok=True))
            if private and not api.repo_info(repository).private:
                raise InputError(f"{repository} exists and is public: nothing was published. Make it private first.")
            if branch is not None:
                api.create_branch(repository, branch=branch, exist_ok=True)
            # A commit whose answer was lost is there: the same files again make no second one.
            done = api.create_commit(repository, operations, commit_message=message, revision=branch)
            return str(done.oid), address
        except InputError:
            raise
        except Exception as error:  # the transport's own errors have no base class in common, and change with versions
            if attempt == ATTEMPTS or not broke_off(error, again_after_5xx=True):
                raise CheckpointError(denied(error, Repository(repository, branch))) from error
    raise AssertionError  # the last attempt returns or raises


def _check_uploaded(repository: str, commit: str, sha256: str, token: str | None) -> None:
    """Asks the Hub for the sha256 of what it has now. Where it does not say, the weights are published all the same."""
    from huggingface_hub import HfApi

    try:
        (found,) = HfApi(token=token).get_paths_info(repository, WEIGHTS_FILE, revision=commit)
    except Exception as error:  # as in _upload
        _log.warning("%s@%s is published, but the Hub did not say what it has: %s", repository, commit, error)
        return
    theirs = getattr(getattr(found, "lfs", None), "sha256", None)
    if theirs is not None and theirs != sha256:
        raise CheckpointError(
            f"{repository}@{commit} has {WEIGHTS_FILE} with the sha256 {theirs}, but {sha256} was sent: publish again."
        )


def _is_whole(record: Mapping[str, Any] | None) -> bool:
    return record is not None and not set(RECORD_FIELDS) - {*record, *KNOWN_FIELDS, *PLACE_FIELDS, *_OPTIONAL}


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as draft:
        draft.write_text(text, encoding="utf-8")
