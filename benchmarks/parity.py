"""Our decoder against transformers, family by family: logits, gradients, saved files and greedy generation.

    python benchmarks/parity.py               prints the table of docs/models.md
    python benchmarks/parity.py --write       puts it there, between its two markers

Every model is tiny, random, float32 and on the CPU; transformers computes attention eagerly. Differences are the
largest over all logits, and over all parameters' gradients of the same cross-entropy.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from gristmill.engine.blocks import BlockPool
from gristmill.engine.config import EngineConfig
from gristmill.engine.request import Request
from gristmill.engine.runner import Runner
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.scheduler import Scheduler
from gristmill.model.decoder import Decoder
from gristmill.weights.families import family_of
from gristmill.weights.hf import save_model
from gristmill.weights.load import load_model

TOLERANCE = 1e-4
NEW_TOKENS = 24
DOCS = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- parity:begin -->", "<!-- parity:end -->"


@dataclass(frozen=True)
class Case:
    """A model of transformers: the class of its configuration and what differs from the tiny defaults."""

    family: str
    what: str
    config: str
    changes: dict[str, Any] = field(default_factory=dict)
    length: int = 24
    own_sizes: bool = False


COMMON = {"vocab_size": 61, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
MPT = {"d_model": 32, "n_layers": 3, "max_seq_len": 64}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "moe_intermediate_size": 12,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
V2 = LATENT | {"n_routed_experts": 6, "n_shared_experts": 2}
V3 = LATENT | {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 4, "topk_group": 2}
WINDOW = {"sliding_window": 7}
THETA = {"rope_theta": 500.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
DEEPSEEK_YARN = YARN | {"mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 8, "beta_slow": 1}


def rope(parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 500.0, **parameters}, **more}


CASES = [
    Case("llama", "grouped-query", "LlamaConfig"),
    Case("llama", "biases, wide heads, tied", "LlamaConfig",
         {"attention_bias": True, "mlp_bias": True, "head_dim": 14, "tie_word_embeddings": True}),
    Case("llama", "linear scaling, 4x the trained length", "LlamaConfig", rope(LINEAR), 64),
    Case("llama", "dynamic scaling, 2x the trained length", "LlamaConfig",
         rope(DYNAMIC, max_position_embeddings=24), 48),
    Case("llama", "yarn, 4x the trained length", "LlamaConfig", rope(YARN), 64),
    Case("llama", "llama3 scaling, 4x the trained length", "LlamaConfig", rope(LLAMA3), 64),
    Case("mistral", "sliding window", "MistralConfig", WINDOW),
    Case("ministral", "a window in two layers of three", "MinistralConfig",
         {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "head_dim": 8, **WINDOW}),
    Case("qwen2", "sliding from layer 1", "Qwen2Config",
         {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}),
    Case("qwen3", "norms of queries and keys", "Qwen3Config", {"head_dim": 10}),
    Case("gemma2", "soft-caps, alternating windows", "Gemma2Config", {"head_dim": 8, **WINDOW}),
    Case("gemma3_text", "two rotary bases", "Gemma3TextConfig",
         {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **WINDOW}),
    Case("gemma3_text", "linear scaling of full layers", "Gemma3TextConfig",
         {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention", "full_attention"], **WINDOW,
          "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}}}, 64),
    Case("olmo2", "norms after each layer", "Olmo2Config"),
    Case("gpt2", "learned positions", "GPT2Config", GPT2, own_sizes=True),
    Case("gpt_neox", "parallel block, partial rotation", "GPTNeoXConfig", {"rotary_pct": 0.5}),
    Case("nemotron", "squared ReLU, LayerNorm of 1 + w", "NemotronConfig"),
    Case("mpt", "ALiBi, 4 heads", "MptConfig", MPT | {"n_heads": 4}, own_sizes=True),
    Case("mpt", "ALiBi, 6 heads", "MptConfig", MPT | {"n_heads": 6, "d_model": 36}, own_sizes=True),
    Case("mixtral", "8 experts, 2 a token", "MixtralConfig"),
    Case("qwen3_moe", "experts in every second layer", "Qwen3MoeConfig",
         {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "decoder_sparse_step": 2,
          "norm_topk_prob": True, "head_dim": 8}),
    Case("deepseek_v2", "latent attention, shared experts", "DeepseekV2Config", V2),
    Case("deepseek_v2", "groups, no query rank", "DeepseekV2Config",
         V2 | {"q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2,
               "routed_scaling_factor": 1.7}),
    Case("deepseek_v2", "yarn with mscale, 4x the trained length", "DeepseekV2Config", rope(DEEPSEEK_YARN, **V2), 64),
    Case("deepseek_v3", "sigmoid router, bias on the choice", "DeepseekV3Config", V3),
    Case("deepseek_v3", "yarn with mscale, 4x the trained length", "DeepseekV3Config", rope(DEEPSEEK_YARN, **V3), 64),
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Largest differences, and whether the greedy tokens are the same."""

    logits: float
    gradients: float
    saved: float
    same_tokens: bool


def build(case: Case) -> Any:
    """transformers' model with random weights: matrices of deviation 0.2, gains around their neutral value."""
    config = getattr(transformers, case.config)(**COMMON | ({} if case.own_sizes else SIZES) | case.changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn(buffer.shape) * 0.2)
    return model.eval()


def measure(case: Case) -> Result:
    """Save with transformers, load here, compare; save here, load with transformers, compare."""
    theirs = build(case)
    ids = torch.randint(61, (2, case.length), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        theirs.save_pretrained(work / "theirs")
        ours = load_model(work / "theirs")
        assert family_of(ours.config).model_type == case.family
        our_logits, their_logits = ours(ids), theirs(ids).logits
        gradients = _gradients(ours, theirs, our_logits, their_logits, ids, work)
        save_model(ours, work / "ours", write_tokenizer(work / "tokenizer"))
        saved = _reload(work / "ours")
        with torch.no_grad():
            again = saved(ids).logits
    return Result(
        logits=float((our_logits - their_logits).detach().abs().max()),
        gradients=gradients,
        saved=float((again - their_logits.detach()).abs().max()),
        same_tokens=_greedy(ours, ids[:1, :5]) == _their_greedy(theirs, ids[:1, :5], case),
    )


def _gradients(
    ours: Decoder, theirs: Any, our_logits: torch.Tensor, their_logits: torch.Tensor, ids: torch.Tensor, work: Path
) -> float:
    """The largest difference of gradients. Theirs come to our names as weights do: saved in the place of the weights
    and loaded, since what happens on the way only moves numbers."""
    for logits in (our_logits, their_logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    holder = copy.deepcopy(theirs)
    with torch.no_grad():
        for target, source in zip(holder.parameters(), theirs.parameters(), strict=True):
            target.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    holder.save_pretrained(work / "gradients")
    expected = dict(load_model(work / "gradients").named_parameters())
    found = 0.0
    for name, parameter in ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = max(found, float((gradient - expected[name].detach()).abs().max()))
    assert max(float(parameter.detach().abs().max()) for parameter in expected.values()) > 1e-3
    return found


def _reload(directory: Path) -> Any:
    """Strictly: a tensor that is missing would otherwise be random, with a mere warning."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (problem, info[problem])
    return model.eval()


@torch.no_grad()
def _greedy(model: Decoder, ids: torch.Tensor) -> list[int]:
    """Through the engine's scheduler, runner and cache."""
    request = Request(0, ids[0].tolist(), SamplingParams(max_tokens=NEW_TOKENS, temperature=0))
    longest, prompt = ids.shape[1] + NEW_TOKENS, ids.shape[1]
    config = EngineConfig(
        max_num_seqs=1, max_model_len=longest, max_num_batched_tokens=prompt, num_blocks=-(-longest // 16)
    )
    scheduler = Scheduler(config, BlockPool(config.num_blocks, config.block_size))
    runner = Runner(model, config, model.config.vocab_size)
    scheduler.add(request)
    while len(request.output_ids) < NEW_TOKENS:
        step = scheduler.schedule()
        assert step is not None
        scheduler.took(request, runner.launch(step).read().token_ids)
        scheduler.done(step)
    return [*request.prompt_ids, *request.output_ids]


def _their_greedy(model: Any, ids: torch.Tensor, case: Case) -> list[int]:
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, use_cache=True,
        pad_token_id=0,
    )  # fmt: skip
    return out[0].tolist()


def write_tokenizer(directory: Path) -> Path:
    """The smallest tokenizer that a model directory can carry."""
    directory.mkdir()
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return directory


def table(results: list[tuple[Case, Result]]) -> str:
    """The rows of docs/models.md: differences rounded up to a power of ten, so that the table stays the same on
    machines that add in another order."""
    lines = [
        "| family | what | logits | gradients | saved and read by transformers | greedy tokens |",
        "|---|---|---|---|---|---|",
    ]
    for case, result in results:
        figures = " | ".join(_bound(value) for value in (result.logits, result.gradients, result.saved))
        same = "equal" if result.same_tokens else "differ"
        lines.append(f"| `{case.family}` | {case.what} | {figures} | {same} |")
    return "\n".join(lines)


def _bound(value: float) -> str:
    """`<= 1e-5`: the next power of ten, from 1e-6 on."""
    exponent = -6
    while value > 10.0**exponent:
        exponent += 1
    return f"≤ 1e{exponent}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Parity with transformers, family by family.")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    text = table([(case, measure(case)) for case in CASES])
    if not arguments.write:
        print(text)
        return
    page = DOCS.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
