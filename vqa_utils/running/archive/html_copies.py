"""Write archived notebooks as HTML too, for readers without Jupyter."""

from pathlib import Path

from vqa_utils.artifacts.files import write_text


def write_html_copies(folder: Path) -> None:
    """Write the HTML of each notebook beside it, but for those that have it.

    A copy needs no network. What a notebook shows as HTML stays as it is, as Jupyter shows it: the
    notebooks of the series escape texts of the data themselves.

    Args:
        folder: of archived notebooks.
    """
    copies = {notebook: notebook.with_suffix(".html") for notebook in folder.glob("*.ipynb")}
    due = {notebook: copy for notebook, copy in copies.items() if _is_older(copy, notebook)}
    if not due:
        return
    from nbconvert import HTMLExporter  # most of a second, and few commands need it

    exporter = HTMLExporter(mathjax_url="", require_js_url="")  # of other machines
    for notebook, copy in due.items():
        html, _ = exporter.from_filename(str(notebook))
        write_text(copy, html)


def _is_older(copy: Path, notebook: Path) -> bool:
    return not copy.exists() or copy.stat().st_mtime < notebook.stat().st_mtime
