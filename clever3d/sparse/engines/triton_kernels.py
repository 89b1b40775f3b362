"""Triton kernels of sparse convolution: a gathered matrix product, and its gradient with respect to the kernel.

Both walk over tiles: runs of output rows that are sorted so that neighbours in a tile are present under the same
offsets (``triton_engine.Tiling``). No atomics: each result is written by one program, so the same configuration gives
the same bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_out"])  # it changes with every scan: no new kernel for a multiple of 16
def gathered_product(
    feats, kernel, out, table, order, active, counts, scale, shift, residual,
    num_out, padded, channels_in, channels_out, volume,
    stride_k, stride_in, stride_out,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    MIRROR: tl.constexpr, AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    LIMIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``out[order[r]] = sum_k feats[table[k, r]] @ kernel[k]`` for the rows r of one tile and BLOCK_N output channels.

    ``active[tile]`` lists the ``counts[tile]`` offsets under which the tile has a voxel at all; the others are not
    visited. MIRROR reads the kernel slices in reverse order: with the strides of the transposed kernel that makes the
    input gradient of a symmetric map out of its forward table.
    """
    blocks = tl.cdiv(channels_out, BLOCK_N)
    tile = tl.program_id(0) // blocks
    columns = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    rows = tile * TILE + tl.arange(0, TILE)  # [M]
    in_columns = columns < channels_out
    steps = tl.cdiv(channels_in, BLOCK_K)
    total = tl.zeros((TILE, BLOCK_N), dtype=tl.float32)
    # One flat loop over (offset, slice of the input channels): only an innermost loop is software-pipelined.
    for step in range(0, tl.load(counts + tile) * steps):
        offset = tl.load(active + tile * volume + step // steps)
        inner = (step % steps) * BLOCK_K + tl.arange(0, BLOCK_K)  # [K]
        source = tl.load(table + offset.to(tl.int64) * padded + rows)  # [M]
        gathered = tl.load(
            feats + source.to(tl.int64)[:, None] * channels_in + inner[None, :],
            mask=(source >= 0)[:, None] & (inner < channels_in)[None, :],
            other=0.0,
        )
        if MIRROR:
            offset = volume - 1 - offset
        weight = tl.load(
            kernel + offset * stride_k + inner[:, None] * stride_in + columns[None, :] * stride_out,
            mask=(inner < channels_in)[:, None] & in_columns[None, :],
            other=0.0,
        )
        if UPCAST:
            total += tl.dot(gathered.to(tl.float32), weight.to(tl.float32), input_precision=PRECISION)
        else:
            total = tl.dot(gathered, weight, total, input_precision=PRECISION)
    live = rows < num_out
    place = tl.load(order + rows, mask=live, other=0).to(tl.int64)[:, None] * channels_out + columns[None, :]
    whole = live[:, None] & in_columns[None, :]
    if AFFINE:
        total = total * tl.load(scale + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
        total = total + tl.load(shift + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total = total + tl.load(residual + place, mask=whole, other=0.0).to(tl.float32)
    if RELU:  # not tl.maximum: NaN must stay NaN
        total = tl.where(total < 0.0, 0.0, total)
    if LIMIT > 0.0:
        total = tl.where(total > LIMIT, LIMIT, total)
        total = tl.where(total < -LIMIT, -LIMIT, total)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=whole)


@triton.jit(do_not_specialize=["num_tiles"])
def kernel_gradient(
    feats, grad, out, table, order, tiles, counts,
    num_tiles, padded, channels_in, channels_out, volume,
    TILE: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """``out[split, k] = sum over the rows r of every SPLITS-th tile:  feats[table[k, r]]^T @ grad[order[r]]``.

    ``tiles[k]`` lists the ``counts[k]`` tiles that have a voxel under offset k. The partial sums of the splits are
    added outside, in a fixed order.
    """
    blocks_in = tl.cdiv(channels_in, BLOCK_I)
    blocks_out = tl.cdiv(channels_out, BLOCK_O)
    program = tl.program_id(0)
    offset = program // (blocks_in * blocks_out)
    rest = program % (blocks_in * blocks_out)
    split = tl.program_id(1)
    inputs = (rest // blocks_out) * BLOCK_I + tl.arange(0, BLOCK_I)  # [I]
    outputs = (rest % blocks_out) * BLOCK_O + tl.arange(0, BLOCK_O)  # [O]
    total = tl.zeros((BLOCK_I, BLOCK_O), dtype=tl.float32)
    for n in range(split, tl.load(counts + offset), SPLITS):
        rows = tl.load(tiles + offset * num_tiles + n) * TILE + tl.arange(0, TILE)  # [M]
        source = tl.load(table + offset.to(tl.int64) * padded + rows)
        target = tl.load(order + rows)
        present = source >= 0
        block_in = tl.load(
            feats + source.to(tl.int64)[:, None] * channels_in + inputs[None, :],
            mask=present[:, None] & (inputs < channels_in)[None, :],
            other=0.0,
        )
        block_out = tl.load(
            grad + target.to(tl.int64)[:, None] * channels_out + outputs[None, :],
            mask=present[:, None] & (outputs < channels_out)[None, :],
            other=0.0,
        )
        if UPCAST:
            block_in = block_in.to(tl.float32)
            block_out = block_out.to(tl.float32)
        total = tl.dot(tl.trans(block_in), block_out, total, input_precision=PRECISION)
    slice_start = (split * volume + offset).to(tl.int64) * channels_in * channels_out
    tl.store(
        out + slice_start + inputs[:, None] * channels_out + outputs[None, :],
        total,
        mask=(inputs < channels_in)[:, None] & (outputs < channels_out)[None, :],
    )
