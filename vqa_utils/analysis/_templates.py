"""Render the room's HTML templates, with every value escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder, such as "gallery.html.jinja".

    Values are text, never HTML: a question may hold "<b>".

    Raises:
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    return _ENVIRONMENT.get_template(template).render(**values)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
