"""Measures of frozen features: linear probes and segmentation scores."""
