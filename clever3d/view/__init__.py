"""Pictures of scans; needs the extra ``clever3d[view]``."""

from clever3d.view.pictures import height_colors, save_feature_picture

__all__ = ["height_colors", "save_feature_picture"]
