"""Settings of the review band in the config: which images the ensemble may decide, and what it guarantees then."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stack.settings.image_models import Strict


class Review(Strict):
    """Which images the ensemble decides, with a guarantee over patients; all others go to a person."""

    # low risks are decided as negative: at most 1 - sensitivity of all positives are among them
    sensitivity: float | None = Field(None, gt=0, lt=1)
    # instead of `sensitivity`: of the images decided as negative, at least this share is negative
    npv: float | None = Field(None, gt=0, lt=1)
    # high risks are decided as positive: at most 1 - specificity of all negatives are among them; without it and `ppv`,
    # no image is decided as positive
    specificity: float | None = Field(None, gt=0, lt=1)
    # instead of `specificity`: of the images decided as positive, at least this share is positive
    ppv: float | None = Field(None, gt=0, lt=1)
    confidence: float = Field(0.9, ge=0.5, lt=1)  # all guarantees hold in at least this share of samples of patients
    # `exact` holds in every sample size; `approximate` estimates how alike a patient's images are, and decides more
    test: Literal["exact", "approximate"] = "exact"

    @model_validator(mode="after")
    def _check_aims(self) -> Self:
        low = [name for name in ("sensitivity", "npv") if getattr(self, name) is not None]
        if not low:
            raise ValueError(
                "it names no guarantee: give `sensitivity`, such as 0.95, or `npv`, such as 0.99, or remove `review`"
            )
        if len(low) > 1:
            raise ValueError("it has both `sensitivity` and `npv`, which would be two thresholds: remove one of them")
        if self.specificity is not None and self.ppv is not None:
            raise ValueError("it has both `specificity` and `ppv`, which would be two thresholds: remove one of them")
        return self

    @property
    def low(self) -> tuple[str, float]:
        """Aim and level of the images that are decided as negative."""
        return ("npv", self.npv) if self.npv is not None else ("sensitivity", self.sensitivity or 0.0)

    @property
    def high(self) -> tuple[str, float] | None:
        """Aim and level of the images that are decided as positive; None where none is."""
        if self.ppv is not None:
            return "ppv", self.ppv
        return None if self.specificity is None else ("specificity", self.specificity)
