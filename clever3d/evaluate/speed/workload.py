"""What a benchmark computes: clouds of an exact number of voxels, and the arithmetic of a network on them."""

from __future__ import annotations

import functools
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from clever3d.backbones import Backbone
from clever3d.datasets.synthetic import street_scan
from clever3d.errors import InputError
from clever3d.io import read_points, to_flu
from clever3d.points import InputSpec, check_points, voxelize
from clever3d.points.checks import CheckedPoints
from clever3d.sparse import Conv3d, ConvTranspose3d, KernelMap, Pyramid, SparseTensor, use_engine
from clever3d.sparse.coords import pack
from clever3d.sparse.kernel_map import Triple

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Streets that differ; beyond them they repeat, for each takes two seconds to make (our choice).
STREETS = 8
_GAP = 16  # voxels between blocks: a multiple of the coarsest stride, so that down-sampling meets all blocks alike
_CPU = torch.device("cpu")


@functools.lru_cache(maxsize=STREETS)
def street(number: int) -> NDArray[np.float32]:
    """x, y, z, intensity of a synthetic street, about 117,000 points: ``[N, 4]``."""
    scan = street_scan(seed=number % STREETS)
    return np.column_stack([scan.xyz, scan.intensity]).astype(np.float32)


def read_scan(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """A scan file as points in the sensor frame, x forward, y left, z up: ``[N, 3]``, or ``[N, 4]`` with intensity."""
    cloud = read_points(path)
    xyz = to_flu(cloud.xyz, cloud.frame)
    points = xyz if cloud.intensity is None else np.column_stack([xyz, cloud.intensity])
    return points.astype(np.float32)


def parse_voxels(texts: Sequence[str]) -> list[int]:
    """Numbers of voxels, ascending, from texts such as ``30000``, ``30k``, ``1M`` or ``10k,30k``.

    Raises:
        InputError: what is no positive whole number.
    """
    units = {"": 1, "k": 1_000, "m": 1_000_000}
    found = set()
    for text in ",".join(texts).split(","):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
        number = float(match[1]) * units[match[2].lower()] if match else 0.0
        if number < 1 or number != int(number):
            raise InputError(f"voxels {text.strip()!r} is no positive whole number: give such as 30000, 30k or 1M")
        found.add(int(number))
    return sorted(found)


def voxelize_scans(scans: Sequence[NDArray[Any]], spec: InputSpec) -> SparseTensor:
    """A batch of scans as they are, each ``[N, 3]`` or ``[N, 4]`` with intensity; on the CPU.

    Raises:
        InputError: a scan without a valid point.
    """
    return voxelize([_checked(points, spec) for points in scans], spec).tensor


def make_cloud(
    voxels: int, spec: InputSpec, *, batch: int = 1, scan: Callable[[int], NDArray[Any]] = street
) -> SparseTensor:
    """A batch of scans with exactly so many voxels each; deterministic, on the CPU.

    Fewer voxels than a scan has are those of a sector, from straight ahead turning left: a narrower field of view and
    not a thinner scan, because that changes the neighbours of a voxel (from 6.5 to 3 at 10,000 voxels) and with them
    the arithmetic per voxel. More voxels are several scans side by side, each moved by a whole block.

    Args:
        voxels: of each scan in the batch.
        scan: the points ``[N, 3 or 4]`` of the n-th scan; the default are streets, of which eight differ.

    Raises:
        InputError: no voxels, no batch, or more blocks than coordinates reach.
    """
    if voxels < 1 or batch < 1:
        raise InputError(f"{voxels} voxels in a batch of {batch}: both must be 1 or more")
    parts, used = [], 0
    for entry in range(batch):
        blocks, fewest = 0, voxels
        while blocks * fewest < voxels or not blocks:
            fewest = min(fewest, len(voxelize_scans([scan(used + blocks)], spec)))
            blocks += 1
        parts += [
            _moved(_sector(scan(used + n), spec, (voxels + n) // blocks), spec, entry, n, blocks) for n in range(blocks)
        ]
        used += blocks
    feats, coords = (torch.cat(list(column)) for column in zip(*parts, strict=True))
    order = torch.argsort(pack(coords))  # as `voxelize` leaves them
    return SparseTensor(feats[order], coords[order])


def _checked(points: NDArray[Any], spec: InputSpec) -> CheckedPoints:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how many points are out of range is no matter here
        checked = check_points(points, None, spec, _CPU)
    if not bool(checked.valid.any()):
        raise InputError(
            f"none of {len(points)} points is valid: is the scan in metres, with the sensor at the origin?"
        )
    return checked


def _sector(points: NDArray[Any], spec: InputSpec, voxels: int) -> SparseTensor:
    """The points in the order of their azimuth, until they make so many voxels."""
    checked = _checked(points, spec)
    whole = voxelize([checked], spec)
    valid = checked.valid.nonzero().squeeze(1)
    azimuth = torch.atan2(checked.xyz[valid, 1], checked.xyz[valid, 0]) % (2 * math.pi)
    order = valid[torch.argsort(azimuth, stable=True)]  # [M]
    first = torch.full((len(whole.tensor),), len(order)).scatter_reduce(  # [V]: place of each voxel's first point
        0, whole.point_to_voxel[0][order], torch.arange(len(order)), "amin"
    )
    kept = order[: int(first.sort().values[voxels - 1]) + 1]
    intensity = None if checked.intensity is None else checked.intensity[kept]
    return voxelize([CheckedPoints(checked.xyz[kept], intensity, checked.valid[kept])], spec).tensor


def _moved(part: SparseTensor, spec: InputSpec, entry: int, number: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Features and coordinates of a part in its place: blocks stand in a square."""
    side = math.ceil(math.sqrt(blocks))
    low, high = spec.point_range[:2], spec.point_range[3:5]
    x, y = ((math.ceil((b - a) / spec.voxel_size) // _GAP + 2) * _GAP for a, b in zip(low, high, strict=True))
    return part.feats, part.coords + torch.tensor([entry, number // side * x, number % side * y, 0]).int()


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network, on whatever cloud.

    Attributes:
        name: of the module.
        fine: stride of the finer of the two resolutions it connects.
        kernel_size, step: of the convolution that leads from fine to coarse.
        transposed: it leads from coarse to fine.
        channels_in, channels_out: Cin, Cout.
    """

    name: str
    fine: Triple
    kernel_size: Triple
    step: Triple
    transposed: bool
    channels_in: int
    channels_out: int

    @property
    def pointwise(self) -> bool:
        """It needs no kernel map."""
        return self.kernel_size == self.step == (1, 1, 1)

    def kernel_map(self, pyramid: Pyramid) -> KernelMap:
        """The map it works on, from the voxels it reads to those it writes."""
        forward = pyramid.kernel_map(self.fine, self.kernel_size, self.step)
        return forward.reversed if self.transposed else forward


@dataclass(frozen=True)
class Layer:
    """A convolution on one cloud: ``pairs`` has the number of (input, output) voxels of each kernel offset."""

    convolution: Convolution
    num_in: int
    num_out: int
    pairs: tuple[int, ...]

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each pair, input channel and output channel."""
        return 2 * sum(self.pairs) * self.convolution.channels_in * self.convolution.channels_out

    def traffic(self, itemsize: int) -> int:
        """Bytes that must move: features read once, results written once, kernel and map read once.

        The least map is an int32 a pair, the input's row: the output's follows from the order. Values have ``itemsize``
        bytes.
        """
        channels_in, channels_out = self.convolution.channels_in, self.convolution.channels_out
        values = self.num_in * channels_in + self.num_out * channels_out + len(self.pairs) * channels_in * channels_out
        return itemsize * values + (0 if self.convolution.pointwise else 4 * sum(self.pairs))


def convolutions_of(backbone: Backbone) -> list[Convolution]:
    """The convolutions of a forward pass in their order, observed on a cloud of eight voxels."""
    found: list[Convolution] = []

    def watch(name: str, module: nn.Module) -> Any:
        def note(module: Conv3d | ConvTranspose3d, inputs: tuple[Any, ...], output: SparseTensor) -> None:
            transposed = isinstance(module, ConvTranspose3d)
            fine = output.stride if transposed else inputs[0].stride
            found.append(
                Convolution(
                    name, fine, module.kernel_size, module.stride, transposed, module.in_channels, module.out_channels
                )
            )

        return module.register_forward_hook(note)

    watched = [watch(n, m) for n, m in backbone.named_modules() if isinstance(m, (Conv3d, ConvTranspose3d))]
    was_training = backbone.training
    try:
        with torch.no_grad(), use_engine("torch"):
            coords = torch.tensor(
                [[0, x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], device=backbone.device
            )
            dtype = next(backbone.parameters()).dtype
            feats = torch.zeros(8, len(backbone.input_spec.channels), device=backbone.device, dtype=dtype)
            backbone.eval()(SparseTensor(feats, coords))
    finally:
        backbone.train(was_training)
        for handle in watched:
            handle.remove()
    return found


def layers_on(convolutions: Sequence[Convolution], cloud: SparseTensor) -> list[Layer]:
    """The same convolutions on a cloud; makes the kernel maps of its pyramid."""
    counted: dict[tuple[Triple, Triple, Triple], tuple[int, ...]] = {}
    layers = []
    for convolution in convolutions:
        if convolution.pointwise:
            count = len(cloud.pyramid.coords(convolution.fine))
            layers.append(Layer(convolution, count, count, (count,)))
            continue
        kernel_map = convolution.kernel_map(cloud.pyramid)
        key = convolution.fine, convolution.kernel_size, convolution.step
        if key not in counted:
            counted[key] = _pairs(kernel_map)
        layers.append(Layer(convolution, kernel_map.num_in, kernel_map.num_out, counted[key]))
    return layers


def _pairs(kernel_map: KernelMap) -> tuple[int, ...]:
    """Pairs of each offset; on a GPU from the table, which its engines need anyway."""
    sizes = (kernel_map.table >= 0).sum(1) if kernel_map.in_coords.is_cuda else kernel_map.sizes
    return tuple(sizes.tolist())
