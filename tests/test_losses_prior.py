"""What drawing and weighting do to the shares of classes, and that it is taken back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax
from tiny_training import CPU, MeanColour, train

from image_models.dataset import CachedImages
from image_models.losses import class_weights, prior_shift, training_prior
from image_models.net import Net
from image_models.predict import predict
from image_models.settings import Training

POSITIVE = np.array([False, True])


def test_rows_are_drawn_by_the_size_of_their_class() -> None:
    allowed = np.repeat(np.eye(3, dtype=bool), [90, 9, 1], axis=0)
    full, root = class_weights(allowed, "full"), class_weights(allowed, "sqrt")
    assert full is not None
    assert root is not None
    np.testing.assert_allclose([full[:90].sum(), full[90:99].sum(), full[99:].sum()], 1)
    np.testing.assert_allclose([root[:90].sum(), root[90:99].sum(), root[99:].sum()], np.sqrt([90, 9, 1]))
    assert class_weights(allowed, "none") is None


@pytest.mark.parametrize("options", [{"balance": "full"}, {"balance": "sqrt"}, {"positive_weight": 8.0}])
def test_the_prior_that_training_changed_is_put_back(options: dict[str, Any], rng: np.random.Generator) -> None:
    """Pictures that say nothing: the best that a net can say is the prevalence, whatever rows it was shown."""
    pixels = np.full((200, 32, 32, 3), 128, np.uint8)
    target = (np.arange(200) < 20).astype(np.int8)
    images = CachedImages(pixels, np.arange(200), target)
    prior = training_prior(images.allowed, Training()) * np.exp(
        prior_shift(images.allowed, POSITIVE, Training(**options))
    )
    net = Net(MeanColour(), features=3, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=False)
    torch.nn.init.zeros_(net.head.weight)
    with torch.no_grad():
        net.head.bias[:] = float(np.log(prior[1] / prior[0]))
    train(net, images, epochs=20, batch_size=50, lr=0.01, **options)
    logit = predict(net, CachedImages(pixels[:2], np.arange(2)), batch_size=2, device=CPU).logit
    assert 1 / (1 + np.exp(-logit[0])) == pytest.approx(0.1, abs=0.035)


@pytest.mark.parametrize("balance", ["none", "sqrt", "full"])
def test_rows_of_unknown_diagnosis_leave_the_prevalence_as_it_is(balance: Any) -> None:
    """The same with classes that some rows are only known to be among, most of them of target 0, as in SIIM-ISIC 2020.

    Of pictures that say nothing: the log probabilities that fit the rows as they are drawn, found by an optimiser,
    less the shift.
    """
    kinds = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0]], bool)
    allowed = np.repeat(kinds, [500, 40, 7, 58, 2700], axis=0)
    positive = np.array([False, False, False, True])
    weights = class_weights(allowed, balance)
    drawn = np.ones(len(allowed)) if weights is None else weights
    drawn_kinds = np.array([drawn[(allowed == kind).all(axis=1)].sum() for kind in kinds])

    def loss(outputs: np.ndarray) -> float:
        log_p = np.where(kinds, log_softmax(outputs), -np.inf)
        return float(-drawn_kinds @ logsumexp(log_p, axis=1) / drawn_kinds.sum())

    fitted = log_softmax(minimize(loss, np.zeros(4), tol=1e-10).x)
    p = softmax(fitted - prior_shift(allowed, positive, Training(balance=balance)))
    assert p[positive].sum() == pytest.approx(58 / len(allowed), rel=0.02)
    known = np.array([500, 40, 7]) / 547
    np.testing.assert_allclose(p[:3] / p[:3].sum(), known, rtol=0.1, err_msg="unknown rows are as the known ones")
