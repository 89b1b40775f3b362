"""The checkpoint file: safetensors whose metadata say how to build the network that the weights fit.

Metadata (all strings): ``format``, ``architecture``, ``config`` (JSON), ``input_spec`` (JSON), ``kernel_order``, and
optionally ``record`` (JSON: the manifest record). Parameters may be stored as float16; buffers (batch-norm statistics)
are always stored as they are, for float16 cannot hold every variance.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from clever3d.errors import CheckpointError
from clever3d.io import atomic_path
from clever3d.zoo.manifest import parse_json

if TYPE_CHECKING:
    from clever3d.backbones import Backbone

FORMAT = "clever3d.backbone.v1"
KERNEL_ORDER = "torchsparse"
_SHOWN = 4  # of each kind of difference, in the message


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. ``architecture`` is None where the file has no metadata of clever3d."""

    path: Path
    state: Mapping[str, torch.Tensor]
    architecture: str | None
    config: Mapping[str, Any]
    input_spec: Mapping[str, Any] | None
    record: Mapping[str, Any] | None


def save_checkpoint(
    backbone: Backbone,
    path: str | os.PathLike[str],
    *,
    record: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a backbone so that ``load_backbone(path)`` builds it again.

    The file appears whole or not at all, and the same backbone always gives the same bytes.

    Args:
        backbone: the network to write.
        path: file to write, usually ``*.safetensors``; an existing one is replaced.
        record: manifest record to keep in the file; it becomes ``pretrained_cfg`` of the loaded backbone.
        dtype: stored type of the parameters (``torch.float16`` halves the file); None keeps theirs.

    Raises:
        CheckpointError: a parameter is too large for ``dtype``.
        DataError: the file cannot be written.
    """
    tensors = {name: buffer.detach().cpu().contiguous() for name, buffer in backbone.state_dict().items()}
    for name, parameter in backbone.named_parameters():
        stored = tensors[name].to(dtype or parameter.dtype)
        if not torch.equal(stored.isfinite(), tensors[name].isfinite()):
            raise CheckpointError(f"{name} has values too large for {dtype}. Save with dtype=torch.float32.")
        tensors[name] = stored
    metadata = {
        "format": FORMAT,
        "architecture": backbone.architecture,
        "config": json.dumps(asdict(backbone.config)),
        "input_spec": json.dumps(backbone.input_spec.to_dict()),
        "kernel_order": KERNEL_ORDER,
    }
    if record is not None:
        metadata["record"] = json.dumps(record)
    with atomic_path(path) as draft:
        draft.write_bytes(canonical(save(tensors, metadata)))


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a file written by `save_checkpoint`, or any safetensors file of tensors alone.

    Raises:
        CheckpointError: the file is missing, is truncated or no safetensors, or its metadata are not ours.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}. Give a .safetensors file or a name of clever3d.list_backbones().")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}. "
            "Copy or download it again; pickles (.pt, .pth) have to be converted first."
        ) from None
    order = metadata.get("kernel_order", None if "architecture" in metadata else KERNEL_ORDER)
    if order != KERNEL_ORDER:
        raise CheckpointError(
            f"{path}: metadata kernel_order={order!r}, but this clever3d reads {KERNEL_ORDER!r}. "
            "Convert it: clever3d convert --help."
        )
    if "architecture" not in metadata:
        return Checkpoint(path, state, None, {}, None, None)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: metadata format={metadata.get('format')!r}, but this clever3d reads {FORMAT!r}."
        )
    return Checkpoint(
        path=path,
        state=state,
        architecture=metadata["architecture"],
        config=parse_metadata(path, metadata, "config") or {},
        input_spec=parse_metadata(path, metadata, "input_spec"),
        record=parse_metadata(path, metadata, "record"),
    )


def load_state(backbone: Backbone, checkpoint: Checkpoint) -> None:
    """Copies the weights into the backbone; the type stays the backbone's, so float16 files load as float32.

    Raises:
        CheckpointError: a key is missing, unknown, of another shape or kind, or has values that are not finite; the
            message counts and lists them.
    """
    check_fits(backbone, checkpoint)
    if broken := sorted(name for name, tensor in checkpoint.state.items() if not bool(tensor.isfinite().all())):
        raise CheckpointError(f"{checkpoint.path} has values that are not finite in {_first(broken)}.")
    backbone.load_state_dict(dict(checkpoint.state), strict=True)


def check_fits(backbone: Backbone, checkpoint: Checkpoint) -> None:
    """Compares names, shapes and kinds of all tensors; the backbone's may be on the device ``meta``.

    Raises:
        CheckpointError: they differ.
    """
    own, given = backbone.state_dict(), checkpoint.state
    both = sorted(own.keys() & given.keys())
    differences = {
        "missing": sorted(own.keys() - given.keys()),
        "unknown": sorted(given.keys() - own.keys()),
        "mis-shaped": [
            f"{name} {list(given[name].shape)} instead of {list(own[name].shape)}"
            for name in both
            if own[name].shape != given[name].shape
        ],
        "of another kind": [
            f"{name} {str(given[name].dtype).removeprefix('torch.')}"
            for name in both
            if given[name].is_floating_point() != own[name].is_floating_point() or given[name].is_complex()
        ],
    }
    if any(differences.values()):
        text = "; ".join(f"{len(found)} {kind}: {_first(found)}" for kind, found in differences.items() if found)
        raise CheckpointError(f"{checkpoint.path} does not fit {backbone.architecture}: {text}.")


def fingerprint(backbone: Backbone) -> str:
    """A digest of configuration, input spec and weights, the same on every device.

    Each tensor counts by the sum of its bit patterns as integers: exact in any order, fast, and enough to see that
    weights were changed (it is no protection against someone who wants to hide that).
    """
    whole = {16: torch.int16, 32: torch.int32, 64: torch.int64}
    sums = {
        name: int(tensor.detach().view(whole[8 * tensor.element_size()]).sum(dtype=torch.int64))
        for name, tensor in backbone.state_dict().items()
    }
    parts = [backbone.architecture, asdict(backbone.config), backbone.input_spec.to_dict(), sums]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _first(found: list[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")


def parse_metadata(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any] | None:
    if key not in metadata:
        return None
    try:
        content = parse_json(metadata[key])
    except ValueError as error:
        raise CheckpointError(f"{path}: metadata {key} is not JSON ({error}). The file is damaged.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: metadata {key} is not a JSON object. The file is damaged.")
    return content


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical(blob: bytes) -> bytes:
    """The same safetensors file with a sorted header: the library writes the metadata in random order."""
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.dumps(json.loads(blob[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format keeps the tensors aligned to 8 bytes
    return len(header).to_bytes(8, "little") + header + blob[end:]
