"""Segmentation scores worked out by hand, and the linear probe against the conditions of its optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from clever3d.errors import InputError
from clever3d.evaluate.metrics import IGNORE, accuracy, confusion_matrix, intersection_over_union, mean_iou
from clever3d.evaluate.probe import LinearProbe, fit_linear_probe

# target 0 0 0 1 1 2 and two points without a label
TARGET = torch.tensor([0, 0, 0, 1, 1, 2, IGNORE, IGNORE])
PREDICTED = torch.tensor([0, 0, 1, 1, 3, 2, 0, 1])


# ---- scores


def test_the_confusion_matrix_counts_targets_in_rows() -> None:
    expected = [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert confusion_matrix(PREDICTED, TARGET, 4).tolist() == expected


def test_iou_is_hits_over_union() -> None:
    iou = intersection_over_union(confusion_matrix(PREDICTED, TARGET, 5))
    # class 0: 2 hits, 1 missed; 1: 1 hit, 1 missed, 1 too many; 2: 1 hit; 3: only predicted; 4: nowhere
    assert iou[:4].tolist() == pytest.approx([2 / 3, 1 / 3, 1.0, 0.0])
    assert iou[4].isnan()


def test_the_mean_is_over_the_classes_that_the_target_has() -> None:
    confusion = confusion_matrix(PREDICTED, TARGET, 5)
    assert mean_iou(confusion) == pytest.approx((2 / 3 + 1 / 3 + 1) / 3)
    assert accuracy(confusion) == pytest.approx(4 / 6)


def test_points_without_a_label_do_not_count_whatever_is_predicted_there() -> None:
    other = PREDICTED.clone()
    other[TARGET == IGNORE] = 99
    assert torch.equal(confusion_matrix(other, TARGET, 4), confusion_matrix(PREDICTED, TARGET, 4))


def test_scores_agree_with_sets_of_points() -> None:
    generator = np.random.default_rng(0)
    target, predicted = generator.integers(-1, 6, 5000), generator.integers(0, 6, 5000)
    confusion = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(target), 6)
    expected = []
    for c in range(6):
        truth = set(np.flatnonzero(target == c))
        claimed = set(np.flatnonzero((predicted == c) & (target >= 0)))
        expected.append(len(truth & claimed) / len(truth | claimed))
    assert intersection_over_union(confusion).tolist() == pytest.approx(expected)
    assert mean_iou(confusion) == pytest.approx(np.mean(expected))
    assert accuracy(confusion) == pytest.approx((predicted == target)[target >= 0].mean())


def test_counts_of_parts_add_up_to_the_whole() -> None:
    parts = [confusion_matrix(PREDICTED[s], TARGET[s], 4) for s in (slice(0, 3), slice(3, 8), slice(8, 8))]
    assert torch.equal(parts[0] + parts[1] + parts[2], confusion_matrix(PREDICTED, TARGET, 4))


def test_large_counts_stay_exact() -> None:
    confusion = torch.tensor([[2**40, 1], [1, 2**40]])
    assert float(1 - intersection_over_union(confusion)[0]) == pytest.approx(2 / 2**40, rel=1e-3)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"predicted classes span 0\.\.4, expected 0\.\.2"):
        confusion_matrix(torch.tensor([0, 4]), torch.tensor([0, 1]), 3)
    with pytest.raises(InputError, match=r"target classes span -2\.\.1"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([-2, 1]), 3)
    with pytest.raises(InputError, match=r"\[2\].*\[3\]"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 1, 1]), 3)


# ---- probe


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def overlapping(count: int = 600, classes: int = 4, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that overlap, in correlated channels of unequal scale and far from zero."""
    labels = torch.arange(count) % classes
    features = normal(classes, dim, seed=seed + 1)[labels] + normal(count, dim, seed=seed)
    return features @ normal(dim, dim, seed=seed + 2) * torch.logspace(-2, 2, dim) + 5.0, labels


def standardised(features: Tensor) -> np.ndarray:
    x = features.double().numpy()
    return (x - x.mean(0)) / x.std(0)


def objective(probe: LinearProbe, features: Tensor, labels: Tensor, decay: float) -> tuple[float, float]:
    """Value and gradient norm in float64 of mean cross-entropy + decay * |weight|^2, by its closed form."""
    x, y = standardised(features), labels.numpy()
    weight, bias = probe.weight.double().numpy(), probe.bias.double().numpy()
    logits = x @ weight + bias
    logits -= logits.max(1, keepdims=True)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (probability - np.eye(weight.shape[1])[y]) / len(y)
    gradient = np.concatenate([x.T @ error + 2 * decay * weight, error.sum(0, keepdims=True)])
    value = -np.log(probability[np.arange(len(y)), y]).mean() + decay * (weight**2).sum()
    return float(value), float(np.linalg.norm(gradient))


@pytest.mark.parametrize("decay", [1e-4, 1e-2])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_the_probe_reaches_the_optimum_of_its_convex_problem(seed: int, decay: float) -> None:
    features, labels = overlapping(seed=seed)
    probe = fit_linear_probe(features, labels, 4, weight_decay=decay)
    value, slope = objective(probe, features, labels, decay)
    assert value < math.log(4)
    assert slope < 2e-3  # 0.5 and more at the start
    for direction in range(10):  # convex: no step from the optimum may lower the value by more than slope * length
        step = 0.05 * normal(*probe.weight.shape, seed=direction)
        moved = LinearProbe(probe.mean, probe.std, probe.weight + step, probe.bias)
        assert objective(moved, features, labels, decay)[0] > value


def test_without_features_the_probe_learns_the_frequencies() -> None:
    """Closed form: with one constant channel the optimum's probabilities are the shares of the classes."""
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    probe = fit_linear_probe(torch.full((100, 1), 3.0), labels, 3)
    shares = probe.logits(torch.full((1, 1), 3.0)).softmax(dim=1)[0]
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-3)


def test_balance_raises_the_weight_of_rare_classes() -> None:
    """Closed form as above: class shares s become s * s ** -balance, normalised."""
    labels = torch.tensor([0] * 64 + [1] * 36)
    one = torch.full((1, 1), 3.0)
    for balance, expected in ((0.0, 0.64), (0.5, 8 / (8 + 6)), (1.0, 0.5)):
        probe = fit_linear_probe(one.expand(100, 1), labels, 2, balance=balance)
        assert float(probe.logits(one).softmax(dim=1)[0, 0]) == pytest.approx(expected, abs=1e-3)


def test_two_symmetric_points_meet_their_closed_form() -> None:
    """x = -1, 1 of classes 0, 1: logits are -+ 2 w x / 2, and log(1 + exp(-2w)) + 2 * decay * w^2 is least at the root
    of 2 / (1 + exp(2w)) = 4 * decay * w."""
    decay = 0.05
    low, high = 0.0, 10.0
    for _ in range(100):
        w = (low + high) / 2
        low, high = (w, high) if 2 / (1 + math.exp(2 * w)) > 4 * decay * w else (low, w)
    probe = fit_linear_probe(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, weight_decay=decay)
    assert probe.weight[0].tolist() == pytest.approx([-w, w], abs=1e-3)
    assert probe.bias.tolist() == pytest.approx([0, 0], abs=1e-3)


def test_separable_classes_are_separated() -> None:
    labels = torch.arange(300) % 3
    features = 10 * torch.eye(3)[labels] + 0.5 * normal(300, 3)
    assert torch.equal(fit_linear_probe(features, labels, 3).predict(features), labels)


def test_scale_and_offset_of_the_features_do_not_matter() -> None:
    features, labels = overlapping()
    probe = fit_linear_probe(features, labels, 4)
    scale = torch.tensor([0.01, 100.0, 1.0, -3.0, 7.0, 0.5])
    other = fit_linear_probe(features * scale + 2.0, labels, 4)
    torch.testing.assert_close(
        other.logits(features * scale + 2.0).softmax(1), probe.logits(features).softmax(1), atol=5e-3, rtol=0
    )


def test_the_probe_is_the_same_every_time_and_ignores_the_order_of_points() -> None:
    features, labels = overlapping()
    probe = fit_linear_probe(features, labels, 4)
    assert torch.equal(fit_linear_probe(features, labels, 4).weight, probe.weight)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = fit_linear_probe(features[order], labels[order], 4)
    torch.testing.assert_close(
        shuffled.logits(features).softmax(1), probe.logits(features).softmax(1), atol=5e-3, rtol=0
    )


def test_points_without_a_label_are_left_out() -> None:
    features, labels = overlapping()
    more = torch.cat([features, 1e3 * normal(50, 6, seed=9)])
    with_unlabelled = fit_linear_probe(more, torch.cat([labels, torch.full((50,), IGNORE)]), 4)
    assert torch.equal(with_unlabelled.weight, fit_linear_probe(features, labels, 4).weight)


def test_random_features_give_chance_level() -> None:
    labels = torch.arange(4000) % 4
    features = normal(4000, 8)
    probe = fit_linear_probe(features[:2000], labels[:2000], 4)
    confusion = confusion_matrix(probe.predict(features[2000:]), labels[2000:], 4)
    assert abs(accuracy(confusion) - 0.25) < 0.04  # 4 sigma
    assert mean_iou(confusion) < 0.2  # of four even classes at chance: 1 / 7


def test_features_that_carry_the_class_beat_chance_on_points_not_seen() -> None:
    features, labels = overlapping(1200)
    probe = fit_linear_probe(features[:600], labels[:600], 4)
    assert accuracy(confusion_matrix(probe.predict(features[600:]), labels[600:], 4)) > 0.5


def test_half_precision_features_are_taken() -> None:
    features, labels = normal(100, 3).half(), torch.arange(100) % 2
    assert fit_linear_probe(features, labels, 2).predict(features).shape == (100,)


def test_a_probe_without_labels_is_an_error() -> None:
    with pytest.raises(InputError, match="no point has a label"):
        fit_linear_probe(torch.ones(5, 2), torch.full((5,), IGNORE), 3)


def test_features_and_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[5, 2\].*\[4\]"):
        fit_linear_probe(torch.ones(5, 2), torch.zeros(4, dtype=torch.long), 3)
    with pytest.raises(InputError, match=r"labels .*0\.\.3.*0\.\.2"):
        fit_linear_probe(torch.ones(4, 2), torch.arange(4), 3)
    with pytest.raises(InputError, match=r"2 of 4 .*not finite"):
        fit_linear_probe(
            torch.tensor([[1.0, math.nan], [math.inf, math.nan]] + 2 * [[0.0, 1.0]]), torch.ones(4).long(), 3
        )
