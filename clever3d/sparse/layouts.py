"""Kernel layouts of other sparse-convolution libraries: where each stores the weights of which voxel offset.

All of them cross-correlate, ``out[o] = sum_k in[stride * o + offset_k] @ W_k``, and run the transposed convolution over
the same pairs swapped, with the kernel not flipped. Shapes and orders differ (k is the size, K = k^3 the volume)::

    clever3d     [K, Cin, Cout]        x fastest for odd K, z fastest for even K; an axis covers -k//2 + 1 .. k//2
    torchsparse  the same              torchsparse/nn/utils/kernel.py
    minkowski    [K, Cin, Cout]        x fastest; odd k covers -(k//2) .. k//2, even k covers 0 .. k - 1
                                       (kernel_region::coordinate_at in src/kernel_region.hpp, 0.4 and 0.5)
    spconv       [Cout, k, k, k, Cin]  last of the three axes fastest; axes in the order of the columns of its indices;
                                       -padding .. k - 1 - padding (observed with spconv 2.3.8, ``ConvAlgo.Native``)

Kernels of size 1 are ``[Cin, Cout]``, in MinkowskiEngine ``[1, Cin, Cout]`` where the stride is not 1. spconv gives
them the shape ``[Cout, 1, 1, 1, Cin]`` but, where the stride is 1, multiplies with that memory read as ``[Cin, Cout]``
(``conv1x1`` in its ``pytorch/conv.py``, in all of 2.x; its issue 450): they are reshaped, not transposed.

What a weight does not tell is assumed: cubic kernels, in spconv the padding ``(k - 1) // 2``, stride 1 where k is 1.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.sparse.kernel_map import Triple, kernel_offsets

LAYOUTS = ("clever3d", "torchsparse", "minkowski", "spconv")
#: Orders of spconv's three axes: those of its indices, (batch, z, y, x) or (batch, x, y, z).
AXES = ("zyx", "xyz")


def layout_offsets(layout: str, size: int, *, axes: str = "zyx") -> list[Triple]:
    """Voxel offsets ``(x, y, z)`` of the slices of a cubic kernel, in the order in which ``layout`` stores them.

    Args:
        layout: one of :data:`LAYOUTS`.
        size: edge of the kernel.
        axes: one of :data:`AXES`; matters for spconv only.

    Raises:
        InputError: no such layout or axes.
    """
    check_layout(layout, axes)
    if layout in ("clever3d", "torchsparse"):
        return kernel_offsets(size)
    first = 0 if layout == "minkowski" and size % 2 == 0 else -((size - 1) // 2)
    span = range(first, first + size)
    if layout == "spconv" and axes == "xyz":
        return [(x, y, z) for x, y, z in itertools.product(span, repeat=3)]
    return [(x, y, z) for z, y, x in itertools.product(span, repeat=3)]


def convert_kernel(kernel: Tensor, source: str, target: str, *, axes: str = "zyx") -> Tensor:
    """A convolution kernel of one layout in another one; no value changes, so the way back gives the same kernel.

    Args:
        kernel: in the shape of ``source`` (see the module's table).
        source: one of :data:`LAYOUTS`.
        target: one of :data:`LAYOUTS`.
        axes: one of :data:`AXES`, order of the axes of spconv's indices.

    Returns:
        The kernel in the shape of ``target``, contiguous.

    Raises:
        InputError: a shape that ``source`` does not have, a kernel that is not cubic, or offsets that kernels of this
            size do not reach in ``target`` (even sizes above 2).
    """
    for layout in (source, target):
        check_layout(layout, axes)
    slices = _to_slices(kernel, source)  # [K, Cin, Cout]
    if source == target:
        return kernel.contiguous()
    if target == "spconv" and kernel.ndim == 3 and len(kernel) == 1:
        raise InputError(
            f"shape {list(kernel.shape)} is a kernel of size 1 with a stride above 1, which spconv stores in another "
            "order than one with stride 1; only the latter can be converted"
        )
    size = _cube_root(len(slices))
    given, wanted = (layout_offsets(layout, size, axes=axes) for layout in (source, target))
    if set(given) != set(wanted):
        raise InputError(
            f"size {size} covers {min(given)[0]} .. {max(given)[0]} along an axis in {source}, "
            f"{min(wanted)[0]} .. {max(wanted)[0]} in {target}: no kernel there computes the same"
        )
    place = {offset: k for k, offset in enumerate(given)}
    order = torch.tensor([place[offset] for offset in wanted], device=kernel.device)
    return _from_slices(slices.index_select(0, order), size, target).contiguous()


def _to_slices(kernel: Tensor, layout: str) -> Tensor:
    """``[K, Cin, Cout]``, the slices in the order of ``layout``."""
    shape = list(kernel.shape)
    if layout == "spconv":
        if kernel.ndim != 5:
            raise InputError(f"shape {shape} is not spconv's [Cout, k, k, k, Cin]")
        if len(set(shape[1:4])) != 1:
            raise InputError(
                f"shape {shape} is not a cubic kernel [Cout, k, k, k, Cin] of spconv 2.x; other kernels cannot be "
                "converted (spconv 1.x has [k, k, k, Cin, Cout]: load it in spconv 2.x with "
                "SPCONV_SAVED_WEIGHT_LAYOUT=RSCK and save it again)"
            )
        if shape[1] == 1:
            return kernel.reshape(1, shape[4], shape[0])
        return kernel.permute(1, 2, 3, 4, 0).flatten(0, 2)
    if kernel.ndim == 2:
        return kernel.unsqueeze(0)
    if kernel.ndim != 3:
        raise InputError(f"shape {shape} is neither [K, Cin, Cout] nor [Cin, Cout], the shapes of {layout}")
    if len(kernel) == 1 and layout != "minkowski":
        raise InputError(f"shape {shape}: kernels of size 1 are [Cin, Cout] in {layout}; MinkowskiEngine has [1, ...]")
    if _cube_root(len(kernel)) == 0:
        raise InputError(
            f"shape {shape} has {len(kernel)} slices, which is no cube (1, 8, 27, 64, 125, ...): {layout} stores only "
            "the volume of a kernel, and other than cubic kernels cannot be converted"
        )
    return kernel


def _from_slices(slices: Tensor, size: int, layout: str) -> Tensor:
    """Inverse of `_to_slices`."""
    _, channels_in, channels_out = slices.shape
    if layout != "spconv":
        return slices[0] if size == 1 else slices
    if size == 1:
        return slices.reshape(channels_out, 1, 1, 1, channels_in)
    return slices.permute(2, 0, 1).reshape(channels_out, size, size, size, channels_in)


def _cube_root(volume: int) -> int:
    """The edge of a cubic kernel, 0 where there is none."""
    size = round(volume ** (1 / 3))
    return size if size**3 == volume else 0


def check_layout(layout: str, axes: str = "zyx") -> None:
    """InputError where there is no such layout, or no such order of axes."""
    if layout not in LAYOUTS:
        raise InputError(f"kernel layout {layout!r} is none of {', '.join(LAYOUTS)}")
    if axes not in AXES:
        raise InputError(f"axes {axes!r} of spconv's indices are none of {', '.join(AXES)}")
