"""A meter of the bytes that tensors take: the storages that operations make, from their making to their end."""

import weakref
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gristmill.model.attention import causal_attention
from gristmill.model.decoder import Decoder
from gristmill.model.experts import router_losses
from gristmill.train.activations import checkpoint_activations
from gristmill.train.losses import cross_entropy_and_z_loss
from gristmill.train.precision import PRODUCTS


class LiveBytes(TorchDispatchMode):
    """`live` and `peak`, in bytes."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return results

    def _watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._end, key, size)

    def _end(self, key, size):
        self._known.discard(key)
        self.live -= size


def autocast_of(precision):
    kind = PRODUCTS.get(precision)
    return nullcontext() if kind is None else torch.autocast("cpu", kind, cache_enabled=False)


def step_bytes(config, rows, columns, mode="none", precision="fp32", micro_batches=1, attend=causal_attention):
    """The peak of forward and backward of a step, weights and AdamW's state included; on tensors without numbers, so
    that any size takes no memory and little time. Experts need real ones: their sizes depend on numbers."""
    with FakeTensorMode() if config.experts is None else nullcontext(), LiveBytes() as meter:
        model = Decoder(config)
        checkpoint_activations(model, mode)
        state = [torch.zeros_like(p) for p in model.parameters() for _ in range(2)]
        for _ in range(micro_batches):
            ids = torch.zeros(rows, columns, dtype=torch.long)
            if config.experts is not None:
                ids.random_(config.vocab_size)
            meter.peak = meter.live
            forward(model, ids, precision, attend).backward()
        del state
    return meter.peak


def forward(model, ids, precision, attend=causal_attention):
    with autocast_of(precision):
        hidden = model.hidden_states(ids, attend=attend).flatten(0, 1)
        if precision in PRODUCTS:
            hidden = hidden.to(PRODUCTS[precision])
        head = model.embedding.weight if model.head is None else model.head.weight
        loss = cross_entropy_and_z_loss(hidden, head, ids.flatten(), torch.ones(ids.numel()))[0]
    router = router_losses(model)
    return loss if router is None else loss + router


def saved_bytes(model, ids, precision, attend):
    """What the blocks and the last norm keep for backward, weights themselves left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage.nbytes(), tensor)  # the tensor, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast_of(precision):
        hidden = model.hidden_states(ids, attend=attend)
    assert hidden.requires_grad
    return sum(size for size, _ in kept.values())
