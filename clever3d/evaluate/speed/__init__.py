"""How fast a backbone is, beside what the device could do at best and beside others: what ``clever3d bench`` runs."""

from clever3d.evaluate.speed.bench import BARE, LIMIT, TRAINING, Bench, Measurement, Peer, Runner, calibrate, difference
from clever3d.evaluate.speed.limits import PRECISIONS, Limits, measure_limits, precision, threads, timed
from clever3d.evaluate.speed.report import check_plot, device_name, environment, save_plot, slope, slopes, table
from clever3d.evaluate.speed.workload import Convolution, Layer, convolutions_of, layers_on, make_cloud, voxelize_scans

__all__ = [
    "BARE",
    "LIMIT",
    "PRECISIONS",
    "TRAINING",
    "Bench",
    "Convolution",
    "Layer",
    "Limits",
    "Measurement",
    "Peer",
    "Runner",
    "calibrate",
    "check_plot",
    "convolutions_of",
    "device_name",
    "difference",
    "environment",
    "layers_on",
    "make_cloud",
    "measure_limits",
    "precision",
    "save_plot",
    "slope",
    "slopes",
    "table",
    "threads",
    "timed",
    "voxelize_scans",
]
