"""Sparse voxel tensors and their convolutions, in pure PyTorch, on any device."""

from clever3d.sparse.functional import convolve, pool
from clever3d.sparse.kernel_map import KernelMap, build_kernel_map, downsample_coords, kernel_offsets
from clever3d.sparse.modules import Conv3d, ConvTranspose3d, Pool3d
from clever3d.sparse.tensor import SparseTensor, cat

__all__ = [
    "Conv3d",
    "ConvTranspose3d",
    "KernelMap",
    "Pool3d",
    "SparseTensor",
    "build_kernel_map",
    "cat",
    "convolve",
    "downsample_coords",
    "kernel_offsets",
    "pool",
]
