"""The chat that training and inference share, so that the two cannot drift apart."""

from collections.abc import Mapping
from typing import Any

LETTERS = ("a", "b", "c", "d")
INSTRUCTION = "Look at the image and answer with the letter of the right option."


def question_text(row: Mapping[str, Any]) -> str:
    """The user's words under the image: the question, then one option a line."""
    options = [f"{letter}. {row[letter]}" for letter in LETTERS]
    return "\n".join([str(row["question"]), *options])


def instruction_of(row: Mapping[str, Any]) -> str:
    """What the system says: the usual words, unless the row brings its own."""
    return row.get("instruction", INSTRUCTION)


def chat(row: Mapping[str, Any], image: Any, *, answer: str | None = None, **image_options: Any) -> list[dict]:
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
    user = [{"type": "image", "image": image, **image_options}, {"type": "text", "text": question_text(row)}]
    messages = [{"role": "system", "content": instruction_of(row)}, {"role": "user", "content": user}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages
