"""Three pictures of a verdict: is the confidence honest, what does a budget buy, and where do length and error meet.

Each is written as PNG and SVG. The model is blue, the baseline grey, and a budget orange in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from train import metrics
from train.answers import Answers, Group
from train.decision import Decision

MODEL, BASELINE, BUDGET, INK = "#1f5fa8", "#8c8c8c", "#d1701a", "#333333"
DASHED = (0, (4, 3))
_STYLE: Any = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "bet",  # the same figures give the same file
}


def draw(
    folder: Path, model: Answers, baseline: Answers, decision: Decision, lengths: Sequence[Group], *, rows_name: str
) -> list[Path]:
    """Draw all three into `folder` and return the paths of the PNGs.

    Args:
        folder: made where it is missing.
        model: answers on the rows that the verdict is about.
        baseline: answers of the baseline on the same rows.
        decision: whose thresholds are marked.
        lengths: the rows in groups of rising length.
        rows_name: what to call the rows in the titles.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{rows_name}, n = {len(model.labels):,}"
    with mpl.rc_context(_STYLE):
        return [
            _save(_reliability(model, baseline, about), folder / "reliability.png"),
            _save(_accepted(model, baseline, decision, about), folder / "accepted.png"),
            _save(_length(lengths, about), folder / "length.png"),
        ]


def _reliability(model: Answers, baseline: Answers, about: str) -> Figure:
    """Accuracy against confidence in bins of equal mass, and where the answers lie."""
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    least = 1 / model.probabilities.shape[1]
    top.plot([least, 1], [least, 1], color=INK, linewidth=0.8, linestyle=DASHED, label="confidence = accuracy")
    for answers, color, name in ((baseline, BASELINE, "TF-IDF + LR"), (model, MODEL, "BET")):
        bins = metrics.calibration_bins(answers.probabilities, answers.labels)
        accuracy = np.array([group.accuracy for group in bins])
        low, high = np.array([metrics.clopper_pearson(round(g.accuracy * g.rows), g.rows) for g in bins]).T
        top.errorbar(
            [group.confidence for group in bins],
            accuracy,
            yerr=[accuracy - low, high - accuracy],
            color=color,
            marker="o",
            markersize=4,
            linewidth=1.4,
            elinewidth=0.8,
            label=f"{name}, ECE {metrics.ece(answers.probabilities, answers.labels):.3f}",
        )
        bottom.hist(
            answers.probabilities.max(axis=1),
            bins=40,
            range=(least, 1),
            histtype="step",
            color=color,
            linewidth=1.3,
            weights=np.full(len(answers.labels), 1 / len(answers.labels)),
        )
    top.set(title=f"Reliability · {about}", ylabel="accuracy (95 % interval)")
    top.legend(loc="upper left")
    bottom.set(xlabel="confidence: probability of the answer", ylabel="share of rows", xlim=(least - 0.01, 1.01))
    _in_percent(bottom.yaxis)
    return figure


def _accepted(model: Answers, baseline: Answers, decision: Decision, about: str) -> Figure:
    """Error among the accepted against the share accepted, by rising risk score."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes: Axes = figure.subplots()
    rows = len(model.labels)
    highest = 0.0
    for answers, color, name in ((baseline, BASELINE, "TF-IDF + LR, by entropy"), (model, MODEL, "BET, by total")):
        accepted, error = metrics.risk_coverage(answers.total, answers.right)
        shown = accepted >= 0.02 * rows  # the first handful of rows is noise
        axes.plot(accepted[shown] / rows, error[shown], color=color, linewidth=1.6, label=name)
        highest = max(highest, float(error[shown].max(initial=0.0)))
    for budget, x, side in ((0.05, 0.005, "left"), (0.01, 0.995, "right")):  # where the curves leave room
        axes.axhline(budget, color=BUDGET, linewidth=0.8, linestyle=DASHED)
        axes.text(x, budget, f"{budget:.0%} error".replace("%", " %"), color=BUDGET, va="bottom", ha=side, fontsize=9)
    chosen = model.accepted(decision)
    if chosen.any():
        share, wrong = float(chosen.mean()), float((~model.right)[chosen].mean())
        label = f"its {100 * decision.max_error:g} % budget: {100 * share:.0f} % accepted, {100 * wrong:.1f} % wrong"
        axes.plot([share], [wrong], "o", markersize=8, color=MODEL, markeredgecolor="white", zorder=5, label=label)
    axes.set(
        title=f"What an error budget buys · {about}",
        xlabel="share of answers accepted without a look",
        ylabel="error among the accepted",
        xlim=(0, 1.005),
        ylim=(0, max(0.06, highest * 1.08)),
    )
    _in_percent(axes.xaxis)
    _in_percent(axes.yaxis)
    axes.legend(loc="upper left")
    return figure


def _length(lengths: Sequence[Group], about: str) -> Figure:
    """Error, and mean uncertainty, of texts by length."""
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    place = np.arange(len(lengths))
    line: dict[str, Any] = {"color": MODEL, "marker": "o", "markersize": 4}
    error = np.array([group.error for group in lengths])
    low, high = np.array([group.error_interval for group in lengths]).T
    bar = [group.baseline_error for group in lengths]
    top.plot(place, bar, **(line | {"color": BASELINE}), label="TF-IDF + LR")
    top.errorbar(place, error, yerr=[error - low, high - error], **line, elinewidth=0.8, label="BET")
    among = [np.nan if group.accepted_error is None else group.accepted_error for group in lengths]
    top.plot(place, among, **line, linestyle=DASHED, linewidth=1.2, label="BET, accepted answers only")
    highest = 1.3 * max(*high, *bar)  # room for the legend
    top.set(title=f"Length · {about}", ylabel="error (95 % interval)", ylim=(0, highest))
    _in_percent(top.yaxis)
    top.legend(loc="upper left", ncols=3)
    bottom.plot(place, [group.total for group in lengths], **line, label="total")
    epistemic = [group.epistemic for group in lengths if group.epistemic is not None]
    if len(epistemic) == len(lengths):
        bottom.plot(place, epistemic, **line, linestyle=DASHED, linewidth=1.2, label="epistemic")
    bottom.set(xlabel="words in the text (groups of equal size)", ylabel="mean uncertainty (nats)")
    bottom.set_ylim(0, 1.35 * max(group.total for group in lengths))
    bottom.set_xticks(place, [group.name.removesuffix(" words") for group in lengths])
    bottom.legend(loc="upper left", ncols=2)
    return figure


def _in_percent(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))  # no step of 2.5: whole numbers read faster
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return path
