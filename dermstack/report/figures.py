"""Draws figures as inline SVG in the colours of the page (light, dark or print)."""

from __future__ import annotations

import io
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from dermstack.report.ticks import TickFormatter, round_ticks
from stack.level2.importance import TOP_COLUMNS
from stack.metrics.scores import Floats
from stack.tune.studies import StudyHistory

WIDTH = 4.4  # inches, 317 SVG units: about the width of a phone in pixels, so text keeps its size there
_MAX_LABEL_LENGTH = 48  # characters; a longer label does not fit above its bar and value, and is cut

# Figures are drawn in the colours of page.css on a light ground, which a file keeps (`figure_files`). On the page they
# are replaced by the names of the page's colours, which differ on a dark ground and in print.
_COLOURS = {
    "#1b2326": "var(--ink)",
    "#58656b": "var(--muted)",
    "#d7dddf": "var(--line)",
    "#0b6a73": "var(--accent)",
}
INK, MUTED, LINE, ACCENT = _COLOURS


class Swatch(NamedTuple):
    """The symbol of a label in a legend: a "line", a "bar" or a "band" in one of INK, MUTED, LINE and ACCENT."""

    colour: str
    width: float = 2.0
    dashes: tuple[float, ...] = ()
    shape: str = "line"
    opacity: float = 1.0

    def __html__(self) -> str:
        """Returns the symbol as an SVG element in the colours of the page, for Jinja."""
        drawn = {
            "line": '<path d="M0 4H28" style="fill: none; stroke: {0}; stroke-width: {1}; stroke-dasharray: {2}"/>',
            "bar": '<path d="M0 1H28V7H0Z" style="fill: {0}"/>',
            "band": '<path d="M0 0H28V8H0Z" style="fill: {0}; opacity: 0.25"/>',
        }[self.shape]
        dash = " ".join(str(part * self.width) for part in self.dashes) or "none"
        opening = Markup('<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">')
        made = opening + Markup(drawn).format(_COLOURS[self.colour], self.width, dash) + Markup("</svg>")
        if self.opacity == 1:
            return str(made)
        return str(Markup('<span style="opacity: {}; display: inline-flex">{}</span>').format(self.opacity, made))


class Drawing(NamedTuple):
    """A figure for the page as an SVG element, its legend there, and the figure itself, for a file."""

    svg: Markup
    legend: Sequence[tuple[str, Markup | Swatch]]  # each label with its symbol; only a Swatch gets into a file
    name: str = ""  # what the ids of the element begin with
    figure: Figure | None = None


class Estimate(NamedTuple):
    """One line of an interval figure; a `tuned` value is drawn as a hollow dot beside the nested one."""

    label: str
    value: float
    low: float
    high: float
    tuned: float | None = None
    strong: bool = False  # drawn in the accent colour


def interval_figure(name: str, estimates: Sequence[Estimate], *, axis: str, reference: float | None = None) -> Drawing:
    """Draws values with their intervals, one row each from the top; `reference` is a dashed vertical line."""
    with page_style():
        figure = blank_figure(height=0.75 + 0.46 * len(estimates))
        axes = label_axes(figure, len(estimates), axis)
        if reference is not None:
            axes.axvline(reference, color=ACCENT, linewidth=0.8, dashes=(3, 3))
        for row, entry in enumerate(estimates):
            colour = ACCENT if entry.strong else INK
            row_text(axes, row, entry.label, f"{entry.value:.4f}", strong=entry.strong)
            axes.plot([entry.low, entry.high], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
            if entry.tuned is not None:
                axes.plot(entry.tuned, row, "o", markersize=6, markerfacecolor="none", markeredgecolor=MUTED)
            axes.plot(entry.value, row, "o", markersize=6.5, color=colour, markeredgewidth=0)
        axes.margins(x=0.04)
        return drawing(figure, name, f"{axis} with 95 % intervals. {'; '.join(map(_alt_text, estimates))}.")


def bar_figure(name: str, values: Mapping[str, float], *, axis: str, marks: Sequence[str] = ()) -> Drawing:
    """Draws horizontal bars from the top; ``marks`` are appended to the printed values."""
    with page_style():
        figure = blank_figure(height=0.75 + 0.46 * len(values))
        axes = label_axes(figure, len(values), axis)
        for row, (label, value) in enumerate(values.items()):
            row_text(axes, row, label, f"{value:.3f}{marks[row] if marks else ''}")
        axes.barh(range(len(values)), list(values.values()), height=0.28, color=ACCENT)
        axes.axvline(0, color=LINE, linewidth=1)
        axes.set_xlim(min(0.0, *values.values()), max(1e-3, *values.values()) * 1.02)
        words = "; ".join(f"{label} {value:.3f}" for label, value in values.items())
        return drawing(figure, name, f"{axis}. {words}.")


@contextmanager
def page_style() -> Iterator[None]:
    """Replaces the user's matplotlib settings by ours while a figure is drawn, for the same page on every machine."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # The browser sets the text; its font may have glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def blank_figure(*, height: float) -> Figure:
    """Returns a figure of WIDTH × `height` inches; draw on it inside `page_style`."""
    return Figure(figsize=(WIDTH, height), layout="constrained")  # not pyplot, which keeps every figure in memory


_STYLE: dict[Any, object] = {
    "svg.hashsalt": "dermstack",
    "svg.fonttype": "none",
    "text.parse_math": False,  # the name of a run may contain "$"
    "text.color": INK,
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
}


def drawing(figure: Figure, name: str, alt: str, legend: Sequence[tuple[str, Swatch]] = ()) -> Drawing:
    """Returns a figure as the page and a file need it; ``alt`` is its text for who cannot see it."""
    return Drawing(page_svg(figure, name, alt), legend, name, figure)


def page_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Returns the figure as an SVG element with unique ids (prefix `name`) and the page's font and colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)

    def adopt(tag: re.Match[str]) -> str:  # changes tags only: a label may contain any text
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag[0])
        text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
        return re.sub("|".join(_COLOURS), lambda colour: _COLOURS[colour[0]], text)

    _, start, body = svg.partition("<svg")
    opening, _, inside = re.sub(r"<[^>]*>", adopt, start + body).partition(">")
    box = opening[opening.index("viewBox") :].split('"')[1]
    return Markup('<svg class="plot" role="img" aria-label="{}" viewBox="{}">').format(alt, box) + Markup(inside)


def label_axes(figure: Figure, rows: int, axis: str) -> Axes:
    """Makes axes for rows with their labels above the bars, so that long names take no width from the values."""
    axes = figure.subplots()
    axes.set(ylim=(rows - 0.65, -0.75), xlabel=axis)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    round_ticks(axes.xaxis)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    return axes


def line_grid(axes: Axes, *, percent: bool = False) -> None:
    """Gives axes of lines round ticks on the left and a grid below the lines."""
    round_ticks(axes.yaxis, percent=percent)
    axes.grid(True)
    axes.set_axisbelow(True)


def row_text(axes: Axes, row: int, label: str, value: str, *, strong: bool = False) -> None:
    """Writes the label above row `row` of `label_axes`, shortened if too long, and the value beside its bar."""
    short = label
    if _width(label) > _MAX_LABEL_LENGTH:  # cut in the middle: names often differ only at their end
        end = label[-(_MAX_LABEL_LENGTH // 4) :]
        while _width(f"{short}…{end}") > _MAX_LABEL_LENGTH:
            short = short[:-1]
        short = f"{short}…{end}"
    weight = "bold" if strong else "normal"
    at = axes.get_yaxis_transform()
    words = axes.text(0, row - 0.27, short, transform=at, ha="left", va="bottom", weight=weight)
    words.set_in_layout(False)  # a long label goes on above the value and takes no width from the bars
    axes.text(1.03, row, value, transform=at, ha="left", va="center_baseline", weight=weight)


def _width(text: str) -> int:
    """Returns the width of a text in characters of the Latin script; a Chinese or Japanese character is two wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _alt_text(entry: Estimate) -> str:
    bounds = f", {entry.low:.4f} to {entry.high:.4f}" if math.isfinite(entry.low) else ""
    tuned = "" if entry.tuned is None else f", tuned in-sample {entry.tuned:.4f}"
    return f"{entry.label} {entry.value:.4f}{bounds}{tuned}"


CURVE_POINTS = 2_000  # vertices kept of a curve; they are less than a pixel apart
FOLD_POINTS = 500  # vertices kept of a curve within one fold
_CURVE_STYLES = (  # colour, width, dashes: curves do not differ by colour alone
    (ACCENT, 2.4, (None, None)),
    (INK, 1.4, (6, 2)),
    (MUTED, 1.8, (2, 1.2)),
    (MUTED, 1.2, (6, 2, 1.5, 2)),
)
_FOLD_CURVE_STYLE: dict[str, Any] = {"color": ACCENT, "linewidth": 0.7, "alpha": 0.45}


def roc_figure(name: str, y: ArrayLike, scores: Mapping[str, ArrayLike], fold: ArrayLike | None = None) -> Drawing:
    """Draws the ROC curve of each of `scores` (n,), the first one bold and also, thin, within each `fold` (n,)."""
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = unit_axes(figure, "1 − specificity (false positive rate)", "sensitivity (true positive rate)")
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for held, s in _by_fold(y, next(iter(scores.values())), fold):
            axes.plot(*roc_points(held, s, most=FOLD_POINTS), **_FOLD_CURVE_STYLE)
        for (colour, width, dashes), s in reversed(_styled(scores.values())):
            axes.plot(*roc_points(y, s), color=colour, linewidth=width, dashes=dashes)
        return drawing(figure, name, f"ROC curves. {'; '.join(scores)}.", _legend(scores, fold))


def precision_recall_figure(
    name: str, y: ArrayLike, scores: Mapping[str, ArrayLike], fold: ArrayLike | None = None
) -> Drawing:
    """Draws precision against recall in the style of `roc_figure`, and the prevalence, the precision of chance."""
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = unit_axes(figure, "recall (sensitivity)", "precision (positive predictive value)")
        axes.axhline(float(np.mean(np.asarray(y))), color=LINE, linewidth=1)
        for held, s in _by_fold(y, next(iter(scores.values())), fold):
            axes.plot(*precision_recall_points(held, s, most=FOLD_POINTS), drawstyle="steps-pre", **_FOLD_CURVE_STYLE)
        for (colour, width, dashes), s in reversed(_styled(scores.values())):
            points = precision_recall_points(y, s)
            axes.plot(*points, color=colour, linewidth=width, dashes=dashes, drawstyle="steps-pre")
        return drawing(figure, name, f"Precision-recall curves. {'; '.join(scores)}.", _legend(scores, fold))


def decision_figure(name: str, curve: pd.DataFrame) -> Drawing:
    """Draws `stack.metrics.decisions.decision_curve` with its interval, and acting on all and on none."""
    at = curve["threshold"].to_numpy()
    with page_style():
        figure = blank_figure(height=0.8 * WIDTH)
        axes = figure.subplots()
        axes.axhline(0, color=MUTED, linewidth=1.2, dashes=(2, 1.2))
        axes.plot(at, curve["treat_all"], color=INK, linewidth=1.4, dashes=(6, 2))
        axes.fill_between(at, curve["low"], curve["high"], color=ACCENT, alpha=0.2, linewidth=0)
        axes.plot(at, curve["net_benefit"], color=ACCENT, linewidth=2.4)
        top = float(max(curve["high"].max(), curve["treat_all"].max()))
        axes.set(xlim=(0, at[-1]), ylim=(-0.25 * top, 1.05 * top))
        axes.set(xlabel="threshold: the risk at which to act", ylabel="net benefit")
        round_ticks(axes.xaxis, percent=True)
        line_grid(axes)
        shown = curve.iloc[np.linspace(0, len(curve) - 1, min(6, len(curve))).astype(int)].to_dict("records")
        alt_text = "; ".join(
            f"at {line['threshold']:.1%} {line['net_benefit']:.4f}, acting on all {line['treat_all']:.4f}"
            for line in shown
        )
        legend = [
            ("act on the calibrated p, with 95 % interval", Swatch(ACCENT, width=2.4)),
            ("act on all", Swatch(INK, width=1.4, dashes=(6, 2))),
            ("act on none", Swatch(MUTED, width=1.2, dashes=(2, 1.2))),
        ]
        return drawing(figure, name, f"Net benefit by threshold. {alt_text}.", legend)


def reliability_figure(name: str, table: pd.DataFrame, *, axis: str) -> Drawing:
    """Draws `stack.metrics.calibration.reliability`: observed against predicted risk, with intervals and diagonal."""
    top = min(1.0, 1.06 * float(table[["p", "high"]].to_numpy().max()))
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = figure.subplots()
        axes.plot([0, top], [0, top], color=LINE, linewidth=1)
        axes.vlines(table["p"], table["low"], table["high"], color=ACCENT, linewidth=1.6)
        axes.plot(table["p"], table["share"], "o-", color=ACCENT, markersize=6, linewidth=1, markeredgewidth=0)
        axes.set(xlim=(0, top), ylim=(0, top), xlabel=axis, ylabel="observed share of positives", aspect="equal")
        round_ticks(axes.xaxis, percent=True)
        line_grid(axes, percent=True)
        alt_text = "; ".join(
            f"predicted {line['p']:.1%}, observed {line['share']:.1%}, {line['low']:.1%} to {line['high']:.1%}"
            for line in table.to_dict("records")
        )
        return drawing(figure, name, f"Reliability. {alt_text}.")


def roc_points(y: ArrayLike, s: ArrayLike, *, most: int = CURVE_POINTS) -> tuple[Floats, Floats]:
    """Returns false and true positive rates, each (at most `most`,), from (0, 0) to (1, 1)."""
    false_positives, sensitivity, _ = roc_curve(y, s)
    return _thinned(false_positives, sensitivity, most)


def precision_recall_points(y: ArrayLike, s: ArrayLike, *, most: int = CURVE_POINTS) -> tuple[Floats, Floats]:
    """Returns recall and precision, each (at most `most`,), recall rising from 0; the area of the steps is the AP.

    The precision at a point is that of the step from the previous point to it.
    """
    precision, recall, _ = precision_recall_curve(y, s)
    precision, recall = precision[::-1], recall[::-1]
    first = np.flatnonzero(np.diff(recall, prepend=-1) > 0)  # the highest threshold for each recall
    recall, precision = recall[first], precision[first]
    precision[0] = precision[1]  # scikit-learn starts with precision 1, which belongs to no threshold
    return _thinned(recall, precision, most)


def _thinned(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """Keeps at most `most` vertices at even distances along the curve, both ends included."""
    if x.size > most:
        walked = np.cumsum(np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0])))
        keep = np.unique(np.searchsorted(walked, np.linspace(0, walked[-1], most)))
        x, y = x[keep], y[keep]
    return x, y


def unit_axes(figure: Figure, x: str, y: str) -> Axes:
    """Makes square axes from 0 to 1 with the labels ``x`` and ``y``."""
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel=x, ylabel=y, aspect="equal")
    line_grid(axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(np.linspace(0, 1, 6).tolist()))
        axis.set_major_formatter(TickFormatter())
    return axes


def _by_fold(y: ArrayLike, s: ArrayLike, fold: ArrayLike | None) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yields targets and scores within each fold that has both classes."""
    y, s = np.asarray(y), np.asarray(s)
    for k in [] if fold is None else np.unique(np.asarray(fold)):
        held = np.asarray(fold) == k
        if 0 < y[held].sum() < held.sum():
            yield y[held], s[held]


def _styled(scores: Any) -> list[tuple[Any, Any]]:
    return [(_CURVE_STYLES[min(i, len(_CURVE_STYLES) - 1)], s) for i, s in enumerate(scores)]


def _legend(scores: Mapping[str, ArrayLike], fold: ArrayLike | None) -> list[tuple[str, Swatch]]:
    lines = [
        (label, Swatch(colour, width=width, dashes=tuple(dash for dash in dashes if dash)))
        for (colour, width, dashes), label in _styled(scores)
    ]
    return lines if fold is None else [*lines, ("the first curve, within each fold", Swatch(ACCENT, width=0.7))]


TOP_FEATURES = 20  # features shown for each stacker
_MIN_TREND = 0.3  # an arrow is shown if the rank correlation is above this
_MIN_SIZE = 5e-4  # smaller values round to 0.000
_IMPORTANCE_AXIS = "mean absolute contribution to the logit"
_BAR_STYLES = ((ACCENT, 1.0), (INK, 0.75), (MUTED, 0.6), (LINE, 1.0))  # colour, opacity


def block_importance_figure(name: str, importance: pd.DataFrame) -> Drawing:
    """Draws a bar for each stacker in each block of `stack.level2.importance.importance`, the largest blocks first."""
    blocks = importance[importance["of"] == "block"]
    sizes = blocks.pivot(index="name", columns="stacker", values="size").fillna(0.0)
    sizes = sizes.loc[sizes.mean(axis=1).sort_values(ascending=False).index, list(dict.fromkeys(blocks["stacker"]))]
    sizes = sizes[(sizes > 0).any(axis=1) | (sizes.to_numpy().max() == 0)]  # no empty row for what no stacker uses
    stackers, height = list(map(str, sizes)), 0.42 / len(sizes.columns)
    with page_style():
        figure = blank_figure(height=0.75 + 0.66 * len(sizes))
        axes = label_axes(figure, len(sizes), _IMPORTANCE_AXIS)
        for row, (block, line) in enumerate(sizes.iterrows()):
            row_text(axes, row, str(block), "")
            for number, stacker in enumerate(stackers):
                colour, alpha = _BAR_STYLES[min(number, len(_BAR_STYLES) - 1)]
                middle = row - 0.16 + (number + 0.5) * height
                axes.barh(middle, float(line[stacker]), height=0.86 * height, color=colour, alpha=alpha, linewidth=0)
        axes.axvline(0, color=LINE, linewidth=1)
        axes.set_xlim(0, max(1e-3, float(sizes.to_numpy().max())) * 1.02)
        alt_text = "; ".join(
            f"{block}: {', '.join(f'{stacker} {value:.3f}' for stacker, value in line.items())}"
            for block, line in sizes.iterrows()
        )
        styles = [_BAR_STYLES[min(number, len(_BAR_STYLES) - 1)] for number in range(len(stackers))]
        legend = [
            (stacker, Swatch(colour, shape="bar", opacity=opacity))
            for stacker, (colour, opacity) in zip(stackers, styles, strict=True)
        ]
        return drawing(figure, name, f"{_IMPORTANCE_AXIS}, by kind of feature. {alt_text}.", legend)


def feature_importance_figure(name: str, importance: pd.DataFrame, stacker: str) -> Drawing:
    """Draws the TOP_FEATURES of one stacker; an arrow shows if higher values go with a higher or lower logit."""
    rows = importance[(importance["of"] == "feature") & (importance["stacker"] == stacker)]
    rows = rows[rows["size"] >= min(_MIN_SIZE, rows["size"].max())].head(TOP_FEATURES)
    marks = [" ↑" if trend > _MIN_TREND else " ↓" if trend < -_MIN_TREND else "" for trend in rows["trend"]]
    return bar_figure(name, dict(zip(rows["name"], rows["size"], strict=True)), axis=_IMPORTANCE_AXIS, marks=marks)


def column_importance_figure(name: str, importance: pd.DataFrame, stacker: str) -> Drawing:
    """Draws the columns of the table that matter most to one stacker, and all others together as the last bar."""
    of_stacker = importance[importance["stacker"] == stacker]
    rows = pd.concat(
        [of_stacker[of_stacker["of"] == "column"].head(TOP_COLUMNS), of_stacker[of_stacker["of"] == "rest"]]
    )
    return bar_figure(name, dict(zip(rows["name"], rows["size"], strict=True)), axis=_IMPORTANCE_AXIS)


def study_figure(name: str, studies: Sequence[StudyHistory], *, axis: str) -> Drawing:
    """Draws the best value so far against the trial for each study; the study on all rows is bold."""
    with page_style():
        figure = blank_figure(height=0.7 * 4.4)
        axes = figure.subplots()
        alt_text = []
        for study in studies:
            trials = np.arange(1, len(study.values) + 1)
            on_all_rows = study.name.endswith("-without-none")
            colour, width, alpha = (ACCENT, 2.4, 1.0) if on_all_rows else (MUTED, 0.9, 0.7)
            axes.plot(trials, study.best_so_far, drawstyle="steps-post", color=colour, linewidth=width, alpha=alpha)
            alt_text.append(f"{study.name} {study.best_so_far[-1]:.4f} after {len(trials)} trials")
        axes.set(xlabel="trial", ylabel=f"best {axis} so far")
        round_ticks(axes.xaxis, integer=True)
        line_grid(axes)
        legend = [
            ("the study on all rows", Swatch(ACCENT, width=2.4)),
            ("studies without the rows of some folds", Swatch(MUTED, width=0.9)),
        ]
        names = [study.name.endswith("-without-none") for study in studies]
        shown = [line for line, there in zip(legend, (any(names), not all(names)), strict=True) if there]
        return drawing(figure, name, f"Best {axis} by trial. {'; '.join(alt_text)}.", shown)
