"""Distillation of a frozen 2D teacher into a LiDAR backbone."""
