"""Model the router: how many tokens each expert gets, and the slots computed for them.

Free of torch. Checked against the padding of recorded runs: tests/bench/README.md.
"""

import functools
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from vqa_utils.planning.expert_chunks import split
from vqa_utils.planning.memory import EXPERTS_AT_ONCE

# Share of the variance of a router's logits that is common to all tokens. Fitted on the padding
# of two earlier runs; see `expert_loads`.
ALIKE = 0.82
# Layers with random routers to draw
DRAWN = 8
# Halvings of [-10, 10] to find a cut: more than a float resolves
HALVINGS = 50


class ExpertSlots(NamedTuple):
    """The work of a layer's experts, on average over the drawn layers."""

    slots: float
    """Of all experts, padding included."""
    busy: float
    """Experts with tokens."""
    chunks: float
    """Experts that share a batched product."""


@functools.cache
def expected_slots(
    experts: int, per_token: int, tokens: int, padding_worth: int, at_once: int = EXPERTS_AT_ONCE
) -> ExpertSlots:
    """Cut the drawn layers' loads into chunks, and count their slots.

    Args:
        experts: of a layer.
        per_token: experts of each token.
        tokens: of a pass.
        padding_worth: as `expert_chunks.split` is told.
        at_once: as `expert_chunks.split` is told.
    """
    slots = 0
    busy = 0
    chunk_count = 0
    for loads in expert_loads(experts, per_token, tokens):
        chunks = split(loads, at_once, padding_worth)
        chunk_count += len(chunks)
        for count, slots_each in chunks:
            slots += count * slots_each
            busy += count
    return ExpertSlots(slots / DRAWN, busy / DRAWN, chunk_count / DRAWN)


@functools.cache
def expert_loads(experts: int, per_token: int, tokens: int) -> tuple[tuple[int, ...], ...]:
    """Draw how many tokens each expert gets, descending, in `DRAWN` layers with random routers.

    A token takes the experts with the highest logits. Of a logit's variance, `ALIKE` is common to
    all tokens and the rest is a token's own; both parts are normal.
    """
    layers = []
    for probabilities in _probabilities(experts, per_token):
        # Rounded one by one: their sum may miss per_token * tokens by a few
        loads = [round(probability * tokens) for probability in probabilities]
        layers.append(tuple(sorted(loads, reverse=True)))
    return tuple(layers)


@functools.cache
def _probabilities(experts: int, per_token: int) -> list[list[float]]:
    """Draw each expert's probability to get a token: for each layer, for each expert.

    With the common part z, an expert is above the cut with probability
    Phi((sqrt(ALIKE) z - cut) / sqrt(1 - ALIKE)). At the cut, these add up to `per_token`.
    """
    normal = NormalDist()
    own_deviation = math.sqrt(1 - ALIKE)
    common_parts = np.random.default_rng(0).standard_normal((DRAWN, experts))  # [layers, experts]
    layers = []
    for common in math.sqrt(ALIKE) * common_parts:  # [experts]
        low, high = -10.0, 10.0
        for _ in range(HALVINGS):
            cut = (low + high) / 2
            probabilities = [normal.cdf((part - cut) / own_deviation) for part in common]
            if sum(probabilities) > per_token:  # too many experts: raise the cut
                low = cut
            else:
                high = cut
        layers.append(probabilities)
    return layers
