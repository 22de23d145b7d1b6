"""Mixtures of experts: a router sends each token to a few of many feed-forward layers.

The model's part is `MixtureOfExperts`, a block's feed-forward layer. What a training loop adds is said by the functions
at the end: `router_losses` after each forward pass, `update_selection_bias` after each optimizer step, `mark_padding`
where batches are padded, `dropless` where no token may be dropped, `expert_load` for what it reports.

Shape suffixes: N tokens of all rows, E experts, K experts per token, M = N * K assignments of a token to an expert,
C hidden_size, F width of an expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import GristmillError
from .autocast import autocast_dtype, without_autocast
from .config import Experts, ModelShape
from .feed_forward import ACTIVATIONS, FeedForward

COLLAPSED_SHARE = 0.1  # of the mean load: an expert below it has all but ceased to learn


class Routed(NamedTuple):
    """What the router did in one forward pass: its weighted losses (None if it has none), and how many assignments each
    expert got, int64 `[E + 1]`, the last being those that found no place."""

    loss: Tensor | None
    counts: Tensor


class LayerLoad(TypedDict):
    """How evenly one layer's experts are used."""

    layer: int
    load: list[float]  # each expert's share of the assignments, before any is dropped
    max_over_mean: float  # 1 where the load is even, num_experts / top_k where all tokens go to the same experts
    collapsed: list[int]  # experts whose load is under a tenth of the mean
    dropped: float  # share of the assignments that were over the capacity


class MixtureOfExperts(nn.Module):
    """sum_k weight_k * expert_k(x) over the `top_k` experts a router chooses for each token, plus a shared expert.

    Scores are softmax (Switch Transformer, Mixtral) or sigmoid (DeepSeek-V3) of the router's logits, in float32. The
    choice may be limited to the best groups of experts (DeepSeek-V2, section 2.2.2) and be moved by `selection_bias`
    (DeepSeek-V3, section 2.1.2), which changes who is chosen, never with what weight. No token is dropped, but while
    training with a `capacity_factor` (Switch Transformer, section 2.2) outside of `dropless`: there an expert takes
    ceil(capacity_factor * N * K / E) tokens, N being those that are no padding, row after row in the order of their
    positions, and the rest skip it.
    """

    selection_bias: Tensor | None

    def __init__(self, config: ModelShape, layer: int):
        super().__init__()
        experts = config.experts
        assert experts is not None
        self.config: Experts = experts
        self.layer = layer
        self.activation = ACTIVATIONS[config.activation]
        number, hidden, wide = experts.num_experts, config.hidden_size, experts.intermediate_size
        self.router = nn.Linear(hidden, number, bias=False)
        self.register_buffer("selection_bias", torch.zeros(number) if experts.balance == "bias" else None)
        self.gated = config.gated
        if config.gated:
            self.gate_up = _matrices(number, 2 * wide, hidden)
        else:
            self.up = _matrices(number, wide, hidden)
        self.down = _matrices(number, hidden, wide)
        shared = experts.shared_intermediate_size
        self.shared = FeedForward(config, shared) if shared else None
        # Not buffers: they are no part of the model, and stay on the device where tokens are counted.
        self.routed: Routed | None = None
        self.load: Tensor | None = None
        self.padding: Tensor | None = None
        self.counting = False
        self.drops = True

    def forward(self, x_BTC: Tensor) -> Tensor:
        """`[B, T, C]` to `[B, T, C]`."""
        x_NC = x_BTC.flatten(0, -2)
        logits_NE, scores_NE, chosen_NK, weights_NK = self._route(x_NC)
        number = self.config.num_experts
        real_N = self._real_tokens(x_NC)
        # Assignments to expert E are to none: they sort behind all others, where no product is computed.
        expert_M = (chosen_NK if real_N is None else torch.where(real_N[:, None], chosen_NK, number)).flatten()
        assigned_E = _count(expert_M, number + 1)[:number]
        kept_E = assigned_E
        limited = self.training and self.drops and self.config.capacity_factor is not None
        if limited:
            expert_M, kept_E = self._limit(expert_M, assigned_E)
        if self.training:
            counts = torch.cat((assigned_E, (assigned_E - kept_E).sum()[None]))
            self.routed = Routed(self._losses(logits_NE, scores_NE, assigned_E, real_N), counts)
        elif self.counting:
            self.add_load(torch.cat((assigned_E, assigned_E.new_zeros(1))))
        y_NC = self._dispatch(x_NC, expert_M, weights_NK, kept_E, whole=real_N is None and not limited)
        y_BTC = y_NC.view_as(x_BTC)
        return y_BTC if self.shared is None else y_BTC + self.shared(x_BTC)

    def _route(self, x_NC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits and scores `[N, E]`, the chosen experts and their weights `[N, K]`; all in float32."""
        config = self.config
        with without_autocast(x_NC.device.type):
            logits_NE = F.linear(x_NC.float(), self.router.weight.float())
            scores_NE = logits_NE.softmax(dim=-1) if config.router == "softmax" else logits_NE.sigmoid()
            choice_NE = scores_NE.detach()
            if self.selection_bias is not None:
                choice_NE = choice_NE + self.selection_bias
            if config.top_groups < config.num_groups:
                choice_NE = _in_best_groups(choice_NE, config)
            chosen_NK = choice_NE.topk(config.top_k, dim=-1).indices
            weights_NK = scores_NE.gather(-1, chosen_NK)
            if config.normalize_top_k:
                weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + 1e-20)
            return logits_NE, scores_NE, chosen_NK, weights_NK * config.routed_scale

    def _real_tokens(self, x_NC: Tensor) -> Tensor | None:
        """True for tokens that are no padding, `[N]`; None where all are real."""
        if self.padding is None or not self.training:
            return None
        if self.padding.numel() != len(x_NC):
            raise GristmillError(
                f"mark_padding was given {self.padding.numel()} tokens, but {len(x_NC)} reach the experts: call it "
                "again before each forward pass of another batch"
            )
        return ~self.padding.flatten()

    def _limit(self, expert_M: Tensor, assigned_E: Tensor) -> tuple[Tensor, Tensor]:
        """Assignments with those over the capacity sent to no expert, and how many each expert keeps."""
        factor, number = self.config.capacity_factor, self.config.num_experts
        assert factor is not None
        # Left on the device: how many assignments are real is not known without waiting for it.
        capacity = (factor * assigned_E.sum().double() / number).ceil().long()
        # An assignment's place among those to its expert: its place in the sorted order less where the expert begins.
        order_M = expert_M.argsort(stable=True)
        begins = F.pad(assigned_E.cumsum(0), (1, 0))  # one more than experts: for the assignments to none
        place_M = torch.arange(len(order_M), device=order_M.device) - begins[expert_M[order_M]]
        over_M = torch.empty_like(place_M, dtype=torch.bool).scatter_(0, order_M, place_M >= capacity)
        return torch.where(over_M, number, expert_M), assigned_E.minimum(capacity)

    def _losses(self, logits_NE: Tensor, scores_NE: Tensor, assigned_E: Tensor, real_N: Tensor | None) -> Tensor | None:
        config = self.config
        total: Tensor | None = None
        if config.balance == "aux_loss" and config.aux_loss_weight:
            total = config.aux_loss_weight * balance_loss(scores_NE, assigned_E, real_N)
        if config.z_loss_weight:
            z = config.z_loss_weight * z_loss(logits_NE, real_N)
            total = z if total is None else total + z
        return total

    def _dispatch(self, x_NC: Tensor, expert_M: Tensor, weights_NK: Tensor, kept_E: Tensor, whole: bool) -> Tensor:
        """Tokens sorted by expert, through the experts, back in their order, summed by weight. `whole` says that every
        assignment has an expert."""
        order_M = expert_M.argsort(stable=True)
        places = torch.arange(len(order_M), device=order_M.device)
        inverse_M = torch.empty_like(order_M).scatter_(0, order_M, places)
        ends_E = kept_E.cumsum(0)
        # The rows behind the last expert's are never written, forward or backward: what stands there must not spread.
        has_expert = None if whole else (places < ends_E[-1])[:, None]
        x_MC = _TakeRows.apply(x_NC, order_M // self.config.top_k, inverse_M, self.config.top_k)
        if has_expert is not None:
            x_MC = torch.where(has_expert, x_MC, 0)
        y_MC = self._experts(x_MC, ends_E.to(torch.int32))
        if has_expert is not None:
            y_MC = torch.where(has_expert, y_MC, 0)
        y_NKC = _TakeRows.apply(y_MC, inverse_M, order_M, 1).unflatten(0, weights_NK.shape)
        return (y_NKC * weights_NK[..., None]).sum(dim=1).to(y_MC.dtype)

    def _experts(self, x_MC: Tensor, ends_E: Tensor) -> Tensor:
        if not self.gated:
            return grouped_linear(self.activation(grouped_linear(x_MC, self.up, ends_E)), self.down, ends_E)
        gate, up = grouped_linear(x_MC, self.gate_up, ends_E).chunk(2, dim=-1)
        return grouped_linear(self.activation(gate) * up, self.down, ends_E)

    def __getstate__(self) -> dict[str, Any]:
        """A copy holds no losses: they belong to the pass of the original, and tensors inside a graph have no copy."""
        return self.__dict__ | {"routed": None}

    def add_load(self, counts: Tensor) -> None:
        self.load = counts if self.load is None else self.load + counts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MixtureOfExperts:
        """`selection_bias` stays float32 when the model is cast: its steps are lost in half precision, and so are the
        small differences between experts that it makes up for."""
        bias = self.selection_bias
        super()._apply(fn, recurse)
        if bias is not None and self.selection_bias is not None and self.selection_bias.dtype != bias.dtype:
            self.selection_bias = bias.to(self.selection_bias.device)
        return self


def balance_loss(scores_NE: Tensor, assigned_E: Tensor, real_N: Tensor | None = None) -> Tensor:
    """E * sum_e f_e * P_e (Switch Transformer, equations 4 to 6; for K > 1 as in Mixtral): f_e is the number of tokens
    assigned to expert e over the number of tokens, without a gradient; P_e the mean of its scores, which are first
    divided by their sum over the experts (DeepSeek-V3, equations 18 and 19; softmax scores sum to 1 already). It is K
    where the load is even. Padding (`real_N` False) counts in neither."""
    shares_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True).clamp_min(1e-20)
    if real_N is not None:
        shares_NE = shares_NE * real_N[:, None]
    tokens = len(scores_NE) if real_N is None else real_N.sum().clamp_min(1)
    return scores_NE.shape[1] * (assigned_E / tokens * (shares_NE.sum(dim=0) / tokens)).sum()


def z_loss(logits_NE: Tensor, real_N: Tensor | None = None) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2 (ST-MoE, equation 5): keeps the router's logits small."""
    squares_N = logits_NE.logsumexp(dim=-1).square()
    return squares_N.mean() if real_N is None else (squares_N * real_N).sum() / real_N.sum().clamp_min(1)


def grouped_linear(x_MC: Tensor, weight_EFC: Tensor, ends_E: Tensor) -> Tensor:
    """x @ weight[e].T for the rows of each expert e, `[M, F]`: rows are sorted by expert and those of e end before row
    `ends_E[e]` (int32). What stands in rows behind the last end is undefined.

    One grouped product where torch has one, with no wait for the device in bfloat16 on a GPU; else a product for each
    expert that has rows. Under autocast both operands are cast, as for a linear layer.
    """
    if (dtype := autocast_dtype(x_MC.device.type)) is not None:
        x_MC, weight_EFC = x_MC.to(dtype), weight_EFC.to(dtype)
    if grouped_mm_runs(x_MC, weight_EFC):
        return F.grouped_mm(x_MC, weight_EFC.transpose(1, 2), offs=ends_E)
    return loop_linear(x_MC, weight_EFC, ends_E)


def grouped_mm_runs(x_MC: Tensor, weight_EFC: Tensor) -> bool:
    """Whether torch's grouped product takes these operands: rows of a multiple of 16 bytes, no float64; compiled, it
    knows bfloat16 only (torch 2.11 and 2.13); on a GPU of compute capability 8.0 or more."""
    dtype, device = x_MC.dtype, x_MC.device
    if dtype not in (torch.float32, torch.float16, torch.bfloat16) or dtype != weight_EFC.dtype:
        return False
    if torch.compiler.is_compiling() and dtype != torch.bfloat16:
        return False
    if any(width * dtype.itemsize % 16 for width in weight_EFC.shape[1:]):
        return False
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))


def loop_linear(x_MC: Tensor, weight_EFC: Tensor, ends_E: Tensor) -> Tensor:
    """`grouped_linear` as a loop over the experts that have rows; the rows behind the last end are zeros. It waits for
    the device, to know how many rows each has."""
    ends = ends_E.tolist()
    sizes = [end - start for start, end in zip([0, *ends], [*ends, len(x_MC)], strict=True)]
    # split and unbind rather than slices: the gradient of each slice would be a tensor as large as the whole.
    *groups, rest = x_MC.split(sizes)
    pairs = list(zip(groups, weight_EFC.unbind(), strict=True))
    # Without any row one empty product is made, so that the weights have a gradient in every process.
    products = [F.linear(rows, weight) for rows, weight in pairs if len(rows)] or [F.linear(*pairs[0])]
    return torch.cat([*products, rest.new_zeros(len(rest), weight_EFC.shape[1])])


def experts_of(model: nn.Module) -> list[MixtureOfExperts]:
    """The mixtures of experts in a model, from its first layer to its last."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def router_losses(model: nn.Module) -> Tensor | None:
    """The balance losses and z-losses of the last forward pass in training mode, times their weights, summed over the
    layers (a float32 scalar); None for a model without experts.

    To be called once after each forward pass, before backward: it is here, not in the forward pass, that the pass is
    added to the load, so that a pass repeated by activation checkpointing does not count twice.
    """
    total: Tensor | None = None
    for layer in experts_of(model):
        if layer.routed is None:
            continue
        loss, counts = layer.routed
        layer.routed = None
        layer.add_load(counts)
        zero = counts.new_zeros((), dtype=torch.float32)
        total = (zero if total is None else total) + (zero if loss is None else loss)
    return total


@torch.no_grad()
def update_selection_bias(model: nn.Module) -> None:
    """Move each layer's `selection_bias` by bias_rate * sign(mean load - load) (DeepSeek-V3, section 2.1.2; Wang et al.
    2024, algorithm 1), then count the load from zero, also in layers that have no bias.

    To be called after each optimizer step, by every rank: the load is that of all forward passes since the last call,
    summed over the ranks where torch.distributed is initialised.
    """
    layers = experts_of(model)
    moved = [layer for layer in layers if layer.selection_bias is not None and layer.load is not None]
    if moved:
        loads = torch.stack([layer.load[:-1] for layer in moved if layer.load is not None])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(loads)
        shares = loads.float()
        steps = torch.sign(shares.mean(dim=1, keepdim=True) - shares)
        for layer, step in zip(moved, steps.unbind(), strict=True):
            assert layer.selection_bias is not None
            layer.selection_bias.add_(step, alpha=layer.config.bias_rate)
    for layer in layers:
        layer.load = layer.routed = None


def expert_load(model: nn.Module, add_up: Callable[[Tensor], Tensor] = lambda counts: counts) -> list[LayerLoad]:
    """The load of every mixture of experts since `update_selection_bias` was last called (or inside `counting_load`),
    on this rank, or on all of them where `add_up` sums a tensor over the ranks; layers that have counted nothing are
    left out. Waits for the device once."""
    layers = [layer for layer in experts_of(model) if layer.load is not None]
    if not layers:
        return []
    table = add_up(torch.stack([layer.load for layer in layers if layer.load is not None])).tolist()
    return [_layer_load(layer.layer, *counts) for layer, counts in zip(layers, table, strict=True) if sum(counts[:-1])]


@contextmanager
def counting_load(model: nn.Module) -> Iterator[None]:
    """Inside it forward passes in evaluation mode are counted too, from zero, for `expert_load`; what training has
    counted is put back afterwards."""
    layers = experts_of(model)
    before = [layer.load for layer in layers]
    for layer in layers:
        layer.load, layer.counting = None, True
    try:
        yield
    finally:
        for layer, load in zip(layers, before, strict=True):
            layer.load, layer.counting = load, False


@contextmanager
def dropless(model: nn.Module) -> Iterator[None]:
    """Inside it no `capacity_factor` holds: a forward pass in training mode gives what one in evaluation mode gives.
    Backward belongs inside too, since activation checkpointing repeats the pass there."""
    layers = experts_of(model)
    before = [layer.drops for layer in layers]
    for layer in layers:
        layer.drops = False
    try:
        yield
    finally:
        for layer, drops in zip(layers, before, strict=True):
            layer.drops = drops


def mark_padding(model: nn.Module, padding_BT: Tensor | None) -> None:
    """Say which tokens of the next forward pass in training mode are padding (True), or that none is (None).

    Padding passes the shared expert only, takes no expert's capacity and counts neither in the load, nor in the
    capacity, nor in the losses. It holds until the next call, since activation checkpointing repeats the pass during
    backward: call it with None behind the last backward.
    """
    for layer in experts_of(model):
        layer.padding = padding_BT


def _matrices(number: int, rows: int, columns: int) -> nn.Parameter:
    """`[number, rows, columns]`, drawn as `nn.Linear` draws its weights."""
    bound = 1 / math.sqrt(columns)
    return nn.Parameter(torch.empty(number, rows, columns).uniform_(-bound, bound))


def _in_best_groups(choice_NE: Tensor, config: Experts) -> Tensor:
    """-inf for experts outside the `top_groups` groups with the highest score."""
    grouped = choice_NE.unflatten(-1, (config.num_groups, -1))
    score = grouped.amax(dim=-1) if config.group_score == "max" else grouped.topk(2, dim=-1).values.sum(dim=-1)
    best = score.topk(config.top_groups, dim=-1).indices
    closed = torch.ones_like(score, dtype=torch.bool).scatter_(-1, best, False)
    return grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)


def _count(expert_M: Tensor, number: int) -> Tensor:
    """How often each of 0 to number - 1 stands there, int64; unlike bincount it never waits for the device."""
    return expert_M.new_zeros(number).scatter_add_(0, expert_M, torch.ones_like(expert_M))


def _layer_load(layer: int, *counts: int) -> LayerLoad:
    load, dropped = counts[:-1], counts[-1]
    total = sum(load)
    shares = [count / total for count in load]
    return LayerLoad(
        layer=layer,
        load=shares,
        max_over_mean=max(shares) * len(load),
        collapsed=[expert for expert, share in enumerate(shares) if share * len(load) < COLLAPSED_SHARE],
        dropped=dropped / total,
    )


class _TakeRows(torch.autograd.Function):
    """x[index], where each row of x is taken `copies` times and `back` says where, copies of a row side by side.

    The gradient gathers too, in a fixed order of sums, where that of plain indexing scatters: slower, and on a GPU in
    an order that changes from run to run.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return x[index]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        rows = grad_outputs[0][back]
        return rows if ctx.copies == 1 else rows.unflatten(0, (-1, ctx.copies)).sum(dim=1), None, None, None
