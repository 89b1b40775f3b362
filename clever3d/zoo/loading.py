"""From a name or a file to a module that is ready to use."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clever3d.backbones import Backbone, InputSpec, create_backbone
from clever3d.errors import CheckpointError, Clever3dError, InputError, UnknownNameError
from clever3d.zoo import manifest
from clever3d.zoo.checkpoint import Checkpoint, load_state, read_checkpoint
from clever3d.zoo.manifest import BackboneInfo
from clever3d.zoo.registry import find, nearest_with_weights, suggestion

_log = logging.getLogger("clever3d")
_licence_said: set[str] = set()


def load_backbone(
    name_or_path: str | os.PathLike[str],
    *,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Backbone:
    """A backbone in eval mode, with its weights.

    Args:
        name_or_path: a full or short name of `list_backbones`, or a checkpoint file of one's own. What is no known name
            is taken as a file where such a file exists, or where it ends in ``.safetensors`` or holds a path separator.
        pretrained: False builds the network with random weights; this works for every name.
        weights: a local file with the weights for this *name*, such as one made with the command of a ``recipe``.
        device: where the module goes.
        dtype: type of its parameters; None is float32, whatever the file stores.

    Returns:
        The backbone. ``pretrained_cfg`` is the manifest record of its weights as a dict, or None where there is none
        (random weights, or a file that carries no record).

    Raises:
        UnknownNameError: no such name; the message has the nearest ones.
        CheckpointError: nobody has trained these weights yet (the message says how to), the file is missing or
            damaged, its checksum is wrong, or it does not fit the network.
        InputError: arguments that contradict each other, or a device that is not there.
    """
    _check_device(device)
    if weights is not None and not pretrained:
        raise InputError("weights=... and pretrained=False contradict each other. Give one of them.")
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise InputError(f"load_backbone takes a name or a path, not {type(name_or_path).__name__}")
    info = find(name_or_path) if isinstance(name_or_path, str) else None
    if info is not None:
        backbone = _from_name(info, pretrained, weights)
    elif _looks_like_path(name_or_path):
        if weights is not None:
            raise InputError(f"{name_or_path} is a file already; weights=... goes with a name of list_backbones().")
        backbone = _from_file(Path(name_or_path), pretrained)
    else:
        raise UnknownNameError(
            f"No backbone is named {name_or_path!r}, and no such file. {suggestion(str(name_or_path))}"
        )
    return backbone.to(device=device, dtype=dtype or torch.float32).eval()


def _check_device(device: str | torch.device) -> None:
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device {device!r} is none: 'cpu', 'cuda' or 'cuda:1', for example ({error})") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        why = "this PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees no such GPU"
        raise InputError(f"device {str(device)!r} was asked for, but {why}: leave it out to run on the CPU")


def _looks_like_path(given: str | os.PathLike[str]) -> bool:
    if not isinstance(given, str):
        return True
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return Path(given).is_file() or given.endswith(".safetensors") or any(one in given for one in separators)


def _from_name(info: BackboneInfo, pretrained: bool, weights: str | os.PathLike[str] | None) -> Backbone:
    if not pretrained:
        return _build(info.architecture, info.config, info.input_spec, info.name)
    if weights is not None:
        checkpoint = read_checkpoint(weights)
        _same_network(checkpoint, info)
        record = checkpoint.record
    else:
        checkpoint = read_checkpoint(verified_file(info))
        record = info.to_dict()
        _say_licence(info)
    backbone = _build(info.architecture, info.config, checkpoint.input_spec or info.input_spec, info.name)
    return _filled(backbone, checkpoint, record)


def _from_file(path: Path, pretrained: bool) -> Backbone:
    checkpoint = read_checkpoint(path)
    if checkpoint.architecture is None:
        raise CheckpointError(
            f"{path} has no clever3d metadata, so its architecture is not known. "
            f"Name it: load_backbone(NAME, weights={str(path)!r}), NAME being one of list_backbones()."
        )
    backbone = _build(checkpoint.architecture, checkpoint.config, checkpoint.input_spec, str(path))
    return _filled(backbone, checkpoint, checkpoint.record) if pretrained else backbone


def _build(architecture: str, config: Mapping[str, Any], input_spec: Mapping[str, Any] | None, source: str) -> Backbone:
    try:
        spec = None if input_spec is None else InputSpec.from_dict(dict(input_spec))
        return create_backbone(architecture, input_spec=spec, **config)
    except (Clever3dError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: this clever3d cannot build {architecture!r} as described there ({error}). "
            "Was it written by another version?"
        ) from error


def _filled(backbone: Backbone, checkpoint: Checkpoint, record: Mapping[str, Any] | None) -> Backbone:
    load_state(backbone, checkpoint)
    backbone.pretrained_cfg = None if record is None else dict(record)
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


def verified_file(info: BackboneInfo) -> Path:
    """The weight file of an entry, on this machine, with size and sha256 checked.

    Raises:
        CheckpointError: there are no weights that load, they cannot be fetched, or they are not the manifest's.
    """
    if info.status == "recipe":
        raise CheckpointError(_not_trained(info))
    assert info.location is not None  # the manifest's check holds this for every other status
    if info.status == "external":
        raise CheckpointError(
            f"The weights of {info.name} are published elsewhere, in their own format: {info.location['url']}. "
            f"Convert them, then load_backbone({info.name!r}, weights=FILE)."
        )
    if info.status == "hub":
        path = _from_hub(info)
    else:
        path = manifest.WEIGHTS_FOLDER / info.location["file"]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the installation is incomplete. Install clever3d again.")
    size = path.stat().st_size
    if size != info.bytes:
        raise CheckpointError(f"{path} has {size:,} bytes, the manifest says {info.bytes:,}. {_remedy(info)}")
    digest = file_sha256(path)
    if digest != info.sha256:
        raise CheckpointError(f"{path} has the sha256 {digest}, the manifest says {info.sha256}. {_remedy(info)}")
    return path


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _from_hub(info: BackboneInfo) -> Path:
    """The Hub's own cache, variables and offline mode hold (``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``)."""
    from huggingface_hub import hf_hub_download

    assert info.location is not None
    repository, commit, file = (info.location[key] for key in ("hub", "commit", "file"))
    try:
        return Path(hf_hub_download(repository, file, revision=commit))
    except Exception as error:  # the Hub's client raises its own, its transport's and the system's errors
        raise CheckpointError(
            f"The weights of {info.name} could not be had from the Hub ({repository}@{commit[:12]}): {error}. "
            f"Without a network: load_backbone({info.name!r}, weights=FILE)."
        ) from error


def _remedy(info: BackboneInfo) -> str:
    if info.status == "hub":
        return "The download is damaged: delete that file and load again."
    return "The file was changed: install clever3d again."


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


def _say_licence(info: BackboneInfo) -> None:
    if info.non_commercial and info.name not in _licence_said:
        _licence_said.add(info.name)
        _log.warning(
            "The weights of %s are for non-commercial use only (%s); clever3d info %s says why.",
            info.name,
            info.weights_licence,
            info.name,
        )
