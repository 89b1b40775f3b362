"""From a name, a file, a folder or a repository to a module that is ready to use."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from clever3d.backbones import Backbone, InputSpec, create_backbone
from clever3d.errors import CheckpointError, Clever3dError, InputError, UnknownNameError
from clever3d.sparse import available_engines
from clever3d.zoo import hub, manifest
from clever3d.zoo.checkpoint import FORMAT, Checkpoint, check_fits, fingerprint, load_state, read_checkpoint
from clever3d.zoo.convert import PICKLES
from clever3d.zoo.external import external_file, read_archive
from clever3d.zoo.hub import Repository, Source
from clever3d.zoo.records import (
    BackboneInfo,
    allows_commercial_use,
    is_plain_path,
    is_repository,
    known_part,
    printable,
)
from clever3d.zoo.registry import find, nearest_with_weights, suggestion

CONFIG_FILE = "config.json"
_CONFIG_BYTES = 1 << 20  # the largest that is read (our choice; ours have 5 kB)

_log = logging.getLogger("clever3d")
_licence_said: set[str] = set()
AnyBackbone = TypeVar("AnyBackbone", bound=Backbone)


@dataclass(frozen=True)
class PublishedConfig:
    """``config.json`` of a folder or repository that `clever3d.zoo.save_pretrained` wrote."""

    architecture: str
    config: Mapping[str, Any]
    input_spec: Mapping[str, Any]
    file: str
    sha256: str
    bytes: int
    record: Mapping[str, Any] | None


def load_backbone(
    name_or_path: str | os.PathLike[str],
    *,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    engine: str | None = None,
) -> Backbone:
    """A backbone in eval mode, with its weights.

    Args:
        name_or_path: one of

            * a full or short name of `list_backbones`;
            * ``"hf-hub:organisation/name"`` or ``"hf-hub:organisation/name@revision"``, a repository of the Hub that
              ``clever3d publish`` made;
            * a checkpoint file, or a folder written by ``save_pretrained``. What is no known name is taken as a path
              where such a path exists, ends in ``.safetensors``, or can only be a path.
        pretrained: False builds the network with random weights; this works for every name.
        weights: a local file with the weights for this *name*, such as one made with the command of a ``recipe``; for
            an ``external`` name also its publisher's archive.
        device: where the module goes.
        dtype: type of its parameters; None is float32, whatever the file stores.
        revision: commit, branch or tag of an ``hf-hub:`` repository. Names of the zoo are pinned to one commit.
        local_files_only: never ask the network; ``HF_HUB_OFFLINE=1`` does the same for the whole process.
        cache_dir: where downloads are kept; None is the cache of the Hugging Face client (``HF_HOME``).
        engine: engine of its sparse convolutions in ``extract``, one of ``clever3d.sparse.available_engines()``; None
            for the one in force at the time.

    Returns:
        The backbone. ``pretrained_cfg`` is the manifest record of its weights as a dict, or None where there is none
        (random weights, or a file that carries no record).

    Raises:
        UnknownNameError: no such name or engine; the message has the nearest ones.
        CheckpointError: nobody has trained these weights yet (the message says how to), they are missing or damaged,
            cannot be downloaded, have another checksum than recorded, or do not fit the network.
        InputError: arguments that contradict each other, a device that is not there, or an engine that cannot be used.
    """
    _check_device(device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype {dtype!r} is no type of parameters: torch.float32, torch.bfloat16 or torch.float16")
    _check_engine(engine, device, dtype or torch.float32)
    if weights is not None and not pretrained:
        raise InputError("weights=... and pretrained=False contradict each other. Give one of them.")
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise InputError(f"load_backbone takes a name or a path, not {type(name_or_path).__name__}")
    source = Source(None if cache_dir is None else Path(cache_dir).expanduser(), local_files_only)
    text = os.fspath(name_or_path)
    on_hub = isinstance(name_or_path, str) and text.startswith(hub.PREFIX)
    may_be_name = isinstance(name_or_path, str) and not on_hub and not {os.sep, os.altsep} & set(text)
    info = find(text) if may_be_name else None
    if revision is not None and not on_hub:
        raise InputError(
            f"revision={revision!r} goes with {hub.PREFIX}organisation/name; {text!r} is pinned or lies on this machine"
        )
    if weights is not None and info is None and (on_hub or _looks_like_path(name_or_path)):
        raise InputError(f"{text!r} has weights already; weights=... goes with a name of list_backbones()")
    if on_hub:
        backbone = _from_repository(hub.parse_repository(text, revision), pretrained, source)
    elif info is not None:
        backbone = _from_name(info, pretrained, weights, source)
    elif _looks_like_path(name_or_path):
        backbone = _from_folder(Path(text), pretrained) if Path(text).is_dir() else _from_file(Path(text), pretrained)
    else:
        raise UnknownNameError(f"No backbone is named {text!r}, and no such file. {suggestion(text)}{_perhaps(text)}")
    backbone.engine = engine
    backbone = backbone.to(device=device, dtype=dtype or torch.float32).eval()
    backbone.fingerprint = None if backbone.pretrained_cfg is None else fingerprint(backbone)
    return backbone


def from_pretrained(kind: type[AnyBackbone], name_or_path: str | os.PathLike[str], **options: Any) -> AnyBackbone:
    """`load_backbone`, with ``organisation/name`` taken as a repository where no such folder exists.

    Raises:
        CheckpointError: it is no ``kind``; and all that `load_backbone` raises.
    """
    if isinstance(name_or_path, str) and is_repository(name_or_path.partition("@")[0]):
        local = Path(name_or_path).exists() or name_or_path.endswith(".safetensors")
        name_or_path = name_or_path if local else hub.PREFIX + name_or_path
    backbone = load_backbone(name_or_path, **options)
    if not isinstance(backbone, kind):
        raise CheckpointError(f"{name_or_path} is a {type(backbone).__name__}, not a {kind.__name__}.")
    return backbone


def _check_device(device: str | torch.device) -> None:
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device {device!r} is none: 'cpu', 'cuda' or 'cuda:1', for example ({error})") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        why = "this PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no such GPU"
        raise InputError(f"device {str(device)!r} was asked for, but {why}: leave it out to run on the CPU")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each device has its own way to say no
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}): leave it out for the CPU") from None


def _check_engine(engine: str | None, device: str | torch.device, dtype: torch.dtype) -> None:
    if engine is None:
        return
    reasons = available_engines(device, dtype)
    if engine not in reasons:
        raise UnknownNameError(f"there is no engine {engine!r}: choose {', '.join(reasons)}, or leave it out")
    if reasons[engine] is not None:
        raise InputError(f"the engine {engine!r} was asked for, but {reasons[engine]}")


def _looks_like_path(given: str | os.PathLike[str]) -> bool:
    if not isinstance(given, str):
        return True
    if Path(given).exists() or given.endswith(".safetensors"):
        return True
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return any(one in given for one in separators) and not is_repository(given.partition("@")[0])


def _perhaps(text: str) -> str:
    return f" A repository of the Hub is {hub.PREFIX}{text}." if is_repository(text.partition("@")[0]) else ""


def _from_name(
    info: BackboneInfo, pretrained: bool, weights: str | os.PathLike[str] | None, source: Source
) -> Backbone:
    if not pretrained:
        return _build(info.architecture, info.config, info.input_spec, info.name)
    record: Mapping[str, Any] | None
    if weights is not None:
        checkpoint = _own_weights(Path(weights), info)
        record = checkpoint.record
    else:
        checkpoint = read_checkpoint(verified_file(info, source))
        record = info.to_dict()
    _same_network(checkpoint, info)
    backbone = _filled(info.architecture, info.config, info.input_spec, info.name, checkpoint, record)
    if backbone.feature_dim != info.feature_dim:
        raise CheckpointError(
            f"The record of {info.name} says {info.feature_dim} features per point, the network has "
            f"{backbone.feature_dim}: correct {info.manifest}."
        )
    return backbone


def _own_weights(path: Path, info: BackboneInfo) -> Checkpoint:
    """A file of the user's: a checkpoint of ours, or what the publisher of external weights hands out."""
    foreign = path.name.lower().endswith((*PICKLES, ".bin", ".tgz", ".tar.gz", ".tar.xz"))
    return read_archive(path, info) if foreign and info.status == "external" else read_checkpoint(path)


def _from_file(path: Path, pretrained: bool) -> Backbone:
    checkpoint = read_checkpoint(path)
    if checkpoint.architecture is None:
        raise CheckpointError(
            f"{path} has no clever3d metadata, so its architecture is not known. "
            f"Name it: load_backbone(NAME, weights={str(path)!r}), NAME being one of list_backbones()."
        )
    network = (checkpoint.architecture, checkpoint.config, checkpoint.input_spec, str(path))
    return _filled(*network, checkpoint, checkpoint.record) if pretrained else _build(*network)


def _from_folder(folder: Path, pretrained: bool) -> Backbone:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is a folder without {CONFIG_FILE}. Give one that save_pretrained wrote, or a file."
        )
    published = read_config(path)
    if not pretrained:
        return _build(published.architecture, published.config, published.input_spec, str(folder))
    file = folder / published.file
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {published.file}, which its {CONFIG_FILE} names. Copy it again.")
    if wrong := hub.difference(file, published.sha256, published.bytes):
        raise CheckpointError(f"{file} {wrong}, the one in {path}. Copy the folder again.")
    return _filled_as_published(file, published, published.record, str(folder))


def _from_repository(repository: Repository, pretrained: bool, source: Source) -> Backbone:
    """Both files come from one commit: that of the first, however the branch moves meanwhile."""
    config_path = hub.fetch_whole(repository, CONFIG_FILE, source)
    commit = hub.commit_of(config_path)
    if commit is not None and repository.revision != commit:
        _log.info("%s is at commit %s; %s%s@%s pins it", repository, commit, hub.PREFIX, repository.name, commit)
    published = read_config(config_path)
    if not pretrained:
        return _build(published.architecture, published.config, published.input_spec, str(repository))
    pinned = Repository(repository.name, commit or repository.revision)
    file = hub.fetch_verified(pinned, published.file, published.sha256, published.bytes, source)
    record = None
    if published.record is not None:
        place = {"hub": repository.name, "commit": commit or "", "file": published.file}
        weights = {"status": "hub", "location": place, "sha256": published.sha256, "bytes": published.bytes}
        record = known_part({**published.record, **weights})
    return _filled_as_published(file, published, record, str(repository))


def _filled_as_published(
    file: Path, published: PublishedConfig, record: Mapping[str, Any] | None, source: str
) -> Backbone:
    checkpoint = read_checkpoint(file)
    if (checkpoint.architecture, dict(checkpoint.config)) != (published.architecture, dict(published.config)):
        raise CheckpointError(
            f"{source}: {published.file} is another {checkpoint.architecture} than the {published.architecture} of "
            f"{CONFIG_FILE}, which does not belong to it: write both again with save_pretrained."
        )
    network = (checkpoint.architecture, checkpoint.config, checkpoint.input_spec, source)
    return _filled(*network, checkpoint, record)


def read_config(path: Path) -> PublishedConfig:
    """Reads and checks a ``config.json``.

    Raises:
        CheckpointError: it is not one that `clever3d.zoo.save_pretrained` wrote.
    """
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        content = manifest.parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Download or copy it again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(
            f"{path} is not of clever3d: its format is {found!r}, not {FORMAT!r}. Give a repository or folder that "
            "clever3d publish or save_pretrained wrote."
        )
    try:
        weights = content["weights"]
        published = PublishedConfig(
            architecture=str(content["architecture"]),
            config=dict(content["config"]),
            input_spec=dict(content["input_spec"]),
            file=str(weights["file"]),
            sha256=str(weights["sha256"]),
            bytes=int(weights["bytes"]),
            record=None if content["record"] is None else known_part(dict(content["record"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # DataError is a ValueError
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}). Write it again.") from None
    if not is_plain_path(published.file):
        raise CheckpointError(
            f"{path} names the file {published.file!r}, which is no plain path beside it. Do not use it."
        )
    return published


def _build(
    architecture: str | None, config: Mapping[str, Any], input_spec: Mapping[str, Any] | None, source: str
) -> Backbone:
    try:
        spec = None if input_spec is None else InputSpec.from_dict(dict(input_spec))
        return create_backbone(str(architecture), input_spec=spec, **config)
    except (Clever3dError, TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{source}: this clever3d cannot build {architecture!r} as described there ({error}). "
            "Was it written by another version?"
        ) from error


def _filled(
    architecture: str | None,
    config: Mapping[str, Any],
    input_spec: Mapping[str, Any] | None,
    source: str,
    checkpoint: Checkpoint,
    record: Mapping[str, Any] | None,
) -> Backbone:
    """The network with the checkpoint's weights. Shapes are compared first: a description that does not belong to the
    weights must not be able to ask for any amount of memory."""
    network = (architecture, config, checkpoint.input_spec or input_spec, source)
    with torch.device("meta"):
        check_fits(_build(*network), checkpoint)
    backbone = _build(*network)
    load_state(backbone, checkpoint)
    backbone.pretrained_cfg = None if record is None else dict(record)
    _say_licence(backbone.pretrained_cfg or {}, checkpoint.path)
    return backbone


def _same_network(checkpoint: Checkpoint, info: BackboneInfo) -> None:
    """A file with metadata must be of the network that the name stands for; one without is judged by its keys."""
    if checkpoint.architecture is None:
        return
    theirs = {"architecture": checkpoint.architecture, **checkpoint.config}
    ours = {"architecture": info.architecture, **info.config}
    different = [f"{key} {theirs.get(key)} instead of {ours.get(key)}" for key in ours if theirs.get(key) != ours[key]]
    if different:
        raise CheckpointError(
            f"{checkpoint.path} is not the network of {info.name}: {'; '.join(different)}. "
            f"load_backbone({str(checkpoint.path)!r}) builds the one that the file describes."
        )


def verified_file(info: BackboneInfo, source: Source | None = None) -> Path:
    """The weight file of an entry, on this machine, with size and sha256 checked.

    Raises:
        CheckpointError: there are no weights that load, they cannot be fetched, or they are not the manifest's.
    """
    source = source or Source()
    if info.status == "recipe":
        raise CheckpointError(_not_trained(info))
    assert info.location is not None  # the record's check holds this for every other status
    if info.status == "external":
        return external_file(info, cache_dir=source.cache_dir, local_files_only=source.local_files_only)
    assert info.sha256 is not None and info.bytes is not None
    if info.status == "hub":
        repository = Repository(info.location["hub"], info.location["commit"])
        return hub.fetch_verified(repository, info.location["file"], info.sha256, info.bytes, source)
    path = manifest.weights_folder(info) / info.location["file"]
    own = info.manifest in (None, manifest.manifest_path())
    remedy = "install clever3d again" if own else f"copy it there again, or correct {info.manifest}"
    if not path.is_file():
        raise CheckpointError(f"{path}, the weights of {info.name}, is missing: {remedy}.")
    if wrong := hub.difference(path, info.sha256, info.bytes):
        raise CheckpointError(f"{path} {wrong}, the manifest's: {remedy}.")
    return path


def _not_trained(info: BackboneInfo) -> str:
    nearest = nearest_with_weights(info)
    lines = [
        f"Nobody has trained {info.name} yet, so it has no weights.",
        f"  make them:          {info.make}",
        f'  load your own:      load_backbone("{info.name}", weights="my.safetensors")',
        f'  untrained:          load_backbone("{info.name}", pretrained=False)',
    ]
    if nearest is not None:
        lines.append(f'  nearest that loads: load_backbone("{nearest}")')
    return "\n".join(lines)


def _say_licence(record: Mapping[str, Any], path: Path) -> None:
    """Once for each set of weights that are not free for every use."""
    licence, name = str(record.get("weights_licence", "")), str(record.get("name", path.name))
    if licence and allows_commercial_use(licence) is False and name not in _licence_said:
        _licence_said.add(name)
        _log.warning("The weights of %s are for non-commercial use only (%s).", printable(name), printable(licence))
