"""A WaffleIron as an ONNX file, and the arrays that such a file takes.

The file holds the network from voxels to features, of one scan with any number N of voxels. What is no matter of layers
is done before it, here by `onnx_inputs`: which points a voxel holds, the means of their channels, cells and neighbours.

========= =========== ==========================================================================================
input     shape       meaning
========= =========== ==========================================================================================
channels  float [N, C] the channels of ``input_spec``, means over a voxel's points
cells     int64 [P, N] for each plane the cell in which a voxel's mean position lies, counted row by row
neighbors int64 [N, K] rows of the nearest other voxels by mean position, nearest first, repeated where there are fewer
========= =========== ==========================================================================================

The output ``features`` is float ``[N, D]``. The file's metadata say the same, with the numbers of this network.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clever3d._version import __version__
from clever3d.backbones import Backbone, WaffleIron
from clever3d.errors import InputError, MissingExtraError
from clever3d.io import atomic_path, check_output
from clever3d.points import check_points, nearest_neighbors, voxelize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

FORMAT = "clever3d.onnx.v1"
#: LayerNormalization came with opset 17, ScatterElements' sums with 16; PyTorch's exporter starts from 18.
MIN_OPSET = 18
#: A protobuf message, as which the file is stored, cannot be larger.
MAX_BYTES = (1 << 31) - 1
INPUTS = ("channels", "cells", "neighbors")


@dataclass(frozen=True)
class _Cells:
    """`clever3d.backbones.waffleiron.Plane` in operators of ONNX, for one scan.

    The sums are those of ScatterElements. On the CPU it takes two thirds of the time of a network of width 256, and
    ScatterND, which ``index_add`` becomes, would be fifty times faster: but there onnxruntime 1.31 loses terms as soon
    as it runs on two threads (microsoft/onnxruntime, issue 23396).
    """

    shape: tuple[int, int]
    cells: Tensor  # [N]

    def flatten(self, rows: Tensor) -> Tensor:
        height, width = self.shape
        index = self.cells.unsqueeze(1)  # [N, 1]
        counts = rows.new_zeros(height * width, 1).scatter_add(0, index, torch.ones_like(rows[:, :1]))
        sums = rows.new_zeros(height * width, rows.shape[1]).scatter_add(0, index.expand(-1, rows.shape[1]), rows)
        mean = sums / counts.clamp(min=1)  # [H * W, C]
        return mean.view(1, height, width, rows.shape[1]).permute(0, 3, 1, 2)

    def inflate(self, grid: Tensor) -> Tensor:
        return grid.permute(0, 2, 3, 1).flatten(0, 2)[self.cells]


class _Network(nn.Module):
    """A WaffleIron from tensors to a tensor, without a loop over blocks of tokens."""

    def __init__(self, backbone: WaffleIron) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, channels: Tensor, cells: Tensor, neighbors: Tensor) -> Tensor:
        embedding, config = self.backbone.embedding, self.backbone.config
        x = embedding.point_norm(channels)  # [N, Cin]
        near = [embedding.nearby(x, x, neighbors[:, n : n + 1]) for n in range(config.neighbors)]
        tokens: Tensor = embedding.join(x, functools.reduce(torch.maximum, near))  # [N, C]
        planes = [_Cells(grid, cells[n]) for n, grid in enumerate(config.grids)]
        for depth, layer in enumerate(self.backbone.layers):
            tokens = layer(tokens, planes[depth % len(planes)], (None, None))
        return tokens


def export_onnx(backbone: Backbone, path: str | os.PathLike[str], *, opset: int = MIN_OPSET) -> None:
    """Writes the network of a WaffleIron, in float32, as one ONNX file.

    Inputs and output: see this module. ``metadata_props`` of the file say how to make the inputs, and carry
    architecture, configuration, input spec and, where there is one, the record of the weights with their licence.

    Args:
        backbone: a WaffleIron, on any device and of any type; it stays as it is.
        path: an ``.onnx`` file; it is written whole or not at all, an existing one is replaced.
        opset: version of ONNX's operators, at least 18.

    Raises:
        InputError: another architecture (the message says what it has instead), too old an opset or PyTorch, a network
            of more than 2 GB.
        MissingExtraError: onnx or onnxscript is not installed.
        DataError: the file cannot be written.
    """
    network = _exportable(backbone)
    if opset < MIN_OPSET:
        raise InputError(f"opset {opset} lacks operators of this network: use {MIN_OPSET} or newer")
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > MAX_BYTES:
        raise InputError(f"the network has {size / 1e9:.1f} GB, an ONNX file at most {MAX_BYTES / 1e9:.1f} GB")
    path = check_output(path, (".onnx",))
    model = _traced(network, opset)
    import onnx

    onnx.helper.set_model_props(model, _metadata(network.backbone))
    model.producer_name, model.producer_version = "clever3d", __version__
    with atomic_path(path) as draft:
        onnx.save(model, draft)


def onnx_inputs(backbone: Backbone, points: Any, intensity: Any = None) -> tuple[Arrays, NDArray[np.int64]]:
    """What an exported network takes, from the points of one scan.

    Args:
        backbone: the one that was exported, or one with the same configuration and input spec.
        points: as in ``Backbone.extract``.
        intensity: as in ``Backbone.extract``.

    Returns:
        The inputs by name, and for each point the row of its feature: int64 ``[N]``, -1 where the point is not valid.

    Raises:
        InputError: another architecture, or no point is valid.
    """
    network = _waffleiron(backbone)
    spec, device = backbone.input_spec, torch.device("cpu")
    cloud = check_points(points, intensity, spec, device)
    if not bool(cloud.valid.any()):
        raise InputError(f"none of {len(cloud.valid)} points is finite and inside {spec.point_range} m")
    voxels = voxelize([cloud], spec)
    channels = voxels.tensor.feats
    xyz = channels[:, [spec.channels.index(axis) for axis in "xyz"]]
    neighbors = nearest_neighbors(xyz, None, network.config.neighbors)
    values = (channels, torch.stack(network.cells(xyz)), neighbors)
    arrays = {name: tensor.numpy() for name, tensor in zip(INPUTS, values, strict=True)}
    return arrays, voxels.point_to_voxel[0].numpy()


def onnx_difference(backbone: Backbone, path: str | os.PathLike[str], points: Any, intensity: Any = None) -> float:
    """How far a file's features, by onnxruntime on the CPU, are from those of ``extract``.

    Returns:
        The greatest difference, in units of the standard deviation of the features.

    Raises:
        InputError: as `onnx_inputs`; MissingExtraError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError('running ONNX files needs onnxruntime: pip install "clever3d[onnx]"') from error
    inputs, rows = onnx_inputs(backbone, points, intensity)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["features"], inputs)[0])  # [V, D]
    with warnings.catch_warnings():  # onnx_inputs has given them
        warnings.simplefilter("ignore")
        expected = backbone.extract(points, intensity)
    features = expected.features[expected.valid].cpu()
    difference = (found[torch.from_numpy(rows[rows >= 0])] - features).abs().max()
    return float(difference / features.std(correction=0).clamp(min=torch.finfo(torch.float32).tiny))


def _waffleiron(backbone: Backbone) -> WaffleIron:
    if not isinstance(backbone, WaffleIron):
        raise InputError(
            f"{backbone.architecture} cannot become an ONNX file: ONNX has no sparse convolution, and which voxels "
            "are neighbours is searched anew for each scan. What works: torch.compile(backbone); torch.export for one "
            "fixed set of voxels; or a WaffleIron, which is made of dense layers."
        )
    return backbone


def _exportable(backbone: Backbone) -> _Network:
    network = _waffleiron(backbone)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401 (PyTorch's exporter is built on it)
    except ImportError as error:
        raise MissingExtraError('ONNX files need onnx and onnxscript: pip install "clever3d[onnx]"') from error
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise InputError(
            f"the exporter of torch {torch.__version__} is too old for this network: install a newer torch"
        )
    return _Network(copy.deepcopy(network).cpu().float().eval())


def _traced(network: _Network, opset: int) -> Any:
    """The network as an ONNX ModelProto; the number of voxels is open."""
    config = network.backbone.config
    count = 40  # of voxels to trace with; any number but 0 and 1, which the tracer would take for constants
    examples = (
        torch.zeros(count, len(network.backbone.input_spec.channels)),
        torch.zeros(len(config.planes), count, dtype=torch.long),
        torch.zeros(count, config.neighbors, dtype=torch.long),
    )
    voxels = torch.export.Dim("N", min=1, max=1 << 24)
    shapes = dict(zip(INPUTS, ({0: voxels}, {1: voxels}, {0: voxels}), strict=True))
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            network,
            examples,
            input_names=INPUTS,
            output_names=["features"],
            opset_version=opset,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own inner workings."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _metadata(backbone: WaffleIron) -> dict[str, str]:
    spec, config = backbone.input_spec, backbone.config
    shapes = zip(config.planes, config.grids, strict=True)
    grids = "; ".join(f"{plane}: {rows} x {columns}" for plane, (rows, columns) in shapes)
    low, high = (list(corner) for corner in spec.corners)
    meaning = {
        "channels": f"float32 [N, {len(spec.channels)}]: {', '.join(spec.channels)}, means over the points of a voxel "
        f"of {spec.voxel_size} m; metres in the sensor's frame, x forward, y left, z up; intensity is "
        f"(value - {spec.intensity_mean}) / {spec.intensity_std} of a value in [0, 1], 0 where there is none",
        "cells": f"int64 [{len(config.planes)}, N]: cell of a voxel's mean position in each of the grids {grids}, that "
        f"reach from {low} to {high} m: floor((a - low) / size) * columns + floor((b - low) / size) for axes a, b",
        "neighbors": f"int64 [N, {config.neighbors}]: rows of the nearest other voxels by mean position, nearest "
        "first; where there are fewer, repeated; of a lone voxel its own row",
        "features": f"float32 [N, {backbone.feature_dim}]: the feature of every point of the voxel",
    }
    record = backbone.pretrained_cfg
    return {
        "format": FORMAT,
        "clever3d_version": __version__,
        "architecture": backbone.architecture,
        "config": json.dumps(asdict(config)),
        "input_spec": json.dumps(spec.to_dict()),
        "meaning": json.dumps(meaning),
        "weights_licence": "" if record is None else str(record.get("weights_licence", "")),
        "record": json.dumps(record),
    }
