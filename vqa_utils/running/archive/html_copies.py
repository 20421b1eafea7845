"""Write archived notebooks as HTML too, for readers without Jupyter."""

from pathlib import Path

from nbformat import ValidationError

from vqa_utils.artifacts.files import is_current, write_text


def write_html_copies(folder: Path) -> None:
    """Write the HTML of each notebook beside it, but for those that have it, and torn ones.

    A copy needs no network. What a notebook shows as HTML stays as it is, as Jupyter shows it: the
    notebooks of the series escape texts of the data themselves.

    Args:
        folder: of archived notebooks.
    """
    copies = {notebook: notebook.with_suffix(".html") for notebook in folder.glob("*.ipynb")}
    due = {notebook: copy for notebook, copy in copies.items() if not is_current(copy, notebook)}
    if not due:
        return
    import nbconvert  # most of a second, and few commands need it

    templates = _templates_beside(Path(nbconvert.__file__))
    exporter = nbconvert.HTMLExporter(
        mathjax_url="",
        require_js_url="",  # of other machines
        extra_template_basedirs=templates,  # to find one by its name
        extra_template_paths=templates,  # for what it includes of another
    )
    for notebook, copy in due.items():
        try:
            html, _ = exporter.from_filename(str(notebook))
        except (ValueError, ValidationError):  # the page links to it as it is
            continue
        write_text(copy, html)


def _templates_beside(package: Path) -> list[str]:
    """Find the templates that were installed with nbconvert.

    It looks below `sys.prefix` itself, which `pip install --target` and PYTHONPATH pass by.
    """
    folders = [parent / "share/jupyter/nbconvert/templates" for parent in package.parents]
    return [str(folder) for folder in folders if folder.is_dir()]
