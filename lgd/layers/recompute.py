"""Computing again in the backward pass what takes more memory to keep than time to make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
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
