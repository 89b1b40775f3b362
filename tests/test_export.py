"""A WaffleIron as ONNX: onnxruntime's features against PyTorch's."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from clever3d.backbones import Backbone, WaffleIron, create_backbone
from clever3d.cli.export import export
from clever3d.errors import DataError, InputError, MissingExtraError
from clever3d.zoo import export as exporting
from clever3d.zoo import save_checkpoint
from clever3d.zoo.export import export_onnx, onnx_difference, onnx_inputs

RECORD = {"name": "tiny-test.one", "weights_licence": "CC-BY-NC-SA-4.0"}
FORMS = {
    "batch_relu": {"norm": "batch", "activation": "relu"},
    "layer_relu": {"norm": "layer", "activation": "relu"},
    "layer_gelu": {"norm": "layer", "activation": "gelu"},
}


def network(form: str) -> WaffleIron:
    """No value as in a new network, where a normalisation does nothing."""
    torch.manual_seed(0)
    shape = {"width": 16, "depth": 3, "grids": ((16, 16), (16, 4), (16, 4)), "neighbors": 4}
    backbone = create_backbone("waffleiron48_768", **shape, **FORMS[form])
    with torch.no_grad():
        for name, buffer in backbone.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.uniform_(-0.5, 0.5)
        for name, parameter in backbone.named_parameters():
            if "norm" in name:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
    backbone.pretrained_cfg = RECORD
    assert isinstance(backbone, WaffleIron)
    return backbone.eval()


def cloud(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform((-30, -30, -4), (30, 30, 4), (count, 3))
    return np.concatenate([xyz, rng.uniform(0, 1, (count, 1))], axis=1).astype(np.float32)


@pytest.fixture(scope="module", params=list(FORMS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[WaffleIron, Path]:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    backbone = network(request.param)
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    export_onnx(backbone, path)
    return backbone, path


def run(path: Path, inputs: dict[str, np.ndarray], threads: int = 1) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    features: np.ndarray = session.run(None, inputs)[0]
    return features


# ---- the file ----


def test_onnxruntime_gives_the_features_of_extract_for_any_number_of_points(exported: tuple[WaffleIron, Path]) -> None:
    backbone, path = exported
    for count in (1, 2, 16, 40, 41, 3000):
        points = cloud(count, seed=count)
        inputs, rows = onnx_inputs(backbone, points)
        expected = backbone.extract(points).features
        found = torch.from_numpy(run(path, inputs)[rows])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))
        assert onnx_difference(backbone, path, points) < 1e-4


def test_threads_do_not_change_the_features(exported: tuple[WaffleIron, Path]) -> None:
    """Sums into few cells, by many threads: ScatterND of onnxruntime 1.31 fails here."""
    backbone, path = exported
    inputs, _ = onnx_inputs(backbone, cloud(20_000))
    inputs["cells"] = np.zeros_like(inputs["cells"])
    one = run(path, inputs)
    for _ in range(3):
        np.testing.assert_allclose(run(path, inputs, threads=4), one, rtol=0, atol=1e-3 * one.std())


def test_file_is_sound_and_says_how_to_use_it(exported: tuple[WaffleIron, Path]) -> None:
    import onnx

    backbone, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    shapes = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"channels": ["N", 5], "cells": [3, "N"], "neighbors": ["N", 4], "features": ["N", 16]}
    assert "ScatterND" not in Counter(node.op_type for node in model.graph.node)
    said = {one.key: one.value for one in model.metadata_props}
    assert said["architecture"] == "waffleiron48_768" and said["weights_licence"] == "CC-BY-NC-SA-4.0"
    assert json.loads(said["record"]) == RECORD
    assert json.loads(said["config"])["grids"] == [[16, 16], [16, 4], [16, 4]]
    assert json.loads(said["input_spec"]) == json.loads(json.dumps(backbone.input_spec.to_dict()))
    meaning = json.loads(said["meaning"])
    assert set(meaning) == set(shapes)
    assert "xz: 16 x 4" in meaning["cells"] and "0.1 m" in meaning["channels"]


def test_newer_opset_gives_the_same_features(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    backbone = network("layer_gelu")
    export_onnx(backbone, tmp_path / "network.onnx", opset=20)  # the first with a Gelu
    assert onnx_difference(backbone, tmp_path / "network.onnx", cloud(200)) < 1e-4


def test_export_leaves_the_backbone_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    backbone = network("layer_relu").to(torch.bfloat16).train()
    backbone.set_grad_checkpointing()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    export_onnx(backbone, tmp_path / "network.onnx")
    assert backbone.training and next(backbone.parameters()).dtype == torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_failed_export_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path / "network.onnx"
    path.write_bytes(b"before")

    def full(model: Any, draft: Path) -> None:
        Path(draft).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(DataError, match="No space left"):
        export_onnx(network("layer_relu"), path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


# ---- the inputs ----


def test_inputs_are_what_the_file_says_of_them() -> None:
    """Means, cells and neighbours of a dozen points, counted here in NumPy."""
    backbone = network("layer_relu")
    points = cloud(12)
    points[1, :3] = points[0, :3] = [1.01, 1.01, 1.01]
    points[1, 0] += 0.05
    inputs, rows = onnx_inputs(backbone, points)
    assert rows[0] == rows[1] and sorted(set(rows.tolist())) == list(range(11))
    xyz = np.zeros((11, 3))
    for row in range(11):
        xyz[row] = points[rows == row, :3].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(inputs["channels"][:, 1:4], xyz, rtol=1e-6)
    place = [
        np.floor((xyz[:, n] - low) / size).astype(int) for n, (low, size) in enumerate([(-64, 8), (-64, 8), (-8, 4)])
    ]
    assert inputs["cells"].tolist() == [
        (place[0] * 16 + place[1]).tolist(),
        (place[0] * 4 + place[2]).tolist(),
        (place[1] * 4 + place[2]).tolist(),
    ]
    order = np.argsort(np.linalg.norm(xyz[:, None] - xyz[None], axis=2), axis=1)[:, 1:]
    assert np.array_equal(inputs["neighbors"], order[:, np.arange(4)])
    assert [inputs[name].dtype for name in ("channels", "cells", "neighbors")] == [np.float32, np.int64, np.int64]


def test_points_that_are_not_valid_have_no_row() -> None:
    backbone = network("layer_relu")
    points = cloud(5)
    points[2, 0], points[4, 1] = np.nan, 500
    with pytest.warns(UserWarning):
        inputs, rows = onnx_inputs(backbone, points)
    assert (rows >= 0).tolist() == [True, True, False, True, False] and len(inputs["channels"]) == 3
    with pytest.warns(UserWarning), pytest.raises(InputError, match="none of 5 points"):
        onnx_inputs(backbone, np.full((5, 3), 500, np.float32))


# ---- refusals ----


def test_sparse_convolutions_are_refused_with_what_works_instead(small: Backbone, tmp_path: Path) -> None:
    for refused in (lambda: export_onnx(small, tmp_path / "a.onnx"), lambda: onnx_inputs(small, cloud(5))):
        with pytest.raises(InputError, match=r"no sparse convolution.*torch\.compile"):
            refused()
    assert not list(tmp_path.iterdir())


def test_unusable_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    backbone = network("layer_relu")
    with pytest.raises(InputError, match="opset 17"):
        export_onnx(backbone, tmp_path / "a.onnx", opset=17)
    with pytest.raises(DataError, match=r"must end in \.onnx"):
        export_onnx(backbone, tmp_path / "a.pb")
    monkeypatch.setattr(exporting, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="an ONNX file at most"):
        export_onnx(backbone, tmp_path / "a.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"clever3d\[onnx\]"):
        export_onnx(network("layer_relu"), tmp_path / "a.onnx")


def test_missing_onnxruntime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"clever3d\[onnx\]"):
        onnx_difference(network("layer_relu"), tmp_path / "a.onnx", cloud(5))


# ---- the command ----


def command(*arguments: str | Path) -> Any:
    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_command_writes_checks_and_does_not_overwrite(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    save_checkpoint(network("layer_relu"), tmp_path / "one.safetensors")
    done = command(tmp_path / "one.safetensors", tmp_path / "one.onnx")
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'one.onnx'} (" in done.output and "agrees with PyTorch" in done.output
    again = command(tmp_path / "one.safetensors", tmp_path / "one.onnx")
    assert isinstance(again.exception, InputError) and "--overwrite" in str(again.exception)
