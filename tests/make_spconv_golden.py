"""Writes tests/golden/spconv-2.3.8-onehot.npz: what the real spconv computes with each weight alone.

    python tests/make_spconv_golden.py        (spconv 2.3.8, the CPU wheel of PyPI; a few seconds)

All weights and features are small whole numbers, so that every sum is exact. Rows of indices are (batch, z, y, x).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

GOLDEN = Path(__file__).with_name("golden") / "spconv-2.3.8-onehot.npz"
EXTENT = (6, 8, 10)  # z, y, x: even, so that spconv's stride-2 grid drops no voxel, and different, to tell axes apart
CHANNELS_IN, CHANNELS_OUT = 2, 3


def one_hot_weights(size: int) -> Iterator[torch.Tensor]:
    """For each of the size^3 places (first axis slowest), a weight [Cout, k, k, k, Cin] of one 1: input 1, output 2."""
    for place in itertools.product(range(size), repeat=3):
        weight = torch.zeros(CHANNELS_OUT, size, size, size, CHANNELS_IN)
        weight[(2, *place, 1)] = 1
        yield weight


def compute() -> dict[str, NDArray[Any]]:
    """The arrays of the golden file, from the spconv that is installed. Its CPU code is wrong on several threads."""
    import spconv.pytorch as spconv

    generator = torch.Generator().manual_seed(0)

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-9, 10, shape, generator=generator).float()

    # spconv reads the memory of the indices as rows, also where the tensor is a transposed view, as nonzero's is
    indices = (torch.rand(2, *EXTENT, generator=generator) < 0.12).nonzero().int().contiguous()
    feats = whole(len(indices), CHANNELS_IN)
    fine = spconv.SparseConvTensor(feats, indices, list(EXTENT), 2)

    def layer(kind: Any, weight: torch.Tensor, bias: torch.Tensor | None = None, **options: Any) -> Any:
        size, channels_in, channels_out = weight.shape[1], weight.shape[4], weight.shape[0]
        built = kind(channels_in, channels_out, size, bias=bias is not None, **options)
        with torch.no_grad():
            built.weight.copy_(weight)
            if bias is not None:
                built.bias.copy_(bias)
        return built.train()  # the CPU code has no bias in eval mode

    def down(weight: torch.Tensor) -> Any:
        return layer(spconv.SparseConv3d, weight, stride=2, indice_key="down")(fine)

    with torch.no_grad():
        coarse = down(whole(CHANNELS_OUT, 2, 2, 2, CHANNELS_IN))
        coarse_feats = whole(len(coarse.indices), CHANNELS_IN)
        coarse = coarse.replace_feature(coarse_feats)

        def up(weight: torch.Tensor) -> torch.Tensor:
            restored = layer(spconv.SparseInverseConv3d, weight, indice_key="down")(coarse)
            assert torch.equal(restored.indices, indices)
            return restored.features

        def stack(outputs: Iterator[torch.Tensor]) -> torch.Tensor:
            return torch.stack(list(outputs))  # [K, V, Cout]

        arrays = {
            "indices": indices,
            "feats": feats,
            "coarse_indices": coarse.indices,
            "coarse_feats": coarse_feats,
            "subm3": stack(layer(spconv.SubMConv3d, w)(fine).features for w in one_hot_weights(3)),
            "down2": stack(down(w).features for w in one_hot_weights(2)),
            "up2": stack(up(w) for w in one_hot_weights(2)),
        }
        for name, size in (("subm1", 1), ("dense3", 3)):
            weight, bias = whole(CHANNELS_OUT, size, size, size, CHANNELS_IN), whole(CHANNELS_OUT)
            output = layer(spconv.SubMConv3d, weight, bias)(fine).features
            arrays |= {f"{name}_weight": weight, f"{name}_bias": bias, name: output}
    return {name: array.numpy().astype(np.int16) for name, array in arrays.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(GOLDEN, **compute())
