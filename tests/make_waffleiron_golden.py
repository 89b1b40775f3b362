"""Makes ``golden/waffleiron-0.3.1.npz``: features by the authors' own WaffleIron, a tiny one with random weights.

    PYTHONPATH=WaffleIron python tests/make_waffleiron_golden.py    # github.com/valeoai/WaffleIron, v0.3.1
    PYTHONPATH=ScaLR python tests/make_waffleiron_golden.py         # github.com/valeoai/ScaLR, branch scalr_plus

The first gives the two forms with ReLU, the second the one with GELU; a run leaves the other's arrays as they are. The
tests do without their code: weights come from a seed, here and in ``test_waffleiron.py``, and so do the tokens. Cells
and neighbours are found here in NumPy, by the definitions in their ``datasets/pc_dataset.py``. Scans are given one by
one: the padding of a shorter scan in a batch takes part in the first cell's mean in the GELU form.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

GOLDEN = Path(__file__).with_name("golden") / "waffleiron-0.3.1.npz"
WIDTH, DEPTH, GRIDS, NEIGHBORS = 16, 6, ((8, 8), (8, 4), (8, 4)), 16
LOW, HIGH = (-8.0, -8.0, -2.0), (8.0, 8.0, 2.0)
COUNTS = (60, 25)  # tokens of the two scans
FORMS = {"batch_relu": "batch", "layer_relu": "layer", "layer_gelu": "layer"}

Array = NDArray[Any]


def shapes(norm: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of their Segmenter's state dict without its head, written down from its structure."""
    found: dict[str, tuple[int, ...]] = {}

    def add_norm(name: str, width: int, statistics: bool) -> None:
        for leaf in ("weight", "bias", *(("running_mean", "running_var") if statistics else ())):
            found[f"{name}.{leaf}"] = (width,)
        if statistics:
            found[f"{name}.num_batches_tracked"] = ()

    add_norm("embed.norm", 5, True)
    found |= {"embed.conv1.weight": (WIDTH, 5, 1), "embed.conv1.bias": (WIDTH,)}
    add_norm("embed.conv2.0", 5, True)
    found["embed.conv2.1.weight"] = (WIDTH, 5, 1, 1)
    add_norm("embed.conv2.2", WIDTH, True)
    found["embed.conv2.4.weight"] = (WIDTH, WIDTH, 1, 1)
    found |= {"embed.final.weight": (WIDTH, 2 * WIDTH, 1), "embed.final.bias": (WIDTH,)}
    kinds = {"channel_mix": ("mlp", (WIDTH, WIDTH, 1)), "spatial_mix": ("ffn", (WIDTH, 1, 3, 3))}
    for mix, (part, kernel) in kinds.items():
        for n in range(DEPTH):
            prefix = f"waffleiron.{mix}.{n}"
            add_norm(f"{prefix}.norm", WIDTH, norm == "batch")
            for layer in (0, 2):
                found |= {f"{prefix}.{part}.{layer}.weight": kernel, f"{prefix}.{part}.{layer}.bias": (WIDTH,)}
            found[f"{prefix}.scale.weight"] = (WIDTH, 1, 1)
    return found


def weights(norm: str) -> dict[str, torch.Tensor]:
    """A state dict in which no value is what a new network has; float64, from a seed."""
    rng = np.random.default_rng(7)
    state = {}
    for name, shape in shapes(norm).items():
        values = rng.uniform(-0.5, 0.5, shape)
        if name.endswith("num_batches_tracked"):
            values = np.array(3)
        elif name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            values = values + 1.0
        elif name.endswith("running_mean"):
            values = values / 5
        state[name] = torch.from_numpy(np.asarray(values))
    return state


def tokens() -> list[Array]:
    """For each scan ``[V, 5]`` float32: intensity, x, y, z, radius."""
    rng = np.random.default_rng(8)
    scans = []
    for count in COUNTS:
        xyz = rng.uniform(LOW, HIGH, (count, 3)).astype(np.float32)
        radius = np.linalg.norm(xyz, axis=1, keepdims=True)
        scans.append(np.concatenate([rng.uniform(-1, 1, (count, 1)), xyz, radius], axis=1).astype(np.float32))
    return scans


def theirs() -> dict[str, Array]:
    """What their network, that of the installed branch, makes of the tokens: form -> ``[sum V, C]`` float32."""
    from waffleiron import Segmenter

    plus = "gelu" in inspect.signature(Segmenter).parameters
    found = {}
    for form, norm in FORMS.items():
        if plus != form.endswith("gelu"):
            continue
        options: dict[str, Any] = (
            {"gelu": True} if plus else {"which_norm": f"{norm}norm", "layer_norm": norm == "layer"}
        )
        network = Segmenter(5, WIDTH, 2, DEPTH, GRIDS, **options).double().eval()
        state = weights(norm) | {k: v for k, v in network.state_dict().items() if k.startswith("classif.")}
        network.load_state_dict(state, strict=True)
        rows = []
        for scan in tokens():
            feats, cells, neighbors, occupied = _as_they_take_it(scan)
            with torch.no_grad():
                rows.append(network.waffleiron(network.embed(feats, neighbors), cells, occupied)[0].T)  # [V, C]
        found[form] = torch.cat(rows).numpy().astype(np.float32)
    return found


def _as_they_take_it(scan: Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``[1, 5, V]`` channels, ``[1, 3, V]`` cells, ``[1, K + 1, V]`` neighbours, ``[1, V]`` ones."""
    xyz, low, high = scan[:, 1:4].astype(np.float64), np.array(LOW), np.array(HIGH)
    cells = []
    for axes, grid in zip(([0, 1], [0, 2], [1, 2]), GRIDS, strict=True):
        place = ((xyz[:, axes] - low[axes]) / ((high - low)[axes] / np.array(grid))).astype(int)
        cells.append(place[:, 0] * grid[1] + place[:, 1])
    distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=2)
    neighbors = np.argsort(distance, axis=1)[:, : NEIGHBORS + 1].T  # the token itself comes first
    arrays = (scan.T.astype(np.float64), np.stack(cells), neighbors, np.ones(len(scan)))
    feats, cell, neighbor, occupied = (torch.from_numpy(array.copy()).unsqueeze(0) for array in arrays)
    return feats, cell, neighbor, occupied


if __name__ == "__main__":
    try:
        made = theirs()
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: put a checkout of theirs on PYTHONPATH, as the first lines of this file say")
    kept = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **(kept | made))
