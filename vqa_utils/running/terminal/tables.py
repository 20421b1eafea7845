"""Print tables and presets."""

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from vqa_utils.config import SETTINGS, field_types
from vqa_utils.metrics import number_text
from vqa_utils.presets import PRESETS, preset
from vqa_utils.setting_types import PLACE, kind_name


def print_presets(console: Console) -> None:
    """Print two lines per preset: its purpose, and its most important settings."""
    for name, described in PRESETS.items():
        config = preset(name)
        settings = (
            f"{config.model}, {config.image_side} px, LoRA {config.lora_r}/{config.lora_alpha}, "
            f"{config.effective_batch} rows per step, {config.epochs:g} epochs, "
            f"lr {config.learning_rate:g}"
        )
        console.print(f"{name:<13}{described.for_what}")
        console.print(f"{'':<13}{settings}", style="dim")


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


def print_table(console: Console, title: str, frame: pd.DataFrame) -> None:
    """Print a table; fractions have three decimals."""
    table = Table(title=title, title_justify="left")
    for name in frame:
        is_number = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if is_number else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*map(_cell_text, row))
    console.print(table)


def _cell_text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return number_text(value) if isinstance(value, float) else str(value)
