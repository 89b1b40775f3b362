"""What a benchmark found, for people: a table, a plot, and where it was measured."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clever3d._version import __version__
from clever3d.errors import MissingExtraError
from clever3d.evaluate.speed.bench import BARE, LIMIT, TRAINING, Bench, Measurement
from clever3d.io import atomic_path
from clever3d.sparse import engine_name

#: Series that every plot has, with colour and line style; peers take the colours that follow.
_STYLES = {
    "maps": ("#0f766e", "-"),
    "forward": ("#1d4ed8", "-"),
    TRAINING: ("#7c3aed", "-"),
    BARE: ("#6b7280", "--"),
    LIMIT: ("#111827", ":"),
}
_PEER_COLORS = ("#ea580c", "#be123c", "#a16207", "#c026d3")


def environment(device: torch.device) -> dict[str, Any]:
    """Where and with what something is measured, for the record; to be called before it is.

    ``load`` is the number of threads that were running here in the last minute. Where they leave no processor for each
    thread of ours, times mean little: threads wait for each other at every step.
    """
    return {
        "date": date.today().isoformat(),
        "clever3d": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def busy(where: dict[str, Any]) -> str | None:
    """A warning where others were computing when an :func:`environment` was noted."""
    load, processors = where["load"] or 0.0, where["processors"] or 1
    if load + where["threads"] <= processors + 0.5:
        return None
    return f"{load:.1f} of {processors} processors were busy in the last minute: if they still are, times are too long"


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"{found[1].strip() if found else platform.processor() or 'CPU'} ({platform.machine()})"


def record(bench: Bench, found: Sequence[Measurement]) -> dict[str, Any]:
    """What was measured, as plain values for JSON."""
    runner = bench.runner
    spec, device = runner.backbone.input_spec, runner.device
    return {
        "backbone": runner.backbone.architecture,
        "dtype": runner.name,
        "engine": engine_name(torch.empty(0, len(spec.channels), device=device)),
        "limits": {"matmul FLOP/s": bench.limits.matmul, "copy bytes/s": bench.limits.copy},
        "slopes": slopes(found),
        "measurements": [asdict(one) for one in found],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def slope(voxels: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent of the power law ``seconds = c * voxels ** slope`` that fits best (least squares of the logarithms).

    1 is linear. NaN where there are fewer than two sizes.
    """
    if len(set(voxels)) < 2:
        return math.nan
    x, y = np.log(np.asarray(voxels, float)), np.log(np.asarray(seconds, float))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def slopes(found: Sequence[Measurement]) -> dict[str, float]:
    """The slope of each time against voxels, where it was measured at two sizes or more."""
    fitted = {name: slope(*points) for name, points in _series(found, lambda m: m.seconds).items()}
    return {name: value for name, value in fitted.items() if not math.isnan(value)}


def _series(
    found: Sequence[Measurement], values: Callable[[Measurement], dict[str, float]]
) -> dict[str, tuple[list[float], list[float]]]:
    """For each name the voxels and the values, ascending."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for one in sorted(found, key=lambda m: m.voxels):
        for name, value in values(one).items():
            xs, ys = series.setdefault(name, ([], []))
            xs.append(one.voxels)
            ys.append(value)
    return series


def table(found: Sequence[Measurement]) -> str:
    """One line a size, times in milliseconds, then peers and what was skipped."""
    columns: dict[str, Callable[[Measurement], float | None]] = {
        "GFLOP": lambda m: m.flops / 1e9,
        "maps": lambda m: 1e3 * m.seconds["maps"],
        "forward": lambda m: 1e3 * m.seconds["forward"],
        "fwd+bwd": lambda m: _scaled(m.seconds.get(TRAINING), 1e3),
        "bare": lambda m: 1e3 * m.seconds[BARE],
        "limit": lambda m: 1e3 * m.seconds[LIMIT],
        "maps/total": lambda m: m.ratios["maps / total"],
        "total/bare": lambda m: m.ratios[f"total / {BARE}"],
        "total/limit": lambda m: m.ratios[f"total / {LIMIT}"],
        "MB": lambda m: _scaled(m.memory.get("forward"), 1e-6),
        "MB fwd+bwd": lambda m: _scaled(m.memory.get(TRAINING), 1e-6),
        "first": lambda m: 1e3 * m.first_call["forward"],
    }
    lines = ["   voxels scans turns " + " ".join(f"{name:>{max(9, len(name))}}" for name in columns)]
    for one in found:
        start = f"{one.voxels:9,} {one.batch:5} {one.rounds:5} "
        if one.seconds:
            start += " ".join(f"{_short(value(one)):>{max(9, len(name))}}" for name, value in columns.items())
        lines.append(start.rstrip())
        lines += _peer_lines(one)
        lines += [f"          not measured: {what}: {why}" for what, why in one.skipped.items()]
    fitted = ", ".join(f"{name} {value:.2f}" for name, value in slopes(found).items() if name != LIMIT)
    if fitted:
        lines.append(f"slope of log seconds over log voxels (1 is linear): {fitted}")
    return "\n".join(lines)


def _peer_lines(one: Measurement) -> list[str]:
    lines = []
    for peer, gap in one.differences.items():
        if peer not in one.seconds:
            continue
        text = f"{peer} {1e3 * one.seconds[peer]:,.0f} ms, ours / it {one.ratios[f'total / {peer}']:.2f}"
        if (both := f"{TRAINING} / {peer}") in one.ratios:
            text += f"; {TRAINING} {1e3 * one.seconds[f'{peer}, {TRAINING}']:,.0f} ms, ours / it {one.ratios[both]:.2f}"
        lines.append(f"          {text} (features differ by {gap['mean']:.1e}, at most {gap['largest']:.1e})")
    return lines


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def check_plot() -> None:
    """MissingExtraError where no plot can be drawn."""
    try:
        import matplotlib.backends.backend_agg  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('plots need matplotlib: pip install "clever3d[view]"') from error


def save_plot(path: str | Path, found: Sequence[Measurement], title: str) -> None:
    """Writes a PNG (2000 x 900): seconds over voxels, log-log, and beside it the ratios.

    Raises:
        MissingExtraError: matplotlib is not installed; DataError: the file cannot be written.
    """
    check_plot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(15.4, 6.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    costs, ratios = figure.subplots(1, 2, width_ratios=(1.15, 1))
    figure.suptitle(title, fontsize=15, fontweight="bold")
    peers = list(dict.fromkeys(peer for one in found for peer in one.differences))
    colors = dict(zip(peers, _PEER_COLORS * len(peers), strict=False))
    _draw_costs(costs, found, colors)
    _draw_ratios(ratios, found, colors)
    for axes in (costs, ratios):
        axes.set_xscale("log")
        axes.set_xlabel("voxels")
        axes.grid(True, which="major", color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(sorted({one.voxels for one in found if one.seconds}))
        axes.xaxis.set_major_formatter(lambda x, _: _voxels(x))
        axes.xaxis.set_minor_locator(NullLocator())
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png", facecolor="white")


def _draw_costs(axes: Any, found: Sequence[Measurement], colors: dict[str, str]) -> None:
    series = _series(found, lambda m: m.seconds)
    series.pop("total", None)
    series = dict(sorted(series.items(), key=lambda item: -item[1][1][-1]))  # the legend in the order of the lines
    for name, (voxels, seconds) in series.items():
        peer = name.removesuffix(f", {TRAINING}")
        if name not in _STYLES and peer not in colors:
            continue  # ours once more, with a peer's threads
        color, line = _STYLES.get(name, (colors.get(peer, ""), "--" if peer != name else "-"))
        steepness = slope(voxels, seconds)
        label = name if math.isnan(steepness) else f"{name}  (slope {steepness:.2f})"
        axes.plot(voxels, seconds, line, marker="o", markersize=4.5, color=color, linewidth=2, label=label)
    if "forward" in series and len(series["forward"][0]) > 1:
        voxels, seconds = series["forward"]
        ends = [voxels[0], voxels[-1]]
        guide = [0.3 * seconds[0] * x / voxels[0] for x in ends]
        axes.plot(ends, guide, "-.", color="#9ca3af", linewidth=1.2, label="slope 1, to compare with")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.set_ylabel("seconds")
    axes.set_title("Cost", loc="left", fontsize=12)
    axes.legend(frameon=False, fontsize=9.5)


def _draw_ratios(axes: Any, found: Sequence[Measurement], colors: dict[str, str]) -> None:
    series = _series(found, lambda m: m.ratios)
    shown = {f"total / {BARE}": ("#6b7280", "--"), f"total / {LIMIT}": ("#111827", ":")}
    shown |= {f"total / {peer}": (color, "-") for peer, color in colors.items()}
    shown |= {f"{TRAINING} / {peer}": (color, "--") for peer, color in colors.items()}
    for name, (color, line) in shown.items():
        if name in series:
            voxels, values = series[name]
            label = name.replace("total /", "maps + forward /")
            axes.plot(voxels, values, line, marker="o", markersize=4.5, color=color, linewidth=2, label=label)
    axes.axhline(1, color="#9ca3af", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ours / other, lower is better")
    axes.set_title("Ratio to the limit and to others", loc="left", fontsize=12)
    axes.legend(frameon=False, fontsize=9.5)


def _voxels(number: float) -> str:
    """30000 -> 30k."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
