"""What the planner expects of adapters beside a frozen model, against the bytes of live tensors: plain modules around
the decoder's own linear layers, frozen in 16 bits, in 8 with a scale for each row, or in 4 with scales for 64."""

import pytest
import torch
from live_bytes import LiveBytes, autocast_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.plan.activations import Arithmetic
from gristmill.plan.finetune_memory import Adapters, adapter_memory
from gristmill.plan.memory import TrainingRun, logits_chunk

SHAPE = {"vocab_size": 2048, "hidden_size": 192, "num_layers": 6, "num_heads": 6, "num_kv_heads": 2, "head_dim": 32,
         "intermediate_size": 512, "max_seq_len": 256}  # fmt: skip
GPT = {"gated": False, "activation": "gelu_tanh", "num_kv_heads": 6, "positions": "learned", "norm": "layernorm"}
ALL = ("q", "k", "v", "output", "gate", "up", "down")


class Unpacked(torch.autograd.Function):
    """x @ W.T of a packed matrix, which is made whole in forward and once more in backward."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return x @ layer.whole(x.dtype).T

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.layer.whole(grad.dtype), None


class Packed(nn.Module):
    """A frozen matrix in 8 bits, or two numbers to a byte."""

    def __init__(self, linear, kind):
        super().__init__()
        rows, columns = linear.weight.shape
        self.shape = (rows, columns)
        numbers = rows * columns // (1 if kind == "int8" else 2)
        self.codes = nn.Buffer(torch.zeros(numbers, dtype=torch.uint8))
        scales = rows * 4 if kind == "int8" else rows * columns // 64
        self.scales = nn.Buffer(torch.zeros(scales, dtype=torch.uint8))

    def whole(self, dtype):
        return torch.zeros(self.shape, dtype=dtype)

    def forward(self, x):
        return Unpacked.apply(x.to(torch.bfloat16), self)


class WithAdapters(nn.Module):
    """base(x) and, for each named part of its rows, up(down(x))."""

    def __init__(self, base, sizes, rank, targets):
        super().__init__()
        self.base, self.sizes = base, sizes
        into = base.shape[1] if isinstance(base, Packed) else base.in_features
        chosen = [name for name in sizes if name in targets]
        self.downs = nn.ModuleDict({name: nn.Linear(into, rank, bias=False) for name in chosen})
        self.ups = nn.ModuleDict({name: nn.Linear(rank, sizes[name], bias=False) for name in chosen})

    def forward(self, x):
        out, start = self.base(x), 0
        for name, rows in self.sizes.items():
            if name in self.downs:
                out[..., start : start + rows] += self.ups[name](self.downs[name](x))
            start += rows
        return out


def adapted(config, adapters):
    """The decoder, frozen, with adapters."""
    model = Decoder(config).requires_grad_(False)
    for module in model.modules():  # norms stay in float32, as they do in training
        if isinstance(module, nn.Linear | nn.Embedding) and adapters.base != "fp32":
            module.weight = nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)
    kv = config.num_kv_heads * config.head_dim
    sizes = {
        "qkv": {"q": config.num_heads * config.head_dim, "k": kv, "v": kv},
        "output": {"output": config.hidden_size},
        "gate_up": {"gate": config.intermediate_size, "up": config.intermediate_size},
        "up": {"up": config.intermediate_size},
        "down": {"down": config.hidden_size},
    }
    for name, module in list(model.blocks.named_modules()):
        if type(module) is nn.Linear:
            *outer, last = name.split(".")
            base = Packed(module, adapters.base) if adapters.base in ("int8", "nf4") else module
            with_adapters = WithAdapters(base, sizes[last], adapters.rank, adapters.targets)
            setattr(model.blocks.get_submodule(".".join(outer)), last, with_adapters)
    return model


class FrozenHead(torch.autograd.Function):
    """Cross-entropy a chunk of tokens at a time, whose head needs no gradient."""

    @staticmethod
    def forward(ctx, hidden, head, targets, size):
        grad_hidden = torch.empty_like(hidden)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            logits = hidden[rows] @ head.to(hidden.dtype).T
            shares = logits.float() if logits.dtype != torch.float32 else logits
            shares.sub_(shares.amax(-1, keepdim=True)).exp_()
            shares.div_(shares.sum(-1, keepdim=True))
            if shares is not logits:
                logits.copy_(shares)
            del shares
            torch.mm(logits, head.to(hidden.dtype), out=grad_hidden[rows])
        ctx.save_for_backward(grad_hidden)
        return hidden.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad.to(ctx.saved_tensors[0].dtype), None, None, None


def measured(config, adapters, rows, columns, precision, checkpointing="none"):
    with FakeTensorMode(), LiveBytes() as meter:
        model = adapted(config, adapters)
        state = [torch.zeros_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
        meter.peak = meter.live
        ids = torch.zeros(rows, columns, dtype=torch.long)
        if checkpointing == "block":
            for block in model.blocks:
                block.forward = (lambda inner: lambda *a: checkpoint(inner, *a, use_reentrant=False))(block.forward)
            model.embedding.weight.requires_grad_(False)
        with autocast_of(precision):
            hidden = model.hidden_states(ids).flatten(0, 1)
            if precision == "bf16":
                hidden = hidden.to(torch.bfloat16)
            head = model.embedding.weight if model.head is None else model.head.weight
            size = logits_chunk(len(hidden), config.vocab_size, hidden.element_size(), "cpu")
            FrozenHead.apply(hidden, head, ids.flatten(), size).backward()
        del state
    return meter.peak


CASES = [
    ({}, ALL, "bf16", "bf16", "none"),
    ({}, ALL, "nf4", "bf16", "none"),
    ({}, ALL, "int8", "bf16", "none"),
    ({}, ("q", "v"), "bf16", "bf16", "none"),
    ({}, ("q", "v"), "nf4", "bf16", "none"),
    ({}, ("gate", "up", "down"), "bf16", "bf16", "none"),
    ({}, ALL, "nf4", "bf16", "block"),
    ({}, ("q", "v"), "fp32", "fp32", "none"),
    ({}, ALL, "fp32", "fp32", "none"),
    ({"tie_embeddings": False}, ALL, "nf4", "bf16", "none"),
    (GPT, ("q", "k", "v", "output", "up", "down"), "bf16", "bf16", "none"),
    ({"qk_norm": "head"}, ALL, "bf16", "bf16", "none"),
]


@pytest.mark.parametrize(("fields", "targets", "base", "precision", "mode"), CASES)
def test_the_estimate_is_within_a_tenth_of_the_measured_peak(fields, targets, base, precision, mode):
    config = ModelConfig.model_validate(SHAPE | fields)
    adapters = Adapters(16, targets, base)
    arithmetic = Arithmetic(precision, device="cpu", compiled=False)
    for rows in (2, 16):
        estimate = adapter_memory(config, arithmetic, TrainingRun(rows, 128, checkpointing=mode), adapters)
        found = measured(config, adapters, rows, 128, precision, mode)
        assert estimate.total == pytest.approx(found, rel=0.1), (rows, estimate)
