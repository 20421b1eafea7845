"""Hold what was really loaded against the plan: bytes, types and GPUs of each group of weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Params4bit
from transformers import PreTrainedModel

from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.model.features.stand_in import store_of
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.planning.memory import weight_bytes
from vqa_utils.planning.plan import Plan
from vqa_utils.planning.shapes import GROUPS, Shape, ShapeError, group_of, is_matrix, shape_of
from vqa_utils.setting_types import GIB

MOST_NAMED = 5  # problems in an error; one fault in all layers makes dozens
# Of a group's bytes: the codes of NF4 and the allocator's rounding are not planned
TOLERANCE = 0.01
SMALL = 2**20  # bytes; a difference below says nothing


class LoadError(VqaError):
    """A model that was not loaded as it was planned."""


class _Weight(NamedTuple):
    """A parameter as it was loaded."""

    name: str
    shape: tuple[int, ...]
    """before packing"""
    tensors: list[torch.Tensor]
    """that keep it: the weights, then what NF4 has beside them"""

    @property
    def type(self) -> str:
        dtype = self.tensors[0].dtype
        return "NF4" if dtype == torch.uint8 else str(dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


@dataclass
class _Sum:
    """What a group of weights has on a device."""

    count: int = 0
    types: set[str] = field(default_factory=set)
    planned: int = 0  # bytes
    loaded: int = 0  # bytes


def loaded_weights(model: PreTrainedModel, config: Config) -> pd.DataFrame:
    """List each group of weights on each device: parameters, types, planned and loaded GiB.

    Tensors that NF4 keeps beside its weights count as the weights' own.
    """
    return _table(_sums(model, config, _weights(model), _planned_shapes(model, config)))


def check_loaded(model: PreTrainedModel, config: Config, plan: Plan | None) -> None:
    """Hold what was loaded against what was planned.

    Raises:
        LoadError: a planned weight that is missing, a matrix that is not in 4 bits, a weight on
            another device than the device map says, or a group of another size.
    """
    weights = _weights(model)
    shapes = _planned_shapes(model, config)
    problems = [
        *_missing(weights, shapes),
        *_not_packed(weights, config),
        *_misplaced(weights, model, plan),
        *_of_another_size(_sums(model, config, weights, shapes)),
    ]
    if not problems:
        return
    lines = ["the model was not loaded as planned:", *problems[:MOST_NAMED]]
    if len(problems) > MOST_NAMED:
        lines.append(f"and {len(problems) - MOST_NAMED} more")
    raise LoadError("\n  - ".join(lines))


def _missing(weights: list[_Weight], shapes: dict[str, Shape]) -> list[str]:
    loaded = {weight.name for weight in weights}
    return [f"{name}: expected by the plan, found none" for name in shapes if name not in loaded]


def _not_packed(weights: list[_Weight], config: Config) -> list[str]:
    """Describe matrices in 16 or 32 bits under NF4."""
    problems = []
    for weight in weights:
        should_be = config.quantization == "nf4" and is_matrix(weight.name)
        if should_be and weight.type != "NF4":
            gb = weight.tensors[0].numel() * weight.tensors[0].element_size() / 1e9
            problems.append(f"{weight.name}: expected 4 bits, found {weight.type} ({gb:.2f} GB)")
    return problems


def _misplaced(weights: list[_Weight], model: PreTrainedModel, plan: Plan | None) -> list[str]:
    """Describe weights on other devices than the map's; offloaded experts belong in host memory."""
    offloaded = [f"{layer}.mlp.experts." for layer in plan.offloaded_layers] if plan else []
    device_map: Mapping[str, int | str | torch.device] = getattr(model, "hf_device_map", {})
    problems = []
    for weight in weights:
        wanted = _planned_device(weight.name, device_map)
        if wanted is None:
            continue
        if weight.name.startswith(tuple(offloaded)):
            wanted = torch.device("cpu")
        if weight.device != wanted:
            problems.append(f"{weight.name}: expected it on {wanted}, found it on {weight.device}")
    return problems


def _planned_device(
    name: str, device_map: Mapping[str, int | str | torch.device]
) -> torch.device | None:
    """Return the device of the first module in the map with the parameter; None without one."""
    for module, place in device_map.items():
        if module == "" or name.startswith(f"{module}."):
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return None


def _of_another_size(sums: dict[tuple[str, str], _Sum]) -> list[str]:
    """Describe groups whose bytes on all devices are not the planned ones."""
    groups: dict[str, _Sum] = {}
    for (group, _), of_device in sums.items():
        total = groups.setdefault(group, _Sum())
        total.planned += of_device.planned
        total.loaded += of_device.loaded
    problems = []
    for group, total in groups.items():
        if abs(total.loaded - total.planned) > max(TOLERANCE * total.planned, SMALL):
            planned, loaded = total.planned / GIB, total.loaded / GIB
            problems.append(f"{group}: expected {planned:.3f} GiB, found {loaded:.3f} GiB")
    return problems


def _sums(
    model: PreTrainedModel, config: Config, weights: list[_Weight], shapes: dict[str, Shape]
) -> dict[tuple[str, str], _Sum]:
    """Sum up the weights by group and device."""
    element_bytes = model.get_input_embeddings().weight.element_size()  # of what is not packed
    sums: dict[tuple[str, str], _Sum] = {}
    for weight in weights:
        line = sums.setdefault((group_of(weight.name), str(weight.device)), _Sum())
        shape = shapes.get(weight.name, weight.shape)
        line.count += torch.Size(weight.shape).numel()
        line.types.add(weight.type)
        line.planned += weight_bytes(weight.name, shape, config, element_bytes)
        line.loaded += weight.bytes
    return sums


def _table(sums: dict[tuple[str, str], _Sum]) -> pd.DataFrame:
    lines = []
    for device in sorted({device for _, device in sums}):
        for group in GROUPS:
            line = sums.get((group, device))
            if line is None:
                continue
            lines.append(
                {
                    "weights": group,
                    "on": device,
                    "parameters (millions)": line.count / 1e6,
                    "kept as": " + ".join(sorted(line.types)),
                    "planned GiB": line.planned / GIB,
                    "loaded GiB": line.loaded / GIB,
                }
            )
    return pd.DataFrame(lines)


def _planned_shapes(model: PreTrainedModel, config: Config) -> dict[str, Shape]:
    """Return each parameter's planned shape; no shapes for a family that accelerate places."""
    try:
        shapes = shape_of(config).parameters
    except ShapeError:
        return {}
    if store_of(model) is None:
        return shapes
    return {name: size for name, size in shapes.items() if group_of(name) != "vision"}


def _weights(model: PreTrainedModel) -> list[_Weight]:
    """Return each parameter with the tensors that keep it."""
    found = []
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, NF4Experts):
            found.append(_of_experts(name, module, last))
        elif isinstance(parameter, Params4bit) and parameter.quant_state is not None:
            state = parameter.quant_state
            found.append(_Weight(name, tuple(state.shape), [parameter, *_scales(state)]))
        else:
            found.append(_Weight(name, tuple(parameter.shape), [parameter]))
    return found


def _of_experts(name: str, module: NF4Experts, projection: str) -> _Weight:
    """Return a layer's experts of one projection, with the statistics, wherever they are kept."""
    tensors: Mapping[str, torch.Tensor]
    if module.host is not None:
        tensors = module.host
    else:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # The underscore leaves out the projection itself: "absmax_down_proj", not "down_proj"
    beside = [tensor for other, tensor in tensors.items() if other.endswith(f"_{projection}")]
    shape = (module.num_experts, *module.shapes[projection])
    return _Weight(name, shape, [tensors[projection], *beside])


def _scales(state: QuantState) -> list[torch.Tensor]:
    """Return the scales of a bitsandbytes tensor: one level of them, or two and an offset."""
    if not state.nested:
        return [state.absmax]
    return [state.absmax, state.state2.absmax, state.offset.view(1)]
