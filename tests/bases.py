"""Fresh bases for tests, by the memory plan for this machine (none on a CPU)."""

from vqa_utils.model.loading import add_lora, load_base
from vqa_utils.planning.plan import memory_plan


def base_of(config, dtype=None):
    """The base of the settings."""
    return load_base(config, memory_plan(config), dtype)


def lora_on(base, config):
    """New LoRA layers on a base."""
    return add_lora(base, config, memory_plan(config))


def base_with_lora(config, dtype=None):
    """The base of the settings with new LoRA layers."""
    return lora_on(base_of(config, dtype), config)
