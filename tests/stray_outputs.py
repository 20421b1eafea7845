"""What no executed notebook shows: errors, warnings, loading bars, control characters, widgets.

Nothing is displayed beside the results of cells: a library's bars are.
"""

import re

STRAY_TEXT = re.compile(r"\x1b|\r(?!\n)|\b(\w*Warning|WARNING):|\d+%\||\bit/s\b|\bs/it\b")
RESULTS = {"text/plain", "text/html", "image/png"}


def stray_outputs(notebook):
    """Describe what a notebook shows beside its results: the cell's number, and the output."""
    found = ["widgets"] if "widgets" in notebook.metadata else []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if _is_stray(output):
                found.append(f"cell {number}: {str(output)[:200]}")
    return found


def _is_stray(output):
    if output.output_type == "stream":
        return output.name != "stdout" or STRAY_TEXT.search(output.text) is not None
    if output.output_type != "execute_result" or not RESULTS.issuperset(output.data):
        return True
    texts = [data for kind, data in output.data.items() if kind.startswith("text/")]
    return any(STRAY_TEXT.search(text) for text in texts)
