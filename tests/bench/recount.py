"""Count a plan again for rows of another length than the plan assumes."""

from vqa_utils.config import Config
from vqa_utils.planning.gpu_plan import Plan
from vqa_utils.planning.placement import Placement
from vqa_utils.planning.shapes import ModelShape


def with_text(plan: Plan, config: Config, shape: ModelShape, text_tokens: int) -> Plan:
    """Count the same placement for rows with so many text tokens."""
    placement = Placement(config, shape, text_tokens, gives_back=plan.gives_back)
    return Plan(tuple(placement.recounted(gpu) for gpu in plan.gpus))
