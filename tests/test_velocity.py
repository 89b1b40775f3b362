"""Velocities of tracked objects against differences worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from clever3d.datasets.velocity import LONGEST_GAP, Sighting, central_velocities

STILL = np.eye(4)


def at(x: float, y: float, z: float, seconds: float) -> Sighting:
    return np.array([x, y, z]), seconds


def test_a_velocity_is_the_way_between_the_two_sightings_over_the_time_between_them() -> None:
    before = {"a": at(10, 0, 1, 100.0), "b": at(5, 5, 5, 100.1)}
    after = {"b": at(5, 5, 5, 100.3), "a": at(12, -1, 1.5, 100.25)}
    found = central_velocities(["b", "a"], before, after, STILL)
    np.testing.assert_allclose(found, [[0, 0, 0], [8, -4, 2]], atol=1e-9)


def test_velocities_turn_into_the_points_axes_and_are_not_shifted() -> None:
    """The vehicle faces the world's y: its x is the world's y, its y the world's -x."""
    world_to_points = np.array([[0, 1, 0, 40], [-1, 0, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]], dtype=float)
    found = central_velocities(["a"], {"a": at(0, 0, 0, 0.0)}, {"a": at(0.6, 0.8, 0.1, 0.2)}, world_to_points)
    np.testing.assert_allclose(found, [[4, -3, 0.5]], atol=1e-9)


@pytest.mark.parametrize(("gap", "known"), [(0.125, True), (0.5, True), (0.5625, False), (10.0, False), (0.0, False)])
def test_sightings_more_than_half_a_second_apart_tell_nothing(gap: float, known: bool) -> None:
    assert LONGEST_GAP == 0.5
    found = central_velocities(["a"], {"a": at(0, 0, 0, 8.0)}, {"a": at(1, 0, 0, 8.0 + gap)}, STILL)
    if known:
        np.testing.assert_allclose(found, [[1 / gap, 0, 0]])
    else:
        assert np.isnan(found).all() and found.shape == (1, 3)


def test_an_object_seen_on_one_side_only_has_no_velocity() -> None:
    one, other = {"a": at(0, 0, 0, 0.0)}, {"b": at(1, 0, 0, 0.1)}
    assert np.isnan(central_velocities(["a", "b", "c"], one, other, STILL)).all()
    assert central_velocities([], one, other, STILL).shape == (0, 3)
