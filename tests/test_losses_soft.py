"""Losses of rows of which only a probability of target 1 is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_models.losses import row_losses, soft_losses

POSITIVE = torch.tensor([False, True, False, True])


def outputs(n: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(n, 4)) * 3)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"focal_gamma": 2.0}])
def test_a_certain_label_costs_what_a_row_of_that_target_costs(settings: dict[str, float]) -> None:
    logits = outputs()
    for target, allowed in ((1.0, POSITIVE), (0.0, ~POSITIVE)):
        p = torch.full((len(logits),), target, dtype=logits.dtype)
        known = row_losses(logits, allowed.expand(len(logits), -1), **settings)
        torch.testing.assert_close(soft_losses(logits, p, POSITIVE, **settings), known)


def test_the_loss_is_lowest_where_the_prediction_is_the_label() -> None:
    p = torch.tensor([0.1, 0.5, 0.93], dtype=torch.float64)
    logit = torch.logit(p).requires_grad_()
    soft_losses(logit[:, None], p, torch.tensor([False, True])).sum().backward()
    assert logit.grad is not None
    torch.testing.assert_close(logit.grad, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
