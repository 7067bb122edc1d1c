"""The study's tables and plots as Markdown, as one HTML page, and as a list of cells: all from the same records."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.files import write_whole
from model.schema import LABEL, SPLIT, TEST
from model.task import Task
from steps.pages import template
from steps.study.baselines import Baseline
from steps.study.cells import ANNOTATOR, NOISE_KINDS, PEOPLE, Cell, cell_of, only
from steps.study.records import Record
from steps.study.settings import StudySettings, StudyTable
from steps.study.tables import AP, R80, Comparison, Estimate, Row, rows

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "agentps", "font.size": 10, "legend.frameon": False}


@dataclass(frozen=True)
class Report:
    """What the study says.

    markdown: the page, its plots as links to `plots`.
    plots: file name -> SVG.
    cells: one entry per table, setting and seed, for programs.
    """

    markdown: str
    plots: dict[str, str]
    cells: list[dict[str, Any]]

    def html(self) -> str:
        """One page without a file beside it."""
        body = MarkdownIt("commonmark").enable("table").render(self.markdown)
        body = body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
        for name, svg in self.plots.items():
            drawing = svg[svg.index("<svg") :]
            body = body.replace(f'<img src="images/{name}" alt="" />', drawing)
        return template("study.html.j2").render(body=Markup(body)) + "\n"

    def write(self, folder: Path) -> None:
        """`results.md`, `results.html`, `results.json` and `images/results-*.svg` in `folder`."""
        write_whole(folder / "results.md", self.markdown)
        write_whole(folder / "results.html", self.html())
        write_whole(folder / "results.json", json.dumps(self.cells, indent=1) + "\n")
        for name, svg in self.plots.items():
            write_whole(folder / "images" / name, svg)


def build(
    cells: dict[StudyTable, list[Cell]],
    record_of: Callable[[Cell], Record | None],
    posts: pd.DataFrame,
    task: Task,
    settings: StudySettings,
    baselines: Sequence[Baseline],
    data: str,
) -> Report:
    """The report of all finished settings; a table says how many it lacks.

    Args:
        cells: of each table.
        posts: the shards' posts: the labelled ones of test are those that the records' ranks stand for.
        data: names the posts.
    """
    test = posts[(posts[SPLIT] == TEST) & posts[LABEL].notna()]
    comparison = Comparison((test[LABEL] == 1).to_numpy(bool), settings.bootstrap)
    tables = {table: rows(of_table, record_of) for table, of_table in cells.items()}
    lacking = sum(record_of(cell) is None for cell in {cell for of_table in cells.values() for cell in of_table})
    writer = _Writer(tables, comparison, task, settings)
    lines = [
        "# What process supervision is worth",
        "",
        "Written by `zenml pipeline run pipelines.agentps_study` from the records of its cells; not by hand.",
        "",
        f"Posts: {data}; task {task.name}; {len(test):,} labelled test posts, "
        f"{int((test[LABEL] == 1).sum()):,} positive; {len(settings.seeds)} seed(s). Figures are percent, on test. "
        "Only F1 has a threshold, from val, where the epoch was chosen too. ± is the standard deviation over the "
        f"seeds, brackets are 95 % intervals over {settings.bootstrap} resamples of the test posts, in which the "
        "compared models are scored on the same posts.",
        "",
    ]
    if lacking:
        lines += [f"**Unfinished: {lacking} cells are not there yet.** The same command goes on with them.", ""]
    for table in cells:
        lines += getattr(writer, table)()
    lines += _baseline_table(baselines)
    return Report("\n".join(lines).rstrip() + "\n", writer.plots, list(_entries(cells, record_of)))


def _entries(
    cells: dict[StudyTable, list[Cell]], record_of: Callable[[Cell], Record | None]
) -> Iterator[dict[str, Any]]:
    for table, of_table in cells.items():
        for cell in of_table:
            record = record_of(cell)
            if record is not None:
                yield {
                    "table": table,
                    **cell.model_dump(mode="json"),
                    "metrics": record.metrics,
                    "best_val_average_precision": record.best_val_average_precision,
                    "record": record.key,
                }


#: Shares of the posts that a cascade's second model reads.
_CASCADE = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_COLUMNS = {
    "AP": AP,
    "F1": "f1",
    "R@P60": "recall_at_p60",
    "R@P65": "recall_at_p65",
    "R@P70": "recall_at_p70",
    "R@P75": "recall_at_p75",
    "R@P80": R80,
}


class _Writer:
    """One method per table: its Markdown lines. Plots are kept by file name."""

    def __init__(
        self, tables: dict[StudyTable, list[Row]], comparison: Comparison, task: Task, settings: StudySettings
    ) -> None:
        self._tables, self._comparison, self._task, self._settings = tables, comparison, task, settings
        self._posts = settings.train_posts[-1]
        self.plots: dict[str, str] = {}

    def _row(self, table: StudyTable, cell: Cell) -> Row | None:
        return next((row for row in self._tables[table] if row.cell == cell), None)

    def _cell(self, labels: str, **options: Any) -> Cell:
        return cell_of(self._task, self._settings.variant, self._posts, labels, **options)

    def _vanilla(self, table: StudyTable, posts: int | None = None) -> Row | None:
        return self._row(table, cell_of(self._task, "vanilla", posts or self._posts, ""))

    def _ends(self, table: StudyTable) -> tuple[Row | None, Row | None]:
        """(with people's labels, vanilla): what the others are compared with."""
        return self._row(table, self._cell(PEOPLE)), self._vanilla(table)

    def _gains(self, row: Row, over: Row | None) -> list[str]:
        if over is None or row.cell == over.cell:
            return ["", ""]
        return [_signed(self._comparison.gain(row, over, metric)) for metric in (AP, R80)]

    def _retained(self, row: Row, whole: Row | None, none: Row | None) -> list[str]:
        """What `row` keeps of the gain of `whole` over `none`, AP and R@P80; empty for these two themselves."""
        if whole is None or none is None or row in (whole, none):
            return ["", ""]
        return [_share(self._comparison.retention(row, whole, none, metric)) for metric in (AP, R80)]

    def _section(
        self,
        title: str,
        text: str,
        table: Sequence[Sequence[str]],
        plot: tuple[str, Callable[[Axes], None]] | None = None,
    ) -> list[str]:
        """
        Args:
            plot: its name and what draws it.
        """
        lines = [title, "", text, "", *_markdown(table)]
        if plot:
            file = f"results-{plot[0]}.svg"
            self.plots[file] = _figure(plot[1])
            lines += [f"![](images/{file})", ""]
        return lines

    def variants(self) -> list[str]:
        vanilla = self._vanilla("variants")
        table = [["variant", "process labels", "val AP", *_COLUMNS, "AP over vanilla", "R@P80 over vanilla"]]
        for row in self._tables["variants"]:
            table.append([row.cell.variant, row.cell.labels, _val(row), *_means(row), *self._gains(row, vanilla)])
        seeds = [["variant", "process labels", "seed", "val AP", *_COLUMNS]]
        for row in self._tables["variants"]:
            for record in row.records:
                values = [record.best_val_average_precision, *(record.metrics[name] for name in _COLUMNS.values())]
                seeds.append([row.cell.variant, row.cell.labels, str(record.cell.seed), *map(_percent, values)])
        text = (
            f"{self._posts:,} training posts. `people`: their own process labels; `annotator`: the annotator's. "
            "`agentps` is the paper's form; `agentps_answers` lets the final head read the `<ans>` states too; "
            "`siglip` has no language model."
        )
        section = self._section("## Variants (the paper's Table 1)", text, table)
        return [*section, "Every seed:", "", *_markdown(seeds), *self._cascade()]

    def _cascade(self) -> list[str]:
        first = self._row("variants", cell_of(self._task, "siglip", self._posts, ""))
        second = self._row("variants", self._cell(PEOPLE))
        if first is None or second is None:
            return []
        table = [["posts that the second reads", "AP", "R@P80"]]
        for share in _CASCADE:
            found = self._comparison.cascade(first, second, share)
            table.append([f"{share:.0%}", _percent(found[AP]), _percent(found[R80])])
        text = (
            f"`siglip` ranks all posts, and `{second.cell.variant}` (people's labels) reads those that it ranks "
            "highest; the rest stays below them. The cost is about the share that the second reads, and the first's, "
            "which is the tower's."
        )
        return self._section("### A cascade", text, table)

    def sizes(self) -> list[str]:
        table = [
            ["posts", "variant", "process labels", *_COLUMNS, "R@P80 over vanilla", "AP retained", "R@P80 retained"]
        ]
        for row in sorted(self._tables["sizes"], key=lambda row: row.cell.train_posts):
            cell = row.cell
            vanilla = self._vanilla("sizes", cell.train_posts)
            whole = self._row("sizes", cell.model_copy(update={"labels": PEOPLE}))
            gain, retained = self._gains(row, vanilla)[1], self._retained(row, whole, vanilla)
            table.append([f"{cell.train_posts:,}", cell.variant, cell.labels, *_means(row), gain, *retained])
        text = (
            "The same recipe on parts of the training posts, each part within the next. Retained: the share of the "
            "gain over vanilla with people's labels that is left with the annotator's; not defined where that gain is "
            "not surely above zero."
        )
        return self._section("## Sizes (the paper's Table 2)", text, table, ("sizes", self._draw_sizes))

    def _draw_sizes(self, axes: Axes) -> None:
        series: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for row in sorted(self._tables["sizes"], key=lambda row: row.cell.train_posts):
            series.setdefault((row.cell.variant, row.cell.labels), []).append((row.cell.train_posts, row.mean(R80)))
        for (variant, labels), points in series.items():
            name = variant if labels == "none" else f"{variant}, labels by {labels}"
            _draw_line(axes, points, name)
        _finish(axes, "training posts")

    def questions(self) -> list[str]:
        whole, vanilla = self._ends("questions")
        table = [["question", "without it: AP", "lost R@P80", "with it alone: AP", "R@P80 over vanilla"]]
        for question in self._task.questions:
            without = self._row("questions", self._cell(PEOPLE, without=question.id))
            alone = self._row("questions", only(self._cell(PEOPLE), question.id))
            if whole and vanilla and without and alone:
                lost = self._comparison.gain(whole, without, R80)
                gained = self._comparison.gain(alone, vanilla, R80)
                table.append([question.id, _mean(without, AP), _signed(lost), _mean(alone, AP), _signed(gained)])
        text = (
            f"`{self._settings.variant}`, {self._posts:,} training posts with people's process labels: all questions "
            "but one, and one question alone. Read before paying for a question's annotation."
        )
        return self._section("## What each question is worth", text, table)

    def noise(self) -> list[str]:
        whole, vanilla = self._ends("noise")
        table = [["process labels", "AP", "R@P80", "AP retained", "R@P80 retained"]]
        for row in self._tables["noise"]:
            labels = "none (vanilla)" if row is vanilla else row.cell.labels
            table.append([labels, _mean(row, AP), _mean(row, R80), *self._retained(row, whole, vanilla)])
        text = (
            f"`{self._settings.variant}`, {self._posts:,} training posts, plain training on labels of different "
            "quality. symmetric-A: a label is right with A %, else any other class; one-sided-A: a positive becomes a "
            "negative with 100 - A %; missing-A: A % of the labels are there."
        )
        return self._section("## Label noise", text, table, ("noise", self._draw_noise))

    def _draw_noise(self, axes: Axes) -> None:
        whole, vanilla = self._ends("noise")
        for kind in NOISE_KINDS:
            points = [(100.0, whole.mean(R80))] if whole else []
            for accuracy in sorted(self._settings.accuracies, reverse=True):
                percent = round(100 * accuracy)
                if row := self._row("noise", self._cell(f"{kind}-{percent}")):
                    points.append((percent, row.mean(R80)))
            if points:
                _draw_line(axes, points, kind)
        for row, name in ((vanilla, "vanilla"), (self._row("noise", self._cell(ANNOTATOR)), "the annotator")):
            if row:
                axes.axhline(row.mean(R80), color="#9aa5b1", linewidth=1)
                axes.annotate(name, (100, row.mean(R80)), fontsize=8, ha="right", va="bottom")
        _finish(axes, "right (or given) answers, percent")

    def methods(self) -> list[str]:
        whole, vanilla = self._ends("methods")
        table = [["labels", "method", "val AP", *_COLUMNS, "AP retained", "R@P80 retained"]]
        for row in self._tables["methods"]:
            labels = "none (vanilla)" if row is vanilla else row.cell.labels
            method = row.cell.method if row.cell.labels == ANNOTATOR else ""
            table.append([labels, method, _val(row), *_means(row), *self._retained(row, whole, vanilla)])
        text = (
            f"`{self._settings.variant}`, {self._posts:,} training posts labelled by the annotator, and people's "
            f"labels of {self._settings.gold_share:.0%} of them, with which the methods may do what "
            "`steps/fine_tune/methods.py` says."
        )
        if chosen := self._chosen_by_val():
            text += f" {chosen}"
        return self._section("## What can be done about the annotator's errors", text, table)

    def _chosen_by_val(self) -> str:
        """Which method val would choose; test only reports."""
        tried = [row for row in self._tables["methods"] if row.cell.labels == ANNOTATOR]
        if not tried:
            return ""

        vals = np.array([[record.best_val_average_precision for record in row.records] for row in tried])
        whole = tried[int(vals.mean(axis=1).argmax())].cell.method
        each = [tried[int(place)].cell.method for place in vals.argmax(axis=0)]
        by_itself = f"; each seed by itself: {', '.join(f'`{name}`' for name in each)}" if len(each) > 1 else ""
        return f"By val, the mean of the seeds, `{whole}` is chosen{by_itself}."


def _baseline_table(baselines: Sequence[Baseline]) -> list[str]:
    table = [["what is known of a post", "AP", "R@P80"]]
    table += [[b.name, _percent(b.average_precision), _percent(b.recall_at_p80)] for b in baselines]
    return [
        "## Without a network",
        "",
        "What a tree over one known thing, or a linear model over words, makes of it: a leak would show here. The last "
        "row is the ceiling: people's own answers to all questions, which no model is given at test time.",
        "",
        *_markdown(table),
    ]


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(cells) + " |" for cells in table]
    return [head, "|" + "---|" * len(table[0]), *body, ""]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _mean(row: Row, metric: str) -> str:
    spread = row.spread(metric)
    return _percent(row.mean(metric)) + ("" if spread is None else f" ± {_percent(spread)}")


def _val(row: Row) -> str:
    return _percent(float(np.mean([record.best_val_average_precision for record in row.records])))


def _means(row: Row) -> list[str]:
    return [_mean(row, metric) for metric in _COLUMNS.values()]


def _signed(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not defined"
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _draw_line(axes: Axes, points: Sequence[tuple[float, float]], name: str) -> None:
    axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)


def _finish(axes: Axes, x: str) -> None:
    axes.set(xlabel=x, ylabel="recall at 80 % precision", ylim=(0, 1))
    axes.legend(fontsize=8, loc="lower right")


def _figure(draw: Callable[[Axes], None]) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
