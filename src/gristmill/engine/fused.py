"""A decoder's blocks through the fused kernels: the same weights and the same numbers up to rounding, in six launches a
block instead of some fifteen.

The plain `Block` (model/decoder.py) stays the definition, and tests/engine/test_engine_fused.py holds the two together.
With few rows, as in decoding, a pre-norm block is: queries, keys and values with the norm before them; rotary positions
and the cache; attention; output with the residual sum; gate and up with their norm and activation; down with the
residual sum. With many rows the products are the library's, and what stands between them is one kernel each.

Every decoder runs here but those `unfused` names. A mixture of experts, and a linear layer that is more than a weight
(quantized, or with an adapter), is called as the module it is, and only what stands around it is fused.

Shape suffixes: N tokens of the step, C hidden_size, H query heads, D key width, E value width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..kernels.norms import Norm, add_norm, norm_add
from ..kernels.rope_kv import PagedLayer, Turning, rope_kv
from ..kernels.small_linear import Path, most_rows, small_linear
from ..kernels.swiglu import activate, gated_activation
from ..model.attention import AttentionSpec
from ..model.config import LayerKind, ModelShape
from ..model.decoder import Block, Decoder
from ..model.feed_forward import FeedForward
from ..model.norms import LayerNorm, OffsetLayerNorm, OffsetRMSNorm, RMSNorm
from ..model.positions import attention_factor, rotary_frequencies
from ..model.self_attention import SelfAttention

MOST_TABLE = 2**26  # bytes of cosines and sines of all positions; above, they are computed each time
Entered = tuple[Tensor, Norm | None]  # what a layer takes, and the norm that is still to be applied to it


@dataclass(frozen=True)
class FusedStep:
    """A step's tokens: where each stands (a negative position pads the batch), whose row of the block table is its
    own, the cache of each layer, and attention over what stands there, `(spec, q_NHD, layer) -> [N, H, E]`.

    `contexts_N`: the context in tokens each reckons with, for `rope_scaling` "dynamic". `invariant`: every row gets the
    same bits in every batch, which costs speed with many rows.
    """

    positions_N: Tensor
    slots_N: Tensor
    layers: Sequence[PagedLayer]
    attend: Callable[[AttentionSpec, Tensor, PagedLayer], Tensor]
    contexts_N: Tensor | None = None
    invariant: bool = False


def unfused(config: ModelShape) -> str | None:
    """Why a model of this shape has to run as its plain blocks; None where it need not."""
    if config.latent is not None:
        return "latent attention"
    if config.qk_norm == "projection":
        return "norms over all heads of queries and keys"
    return None


def varies(model: Decoder) -> str | None:
    """What of a model gives a row other bits in another batch, even `invariant`; None where nothing does."""
    reason = unfused(model.config)
    if reason is not None:
        return reason
    scaling = model.config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        return "rope_scaling dynamic"
    if model.config.experts is not None:
        return "a mixture of experts"
    for name, module in model.blocks.named_modules():
        if name.endswith(("qkv", "output", "gate_up", "up", "down")) and type(module) is not nn.Linear:
            return f"blocks.{name}, a {type(module).__name__},"
    return None


class FusedDecoder:
    """Runs the blocks of a decoder, whose parameters it reads as they are at each call."""

    def __init__(self, model: Decoder):
        reason = unfused(model.config)
        assert reason is None, f"{reason} runs through the plain blocks"
        self.model, self.config = model, model.config
        self._turnings: dict[LayerKind, Turning | None] = {}

    def hidden_states(self, ids_N: Tensor, step: FusedStep) -> Tensor:
        """The normed output of the last block, `[N, C]`; keys and values are in the cache afterwards."""
        places_1N = step.positions_N.clamp(min=0)[None]
        stream = _Stream(self.model.embed(ids_N[None], places_1N)[0], step)
        for number, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            self._block(block, step.layers[number], stream)
        norm = norm_of(self.model.norm)
        return stream.total() if norm is None else stream.normed(norm)

    def logits(self, hidden: Tensor, invariant: bool = False) -> Tensor:
        """The head applied to hidden states `[B, C]`: `[B, V]`."""
        head = self.model.embedding if self.model.head is None else self.model.head
        if type(head) not in (nn.Linear, nn.Embedding) or (
            hidden.shape[0] > most_rows(hidden.shape[1]) and not invariant
        ):
            return self.model.logits(hidden)
        bias = None if self.model.head is None else self.model.head.bias
        logits = small_linear(hidden, head.weight, bias, path="matrix" if invariant else None)
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _block(self, block: Block, layer: PagedLayer, stream: _Stream) -> None:
        before, between = norm_of(block.attention_norm), norm_of(block.feed_forward_norm)
        after_norms = block.position == "post"
        entered = stream.enter(None if after_norms else before)
        if block.parallel != "none":
            other = entered if between is None else stream.enter(between)
            self._attention(block, entered, layer, stream)
            self._feed_forward(block, other, stream)
            return
        self._attention(block, entered, layer, stream)
        if after_norms and before is not None:
            stream.norm(before)
        entered = stream.enter(None if after_norms else between)
        self._feed_forward(block, entered, stream)
        if after_norms and between is not None:
            stream.norm(between)

    def _attention(self, block: Block, entered: Entered, layer: PagedLayer, stream: _Stream) -> None:
        attention, step = block.attention, stream.step
        assert isinstance(attention, SelfAttention)
        qkv_NX = stream.linear(attention.qkv, entered)
        norms = (norm_of(attention.q_norm), norm_of(attention.k_norm)) if attention.norm_heads else (None, None)
        turning = self._turning(block.kind, step, layer)
        q_NHD = rope_kv(qkv_NX, step.positions_N, step.slots_N, layer, turning, *norms)
        spec = attention.spec if attention.sinks is None else replace(attention.spec, sinks=attention.sinks)
        out_NX = step.attend(spec, q_NHD, layer).flatten(1)
        stream.add_linear(attention.output, out_NX, norm_of(block.attention_output_norm))

    def _feed_forward(self, block: Block, entered: Entered, stream: _Stream) -> None:
        layer, norm = block.feed_forward, norm_of(block.feed_forward_output_norm)
        if not isinstance(layer, FeedForward):
            stream.add(layer(_applied(entered)[None])[0], norm)
            return
        first = layer.gate_up if layer.gated else layer.up
        wide = stream.linear(first, entered, self.config, layer.gated)
        stream.add_linear(layer.down, wide, norm)

    def _turning(self, kind: LayerKind, step: FusedStep, layer: PagedLayer) -> Turning | None:
        """Rotary positions of full or sliding layers: made once, but for those that depend on the context."""
        config = self.config
        if config.positions != "rope":
            return None
        slides = kind == "sliding" and config.sliding_rope_theta is not None
        theta = config.sliding_rope_theta if slides else config.rope_theta
        scaling = None if slides else config.rope_scaling
        assert theta is not None
        if scaling is not None and scaling.kind == "dynamic":
            lengths_N = step.positions_N + 1 if step.contexts_N is None else step.contexts_N
            return Turning(rotary_frequencies(config.rotary_dim, theta, scaling, lengths_N, lengths_N.device))
        if kind not in self._turnings:
            frequencies = rotary_frequencies(config.rotary_dim, theta, scaling, None, step.positions_N.device)
            turning = Turning(frequencies, attention_factor(scaling))
            longest = layer.block_table_SM.shape[1] * layer.keys.shape[1]
            tabled = frequencies.is_cuda and 8 * longest * len(frequencies) <= MOST_TABLE
            self._turnings[kind] = turning.with_table(longest) if tabled else turning
        return self._turnings[kind]


class _Stream:
    """The residual stream `[N, C]` of a step, and the way linear layers are computed for its number of rows.

    With many rows the last layer's output stays beside the stream until the next norm, which adds it on the way.
    """

    def __init__(self, x_NC: Tensor, step: FusedStep):
        self.x_NC, self.step = x_NC, step
        self.waiting: Tensor | None = None
        self.few = step.invariant or x_NC.shape[0] <= most_rows(x_NC.shape[1])
        self.path: Path | None = "matrix" if step.invariant else None

    def total(self) -> Tensor:
        if self.waiting is not None:
            self.x_NC, self.waiting = self.x_NC + self.waiting, None
        return self.x_NC

    def normed(self, norm: Norm) -> Tensor:
        """norm(stream)."""
        if self.waiting is None:
            return add_norm(self.x_NC, norm)[0]
        normed_NC, self.x_NC = add_norm(self.waiting, norm, self.x_NC)
        self.waiting = None
        return normed_NC

    def enter(self, norm: Norm | None) -> Entered:
        """What the next layer takes: an RMSNorm before few rows is left to the layer's product."""
        if norm is None or (self.few and not norm.centred):
            return self.total(), norm
        return self.normed(norm), None

    def norm(self, norm: Norm) -> None:
        """stream <- norm(stream)."""
        self.x_NC = self.normed(norm)

    def add(self, out_NC: Tensor, norm: Norm | None) -> None:
        """stream <- stream + norm(out)."""
        if norm is not None:
            self.x_NC = norm_add(out_NC, norm, self.total())
            return
        self.total()
        self.waiting = out_NC

    def add_linear(self, layer: nn.Module, x_NX: Tensor, norm: Norm | None) -> None:
        """stream <- stream + norm(layer(x))."""
        if norm is None and self.few and type(layer) is nn.Linear:
            residual_NC = self.total()
            self.x_NC = small_linear(x_NX, layer.weight, layer.bias, residual_MN=residual_NC, path=self.path)
        else:
            self.add(self.linear(layer, (x_NX, None)), norm)

    def linear(
        self, layer: nn.Module, entered: Entered, activated: ModelShape | None = None, gated: bool = False
    ) -> Tensor:
        """layer(norm(x)), and the activation that `activated` names of it."""
        activation = None if activated is None else activated.activation
        if self.few and type(layer) is nn.Linear:
            x_NX, norm = entered
            return small_linear(
                x_NX, layer.weight, layer.bias, norm=norm, activation=activation, gated=gated, path=self.path
            )
        out_NX: Tensor = layer(_applied(entered))
        if activation is None:
            return out_NX
        return gated_activation(out_NX, activation) if gated else activate(out_NX, activation)


def _applied(entered: Entered) -> Tensor:
    x_NC, norm = entered
    return x_NC if norm is None else add_norm(x_NC, norm)[0]


def norm_of(module: nn.Module | None) -> Norm | None:
    """A norm of the model as kernels take it; None for none."""
    if module is None or isinstance(module, nn.Identity):
        return None
    assert isinstance(module, (RMSNorm, OffsetRMSNorm, LayerNorm, OffsetLayerNorm))
    assert module.weight is not None
    assert module.eps is not None
    centred = isinstance(module, (LayerNorm, OffsetLayerNorm))
    bias = module.bias if isinstance(module, (LayerNorm, OffsetLayerNorm)) else None
    offset = isinstance(module, (OffsetRMSNorm, OffsetLayerNorm))
    return Norm(module.weight, module.eps, bias, centred, offset)
