"""The picture of a scaling law: measured losses over FLOPs, the law's curve for each size, and its best line."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GristmillError
from ..plan.scaling import Law

INK, FAINT = "#2f3b45", "#b8c0c8"


def draw_scaling(report: dict[str, Any], path: Path) -> None:
    """A PNG; the same report gives the same bytes. GristmillError where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise GristmillError("scaling.png needs matplotlib: pip install 'gristmill[page]'") from None
    law, models = Law(**report["law"]), report["models"]
    sizes = sorted({model["params"] for model in models})
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(8, 5), dpi=110, facecolor="white", layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(sizes)))
        for size, colour in zip(sizes, colours, strict=True):
            mine = sorted((m for m in models if m["params"] == size), key=lambda m: float(m["flops"]))
            flops = np.geomspace(mine[0]["flops"] / 2, mine[-1]["flops"] * 4, 60)
            axes.plot(flops, [law.loss(size, c / 6 / size) for c in flops], color=colour, linewidth=1, alpha=0.6)
            shown = f"{size / 1e6:.3g}M" if size >= 1e6 else f"{size / 1e3:.3g}k"
            axes.plot([m["flops"] for m in mine], [m["loss"] for m in mine], "o", color=colour, label=shown)
        ends = [m["flops"] for m in models] + [b["flops"] for b in report["budgets"]]
        if best := _optima(law, np.geomspace(min(ends), max(ends), 80)):
            axes.plot(*zip(*best, strict=True), "--", color=INK, linewidth=1.2, label="optimum")
        for budget in report["budgets"]:
            if budget["loss_interval"] is not None:
                axes.plot([budget["flops"]] * 2, budget["loss_interval"], color=INK, linewidth=2)
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs of training (6 N D)", color=INK)
        axes.set_ylabel("validation bits per byte", color=INK)
        axes.grid(color=FAINT, linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(title="multiplied parameters", frameon=False, fontsize=8)
        axes.set_title(
            f"L = {law.floor:.3g} + {law.a:.3g} / N^{law.alpha:.2f} + {law.b:.3g} / D^{law.beta:.2f}",
            fontsize=10,
            color=INK,
        )
        figure.savefig(path, format="png", metadata={"Software": None})


def _optima(law: Law, budgets: Iterable[float]) -> list[tuple[float, float]]:
    """`(flops, lowest loss)` for those budgets that have one."""
    found = []
    for flops in budgets:
        with suppress(GristmillError):
            found.append((flops, law.loss(*law.optimal(flops))))
    return found
