"""Pictures of what the benchmarks measured: SVG, for the documentation."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "engram"}):
        figure.savefig(path, metadata={"Date": None})


def _axes(title: str, across: str, up: str, panels: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5 * panels, 3.6), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    for each in axes:
        each.grid(alpha=0.3)
        each.set_xlabel(across)
    axes[0].set_ylabel(up)
    return figure, axes


def curves(results: dict[str, Any], title: str, path: Path) -> None:
    """Queries a second over recall, a line for each contender."""
    figure, (axes,) = _axes(title, "recall@10", "queries/s, one thread")
    for name, result in results.items():
        lines = sorted(result["lines"], key=lambda line: line["recall"])
        lines = [line for line in lines if line["recall"] >= 0.85]
        axes.plot(*zip(*((x["recall"], x["queries/s"]) for x in lines), strict=True), marker=".", label=name)
    axes.set_yscale("log")
    axes.legend()
    _save(figure, path)


def rates(panels: dict[str, dict[str, dict[int, float]]], title: str, path: Path) -> None:
    """Rows a second over a count, a panel for each kind of count, a line for each contender."""
    figure, axes = _axes(title, "", "rows/s absorbed", len(panels))
    for each, (across, lines) in zip(axes, panels.items(), strict=True):
        each.set_xscale("log", base=2)
        each.set_xlabel(across)
        for name, line in lines.items():
            each.plot(list(line), list(line.values()), marker=".", label=name)
        each.set_xticks(sorted({n for line in lines.values() for n in line}))
        each.xaxis.set_major_formatter("{x:.0f}")
        each.legend()
    axes[0].set_ylim(bottom=0)
    _save(figure, path)


def steps(lines: list[dict[str, Any]], title: str, path: Path) -> None:
    """What was acknowledged of what was offered, and how late, with the level of each step."""
    figure, (axes,) = _axes(title, "offered, rows/s", "acknowledged, rows/s")
    offered = [line["offered"] for line in lines]
    axes.plot(offered, [line["acknowledged"] for line in lines], marker="o", label="acknowledged")
    axes.plot(offered, offered, linestyle=":", color="gray", label="offered")
    for line in lines:
        axes.annotate(line["level"].lower(), (line["offered"], line["acknowledged"]), fontsize=7, rotation=30)
    late = axes.twinx()
    late.plot(offered, [line.get("p99_ms", 0) for line in lines], marker=".", color="tab:red", label="p99")
    late.set_yscale("log")
    late.set_ylabel("acknowledgement p99, ms")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    _save(figure, path)
