"""Drawing attention patterns. matplotlib is imported where it is used: nothing else needs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import GristmillError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
CELL_INCHES = 1.9
LARGEST_INCHES = 24.0  # of the grid's longer side; cells shrink beyond it
TOKEN_INCHES = 0.09  # of a pattern's side per token, below which token labels would overlap
TOP, RIGHT = 0.85, 0.85  # inches for the title and for the colour bar
INK, FAINT, FUTURE = "#2f3b45", "#b8c0c8", "#f4f4f2"
COLOURS = "GnBu"


def draw_attention(patterns: Tensor, tokens: Sequence[str], path: Path) -> None:
    """A PNG with one small picture per head: layers down, heads across, `patterns [L, H, T, T]`.

    The same patterns give the same bytes: no date, no version, none of the user's own settings in it.
    GristmillError where matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise GristmillError("attention.png needs matplotlib: pip install 'gristmill[page]'") from None
    layers, heads, time, _ = patterns.shape
    cell = min(CELL_INCHES, LARGEST_INCHES / max(layers, heads))
    labels = [visible(token) for token in tokens] if cell / time >= TOKEN_INCHES else []
    margin = 0.55 + 0.062 * max((len(label) for label in labels), default=0)
    bottom = margin - 0.3  # the layers' names stand on the left only
    width, height = heads * cell + margin + RIGHT, layers * cell + bottom + TOP
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        axes = figure.subplots(layers, heads, squeeze=False)
        figure.subplots_adjust(margin / width, bottom / height, 1 - RIGHT / width, 1 - TOP / height, 0.1, 0.1)
        for layer in range(layers):
            for head in range(heads):
                _draw_head(axes[layer][head], patterns[layer, head])
            axes[layer][0].set_ylabel(f"layer {layer}", fontsize=9, color=INK)
            _name_tokens(axes[layer][0], "y", labels)
        for head in range(heads):
            axes[0][head].set_title(f"head {head}", fontsize=9, color=INK, pad=5)
            _name_tokens(axes[-1][head], "x", labels)
        _caption(figure, f"Attention patterns: {layers} layers of {heads} heads", margin / width)
        _colour_bar(figure, axes[0][0])
        figure.savefig(path, format="png", metadata={"Software": None})


def visible(token: str) -> str:
    """A token as a label: spaces and line ends made visible."""
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "→")


def _draw_head(axis: Axes, pattern_TT: Tensor) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    future = torch.ones_like(pattern_TT, dtype=torch.bool).triu(1)
    past = pattern_TT.masked_fill(future, float("nan"))  # what a token cannot see is blank, not zero
    # The square root keeps weights of a few per cent visible, which is where most of the structure is.
    scale = PowerNorm(0.5, vmin=0.0, vmax=1.0)
    axis.imshow(past.numpy(), cmap=colormaps[COLOURS].with_extremes(bad=FUTURE), norm=scale, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=FAINT, linewidth=0.6)


def _name_tokens(axis: Axes, side: str, labels: list[str]) -> None:
    if not labels:
        return
    if side == "x":
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6.5, color=INK)
    else:
        axis.set_yticks(range(len(labels)), labels, fontsize=6.5, color=INK)
    axis.tick_params(axis="both", length=0, pad=2)
    for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]:
        label.set_parse_math(False)  # a dollar sign in a token is a dollar sign


def _caption(figure: Figure, title: str, left: float) -> None:
    height = figure.get_figheight()
    figure.text(left, 1 - 0.18 / height, title, fontsize=12, color=INK, va="top", weight="bold")
    how = "Each row is a token, each column a token it looks at; a row sums to 1."
    figure.text(left, 1 - 0.42 / height, how, fontsize=8.5, color=INK, va="top")


def _colour_bar(figure: Figure, axis: Axes) -> None:
    box = axis.get_position()
    width = figure.get_figwidth()
    bar = figure.add_axes((1 - (RIGHT - 0.2) / width, box.y0, 0.12 / width, box.height))
    drawn = figure.colorbar(axis.images[0], cax=bar, ticks=[0, 0.05, 0.25, 0.5, 1])
    drawn.ax.set_yticklabels(["0", "5 %", "25 %", "50 %", "100 %"], fontsize=7, color=INK)
    drawn.ax.tick_params(length=2, color=FAINT)
    drawn.outline.set(color=FAINT, linewidth=0.6)
