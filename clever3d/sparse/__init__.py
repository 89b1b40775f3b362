"""Sparse voxel tensors and their convolutions, on any device, by one of several engines."""

from clever3d.sparse.engines import available_engines, deterministic, engine_name, use_deterministic, use_engine
from clever3d.sparse.engines.epilogue import Epilogue
from clever3d.sparse.functional import convolve, pool
from clever3d.sparse.kernel_map import KernelMap, downsample_coords, kernel_offsets
from clever3d.sparse.modules import Conv3d, ConvTranspose3d, Pool3d
from clever3d.sparse.tensor import Pyramid, SparseTensor, cat

__all__ = [
    "Conv3d",
    "ConvTranspose3d",
    "Epilogue",
    "KernelMap",
    "Pool3d",
    "Pyramid",
    "SparseTensor",
    "available_engines",
    "cat",
    "convolve",
    "deterministic",
    "downsample_coords",
    "engine_name",
    "kernel_offsets",
    "pool",
    "use_deterministic",
    "use_engine",
]
