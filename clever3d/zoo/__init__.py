"""The shop window: names -> verified weights -> a ready module, and the way back to the Hub.

Looking things up (``list_backbones``, ``backbone_info``) costs no torch import; everything else does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clever3d.zoo.records import BackboneInfo
from clever3d.zoo.registry import backbone_info, list_backbones

if TYPE_CHECKING:
    from clever3d.zoo.checkpoint import save_checkpoint
    from clever3d.zoo.loading import load_backbone
    from clever3d.zoo.publish import Published, push_to_hub, save_pretrained

_HOMES = {
    "Published": "clever3d.zoo.publish",
    "load_backbone": "clever3d.zoo.loading",
    "push_to_hub": "clever3d.zoo.publish",
    "save_checkpoint": "clever3d.zoo.checkpoint",
    "save_pretrained": "clever3d.zoo.publish",
}

__all__ = [
    "BackboneInfo",
    "Published",
    "backbone_info",
    "list_backbones",
    "load_backbone",
    "push_to_hub",
    "save_checkpoint",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clever3d.zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
