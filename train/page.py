"""The verdict as one self-contained page: what was asked and reached, pictures, and groups of rows.

No network, no script: figures are embedded, colours follow the light or dark mode, and it holds no review text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from verdict import Check, Report

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ddd; --good: #1a7f37; --bad: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #161616; --line: #3a3a3a; --good: #58c27d; --bad: #ff8a7a; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0 2rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; } .holds { color: var(--good); } .missed { color: var(--bad); font-weight: 600; }
figure { margin: 0 0 1.5rem; } img { max-width: 100%; background: #fff; }
"""
_GROUPS = {"by_length": "By length", "by_class": "By class", "by_block": "By block of the corpus"}


def write_page(report: Report, path: Path, *, rows: str, figures: Sequence[Path]) -> Path:
    """Write the page of an evaluation.

    Args:
        report: of `train.evaluation.evaluate`, with its details.
        path: of the page.
        rows: what the rows are called.
        figures: pictures to embed, PNG.
    """
    intervals: Mapping[str, Sequence[float]] = report.details.get("intervals", {})
    checks = [
        (
            check.name,
            _short(check.value),
            _interval(intervals.get(check.name)),
            check.unit,
            *_target(check),
        )
        for check in report.checks
    ]
    parts = [
        f"<h1>{escape(rows)}</h1>",
        f"<p>{report.details['rows']['count']:,} rows. Intervals are at 95 %.</p>",
        table(("figure", "value", "interval", "unit", "target", ""), checks),
        *(_figure(path) for path in figures),
    ]
    for key, title in _GROUPS.items():
        groups = report.details.get(key, [])
        parts += [f"<h2>{title}</h2>", table(_GROUP_HEAD, (_group(group) for group in groups))]
    kinds: Mapping[str, Mapping[str, Any]] = report.details.get("unfamiliar", {})
    if kinds:
        body = (
            (name.replace("_", " "), f"{k['texts']}", f"{k['auroc_epistemic']:.4f}", f"{k['auroc_total']:.4f}",
             f"{k['accepted']:.1%}")
            for name, k in kinds.items()
        )  # fmt: skip
        head = (
            "text that is nothing like it",
            "texts",
            "AUROC of epistemic",
            "AUROC of total",
            "accepted all the same",
        )
        parts += ["<h2>Unfamiliar text</h2>", table(head, body)]
    away: Mapping[str, Mapping[str, Any]] = report.details.get("shift", {})
    if away:
        found = {check.name: check.value for check in report.checks}
        moved = (
            (name, f"{part['rows']:,}", *(_short(found.get(f"{name}_{key}")) for key, _ in _SHIFT))
            for name, part in away.items()
        )
        parts += [
            "<h2>Away from home</h2>",
            table(("rows of another kind", "number", *(title for _, title in _SHIFT)), moved),
        ]
    return write_document(path, rows, parts)


def write_folds(report: Report, path: Path) -> Path:
    """Write the page of several checkpoints: each figure's mean, range and deviation (`train.folds`)."""
    intervals: Mapping[str, Sequence[float]] = report.details["intervals"]
    runs: Mapping[str, Mapping[str, Any]] = report.details["runs"]
    body = [
        (
            check.name,
            *(_short(runs[check.name][key]) for key in ("mean", "deviation", "smallest", "largest")),
            _interval(intervals.get(check.name)),
            *_target(check),
        )
        for check in report.checks
    ]
    title = f"{len(report.details['checkpoints'])} checkpoints of the preset {report.details['preset']}"
    pages = (
        f'<li><a href="{number}/report.html">{escape(name)}</a></li>'
        for number, name in enumerate(report.details["checkpoints"])
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<ul>{''.join(pages)}</ul>",
        table(("figure", "mean", "deviation", "smallest", "largest", "interval of the mean", "target", ""), body),
    ]
    return write_document(path, title, parts)


def write_document(path: Path, title: str, parts: Iterable[str], style: str = "") -> Path:
    """Write HTML `parts` as one page, with `style` behind the common one."""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


_SHIFT = (
    ("accuracy", "accuracy"),
    ("baseline_accuracy", "baseline"),
    ("nll", "nll"),
    ("accepted", "accepted"),
    ("accepted_error", "error among them"),
    ("unfamiliar", "called unfamiliar"),
    ("told_by_epistemic", "AUROC of epistemic"),
    ("told_by_total", "AUROC of total"),
    ("total_moved", "total moved by"),
)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def _target(check: Check) -> tuple[str, str]:
    return check.target or "", "" if check.holds is None else "holds" if check.holds else "missed"


_GROUP_HEAD = (
    "rows",
    "number",
    "error",
    "interval",
    "accepted",
    "error among them",
    "set coverage",
    "set size",
    "baseline error",
)


def _group(group: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = group["error_interval"]
    wrong = group["accepted_error"]
    return (
        group["name"],
        f"{group['rows']}",
        f"{group['error']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{group['accepted']:.1%}",
        "–" if wrong is None else f"{wrong:.1%}",
        f"{group['coverage']:.1%}",
        f"{group['set_size']:.2f}",
        f"{group['baseline_error']:.1%}",
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of plain texts."""
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + f"</tr>{body}</table>"


def _cell(text: str) -> str:
    kind = ""
    if text in ("holds", "missed"):
        kind = f' class="{text}"'
    elif text[:1].isdigit():
        kind = ' class="number"'
    return f"<td{kind}>{escape(text)}</td>"


def _figure(path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{escape(path.stem)}" src="data:image/png;base64,{encoded}"></figure>'
