"""Stage `inspect`: what the run's last unquantized model holds, as tables and one picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ..artifact import Figures, StageRun, rounded, write_json
from ..errors import GristmillError
from ..model.decoder import Decoder
from ..tokenizer.tokenizer import Tokenizer
from ..weights.load import load_model
from .attention import HeadFacts, attention_patterns, head_facts, strongest
from .config import InspectConfig
from .embeddings import frequent_tokens, neighbour_table, spread, word_tokens
from .figure import draw_attention
from .lens import lens_logits, logit_lens
from .weights import norm_table, parameters_by_part, stored_dtypes, weight_table

MODELS = ("dpo", "sft", "base", "model")  # the first of these among the inputs is inspected


def inspect(config: InspectConfig, run: StageRun) -> Figures:
    """Look inside the model; leaves `report.json`, `attention.png`, `embedding_neighbours.json`, `logit_lens.json`
    and `weights.json`."""
    name = next((name for name in MODELS if name in run.inputs), None)
    if name is None:
        raise GristmillError(f"inspect needs one of the inputs {', '.join(MODELS)}")
    model = load_model(run.inputs[name]).eval()
    tokenizer = Tokenizer.load(run.inputs[name])
    token_ids = [tokenizer.bos_id, *tokenizer.encode(config.prompt)]
    repeated = repeated_sequence(tokenizer, config.repeated_tokens, run.seed)
    for what, length in (("prompt", len(token_ids)), ("repeated_tokens", len(repeated))):
        if length > model.config.max_seq_len:
            raise GristmillError(
                f"inspect.{what} makes {length} tokens, more than the {model.config.max_seq_len} that model {name!r} "
                "was made for: shorten it"
            )

    patterns = attention_patterns(model, token_ids)
    heads = head_facts(patterns, attention_patterns(model, repeated), config.repeated_tokens)
    pieces = [tokenizer.decode([token], skip_special_tokens=False) for token in token_ids]
    draw_attention(patterns, pieces, run.out / "attention.png")
    lens = logit_lens(lens_logits(model, token_ids), token_ids, tokenizer, config.lens_tokens)
    _write(run, "logit_lens.json", {"prompt": config.prompt, "layers": lens})
    _write(run, "embedding_neighbours.json", _neighbours(config, model, tokenizer))
    tensors = weight_table(model, stored_dtypes(run.inputs[name]))
    _write(run, "weights.json", {"tensors": tensors, "norms": norm_table(model)})
    report = {
        "config": model.config.model_dump(),
        "parameters": model.config.num_parameters,
        "parameters_by_part": parameters_by_part(model),
        "prompt": config.prompt,
        "prompt_tokens": pieces,
        "embedding": spread(model.embedding.weight.detach()),
        "strongest_heads": _strongest(heads),
        "heads": [asdict(head) for head in heads],
        "lens": [{key: value for key, value in layer.items() if key != "positions"} for layer in lens],
    }
    _write(run, "report.json", report)
    return _figures(report)


def repeated_sequence(tokenizer: Tokenizer, period: int, seed: int) -> list[int]:
    """`<|bos|>` and twice the same `period` random tokens: nothing but the repetition can be predicted."""
    ordinary = torch.from_numpy(tokenizer.token_bytes > 0).nonzero().flatten()
    drawn = torch.randint(len(ordinary), (period,), generator=torch.Generator().manual_seed(seed))
    tokens = ordinary[drawn].tolist()
    return [tokenizer.bos_id, *tokens, *tokens]


def _neighbours(config: InspectConfig, model: Decoder, tokenizer: Tokenizer) -> dict[str, Any]:
    chosen = word_tokens(tokenizer, config.words)
    frequent = frequent_tokens(tokenizer, config.frequent_tokens)
    table = model.embedding.weight.detach()
    return {
        "words": neighbour_table(table, list(chosen.values()), tokenizer, config.neighbours),
        "words_of_several_tokens": [word for word in config.words if word not in chosen],
        "frequent": neighbour_table(table, frequent, tokenizer, config.neighbours),
    }


def _strongest(heads: list[HeadFacts]) -> dict[str, dict[str, float | int]]:
    return {name: strongest(heads, name) for name in ("first_token", "previous_token", "induction")}


def _figures(report: dict[str, Any]) -> Figures:
    strongest_heads = report["strongest_heads"]
    return {
        "parameters": report["parameters"],
        "embedding_mean_cosine": rounded(report["embedding"]["mean_cosine"]),
        **{f"strongest_{name}_head": rounded(fact["value"]) for name, fact in strongest_heads.items()},
    }


def _write(run: StageRun, name: str, value: Any) -> None:
    write_json(run.out / name, rounded(value))
