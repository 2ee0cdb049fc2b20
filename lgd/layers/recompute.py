"""Computing again in the backward pass what takes more memory to keep than time to make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")

_LEAST_BYTES = 3 * 2**19
"""Of an argument: less is kept, since its calls would take longer than its memory is worth."""


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
    """The same for large arguments of what costs next to nothing; compiled code decides by itself."""
    keeps = torch.compiler.is_compiling() or _are_small(arguments)
    return function(*arguments) if keeps else recomputed(function, *arguments)


def feed_recomputed(
    consumer: Callable[[Tensor], Tensor], function: Callable[..., Tensor], *arguments: Any
) -> Tensor:
    """Return consumer(function(*arguments)), of which neither keeps the function's result.

    A convolution keeps its input, and an activation its output, which is the same. Both are made again from
    the arguments where this costs next to nothing; the consumer is not called again. Of small arguments they
    are kept, and compiled code decides by itself.

    Args:
        consumer: what reads the function's result in the backward pass.
        function: nothing in it is random.
        arguments: tensors among them are kept.
    """
    made = cheaply_recomputed(function, *arguments)
    if torch.compiler.is_compiling() or not made.requires_grad or _are_small(arguments):
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


def _are_small(arguments: Sequence[Any]) -> bool:
    return all(x.numel() * x.element_size() < _LEAST_BYTES for x in arguments if isinstance(x, Tensor))
