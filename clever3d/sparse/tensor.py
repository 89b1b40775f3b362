"""The sparse tensor: features of the occupied voxels of one or several scans."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse.coords import SortedKeys, check
from clever3d.sparse.engines import engine_for
from clever3d.sparse.kernel_map import KernelMap, Triple, as_triple, coarsen


class Pyramid:
    """The voxels of one batch at every resolution, and the kernel maps between them.

    Everything here is independent of features, is made on first use, and is shared by all layers and all tensors of the
    batch. Resolutions are named by their stride; a coarser one does not depend on the way to it, because
    ``floor(floor(c / a) / b) == floor(c / (a * b))``.
    """

    def __init__(self, coords: Tensor, stride: Triple = (1, 1, 1)) -> None:
        self.finest = stride
        self.levels: dict[Triple, Tensor] = {stride: coords}  # [V, 4] int32
        self._keys: dict[Triple, SortedKeys] = {}
        self._maps: dict[tuple[Triple, Triple, Triple], KernelMap] = {}

    def coords(self, stride: Triple) -> Tensor:
        """int32 ``[V, 4]`` of the resolution ``stride``, a multiple of the finest one's."""
        if stride not in self.levels:
            if any(s % f or s < f for s, f in zip(stride, self.finest, strict=True)):
                raise InputError(f"there are no voxels of stride {stride} in a tensor of stride {self.finest}")
            self._sorted_keys(self.finest)  # checks the range before anything is derived
            divisors = [t for t in self.levels if all(s % u == 0 for s, u in zip(stride, t, strict=True))]
            source = max(divisors, key=lambda t: t[0] * t[1] * t[2])
            factor = (stride[0] // source[0], stride[1] // source[1], stride[2] // source[2])
            self.levels[stride] = coarsen(self.levels[source], factor)
        return self.levels[stride]

    def kernel_map(self, stride: Triple, kernel_size: Triple, step: Triple) -> KernelMap:
        """The map of a convolution that leads from ``stride`` to ``stride * step``."""
        found = self._maps.get((stride, kernel_size, step))
        return self._build(stride, kernel_size, step) if found is None else found

    def prepare(self, stride: Triple, kernel_size: Triple, step: Triple, feats: Tensor) -> None:
        """Makes a kernel map, with what the engine for ``feats`` needs of it in both directions."""
        kernel_map = self.kernel_map(stride, kernel_size, step)
        engine = engine_for(feats)
        engine.prepare(kernel_map)
        if not kernel_map.submanifold:
            engine.prepare(kernel_map.reversed)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _build(self, stride: Triple, kernel_size: Triple, step: Triple) -> KernelMap:
        coarse = (stride[0] * step[0], stride[1] * step[1], stride[2] * step[2])
        with torch.inference_mode(False):  # what is made in inference must also serve training
            made = self._make(stride, coarse, kernel_size, step)
        self._maps[stride, kernel_size, step] = made
        return made

    def _make(self, stride: Triple, coarse: Triple, kernel_size: Triple, step: Triple) -> KernelMap:
        return KernelMap(self.coords(stride), self.coords(coarse), kernel_size, step, self._sorted_keys(stride))

    def _sorted_keys(self, stride: Triple) -> SortedKeys:
        if stride not in self._keys:
            self._keys[stride] = SortedKeys(self.coords(stride), ascending=stride != self.finest)
        return self._keys[stride]


@dataclass(frozen=True)
class SparseTensor:
    """Features of occupied voxels. Immutable: layers return new tensors that share the pyramid.

    Attributes:
        feats: ``[V, C]``, float.
        coords: int32 ``[V, 4]`` rows ``(batch, x, y, z)``, each at most once, in units of this resolution's voxels.
        stride: edge of a voxel in voxels of the finest resolution, per axis.
        pyramid: all resolutions of the batch; made from ``coords`` when it is not given.

    Raises:
        InputError: shapes or devices that do not fit together.
    """

    feats: Tensor
    coords: Tensor
    stride: Triple = (1, 1, 1)
    pyramid: Pyramid = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] != 4 or self.coords.is_floating_point():
            raise InputError(
                "coords must be an integer [V, 4] tensor (batch, x, y, z), "
                f"got {self.coords.dtype} {list(self.coords.shape)}"
            )
        if self.feats.ndim != 2 or self.feats.shape[0] != self.coords.shape[0]:
            raise InputError(f"feats must be [V, C] with V = {len(self.coords)}, got {list(self.feats.shape)}")
        if self.feats.device != self.coords.device:
            raise InputError(
                f"feats are on {self.feats.device}, coords on {self.coords.device}: move one to the other's device"
            )
        if self.pyramid is None:
            if self.coords.dtype != torch.int32:
                check(self.coords)  # before a large number wraps round
                object.__setattr__(self, "coords", self.coords.int())
            object.__setattr__(self, "stride", as_triple(self.stride))
            object.__setattr__(self, "pyramid", Pyramid(self.coords, self.stride))
        elif self.pyramid.levels.get(self.stride) is not self.coords:
            raise InputError("coords are not those of the pyramid: leave the pyramid out for other voxels")

    def with_feats(self, feats: Tensor) -> SparseTensor:
        """The same voxels with other features."""
        return SparseTensor(feats, self.coords, self.stride, self.pyramid)

    def at(self, stride: Triple, feats: Tensor) -> SparseTensor:
        """Features at another resolution of the same scans."""
        return SparseTensor(feats, self.pyramid.coords(stride), stride, self.pyramid)

    def coarser(self, step: Triple) -> Triple:
        """The stride of the voxels ``floor(c / step)``."""
        return self.stride[0] * step[0], self.stride[1] * step[1], self.stride[2] * step[2]

    @property
    def num_scans(self) -> int:
        """Number of scans in the batch: the highest batch index plus one."""
        return int(self.coords[:, 0].max()) + 1 if len(self.coords) else 0

    def __len__(self) -> int:
        return len(self.coords)


def cat(tensors: list[SparseTensor]) -> SparseTensor:
    """Concatenates features of tensors that share their voxels (skip connections).

    Raises:
        InputError: the tensors do not share their voxels.
    """
    first = tensors[0]
    if any(t.pyramid is not first.pyramid or t.stride != first.stride for t in tensors):
        raise InputError("only tensors on the same voxels can be concatenated")
    return first.with_feats(torch.cat([t.feats for t in tensors], dim=1))
