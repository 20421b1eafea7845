"""Write the chat of training and inference, in one place: the two cannot drift apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Also the options' columns in every CSV, and the order of the last axis of [N, 4] arrays
LETTERS = ("a", "b", "c", "d")
# the system's words; "letter" tells the model to answer with one token
INSTRUCTION = "Look at the image and answer with the letter of the right option."
# Of Qwen's chat, around instruction, image, words and answer: 18 of Qwen3-VL, and four more where
# the answer comes after an empty thought
TEMPLATE_TOKENS = 22
IMAGE_MARKS = 2  # of each further image: its start and end


class Prompt(NamedTuple):
    """How all questions of a run are put, in training and in scoring."""

    instruction: str = INSTRUCTION
    """The system's words."""
    asks_twice: bool = False
    """The question stands before the image too, so that the image is read with it in mind."""
    crops: int = 0
    """Parts a side, shown after the whole picture; 2: its four quarters. 0 shows none."""

    @property
    def images(self) -> int:
        """Count the images of a row: the picture, and its crops."""
        return 1 + self.crops**2

    @property
    def image_marks(self) -> int:
        """Count the tokens around a row's images that `TEMPLATE_TOKENS` does not count."""
        return (self.images - 1) * IMAGE_MARKS


USUAL = Prompt()


def cyclic_order(shift: int) -> list[int]:
    """Turn the options by `shift` places: the option at each place, such as [1, 2, 3, 0]."""
    return [(place + shift) % len(LETTERS) for place in range(len(LETTERS))]


def reorder_options(row: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Put option `order[i]` at the i-th letter; the row's `answer`, if it has one, follows.

    order = [1, 2, 3, 0]:   a: red  b: blue  c: green  d: pink     answer b
                            a: blue b: green c: pink   d: red      answer a
    """
    moved = {letter: row[LETTERS[source]] for letter, source in zip(LETTERS, order, strict=True)}
    if "answer" in row:
        right_option = LETTERS.index(row["answer"])
        moved["answer"] = LETTERS[list(order).index(right_option)]
    return {**row, **moved}


def question_text(row: Mapping[str, Any]) -> str:
    """Write the user's words under the image: the question, then one option per line."""
    options = [f"{letter}. {row[letter]}" for letter in LETTERS]
    return "\n".join([str(row["question"]), *options])


def text_before_image(row: Mapping[str, Any], prompt: Prompt) -> str:
    """Write the user's words above the image: the question, if it is asked twice."""
    return f"{row['question']}\n" if prompt.asks_twice else ""


def instruction_of(row: Mapping[str, Any], prompt: Prompt = USUAL) -> str:
    """The system's words: the prompt's, unless the row brings its own."""
    return row.get("instruction", prompt.instruction)


def chat(
    row: Mapping[str, Any], answer: str | None = None, prompt: Prompt = USUAL
) -> list[dict[str, Any]]:
    """Build one question as chat messages, in the order instruction, image, question, options.

    The common parts of several option orders come first: a prefix cache can share them.

    Args:
        row: `question` and the options `a` to `d`; in training also an `instruction` in other
            words, or none.
        answer: the right letter; it becomes the assistant's turn. None if the model is to answer.
        prompt: of the run.

    Raises:
        ValueError: `answer` is not one of the four letters.
    """
    if answer is not None and answer not in LETTERS:
        raise ValueError(f"answer: expected one of {', '.join(LETTERS)}, found {answer!r}")
    user = [{"type": "image"}] * prompt.images  # their places: the encoder knows the picture
    user.append({"type": "text", "text": question_text(row)})
    before = text_before_image(row, prompt)
    if before:
        user.insert(0, {"type": "text", "text": before})
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": instruction_of(row, prompt)},
        {"role": "user", "content": user},
    ]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages
