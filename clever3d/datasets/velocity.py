"""Velocities of annotated objects from where they are before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from clever3d.datasets.geometry import Matrix

#: Of one object: its centre [3] in axes that stay fixed for the scene (metres), and when (seconds).
Sighting: TypeAlias = "tuple[Matrix, float]"

#: Sightings further apart say little about the velocity in between (seconds; our choice: five sweeps of a 10 Hz LiDAR).
LONGEST_GAP = 0.5


def central_velocities(
    track_ids: Sequence[str], before: Mapping[str, Sighting], after: Mapping[str, Sighting], world_to_points: Matrix
) -> Matrix:
    """Velocities over ground [B, 3] (m/s), in the points' axes, by the central difference of two sightings.

    before, after: by track id, the nearest sightings on both sides. An object that lacks one of them, or whose two
    are more than LONGEST_GAP apart, has NaN: one-sided differences would be half an interval late or early.
    world_to_points [4, 4]: only its rotation is used.
    """
    velocities = np.full((len(track_ids), 3), np.nan)
    for row, track in enumerate(track_ids):
        if track in before and track in after:
            (earlier, start), (later, end) = before[track], after[track]
            if 0 < end - start <= LONGEST_GAP:
                velocities[row] = (later - earlier) / (end - start)
    rotated: Matrix = velocities @ world_to_points[:3, :3].T
    return rotated
