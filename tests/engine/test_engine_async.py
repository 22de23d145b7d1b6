"""The engine's thread: streams for many tasks, limits, aborts, faults, sleep."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gristmill.engine.async_engine import AsyncEngine, EngineStopped, QueueFull
from gristmill.engine.config import EngineConfig
from gristmill.engine.engine import Engine
from gristmill.engine.llm import LLM
from gristmill.engine.sampling import RequestError, SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
LONG = SamplingParams(max_tokens=90, temperature=0.0, ignore_eos=True)


@pytest.fixture
def make_engine(model, tokenizer):
    """Makes started engines and stops them afterwards."""
    started = []

    def make(max_num_seqs=4, max_waiting=8, on_step=None):
        config = EngineConfig(
            max_num_seqs=max_num_seqs, max_model_len=96, max_num_batched_tokens=128, num_blocks=6 * max_num_seqs
        )
        engine = AsyncEngine(Engine(model, tokenizer, config), max_waiting, on_step)
        engine.start()
        started.append(engine)
        return engine

    yield make
    for engine in started:
        engine.stop()
        assert not engine.engine.has_work
        engine.engine.scheduler.check()


@pytest.fixture
def hold(monkeypatch):
    """`hold(engine)` makes its steps wait until `.set()`; `.entered` tells that one began."""

    def install(engine):
        gate, forward = threading.Event(), engine.engine.runner.hidden_states
        gate.entered = threading.Event()

        def step(chunks):
            gate.entered.set()
            assert gate.wait(30)
            return forward(chunks)

        monkeypatch.setattr(engine.engine.runner, "hidden_states", step)
        return gate

    return install


def submit(engine, *prompts, params=GREEDY):
    return engine.submit([engine.engine.make_request(prompt, params) for prompt in prompts])


async def texts_of(generation):
    texts, reasons = {}, {}
    async for index, output in generation:
        if output.error is not None:
            raise output.error
        texts[index] = texts.get(index, "") + output.text
        if output.finish_reason:
            reasons[index] = output.finish_reason
    return [texts[i] for i in range(len(texts))], [reasons[i] for i in range(len(reasons))]


def test_concurrent_streams_are_what_generate_gives(make_engine, model, tokenizer):
    prompts = [[0, 10 + i, *range(20, 20 + i)] for i in range(12)]
    expected = [c.text for c in LLM.from_model(model, tokenizer, max_num_seqs=4).generate(prompts, GREEDY)]
    engine = make_engine(max_waiting=20)

    async def main():
        groups = [submit(engine, *prompts[i : i + 3]) for i in range(0, 12, 3)]
        return await asyncio.gather(*(texts_of(group) for group in groups))

    assert [text for texts, _ in asyncio.run(main()) for text in texts] == expected


def test_the_queue_is_bounded_all_or_none(make_engine, hold):
    engine = make_engine(max_num_seqs=2, max_waiting=3)
    gate = hold(engine)

    async def main():
        first = submit(engine, [5], [6], [7])
        with pytest.raises(QueueFull):
            submit(engine, [8], [9], [10])
        second = submit(engine, [8], [9])
        with pytest.raises(QueueFull):
            submit(engine, [10])
        with pytest.raises(RequestError, match="this server takes 5"):
            submit(engine, *([5],) * 6)
        await asyncio.to_thread(gate.entered.wait)
        assert engine.num_running + engine.num_waiting == 5
        gate.set()
        await texts_of(first)
        await texts_of(second)
        await texts_of(submit(engine, [10]))

    asyncio.run(main())
    assert engine.wait_idle(0)


def test_abort_ends_the_stream_and_frees_everything(make_engine):
    seen = []
    engine = make_engine(max_num_seqs=2, on_step=seen.extend)

    async def main():
        generation = submit(engine, [5], [6], [7], params=LONG)
        reasons = []
        async for _, output in generation:
            generation.abort()
            reasons.append(output.finish_reason)
        return reasons

    assert sorted(r for r in asyncio.run(main()) if r) == ["abort"] * 3
    assert [o.finish_reason for o in seen if o.finish_reason] == ["abort"] * 3
    assert engine.wait_idle(1000)


def test_a_failed_step_is_told_and_the_engine_goes_on(make_engine, monkeypatch):
    engine = make_engine()
    forward = engine.engine.runner.hidden_states
    monkeypatch.setattr(engine.engine.runner, "hidden_states", lambda chunks: 1 / 0)

    async def main():
        with pytest.raises(ZeroDivisionError):
            await texts_of(submit(engine, [5], [6]))
        monkeypatch.setattr(engine.engine.runner, "hidden_states", forward)
        return await texts_of(submit(engine, [5]))

    assert asyncio.run(main())[1] == ["length"]
    assert engine.health(stuck_after=60) is None


def test_an_error_outside_any_request_ends_all_and_the_thread_lives(make_engine, monkeypatch):
    engine = make_engine(max_num_seqs=2)
    schedule = engine.engine.scheduler.schedule
    monkeypatch.setattr(engine.engine.scheduler, "schedule", lambda: [][1])

    async def main():
        with pytest.raises(IndexError):
            await texts_of(submit(engine, [5], [6], [7]))
        monkeypatch.setattr(engine.engine.scheduler, "schedule", schedule)
        await texts_of(submit(engine, [5]))

    asyncio.run(main())


def test_health_sees_a_stuck_step_and_a_dead_thread(make_engine, hold):
    engine = make_engine()
    gate = hold(engine)

    async def main():
        generation = submit(engine, [5])
        await asyncio.to_thread(gate.entered.wait)
        assert "a step has been running" in engine.health(stuck_after=0)
        assert engine.health(stuck_after=60) is None
        gate.set()
        await texts_of(generation)

    asyncio.run(main())
    engine.stop()
    assert "thread has ended" in engine.health(stuck_after=60)


def test_stop_ends_what_is_left_with_an_error(make_engine, hold):
    engine = make_engine(max_num_seqs=1)
    gate = hold(engine)

    async def main():
        generation = submit(engine, [5], [6], params=LONG)
        await asyncio.to_thread(gate.entered.wait)
        stopper = asyncio.create_task(asyncio.to_thread(engine.stop))
        while not engine._stopping:
            await asyncio.sleep(0)
        gate.set()
        with pytest.raises(EngineStopped):
            await texts_of(generation)
        await stopper
        with pytest.raises(EngineStopped):
            submit(engine, [5])

    asyncio.run(main())


def test_an_idle_engine_sleeps(make_engine, monkeypatch):
    """Steps are taken for work only: none before it, none after it."""
    engine = make_engine()
    calls = []
    step = engine.engine.step
    monkeypatch.setattr(engine.engine, "step", lambda: calls.append(1) or step())

    async def main():
        await texts_of(submit(engine, [5]))

    asyncio.run(main())
    asyncio.run(main())
    assert len(calls) == 2 * GREEDY.max_tokens


def test_a_closed_loop_does_not_stop_the_engine(make_engine, hold):
    engine = make_engine()
    gate = hold(engine)

    async def leave():
        submit(engine, [5], params=LONG)

    asyncio.run(leave())
    gate.set()
    assert engine.wait_idle(1000)

    async def main():
        return await texts_of(submit(engine, [5]))

    assert asyncio.run(main())[1] == ["length"]


def test_snapshot_shows_slots_and_queue(make_engine, hold):
    engine = make_engine(max_num_seqs=1)
    gate = hold(engine)

    async def main():
        generation = submit(engine, [5, 6, 7], [8, 9])
        await asyncio.to_thread(gate.entered.wait)
        state = engine.snapshot()
        gate.set()
        await texts_of(generation)
        return state

    state = asyncio.run(main())
    assert state["max_num_seqs"] == 1
    (row,) = state["slots"]
    assert (row["slot"], row["prompt_tokens"], row["generated_tokens"], row["max_tokens"]) == (0, 3, 0, 12)
    assert [waiting["prompt_tokens"] for waiting in state["waiting"]] == [2]
    assert engine.snapshot()["slots"] == engine.snapshot()["waiting"] == []
