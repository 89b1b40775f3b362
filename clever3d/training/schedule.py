"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup: int, peak: float, final: float) -> float:
    """Linear warm-up to ``peak`` over ``warmup`` steps, then a half cosine down to ``final`` at the last step.

    Args:
        step: 0-based step about to be made.
        steps: number of steps of the whole run.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))
