"""Take the vision tower's place in a model."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from vqa_utils.model.features.store import FeatureStore


@dataclass
class TowerOutput(ModelOutput):
    """What transformers' models read of a vision tower's output."""

    pooler_output: torch.Tensor | None = None
    """[tokens of all images, H]"""
    deepstack_features: Any = None
    """D of [tokens of all images, H]"""


class StoredFeatures(nn.Module):
    """Passes on features that an encoder has read of a store: a tower without weights and work.

    Attributes:
        store: what the features are read of.
        dtype: of the features.
        spatial_merge_size: rows and columns of patches of an image token.
    """

    def __init__(self, store: FeatureStore, dtype: torch.dtype, merge: int):
        super().__init__()
        self.store = store
        self.dtype = dtype
        self.spatial_merge_size = merge

    def forward(self, tokens: torch.Tensor, **kwargs: Any) -> TowerOutput:
        """Split the features, [tokens of all images, 1 + D, H]."""
        own, *deepstack = tokens.unbind(1)
        return TowerOutput(pooler_output=own, deepstack_features=deepstack)


def store_of(model: nn.Module) -> FeatureStore | None:
    """Return the store that a model's features come of; None if it has a vision tower."""
    for module in model.modules():
        if isinstance(module, StoredFeatures):
            return module.store
    return None
