"""Targets made of teacher features, their statistics and the loss, against numpy and closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clever3d.distill.targets import TargetStats, TargetTransform, cosine, similarity_loss

KINDS: tuple[TargetTransform, ...] = ("center", "none", "standardize")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_sets() -> tuple[Tensor, Tensor]:
    """Features [500, 5] with uneven channels, and the data set of each: 400 of set 0, 100 of set 2, none of set 1."""
    sets = torch.tensor([0, 0, 0, 0, 2]).repeat(100)
    offsets = torch.tensor([[9.0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, -7.0, 3.0, 0, 0]])
    return random(500, 5) * torch.tensor([1.0, 2.0, 0.5, 4.0, 1.0]) + offsets[sets], sets


def statistics(clusters: int = 4) -> TargetStats:
    return TargetStats.from_features(*two_sets(), num_sets=3, clusters=clusters, seed=0)


def separated(counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Unit-length blobs around the axes, mixed, and the axis of each row."""
    axis = torch.cat([torch.full((count,), n) for n, count in enumerate(counts)])
    axis = axis[torch.randperm(len(axis), generator=torch.Generator().manual_seed(1))]
    return torch.eye(6)[axis] + 0.03 * random(len(axis), 6), axis


# ---- statistics


def test_the_mean_is_that_of_each_set_and_of_all_where_a_set_has_none() -> None:
    features, sets = (t.numpy() for t in two_sets())
    expected = [features[sets == 0].mean(0), features.mean(0), features[sets == 2].mean(0)]
    np.testing.assert_allclose(statistics().mean, np.stack(expected), atol=1e-5)


def test_spread_length_and_direction_are_those_of_the_centred_features() -> None:
    features, sets = (t.double().numpy() for t in two_sets())
    centred = np.concatenate([features[sets == s] - features[sets == s].mean(0) for s in (0, 2)])
    lengths = np.linalg.norm(centred, axis=1)
    stats = statistics()
    np.testing.assert_allclose(stats.std, np.sqrt((centred**2).mean(0)), rtol=1e-4)
    assert float(stats.length) == pytest.approx(lengths.mean(), rel=1e-5)
    np.testing.assert_allclose(stats.direction, (centred / lengths[:, None]).mean(0), atol=1e-5)


def test_a_channel_that_never_changes_does_not_divide_by_zero() -> None:
    features = random(50, 3)
    features[:, 1] = 4.0
    stats = TargetStats.from_features(features, torch.zeros(50, dtype=torch.long), num_sets=1, clusters=2, seed=0)
    assert stats.transform(features, 0, "standardize").isfinite().all()


# ---- transforms


def test_centring_takes_each_set_s_mean_away() -> None:
    features, sets = two_sets()
    stats = statistics()
    for number in (0, 2):
        targets = stats.transform(features[sets == number], number, "center")
        expected = features[sets == number] - features[sets == number].mean(0)
        torch.testing.assert_close(targets, expected, atol=1e-5, rtol=1e-5)
        assert targets.mean(0).abs().max() < 1e-5


def test_the_plain_form_leaves_features_as_they_are() -> None:
    features, _ = two_sets()
    assert torch.equal(statistics().transform(features, 0, "none"), features)


def test_standardised_targets_have_mean_zero_and_spread_one() -> None:
    features, _ = two_sets()
    stats = TargetStats.from_features(features, torch.zeros(500, dtype=torch.long), num_sets=1, clusters=2, seed=0)
    targets = stats.transform(features, 0, "standardize").double().numpy()
    np.testing.assert_allclose(targets.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(targets.std(0), 1, rtol=1e-4)


def test_the_gain_scales_a_prediction_s_length_and_the_mean_cosine_is_the_best_one() -> None:
    """Of all gains g, |t - g * length * p|^2 is least at g = mean(t . p) / length: the mean cosine if lengths agree."""
    stats = statistics()
    truth = 2.0 * torch.nn.functional.normalize(random(500, 5), dim=1)
    stats = dataclasses.replace(stats, length=torch.tensor(2.0))
    predicted = truth + 2.0 * random(500, 5, seed=3)
    gain = float(cosine(predicted, truth))

    def error(gain: float) -> float:
        restored = stats.restore(predicted, 0, "center", gain)
        return float((restored - stats.mean[0] - truth).square().sum())

    assert error(gain) < min(error(gain - 0.05), error(gain + 0.05), error(1.0))
    deviation = stats.restore(predicted, 0, "center", gain) - stats.mean[0]
    torch.testing.assert_close(deviation.norm(dim=1), torch.full((500,), 2.0 * gain), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_of_any_length_is_restored_to_its_feature_s_direction(kind: TargetTransform) -> None:
    features, _ = two_sets()
    stats = statistics()
    restored = stats.restore(7.0 * stats.transform(features, 2, kind), 2, kind)
    if kind == "none":
        torch.testing.assert_close(restored, 7.0 * features)
        return
    deviation, wanted = restored - stats.mean[2], features - stats.mean[2]
    torch.testing.assert_close(deviation.norm(dim=1), stats.length.expand(500), rtol=1e-4, atol=1e-5)
    assert torch.nn.functional.cosine_similarity(deviation, wanted, dim=1).min() > 0.9999


# ---- clusters


@pytest.mark.parametrize("seed", range(5))
def test_clusters_do_not_mix_what_lies_apart(seed: int) -> None:
    counts = (300, 200, 100)
    features, axis = separated(counts)
    sets = torch.zeros(600, dtype=torch.long)
    stats = TargetStats.from_features(features, sets, num_sets=1, clusters=24, seed=seed)
    centred = features - features.mean(0)
    own = torch.stack([torch.nn.functional.normalize(centred[axis == n].mean(0), dim=0) for n in range(3)])
    similarity = stats.clusters @ own.T  # [24, 3]
    assert similarity.max(dim=1).values.min() > 0.95
    shares = torch.zeros(3).index_add_(0, similarity.argmax(dim=1), stats.shares)
    torch.testing.assert_close(shares, torch.tensor(counts) / 600)


def test_clusters_are_a_fixed_point_of_lloyd_s_algorithm() -> None:
    features, sets = two_sets()
    stats = statistics(clusters=4)
    unit = torch.nn.functional.normalize(features - stats.mean[sets], dim=1).double().numpy()
    member = (unit @ stats.clusters.double().numpy().T).argmax(1)
    for n in range(4):
        mean = unit[member == n].mean(0)
        assert float(stats.shares[n]) == pytest.approx((member == n).mean())
        assert stats.clusters[n].double().numpy() @ mean / np.linalg.norm(mean) > 0.999


def test_fewer_features_than_clusters_make_a_cluster_each() -> None:
    features = 10 * torch.eye(4)[:3]
    stats = TargetStats.from_features(features, torch.zeros(3, dtype=torch.long), num_sets=1, clusters=32, seed=0)
    assert sorted(stats.shares.tolist()) == pytest.approx([1 / 3] * 3)


# ---- weights


def axis_statistics(shares: list[float]) -> TargetStats:
    """Set 0 has mean 0, set 1 another; cluster n is axis n."""
    mean = torch.tensor([[0.0, 0, 0], [5.0, -2.0, 1.0]])
    return TargetStats(mean, torch.ones(3), torch.ones(()), torch.zeros(3), torch.eye(3), torch.tensor(shares))


AXES = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 2])


@pytest.mark.parametrize("data_set", [0, 1])
def test_balance_is_a_power_of_the_cluster_s_share(data_set: int) -> None:
    stats = axis_statistics([0.7, 0.2, 0.1])
    features = stats.mean[data_set] + 3.0 * torch.eye(3)[AXES]
    mass = torch.tensor([0.7, 0.2, 0.1])[AXES]
    assert torch.equal(stats.weights(features, data_set, 0.0), torch.ones(10))
    torch.testing.assert_close(stats.weights(features, data_set, 0.5), 1 / mass.sqrt())
    full = stats.weights(features, data_set, 1.0)
    masses = torch.zeros(3).index_add_(0, AXES, full)
    torch.testing.assert_close(masses / masses.sum(), torch.full((3,), 1 / 3))


def test_full_balance_gives_every_cluster_found_in_the_data_the_same_mass() -> None:
    features, _ = separated((300, 200, 100))
    sets = torch.zeros(600, dtype=torch.long)
    stats = TargetStats.from_features(features, sets, num_sets=1, clusters=24, seed=0)
    weights = stats.weights(features, 0, 1.0)
    clusters = ((features - features.mean(0)) @ stats.clusters.T).argmax(dim=1)
    masses = torch.zeros(24).index_add_(0, clusters, weights)
    torch.testing.assert_close(masses[masses > 0], torch.full((int((masses > 0).sum()),), 600.0))


def test_a_cluster_without_members_has_a_finite_weight() -> None:
    assert axis_statistics([1.0, 0.0, 0.0]).weights(torch.eye(3), 0, 1.0).isfinite().all()


# ---- loss


def test_the_loss_is_one_minus_the_mean_cosine() -> None:
    a, b = random(40, 7, seed=1), random(40, 7, seed=2)
    x, y = a.double().numpy(), b.double().numpy()
    expected = 1 - ((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).mean()
    assert float(similarity_loss(a, b)) == pytest.approx(expected, rel=1e-5)
    assert float(similarity_loss(30 * a, 0.2 * b)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_runs_from_zero_to_two() -> None:
    a = random(40, 7)
    assert float(similarity_loss(a, 3 * a)) == pytest.approx(0, abs=1e-6)
    assert float(similarity_loss(a, -a)) == pytest.approx(2)
    right_angle = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert float(similarity_loss(*right_angle)) == pytest.approx(1)
    diagonal = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 2.0]])
    assert float(cosine(*diagonal)) == pytest.approx(math.sqrt(0.5))


def test_the_best_constant_answer_is_the_mean_direction() -> None:
    """No other constant has a higher mean cosine with the centred features than `direction`."""
    features, sets = two_sets()
    stats = statistics()
    centred = features - stats.mean[sets]
    best = cosine(stats.direction.expand_as(centred), centred)
    assert float(best) == pytest.approx(float(stats.direction.norm()), rel=1e-4)  # mean(u) . mean(u) / |mean(u)|
    for seed in range(50):
        assert cosine(random(5, seed=seed).expand_as(centred), centred) <= best
