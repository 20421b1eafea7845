"""Count a plan again for rows of another length than the plan assumes."""

from dataclasses import replace

from vqa_utils.config import Config
from vqa_utils.planning.batches import MOST_ORDERS, batches_of
from vqa_utils.planning.gpu_plan import Plan
from vqa_utils.planning.placement import Placement
from vqa_utils.planning.shapes import ModelShape
from vqa_utils.prompts import IMAGE_MARKS

OPTION_TOKENS = 80  # of the recorded rows: each further option order adds these


def with_text(
    plan: Plan,
    config: Config,
    shape: ModelShape,
    text_tokens: int,
    option_tokens: int = OPTION_TOKENS,
) -> Plan:
    """Count the same placement for rows with so many text tokens.

    Args:
        text_tokens: of a row in one option order, without the marks between a row's images.
        option_tokens: of each further order.
    """
    in_run = Placement(config, shape).scoring  # its rows a pass are those of the run
    first_look = len(batches_of(shape, config, config.score_batch_rows, orders=config.tta))
    placement = Placement(
        replace(config, text_tokens=text_tokens),
        shape,
        gives_back=plan.gives_back,
        experts_at_once=plan.experts_at_once,
    )
    placement.scoring = []
    for number, batch in enumerate(in_run):
        orders = config.tta if number < first_look else MOST_ORDERS
        marks = IMAGE_MARKS * (batch.images - 1)
        in_orders = text_tokens + marks + (orders - 1) * option_tokens
        placement.scoring.append(replace(batch, text_tokens=in_orders))
    return Plan(tuple(placement.recounted(gpu) for gpu in plan.gpus))
