"""``clever3d export``: a backbone as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clever3d.cli.extract import interrupt_later, say_progress
from clever3d.errors import CheckpointError

_TOLERANCE = 1e-3  # of the features' standard deviation; rounding alone stays below 1e-4 (our choice)


def export(
    source: Annotated[
        str,
        typer.Argument(help="Name (see clever3d list) or file of a WaffleIron.", metavar="NAME_OR_PATH"),
    ],
    target: Annotated[Path, typer.Argument(help="File to write: .onnx.", metavar="OUT.onnx")],
    opset: Annotated[int, typer.Option("--opset", help="Version of ONNX's operators, at least 18.")] = 18,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Build the network untrained, to try a deployment.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.onnx where it exists.")] = False,
) -> None:
    """Write a WaffleIron as an ONNX file, for any number of voxels.

    The file holds the layers. Voxel means, grid cells and neighbours are its
    inputs: its metadata say what they are, and clever3d.zoo.export.onnx_inputs
    makes them. The result is compared with PyTorch's in onnxruntime.

    Example: clever3d export waffleiron-dinov2-l network.onnx
    """
    with interrupt_later():
        import torch

        from clever3d.errors import InputError
        from clever3d.zoo import load_backbone
        from clever3d.zoo.export import export_onnx, onnx_difference

    if target.exists() and not overwrite:
        raise InputError(f"{target} exists: give --overwrite to replace it, or another name")
    backbone = load_backbone(source, pretrained=not random_weights)
    say_progress(f"exporting {backbone.architecture} (about a minute for a large network)")
    export_onnx(backbone, target, opset=opset)
    low, high = (torch.tensor(corner) for corner in backbone.input_spec.corners)
    points = low + (high - low) * torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    difference = onnx_difference(backbone, target, points)
    if not difference < _TOLERANCE:
        raise CheckpointError(
            f"{target} was written, but onnxruntime's features differ from PyTorch's by {difference:.1e} of their "
            "standard deviation: do not use it; another version of onnxruntime or another --opset may help"
        )
    typer.echo(f"wrote     {target} ({target.stat().st_size / 1e6:.1f} MB, opset {opset})")
    typer.echo(f"checked   onnxruntime agrees with PyTorch to {difference:.0e} of the features' standard deviation")
