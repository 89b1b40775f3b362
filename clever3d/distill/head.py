"""The projection head between student and teacher space."""

from __future__ import annotations

from torch import nn


def projection_head(in_dim: int, out_dim: int, *, layers: int = 3, hidden: int = 2048) -> nn.Sequential:
    """A multi-layer perceptron ``Linear (GELU Linear)*``, thrown away after distillation.

    Three layers are CleverDistiller's (reported by a secondary source); width, GELU and the absence of normalisation
    are our choice. ``layers=1`` is the linear head of ScaLR.

    Args:
        in_dim: width of the student's features.
        out_dim: width of the teacher's features.
        layers: number of linear layers.
    """
    widths = [in_dim, *[hidden] * (layers - 1), out_dim]
    modules: list[nn.Module] = []
    for n in range(layers):
        if n:
            modules.append(nn.GELU())
        modules.append(nn.Linear(widths[n], widths[n + 1]))
    return nn.Sequential(*modules)
