from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from image_models.losses import log_probabilities, risk_logit, row_losses


@pytest.fixture
def outputs() -> torch.Tensor:
    return torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def one_hot(classes: torch.Tensor, c: int) -> torch.Tensor:
    return F.one_hot(classes, c).bool()


@pytest.fixture
def classes() -> torch.Tensor:
    return torch.arange(50) % 4


def test_it_is_pytorchs_cross_entropy_with_its_label_smoothing(outputs: torch.Tensor, classes: torch.Tensor) -> None:
    for smoothing in (0.0, 0.1):
        ours = row_losses(outputs, one_hot(classes, 4), label_smoothing=smoothing)
        theirs = F.cross_entropy(outputs, classes, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(ours, theirs)


def test_one_output_is_binary_cross_entropy(outputs: torch.Tensor) -> None:
    logit, target = outputs[:, :1], torch.arange(50) % 2
    torch.testing.assert_close(
        row_losses(logit, one_hot(target, 2)),
        F.binary_cross_entropy_with_logits(logit[:, 0], target.double(), reduction="none"),
    )
    torch.testing.assert_close(
        row_losses(logit, one_hot(target, 2), label_smoothing=0.2),
        F.binary_cross_entropy_with_logits(logit[:, 0], target.double() * 0.8 + 0.1, reduction="none"),
    )


def test_a_row_of_several_allowed_classes_is_charged_for_their_sum(outputs: torch.Tensor) -> None:
    allowed = torch.tensor([True, False, True, False]).expand(50, 4)
    p = outputs.softmax(dim=1)
    torch.testing.assert_close(row_losses(outputs, allowed), -torch.log(p[:, 0] + p[:, 2]))
    assert row_losses(outputs, torch.ones(50, 4, dtype=torch.bool)).abs().max() < 1e-12


def test_the_focal_factor_is_one_minus_p_to_the_gamma(outputs: torch.Tensor, classes: torch.Tensor) -> None:
    p = outputs.softmax(dim=1)[torch.arange(50), classes]
    ours = row_losses(outputs, one_hot(classes, 4), focal_gamma=2.0)
    torch.testing.assert_close(ours, -((1 - p) ** 2) * torch.log(p), atol=1e-9, rtol=1e-6)


def test_the_focal_loss_of_a_certain_row_has_a_gradient() -> None:
    sure = torch.tensor([[80.0]], requires_grad=True)
    row_losses(sure, torch.tensor([[False, True]]), focal_gamma=0.5).sum().backward()
    assert torch.isfinite(sure.grad).all()


def test_the_risk_logit_is_the_log_odds_of_the_positive_classes(outputs: torch.Tensor) -> None:
    positive = torch.tensor([False, True, False, True])
    p = outputs.softmax(dim=1)[:, positive].sum(dim=1)
    torch.testing.assert_close(risk_logit(outputs, positive).sigmoid(), p)
    assert (risk_logit(outputs[:, :1], positive[:2]) == outputs[:, 0]).all()


def test_log_probabilities_stay_finite_where_a_sigmoid_is_one() -> None:
    log_p = log_probabilities(torch.tensor([[200.0], [-200.0]]))
    np.testing.assert_allclose(log_p.numpy(), [[-200, 0], [0, -200]])
