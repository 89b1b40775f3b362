"""``clever3d convert``: checkpoints of other sparse-convolution libraries into ours, and back."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clever3d.cli.extract import interrupt_later, say_progress


class Layout(str, Enum):
    """Libraries whose kernels are stored in different ways; torchsparse's way is ours."""

    torchsparse = "torchsparse"
    spconv = "spconv"
    minkowski = "minkowski"
    clever3d = "clever3d"


class Axes(str, Enum):
    """Order of spconv's axes: that of the columns of its indices after the batch."""

    zyx = "zyx"
    xyz = "xyz"


class Names(str, Enum):
    """Parameter names: kept, or those of SPVNAS's MinkUNet turned into ours."""

    keep = "keep"
    spvnas = "spvnas"


def convert(
    source_path: Annotated[
        Path, typer.Argument(help="Checkpoint to read: .safetensors, .pt, .pth, .ckpt or .tar.", metavar="IN")
    ],
    target_path: Annotated[
        Path,
        typer.Argument(help="File to write: .safetensors; for other libraries also .pt or .pth.", metavar="OUT"),
    ],
    source: Annotated[Layout, typer.Option("--from", help="Library that wrote IN (spconv: 2.x).")],
    target: Annotated[Layout, typer.Option("--to", help="Library that is to read OUT.")],
    axes: Annotated[
        Axes, typer.Option("--axes", help="For spconv: the order of its indices, (batch, z, y, x) or (batch, x, y, z).")
    ] = Axes.zyx,
    names: Annotated[
        Names, typer.Option("--names", help="Keep the names, or turn those of SPVNAS's MinkUNet into ours.")
    ] = Names.keep,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="PATTERN", help="Leave these names out, e.g. 'classifier.*'. May be repeated."),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture", help="To clever3d: the network the weights must fit, so that OUT loads by itself."
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            "--channels",
            metavar="A,B,...",
            show_default="those of our own networks",
            help="Input channels of that network, in order.",
        ),
    ] = None,
    voxel_size: Annotated[
        float | None, typer.Option("--voxel-size", show_default="0.1", help="Edge of its voxels, metres.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it exists.")] = False,
) -> None:
    """Convert a checkpoint between kernel layouts: torchsparse, spconv 2.x, MinkowskiEngine and our own.

    No value is changed, only where it stands. What a file cannot tell is yours
    to know: files of torchsparse and of MinkowskiEngine look alike, and input
    channels and voxel size are in neither. --architecture checks names and shapes.

    Example: clever3d convert spvnas.pt mine.safetensors --from torchsparse
    --to clever3d --names spvnas --drop 'classifier.*' --architecture
    minkunet18 --channels dx,dy,dz,intensity --voxel-size 0.05
    """
    with interrupt_later():
        from clever3d.zoo.convert import convert_file

    say_progress(f"converting {source_path}")
    done = convert_file(
        source_path,
        target_path,
        source.value,
        target.value,
        axes=axes.value,
        spvnas_names=names is Names.spvnas,
        drop=drop or (),
        architecture=architecture,
        channels=None if channels is None else [name.strip() for name in channels.split(",")],
        voxel_size=voxel_size,
        overwrite=overwrite,
    )
    along = f" (axes {axes.value})" if Layout.spconv in (source, target) else ""
    fits = f", fits {done.architecture}" if done.architecture else ""
    typer.echo(
        f"converted {done.kernels} kernels of {done.tensors} tensors from {source.value} to {target.value}{along}{fits}"
    )
    typer.echo(f"wrote     {target_path} ({target_path.stat().st_size / 1e6:.1f} MB)")
