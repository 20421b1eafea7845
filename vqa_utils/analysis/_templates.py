"""Render the room's HTML templates, with every value escaped."""

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vqa_utils.metrics import number_text


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder, such as "report.html.jinja".

    Values are text, never HTML: a question may hold "<b>".

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


def cell_text(value: object) -> str:
    """A cell of a table as text: three decimals of a float, nothing for NaN."""
    if isinstance(value, float):
        return "" if pd.isna(value) else number_text(value)
    return "" if value is None else str(value)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["cell_text"] = cell_text
