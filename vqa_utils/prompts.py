"""The chat that training and inference share, so that the two cannot drift apart."""

from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = ("a", "b", "c", "d")
INSTRUCTION = "Look at the image and answer with the letter of the right option."


def cyclic_order(shift: int) -> list[int]:
    """The option at each place when the options are turned by `shift` places, such as [1, 2, 3, 0]."""
    return [(place + shift) % len(LETTERS) for place in range(len(LETTERS))]


def reorder_options(row: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The row with option `order[i]` at the i-th letter; its `answer`, if it has one, follows."""
    moved = {letter: row[LETTERS[source]] for letter, source in zip(LETTERS, order, strict=True)}
    if "answer" in row:
        moved["answer"] = LETTERS[list(order).index(LETTERS.index(row["answer"]))]
    return {**row, **moved}


def question_text(row: Mapping[str, Any]) -> str:
    """The user's words under the image: the question, then one option a line."""
    options = [f"{letter}. {row[letter]}" for letter in LETTERS]
    return "\n".join([str(row["question"]), *options])


def instruction_of(row: Mapping[str, Any]) -> str:
    """What the system says: the usual words, unless the row brings its own."""
    return row.get("instruction", INSTRUCTION)


def chat(
    row: Mapping[str, Any], image: Any, *, answer: str | None = None, **image_options: Any
) -> list[dict]:
    """One question as a list of chat messages, in the order instruction, image, question, options.

    What several option orders of one row have in common comes first, so that a prefix cache can share it.

    Args:
        row: `question` and the options `a` to `d`; where training words it otherwise, the `instruction`.
        image: whatever the processor takes as an image (here a PIL image).
        answer: the right letter; it becomes the assistant's turn. None where the model is to answer.
        image_options: keys that `qwen_vl_utils` reads beside the image, such as `max_pixels`.

    Raises:
        ValueError: `answer` is not one of the four letters.
    """
    if answer is not None and answer not in LETTERS:
        raise ValueError(f"answer: expected one of {', '.join(LETTERS)}, found {answer!r}")
    user = [
        {"type": "image", "image": image, **image_options},
        {"type": "text", "text": question_text(row)},
    ]
    messages = [
        {"role": "system", "content": instruction_of(row)},
        {"role": "user", "content": user},
    ]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages
