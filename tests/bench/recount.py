"""Count a plan again for rows of another length than the plan assumes."""

from dataclasses import replace

from vqa_utils.config import Config
from vqa_utils.planning.gpu_plan import Plan
from vqa_utils.planning.placement import Placement
from vqa_utils.planning.shapes import ModelShape

OPTION_TOKENS = 80  # of the recorded rows: each further option order adds these


def with_text(plan: Plan, config: Config, shape: ModelShape, text_tokens: int) -> Plan:
    """Count the same placement for rows with so many text tokens."""
    placement = Placement(
        replace(config, text_tokens=text_tokens),
        shape,
        gives_back=plan.gives_back,
        experts_at_once=plan.experts_at_once,
    )
    in_orders = text_tokens + (config.tta - 1) * OPTION_TOKENS
    placement.scoring = [replace(batch, text_tokens=in_orders) for batch in placement.scoring]
    return Plan(tuple(placement.recounted(gpu) for gpu in plan.gpus))
