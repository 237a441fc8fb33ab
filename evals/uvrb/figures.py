"""The report's figures as inline SVG, drawn with matplotlib.

Colours are CSS variables of the page, for light and dark mode: each name below is drawn in a unique
placeholder colour that is replaced in the SVG.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evals.uvrb.scores import ABILITIES

_COLOURS = {
    name: f"#0f{number:02x}ed"
    for number, name in enumerate(
        ("ink", "muted", "grid", "model", "untrained", "shuffled", "right", "wrong", "paper")
    )
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "gve_jax",
    "font.size": 10,
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.edgecolor": _COLOURS["grid"],
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": _COLOURS["grid"],
    "ytick.color": _COLOURS["grid"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "legend.frameon": False,
}
_COLUMN = 9.2  # width of the page's column in inches
SMOOTH = 0.05  # share of a run that a smoothed line averages over


def scores_by_set(
    datasets: Mapping, untrained: Mapping | None, controls: Mapping[str, Mapping]
) -> str:
    """A bar and an interval for each set, with marks for chance, the untrained model and other
    orders of frames (`{"shuffled": datasets}`)."""
    names = list(datasets)[::-1]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_COLUMN, 0.9 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(names))
        scores = [datasets[name]["score"] for name in names]
        axes.barh(rows, scores, 0.62, color=_COLOURS["model"], label="this model")
        bounds = np.array([datasets[name]["interval"] for name in names]).T
        # On a band in the colour of the page, without which the line vanishes in a dark bar.
        axes.hlines(rows, *bounds, color=_COLOURS["paper"], lw=3.6, zorder=2.4)
        axes.hlines(rows, *bounds, color=_COLOURS["ink"], lw=1.6, zorder=2.5, label="95 %")
        marks = [("untrained model", "o", "untrained", untrained)]
        marks += [
            (f"{order} frames", marker, "shuffled", side)
            for (order, side), marker in zip(controls.items(), "Ds", strict=False)
        ]
        for label, marker, colour, side in marks:
            if side:
                points = [(side[n]["score"], row) for row, n in enumerate(names) if n in side]
                axes.plot(
                    *zip(*points, strict=True),
                    marker,
                    ms=6,
                    color=_COLOURS[colour],
                    markeredgecolor=_COLOURS["ink"],
                    markeredgewidth=0.6,
                    zorder=3,
                    clip_on=False,
                    label=label,
                )
        chance = [datasets[name]["chance"] for name in names]
        axes.plot(
            chance, rows, "|", ms=15, mew=2, color=_COLOURS["ink"], clip_on=False, label="chance"
        )
        for row, score in zip(rows, scores, strict=True):  # in a column, clear of the marks
            axes.text(1.1, row, f"{score:.3f}", va="center", ha="right", fontsize=9)
        axes.set_yticks(rows, [f"{name}  ({datasets[name]['metric']})" for name in names])
        axes.tick_params(axis="y", labelcolor=_COLOURS["ink"], length=0)
        axes.set(xlim=(0, 1.1), ylim=(-0.6, len(names) - 0.4), xlabel="score")
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(axis="y", visible=False)
        handles, labels = axes.get_legend_handles_labels()
        first = labels.index("this model")
        for entries in (handles, labels):
            entries.insert(0, entries.pop(first))
        figure.legend(handles, labels, loc="outside upper left", ncols=6)
        return _svg(figure, "Score of each set with chance and controls")


def differences(datasets: Mapping[str, Mapping], title: str) -> str:
    """A point and an interval for each set's difference, with a line at zero."""
    names = list(datasets)[::-1]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_COLUMN, 0.7 + 0.3 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=_COLOURS["ink"], lw=1)
        for row, name in enumerate(names):
            (low, high), value = datasets[name]["interval"], datasets[name]["difference"]
            colour = "muted" if low <= 0 <= high else "right" if value > 0 else "wrong"
            axes.hlines(row, low, high, color=_COLOURS[colour], lw=2)
            axes.plot(value, row, "o", ms=6, color=_COLOURS[colour])
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", labelcolor=_COLOURS["ink"], length=0)
        axes.set(ylim=(-0.6, len(names) - 0.4), xlabel="difference of scores")
        edges = [0.0, *(edge for one in datasets.values() for edge in one["interval"])]
        margin = 0.06 * (max(edges) - min(edges)) or 0.1
        axes.set_xlim(min(edges) - margin, max(edges) + margin)
        axes.grid(axis="y", visible=False)
        return _svg(figure, f"Differences: {title}")


def curves(series: Mapping[str, Sequence[tuple]], label: str) -> str:
    """A small panel for each of `{name: [(x, score, (low, high)), ...]}`, with log2 x axes."""
    columns = min(4, len(series))
    rows = -(-len(series) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_COLUMN, 0.4 + 1.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axes, (name, points) in zip(grid.flat, series.items(), strict=False):
            x, y, bounds = zip(*points, strict=True)
            low, high = zip(*bounds, strict=True)
            axes.fill_between(x, low, high, color=_COLOURS["model"], alpha=0.18, lw=0)
            axes.plot(x, y, "o-", ms=4, lw=1.8, color=_COLOURS["model"])
            axes.set_title(name, fontsize=10)
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(value) for value in x])
            axes.minorticks_off()
            axes.tick_params(labelsize=8, labelbottom=True)
            axes.margins(y=0.15)
        for axes in list(grid.flat)[len(series) :]:
            axes.set_visible(False)
        figure.supxlabel(label, fontsize=10, color=_COLOURS["muted"])
        return _svg(figure, f"Scores by {label}")


def heat_maps(panels: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """A panel for each matrix [N, N] of correlations; the colour is stronger further from 0."""
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        size = (_COLUMN * 1.25, 0.2 + 1.15 * _COLUMN / len(panels))
        figure = Figure(figsize=size, layout="constrained")
        for axes, (title, values) in zip(
            figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True
        ):
            for row, column in np.ndindex(*values.shape):
                value = values[row, column]
                if column > row:
                    continue
                colour = _COLOURS["model" if value > 0 else "wrong"]
                text = f"{value:.2f}".replace("0.", ".").replace("-", "−")
                text = "1" if row == column else text
                _cell(axes, column, row, 0.94, colour, 0.7 * abs(value), text)
            axes.set_title(title)
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(length=0, labelsize=8.5, labelcolor=_COLOURS["ink"])
            axes.spines[:].set_visible(False)
            axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
        return _svg(figure, "Correlation of abilities over models")


def radar(sides: Mapping[str, Mapping[str, float | None]]) -> str:
    """The nine abilities as a radar plot: `{"model": abilities, "untrained": ..., ...}`."""
    angles = np.linspace(0, 2 * np.pi, len(ABILITIES), endpoint=False)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 4.9), layout="constrained")
        axes = figure.add_subplot(projection="polar")
        axes.set_theta_offset(np.pi / 2)
        axes.set_theta_direction(-1)
        others = iter(("shuffled", "right"))
        for name, values in sides.items():
            fixed = {"chance": "ink", "model": "model", "untrained": "untrained"}.get(name)
            colour = _COLOURS[fixed or next(others)]
            radius = np.array([values[ability] or 0.0 for ability in ABILITIES])
            closed = np.append(angles, angles[0]), np.append(radius, radius[0])
            line = ":" if name == "chance" else "-"
            label = {"model": "this model", "untrained": "untrained model"}.get(name, name)
            axes.plot(*closed, line, color=colour, lw=1.8, label=label)
            if name == "model":
                axes.fill(*closed, color=colour, alpha=0.18, lw=0)
        axes.set_xticks(angles, ABILITIES)
        axes.tick_params(axis="x", labelcolor=_COLOURS["ink"], pad=4)
        rings = np.linspace(0, rim(sides), 5)[1:]
        axes.set_ylim(0, rings[-1])
        axes.set_yticks(rings, [f"{ring:.2g}" for ring in rings])
        axes.set_rlabel_position(20)
        axes.spines["polar"].set_color(_COLOURS["grid"])
        figure.legend(loc="outside lower center", ncols=3)
        return _svg(figure, "Radar plot of the nine abilities")


def rim(sides: Mapping[str, Mapping[str, float | None]]) -> float:
    """The score at the rim of the radar plot: the highest score, rounded up to a fifth."""
    highest = max(value or 0.0 for values in sides.values() for value in values.values())
    return max(1, int(np.ceil(round(5 * highest, 6)))) / 5


def training_curves(lines: Sequence[Mapping]) -> str:
    """Loss, in-batch accuracy, learning rate and wait share by step."""
    panels = (
        ("loss", "loss", True),
        ("accuracy", "in-batch accuracy", True),
        ("learning_rate", "learning rate", False),
        ("wait_share", "share of time waiting for data", False),
    )
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_COLUMN, 5), layout="constrained")
        for axes, (key, title, noisy) in zip(
            figure.subplots(2, 2, sharex=True).flat, panels, strict=True
        ):
            steps, values = _series(lines, key)
            axes.set_title(title)
            if len(steps):
                axes.plot(steps, values, lw=1, color=_COLOURS["model"], alpha=0.3 if noisy else 1)
            if len(steps) and noisy:
                axes.plot(steps, _smooth(values), lw=2, color=_COLOURS["model"])
            if not len(steps):
                axes.text(0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes)
            axes.set_ylim(bottom=0)
            _stages(axes, lines)
        for axes in figure.axes[2:]:
            axes.set_xlabel("step")
        return _svg(figure, "Training curves")


def loss_by_source(lines: Sequence[Mapping]) -> str:
    """A small panel for each source's loss, all on one scale."""
    keys = sorted({key for line in lines for key in line if key.startswith("loss/")})
    columns = 5
    rows = -(-len(keys) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_COLUMN, 0.3 + 1.45 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        highest = 0.0
        for axes, key in zip(grid.flat, keys, strict=False):
            steps, values = _series(lines, key)
            # With dots, since a source that was drawn once has no line.
            axes.plot(steps, values, ".-", ms=3, lw=0.8, color=_COLOURS["model"], alpha=0.3)
            axes.plot(steps, _smooth(values), lw=1.6, color=_COLOURS["model"])
            axes.set_title(key.removeprefix("loss/"), fontsize=9)
            axes.tick_params(labelsize=8)
            highest = max(highest, values.max(initial=0))
        grid[0, 0].set(ylim=(0, 1.05 * highest or 1), xlim=(0, max(1, lines[-1]["step"])))
        for axes in list(grid.flat)[len(keys) :]:
            axes.set_visible(False)
        return _svg(figure, "Loss by source")


def curriculum(
    stages: Sequence[Mapping], losses: Sequence[Mapping[str, float]] | None = None
) -> str:
    """P (share of batches), R (measured alignment) and loss, by source and stage.

    Args:
      stages: records of the stages.
      losses: the mean loss by source of each stage; None for no panel.
    """
    sources = list(stages[0]["P"])
    panels = [
        ("P: share of batches", "{:.0%}", [stage["P"] for stage in stages]),
        ("R: mean cosine of pairs", "{:.2f}", [stage["R"] for stage in stages]),
    ]
    if losses is not None:
        panels.append(("mean loss", "{:.2f}", losses))
    with matplotlib.rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(_COLUMN, 1.3 + 0.27 * len(sources)), layout="constrained")
        drawn = figure.subplots(1, len(panels), sharey=True)
        for axes, (title, form, columns) in zip(drawn, panels, strict=True):
            values = np.array([[column.get(s, np.nan) for column in columns] for s in sources])
            most = max(np.nanmax(values, initial=0), 1e-9)
            for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
                value = values[row, column]
                alpha = 0.75 * max(value, 0) / most
                _cell(axes, column, row, 0.92, _COLOURS["model"], alpha, form.format(value))
            axes.set_title(title)
            axes.set_xticks(range(len(stages)), [_stage_label(s) for s in stages], fontsize=8)
            axes.set_yticks(range(len(sources)), sources)
            axes.tick_params(length=0)
            axes.tick_params(axis="y", labelcolor=_COLOURS["ink"])
            axes.spines[:].set_visible(False)
            axes.set(xlim=(-0.5, len(stages) - 0.5), ylim=(len(sources) - 0.5, -0.5))
        return _svg(figure, "The curriculum: P and R by source and stage")


def _cell(axes: Axes, column: int, row: int, size: float, colour, alpha: float, text: str) -> None:
    """A coloured cell of a table with a text."""
    axes.bar(column, size, size, row - size / 2, color=colour, alpha=alpha, lw=0)
    axes.text(column, row, text, ha="center", va="center", fontsize=8)


def _stage_label(stage: Mapping) -> str:
    return f"step {stage['first_step']}\nσ {stage['sigma']:.2f}"


def _stages(axes: Axes, lines: Sequence[Mapping]) -> None:
    """A dashed line at the start of each stage."""
    steps, numbers = _series(lines, "stage")
    for step in steps[1:][np.diff(numbers) != 0]:
        axes.axvline(step, color=_COLOURS["muted"], lw=0.8, ls=(0, (3, 3)))


def _series(lines: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return tuple(np.array(points, float).reshape(-1, 2).T)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Moving average; shorter windows near the ends."""
    width = max(1, round(SMOOTH * len(values)))
    kernel = np.ones(2 * width + 1)
    known = np.convolve(np.ones(len(values)), kernel)[width : width + len(values)]
    return np.convolve(values, kernel)[width : width + len(values)] / known


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids of groups repeat between figures; ids that are referenced are hashes of their content.
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
