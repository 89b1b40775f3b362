"""``clever3d extract``: features for one scan file."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clever3d._version import __version__
from clever3d.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clever3d.backbones import Backbone
    from clever3d.io import PointCloud

DEFAULT_BACKBONE = "minkunet-dinov2-s"


class Device(str, Enum):
    """Where the network runs; auto is the GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one scan, with what the work took."""

    features: NDArray[np.floating[Any]]  # [N, D]
    valid: NDArray[np.bool_]  # [N]
    seconds: float
    device: str

    @property
    def speed(self) -> str:
        """Points per second and the time, for people."""
        milliseconds = 1000 * self.seconds
        return f"{milliseconds:,.0f} ms on {self.device} ({len(self.valid) / self.seconds:,.0f} points/s)"


def extract(
    scan: Annotated[Path, typer.Argument(help="Scan to read: .bin (KITTI, nuScenes), .npy or .pcd.", metavar="SCAN")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", show_default="SCAN.features.npz, here", help="The .npz file to write."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also write this PNG, coloured by the features.")
    ] = None,
    backbone: Annotated[
        str, typer.Option("--backbone", "-b", help="Name (see clever3d list) or path of a checkpoint.")
    ] = DEFAULT_BACKBONE,
    frame: Annotated[
        str | None,
        typer.Option(
            "--frame",
            metavar="XYZ",
            show_default="rfu for nuScenes, else flu",
            help="Where the file's x, y, z point: three letters of f(orward), b(ack), l(eft), r(ight), u(p), d(own).",
        ),
    ] = None,
    columns: Annotated[
        int | None,
        typer.Option("--columns", show_default="found from the values", help="Number of columns of a .bin file."),
    ] = None,
    intensity_scale: Annotated[
        float | None,
        typer.Option("--intensity-scale", show_default="1 or 255, by the maximum", help="Full scale of the intensity."),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where the network runs.")] = Device.auto,
    half: Annotated[bool, typer.Option("--half", help="Store the features as float16 instead of float32.")] = False,
) -> None:
    """Compute a feature for every point of a scan and write them to an .npz file.

    It holds one row per point of the scan, in the scan's order: features
    (N x D), valid (N), xyz (N x 3, metres, x forward, y left, z up), intensity
    (N, in 0..1, if the scan has one); and meta, a JSON text.
    """
    from clever3d.io import check_output

    output = check_output(output or Path(f"{_stem(scan)}.features.npz"), (".npz",))
    if picture is not None:
        check_picture(picture)
    cloud = _read(scan, frame, columns, intensity_scale)
    say_progress(f"loading {backbone}")
    network = load(backbone, device)
    say_progress(f"extracting the features of {len(cloud.xyz):,} points")
    found = compute_features(network, cloud.xyz, cloud.intensity)
    meta = {"scan": scan.name, "source": cloud.source, "backbone": backbone}
    write_features(output, found, cloud.xyz, cloud.intensity, network, meta, half=half)
    typer.echo(f"backbone  {backbone}{_resolved(network, backbone)}: {network.feature_dim} features per point")
    typer.echo(f"extract   {int(found.valid.sum()):,} of {len(cloud.xyz):,} points valid, {found.speed}")
    typer.echo(f"wrote     {output} ({output.stat().st_size / 1e6:.1f} MB)")
    if picture is not None:
        write_picture(picture, found, cloud.xyz, f"{scan.name}: features of {Path(backbone).name}")
        typer.echo(f"picture   {picture}")


def _read(scan: Path, frame: str | None, columns: int | None, intensity_scale: float | None) -> PointCloud:
    """The scan in the sensor frame; says how its file was understood."""
    from clever3d.io import PointCloud, read_points, to_flu

    cloud = read_points(scan, columns=columns, intensity_scale=intensity_scale)
    used = (frame or cloud.frame).lower()
    xyz = to_flu(cloud.xyz, used)  # [N, 3]
    if used == "flu":
        axes = "taken as x forward, y left, z up" + (" as asked" if frame else " (--frame if they are not)")
    else:
        reason = "as asked" if frame else "the axes of this format"
        axes = f"turned from {used} ({reason}; --frame changes it) to x forward, y left, z up"
    source = f"{cloud.source}, {axes}"
    typer.echo(f"scan      {scan.name}: {len(xyz):,} points, {source}")
    return PointCloud(xyz, cloud.intensity, source)


def load(backbone: str, device: Device = Device.auto) -> Backbone:
    """The backbone with its weights, on the device."""
    with interrupt_later():
        import torch

        from clever3d.zoo import load_backbone

    if device is Device.cuda and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; leave --device out to use the CPU")
    chosen = "cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu"
    return load_backbone(backbone, device=chosen)


def compute_features(network: Backbone, xyz: NDArray[np.float32], intensity: NDArray[np.float32] | None) -> Features:
    """Features of points [N, 3] in the sensor frame, timed from arrays to arrays; InputError when no point has any."""
    start = time.perf_counter()
    result = network.extract(xyz, intensity)
    features, valid = result.features.cpu().numpy(), result.valid.cpu().numpy()  # [N, D], [N]
    seconds = time.perf_counter() - start
    if not valid.any():
        bounds = network.input_spec.point_range
        raise InputError(
            f"none of the {len(xyz):,} points is finite and in range, {bounds[:3]} to {bounds[3:]} m: "
            "are they in metres, with the sensor at the origin?"
        )
    return Features(features, valid, seconds, result.features.device.type)


def write_features(
    path: Path,
    found: Features,
    xyz: NDArray[np.float32],
    intensity: NDArray[np.float32] | None,
    network: Backbone,
    meta: dict[str, Any],
    *,
    half: bool = False,
) -> None:
    """Write the .npz that ``clever3d extract`` documents; ``meta`` is completed with what is known of the network."""
    import numpy as np

    from clever3d.io import save_npz

    features = found.features
    if half:
        largest = float(np.abs(features).max())
        if largest > np.finfo(np.float16).max:
            raise InputError(f"the features reach {largest:g}, too large for float16; leave --half out")
        features = features.astype(np.float16)
    weights = {key: (network.pretrained_cfg or {}).get(key) for key in ("name", "sha256", "weights_licence")}
    full = {
        "format": "clever3d.features.v1",
        "clever3d": __version__,
        **meta,
        "weights": weights if network.pretrained_cfg else None,
        "architecture": network.architecture,
        "config": asdict(network.config),
        "input_spec": network.input_spec.to_dict(),
    }
    arrays: dict[str, NDArray[Any]] = {"features": features, "valid": found.valid, "xyz": xyz}
    if intensity is not None:
        arrays["intensity"] = intensity
    save_npz(path, {**arrays, "meta": np.array(json.dumps(full))})


def check_picture(path: Path) -> None:
    """Make sure before the work that the picture can be drawn and written."""
    from clever3d.io import check_output

    check_output(path, (".png",))
    try:
        with interrupt_later():
            import matplotlib.backends.backend_agg  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('pictures need matplotlib: pip install "clever3d[view]"') from error


def write_picture(path: Path, found: Features, xyz: NDArray[np.float32], title: str) -> None:
    """Draw the points coloured by the principal components of their features."""
    from clever3d.features import pca_colors
    from clever3d.io import atomic_path
    from clever3d.view import save_feature_picture

    say_progress("drawing")
    colors = pca_colors(found.features, found.valid, xyz=xyz)  # [N, 3]
    with atomic_path(path) as draft:
        save_feature_picture(draft, xyz, colors, title=title, valid=found.valid)


@contextlib.contextmanager
def interrupt_later() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends: one that meets C++ while it is imported aborts the process."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # no KeyboardInterrupt comes here
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def say_progress(what: str) -> None:
    """A line that keeps a waiting person informed; programs and files do not get it."""
    if sys.stderr.isatty():
        typer.secho(f"... {what}", err=True, dim=True)


def _stem(scan: Path) -> str:
    """The scan's name without its suffix; nuScenes writes two (.pcd.bin)."""
    return scan.stem.removesuffix(".pcd")


def _resolved(network: Backbone, name: str) -> str:
    full = (network.pretrained_cfg or {}).get("name")
    return f" ({full})" if full and full != name else ""
