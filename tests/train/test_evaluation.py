import json

import pytest
import torch

from regraft.train import confused, evaluation
from regraft.train.evaluation import wilson

CLASSES = ("ant", "bee", "cat")
LABELS = torch.tensor([0, 0, 0, 1, 1, 0])
PREDICTED = [0, 1, 1, 1, 1, 0]


def found(temperature=1.0, classes=CLASSES):
    logits = torch.full((6, 3), -1.0)
    logits[torch.arange(6), torch.tensor(PREDICTED)] = 2.0
    return evaluation(logits, LABELS, classes, temperature=temperature)


def test_figures_of_a_small_example():
    got = found()
    assert got["confusion"] == [[2, 2, 0], [0, 2, 0], [0, 0, 0]]
    assert got["accuracy"] == pytest.approx(100 * 4 / 6)
    assert got["balanced_accuracy"] == pytest.approx(75.0)  # no image is a cat
    ant, bee, cat = got["per_class"]
    assert (ant["images"], ant["recall"], ant["precision"]) == (4, 50.0, 100.0)
    assert ant["f1"] == pytest.approx(2 * 0.5 * 1 / 1.5 * 100)
    assert (bee["recall"], bee["precision"]) == (100.0, 50.0)
    assert (cat["images"], cat["recall"], cat["precision"], cat["f1"]) == (0, None, None, None)
    assert confused(got) == [{"class": "ant", "taken_for": "bee", "images": 2}]
    assert json.loads(json.dumps(got)) == got


def test_it_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, generator=generator)
    labels = torch.randint(3, (200,), generator=generator)
    got = evaluation(logits, labels, CLASSES)
    said = logits.argmax(1)
    assert got["confusion"] == metrics.confusion_matrix(labels, said).tolist()
    p, r, f, _ = metrics.precision_recall_fscore_support(labels, said)
    for i, row in enumerate(got["per_class"]):
        assert row["precision"] == pytest.approx(100 * p[i])
        assert row["recall"] == pytest.approx(100 * r[i])
        assert row["f1"] == pytest.approx(100 * f[i])
    assert got["loss"] == pytest.approx(metrics.log_loss(labels, logits.double().softmax(1)))


def test_a_temperature_changes_what_is_believed_and_not_what_is_said():
    one, two = found(), found(2.0)
    assert one["confusion"] == two["confusion"]
    assert two["loss"] != one["loss"]
    assert two["uncalibrated"]["loss"] == one["loss"] == one["uncalibrated"]["loss"]


def test_the_interval_of_a_share_holds_exactly_the_shares_that_fit():
    for right, n in ((0, 4), (33, 40), (40, 40)):
        low, high = (v / 100 for v in wilson(right, n))
        for p in (low, high):
            if 1e-9 < p < 1 - 1e-9:
                assert abs(right / n - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5)
        assert -1e-12 <= low <= right / n + 1e-12
        assert right / n - 1e-12 <= high <= 1 + 1e-12
