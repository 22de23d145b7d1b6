"""The chunked loss of the training loop is the cross-entropy of the decoder's own logits, whatever shapes them."""

import pytest
import torch
import torch.nn.functional as F

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.data import TokenBatch
from gristmill.train.objectives import next_token_loss

SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
         "intermediate_size": 64, "max_seq_len": 32}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"logit_scale": 0.3},
        {"logit_softcap": 0.5},
        {"tie_embeddings": False, "head_bias": True},
        {"tie_embeddings": False, "head_bias": True, "logit_scale": 2.0, "logit_softcap": 1.0},
    ],
)
def test_loss_and_gradients_are_those_of_the_logits(changes):
    model = Decoder(ModelConfig(**SHAPE | changes)).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    ids = torch.randint(50, (2, 9), generator=generator)
    weights = torch.rand(2, 8, generator=generator)
    weights[0, 0] = 0
    loss, _ = next_token_loss(model, TokenBatch(ids[:, :-1], ids[:, 1:], weights, None))
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    each = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    expected = (each * weights.flatten()).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)
