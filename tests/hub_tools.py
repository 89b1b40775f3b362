"""What the tests of loading from the Hub and of publishing on it share; the fixtures are in conftest.py."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import torch

from clever3d.backbones import Backbone

TOKEN = "hf_good"
POINTS = np.random.default_rng(0).uniform(-5, 5, (500, 3)).astype(np.float32)


def same(one: Backbone, other: Backbone) -> bool:
    return torch.equal(one.extract(POINTS).features, other.extract(POINTS).features)


def in_another_process(code: str, environment: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stderr=subprocess.PIPE, **options)
