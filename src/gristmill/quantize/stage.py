"""Stage `int8`: the aligned model with 8-bit weights, written, read back and measured against the original."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..artifact import Figures, StageRun, write_json
from ..errors import GristmillError
from ..evaluate.bpb import BitsPerByte, bits_per_byte, domain_tokens
from ..model.decoder import Decoder
from ..tokenizer.store import TokenStore
from ..tokenizer.tokenizer import Tokenizer, check_same
from ..weights.compressed import QuantizedRows, save_int8
from ..weights.hf_config import CONFIG, DTYPES, dtype_name, read_settings, stored_dtype
from ..weights.layout import block_matrices, split_tensors
from ..weights.load import load_model
from .config import QuantizeConfig
from .int8 import quantize_rows, relative_error

REPORT = "quantization.json"
MODELS = ("dpo", "sft", "base", "model")  # the first of these among the inputs is quantized
LONGEST_WINDOW = 256  # of those chosen by the model
METHOD = "INT8 weights, symmetric, one scale per output row, rounded to nearest"


def quantize(config: QuantizeConfig, run: StageRun) -> Figures:
    """Quantize the last aligned model of the inputs (`MODELS`).

    Leaves a compressed-tensors directory and `quantization.json`.

    Where `run.inputs` has `tokens`, bits per byte are measured on their validation split: on the original, and on the
    saved directory as `load_model` reads it back, so that the report speaks of the files and not of what was meant.
    """
    source = _source(run)
    settings = read_settings(source)
    if "quantization_config" in settings:
        raise GristmillError(f"{source / CONFIG} has a quantization_config: the model is quantized already")
    model = load_model(source)
    text = _validation_text(config, run, model) if "tokens" in run.inputs else None
    dtype = stored_dtype(settings, source / CONFIG) if config.dtype == "auto" else DTYPES[config.dtype]
    before = None if text is None else text.measure(model)
    started = time.monotonic()
    quantized, layers = quantize_blocks(model, dtype, run)
    seconds = time.monotonic() - started
    save_int8(model, quantized, run.out, source, dtype)
    del model, quantized
    reloaded = load_model(run.out)
    after = None if text is None else text.measure(reloaded)
    report = _report(layers, before, after, _weight_bytes(source), _weight_bytes(run.out))
    details = {"method": METHOD, "unquantized_dtype": dtype_name(dtype), "layers": layers}
    write_json(run.out / REPORT, report | details)
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


@dataclass(frozen=True)
class _ValidationText:
    """Validation tokens by domain, and how they are read."""

    streams: list[np.ndarray]
    token_bytes: np.ndarray
    config: QuantizeConfig

    def measure(self, model: Decoder) -> BitsPerByte:
        """Bits and bytes summed over the domains, every token read once."""
        config = self.config
        window = config.window or min(LONGEST_WINDOW, model.config.max_seq_len)
        parts = [
            bits_per_byte(
                model,
                stream,
                self.token_bytes,
                window=window,
                stride=window,
                batch_size=config.batch_size,
            )
            for stream in self.streams
        ]
        return BitsPerByte(sum(part.bits for part in parts), sum(part.bytes for part in parts))


def _source(run: StageRun) -> Path:
    return next(run.inputs[name] for name in MODELS if name in run.inputs)


def _validation_text(config: QuantizeConfig, run: StageRun, model: Decoder) -> _ValidationText:
    source, tokens = _source(run), run.inputs["tokens"]
    tokenizer, store = Tokenizer.load(source), TokenStore.open(tokens)
    check_same(tokenizer, store.tokenizer_hash, str(tokens))
    if config.window is not None and config.window > model.config.max_seq_len:
        raise GristmillError(
            f"int8.window ({config.window}) is more than the {model.config.max_seq_len} tokens the model was made for"
        )
    streams = [domain_tokens(store, domain, config.tokens_per_domain)[0] for domain in store.domains]
    # A domain may have too little validation text to predict anything.
    streams = [stream for stream in streams if tokenizer.token_bytes[stream[1:]].any()]
    if not streams:
        raise GristmillError(f"{tokens} holds no validation text to measure on: raise corpus.validation_fraction")
    return _ValidationText(streams, tokenizer.token_bytes, config)


def _report(
    layers: list[dict[str, Any]],
    before: BitsPerByte | None,
    after: BitsPerByte | None,
    bytes_before: int,
    bytes_after: int,
) -> Figures:
    errors = [layer["relative_error"] for layer in layers]
    report: Figures = {
        "bytes_before": bytes_before,
        "bytes_after": bytes_after,
        "compression": round(bytes_before / bytes_after, 4),
        "mean_relative_error": round(sum(errors) / len(errors), 8),
        "max_relative_error": max(errors),
    }
    if before is not None and after is not None:
        report["bits_per_byte_before"] = round(before.value, 6)
        report["bits_per_byte_after"] = round(after.value, 6)
        report["validation_bytes"] = before.bytes
    return report


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
