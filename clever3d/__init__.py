"""clever3d: pretrained LiDAR backbones distilled from 2D foundation models, and features for any point cloud.

The public names are imported on first use, so that ``import clever3d`` stays fast and light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clever3d._version import __version__
from clever3d.errors import Clever3dError

if TYPE_CHECKING:
    from clever3d.backbones import Backbone, InputSpec, PointFeatures
    from clever3d.features import pca_colors
    from clever3d.io import read_points
    from clever3d.zoo import backbone_info, list_backbones, load_backbone

_HOMES = {
    "load_backbone": "clever3d.zoo",
    "list_backbones": "clever3d.zoo",
    "backbone_info": "clever3d.zoo",
    "Backbone": "clever3d.backbones",
    "InputSpec": "clever3d.backbones",
    "PointFeatures": "clever3d.backbones",
    "pca_colors": "clever3d.features",
    "read_points": "clever3d.io",
}

__all__ = [
    "Backbone",
    "Clever3dError",
    "InputSpec",
    "PointFeatures",
    "__version__",
    "backbone_info",
    "list_backbones",
    "load_backbone",
    "pca_colors",
    "read_points",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clever3d' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
