"""Nothing that is sent to a device is waited for, on a device that is none: operations are watched, not run."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from engine_fixtures import make_model, make_tokenizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gristmill.engine.cache import PagedCache
from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.graphs import DecodeGraphs, unrecorded
from gristmill.engine.request import Request
from gristmill.engine.sampler import Asked, Drawn, Sampler
from gristmill.engine.sampling import SamplingParams
from gristmill.kernels.sampling import Need
from gristmill.model.config import Experts, ModelConfig, RopeScaling
from gristmill.model.decoder import Decoder


class Watch(TorchDispatchMode):
    """Fails where the host would wait for a GPU: ordinary memory is sent to a device, a number is assigned to one
    element (until torch 2.13 a copy from ordinary memory), or a value is asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::to":  # in inference mode it comes whole
            with self:
                return func.decompose(*args, **kwargs)
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero"), f"{name} waits for the device"
        if name == "aten::_to_copy" and torch.device(kwargs.get("device", "cpu")).type == "meta":
            assert args[0].device.type == "meta" or kwargs.get("non_blocking"), "sent from ordinary memory"
        if name == "aten::copy_" and args[0].device.type == "meta":
            assert args[0].dim() > 0 or args[1].dim() > 0, "one element is assigned"
            sent = args[1].device.type != "meta"
            assert not sent or kwargs.get("non_blocking") or args[2:3] == (True,), "sent from ordinary memory"
        return func(*args, **kwargs)


class Made(TorchFunctionMode):
    """Fails where a tensor is made on the device from numbers of the host's, or a list of them picks its rows."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func is not torch.tensor or torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].device.type == "meta":
            assert not any(isinstance(index, list) for index in (args[1] if isinstance(args[1], tuple) else [args[1]]))
        return func(*args, **kwargs)


@contextmanager
def watched():
    with Watch(), Made():
        yield


PARAMS = {
    "plain": SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, seed=2**63 + 5),
    "penalties": SamplingParams(temperature=0, frequency_penalty=0.5, repetition_penalty=1.1),
    "entries": SamplingParams(temperature=0, logit_bias={3: 1.0, 7: -2.0}, min_tokens=2),
}


@pytest.mark.parametrize("kind", PARAMS)
def test_parameters_are_sent_without_waiting(kind):
    sampler = Sampler(5, 20, "meta", [1])
    with watched():
        sampler.place(2, Request(0, [4, 5, 4], PARAMS[kind]))
        sampler.write_placed()
        sampler.place(2, Request(1, [4], PARAMS["plain"]))
        sampler.write_placed()


def test_what_is_sent_is_what_was_asked():
    sampler = Sampler(5, 20, "cpu", [1])
    sampler.place(2, Request(0, [4, 5, 4], PARAMS["plain"], output_ids=[6]))
    sampler.write_placed()
    row = [column[2].item() for column in sampler.table]
    assert row[1:] == [5, pytest.approx(0.9), pytest.approx(0.1), 2**63 + 5 - 2**64]
    assert row[0] == pytest.approx(0.7)
    sampler.place(3, Request(1, [4, 5, 4], PARAMS["penalties"], output_ids=[6, 6]))
    sampler.write_placed()
    assert sampler.penalties_S3[3].tolist() == [pytest.approx(1.1), 0, 0.5]
    assert sampler.counted[3, 6] == 2
    assert sampler.counted[3, 4] == sampler.counted[3, 5] == 1 << 30
    assert sampler.table.temperature_S.tolist()[:2] == [0, 0]


def config_of(**changes):
    return EngineConfig(max_num_seqs=3, max_model_len=16, block_size=4, num_blocks=12, **changes)


@pytest.mark.parametrize("kind", ["auto", "fp8"])
def test_blocks_are_copied_without_waiting(kind):
    model = make_model()
    cache = PagedCache(model.config, config_of(kv_dtype=kind), torch.float32, torch.device("meta"))
    with watched():
        cache.copy([(1, 2), (2, 5)])


def test_scaled_embeddings_send_nothing():
    """A scale of its own, as Gemma has: a copy from ordinary memory cannot be part of a graph."""
    model = Decoder(ModelConfig(**shape(), embedding_scale=5.0)).to("meta")
    with watched(), torch.inference_mode():
        model.embed(torch.zeros(1, 3, dtype=torch.int64, device="meta"), torch.zeros(1, 3, device="meta"))


def shape():
    return {
        "vocab_size": 20, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
        "intermediate_size": 64, "max_seq_len": 32,
    }  # fmt: skip


def test_what_asks_the_host_in_a_step_is_not_recorded():
    assert unrecorded(ModelConfig(**shape())) is None
    experts = Experts(num_experts=4, top_k=2, intermediate_size=16)
    assert "experts" in unrecorded(ModelConfig(**shape(), experts=experts))
    dynamic = RopeScaling(kind="dynamic", factor=2.0, original_max_seq_len=16)
    assert "dynamic" in unrecorded(ModelConfig(**shape(), rope_scaling=dynamic))


def recorder(recorded):
    def capture(decode, slots_B, asked):
        recorded.append(len(slots_B))
        return Drawn(slots_B.long(), slots_B >= 0, slots_B), lambda: None

    return capture


def test_replaced_weights_are_recorded_anew():
    """A graph holds addresses: in-place changes are right, other tensors need another one."""
    model, recorded = make_model(), []
    graphs = DecodeGraphs(4, 4, recorder(recorded), model)
    asked = Asked(Need(), False, 0, None, False)

    def run(slots):
        graphs.run(lambda *_: None, slots, asked, torch.device("cpu"))

    run([0, 1])
    with torch.no_grad():
        model.embedding.weight.mul_(2)
    run([1, 2])
    assert recorded == [2]
    layer = model.blocks[1].feed_forward.down
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    run([0, 1])
    assert recorded == [2, 2]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    run([2, 3])
    assert recorded == [2, 2, 2]
    run([0, 1])
    assert recorded == [2, 2, 2]


def test_replaced_weights_are_noticed_by_the_next_request_in_the_same_slot(tmp_path):
    model, recorded = make_model(), []
    limits = EngineConfig(max_num_seqs=2, max_model_len=32, max_num_batched_tokens=16, num_blocks=8)
    engine = Engine(model, make_tokenizer(tmp_path), limits)
    runner = engine.runner
    runner.graphs = DecodeGraphs(2, 2, recorder(recorded), model)
    asked = Asked(Need(), False, 0, None, False)
    for number in range(3):
        # With a penalty the prompt is read kernel by kernel.
        engine.add_request([7, 8, 9], SamplingParams(max_tokens=1, temperature=0, presence_penalty=0.5))
        while engine.has_work:
            engine.step()
        runner.graphs.run(runner.decode, [0], asked, torch.device("cpu"))
        layer = model.blocks[0].feed_forward.down
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        assert recorded == [1] * (number + 1)
    engine.weights_changed()
    runner.graphs.run(runner.decode, [0], asked, torch.device("cpu"))
    assert recorded == [1] * 4


def test_counts_of_many_slots_are_found(monkeypatch):
    """Slots are int32 in a graph, places in a table of counts need not be."""
    sampler = Sampler(8192, 8, "cpu")
    sampler.vocab_size = 2**20
    places = []

    class Counts:
        def __getitem__(self, slots_B):
            return torch.zeros(len(slots_B), 8, dtype=torch.int32)

        def view(self, _):
            return self

        def scatter_add_(self, _, places_B, ones_B):
            places.extend(places_B.tolist())

    monkeypatch.setattr(sampler, "counted", Counts())
    logits = torch.zeros(2, 8)
    logits[:, 3] = 9
    asked = Asked(Need(), True, 0, None, False)
    sampler.sample_as(asked, logits, torch.tensor([1, 8191], dtype=torch.int32), torch.tensor([4, 4]))
    assert places == [2**20 + 3, 8191 * 2**20 + 3]
