"""``clever3d demo``: a synthetic street, the bundled student, a picture. No network, no data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from clever3d.cli.extract import (
    DEFAULT_BACKBONE,
    check_picture,
    compute_features,
    load,
    say_progress,
    write_features,
    write_picture,
)
from clever3d.errors import DataError


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("clever3d-demo"),
    seed: Annotated[int, typer.Option("--seed", help="Which street: another seed, another street.")] = 0,
    backbone: Annotated[
        str, typer.Option("--backbone", "-b", help="Name (see clever3d list) or path of a checkpoint.")
    ] = DEFAULT_BACKBONE,
) -> None:
    """Make a synthetic street scan, compute its features with the bundled student and draw them."""
    with _folder(output):
        _run(output, seed, backbone)


def _run(folder: Path, seed: int, backbone: str) -> None:
    import numpy as np

    from clever3d.datasets.synthetic import street_scan
    from clever3d.io import atomic_path

    scan_file, features_file, picture = folder / "scan.bin", folder / "features.npz", folder / "features.png"
    check_picture(picture)
    say_progress(f"loading {backbone}")
    network = load(backbone)
    say_progress("making a street")
    scan = street_scan(seed=seed)
    say_progress(f"extracting the features of {len(scan.xyz):,} points")
    found = compute_features(network, scan.xyz, scan.intensity)
    write_picture(picture, found, scan.xyz, f"clever3d demo: a synthetic street, features of {Path(backbone).name}")
    meta = {"scan": scan_file.name, "source": f"synthetic street, seed {seed}", "backbone": backbone}
    write_features(features_file, found, scan.xyz, scan.intensity, network, meta)
    with atomic_path(scan_file) as draft:
        np.column_stack([scan.xyz, scan.intensity]).astype("<f4").tofile(draft)
    typer.echo(
        f"Made a synthetic street scan of {len(scan.xyz):,} points and, with {backbone}, "
        f"{network.feature_dim} features for each of them."
    )
    typer.echo(f"The features took {found.speed}.")
    typer.echo(f"Look at {picture}: coloured by the features, beside colouring by height.")
    typer.echo(f"Next: clever3d extract YOUR_SCAN.bin -o features.npz --picture features.png (try {scan_file})")


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """The folder exists inside the block; one that was made for it and stays empty goes when the block fails."""
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be made a folder: {error.strerror or error}") from error
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # not empty: what is in it is whole
                path.rmdir()
        raise
