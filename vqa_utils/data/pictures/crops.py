"""Cut pictures into equal parts."""

import itertools

Box = tuple[float, float, float, float]


def crop_boxes(width: int, height: int, crops: int) -> list[Box]:
    """Return left, top, right and bottom in px of a picture's parts, row by row.

    Args:
        width: of the picture, in px.
        height: of the picture, in px.
        crops: parts a side.
    """
    boxes = []
    for row, column in itertools.product(range(crops), repeat=2):
        left, right = (width * place / crops for place in (column, column + 1))
        top, bottom = (height * place / crops for place in (row, row + 1))
        boxes.append((left, top, right, bottom))
    return boxes
