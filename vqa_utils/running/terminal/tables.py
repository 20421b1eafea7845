"""Print tables and presets."""

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from vqa_utils.config import SETTINGS, field_types
from vqa_utils.metrics import number_text
from vqa_utils.presets import PRESETS, preset
from vqa_utils.running.terminal.fitting import Column, print_columns
from vqa_utils.setting_types import PLACE, kind_name

HEADS = {  # of columns with long names
    "not_yes_no": "without yes/no",
    "log_loss": "log loss",
    "calibration_error": "ECE",
    "mcnemar_p": "p",
    "peak_gib": "GiB",
}
PRESET_COLUMNS = 13  # of the longest name, and a space


def print_presets(console: Console) -> None:
    """Print two lines per preset: its purpose, and its most important settings."""
    for name, described in PRESETS.items():
        config = preset(name)
        settings = (
            f"{config.model}, {config.image_side} px, LoRA {config.lora_r}/{config.lora_alpha}, "
            f"{config.effective_batch} rows per step, {config.epochs:g} epochs, "
            f"lr {config.learning_rate:g}"
        )
        console.print(_beside(name, described.for_what, console.width))
        console.print(_beside("", settings, console.width), style="dim")


def print_settings(console: Console) -> None:
    """Print each setting with its type, its default and its meaning."""
    types = field_types()
    for name, about in SETTINGS.items():
        default = ",".join(about.default) if isinstance(about.default, tuple) else about.default
        written = '""' if default == "" else default
        console.print(f"{name} = {written}  ({kind_name(types[name])})")
        rule = None if about.rule is PLACE else about.rule
        expected = f"; {rule.expected}" if rule else ""
        console.print(f"    {about.meaning}{expected}", style="dim")


def print_table(
    console: Console, title: str, frame: pd.DataFrame, drop: Sequence[str] = ()
) -> None:
    """Print a table; fractions have three decimals.

    Args:
        console: the terminal.
        title: stands above it.
        frame: the table.
        drop: heads of columns to leave out of a narrow terminal, the least important first.
    """
    columns = []
    for name in frame:
        head = HEADS.get(name, str(name))
        cells = [_cell_text(value) for value in frame[name]]
        columns.append(Column(head, cells, pd.api.types.is_numeric_dtype(frame[name])))
    print_columns(console, title, columns, drop)


def _beside(name: str, text: str, width: int) -> str:
    """Wrap a text beside a name, at spaces alone."""
    return textwrap.fill(
        text,
        width,
        initial_indent=name.ljust(PRESET_COLUMNS),
        subsequent_indent=" " * PRESET_COLUMNS,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cell_text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return number_text(value) if isinstance(value, float) else str(value)
