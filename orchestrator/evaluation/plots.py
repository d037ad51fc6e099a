"""Draws a report's plots as SVG that stands in a page: numbers in, markup out in the page's own colours and font.

The same numbers give the same bytes: no date, a fixed salt for ids, coordinates to a hundredth, text as text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from orchestrator.errors import InputError
from orchestrator.evaluation.causes import Diagnosis
from orchestrator.evaluation.figures import Matrix, Reliability
from orchestrator.evaluation.markup import Html, shown
from orchestrator.evaluation.metrics import Interval
from orchestrator.evaluation.summary import Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT, BEFORE, GOOD = "#1b2330", "#5b6675", "#d9dee5", "#1f5fbf", "#8a97a8", "#1a7f4b"
# Each colour is a variable of the page's style sheet, so that a plot follows the reader's light or dark.
PAINT = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", BEFORE: "before", GOOD: "good"}
WIDTH = 5.8  # inches; at half a page wide, letters are as large as the text around
NAME = 26  # characters of a route or a stage
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_LONG = re.compile(r"-?\d+\.\d{3,}")
_SIZE = re.compile(r"([\d.]+)px")
_KEPT = {
    "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin",
    "opacity", "fill-opacity", "stroke-opacity", "text-anchor", "font-size", "font-weight",
}  # fmt: skip

Row = tuple[str, Interval, Interval | None]
Stage = tuple[str, Timing, Timing | None]


def plot_measures(rows: Sequence[Row]) -> Html:
    """Each measure with its interval; the earlier run's beneath it, in grey."""
    said = [f"{label}: {now}" + (f", before {then}" if then else "") for label, now, then in rows]
    with _drawing("measures", "Measures with their 95% intervals", said, 0.31 * len(rows) + 0.7) as drawing:
        axes = drawing.axes(left=1.4)
        for at, (_, now, then) in enumerate(rows):
            shift = 0.16 if then else 0.0
            _point(axes, now, at - shift, ACCENT, "o")
            if then:
                _point(axes, then, at + shift, BEFORE, "D")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _names(axes, [label for label, _, _ in rows])
        _percents(axes.set_xticks, axes.set_xlim)
        axes.grid(axis="x")
    return drawing.svg


def plot_reliability(found: Reliability) -> Html:
    """Estimated sufficiency against the share of questions whose gold was shown; on the diagonal they agree."""
    said = [f"about {each.said:.2f}: {each.found} of {each.found.n} questions" for each in found.bins]
    with _drawing("reliability", "Estimated sufficiency against gold that was shown", said, 3.9) as drawing:
        axes = drawing.axes(left=0.75, bottom=0.55)
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
        most = max(each.found.n for each in found.bins)
        for each in found.bins:
            axes.plot([each.said] * 2, [each.found.low, each.found.high], color=ACCENT, linewidth=1.6)
            size = 4 + 8 * (each.found.n / most) ** 0.5
            axes.plot([each.said], [each.found.value], marker="o", markersize=size, color=ACCENT, linestyle="none")
            axes.annotate(
                str(each.found.n), (each.said, each.found.value), (9, -4), textcoords="offset points", fontsize=8,
                color=MUTED,
            )  # fmt: skip
        _percents(axes.set_xticks, axes.set_xlim, (-0.03, 1.06))
        _percents(axes.set_yticks, axes.set_ylim, (-0.03, 1.06))
        axes.set_xlabel("the search's own estimate that the passages suffice")
        axes.set_ylabel("share whose gold passage was shown")
        axes.grid(axis="both")
    return drawing.svg


def plot_matrix(name: str, title: str, found: Matrix, across: str) -> Html:
    """A confusion matrix: counts, with the share of the row beneath; the darker a field, the larger its share."""
    said = [
        f"{row}: " + ", ".join(f"{count} {column}" for column, count in zip(found.columns, counts, strict=True))
        for row, counts in zip(found.rows, found.counts, strict=True)
    ]
    height, width = 0.62 * len(found.rows) + 0.85, max(WIDTH, 0.9 * len(found.columns) + 1.9)
    with _drawing(name, title, said, height, width) as drawing:
        axes = drawing.axes(left=1.6, bottom=0.1, top=0.65)
        for down, counts in enumerate(found.counts):
            total = sum(counts) or 1
            for right, count in enumerate(counts):
                _field(axes, right, down, count, count / total)
        axes.set_xlim(-0.5, len(found.columns) - 0.5)
        axes.set_ylim(len(found.rows) - 0.5, -0.5)
        _names(axes, found.rows)
        axes.set_xticks(range(len(found.columns)), [_short(each, 14) for each in found.columns])
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel(across, labelpad=7)
    return drawing.svg


def plot_waterfall(found: Diagnosis) -> Html:
    """From today's accuracy to each layer's ceiling: what is won when this layer and those before it are perfect."""
    said = [f"today: {_percent(found.accuracy.value)}"]
    said += [f"{each.layer}: {_points(each.gain.value)} to {_percent(each.accuracy.value)}" for each in found.ceilings]
    with _drawing("waterfall", "Accuracy today, and with each layer made perfect", said, 3.3) as drawing:
        axes = drawing.axes(left=0.55, bottom=0.55)
        before = found.accuracy.value
        axes.bar([0], [before], 0.62, color=ACCENT)
        _whisker(axes, 0, found.accuracy.low, found.accuracy.high)
        axes.annotate(
            _percent(before), (0, found.accuracy.high), (0, 4), textcoords="offset points", ha="center", fontsize=9
        )
        for at, step in enumerate(found.ceilings, 1):
            after = step.accuracy.value
            axes.plot([at - 0.69, at + 0.31], [before, before], color=MUTED, linewidth=0.8)
            axes.bar([at], [after - before], 0.62, bottom=before, color=GOOD)
            _whisker(axes, at, step.accuracy.low, step.accuracy.high)
            axes.annotate(
                f"{100 * step.gain.value:+.1f}", (at, step.accuracy.high), (0, 4), textcoords="offset points", ha="center",
                fontsize=9,
            )  # fmt: skip
            before = after
        axes.set_xlim(-0.6, len(found.ceilings) + 0.6)
        axes.set_xticks(
            range(len(found.ceilings) + 1), ["today", *(f"perfect\n{each.layer}" for each in found.ceilings)]
        )
        _percents(axes.set_yticks, axes.set_ylim, (0, 1.12))
        axes.grid(axis="y")
    return drawing.svg


def plot_latency(stages: Sequence[Stage]) -> Html:
    """The median of each stage as a bar, a line on to what 95 of 100 questions stay below; the earlier run's in grey."""
    said = [
        f"{name}: median {now.p50:.0f} ms, 95% below {now.p95:.0f} ms"
        + (f"; before {then.p50:.0f} and {then.p95:.0f} ms" if then else "")
        for name, now, then in stages
    ]
    with _drawing("latency", "Milliseconds by stage", said, 0.38 * len(stages) + 0.9) as drawing:
        axes = drawing.axes(left=0.95, bottom=0.55, right=0.9)
        end = max([each.p95 for _, now, then in stages for each in (now, then) if each] or [1.0]) or 1.0
        for at, (_, now, then) in enumerate(stages):
            shift = 0.19 if then else 0.0
            for each, middle, color in ((now, at - shift, ACCENT), (then, at + shift, BEFORE)):
                if each:
                    axes.barh([middle], [each.p50], 0.34, color=color)
                    axes.plot([each.p50, each.p95], [middle] * 2, color=color, linewidth=1.6)
            axes.annotate(
                f"{now.p50:.0f} / {now.p95:.0f}", (now.p95, at - shift), (6, -3), textcoords="offset points",
                fontsize=8.5, color=MUTED,
            )  # fmt: skip
        axes.set_xlim(0, end * 1.02)
        axes.set_ylim(len(stages) - 0.4, -0.6)
        _names(axes, [name for name, _, _ in stages])
        axes.set_xlabel("milliseconds: median / 95th percentile")
        axes.grid(axis="x")
    return drawing.svg


class _Drawing:
    """A figure under way. ``svg`` is there when it is done."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.svg = Html()

    def axes(self, *, left: float, bottom: float = 0.4, top: float = 0.12, right: float = 0.25) -> Axes:
        """The one pair of axes, with margins in inches: what a label says does not move it."""
        width, height = self.figure.get_size_inches()
        spot = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        axes = self.figure.add_axes(spot, facecolor="none")
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        return axes


@contextmanager
def _drawing(name: str, title: str, said: Sequence[str], height: float, width: float = WIDTH) -> Iterator[_Drawing]:
    """Opens a figure and writes it at the end. Raises InputError when matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "the plots of a report need matplotlib: pip install 'hybrid-orchestrator[eval]'", param="report"
        ) from error
    with matplotlib.rc_context(matplotlib.rcParamsDefault), warnings.catch_warnings():
        # The browser has the letters that the font for measuring lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        matplotlib.rcParams.update(_style(name))
        drawing = _Drawing(Figure(figsize=(width, height), facecolor="none"))
        FigureCanvasSVG(drawing.figure)
        yield drawing
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.figure.savefig(written, format="svg", metadata=nothing)
    drawing.svg = _inline(written.getvalue(), name, f"{title}. {'; '.join(said)}.")


def _style(name: str) -> dict[str, Any]:
    inks = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "hatch.color", "lines.color")
    return {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.family": ["DejaVu Sans"],
        "font.size": 9.5, "axes.edgecolor": LINE, "grid.color": LINE, "grid.linewidth": 0.7, "axes.labelsize": 9,
        "axes.labelcolor": MUTED, "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.linewidth": 0.8, "patch.edgecolor": INK,
        "savefig.facecolor": "none", **{key: INK for key in inks if key != "axes.labelcolor"},
    }  # fmt: skip


def _inline(text: str, name: str, label: str) -> Html:
    """The SVG as a part of a page: its styles as attributes in the page's colours, no ids but those it refers to."""
    root = ElementTree.fromstring(text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    for parent in root.iter():
        for child in [each for each in parent if each.tag in (f"{_SVG}style", f"{_SVG}metadata")]:
            parent.remove(child)
    for each in root.iter():
        each.tag = each.tag.removeprefix(_SVG)
        each.attrib = dict(_attributes(each.attrib, used, name))
        each.text = each.text.strip() or None if each.text and each.tag != "text" else each.text
        each.tail = None
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "class": "plot", "id": f"plot-{name}", "role": "img", "aria-label": shown(label)}
    return Html(ElementTree.tostring(root, encoding="unicode"))


def _attributes(given: Mapping[str, str], used: set[str], name: str) -> Iterator[tuple[str, str]]:
    """What the policy of the page lets pass: `style` is none of it."""
    for key, value in given.items():
        if key == "id":
            if value in used:
                yield "id", f"{name}-{value}"
        elif key == _LINK:
            yield "href", f"#{name}-{value[1:]}"
        elif key == "style":
            yield from _declarations(value)
        else:
            yield key, _LONG.sub(_rounded, value.replace("url(#", f"url(#{name}-")) if key != "viewBox" else value


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    for each in style.split(";"):
        key, _, value = (part.strip() for part in each.partition(":"))
        if key == "font":  # the shorthand is no attribute; the family is the page's
            size = _SIZE.search(value)
            yield "font-size", size[1] if size else "9"
            if "bold" in value.split():
                yield "font-weight", "bold"
        elif key == "font-size":
            yield key, value.removesuffix("px")
        elif key in _KEPT:
            yield key, f"var(--{PAINT[value]})" if value.startswith("#") else value


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _point(axes: Axes, found: Interval, at: float, color: str, marker: str) -> None:
    axes.plot([found.low, found.high], [at, at], color=color, linewidth=2, solid_capstyle="round")
    axes.plot([found.value], [at], marker=marker, markersize=6, color=color, linestyle="none")


def _whisker(axes: Axes, at: float, low: float, high: float) -> None:
    axes.plot([at, at], [low, high], color=INK, linewidth=1.2)
    for end in (low, high):
        axes.plot([at - 0.07, at + 0.07], [end, end], color=INK, linewidth=1.2)


def _field(axes: Axes, right: int, down: int, count: int, share: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((right - 0.47, down - 0.45), 0.94, 0.9, color=ACCENT, linewidth=0, alpha=0.06 + 0.5 * share)
    )
    axes.annotate(
        str(count), (right, down), (0, 2), textcoords="offset points", ha="center", fontsize=11, weight="bold"
    )
    axes.annotate(f"{share:.0%}", (right, down), (0, -11), textcoords="offset points", ha="center", fontsize=8.5)


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.spines["bottom"].set_visible(False)


def _percents(
    ticks: Callable[[Sequence[float], Sequence[str]], Any],
    limits: Callable[[tuple[float, float]], Any],
    ends: tuple[float, float] = (-0.02, 1.02),
) -> None:
    steps = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    ticks(steps, [f"{step:.0%}" for step in steps])
    limits(ends)


def _short(name: str, most: int = NAME) -> str:
    """One line of bounded length without what XML cannot hold."""
    plain = " ".join(shown(name).split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
