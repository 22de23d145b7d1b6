"""Stage `base`: a model from random weights, by predicting the next token or hidden ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..artifact import Figures, StageRun, write_json
from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.encoder import Encoder, EncoderConfig
from ..model.init import mup_shape
from ..tokenizer.store import TokenStore
from ..tokenizer.tokenizer import Tokenizer, check_same
from ..weights.encoders import bert_settings, save_encoder
from ..weights.hf import save_model
from .config import PretrainConfig
from .data import Hide, PretrainBatches, check_vocabulary
from .device import resolve_device
from .fill_in_middle import FillInMiddle, GapTokens, mask_tokens
from .loop import train
from .objectives import masked_token_loss, next_token_loss
from .parallel.processes import current_processes
from .precision import autocast, resolve_precision
from .samples import continuations
from .validation import Validation


def pretrain(config: PretrainConfig, run: StageRun) -> Figures:
    """Train a new model on the tokens of `run.inputs["tokens"]`; leaves a model directory and `training.json`."""
    tokenizer = Tokenizer.load(run.inputs["tokenizer"])
    store = TokenStore.open(run.inputs["tokens"])
    check_same(tokenizer, store.tokenizer_hash, str(run.inputs["tokens"]))
    check_vocabulary(tokenizer.vocab_size, store)
    model = new_model(config, tokenizer.vocab_size, run.seed)
    training, hide = config.training, _hide(config, tokenizer)
    batches = PretrainBatches(
        store,
        training.batch_size,
        config.sequence_length,
        run.seed,
        config.document_mask,
        tokenizer.bos_id,
        config.packing,
        phases=config.mixture,
        turn=_turn(config, tokenizer, run.seed),
        hide=hide,
    )
    device = resolve_device(training.device)
    precision = resolve_precision(training.precision, device)
    validation = Validation(config, store, tokenizer, batches.masked, hide, precision, device)
    benchmarks = _benchmarks(config, run, tokenizer, model)

    def evaluate(model: Any, step: int) -> Figures:
        figures = validation(model)
        with autocast(precision, device):
            return figures | benchmarks(model, step)

    def write(model: Any) -> Any:
        watch = training.watch
        return continuations(model, tokenizer, watch.sample_prompts, watch.sample_tokens, precision, device)

    loss = partial(next_token_loss if config.objective == "causal" else masked_token_loss, z_loss=training.z_loss)
    result = train(
        model,
        batches,
        loss,
        training,
        run,
        evaluate=evaluate,
        evaluate_every=config.validate_every,
        mup_base_width=config.mup_base_width,
        sequence_length=config.sequence_length,
        write=write,
        identity={"tokenizer": tokenizer.hash},
    )
    if result.model is None:  # not the main process, which writes it
        return {}
    last = result.history[-1]
    save = save_encoder if isinstance(result.model, Encoder) else save_model
    save(result.model, run.out, run.inputs["tokenizer"])
    write_json(run.out / "training.json", result.history)
    drawn = training.steps + result.figures["passed_over"]  # batches
    tokens = batches.tokens(drawn)
    places = training.batch_size * config.sequence_length
    return {
        "parameters": model.config.num_parameters,
        "tokens": tokens,
        "epochs": round(tokens / sum(len(store.tokens("train", name)) for name in store.domains), 3),
        "domain_epochs": {name: round(count, 3) for name, count in batches.epochs(drawn).items()},
        "padding": round(1 - tokens / (drawn * places), 6),
        **{name: round(share, 6) for name, share in batches.cut_documents().items()},
        "train_loss": last["loss"],
        **{name: last[name] for name in Validation.NAMES if name in last},
        **{name: value for name, value in last.items() if name.startswith("benchmark/")},
        "tokens_per_second": round(result.steps_run * places / max(result.seconds, 1e-9)),
        **result.figures,
        "precision": precision,
        "device": device.type,
        "processes": current_processes().count,
    }


def new_model(config: PretrainConfig, vocab_size: int, seed: int) -> Decoder | Encoder:
    """The recipe's model with random weights: a decoder, or for masked tokens an encoder with BERT's head.
    GristmillError where BERT, as which it will be saved, has no place for what the recipe asks for."""
    fields = config.model.model_dump()
    if config.objective == "masked":
        shape = EncoderConfig(vocab_size=vocab_size, **fields, token_types=2, masked_lm=True)
        bert_settings(shape)
        if config.mup_base_width is not None:
            shape = mup_shape(shape, config.mup_base_width)
        return Encoder(shape).init_weights(seed, config.init)
    decoder = ModelConfig(vocab_size=vocab_size, **fields)
    if config.mup_base_width is not None:
        decoder = mup_shape(decoder, config.mup_base_width)
    return Decoder(decoder).init_weights(seed, config.init)


def _benchmarks(config: PretrainConfig, run: StageRun, tokenizer: Tokenizer, model: Any) -> Callable[..., Figures]:
    """Benchmarks of the recipe, read before the first step; nothing to measure where it has none."""
    if config.benchmarks is None:
        return lambda model, step: {}
    if run.benchmarks is None:
        raise GristmillError("benchmarks are measured in runs of the pipeline: use gristmill.pipeline.run")
    return run.benchmarks(config.benchmarks.paths, config.benchmarks.limit, tokenizer, model.config)


def _turn(config: PretrainConfig, tokenizer: Tokenizer, seed: int) -> FillInMiddle | None:
    if not config.fim_rate:
        return None
    return FillInMiddle(GapTokens.of(tokenizer), config.fim_rate, seed)


def _hide(config: PretrainConfig, tokenizer: Tokenizer) -> Hide | None:
    if config.objective == "causal":
        return None
    if tokenizer.mask_id is None:
        raise GristmillError(
            f"objective: masked needs a mask token, which the tokenizer in {tokenizer.directory} lacks: set "
            "tokenizer.special_tokens: ['<|mask|>']"
        )
    return partial(mask_tokens, mask_id=tokenizer.mask_id, vocab_size=tokenizer.vocab_size, rate=config.mask_rate)
