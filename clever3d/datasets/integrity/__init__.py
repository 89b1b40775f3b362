"""The integrity of a data set: every file read, every fault named, whatever the data set."""

from clever3d.datasets.integrity.findings import KINDS, Finding, Report
from clever3d.datasets.integrity.frames import Checked, check_frame
from clever3d.datasets.integrity.state import State
from clever3d.datasets.integrity.walk import check_dataset, cores

__all__ = ["KINDS", "Checked", "Finding", "Report", "State", "check_dataset", "check_frame", "cores"]
