"""Each domain's share of training: fixed numbers, temperature, UniMax, a cap on repeats under a token budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.errors import GristmillError

from ..config.mixture import MixtureConfig

Shares = dict[str, float]
PLACES = 10  # of a weight: the last bits of a power differ between machines


@dataclass(frozen=True)
class Mixture:
    """Shares of training that sum to 1, and what they mean for `budget` tokens.

    `sizes` are the bytes of each domain's training text, `tokens` the same in tokens, estimated or counted.
    """

    weights: Shares
    sizes: dict[str, int]
    tokens: Shares
    budget: float

    @property
    def drawn(self) -> Shares:
        """Tokens of each domain to be drawn."""
        return {domain: weight * self.budget for domain, weight in self.weights.items()}

    @property
    def epochs(self) -> Shares:
        """How often each domain is gone through."""
        return {domain: drawn / self.tokens[domain] if drawn else 0.0 for domain, drawn in self.drawn.items()}

    def as_json(self) -> dict[str, Any]:
        """For the report: the budget, and per domain bytes, tokens, weight, tokens drawn, epochs."""
        drawn, epochs = self.drawn, self.epochs
        return {
            "token_budget": round(self.budget),
            "domains": {
                domain: {
                    "bytes": self.sizes[domain],
                    "tokens": round(self.tokens[domain]),
                    "weight": weight,
                    "drawn_tokens": round(drawn[domain]),
                    "epochs": round(epochs[domain], 4),
                }
                for domain, weight in self.weights.items()
            },
        }


def settle_mixture(
    sizes: Mapping[str, int], config: MixtureConfig, tokens: Mapping[str, float] | None = None
) -> Mixture:
    """The mixture of domains with `sizes` bytes of training text each.

    `tokens` are counted ones, by domain; without them `config.bytes_per_token` estimates them. GristmillError when the
    weights do not name the domains there are, or when no weights can meet the budget under the cap on repeats.
    """
    names = sorted(domain for domain, size in sizes.items() if size > 0)
    if not names:
        raise GristmillError("corpus.mixture: no domain holds any training text")
    available = {name: tokens[name] if tokens else sizes[name] / config.bytes_per_token for name in names}
    budget = config.token_budget or sum(available.values())
    if config.weights is not None:
        weights = _fixed(names, config.weights)
    elif config.method == "unimax":
        weights = unimax(available, budget, config.max_epochs)
    else:
        weights = by_temperature({name: sizes[name] for name in names}, config.temperature)
    if config.max_epochs is not None:
        weights = cap_epochs(weights, available, budget, config.max_epochs)
    weights = {name: round(weight, PLACES) for name, weight in weights.items()}
    return Mixture(weights, {name: sizes[name] for name in names}, available, budget)


def by_temperature(sizes: Mapping[str, float], alpha: float) -> Shares:
    """p ~ n ** alpha: 0.7 in multilingual BERT, 0.3 in XLM-R (arXiv 1911.02116)."""
    largest = max(sizes.values())
    return _normalised({name: (size / largest) ** alpha for name, size in sizes.items()})


def unimax(tokens: Mapping[str, float], budget: float, max_epochs: float | None) -> Shares:
    """UniMax (arXiv 2304.09151, algorithm 1): every domain alike, as far as `max_epochs` passes over it reach.

    From the smallest domain to the largest, each gets its equal part of the budget that is left, or all that its passes
    give if that is less.
    """
    shares: Shares = {}
    left = budget
    ascending = sorted(tokens, key=lambda name: (tokens[name], name))
    for number, name in enumerate(ascending):
        part = left / (len(ascending) - number)
        shares[name] = part if max_epochs is None else min(part, max_epochs * tokens[name])
        left -= shares[name]
    return _normalised({name: shares[name] for name in tokens})


def cap_epochs(weights: Shares, tokens: Mapping[str, float], budget: float, max_epochs: float) -> Shares:
    """The weights with none above `max_epochs` passes over its domain; what they lose goes to the others, in
    proportion to their weights. GristmillError with the numbers when all passes together are fewer than the budget."""
    weighed = [name for name, weight in weights.items() if weight > 0]
    most = {name: max_epochs * tokens[name] for name in weighed}
    if sum(most.values()) < budget * (1 - 1e-9):
        held = ", ".join(f"{name} {tokens[name]:,.0f}" for name in weighed)
        raise GristmillError(
            f"corpus.mixture: {max_epochs:g} epochs (max_epochs) of all domains are {sum(most.values()):,.0f} tokens, "
            f"token_budget is {budget:,.0f}. They hold {held} tokens: raise max_epochs to "
            f"{budget / sum(tokens[name] for name in weighed):.2f} or more, lower token_budget, or collect more text"
        )
    capped = dict.fromkeys(weights, 0.0)
    left, open_names = 1.0, weighed
    while open_names:
        total = sum(weights[name] for name in open_names)
        full = [name for name in open_names if left * weights[name] / total * budget >= most[name]]
        if not full:
            capped |= {name: left * weights[name] / total for name in open_names}
            break
        for name in full:
            capped[name] = most[name] / budget
            left -= capped[name]
        open_names = [name for name in open_names if name not in full]
    return _normalised(capped)


def domain_tokens(directory: Path | str) -> Shares:
    """The tokens of each domain's training text, as a corpus' report gives them (estimated there)."""
    path = Path(directory) / "report.json"
    try:
        domains = json.loads(path.read_text(encoding="utf-8"))["mixture"]["domains"]
        return {str(name): float(entry["tokens"]) for name, entry in domains.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise GristmillError(f"{path} is missing or no corpus report; run stage 'corpus' again") from None


def _fixed(names: list[str], given: Mapping[str, float] | str) -> Shares:
    weights = read_weights(given) if isinstance(given, str) else given
    missing, unknown = sorted(set(names) - set(weights)), sorted(set(weights) - set(names))
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"names {', '.join(unknown)}"] * bool(unknown)
        raise GristmillError(f"corpus.mixture.weights {' and '.join(said)}; the corpus holds {', '.join(names)}")
    return _normalised({name: float(weights[name]) for name in names})


def read_weights(name: str) -> dict[str, float]:
    """A JSON object of domain -> weight, or one that holds such an object as `weights`."""
    try:
        data = json.loads(Path(name).read_text(encoding="utf-8"))
        weights = {str(domain): float(weight) for domain, weight in data.get("weights", data).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise GristmillError(
            f"corpus.mixture.weights: {name} is no JSON file of domains and weights ({error})"
        ) from None
    if min(weights.values(), default=0) < 0 or not sum(weights.values()) > 0:
        raise GristmillError(f"corpus.mixture.weights: {name} holds a negative weight, or none that is positive")
    return weights


def _normalised(weights: Shares) -> Shares:
    total = sum(weights.values())
    if total <= 0:
        raise GristmillError("corpus.mixture.weights: every domain that holds text has the weight 0")
    return {name: weight / total for name, weight in weights.items()}
