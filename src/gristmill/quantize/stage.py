"""Stage `int8`: the aligned model with 8-bit weights, written, read back and measured against the original."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ..artifact import Figures, StageRun, write_json
from ..errors import GristmillError
from ..evaluate.bpb import BitsPerByte, bits_per_byte, domain_tokens
from ..model.decoder import Decoder
from ..tokenizer.store import TokenStore
from ..tokenizer.tokenizer import Tokenizer
from ..weights.compressed import QuantizedRows, save_int8
from ..weights.hf_config import CONFIG, DTYPES, read_settings, stored_dtype
from ..weights.layout import block_matrices, split_tensors
from ..weights.load import load_model
from .config import QuantizeConfig
from .int8 import quantize_rows, relative_error

REPORT = "quantization.json"
METHOD = "INT8 weights, symmetric, one scale per output row, rounded to nearest"


def quantize(config: QuantizeConfig, run: StageRun) -> Figures:
    """Quantize the model of `run.inputs["dpo"]`; leaves a compressed-tensors directory and `quantization.json`.

    Bits per byte are measured on validation tokens of `run.inputs["tokens"]`: on the original, and on the saved
    directory as `load_model` reads it back, so that the report speaks of the files and not of what was meant.
    """
    source, tokens = run.inputs["dpo"], run.inputs["tokens"]
    tokenizer, store = Tokenizer.load(source), TokenStore.open(tokens)
    if store.tokenizer_hash != tokenizer.hash:
        raise GristmillError(f"{tokens} was packed with another tokenizer than that of {source}: pack it again")
    model = load_model(source)
    if config.window > model.config.max_seq_len:
        raise GristmillError(
            f"int8.window ({config.window}) is more than the {model.config.max_seq_len} tokens the model was made for"
        )
    dtype = stored_dtype(read_settings(source), source / CONFIG) if config.dtype == "auto" else DTYPES[config.dtype]
    before = _measure(model, store, tokenizer, config)
    started = time.monotonic()
    quantized, layers = quantize_blocks(model, dtype, run)
    seconds = time.monotonic() - started
    save_int8(model, quantized, run.out, source, dtype)
    del model, quantized
    after = _measure(load_model(run.out), store, tokenizer, config)
    report = _report(layers, before, after, _weight_bytes(source), _weight_bytes(run.out))
    write_json(run.out / REPORT, report | {"unquantized_dtype": str(dtype).removeprefix("torch."), "layers": layers})
    return report | {"quantize_seconds": round(seconds, 3)}


def quantize_blocks(
    model: Decoder, scale_dtype: torch.dtype, run: StageRun
) -> tuple[dict[str, QuantizedRows], list[dict[str, Any]]]:
    """Every matrix of the blocks (`weights.layout.block_matrices`) quantized, and a table of what each one lost."""
    wanted = block_matrices(model.config)
    quantized: dict[str, QuantizedRows] = {}
    table: list[dict[str, Any]] = []
    for name, weight in split_tensors(model):
        module = name.removesuffix(".weight")
        if module not in wanted:
            continue
        quantized[module] = quantize_rows(weight, name, scale_dtype)
        error = relative_error(weight, quantized[module])
        table.append({"name": module, "shape": list(weight.shape), "relative_error": round(error, 8)})
        run.log.progress(len(quantized), len(wanted), "matrices")
    return quantized, table


def _measure(model: Decoder, store: TokenStore, tokenizer: Tokenizer, config: QuantizeConfig) -> BitsPerByte:
    """Bits and bytes summed over the domains, every token read once."""
    bits, size = 0.0, 0
    for domain in store.domains:
        token_ids, _ = domain_tokens(store, domain, config.tokens_per_domain)
        if not tokenizer.token_bytes[token_ids[1:]].any():
            continue  # a domain may have too little validation text to predict anything
        part = bits_per_byte(
            model,
            token_ids,
            tokenizer.token_bytes,
            window=config.window,
            stride=config.window,
            batch_size=config.batch_size,
        )
        bits, size = bits + part.bits, size + part.bytes
    if not size:
        raise GristmillError("the tokens hold no validation text to measure on: raise corpus.validation_fraction")
    return BitsPerByte(bits, size)


def _report(
    layers: list[dict[str, Any]], before: BitsPerByte, after: BitsPerByte, bytes_before: int, bytes_after: int
) -> Figures:
    errors = [layer["relative_error"] for layer in layers]
    return {
        "method": METHOD,
        "bytes_before": bytes_before,
        "bytes_after": bytes_after,
        "compression": round(bytes_before / bytes_after, 4),
        "bits_per_byte_before": round(before.value, 6),
        "bits_per_byte_after": round(after.value, 6),
        "validation_bytes": before.bytes,
        "mean_relative_error": round(sum(errors) / len(errors), 8),
        "max_relative_error": max(errors),
    }


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
