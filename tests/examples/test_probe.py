"""The probe: what it scores, against scikit-learn's numbers and by construction."""

from pathlib import Path

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from examples.mmwhs.study import probe


def clouds(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping clouds in four dimensions, of which one axis means nothing."""
    labels = torch.arange(3).repeat(n)
    centres = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, 0.0], [0.0, 2.0, -1.0, 0.0]])
    return centres[labels] + torch.randn(3 * n, 4), labels


def test_the_probe_is_logistic_regression() -> None:
    values, labels = clouds()
    mean, sd = values.mean(0), values.std(0)
    weight, offset = probe.fit(values, labels, 3)
    # the same penalty: 1e-3 |w|² beside a mean over n points is |w|²/2 with C = 1 / (2e-3 n)
    theirs = LogisticRegression(C=1 / (2e-3 * len(values)), tol=1e-8, max_iter=1000)
    theirs.fit(((values - mean) / sd).numpy(), labels.numpy())
    ours = (values.double() @ weight + offset).softmax(1)
    expected = torch.from_numpy(theirs.predict_proba(((values - mean) / sd).numpy()))
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0, check_dtype=False)


def test_scores_are_dice_of_the_structures() -> None:
    values = torch.eye(3)[[0, 0, 1, 1, 2, 2]]
    perfect = (torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    assert probe.score(perfect, values, torch.tensor([0, 0, 1, 1, 2, 2]), 3) == 1.0
    assert probe.score(perfect, values, torch.tensor([0, 0, 1, 2, 2, 2]), 3) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_points_are_drawn_on_principal_axes() -> None:
    values, labels = clouds(20)
    points, drawn = probe.axes_of(values, labels, 3)
    chosen = probe.some(labels, 3, probe.SHOWN)
    expected = PCA(2).fit_transform(torch.nn.functional.normalize(values[chosen], dim=1).numpy())
    assert sorted(drawn.tolist()) == sorted(labels.tolist())
    assert abs(points) == pytest.approx(abs(expected), abs=1e-4)


def test_only_finished_runs_are_probed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finished run"):
        probe.probe(tmp_path)
