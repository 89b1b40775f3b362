"""Checks of the calibration between LiDAR and cameras."""

from clever3d.evaluate.calibration.check import CameraResult, Report, check_rig
from clever3d.evaluate.calibration.verdict import Finding

__all__ = ["CameraResult", "Finding", "Report", "check_rig"]
