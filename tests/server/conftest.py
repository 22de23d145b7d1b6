from __future__ import annotations

import sys
import threading
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))
from engine_fixtures import make_model, make_tokenizer

from gristmill.engine.llm import LLM
from gristmill.server.app import create_app
from gristmill.server.serve import bind, make_server, url_of

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture(scope="session")
def llm(model, tokenizer):
    """The same model without a server: the oracle of what replies must say."""
    return LLM.from_model(model, tokenizer, max_num_seqs=8)


@pytest.fixture(scope="session")
def start(model, tokenizer, start_with):
    """`start_with` an engine of the tiny model."""

    def start(max_num_seqs=8, max_waiting=16, drain_seconds=20.0):
        engine = LLM.from_model(model, tokenizer, max_num_seqs=max_num_seqs, max_num_batched_tokens=256).engine
        return start_with(engine, max_waiting, drain_seconds)

    return start


@pytest.fixture(scope="session")
def start_with():
    """Starts real servers on free ports of 127.0.0.1, each in a thread, and stops them at the end."""
    running = []

    def start(engine, max_waiting=16, drain_seconds=20.0):
        app = create_app(engine, "tiny", max_waiting)
        listener = bind("127.0.0.1", 0)
        server = make_server(app, listener, drain_seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        url = url_of(listener)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        return SimpleNamespace(url=url, client=client, app=app, service=app.state.service, server=server, thread=thread)

    yield start
    for server, _ in running:
        server.should_exit = True
    for server, thread in running:
        thread.join(30)  # a reply that no test waited for is drained first
        server.force_exit = True
        thread.join(30)
        if thread.is_alive():  # that servers end is tested by itself; where everything stands is worth knowing
            stacks = ("".join(traceback.format_stack(frame)) for frame in sys._current_frames().values())
            warnings.warn("a server did not end\n" + "\n".join(stacks), stacklevel=1)


@pytest.fixture(scope="session")
def shared(start):
    """One server for the tests that leave it as it was."""
    return start()


@pytest.fixture
def hold(monkeypatch):
    """`hold(server)` makes the engine's steps wait until `.set()`; `.entered` tells that one began."""

    def install(server):
        runner = server.service.engine.engine.runner
        gate, forward = threading.Event(), runner.hidden_states
        gate.entered = threading.Event()

        def step(chunks):
            gate.entered.set()
            assert gate.wait(30)
            return forward(chunks)

        monkeypatch.setattr(runner, "hidden_states", step)
        return gate

    return install
