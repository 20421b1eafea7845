"""Compute LoRA on 4-bit matrices in few launches and few bytes, on PEFT's own layers.

PEFT copies the base's output, then adds the scaled update as a tensor of its own: three passes
over the widest activation of the layer. Here layers with the same input, such as q, k and v, are
one product with one dropout mask (_projection.py), which adds the update as it makes it.
"""

import weakref
from typing import Any

import torch
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from vqa_utils.model.fast._projection import AdapterUse, Projection, make_scales_dense

# Their copies of A and B are stale after an optimizer step
_fast_layers: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def has_plain_lora(module: nn.Module) -> bool:
    """Tell whether a module is a 4-bit layer with one active adapter of plain LoRA."""
    return (
        isinstance(module, LoraLinear4bit)
        and len(module.active_adapters) == 1
        and not module.lora_variant
    )


def prepare_lora_layer(layer: LoraLinear4bit) -> None:
    """Make a layer ready for `lora_forward`: dense scales, hooks that drop copies of A and B."""
    make_scales_dense(layer.get_base_layer().weight.quant_state)
    layer.projections = {}  # the products that it belongs to, by their layers
    layer.register_load_state_dict_post_hook(_after_loading)
    _fast_layers.add(layer)


def lora_forward(self: LoraLinear4bit, x: torch.Tensor) -> torch.Tensor:
    """Replace the forward of PEFT's 4-bit layer; call PEFT's own if `projection_of` returns None.

    Args:
        x: [..., in]

    Returns:
        [..., out]
    """
    projection = projection_of((self,))
    if projection is None:
        return type(self).forward(self, x)
    return _apply(projection, x)


def project(layers: tuple[nn.Module, ...], x: torch.Tensor) -> torch.Tensor:
    """Return the layers' outputs for the same x [..., in], side by side: [..., all out]."""
    projection = projection_of(layers)
    if projection is None:
        return torch.cat([layer(x) for layer in layers], -1)
    return _apply(projection, x)


def _apply(projection: Projection, x: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    use = projection.next_use()
    if torch.is_grad_enabled():
        return _Project.apply(x, projection, use, *use.parameters)
    return projection.forward(x, use, merge=True).y


def projection_of(layers: tuple[nn.Module, ...]) -> Projection | None:
    """Return the product of these layers, made when it is first asked for.

    None if one layer has no fast LoRA or is merged, or if the layers differ in adapter or scaling.
    Called twice per decoder layer and forward, so it only reads plain attributes.
    """
    first = layers[0]
    adapter = _plain_adapter(first)
    if adapter is None:
        return None
    for layer in layers[1:]:
        is_alike = (
            _plain_adapter(layer) == adapter
            and layer.scaling[adapter] == first.scaling[adapter]
            and layer.disable_adapters == first.disable_adapters
        )
        if not is_alike:
            return None
    projection = first.projections.get(layers)
    if projection is None:
        projection = Projection(layers)
        for layer in layers:
            layer.projections[layers] = projection
    projection.follow_base()
    return projection


def _plain_adapter(layer: nn.Module) -> str | None:
    """Return the layer's one active, plain, unmerged adapter; None leaves it to PEFT's forward."""
    if not hasattr(layer, "projections") or layer.merged_adapters:
        return None
    active = layer.active_adapters
    if len(active) != 1 or active[0] not in layer.scaling or active[0] in layer.lora_variant:
        return None
    return active[0]


def forget_copies(layer: nn.Module) -> None:
    """Drop the copies of A and B in all products that a layer belongs to.

    Call this after anything else that writes into A or B, or replaces their `.data` (as `Module.to`
    does): optimizers and `load_state_dict` (and so PEFT's loading) do it by the hooks below.
    """
    for projection in layer.projections.values():
        projection.copies = None


def _after_loading(layer: nn.Module, keys: Any) -> None:
    forget_copies(layer)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for layer in list(_fast_layers):
        forget_copies(layer)


# On the steps of all optimizers, bitsandbytes' among them, which leave no trace in autograd's
# version counters: no training loop can forget to say that it stepped
register_optimizer_step_post_hook(_after_step)


class _Project(torch.autograd.Function):
    """`Projection.forward` with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        projection: Projection,
        use: AdapterUse,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        y, dropped, low = projection.forward(x, use, save=True)
        ctx.save_for_backward(dropped, low)
        ctx.projection = projection
        ctx.use = use
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dropped, low = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        grad_x, grads = ctx.projection.backward(grad, ctx.use, dropped, low, needs_x=needs_x)
        return grad_x, None, None, *grads
