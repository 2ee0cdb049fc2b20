"""Computing again in the backward pass what takes more memory to keep than time to make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(function: Callable[..., T], *arguments: Any) -> T:
    """Call the function; what its insides keep for the backward pass is made again there, to the same bits.

    Made again is only what the backward pass reads: of a product or a norm at the function's end the input,
    not the result.

    Args:
        function: nothing in it is random.
        arguments: tensors among them are kept.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    result: T = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


def cheaply_recomputed(function: Callable[..., T], *arguments: Any) -> T:
    """The same for what costs next to nothing; compiled code decides by itself what it keeps of such."""
    return function(*arguments) if torch.compiler.is_compiling() else recomputed(function, *arguments)


def feed_recomputed(
    consumer: Callable[[Tensor], Tensor], function: Callable[..., Tensor], *arguments: Any
) -> Tensor:
    """Return consumer(function(*arguments)), of which neither keeps the function's result.

    A convolution keeps its input, and an activation its output, which is the same. Both are made again from
    the arguments where this costs next to nothing; the consumer is not called again. Compiled code decides by
    itself.

    Args:
        consumer: what reads the function's result in the backward pass.
        function: nothing in it is random.
        arguments: tensors among them are kept.
    """
    made = cheaply_recomputed(function, *arguments)
    if torch.compiler.is_compiling() or not made.requires_grad:
        return consumer(made)
    kept = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    device = made.device.type
    dtype, is_mixed = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    held = [made]

    def pack(tensor: Tensor) -> Tensor | None:
        (own,) = held
        is_made = tensor.untyped_storage() is own.untyped_storage() and tensor.shape == own.shape
        return None if is_made else tensor

    def unpack(tensor: Tensor | None) -> Tensor:
        if tensor is not None:
            return tensor
        with torch.no_grad(), torch.autocast(device, dtype, enabled=is_mixed):
            return function(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = consumer(made)
    held.clear()  # the graph holds on to `pack`
    return result
