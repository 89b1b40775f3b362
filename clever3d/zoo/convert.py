"""Checkpoints of other sparse-convolution libraries into ours, and ours into theirs.

Kernels change their layout (`clever3d.sparse.layouts`), their name (``NAME.weight`` in spconv, else ``NAME.kernel``)
and, in MinkowskiEngine, the shape of the bias beside them (``[1, Cout]``). All else stays as it is: a layer's options,
such as its stride, are not in a checkpoint, and no file can say whether the other network is the same as ours.

Safetensors files keep the metadata that they have, with the layout as ``kernel_order``.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clever3d.backbones import InputSpec, create_backbone
from clever3d.backbones.minkunet import from_spvnas
from clever3d.errors import CheckpointError, DataError, InputError
from clever3d.io import atomic_path, check_output
from clever3d.points.spec import CHANNELS
from clever3d.sparse.layouts import check_layout, convert_kernel
from clever3d.zoo.checkpoint import (
    FORMAT,
    KERNEL_ORDER,
    Checkpoint,
    canonical,
    load_state,
    parse_metadata,
    save_checkpoint,
)

PICKLES = (".pt", ".pth", ".ckpt", ".tar")
#: Keys under which training scripts keep the state dict; the last three are those of OpenPCDet, SLidR and its kin.
CONTAINERS = ("state_dict", "model", "model_state_dict", "network", "model_state", "model_point", "model_points")
_log = logging.getLogger("clever3d")
_STEM = "stem.0.kernel"  # the kernel that reads the input channels, in every architecture there is
_SHOWN = 4


@dataclass(frozen=True)
class Conversion:
    """What `convert_file` did. ``architecture`` is the one that the weights were checked against, if any."""

    kernels: int
    tensors: int
    architecture: str | None


def convert_state(state: Mapping[str, Tensor], source: str, target: str, *, axes: str = "zyx") -> dict[str, Tensor]:
    """A state dict with its convolution kernels in another layout; everything else is passed on untouched.

    Args:
        state: parameters and buffers by name, from a library whose layout is ``source``.
        source: ``clever3d`` (the same as ``torchsparse``), ``minkowski`` or ``spconv`` (2.x).
        target: one of the same.
        axes: order of the axes of spconv's indices, ``zyx`` or ``xyz``.

    Raises:
        CheckpointError: there is no kernel of that layout, one of another, or one that has no equal in ``target``.
        InputError: no such layout or axes.
    """
    for layout in (source, target):
        check_layout(layout, axes)
    converted: dict[str, Tensor] = {}
    kernels = find_kernels(state, source)
    biases = {f"{_parent(name)}bias" for name in kernels}
    for name, tensor in state.items():
        new_name = name
        if name in kernels:
            new_name = _parent(name) + ("weight" if target == "spconv" else "kernel")
            try:
                tensor = convert_kernel(tensor, source, target, axes=axes)
            except InputError as error:
                raise CheckpointError(f"{name}: {error}.") from error
        elif name in biases:
            tensor = tensor.reshape(1, -1) if target == "minkowski" else tensor.reshape(-1)
        if new_name != name and new_name in state:
            raise CheckpointError(f"{name} would be called {new_name} in {target}, but there is one of that name.")
        converted[new_name] = tensor
    return converted


def find_kernels(state: Mapping[str, Tensor], layout: str) -> set[str]:
    """Names of the convolution kernels: ``*.weight`` with five axes in spconv, ``*.kernel`` elsewhere.

    Raises:
        CheckpointError: there is none, or a parameter that only another layout has.
    """
    flat = {name for name in state if name.rpartition(".")[2] == "kernel"}
    cubes = {name for name, tensor in state.items() if name.rpartition(".")[2] == "weight" and tensor.ndim == 5}
    own, foreign = (cubes, flat) if layout == "spconv" else (flat, cubes)
    if foreign:
        whose = "torchsparse's or MinkowskiEngine's" if layout == "spconv" else "spconv's (or a dense convolution's)"
        raise CheckpointError(
            f"{_listed(state, foreign)} is not {layout}'s but {whose}. Name the library that wrote the file "
            "(--from), and leave out what belongs to no sparse convolution (--drop PATTERN)."
        )
    if not own:
        form = "*.weight [Cout, k, k, k, Cin]" if layout == "spconv" else "*.kernel [K, Cin, Cout]"
        raise CheckpointError(
            f"no kernel of {layout} ({form}) among {len(state)} tensors: {_listed(state, set(state))}. "
            "Name the library that wrote the file (--from)."
        )
    width = 2 if layout == "minkowski" else 1
    odd = {name for kernel in own if (name := f"{_parent(kernel)}bias") in state and state[name].ndim != width}
    if odd:
        raise CheckpointError(
            f"{_listed(state, odd)} is no bias of {layout}: it is [1, Cout] in MinkowskiEngine and [Cout] elsewhere. "
            "Name the library that wrote the file (--from)."
        )
    return own


def rename_spvnas(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the names of SPVNAS's MinkUNet changed to ours; CheckpointError where none is one of them."""
    renamed = {from_spvnas(name): tensor for name, tensor in state.items()}
    if len(renamed) != len(state) or renamed.keys() == state.keys():
        raise CheckpointError(f"the names are not those of SPVNAS: {_listed(state, set(state))}. Leave --names out.")
    return renamed


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict of a checkpoint file, and its metadata where it is a safetensors file that has some.

    Pickles are read without running any code in them (``weights_only=True``). A state dict inside one of
    :data:`CONTAINERS` is taken out, and ``module.``, which DistributedDataParallel puts before all names, is cut off.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, needs code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}. Give a checkpoint file.")
    if path.suffix.lower() == ".safetensors":
        content, metadata = _read_safetensors(path)
    elif path.suffix.lower() in PICKLES:
        content, metadata = _read_pickle(path), {}
    else:
        raise CheckpointError(f"{path} ends in {path.suffix!r}, not in .safetensors, {', '.join(PICKLES)}.")
    state = _unwrap(content, path)
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state, metadata


def convert_file(
    source_path: str | os.PathLike[str],
    target_path: str | os.PathLike[str],
    source: str,
    target: str,
    *,
    axes: str = "zyx",
    spvnas_names: bool = False,
    drop: Sequence[str] = (),
    architecture: str | None = None,
    channels: Sequence[str] | None = None,
    voxel_size: float | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Read a checkpoint, convert it (see `convert_state`), and write it, whole or not at all.

    Args:
        source_path: .safetensors, or a pickle (:data:`PICKLES`).
        target_path: .safetensors; for other libraries also .pt or .pth, which then holds the plain state dict.
        source: layout of the file.
        target: layout to write.
        axes: order of the axes of spconv's indices, ``zyx`` or ``xyz``.
        spvnas_names: change SPVNAS's parameter names to ours.
        drop: shell patterns of names to leave out, such as ``classifier.*``.
        architecture: to ``clever3d``, the network that the weights must fit; ``load_backbone(target_path)`` then
            works. Files of ours bring their own.
        channels: input channels of that network, in the order of the first kernel's rows; the default is InputSpec's.
        voxel_size: edge of its voxels in metres; the default is InputSpec's.
        overwrite: replace an existing file.

    Raises:
        CheckpointError: the file cannot be read or converted, or does not fit the architecture.
        DataError: the file cannot be written, or exists.
        InputError, UnknownNameError: no such layout, channel or architecture.
    """
    endings = (".safetensors",) if target == "clever3d" else (".safetensors", ".pt", ".pth")
    target_path = check_output(target_path, endings)
    if target_path.exists() and not overwrite:
        raise DataError(f"{target_path} exists already; --overwrite (overwrite=True) replaces it")
    if target != "clever3d" and architecture is not None:
        raise InputError(
            f"architecture {architecture} goes with the target clever3d, not {target}: leave one of them out"
        )
    given, metadata = read_state(source_path)
    _check_order(source_path, metadata, source, axes)
    given = _without(given, drop)
    if spvnas_names:
        given = rename_spvnas(given)
    state = convert_state(given, source, target, axes=axes)
    if architecture is None and target == "clever3d":
        architecture = _own_architecture(metadata)
    if architecture is None:
        if channels is not None or voxel_size is not None:
            raise InputError(
                "channels and voxel_size describe a network of ours: name its --architecture, --to clever3d"
            )
        _write(target_path, state, {**metadata, "kernel_order": _kernel_order(target, axes)})
    else:
        _write_backbone(target_path, Path(source_path), state, metadata, architecture, channels, voxel_size)
    return Conversion(len(find_kernels(given, source)), len(state), architecture)


def _write_backbone(
    target_path: Path,
    source_path: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    architecture: str,
    channels: Sequence[str] | None,
    voxel_size: float | None,
) -> None:
    """Writes a checkpoint of ours if the weights fit; what the metadata say of this very network is kept."""
    same = _own_architecture(metadata) == architecture
    config, spec_known, record = (
        parse_metadata(source_path, metadata, key) if same else None for key in ("config", "input_spec", "record")
    )
    given = {"channels": tuple(channels) if channels else None, "voxel_size": voxel_size}
    changes = {key: value for key, value in given.items() if value is not None}
    spec = InputSpec.from_dict({**(spec_known or {}), **changes})
    if _STEM in state and state[_STEM].shape[-2] != len(spec.channels):
        raise CheckpointError(
            f"{source_path}: the first kernel reads {state[_STEM].shape[-2]} input channels, the input spec has "
            f"{len(spec.channels)} ({', '.join(spec.channels)}). Name those of the file, in the order of the code that "
            f"trained it: --channels dx,dy,dz,intensity, for example; there are {', '.join(CHANNELS)}."
        )
    backbone = create_backbone(architecture, input_spec=spec, **(config or {}))
    checkpoint = Checkpoint(source_path, state, architecture, {}, None, None)
    try:
        load_state(backbone, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} --names spvnas translates SPVNAS's names, --drop PATTERN leaves out what is no part of the "
            "backbone, such as a classifier."
        ) from None
    stored = {state[name].dtype for name, _ in backbone.named_parameters()}
    half = stored.pop() if len(stored) == 1 and stored <= {torch.float16, torch.bfloat16} else None
    save_checkpoint(backbone, target_path, record=record, dtype=half)


def _own_architecture(metadata: Mapping[str, str]) -> str | None:
    return metadata.get("architecture") if metadata.get("format") == FORMAT else None


def _write(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    own = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    if path.suffix.lower() == ".safetensors":
        content = canonical(save(own, metadata))
    else:
        buffer = io.BytesIO()
        torch.save(own, buffer)
        content = buffer.getvalue()
    with atomic_path(path) as draft:
        draft.write_bytes(content)


def _kernel_order(layout: str, axes: str) -> str:
    """Value of the metadata key ``kernel_order``."""
    return {"minkowski": "minkowski", "spconv": f"spconv-{axes}"}.get(layout, KERNEL_ORDER)


def _check_order(path: str | os.PathLike[str], metadata: Mapping[str, str], source: str, axes: str) -> None:
    """A file that says how its kernels are stored must not be read as another."""
    order = metadata.get("kernel_order")
    if order is not None and order != _kernel_order(source, axes):
        layout, _, its_axes = order.partition("-")
        hint = f"--from {layout}" + (f" --axes {its_axes}" if its_axes else "")
        raise CheckpointError(f"{path} says that its kernels are {order}, not {_kernel_order(source, axes)}: {hint}.")


def _without(state: dict[str, Tensor], patterns: Sequence[str]) -> dict[str, Tensor]:
    for pattern in patterns:
        kept = {name: tensor for name, tensor in state.items() if not fnmatchcase(name, pattern)}
        if len(kept) == len(state):
            raise CheckpointError(f"no name matches --drop {pattern!r} among {_listed(state, set(state))}.")
        state = kept
    return state


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}. Copy or download it again.") from None


def pickles_are_safe() -> bool:
    """Whether this PyTorch has no known way past ``weights_only=True``.

    CVE-2025-32434 was mended in 2.6, CVE-2026-24747 in 2.10.
    """
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 10)


def _read_pickle(path: Path) -> Any:
    if not pickles_are_safe():
        _log.warning(
            "PyTorch %s may run code in a hostile pickle even with weights_only (CVE-2025-32434, CVE-2026-24747): "
            "convert only files you trust, or install PyTorch 2.10.",
            torch.__version__,
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises nearly anything when the bytes are not what it expects
        again = 'with the code that wrote it: torch.save(model.state_dict(), "weights.pt")'
        if needs := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path} is a pickle that needs code ({needs[1]}) and could run any program, so it is not loaded. If "
                f"you trust it, take the weights out {again}, and convert that file."
            ) from None
        reason = (str(error).splitlines() or [""])[-1]
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a file of torch.save ({type(error).__name__}: "
            f"{reason}). Copy or download it again, or save it anew {again}."
        ) from None


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict. Save model.state_dict().")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise CheckpointError(
            f"{path} holds no state dict where one is looked for (the top, {', '.join(CONTAINERS)}): "
            f"{_first(others) or 'nothing'} there is no tensor. Save model.state_dict() alone."
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}


def _parent(name: str) -> str:
    """``a.b.kernel`` -> ``a.b.``, ``kernel`` -> nothing."""
    return name[: name.rfind(".") + 1]


def _listed(state: Mapping[str, Tensor], names: set[str]) -> str:
    """The first of these names with their shapes."""
    return _first([f"{name} {list(state[name].shape)}" for name in sorted(names)])


def _first(found: Sequence[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
