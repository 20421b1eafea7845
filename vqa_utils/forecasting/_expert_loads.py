"""How many tokens each expert gets, and the rows that are computed for them: a model of the router. Free of torch."""

import functools
import math
from statistics import NormalDist

import numpy as np

from vqa_utils.planning.expert_chunks import split
from vqa_utils.planning.memory import EXPERTS_AT_ONCE

ALIKE = 0.82  # fitted: the share of the router's variance that is the same for all tokens; see `expert_loads`
DRAWN = 8  # layers


@functools.cache
def expert_loads(experts: int, per_token: int, tokens: int) -> tuple[tuple[int, ...], ...]:
    """How many tokens each expert gets, descending, in each of `DRAWN` layers with random routers.

    A token takes the experts whose logits are highest. Of a logit's variance, `ALIKE` is common to all tokens and the rest is
    a token's own, both normal: an expert whose common part is z is above the cut with probability
    Phi((sqrt(ALIKE) z - cut) / sqrt(1 - ALIKE)), and the cut is where the probabilities add up to `per_token`.
    """
    layers = (
        sorted((round(share * tokens) for share in shares), reverse=True)
        for shares in _shares(experts, per_token)
    )
    return tuple(map(tuple, layers))


@functools.cache
def _shares(experts: int, per_token: int) -> list[list[float]]:
    """Of the tokens, for each expert of each drawn layer."""
    normal, own = NormalDist(), math.sqrt(1 - ALIKE)
    layers = []
    for common in math.sqrt(ALIKE) * np.random.default_rng(0).standard_normal((DRAWN, experts)):
        low, high = -10.0, 10.0
        for _ in range(50):
            cut = (low + high) / 2
            shares = [normal.cdf((part - cut) / own) for part in common]
            low, high = (cut, high) if sum(shares) > per_token else (low, cut)
        layers.append(shares)
    return layers


@functools.cache
def expert_rows(
    experts: int, per_token: int, tokens: int, padding_worth: int
) -> tuple[float, float, float]:
    """Of a layer, in the mean of the drawn ones: the rows that its experts compute, those that have any, and chunks."""
    cuts = [
        split(loads, EXPERTS_AT_ONCE, padding_worth)
        for loads in expert_loads(experts, per_token, tokens)
    ]
    rows, busy, chunks = (
        sum(count * each for cut in cuts for count, each in cut),
        sum(count for cut in cuts for count, _ in cut),
        sum(map(len, cuts)),
    )
    return rows / DRAWN, busy / DRAWN, chunks / DRAWN
