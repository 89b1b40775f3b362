"""What is made of per-point features: so far, colours."""

from clever3d.features.pca import PCABasis, fit_pca, pca_colors

__all__ = ["PCABasis", "fit_pca", "pca_colors"]
