"""Scaling laws: how loss falls with parameters and tokens, and which sizes follow from it.

    L(N, D) = E + A / N^alpha + B / D^beta        (Hoffmann et al. 2022, "Chinchilla", equation 2)

N: parameters that are multiplied, D: training tokens, C = 6 N D: FLOPs of training. The loss may be in any unit that
is proportional to nats, such as bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import GristmillError

F64 = NDArray[np.float64]

HUBER = 1e-3  # of the difference of log losses: as in Hoffmann et al. 2022, section 3.3
EXPONENTS = (0.02, 1.5)  # where alpha and beta are looked for
GRID, ZOOMS, REWEIGHTINGS = 17, 5, 4
LARGEST_LOG = 200.0  # of a number of parameters
MIN_POINTS = 6  # one more than there are coefficients

# For foreseeing, before training, how well a ladder will settle the exponents.
USUAL_EXPONENTS = (0.34, 0.28)  # alpha and beta of Hoffmann et al. 2022
USUAL_NOISE = 0.003  # of the log loss, from one seed to another
LOOSE, HOPELESS = 0.1, 0.5  # standard errors of an exponent


@dataclass(frozen=True)
class Point:
    """One trained model: parameters that are multiplied, tokens seen, loss on held-out text."""

    params: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        return 6 * self.params * self.tokens


@dataclass(frozen=True)
class Law:
    """The coefficients of L(N, D); `floor` is E, the loss that neither size nor data takes away."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, params: float, tokens: float) -> float:
        return self.floor + self.a / params**self.alpha + self.b / tokens**self.beta

    def optimal(self, flops: float) -> tuple[float, float]:
        """`(params, tokens)` of the lowest loss for `flops` of training (Hoffmann et al. 2022, equation 4).

        GristmillError where the loss does not fall with both, or where less than one parameter or token is best.
        """
        self._check_falls()
        ratio = math.log(self.alpha * self.a / (self.beta * self.b))
        log_params = (ratio + self.beta * math.log(flops / 6)) / (self.alpha + self.beta)
        if not 0 <= log_params <= math.log(flops / 6):
            raise GristmillError(f"by this law no size is best for {flops:.3g} FLOPs: they are too far from its models")
        params = math.exp(log_params)
        return params, flops / (6 * params)

    def tokens_for(self, params: float, loss: float) -> float:
        """Tokens that bring a model of `params` to `loss`; infinity where no number does."""
        left = loss - self.floor - self.a / params**self.alpha
        try:
            return math.inf if left <= 0 else (self.b / left) ** (1 / self.beta)
        except OverflowError:
            return math.inf

    def cheapest(self, loss: float, inference_tokens: float) -> tuple[float, float]:
        """`(params, tokens)` that reach `loss` with the fewest FLOPs of training and inference together,
        6 N D + 2 N D_inference (Sardana et al. 2024, "Beyond Chinchilla-Optimal", equation 3).

        GristmillError for a loss at or below the floor, and where the loss does not fall with both.
        """
        self._check_falls()
        if loss <= self.floor:
            raise GristmillError(f"no model reaches a loss of {loss:g}: by this law the floor is {self.floor:g}")

        def cost(log_params: float) -> float:
            params = math.exp(log_params)
            tokens = self.tokens_for(params, loss)
            return math.inf if math.isinf(tokens) else params * (6 * tokens + 2 * inference_tokens)

        smallest = math.log(self.a / (loss - self.floor)) / self.alpha  # would need all the tokens there are
        if smallest > LARGEST_LOG:
            raise GristmillError(f"by this law no model that can be built reaches a loss of {loss:g}")
        params = math.exp(_lowest(cost, smallest, smallest + 30))
        return params, self.tokens_for(params, loss)

    def _check_falls(self) -> None:
        for what, coefficient in (("size", self.a), ("tokens", self.b)):
            if not coefficient:
                raise GristmillError(f"by this law the loss does not fall with {what}, so that no size is best")


def fit(points: Sequence[Point]) -> Law:
    """The law that lies closest to the points: the sum of Huber's losses of log L(N, D) - log loss is lowest.

    For given exponents the other three are a least-squares problem with coefficients that must not be negative, which
    is solved for a grid of exponents at once; the grid is then narrowed around the best. GristmillError where there are
    too few points, or all of one size or one number of tokens.
    """
    _check_count([(p.params, p.tokens) for p in points])
    params, tokens, losses = (np.array([getattr(p, key) for p in points]) for key in ("params", "tokens", "loss"))
    # Powers of numbers around 1 keep the least-squares problem well-conditioned.
    middle_n, middle_d = float(np.exp(np.log(params).mean())), float(np.exp(np.log(tokens).mean()))
    low = np.full(2, EXPONENTS[0])
    high = np.full(2, EXPONENTS[1])
    best, found = math.inf, (0.0, 0.0, np.zeros(3))
    for _ in range(ZOOMS):
        grid_a, grid_b = (np.linspace(low[i], high[i], GRID) for i in range(2))
        alpha, beta = (x.ravel() for x in np.meshgrid(grid_a, grid_b, indexing="ij"))
        features = np.stack(
            [
                np.ones((len(alpha), len(losses))),
                (params / middle_n) ** -alpha[:, None],
                (tokens / middle_d) ** -beta[:, None],
            ],
            axis=2,
        )
        coefficients, errors = _robust(features, losses)
        place = int(errors.argmin())
        if errors[place] < best:
            best, found = float(errors[place]), (float(alpha[place]), float(beta[place]), coefficients[place])
        step = (high - low) / (GRID - 1)
        centre = np.array(found[:2])
        low, high = np.maximum(centre - 1.5 * step, EXPONENTS[0]), np.minimum(centre + 1.5 * step, EXPONENTS[1])
    alpha_, beta_, (floor, a, b) = found
    return Law(float(floor), float(a) * middle_n**alpha_, alpha_, float(b) * middle_d**beta_, beta_)


def resampled(points: Sequence[Point], law: Law, count: int, seed: int = 0) -> list[Law]:
    """Laws of `count` data sets that could have been seen as well. Their spread is the uncertainty of the law.

    Losses are the fitted ones times residuals drawn anew: widened for the five coefficients they were fitted with, and
    smoothed, because a fit that is robust runs through some of its points (a smoothed bootstrap: Silverman & Young
    1987, with a normal kernel of Silverman's width). Each data set's residuals are then scaled as Student's t is, since
    so few do not tell their own spread.
    """
    freedom = max(len(points) - 5, 1)
    residuals = np.array([math.log(p.loss / law.loss(p.params, p.tokens)) for p in points])
    residuals = (residuals - residuals.mean()) * math.sqrt(len(points) / freedom)
    spread = float(np.quantile(np.abs(residuals), 0.683))  # a normal's standard deviation, whatever a few outliers do
    width = 1.06 * spread * len(points) ** -0.2
    rng = np.random.default_rng(seed)
    laws = []
    for _ in range(count):
        errors = rng.choice(residuals, len(points)) + width * rng.standard_normal(len(points))
        errors = np.clip(errors * math.sqrt(freedom / rng.chisquare(freedom)), -1, 1)
        again = [
            Point(p.params, p.tokens, law.loss(p.params, p.tokens) * math.exp(error))
            for p, error in zip(points, errors, strict=True)
        ]
        laws.append(fit(again))
    return laws


def check_design(sizes: Sequence[tuple[float, float]]) -> list[str]:
    """What is to be expected of a ladder of models of `(params, tokens)` before any is trained: a sentence for each
    exponent that it will hardly settle. GristmillError where it cannot settle them at all."""
    _check_count(sizes)
    ratios = [tokens / params for params, tokens in sizes]
    if max(ratios) < 1.1 * min(ratios):
        raise GristmillError(
            f"all models would see about {ratios[0]:.3g} tokens per parameter, so that what size does cannot be told "
            "from what tokens do: train each size on two numbers of tokens or more, the largest at least four times "
            "the smallest"
        )
    warnings = []
    for name, what, error in zip(("alpha", "beta"), ("sizes", "numbers of tokens"), foreseen(sizes), strict=True):
        if error > HOPELESS:
            raise GristmillError(
                f"this ladder cannot settle {name}: its standard error would be about {error:.2g}, more than {name} "
                "itself; take sizes and numbers of tokens per parameter that are further apart"
            )
        if error > LOOSE:
            warnings.append(
                f"this ladder will hardly settle {name}: expect a standard error of about {error:.2f}, where {name} is "
                f"usually near 0.3; take {what} that are further apart, or more of them"
            )
    return warnings


def foreseen(sizes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard errors of alpha and beta to be expected from models of `(params, tokens)`, by the linearized
    least-squares problem at a usual law: USUAL_EXPONENTS, half of the middle model's loss being the floor and a quarter
    each of size and tokens, losses with an error of USUAL_NOISE."""
    n, d = (np.log(np.array(column, dtype=np.float64)) for column in zip(*sizes, strict=True))
    n, d = n - n.mean(), d - d.mean()
    of_size, of_tokens = (np.exp(-power * x) / 4 for power, x in zip(USUAL_EXPONENTS, (n, d), strict=True))
    slopes = np.stack([np.ones_like(n), of_size, of_tokens, -of_size * n, -of_tokens * d], axis=1)
    slopes /= (0.5 + of_size + of_tokens)[:, None]
    _, singular, directions = np.linalg.svd(slopes, full_matrices=False)
    errors = USUAL_NOISE * np.linalg.norm(directions / np.maximum(singular, 1e-12)[:, None], axis=0)
    return float(errors[3]), float(errors[4])


def caveats(law: Law, again: Sequence[Law], confidence: float = 0.9) -> list[str]:
    """A sentence for each part of a law that its models do not settle: a floor or a coefficient of 0, or an exponent
    whose interval over the resampled laws reaches the end of where it was looked for."""
    sentences = []
    if interval([one.floor for one in again], confidence)[0] <= 0:
        sentences.append("These models show no floor E: losses of much larger ones are guesses.")
    for name, what, key in (("alpha", "size", "a"), ("beta", "tokens", "b")):
        low, high = interval([getattr(one, name) for one in again], confidence)
        absent = sum(not getattr(one, key) for one in again) / len(again)
        if not getattr(law, key):
            sentences.append(
                f"By these models the loss does not fall with {what}: no best size follows, and {name} means nothing. "
                "Train a wider ladder."
            )
        elif low <= EXPONENTS[0] or high >= EXPONENTS[1] or absent > (1 - confidence) / 2:
            sentences.append(f"These models do not settle {name}: sizes below are guesses. Train a wider ladder.")
    return sentences


def interval(values: Sequence[float], confidence: float = 0.9) -> tuple[float, float]:
    """The middle `confidence` of the values."""
    low, high = np.quantile(np.array(values), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def chinchilla_tokens(params: float, tokens_per_param: float = 20) -> float:
    """Tokens for a model of `params` by the rule of thumb of Hoffmann et al. 2022."""
    return params * tokens_per_param


def chinchilla_multiple(params: float, tokens: float, tokens_per_param: float = 20) -> float:
    """How many times the rule of thumb's tokens a model was trained on."""
    return tokens / chinchilla_tokens(params, tokens_per_param)


# Published models, by their own papers and cards: parameters, training tokens.
PUBLISHED = {
    "GPT-3 175B": (175e9, 300e9),
    "Chinchilla 70B": (70e9, 1.4e12),
    "Llama 65B": (65e9, 1.4e12),
    "Llama 2 70B": (70e9, 2e12),
    "Llama 3 8B": (8e9, 15e12),
    "SmolLM2 135M": (135e6, 2e12),
    "Qwen3 0.6B": (0.6e9, 36e12),
}


def _check_count(sizes: Sequence[tuple[float, float]]) -> None:
    if len(sizes) < MIN_POINTS:
        raise GristmillError(f"{len(sizes)} models are too few to fit five coefficients: train at least {MIN_POINTS}")
    for what, values in zip(("size", "number of tokens"), zip(*sizes, strict=True), strict=True):
        if len(set(values)) < 3:
            raise GristmillError(f"models of fewer than three values of {what} say nothing of its exponent")


def _robust(features: F64, losses: F64) -> tuple[F64, F64]:
    """Non-negative coefficients `[grid, 3]` for features `[grid, points, 3]`, and sums of Huber losses `[grid]`."""
    weights = np.broadcast_to(1 / losses, features.shape[:2]).copy()
    for _ in range(REWEIGHTINGS):
        coefficients = _non_negative(features, losses, weights)
        predicted = np.maximum(np.einsum("gpk,gk->gp", features, coefficients), 1e-12)
        residuals = np.abs(np.log(predicted / losses))
        weights = np.sqrt(np.minimum(1, HUBER / np.maximum(residuals, 1e-12))) / losses
    inside = residuals <= HUBER
    errors = np.where(inside, residuals**2 / 2, HUBER * (residuals - HUBER / 2)).sum(axis=1)
    return coefficients, errors


def _non_negative(features: F64, losses: F64, weights: F64) -> F64:
    """Weighted least squares with coefficients from 0 up: the best of all choices of which are 0."""
    x, y = features * weights[:, :, None], losses * weights
    norms = np.maximum(np.sqrt((x**2).sum(axis=1)), 1e-150)
    x = x / norms[:, None, :]  # so that the ridge below, which keeps the problem solvable, is as small for all
    gram, moment = np.einsum("gpi,gpj->gij", x, x), np.einsum("gpi,gp->gi", x, y)
    best, found = np.full(len(x), math.inf), np.zeros((len(x), 3))
    for kept in ((0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)):
        sub = gram[:, kept][:, :, kept] + 1e-12 * np.eye(len(kept))
        solved = np.zeros((len(x), 3))
        solved[:, kept] = np.linalg.solve(sub, moment[:, kept][:, :, None])[:, :, 0]
        errors = ((np.einsum("gpk,gk->gp", x, solved) - y) ** 2).sum(axis=1)
        better = (solved >= 0).all(axis=1) & (errors < best)
        best, found = np.where(better, errors, best), np.where(better[:, None], solved, found)
    return found / norms


def _lowest(function: object, low: float, high: float) -> float:
    """Where a function with one valley is lowest, by golden sections."""
    assert callable(function)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if function(left) <= function(right) and not math.isinf(function(left)):
            high = right
        elif math.isinf(function(left)) or function(left) > function(right):
            low = left
    return (low + high) / 2
