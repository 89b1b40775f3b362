"""Block sizes of the Triton kernels: a rule, and measured ones that are kept on disk.

The rule needs no measurement and gives the same configuration everywhere. With ``CLEVER3D_TUNE=1`` (or ``clever3d bench
--tune``) the first call of a shape class times the candidates, and the best one is stored in a file per GPU and Triton
version, from which later processes read it. Other blocks mean another order of summation, so the last bits may differ
between a tuned and an untuned machine; in deterministic mode only the rule is used.

All figures here are our choice and not yet tuned on a GPU.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch

from clever3d._cache import cache_folder

log = logging.getLogger("clever3d")

_TUNE = "CLEVER3D_TUNE"


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled and tuned for."""

    kind: str
    dtype: torch.dtype
    channels_in: int
    channels_out: int
    volume: int
    tile: int
    rows: int

    @property
    def key(self) -> str:
        """Shape class: rows count by their power of two."""
        dtype = str(self.dtype).removeprefix("torch.")
        if self.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
            dtype = "tf32"
        rows = f"2^{self.rows.bit_length()}"
        return f"{self.kind} {dtype} {self.channels_in}x{self.channels_out} k{self.volume} t{self.tile} {rows}"


@dataclass(frozen=True)
class ProductConfig:
    """Blocks of ``gathered_product``: output channels, input channels; warps and pipeline stages."""

    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class GradientConfig:
    """Blocks of ``kernel_gradient``: input and output channels; how many programs share the tiles of an offset."""

    block_i: int
    block_o: int
    splits: int
    warps: int
    stages: int


Config = TypeVar("Config", bound=ProductConfig | GradientConfig)


def tile_size(rows: int) -> int:
    """Rows of a tile: 128 where that leaves two tiles for each of about 132 multiprocessors, else fewer."""
    if rows >= 2 * 132 * 128:
        return 128
    return 64 if rows >= 2 * 132 * 64 else 32


def product_rule(shape: Shape) -> ProductConfig:
    """Widest output block that wastes few columns, and input blocks of 64 (half precision) or 32."""
    block_n = min((128, 64, 32, 16), key=lambda n: -(-shape.channels_out // n) * n * (1 + 16 / n))
    block_k = min(_power_of_two(shape.channels_in), 32 if shape.dtype == torch.float32 else 64)
    return ProductConfig(block_n, block_k, warps=8 if shape.tile * block_n >= 128 * 128 else 4, stages=3)


def gradient_rule(shape: Shape) -> GradientConfig:
    """Blocks of at most 64 x 64, and enough splits for about four programs a multiprocessor."""
    block_i = min(_power_of_two(shape.channels_in), 64)
    block_o = min(_power_of_two(shape.channels_out), 64)
    programs = shape.volume * -(-shape.channels_in // block_i) * -(-shape.channels_out // block_o)
    tiles = -(-shape.rows // shape.tile)
    return GradientConfig(block_i, block_o, splits=max(1, min(4 * 132 // programs, tiles)), warps=4, stages=3)


def product_config(shape: Shape, launch: Callable[[ProductConfig], None]) -> ProductConfig:
    """The configuration for a shape: tuned where that is wanted or known, else the rule's."""
    candidates = (
        ProductConfig(n, k, warps, stages)
        for n, k, warps, stages in itertools.product((32, 64, 128), (32, 64), (4, 8), (2, 3, 4))
        if n < 2 * _power_of_two(shape.channels_out) and k < 2 * _power_of_two(shape.channels_in)
    )
    return _choose(shape, product_rule(shape), candidates, launch)


def gradient_config(shape: Shape, launch: Callable[[GradientConfig], None]) -> GradientConfig:
    """The configuration for a shape: tuned where that is wanted or known, else the rule's."""
    rule = gradient_rule(shape)
    candidates = (
        GradientConfig(i, o, splits, warps, stages)
        for i, o, splits, warps, stages in itertools.product(
            (32, 64), (32, 64, 128), {rule.splits, 4 * rule.splits}, (4, 8), (2, 3)
        )
        if i < 2 * _power_of_two(shape.channels_in) and o < 2 * _power_of_two(shape.channels_out)
    )
    return _choose(shape, rule, candidates, launch)


def _power_of_two(channels: int) -> int:
    """The smallest power of two that holds ``channels``; at least 16, the least that tensor cores multiply."""
    return max(16, 1 << (channels - 1).bit_length())


_known: dict[str, ProductConfig | GradientConfig] = {}
_loaded_from: Path | None = None


def _choose(shape: Shape, rule: Config, candidates: Iterable[Config], launch: Callable[[Config], None]) -> Config:
    from clever3d.sparse.engines import deterministic

    if deterministic() or not torch.cuda.is_available():
        return rule
    _load_known()
    kind = type(rule)
    known = _known.get(shape.key)
    if isinstance(known, kind):
        return known
    if os.environ.get(_TUNE, "0") != "1" or torch.cuda.is_current_stream_capturing():
        return rule
    best = fastest([rule, *candidates], launch)
    _known[shape.key] = best
    _store_known()
    return best


def fastest(candidates: list[Config], launch: Callable[[Config], None]) -> Config:
    """The candidate that runs in the least time; those that the GPU cannot hold are passed over."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times: dict[Config, float] = {}
    for config in dict.fromkeys(candidates):
        try:
            times[config] = do_bench(functools.partial(launch, config), warmup=5, rep=20)
        except OutOfResources:
            continue
    return min(times, key=times.__getitem__)


def cache_file() -> Path:
    """Where tuned configurations of this GPU are kept: ``CLEVER3D_CACHE``, else the user's cache folder."""
    import triton

    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()) if torch.cuda.is_available() else "none"
    return cache_folder() / f"triton-{triton.__version__}-{gpu}.json"


def _load_known() -> None:
    """Reads the file once; one that cannot be read is as none, for it can be measured again."""
    global _loaded_from
    path = cache_file()
    if path == _loaded_from:
        return
    _loaded_from = path
    _known.clear()
    try:
        for key, fields in json.loads(path.read_text()).items():
            _known[key] = (ProductConfig if key.startswith("product") else GradientConfig)(**fields)
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _known.clear()
        log.warning("%s cannot be read (%s); kernels are tuned anew or run by the rule", path, error)


def _store_known() -> None:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False)  # noqa: SIM115 (renamed below)
        with draft:
            json.dump({key: asdict(config) for key, config in sorted(_known.items())}, draft, indent=1)
        Path(draft.name).replace(path)
    except OSError as error:
        log.warning("tuned kernels could not be kept in %s: %s", path, error)
