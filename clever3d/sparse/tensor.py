"""The sparse tensor: features of the occupied voxels of one or several scans."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse.coords import SortedKeys
from clever3d.sparse.kernel_map import KernelMap, Triple, as_triple, build_kernel_map, downsample_coords


class Geometry:
    """Everything about the voxels of one resolution that does not depend on features; shared by all layers there.

    Sorted keys, kernel maps and the next coarser resolution are made on first use and kept. A coarser geometry holds
    its finer one, not the other way round, so that a batch is freed by reference counting as soon as it is dropped.
    """

    def __init__(self, coords: Tensor, finer: Geometry | None = None, stride: Triple = (1, 1, 1)) -> None:
        self.coords = coords  # [V, 4] int32
        self.finer = finer
        self.stride_to_finer = stride
        self._keys: SortedKeys | None = None
        self._maps: dict[tuple[Triple, Triple], KernelMap] = {}
        self._coarser: WeakValueDictionary[Triple, Geometry] = WeakValueDictionary()

    @property
    def keys(self) -> SortedKeys:
        if self._keys is None:
            self._keys = SortedKeys(self.coords)
        return self._keys

    def coarser(self, stride: Triple) -> Geometry:
        """The geometry of ``floor(c / stride)``; the same object for every layer that asks."""
        if stride == (1, 1, 1):
            return self
        coarser = self._coarser.get(stride)
        if coarser is None:
            coarser = Geometry(downsample_coords(self.coords, stride), finer=self, stride=stride)
            self._coarser[stride] = coarser
        return coarser

    def kernel_map(self, kernel_size: Triple, stride: Triple) -> KernelMap:
        """The map of a convolution from here to ``coarser(stride)``."""
        if (kernel_size, stride) not in self._maps:
            target = self.coarser(stride)
            self._maps[kernel_size, stride] = build_kernel_map(
                self.keys, self.coords, target.coords, kernel_size, stride
            )
        return self._maps[kernel_size, stride]


@dataclass(frozen=True)
class SparseTensor:
    """Features of occupied voxels. Immutable: layers return new tensors that share the geometry.

    Attributes:
        feats: ``[V, C]``, float.
        coords: int32 ``[V, 4]`` rows ``(batch, x, y, z)``, each at most once, in units of this resolution's voxels.
        stride: edge of a voxel in voxels of the finest resolution, per axis.
    """

    feats: Tensor
    coords: Tensor
    stride: Triple = (1, 1, 1)
    geometry: Geometry = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] != 4 or self.coords.is_floating_point():
            raise InputError(
                "coords must be an integer [V, 4] tensor (batch, x, y, z), "
                f"got {self.coords.dtype} {list(self.coords.shape)}"
            )
        if self.feats.ndim != 2 or len(self.feats) != len(self.coords):
            raise InputError(f"feats must be [V, C] with V = {len(self.coords)}, got {list(self.feats.shape)}")
        if self.geometry is None:
            object.__setattr__(self, "coords", self.coords.int())
            object.__setattr__(self, "geometry", Geometry(self.coords))

    def with_feats(self, feats: Tensor) -> SparseTensor:
        """The same voxels with other features."""
        return SparseTensor(feats, self.coords, self.stride, self.geometry)

    def at(self, geometry: Geometry, feats: Tensor, stride: Triple) -> SparseTensor:
        """Features at another resolution of the same scans."""
        return SparseTensor(feats, geometry.coords, stride, geometry)

    @property
    def num_scans(self) -> int:
        """Number of scans in the batch: the highest batch index plus one."""
        return int(self.coords[:, 0].max()) + 1 if len(self.coords) else 0

    def __len__(self) -> int:
        return len(self.coords)

    def scale_stride(self, factor: int | Triple) -> Triple:
        """This tensor's stride times ``factor``."""
        factor = as_triple(factor)
        return self.stride[0] * factor[0], self.stride[1] * factor[1], self.stride[2] * factor[2]


def cat(tensors: list[SparseTensor]) -> SparseTensor:
    """Concatenates features of tensors that share their voxels (skip connections).

    Raises:
        InputError: the tensors do not share one geometry.
    """
    first = tensors[0]
    if any(t.geometry is not first.geometry for t in tensors):
        raise InputError("only tensors on the same voxels can be concatenated")
    return first.with_feats(torch.cat([t.feats for t in tensors], dim=1))
