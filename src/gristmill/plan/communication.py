"""What devices send each other in a step of training, over which link, and how long that takes.

t, p, d, E: devices that share a layer's matrices (tensor), the layers (pipeline), the batch (data) and the experts,
which are taken from the data-parallel ones. Neighbours are numbered in the order tensor < expert < pipeline < data, so
that those who talk most sit in one node. N tokens of a micro-batch, m micro-batches of a step, C hidden_size, e bytes
of a number on its way, g of a gradient, P parameters of one device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import GristmillError
from .device import Device
from .layouts import Layout

Kind = Literal["tensor", "expert", "pipeline", "data"]

NETWORK_BANDWIDTH = (
    50e9  # byte/s a device: 400 Gbit/s each, as Llama 3's clusters have (Grattafiori et al. 2024, 3.3.1)
)
PCIE_BANDWIDTH = 32e9  # byte/s one direction: PCIe 4.0 x16, where a card has no links of its own
REACHED = 0.8  # of a link's peak, in large collectives: our assumption
LATENCY_INSIDE, LATENCY_BETWEEN = 10e-6, 30e-6  # seconds a collective takes beside its bytes: our assumption


@dataclass(frozen=True)
class Links:
    """Byte/s that one device sends to others of its node (`inside`) and to other nodes (`between`), one direction."""

    inside: float
    between: float
    devices_per_node: int = 8
    reached: float = REACHED

    @classmethod
    def of(cls, device: Device, devices_per_node: int | None = None) -> Links:
        """As the device's figures say, else as is usual; GristmillError for nodes of no devices."""
        per_node = device.devices_per_node if devices_per_node is None else devices_per_node
        if per_node < 1:
            raise GristmillError(f"devices_per_node must be at least 1, not {per_node}")
        inside = device.link_bandwidth or device.host_link_bandwidth or PCIE_BANDWIDTH
        return cls(inside, device.network_bandwidth or NETWORK_BANDWIDTH, per_node)


@dataclass(frozen=True)
class Group:
    """`size` devices, `stride` apart in their numbering."""

    size: int
    stride: int

    def crosses(self, links: Links) -> bool:
        return self.size > 1 and self.size * self.stride > links.devices_per_node

    def in_a_node(self, links: Links) -> int:
        """How many of the group share a node."""
        return max(min(links.devices_per_node // self.stride, self.size), 1)

    def ring_bandwidth(self, links: Links) -> float:
        """Byte/s that each member gets of a ring. Between nodes as many of its rings run side by side as it has members
        in a node, each with a network card of its own: min(inside, members * between)."""
        if not self.crosses(links):
            return links.inside * links.reached
        return min(links.inside, self.in_a_node(links) * links.between) * links.reached


@dataclass(frozen=True)
class Traffic:
    """What one device sends in a step for one kind of parallelism, and what of it compute can hide."""

    kind: Kind
    sent_bytes: float
    crosses_nodes: bool
    seconds: float
    hidden_seconds: float = 0.0

    @property
    def exposed_seconds(self) -> float:
        return self.seconds - self.hidden_seconds


def groups(layout: Layout) -> dict[Kind, Group]:
    """The groups of each kind. Weights that are no experts' are shared by all data-parallel devices, which are
    neighbours where experts take all of them, and else lie across the whole machine."""
    t, p, d, experts = layout.tensor, layout.pipeline, layout.data, layout.expert
    if d % experts:
        raise GristmillError(
            f"in training the devices of experts are data-parallel ones: expert parallelism {experts} does not divide "
            f"data parallelism {d}"
        )
    return {
        "tensor": Group(t, 1),
        "expert": Group(experts, t),
        "pipeline": Group(p, t * experts),
        "data": Group(d, t) if d == experts else Group(d, t * p),
    }


def tensor_bytes(hidden_size: int, tokens: float, layers: float, tensor: int, element: float, again: bool) -> float:
    """layers * 4 * 2 (t - 1)/t * N C e: two all-reduces of a block's outputs in forward and two of gradients in
    backward (Shoeybi et al. 2019, section 3), 6 where forward runs twice. With sequence parallelism each is a
    reduce-scatter and an all-gather, which send as much (Korthikanti et al. 2022, section 4.2.2)."""
    return layers * (6 if again else 4) * 2 * (tensor - 1) / tensor * tokens * hidden_size * element


def pipeline_bytes(hidden_size: int, tokens: float, chunks: int, tensor: int, element: float) -> float:
    """2 v N C e / t: a stage's outputs forward and their gradients backward, of each chunk of layers; each of the t
    devices sends its part (Narayanan et al. 2021, section 4.1)."""
    return 2 * chunks * tokens * hidden_size * element / tensor


def expert_bytes(
    hidden_size: int, tokens: float, layers: float, top_k: int, expert: int, tensor: int, element: float, again: bool
) -> float:
    """layers * 4 * (E - 1)/E * k N C e / t: tokens go to their k experts and results come back, by all-to-all, in
    forward and in backward (Lepikhin et al. 2021, section 3), 6 where forward runs twice."""
    sent = top_k * tokens * hidden_size * element / tensor
    return layers * (6 if again else 4) * (expert - 1) / expert * sent


def data_bytes(
    params: float, data: int, zero: int, gradient: float, operand: float, micro_batches: int = 1
) -> tuple[float, float]:
    """(bytes of gradients, bytes of weights) that a device sends in a step by rings, (d - 1)/d of

    stage 0: 2 g P, 0. Stage 1: 2 g P, g P (updated weights, from their owners). Stage 2: 4 P m (gradients, in float32,
    after each micro-batch), e P. Stage 3: 4 P m, 2 e P m: gathered for forward and for backward.
    """
    m = micro_batches
    gradients, weights = {
        0: (2 * gradient, 0.0),
        1: (2 * gradient, gradient),
        2: (4.0 * m, operand),
        3: (4.0 * m, 2 * operand * m),
    }[zero]
    share = params * (data - 1) / data
    return gradients * share, weights * share


def ring_seconds(sent_bytes: float, group: Group, links: Links, collectives: float = 1) -> float:
    """bytes / bandwidth of the ring + a latency for each collective."""
    if group.size == 1:
        return 0.0
    latency = LATENCY_BETWEEN if group.crosses(links) else LATENCY_INSIDE
    return sent_bytes / group.ring_bandwidth(links) + collectives * latency


def exchange_seconds(sent_bytes: float, group: Group, links: Links, collectives: float = 1) -> float:
    """Of an all-to-all, whose members send to each other as much: what goes to other nodes leaves by the device's own
    network card, at the same time as the rest by the links of the node."""
    if group.size == 1:
        return 0.0
    here = group.in_a_node(links)
    away = (group.size - here) / (group.size - 1)
    slowest = max(away * sent_bytes / links.between, (1 - away) * sent_bytes / links.inside) / links.reached
    return slowest + collectives * (LATENCY_BETWEEN if group.crosses(links) else LATENCY_INSIDE)


def transfer_seconds(sent_bytes: float, group: Group, links: Links, messages: float = 1) -> float:
    """From one stage to the next, over the slowest link on the way."""
    if group.size == 1:
        return 0.0
    crosses = group.crosses(links)
    bandwidth = (links.between if crosses else links.inside) * links.reached
    return sent_bytes / bandwidth + messages * (LATENCY_BETWEEN if crosses else LATENCY_INSIDE)
