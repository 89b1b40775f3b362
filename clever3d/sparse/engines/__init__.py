"""The engines below ``convolve``: who computes a sparse convolution, and how one is chosen.

======================  ==============================================================================
``torch``               a loop of matrix products over the kernel offsets; any device; the reference
``triton``              our own kernels; default on CUDA; float32 (or TF32), float16, bfloat16
``torchsparse``         the library of that name, on CUDA, where it is installed and asked for
======================  ==============================================================================

All of them read the same kernels and give the same features within rounding (``docs/engine.md`` has the differences).
"""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType, TracebackType

import torch
from torch import Tensor

from clever3d.errors import InputError, UnknownNameError

ENGINES = ("torch", "triton", "torchsparse")

log = logging.getLogger("clever3d")
_said: set[str] = set()
_modules: dict[str, ModuleType] = {}
_deterministic: bool | None = None
_asked: str | None = os.environ.get("CLEVER3D_ENGINE") or None


class use_engine:
    """Chooses the engine of all convolutions from here on, or inside a ``with`` block.

    The choice holds for the whole process, all threads included. Without one the environment variable
    ``CLEVER3D_ENGINE`` decides, and without that the device: ``triton`` on CUDA, ``torch`` elsewhere.

    Args:
        name: ``"torch"``, ``"triton"``, ``"torchsparse"``, or None for the default of the device, whatever
            ``CLEVER3D_ENGINE`` says.

    Raises:
        UnknownNameError: there is no such engine. Whether it can be used here is checked by the first convolution.
    """

    def __init__(self, name: str | None) -> None:
        global _asked
        if name is not None:
            _known(name)
        self._before, _asked = _asked, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _asked
        _asked = self._before


class use_deterministic:
    """Whether results must be the same, bit for bit, on every machine with the same kind of GPU.

    No engine of ours uses atomics where two sums meet, so a process always repeats itself; what may differ between
    machines is the blocks for which kernels were tuned. In deterministic mode they come from a fixed rule.

    Args:
        mode: True, False, or None to follow ``torch.use_deterministic_algorithms``, as without this call.
    """

    def __init__(self, mode: bool | None) -> None:
        global _deterministic
        self._before, _deterministic = _deterministic, mode

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _deterministic
        _deterministic = self._before


def deterministic() -> bool:
    """Whether deterministic mode is on."""
    return torch.are_deterministic_algorithms_enabled() if _deterministic is None else _deterministic


def engine_for(feats: Tensor) -> ModuleType:
    """The module whose ``convolve`` works on these features.

    Raises:
        UnknownNameError: ``CLEVER3D_ENGINE`` names no engine; InputError: the engine that was asked for cannot be used.
    """
    if _asked is None:
        return _load("triton" if _triton_by_default(feats) else "torch")
    engine = _load(_asked)
    reason: str | None = engine.unusable(feats)
    if reason is not None:
        raise InputError(f"the engine {_asked!r} was asked for, but {reason}")
    return engine


def engine_name(feats: Tensor) -> str:
    """Name of the engine that convolves these features."""
    module = engine_for(feats)
    return next(name for name in ENGINES if _modules.get(name) is module)


def available_engines(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """Each engine with None where it can be used on this device and dtype, else with the reason why not."""
    try:
        feats = torch.empty(0, 1, device=device, dtype=dtype)
    except (RuntimeError, AssertionError) as error:
        return dict.fromkeys(ENGINES, f"there is no device {device} here ({str(error).splitlines()[0]})")
    return {name: _load(name).unusable(feats) for name in ENGINES}


def _triton_by_default(feats: Tensor) -> bool:
    if not feats.is_cuda or feats.dtype == torch.float64:
        return False
    reason: str | None = _load("triton").unusable(feats)
    if reason is not None and reason not in _said:
        _said.add(reason)
        log.warning("sparse convolutions run on the slower engine 'torch': %s", reason)
    return reason is None


def _known(name: str) -> None:
    if name not in ENGINES:
        raise UnknownNameError(f"there is no engine {name!r}: choose {', '.join(ENGINES)}")


def _load(name: str) -> ModuleType:
    if name not in _modules:
        _known(name)
        _modules[name] = importlib.import_module(f"clever3d.sparse.engines.{name}_engine")
    return _modules[name]
