"""The run's tables, its galleries and its HTML page."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_utils.artifacts import read_json, write_atomically, write_csv, write_text
from vqa_utils.config import Config
from vqa_utils.data import open_image, question_kinds
from vqa_utils.ensemble import pooled, scored_folds
from vqa_utils.ladder import read_rungs
from vqa_utils.metrics import accuracy, correct, expected_calibration_error, log_loss, mcnemar, predictions
from vqa_utils.paths import RunPaths
from vqa_utils.prompts import LETTERS

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #223 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #dde }
img { max-width: 100% }
"""
SETS = {"oof": "fine-tuned", "zero_shot": "base, zero-shot", "blank": "fine-tuned, blank images"}


class Gallery:
    """Rows as cards (picture, question, options), which a notebook shows as HTML: any script is readable there."""

    def __init__(self, cards: Sequence[str]):
        self.cards = cards

    def _repr_html_(self) -> str:
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(self.cards)}</div>'


def gallery(rows: pd.DataFrame, folder: Path, side_px: int = 128) -> Gallery:
    """Cards of `rows` (`path`, `question`, `a` to `d`); `answer` and `chosen`, where there, are marked."""
    return Gallery([_card(row, folder, side_px) for row in rows.to_dict("records")])


def answers_of(probs: pd.DataFrame, train: pd.DataFrame) -> pd.Series:
    """The right letters of the rows in `probs`, in their order."""
    return train.set_index("id")["answer"].loc[probs["id"]].reset_index(drop=True)


def kinds_of(probs: pd.DataFrame, train: pd.DataFrame) -> pd.Series:
    """The kinds of question of the rows in `probs`, in their order."""
    return question_kinds(train.set_index("id").loc[probs["id"]]).reset_index(drop=True)


def fold_table(paths: RunPaths, config: Config, folds: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """A line a scored fold and one for all: `fold`, `rows`, `accuracy`, `log_loss`, `minutes`, `peak_gib`.

    Where memory ran out, also what was changed then.
    """
    oof = pooled(paths, config, folds, "oof")
    metas = {k: read_json(paths.fold(k).meta) for k in scored_folds(paths, config)[0] if paths.fold(k).meta.exists()}
    lines = []
    for name, part in [*oof.groupby("fold"), ("all", oof)]:
        answers, part = answers_of(part, train), part.reset_index(drop=True)
        mine = list(metas.values()) if name == "all" else [metas[name]] if name in metas else []
        lines.append({
            "fold": name,
            "rows": len(part),
            "accuracy": accuracy(part, answers),
            "log_loss": log_loss(part, answers),
            "minutes": sum(meta["seconds"] for meta in mine) / 60 if mine else np.nan,
            "peak_gib": max((max(meta["peak_memory_gib"]) for meta in mine), default=np.nan),
            "after out of memory": "" if name == "all" else _rungs(paths, config, name),
        })  # fmt: skip
    table = pd.DataFrame(lines)
    return table if table["after out of memory"].any() else table.drop(columns="after out of memory")


def _rungs(paths: RunPaths, config: Config, fold: int) -> str:
    return "; ".join(rung.name for rung in read_rungs(paths.fold(fold).rungs, config))


def baseline_table(paths: RunPaths, config: Config, folds: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The fine-tuned model against its base and against blank images, on the same held-out rows.

    Columns: `model`, `accuracy`, `not_yes_no` (accuracy on the rows that are no yes/no question), `log_loss`,
    `calibration_error`, `mcnemar_p` (against the fine-tuned model).
    """
    tuned = pooled(paths, config, folds, "oof")
    answers = answers_of(tuned, train)
    right = correct(tuned, answers)
    open_rows = kinds_of(tuned, train).to_numpy() != "yes/no"
    lines = []
    for rows, name in SETS.items():
        probs = pooled(paths, config, folds, rows)
        if probs is not None:
            hits = correct(probs, answers)
            lines.append({
                "model": name,
                "accuracy": hits.mean(),
                "not_yes_no": hits[open_rows].mean() if open_rows.any() else np.nan,
                "log_loss": log_loss(probs, answers),
                "calibration_error": expected_calibration_error(probs, answers),
                "mcnemar_p": np.nan if rows == "oof" else mcnemar(right, hits),
            })  # fmt: skip
    return pd.DataFrame(lines)


def read_baselines(table: pd.DataFrame) -> str:
    """The baseline table in words."""
    tuned, *others = table.to_dict("records")
    lines = [f"fine-tuned: {tuned['accuracy']:.3f} right"]
    for other in others:
        gap = (tuned["accuracy"] - other["accuracy"]) * 100
        beyond = f"{'beyond' if other['mcnemar_p'] < 0.01 else 'not beyond'} chance (p = {other['mcnemar_p']:.2g})"
        lines.append(f"{other['model']}: {other['accuracy']:.3f}, {gap:+.1f} points for the fine-tuned, {beyond}")
    return "\n".join(lines)


def read_agreement(table: pd.DataFrame) -> str:
    """The agreement of members (see `ensemble.agreement`) in words."""
    if len(table) < 2:
        return "There is one member; agreement takes two."
    pairs = table.where(np.triu(np.ones(table.shape, bool), k=1)).stack()
    (a, b), least = pairs.idxmin(), pairs.min()
    return f"Least agreement: {a} and {b} choose the same letter in {least:.1%} of the test rows, different ones in {1 - least:.1%}."


def accuracy_table(probs: pd.DataFrame, answers: pd.Series, groups: pd.Series) -> pd.DataFrame:
    """`group`, `accuracy`, `rows`, the largest group first. Rows are matched by position."""
    frame = pd.DataFrame({"group": groups.to_numpy(), "right": correct(probs, answers)})
    table = frame.groupby("group")["right"].agg(accuracy="mean", rows="size").reset_index()
    return table.sort_values("rows", ascending=False, ignore_index=True)


def worst_mistakes(probs: pd.DataFrame, train: pd.DataFrame, count: int) -> pd.DataFrame:
    """The wrong rows with the least probable right answer: the row's columns, `chosen`, `p_answer`, `p_chosen`."""
    rows = train.set_index("id").loc[probs["id"]].reset_index()
    values = probs[list(LETTERS)].to_numpy()
    rows["chosen"] = predictions(probs).to_numpy()
    for name, letter in (("p_answer", rows["answer"]), ("p_chosen", rows["chosen"])):
        rows[name] = values[np.arange(len(rows)), letter.map(LETTERS.index)]
    return rows[rows["chosen"] != rows["answer"]].nsmallest(count, "p_answer")


def write_report(paths: RunPaths, config: Config, tables: dict[str, pd.DataFrame], figures: dict[str, Figure]) -> Path:
    """Write each table as CSV and each figure as PNG into `report/`, and `index.html` that shows them all."""
    parts = [f"<h1>{html.escape(paths.run_id)}</h1>", f"<p>Preset {config.preset}, model {html.escape(config.model)}.</p>"]
    for title, table in tables.items():
        write_csv(paths.report / f"{_slug(title)}.csv", table)
        text = table.to_html(index=False, float_format="{:.4g}".format, na_rep="", border=0)
        parts.append(f"<h2>{html.escape(title)}</h2>{text}")
    for title, figure in figures.items():
        name = f"{_slug(title)}.png"
        write_atomically(paths.report / name, lambda path, figure=figure: figure.savefig(path, format="png"))
        parts.append(f'<h2>{html.escape(title)}</h2><img src="{name}" alt="{html.escape(title)}">')
    page = paths.report / "index.html"
    head = f"<meta charset=utf-8><title>{html.escape(paths.run_id)}</title><style>{STYLE}</style>"
    write_text(page, f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n")
    return page


def _card(row: dict, folder: Path, side_px: int) -> str:
    image = open_image(folder / row["path"])
    image.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    picture = f'<img width="{side_px}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    lines = [_option(row, letter) for letter in LETTERS]
    question = html.escape(str(row["question"]))
    return f'<div style="width:{side_px + 60}px;font-size:12px">{picture}<br><b>{question}</b><br>{"<br>".join(lines)}</div>'


def _option(row: dict, letter: str) -> str:
    """One option; the right one is ticked, the chosen one is bold with its probability."""
    text = f"{letter}. {html.escape(str(row[letter]))}"
    if letter == row.get("chosen"):
        text = f"<b>{text}</b> ({row['p_chosen']:.2f})" if "p_chosen" in row else f"<b>{text}</b>"
    return text + (" ✓" if letter == row.get("answer") else "")


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in title.lower()).strip("_")
