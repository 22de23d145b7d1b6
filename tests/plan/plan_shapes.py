"""Model shapes of every kind, for property tests."""

import re

from hypothesis import strategies as st

from gristmill.model.config import ModelConfig
from gristmill.plan import parameters


@st.composite
def experts(draw, num_layers):
    groups = draw(st.sampled_from([1, 1, 2]))
    group = draw(st.integers(2, 4))
    top_groups = draw(st.integers(1, groups))
    return {
        "num_experts": groups * group,
        "top_k": draw(st.integers(1, top_groups * group)),
        "intermediate_size": draw(st.integers(1, 9)),
        "shared_intermediate_size": draw(st.sampled_from([0, 3, 8])),
        "dense_layers": draw(st.lists(st.integers(0, num_layers - 1), unique=True, max_size=num_layers - 1)),
        "router": draw(st.sampled_from(["softmax", "sigmoid"])),
        "normalize_top_k": draw(st.booleans()),
        "num_groups": groups,
        "top_groups": top_groups,
        "group_score": draw(st.sampled_from(["max", "top2"])),
        "balance": draw(st.sampled_from(["none", "aux_loss", "bias"])),
    }


@st.composite
def latents(draw):
    return {
        "kv_rank": draw(st.integers(1, 9)),
        "q_rank": draw(st.none() | st.integers(1, 9)),
        "nope_head_dim": draw(st.integers(1, 6)),
        "rope_head_dim": 2 * draw(st.integers(1, 3)),
        "value_head_dim": draw(st.integers(1, 6)),
    }


@st.composite
def model_configs(draw):
    """Every field that a decoder has, in every combination that the config allows; small."""
    num_layers = draw(st.integers(1, 4))
    kv_heads = draw(st.integers(1, 3))
    sliding = draw(st.booleans())
    kinds = st.lists(st.sampled_from(["full", "sliding"]), max_size=num_layers - 1)
    fields = {
        "vocab_size": draw(st.integers(1, 40)),
        "hidden_size": 2 * draw(st.integers(1, 12)),
        "num_layers": num_layers,
        "num_kv_heads": kv_heads,
        "num_heads": kv_heads * draw(st.integers(1, 3)),
        "head_dim": 2 * draw(st.integers(1, 4)),
        "intermediate_size": draw(st.integers(1, 20)),
        "max_seq_len": draw(st.integers(4, 30)),
        "causal": draw(st.sampled_from([True, True, False])),
        "output_bias": draw(st.booleans()),
        "attention_softcap": draw(st.sampled_from([None, 5.0])),
        "learned_sinks": draw(st.booleans()),
        "norm": draw(st.sampled_from(["rmsnorm", "layernorm"])),
        "norm_unit_offset": draw(st.booleans()),
        "embedding_norm": draw(st.booleans()),
        "embedding_scale": draw(st.sampled_from([1.0, 3.0])),
        "activation": draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2"])),
        "gated": draw(st.booleans()),
        "parallel_block": draw(st.sampled_from(["none", "none", "shared", "separate"])),
        "tie_embeddings": draw(st.booleans()),
        "logit_scale": draw(st.sampled_from([1.0, 0.5])),
        "logit_softcap": draw(st.sampled_from([None, 5.0])),
    }
    if sliding:
        fields["attention_pattern"] = [*draw(kinds), "sliding"]
        fields["sliding_window"] = draw(st.integers(1, 12))
        fields["sink_tokens"] = draw(st.integers(0, 3))
    fields["norm_bias"] = fields["norm"] == "layernorm" and draw(st.booleans())
    fields["head_bias"] = not fields["tie_embeddings"] and draw(st.booleans())
    if fields["parallel_block"] == "none":
        fields["norm_position"] = draw(st.sampled_from(["pre", "post", "sandwich", "output"]))
    if draw(st.integers(0, 3)) == 0:
        latent = draw(latents())
        fields |= {
            "latent": latent,
            "num_kv_heads": fields["num_heads"],
            "head_dim": latent["nope_head_dim"] + latent["rope_head_dim"],
        }
    else:
        fields["positions"] = draw(st.sampled_from(["rope", "alibi", "learned", "sinusoidal", "none"]))
        fields["qkv_bias"] = draw(st.booleans())
        fields["qk_norm"] = draw(st.sampled_from(["none", "head", "projection"]))
    if draw(st.booleans()):
        fields["experts"] = draw(experts(num_layers))
    else:
        fields["mlp_bias"] = draw(st.booleans())
    return ModelConfig.model_validate(fields)


def evaluated(formula, config):
    """The value of a formula in the symbols of plan/parameters.py; a space or nothing between factors is a product."""
    latent, experts = config.latent, config.experts
    known = {"V": config.vocab_size, "C": config.hidden_size, "L": config.num_layers, "H": config.num_heads,
               "K": config.num_kv_heads, "D": config.head_dim, "F": config.intermediate_size, "S": config.max_seq_len,
               "E": config.value_dim}  # fmt: skip
    if latent:
        known |= {"Rq": latent.q_rank, "R": latent.kv_rank, "N": latent.nope_head_dim, "P": latent.rope_head_dim}
    if experts:
        known |= {"X": experts.num_experts, "Fx": experts.intermediate_size, "Fs": experts.shared_intermediate_size}
    shown = parameters.symbols(config)
    known |= {symbol: value for symbol, value in shown.items() if symbol in ("Tt", "Y", "Ld", "B")}
    assert {symbol: known[symbol] for symbol in shown if symbol in known} == {s: shown[s] for s in shown if s in known}
    written = ""
    for token in re.findall(r"[A-Z][a-z]?|\d+|[()+*]", formula):
        if written and written[-1] not in "(+*" and token not in ")+*":
            written += "*"
        written += str(known.get(token, token))
    return eval(written)
