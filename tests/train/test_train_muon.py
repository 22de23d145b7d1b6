from functools import partial

import pytest
import torch
from optimizer_cases import EXPERTS, config, give_gradients, names_of, optimizer_of, tiny, weights_of
from torch.utils._python_dispatch import TorchDispatchMode

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.groups import matrix_rows
from gristmill.train.optimizers import build_optimizer, muon
from gristmill.train.optimizers.muon import COEFFICIENTS, Muon, orthogonalize, orthogonalized_parts


def random_matrices(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def muon_of(parameters, rows, **changes):
    group = {"params": parameters, "lr": 0.02, "weight_decay": 0.0, "momentum": 0.95, "newton_schulz_steps": 5}
    return Muon([group | {"matrix_rows": rows} | changes])


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (2, 40, 16)])
@pytest.mark.parametrize("steps", [1, 5])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape, steps):
    matrices = random_matrices(*shape).double()
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    expected = left @ torch.diag_embed(values) @ right
    torch.testing.assert_close(orthogonalize(matrices, steps, torch.float64), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(orthogonalize(matrices.float(), steps), expected.float(), atol=2e-4, rtol=1e-3)
    if steps == 5:
        assert values.max() < 1.25
        assert values[values > 0.3].numel() > 0.9 * values.numel()


def test_the_size_of_an_update_does_not_matter_and_nothing_stays_nothing():
    matrices = random_matrices(2, 8, 12)
    torch.testing.assert_close(orthogonalize(1e4 * matrices, 5), orthogonalize(matrices, 5), atol=1e-4, rtol=1e-3)
    assert orthogonalize(torch.zeros(1, 4, 4), 5).abs().max() == 0


@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
def test_it_is_torchs_muon(monkeypatch, shape):
    theirs_class = getattr(torch.optim, "Muon", None)
    if theirs_class is None:
        pytest.skip("this torch has no Muon")
    monkeypatch.setattr(muon, "orthogonalize", partial(orthogonalize, dtype=torch.bfloat16))  # as theirs always is
    start = random_matrices(*shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    one = muon_of([ours], (shape[0],), weight_decay=0.1, lr=0.05)
    other = theirs_class([theirs], lr=0.05, weight_decay=0.1, momentum=0.95, nesterov=True)
    for step in range(6):
        gradient = random_matrices(*shape, seed=step + 1)
        ours.grad, theirs.grad = gradient, gradient.clone()
        one.step()
        other.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # both round to 8 bits, in another order
    # Their buffer is the running mean of what ours is the running sum of.
    torch.testing.assert_close(
        one.state[ours]["momentum_buffer"] * 0.05, other.state[theirs]["momentum_buffer"], atol=1e-5, rtol=1e-4
    )


def test_fused_matrices_learn_as_the_matrices_they_are_made_of_would():
    rows, columns = (24, 8, 8), 24
    start = random_matrices(40, columns)
    fused = torch.nn.Parameter(start.clone())
    parts = [torch.nn.Parameter(part.clone()) for part in start.split(list(rows))]
    one = muon_of([fused], rows)
    others = [muon_of([part], (len(part),)) for part in parts]
    for step in range(3):
        fused.grad = random_matrices(40, columns, seed=step + 1)
        one.step()
        for part, gradient, other in zip(parts, fused.grad.split(list(rows)), others, strict=True):
            part.grad = gradient
            other.step()
    torch.testing.assert_close(fused.detach(), torch.cat([part.detach() for part in parts]), atol=1e-6, rtol=1e-5)


def test_each_expert_is_a_matrix_of_its_own():
    stack = random_matrices(2, 3, 20, 12)
    expected = torch.stack(
        [torch.stack([orthogonalized_parts(expert[None], (10, 10), 5)[0] for expert in layer]) for layer in stack]
    )
    torch.testing.assert_close(orthogonalized_parts(stack, (10, 10), 5), expected, atol=1e-6, rtol=1e-5)


def test_tall_matrices_move_further():
    square = orthogonalized_parts(random_matrices(1, 16, 16), (16,), 5)
    tall = orthogonalized_parts(random_matrices(1, 64, 16), (64,), 5)
    assert torch.linalg.matrix_norm(square, 2) == pytest.approx(1, abs=0.25)
    assert torch.linalg.matrix_norm(tall, 2) == pytest.approx(2, abs=0.5)


def test_blocks_matrices_are_muons_and_everything_else_is_adamws():
    model = tiny(**EXPERTS, tie_embeddings=False, qkv_bias=True)
    groups = build_optimizer(model, config("muon", muon={"learning_rate": 0.05})).param_groups
    names = names_of(model)
    matrices = {names[p]: group for group in groups if "matrix_rows" in group for p in group["params"]}
    assert {name.removeprefix("blocks.0.").removeprefix("blocks.1.") for name in matrices} == {
        "attention.qkv.weight",
        "attention.output.weight",
        "feed_forward.gate_up",
        "feed_forward.down",
    }
    assert sorted(names[p] for group in groups for p in group["params"]) == sorted(names.values())
    assert all(group["lr_scale"] == pytest.approx(5) for group in matrices.values())
    assert matrices["blocks.0.attention.qkv.weight"]["matrix_rows"] == (64, 32, 32)
    assert matrices["blocks.0.feed_forward.gate_up"]["matrix_rows"] == (32, 32)


def test_encoder_decoders_and_tables_are_known():
    from gristmill.model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

    shape = {"num_decoder_layers": 1, "vocab_size": 50, "hidden_size": 32, "num_layers": 1, "num_heads": 2,
             "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 48, "max_seq_len": 8}  # fmt: skip
    model = EncoderDecoder(EncoderDecoderConfig(**shape))
    rows = matrix_rows(model)
    cross = model.decoder.blocks[0].cross_attention
    assert rows[id(cross.kv.weight)] == (32, 32)
    assert id(model.embedding.weight) not in rows


def test_mup_slows_adamws_matrices_and_leaves_muons():
    model = tiny(tie_embeddings=False)
    plain = build_optimizer(model, config("muon")).param_groups
    scaled = build_optimizer(model, config("muon"), mup_base_width=16).param_groups
    rate = {id(p): group["lr"] for group in scaled for p in group["params"]}
    before = {id(p): group["lr"] for group in plain for p in group["params"]}
    assert rate[id(model.head.weight)] == pytest.approx(before[id(model.head.weight)] / 4)
    for name in ("attention.qkv", "feed_forward.down"):
        weight = model.blocks[0].get_submodule(name).weight
        assert rate[id(weight)] == before[id(weight)] == pytest.approx(0.02)


def test_small_portions_give_what_large_ones_give(monkeypatch):
    together, apart = tiny(num_layers=3), tiny(num_layers=3)
    one = optimizer_of(together, "muon")
    for step in range(2):
        give_gradients(together, step)
        one.step()
    monkeypatch.setattr(muon, "PORTION_ELEMENTS", 1)
    other = optimizer_of(apart, "muon")
    for step in range(2):
        give_gradients(apart, step)
        other.step()
    for name, weight in weights_of(together).items():
        torch.testing.assert_close(weight, apart.get_parameter(name).detach(), atol=2e-5, rtol=1e-4)


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm")
        return function(*args, **kwargs or {})


def test_more_layers_need_no_more_kernels():
    counts = []
    for layers in (1, 4):
        model = Decoder(ModelConfig(**tiny().config.model_dump() | {"num_layers": layers}))
        optimizer = optimizer_of(model, "muon")
        give_gradients(model)
        with Products() as products:
            optimizer.step()
        counts.append(products.count)
    assert counts[0] == counts[1]
    assert counts[0] == 15 * 5  # q, k with v, output, gate with up, down; three products each of five times
