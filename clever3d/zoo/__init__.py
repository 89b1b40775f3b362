"""The shop window: names -> verified weights -> a ready module.

Looking things up (``list_backbones``, ``backbone_info``) costs no torch import; ``load_backbone`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clever3d.zoo.manifest import BackboneInfo
from clever3d.zoo.registry import backbone_info, list_backbones

if TYPE_CHECKING:
    from clever3d.zoo.checkpoint import save_checkpoint
    from clever3d.zoo.loading import load_backbone

__all__ = ["BackboneInfo", "backbone_info", "list_backbones", "load_backbone", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "load_backbone":
        from clever3d.zoo.loading import load_backbone

        return load_backbone
    if name == "save_checkpoint":
        from clever3d.zoo.checkpoint import save_checkpoint

        return save_checkpoint
    raise AttributeError(f"module 'clever3d.zoo' has no attribute {name!r}")
