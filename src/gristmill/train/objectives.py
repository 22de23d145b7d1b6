"""What pre-training and fine-tuning minimise: the next token of a decoder, the hidden tokens of an encoder.

Each takes a model and a micro-batch and gives the sum of its loss terms and sums to report, all scalars on the device;
the loop divides them by the weight of the whole batch (`LossFunction` in step.py). Shape suffixes: B batch, T time,
N tokens that are learned from, C hidden_size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import GristmillError
from ..model.attention import Attend
from ..model.autocast import autocast_dtype
from ..model.decoder import Decoder
from ..model.encoder import Encoder
from ..model.experts import mark_padding
from .data import TokenBatch
from .losses import cross_entropy_and_z_loss
from .varlen import attention_specs, document_attention, training_attention


def next_token_loss(model: Decoder, batch: TokenBatch, z_loss: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the weighted targets of a batch, and `z_loss` times the squared log of each softmax's sum; that
    part is in the sums too."""
    device = model.embedding.weight.device
    inputs, specs = on_device(batch.inputs_BT, device), attention_specs(model)
    attend: Attend
    if batch.segments_BT is None:
        attend, positions, length = training_attention(inputs.shape, device, specs), None, inputs.shape[1]
    else:
        # In its own document: learned positions are no differences.
        attend = packed = document_attention(batch.segments_BT, device, specs)
        positions, length = packed.places(), None
    mark_padding(model, behind_last_target(batch.weights_BT, device))
    hidden_NC, targets_N, weights_N = _learned_from(
        model.hidden_states(inputs, positions, attend, context_length=length), batch
    )
    head = model.embedding.weight if model.head is None else model.head.weight
    bias = None if model.head is None else model.head.bias
    shape = (bias, model.config.logit_scale, model.config.logit_softcap, z_loss)
    return _with_sums(*cross_entropy_and_z_loss(hidden_NC, head, targets_N, weights_N, *shape), z_loss)


def masked_token_loss(model: Encoder, batch: TokenBatch, z_loss: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """As `next_token_loss`, for the tokens at the places themselves: `inputs_BT` has some hidden (`mask_tokens`),
    `targets_BT` is the text, `weights_BT` is 0 where nothing is to be guessed.

    GristmillError where the encoder has no masked-LM head.
    """
    if model.masked_lm is None:
        raise GristmillError(
            "objective: masked needs an encoder with a masked-LM head; set masked_lm: true in its config"
        )
    device = model.embedding.weight.device
    inputs, specs = on_device(batch.inputs_BT, device), attention_specs(model)
    positions: Tensor | None = None
    attend: Attend
    if batch.segments_BT is None:
        attend = training_attention(inputs.shape, device, specs)
    else:
        attend = packed = document_attention(batch.segments_BT, device, specs)
        positions = packed.places()
    hidden_BTC = model.hidden_states(inputs, attend=attend, positions_BT=positions)
    hidden_NC, targets_N, weights_N = _learned_from(hidden_BTC, batch)
    head = model.masked_lm
    hidden_NC = _as_products(head.norm(head.activation(head.dense(hidden_NC))))
    return _with_sums(
        *cross_entropy_and_z_loss(hidden_NC, model.embedding.weight, targets_N, weights_N, head.bias, z_loss=z_loss),
        z_loss,
    )


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy for the device (the tensor itself if it is there) that does not wait for what the device still does. From
    memory that is not pinned it is safe: the tensor may be changed as soon as the call returns."""
    return tensor.to(device, non_blocking=True)


def behind_last_target(weights_BT: Tensor, device: torch.device) -> Tensor | None:
    """True for the tokens of a row behind its last target of any weight, which no loss depends on: the padding on its
    right. None where there are none. `weights_BT` lies on the CPU."""
    counted_BT = weights_BT != 0
    if bool(counted_BT[:, -1].all()):
        return None
    return on_device(counted_BT.flip(1).cumsum(dim=1).flip(1) == 0, device)


def _learned_from(hidden_BTC: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states `[N, C]`, targets and weights `[N]` of the places with a weight, which are known on the host."""
    device = hidden_BTC.device
    hidden_NC, targets, weights = hidden_BTC.flatten(0, 1), batch.targets_BT.flatten(), batch.weights_BT.flatten()
    kept = weights.nonzero()[:, 0]
    if len(kept) < len(weights):
        hidden_NC = hidden_NC.index_select(0, on_device(kept, device))
        targets, weights = targets[kept], weights[kept]
    return _as_products(hidden_NC), on_device(targets, device), on_device(weights, device)


def _as_products(hidden_NC: Tensor) -> Tensor:
    """In the type that products are computed in."""
    return hidden_NC.to(autocast_dtype(hidden_NC.device.type) or hidden_NC.dtype)


def _with_sums(total: Tensor, squares: Tensor, z_loss: float) -> tuple[Tensor, dict[str, Tensor]]:
    return total, {"z_loss": squares} if z_loss else {}
