"""What was really loaded: bytes, types and GPUs of each group of weights, against the plan."""

from collections import defaultdict
from collections.abc import Collection

import pandas as pd
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Params4bit
from transformers import PreTrainedModel

from vqa_utils.config import Config
from vqa_utils.errors import VqaError
from vqa_utils.model.nf4.experts import NF4Experts
from vqa_utils.planning.memory import weight_bytes
from vqa_utils.planning.shapes import GROUPS, Shape, ShapeError, group_of, is_matrix, shape_of

MOST_NAMED = 5
TOLERANCE = (
    0.01  # of a group's bytes: the codes of NF4 and the allocator's rounding are not planned
)
SMALL = 2**20  # bytes below which a group is not compared


class LoadError(VqaError):
    """A model that was not loaded as it was planned."""


def loaded_weights(model: PreTrainedModel, config: Config) -> pd.DataFrame:
    """A line for each group of weights and device: parameters, types, planned and loaded GiB.

    Tensors that NF4 keeps beside its weights count as the weights' own.
    """
    lines: dict[tuple[str, str], dict] = defaultdict(
        lambda: {"count": 0, "types": set(), "planned": 0, "loaded": 0}
    )
    element_bytes, planned = (
        model.get_input_embeddings().weight.element_size(),
        _planned_shapes(config),
    )
    for name, shape, tensors in _weights(model):
        line = lines[group_of(name), str(tensors[0].device)]
        line["count"] += shape.numel()
        line["types"].add(_type(tensors[0]))
        line["planned"] += weight_bytes(name, planned.get(name, shape), config, element_bytes)
        line["loaded"] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    ordered = sorted(lines.items(), key=lambda item: (item[0][1], GROUPS.index(item[0][0])))
    return pd.DataFrame(
        {
            "weights": group, "on": device, "parameters (millions)": round(line["count"] / 1e6, 1),
            "kept as": " + ".join(sorted(line["types"])), "planned GiB": line["planned"] / 2**30, "loaded GiB": line["loaded"] / 2**30,
        }
        for (group, device), line in ordered
    ).round(3)  # fmt: skip


def check_loaded(model: PreTrainedModel, config: Config, streamed: Collection[str] = ()) -> None:
    """Hold what was loaded against what was planned, before an hour is spent on it.

    Args:
        streamed: decoder layers whose experts should be in host memory.

    Raises:
        LoadError: matrices that are not in 4 bits, weights on no or on another device than the device map says, or a
            group of another size.
    """
    loaded = {name for name, _, _ in _weights(model)}
    problems = [
        f"{name}: expected by the plan, found none"
        for name in _planned_shapes(config)
        if name not in loaded
    ]
    device_map = getattr(model, "hf_device_map", {})
    for name, shape, tensors in _weights(model):
        if (
            config.quantization == "nf4"
            and is_matrix(name, shape)
            and tensors[0].dtype != torch.uint8
        ):
            size = tensors[0].numel() * tensors[0].element_size() / 1e9
            problems.append(f"{name}: expected 4 bits, found {_type(tensors[0])} ({size:.2f} GB)")
        wanted = next((place for module, place in device_map.items() if _is_in(name, module)), None)
        if wanted is not None and name.startswith(
            tuple(f"{layer}.mlp.experts." for layer in streamed)
        ):
            wanted = "cpu"
        if wanted is not None and tensors[0].device != _device(wanted):
            problems.append(
                f"{name}: expected it on {_device(wanted)}, found it on {tensors[0].device}"
            )
    table = loaded_weights(model, config).groupby("weights")[["planned GiB", "loaded GiB"]].sum()
    for group, (planned, loaded) in table.iterrows():
        if abs(loaded - planned) > max(TOLERANCE * planned, SMALL / 2**30):
            problems.append(f"{group}: expected {planned:.3f} GiB, found {loaded:.3f} GiB")
    if problems:
        more = [f"and {len(problems) - MOST_NAMED} more"] if len(problems) > MOST_NAMED else []
        raise LoadError(
            "\n  - ".join(["the model was not loaded as planned:", *problems[:MOST_NAMED], *more])
        )


def _planned_shapes(config: Config) -> dict[str, Shape]:
    """Each parameter's shape by the plan; none for a family that it does not know (and that accelerate places)."""
    try:
        return shape_of(config).parameters
    except ShapeError:
        return {}


def _weights(model: PreTrainedModel) -> list[tuple[str, torch.Size, list[torch.Tensor]]]:
    """Each parameter's name, its shape before packing, and the tensors that keep it, the weights first."""
    found = []
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, NF4Experts):
            kept = (
                module.host
                if module.host is not None
                else {**module._parameters, **module._buffers}
            )
            beside = [tensor for other, tensor in kept.items() if other.endswith(f"_{last}")]
            found.append(
                (
                    name,
                    torch.Size((module.num_experts, *module.shapes[last])),
                    [kept[last], *beside],
                )
            )
        elif isinstance(parameter, Params4bit) and parameter.quant_state is not None:
            found.append(
                (
                    name,
                    torch.Size(parameter.quant_state.shape),
                    [parameter, *_scales(parameter.quant_state)],
                )
            )
        else:
            found.append((name, parameter.shape, [parameter]))
    return found


def _scales(state: QuantState) -> list[torch.Tensor]:
    """The scales of a bitsandbytes tensor: one level of them, or two and an offset."""
    return (
        [state.absmax, state.state2.absmax, state.offset.view(1)]
        if state.nested
        else [state.absmax]
    )


def _type(tensor: torch.Tensor) -> str:
    return "NF4" if tensor.dtype == torch.uint8 else str(tensor.dtype).removeprefix("torch.")


def _is_in(name: str, module: str) -> bool:
    return module == "" or name.startswith(f"{module}.")


def _device(place: int | str | torch.device) -> torch.device:
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
