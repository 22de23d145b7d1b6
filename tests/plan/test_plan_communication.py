"""What devices send each other, over which link, how long: closed forms, and the bubble by simulating the pipeline."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.plan import communication as c
from gristmill.plan.communication import Group, Links
from gristmill.plan.device import device
from gristmill.plan.layouts import Layout
from gristmill.plan.schedule_bubble import bubble_share, in_flight_micro_batches, slowest_stage

LINKS = Links(inside=450e9, between=50e9, reached=1.0)


def test_tensor_traffic_is_four_all_reduces_a_layer():
    """Shoeybi et al. 2019: each all-reduce of N C numbers sends 2 (t - 1)/t of them."""
    one = 2 * 7 / 8 * (2048 * 1024 * 2)
    assert c.tensor_bytes(1024, 2048, 24, 8, 2, again=False) == pytest.approx(24 * 4 * one)
    assert c.tensor_bytes(1024, 2048, 24, 8, 2, again=True) == pytest.approx(24 * 6 * one)
    assert c.tensor_bytes(1024, 2048, 24, 1, 2, again=False) == 0


def test_pipeline_and_expert_traffic():
    assert c.pipeline_bytes(1024, 2048, 1, 1, 2) == 2 * 2048 * 1024 * 2
    assert c.pipeline_bytes(1024, 2048, 3, 4, 2) == 2 * 3 * 2048 * 1024 * 2 / 4
    assert c.expert_bytes(1024, 2048, 10, 8, 4, 1, 2, again=False) == 10 * 4 * 3 / 4 * 8 * 2048 * 1024 * 2
    assert c.expert_bytes(1024, 2048, 10, 8, 1, 1, 2, again=False) == 0


@pytest.mark.parametrize(
    ("zero", "expected"), [(0, (8, 0)), (1, (8, 4)), (2, (4 * 5, 2)), (3, (4 * 5, 2 * 2 * 5))]
)  # fmt: skip
def test_data_parallel_traffic_of_five_micro_batches(zero, expected):
    sent = c.data_bytes(1000, 4, zero, gradient=4, operand=2, micro_batches=5)
    assert sent == pytest.approx(tuple(each * 1000 * 3 / 4 for each in expected))


def test_which_group_crosses_nodes_follows_from_the_order():
    """64 devices: tensor 4 side by side, experts 2, pipeline 4, replicas of it all 2."""
    found = c.groups(Layout(tensor=4, pipeline=4, data=4, expert=2))
    assert found == {"tensor": Group(4, 1), "expert": Group(2, 4), "pipeline": Group(4, 8), "data": Group(4, 16)}
    assert {kind: group.crosses(LINKS) for kind, group in found.items()} == {
        "tensor": False, "expert": False, "pipeline": True, "data": True}  # fmt: skip
    assert c.groups(Layout(tensor=2, data=4, expert=4))["data"] == Group(4, 2)
    assert not c.groups(Layout(tensor=1, pipeline=8))["pipeline"].crosses(LINKS)
    with pytest.raises(GristmillError, match="expert parallelism 8 does not divide data parallelism 4"):
        c.groups(Layout(tensor=2, data=4, expert=8))


def test_a_ring_between_nodes_uses_every_members_network_card():
    assert Group(8, 1).ring_bandwidth(LINKS) == 450e9
    assert Group(16, 8).ring_bandwidth(LINKS) == 50e9  # one member a node
    assert Group(16, 2).ring_bandwidth(LINKS) == 200e9  # four
    assert Group(64, 1).ring_bandwidth(LINKS) == 400e9
    assert c.ring_seconds(100e9, Group(16, 8), LINKS) == pytest.approx(2 + c.LATENCY_BETWEEN)
    assert c.ring_seconds(100e9, Group(1, 8), LINKS) == 0


def test_an_exchange_is_as_slow_as_the_slower_of_its_two_ways():
    """16 devices on two nodes: 8 of the 15 others are away."""
    assert c.exchange_seconds(15e9, Group(16, 1), LINKS, 0) == pytest.approx(8e9 / 50e9)
    assert c.exchange_seconds(45e9, Group(8, 1), LINKS, 0) == pytest.approx(0.1)
    assert c.transfer_seconds(1e9, Group(4, 8), LINKS, 0) == pytest.approx(1 / 50)
    assert c.transfer_seconds(1e9, Group(4, 2), LINKS, 0) == pytest.approx(1 / 450)


def test_links_of_a_device():
    assert Links.of(device("h100-sxm")).inside == 450e9
    assert Links.of(device("l4")).inside < 64e9  # no links of its own
    assert Links.of(device("h100-sxm"), 4).devices_per_node == 4
    with pytest.raises(GristmillError, match="devices_per_node must be at least 1, not 0"):
        Links.of(device("h100-sxm"), 0)


def simulated_1f1b(stages: int, micro_batches: int) -> float:
    """Time of a step with forward 1 and backward 2, by playing 1F1B's order stage by stage."""
    orders = []
    for stage in range(stages):
        warm = min(stages - stage - 1, micro_batches)
        order = [("f", i) for i in range(warm)]
        for i in range(micro_batches - warm):
            order += [("f", warm + i), ("b", i)]
        orders.append(order + [("b", i) for i in range(micro_batches - warm, micro_batches)])
    done: dict[tuple[str, int, int], float] = {}
    clock, place = [0.0] * stages, [0] * stages
    while any(place[s] < len(orders[s]) for s in range(stages)):
        for s in range(stages):
            while place[s] < len(orders[s]):
                kind, i = orders[s][place[s]]
                before = ("f", i, s - 1) if kind == "f" else ("b", i, s + 1)
                if kind == "b" and s == stages - 1:
                    before = ("f", i, s)
                if kind == "f" and s == 0:
                    ready = 0.0
                elif before in done:
                    ready = done[before]
                else:
                    break
                clock[s] = max(clock[s], ready) + (1 if kind == "f" else 2)
                done[kind, i, s] = clock[s]
                place[s] += 1
    return max(clock)


@pytest.mark.parametrize("stages", [1, 2, 4, 7])
@pytest.mark.parametrize("micro_batches", [8, 16, 21])
def test_the_bubble_is_that_of_a_simulated_pipeline(stages, micro_batches):
    took = simulated_1f1b(stages, micro_batches)
    assert bubble_share(stages, micro_batches) == pytest.approx(1 - 3 * micro_batches / took)


def test_bubbles_and_flight():
    assert bubble_share(8, 64) == 7 / 71
    assert bubble_share(16, 16, 8) == 15 / 143
    assert bubble_share(1, 5) == 0
    assert in_flight_micro_batches(8, 64) == 8
    assert in_flight_micro_batches(8, 3) == 3
    assert in_flight_micro_batches(8, 64, 2) == 8 * (1 + 7 / 16)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.floats(0, 6))
def test_the_slowest_stage_is_the_best_of_all_splits(layers, stages, head):
    if stages > layers:
        return
    found = slowest_stage(layers, stages, head)
    assert found >= (layers + head) / stages - 1e-9
    if stages == 1:
        assert found == layers + head
        return
    every = (max(math.ceil((layers - last) / (stages - 1)), last + head) for last in range(layers + 1))
    assert found == min(every)
    assert slowest_stage(layers, stages - 1, head) >= found
