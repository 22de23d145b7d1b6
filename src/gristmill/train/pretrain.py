"""Stage `base`: causal language modelling from random weights."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..artifact import Figures, StageRun, write_json
from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.experts import mark_padding
from ..model.init import mup_shape
from ..tokenizer.store import TokenStore
from ..tokenizer.tokenizer import Tokenizer, check_same
from ..weights.hf import save_model
from .config import PretrainConfig
from .data import PretrainBatches, TokenBatch
from .loop import autocast, next_token_loss, resolve_device, resolve_precision, train


def pretrain(config: PretrainConfig, run: StageRun) -> Figures:
    """Train a new model on the tokens of `run.inputs["tokens"]`; leaves a model directory and `training.json`."""
    tokenizer = Tokenizer.load(run.inputs["tokenizer"])
    store = TokenStore.open(run.inputs["tokens"])
    check_same(tokenizer, store.tokenizer_hash, str(run.inputs["tokens"]))
    model = new_model(config, tokenizer.vocab_size, run.seed)
    training = config.training
    batches = PretrainBatches(
        store,
        training.batch_size,
        config.sequence_length,
        run.seed,
        config.document_mask,
        tokenizer.bos_id,
        config.packing,
    )
    device = resolve_device(training.device)
    precision = resolve_precision(training.precision, device)
    validation = [_validation_batch(store, name, config, tokenizer.bos_id, batches.masked) for name in store.domains]
    token_bytes = torch.from_numpy(tokenizer.token_bytes)

    def validate(model: Decoder, step: int) -> dict[str, float]:
        values = [_bits_per_byte(model, batch, token_bytes, precision, device) for batch in validation]
        weights = [store.weights[name] for name in store.domains]
        return {"validation_bits_per_byte": float(np.average(values, weights=weights))}

    result = train(
        model,
        batches,
        partial(TokenBatch.split, size=training.micro_batch_size),
        next_token_loss,
        training,
        run,
        evaluate=validate,
        evaluate_every=config.validate_every,
        mup_base_width=config.mup_base_width,
    )
    save_model(model, run.out, run.inputs["tokenizer"])
    write_json(run.out / "training.json", result.history)
    tokens = batches.tokens(training.steps)
    places = training.batch_size * config.sequence_length
    per_second = result.steps_run * places / max(result.seconds, 1e-9)
    return {
        "parameters": model.config.num_parameters,
        "tokens": tokens,
        "epochs": round(tokens / sum(len(store.tokens("train", name)) for name in store.domains), 3),
        "domain_epochs": {name: round(count, 3) for name, count in batches.epochs(training.steps).items()},
        "padding": round(1 - tokens / (training.steps * places), 6),
        **{name: round(share, 6) for name, share in batches.cut_documents().items()},
        "train_loss": result.history[-1]["loss"],
        "validation_bits_per_byte": result.history[-1]["validation_bits_per_byte"],
        "tokens_per_second": round(per_second),
        "precision": precision,
        "device": device.type,
    }


def new_model(config: PretrainConfig, vocab_size: int, seed: int) -> Decoder:
    """The recipe's model with random weights."""
    shape = ModelConfig(vocab_size=vocab_size, **config.model.model_dump())
    if config.mup_base_width is not None:
        shape = mup_shape(shape, config.mup_base_width)
    return Decoder(shape).init_weights(seed, config.init)


def _validation_batch(store: TokenStore, domain: str, config: PretrainConfig, bos_id: int, masked: bool) -> TokenBatch:
    """The first validation tokens of a domain as rows that do not overlap; attention as in training."""
    length = config.sequence_length
    tokens = np.asarray(store.tokens("validation", domain)[: config.validation_tokens + 1]).astype(np.int64)
    length = min(length, len(tokens) - 1)
    if length < 1:
        raise GristmillError(f"domain {domain!r} has no validation tokens: raise corpus.validation_fraction")
    rows = (len(tokens) - 1) // length
    inputs = torch.from_numpy(tokens[: rows * length].reshape(rows, length))
    targets = torch.from_numpy(tokens[1 : rows * length + 1].reshape(rows, length))
    segments = (inputs == bos_id).cumsum(dim=1) if masked else None
    return TokenBatch(inputs, targets, torch.ones_like(targets, dtype=torch.float32), segments)


@torch.no_grad()
def _bits_per_byte(
    model: Decoder, batch: TokenBatch, token_bytes: torch.Tensor, precision: str, device: torch.device
) -> float:
    """Bits per byte over one batch; tokens that stand for no bytes are not counted."""
    sizes = token_bytes[batch.targets_BT]
    weighted = replace(batch, weights_BT=(sizes > 0).float())
    nats = torch.zeros((), dtype=torch.float64, device=device)
    try:
        for rows in weighted.split(8):
            with autocast(precision, device):
                nats += next_token_loss(model, rows).total
    finally:
        mark_padding(model, None)
    return float(nats) / math.log(2) / float(sizes.sum())
