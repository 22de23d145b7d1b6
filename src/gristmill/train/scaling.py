"""A ladder of small models for a scaling law: shapes of one proportion, each trained on several numbers of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifact import Manifest, build, hash_json, read_manifest, verify, write_json
from ..errors import GristmillError
from ..events import StageLog
from ..model.config import ModelConfig
from ..plan.parameters import matrix_params, total_params
from ..plan.scaling import (
    PUBLISHED,
    Law,
    Point,
    caveats,
    check_design,
    chinchilla_multiple,
    fit,
    interval,
    resampled,
)
from ..tokenizer.store import TokenStore
from ..tokenizer.tokenizer import Tokenizer
from .config import PretrainConfig, RecipeModel
from .parallel.launch import check_share
from .parallel.team import together
from .pretrain import pretrain

RESAMPLES = 100
CONFIDENCE = 0.9
MANY_EPOCHS = 4  # up to which repeated text is worth nearly as much as new text (Muennighoff et al. 2023)


@dataclass(frozen=True)
class Rung:
    """A model to be trained: its recipe, its sizes, the tokens it will see."""

    name: str
    config: PretrainConfig
    params: int  # that are multiplied
    total_params: int
    tokens: int

    @property
    def flops(self) -> float:
        return 6.0 * self.params * self.tokens


def ladder(base: PretrainConfig, vocab_size: int, heads: Sequence[int], ratios: Sequence[float]) -> list[Rung]:
    """Models with these numbers of heads, each trained on `ratio` tokens per parameter that is multiplied.

    All else of the shape grows with the heads: widths in proportion, layers too, to the nearest whole number. Learning
    rates follow by muP from the recipe's shape, so that one tuned there serves all. GristmillError for a number of
    heads that no shape has, for two models that would be one, and for recipes that no ladder can be built from.
    """
    _check_recipe(base)
    rungs: list[Rung] = []
    for number in heads:
        model = scaled(base.model, number)
        for ratio in ratios:
            rung = _rung(base, model, vocab_size, f"h{number}-r{ratio:g}", ratio)
            if twin := next((one for one in rungs if one.name == rung.name or one.config == rung.config), None):
                raise GristmillError(
                    f"{rung.name} would be trained as {twin.name} is, for {rung.config.training.steps} steps: take "
                    "ratios of tokens to parameters that are further apart, or a smaller training.batch_size"
                )
            rungs.append(rung)
    return rungs


def _check_recipe(base: PretrainConfig) -> None:
    """GristmillError where the recipe's section `base` cannot be made into a ladder."""
    if base.objective == "masked":
        raise GristmillError("a ladder is measured in bits per byte, which objective: masked does not give")
    if base.training.optimizer == "adafactor":
        raise GristmillError(
            "a ladder's learning rates follow by muP, whose factors are not Adafactor's, which moves a weight relative "
            "to its size: set base.training.optimizer to adamw, adam8bit or muon"
        )


def _rung(base: PretrainConfig, model: RecipeModel, vocab_size: int, name: str, ratio: float) -> Rung:
    shape = ModelConfig(vocab_size=vocab_size, **model.model_dump())
    params = matrix_params(shape)
    batch = base.training.batch_size * base.sequence_length
    steps = max(round(ratio * params / batch), 1)
    training = base.training.model_copy(
        update={
            "steps": steps,
            "warmup_steps": min(base.training.warmup_steps, steps // 5),
            "tail_steps": min(base.training.tail_steps, steps // 5),
        }
    )
    config = base.model_copy(
        update={
            "model": model,
            "training": training,
            "init": "mup",
            "mup_base_width": base.mup_base_width or base.model.hidden_size,
            "validate_every": steps,
            "mixture": (),
            "benchmarks": None,
        }
    )
    return Rung(name, config, params, total_params(shape), steps * batch)


def scaled(model: RecipeModel, heads: int) -> RecipeModel:
    """The shape with `heads` heads of the same width and everything else in proportion."""
    if heads < 1:
        raise GristmillError(f"heads must be 1 or more, not {heads}")
    if model.hidden_size % model.num_heads or model.experts is not None or model.latent is not None:
        raise GristmillError(
            "a ladder is built from plain shapes whose hidden_size is a multiple of num_heads, without experts and "
            "latent attention"
        )
    ratio = heads / model.num_heads
    group = model.num_heads // model.num_kv_heads
    kv_heads = max(number for number in range(1, heads + 1) if heads % number == 0 and number <= max(heads // group, 1))
    changes = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "hidden_size": model.hidden_size // model.num_heads * heads,
        "intermediate_size": max(round(model.intermediate_size * ratio / 8) * 8, 8),
        "num_layers": max(round(model.num_layers * ratio), 1),
    }
    return RecipeModel.model_validate(model.model_dump() | changes)


def climb(
    rungs: Sequence[Rung], inputs: Mapping[str, Path], directory: Path, seed: int, sources: str, log: StageLog
) -> Iterator[tuple[Rung, Manifest]]:
    """Train every rung, the cheapest first, with all processes; finished ones are taken as they stand, a cut one goes
    on."""
    for path in inputs.values():
        verify(path)
    for number, rung in enumerate(sorted(rungs, key=lambda rung: rung.flops)):
        target = directory / rung.name
        parents = {name: read_manifest(path).hash for name, path in inputs.items()}
        identity = [rung.config.model_dump(mode="json"), parents, seed, sources]
        log.note(
            f"{rung.name} ({number + 1} of {len(rungs)}): {rung.params:,} multiplied parameters ({rung.total_params:,} "
            f"in all), {rung.tokens:,} tokens, {rung.flops:.3g} FLOP"
        )
        fingerprint = hash_json(identity)
        if (target / "manifest.json").exists() and read_manifest(target).fingerprint == fingerprint:
            yield rung, read_manifest(target)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        yield (
            rung,
            build(
                target,
                kind="model",
                stage="base",
                function=together("base", target, pretrain),
                config=rung.config,
                inputs=inputs,
                seed=seed,
                fingerprint=fingerprint,
                log=log,
            ),
        )


def scaling(
    base: PretrainConfig,
    inputs: Mapping[str, Path],
    directory: Path,
    *,
    heads: Sequence[int],
    ratios: Sequence[float],
    budgets: Sequence[float] = (),
    inference_tokens: float = 0.0,
    seed: int = 1,
    sources: str = "",
    log: StageLog | None = None,
) -> dict[str, Any]:
    """Train the ladder, fit the law, and write `report.json` to `directory`; the report.

    `budgets` are FLOPs of training to say the best sizes for; by default 10 and 100 times the dearest rung's. Once the
    models are trained there is a report: what they do not settle it says in `caveats`. GristmillError before any is
    trained where the ladder cannot settle a law.
    """
    log = log or StageLog.silent()
    rungs = ladder(base, Tokenizer.load(inputs["tokenizer"]).vocab_size, heads, ratios)
    check_share(base.training.batch_size, "base.training.batch_size")
    store = TokenStore.open(inputs["tokens"])
    for warning in _foreseen(base, rungs, sum(len(store.tokens("train", name)) for name in store.domains)):
        log.note(f"warning: {warning}")
    log.note(f"{len(rungs)} models, {sum(rung.flops for rung in rungs):.3g} FLOP in all")
    found = []
    for rung, manifest in climb(rungs, inputs, directory / "models", seed, sources, log):
        loss = manifest.figures["validation_bits_per_byte"]
        log.note(f"{rung.name}: {loss:.4f} bits per byte")
        found.append((rung, Point(rung.params, rung.tokens, loss), manifest))
    report = _report(found, budgets, inference_tokens, seed)
    write_json(directory / "report.json", report)
    return report


def _foreseen(base: PretrainConfig, rungs: Sequence[Rung], text: int) -> list[str]:
    """What is known to be doubtful before anything is trained; `text`: tokens there are to train on."""
    warnings = check_design([(rung.params, rung.tokens) for rung in rungs])
    longest = max(rungs, key=lambda rung: rung.tokens)
    if longest.tokens > MANY_EPOCHS * text:
        warnings.append(
            f"{longest.name} reads the run's {text:,} training tokens {longest.tokens / text:.1f} times: the law will "
            "hold for repeated text, not for new; pack more text, or take fewer tokens per parameter"
        )
    if base.mixture:
        warnings.append("base.mixture is left out: the ladder draws by the corpus's weights")
    return warnings


def _report(
    found: Sequence[tuple[Rung, Point, Manifest]], budgets: Sequence[float], inference_tokens: float, seed: int
) -> dict[str, Any]:
    """What the trained models say, as JSON values: the law, its intervals, the best sizes, and what cannot be said."""
    points = [point for _, point, _ in found]
    law = fit(points)
    again = resampled(points, law, RESAMPLES, seed)
    doubts = caveats(law, again, CONFIDENCE)
    best = []
    for flops in budgets or [factor * max(point.flops for point in points) for factor in (10, 100)]:
        try:
            best.append(_best(law, again, flops, inference_tokens))
        except GristmillError as error:
            doubts.append(f"Nothing is said of {flops:.2e} FLOP: {error}.")
    if any(one["params_interval"] is None for one in best):
        doubts.append("Where an interval is missing, too many of the laws that fit as well have no best size.")
    report = {
        "unit": "bits per byte of validation text",
        "law": asdict(law),
        "intervals": {key: interval([getattr(one, key) for one in again], CONFIDENCE) for key in asdict(law)},
        "confidence": CONFIDENCE,
        "caveats": doubts,
        "worst_residual": max(abs(p.loss / law.loss(p.params, p.tokens) - 1) for p in points),
        "models": [
            {
                "name": rung.name,
                "total_params": rung.total_params,
                "seconds": manifest.seconds,
                **asdict(point),
                "flops": point.flops,
                "predicted": law.loss(point.params, point.tokens),
            }
            for rung, point, manifest in found
        ],
        "budgets": best,
        "inference_tokens": inference_tokens,
        "published": [
            {"model": name, "params": n, "tokens": d, "chinchilla_multiple": chinchilla_multiple(n, d)}
            for name, (n, d) in PUBLISHED.items()
        ],
    }
    plain: dict[str, Any] = json.loads(json.dumps(report))
    return plain


def _best(law: Law, again: Sequence[Law], flops: float, inference_tokens: float) -> dict[str, Any]:
    """The best sizes for a training budget and, for as good a model, those that are cheapest once it is used. Intervals
    are None where too many of the resampled laws have no best size. GristmillError where the law itself has none."""
    params, tokens = law.optimal(flops)
    loss = law.loss(params, tokens)
    sizes, losses = [], []
    for one in again:
        with suppress(GristmillError):
            sizes.append(one.optimal(flops)[0])
            losses.append(one.loss(*one.optimal(flops)))
    told = len(sizes) >= (1 - (1 - CONFIDENCE) / 2) * len(again)
    best: dict[str, Any] = {
        "flops": flops,
        "params": params,
        "tokens": tokens,
        "tokens_per_param": tokens / params,
        "loss": loss,
        "params_interval": interval(sizes, CONFIDENCE) if told else None,
        "loss_interval": interval(losses, CONFIDENCE) if told else None,
    }
    if inference_tokens:
        served, longer = law.cheapest(loss, inference_tokens)
        best["with_inference"] = {
            "params": served,
            "tokens": longer,
            "tokens_per_param": longer / served,
            "chinchilla_multiple": chinchilla_multiple(served, longer),
            "flops": served * (6 * longer + 2 * inference_tokens),
            "flops_of_the_optimum": params * (6 * tokens + 2 * inference_tokens),
        }
    return best
