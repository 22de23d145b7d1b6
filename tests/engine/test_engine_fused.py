"""The fused layers beside the plain decoder: the same hidden states, for every kind of block, through their plain-torch
references; on a GPU through the kernels."""

import pytest
import torch
from torch import nn

from gristmill.engine.fused import FusedDecoder, FusedStep, unfused
from gristmill.kernels.rope_kv import PagedLayer
from gristmill.model.attention import masked_attention
from gristmill.model.config import Experts, LatentAttention, ModelConfig, RopeScaling
from gristmill.model.decoder import Decoder

SHAPE = {
    "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "intermediate_size": 48,
    "max_seq_len": 64, "vocab_size": 61,
}  # fmt: skip
EXPERTS = Experts(num_experts=4, top_k=2, intermediate_size=16, dense_layers=(0,))
YARN = RopeScaling(kind="yarn", factor=4.0, original_max_seq_len=16)
DYNAMIC = RopeScaling(kind="dynamic", factor=2.0, original_max_seq_len=8)
KINDS = {
    "llama": {},
    "qwen2": {"qkv_bias": True, "tie_embeddings": False, "head_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gemma3": {
        "norm_position": "sandwich", "norm_unit_offset": True, "qk_norm": "head", "activation": "gelu_tanh",
        "sliding_window": 5, "attention_pattern": ("sliding", "full"), "sliding_rope_theta": 100.0,
        "attention_softcap": 3.0, "embedding_scale": 5.5, "logit_softcap": 2.0,
    },
    "gpt2": {
        "norm": "layernorm", "norm_bias": True, "gated": False, "activation": "gelu", "mlp_bias": True,
        "qkv_bias": True, "output_bias": True, "positions": "learned",
    },
    "neox": {
        "norm": "layernorm", "norm_bias": True, "parallel_block": "separate", "rope_fraction": 0.5, "gated": False,
        "mlp_bias": True, "logit_scale": 0.5,
    },
    "falcon": {"parallel_block": "shared", "num_kv_heads": 1},
    "olmo2": {"norm_position": "output"},
    "bert-like": {"norm_position": "post", "embedding_norm": True},
    "mpt": {"norm": "layernorm", "norm_unit_offset": True, "positions": "alibi", "activation": "relu2"},
    "oss": {"learned_sinks": True, "rope_scaling": YARN, "experts": EXPERTS},
    "dynamic": {"rope_scaling": DYNAMIC},
}  # fmt: skip
BLOCK = 4
PROMPTS = (13, 9)  # together more rows than the small products take
LENGTH = 16


def build(kind, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**{**SHAPE, **KINDS[kind]})).init_weights(0)
    for parameter in model.parameters():  # norms and biases that are not all alike
        nn.init.normal_(parameter, parameter.mean().item(), 0.2)
    return model.to(dtype).to(device).eval()


class Cache:
    """Blocks of two sequences, shuffled, and attention that gathers them."""

    def __init__(self, model, dtype, device):
        generator = torch.Generator().manual_seed(1)
        blocks = LENGTH // BLOCK
        config = model.config
        self.table = torch.randperm(2 * blocks, generator=generator).view(2, blocks).int().to(device)
        shape = 2 * blocks, BLOCK, config.num_kv_heads, config.head_dim
        empty = lambda: torch.full(shape, float("nan"), dtype=dtype, device=device)  # noqa: E731
        self.layers = [PagedLayer(empty(), empty(), self.table) for _ in range(config.num_layers)]

    def attention(self, positions_N, slots_N):
        def attend(spec, q_NHD, layer):
            out = q_NHD.new_zeros(q_NHD.shape)
            for slot in (0, 1):
                own = (slots_N == slot) & (positions_N >= 0)
                if own.any():
                    at = positions_N[own]
                    keys, values = (
                        tensor[self.table[slot].long()].flatten(0, 1)[: int(at.max()) + 1]
                        for tensor in (layer.keys, layer.values)
                    )
                    key_at = torch.arange(len(keys), device=at.device)
                    mask = key_at <= at[:, None]
                    out[own] = masked_attention(spec, q_NHD[own][None], keys[None], values[None], mask, at, key_at)[0]
            return out

        return attend


def run(model, ids, dtype=torch.float32, device="cpu", **options):
    """Hidden states `[2, T, C]` of two sequences: their prompts in one step, then token by token together."""
    cache, fused = Cache(model, dtype, device), FusedDecoder(model)
    found = torch.full((2, LENGTH, SHAPE["hidden_size"]), float("nan"), dtype=dtype, device=device)
    steps = [[(slot, at) for slot in (0, 1) for at in range(PROMPTS[slot])]]
    for ahead in range(LENGTH):
        steps.append([(slot, PROMPTS[slot] + ahead) for slot in (0, 1) if PROMPTS[slot] + ahead < LENGTH])
    for tokens in filter(None, steps):
        slots, positions = torch.tensor(tokens, device=device).unbind(1)
        lengths = torch.tensor([max(at + 1, PROMPTS[slot]) for slot, at in tokens], device=device)
        attend = cache.attention(positions, slots)
        step = FusedStep(positions, slots, cache.layers, attend, contexts_N=lengths, **options)
        found[slots, positions] = fused.hidden_states(ids[slots, positions], step)
    return found


def expected_of(model, ids):
    """The same through the plain blocks, sequence by sequence."""
    rows = []
    for slot in (0, 1):
        places = torch.arange(LENGTH, device=ids.device)[None]
        lengths = (places + 1).clamp(min=PROMPTS[slot])
        rows.append(model.hidden_states(ids[slot : slot + 1], places, context_length=lengths)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_hidden_states_are_the_plain_decoders(kind):
    model = build(kind)
    ids = torch.randint(61, (2, LENGTH))
    expected = expected_of(model, ids)
    torch.testing.assert_close(run(model, ids), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run(model, ids, invariant=True), expected, rtol=1e-4, atol=1e-4)
    few, many = expected[0, :3], expected.flatten(0, 1)[:20]
    for hidden in (few, many):
        torch.testing.assert_close(FusedDecoder(model).logits(hidden), model.logits(hidden), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing():
    model = build("qwen3")
    ids = torch.randint(61, (3,))
    results = []
    for padding in (0, 4):
        cache = Cache(model, torch.float32, "cpu")
        positions = torch.tensor([0, 1, 2] + [-1] * padding)
        slots = torch.tensor([1, 1, 1] + [0] * padding)
        step = FusedStep(positions, slots, cache.layers, cache.attention(positions, slots))
        padded = torch.cat((ids, torch.zeros(padding, dtype=torch.int64)))
        results.append((FusedDecoder(model).hidden_states(padded, step)[:3], cache.layers[1].keys))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


class Doubled(nn.Linear):
    """A linear layer that is more than its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


@torch.no_grad()
def test_layers_that_are_more_than_a_weight_are_called():
    model = build("llama")
    attention, feed_forward = model.blocks[1].attention, model.blocks[0].feed_forward
    for owner, name in ((attention, "qkv"), (attention, "output"), (feed_forward, "gate_up"), (feed_forward, "down")):
        plain = getattr(owner, name)
        doubled = Doubled(plain.in_features, plain.out_features, bias=False)
        doubled.load_state_dict(plain.state_dict())
        setattr(owner, name, doubled)
    ids = torch.randint(61, (2, LENGTH))
    torch.testing.assert_close(run(model, ids), expected_of(model, ids), rtol=1e-4, atol=1e-4)


def test_what_is_not_fused_is_named():
    latent = LatentAttention(kv_rank=8, nope_head_dim=4, rope_head_dim=4, value_head_dim=8)
    shape = {**SHAPE, "num_kv_heads": 4}
    assert "latent" in unfused(ModelConfig(**shape, latent=latent))
    assert "norms" in unfused(ModelConfig(**SHAPE, qk_norm="projection"))
    assert unfused(ModelConfig(**SHAPE)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_kernels_are_the_plain_decoder(kind, invariant):
    pytest.importorskip("triton")
    model = build(kind, device="cuda")
    ids = torch.randint(61, (2, LENGTH), device="cuda")
    torch.testing.assert_close(
        run(model, ids, device="cuda", invariant=invariant), expected_of(model, ids), rtol=2e-3, atol=2e-3
    )
    narrow = build(kind, torch.bfloat16, "cuda")
    found = run(narrow, ids, torch.bfloat16, "cuda", invariant=invariant).float()
    error = (found - expected_of(narrow, ids).float()).norm() / found.norm()
    assert error < 3e-2
