"""`torch.compile` of those parts of a model in which no size depends on values.

A module names them in `static_parts`. Each becomes a graph of its own for every canvas; what lies between
them runs as it is written: matching, sampling, sums over the ranks, and the teacher's labels and attention,
which are small (and whose attention torch 2.14 compiles for one number of rows only).

Legend: B images, S rows of labels per image (objects, and perhaps the context).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.distill.label_encoder import LabelRows
from lgd.distill.teacher import DynamicTeacher
from lgd.structures import Features

_MAX_GRAPHS = 64
"""Of one part: canvases times phases. One more is an error that names the part."""

_ROWS_MULTIPLE = 16
"""S is padded to a multiple of this: never 1, for which code would be made anew, and matrix products and
attention find rows of aligned length."""


def compiles(cfg: Config, device: torch.device) -> bool:
    """Whether training steps are compiled."""
    wanted = cfg.train.compile
    return device.type == "cuda" if wanted == "auto" else wanted


def compile_model(cfg: Config, model: nn.Module, device: torch.device) -> None:
    """Let a model run compiled while it trains, if so configured; evaluation stays eager.

    The methods are replaced on the model's modules, so that parameters keep their names. Nothing is compiled
    before the first step, and each canvas when it comes first.

    Args:
        cfg: its TRAIN.COMPILE and TRAIN.CUDA_GRAPHS count.
        model: the distiller or plain student, where it will run.
        device: where that is.

    Raises:
        ConfigError: this machine cannot compile.
    """
    if not compiles(cfg, device):
        return
    _require_compiler(device)
    compile_parts(model, options={"triton.cudagraphs": True} if cfg.train.cuda_graphs else None)


def compile_parts(model: nn.Module, **how: Any) -> None:
    """Replace the static parts of a model by compiled ones.

    Args:
        model: whose modules may have `static_parts`.
        how: further arguments of `torch.compile`.
    """
    import torch._dynamo  # takes seconds, and most runs on a CPU don't need it

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_GRAPHS)
    for module in list(model.modules()):
        for name in getattr(module, "static_parts", ()):
            eager = getattr(module, name)
            # One graph or an error: what falls back would do so silently.
            compiled = torch.compile(eager, fullgraph=True, dynamic=False, **how)
            if isinstance(module, DynamicTeacher):
                compiled = partial(_with_open_rows, compiled)
            setattr(module, name, partial(_call, module, compiled, eager))
        if isinstance(module, DynamicTeacher):
            eager = module._make_features
            padded = partial(_with_padded_rows, eager)
            module._make_features = partial(_call, module, padded, eager)  # type: ignore[method-assign]


def _call(module: nn.Module, compiled: Callable[..., Any], eager: Callable[..., Any], *inputs: Any) -> Any:
    return (compiled if module.training else eager)(*inputs)


def _with_padded_rows(
    make_features: Callable[..., Features], features: Features, rows: LabelRows, masks: Features
) -> Features:
    """Call with a multiple of rows.

    The new rows come first, since the context is looked for in the last one.
    """
    missing = -rows.valid.shape[1] % _ROWS_MULTIPLE
    rows = LabelRows(
        F.pad(rows.boxes, (0, 0, missing, 0)),
        F.pad(rows.descriptors, (0, 0, missing, 0)),
        F.pad(rows.valid, (missing, 0)),
    )
    masks = {level: F.pad(x, (0, 0, missing, 0)) for level, x in masks.items()}
    return make_features(features, rows, masks)


def _with_open_rows(part: Callable[..., Any], first: Features | Tensor, masks: Features, *others: Any) -> Any:
    """Declare the number of rows open: one graph whatever the number of objects.

    Args:
        part: the compiled method.
        first: {level: (B, C, h, w)}, or embeddings (B, L, S, C).
        masks: {level: (B, S, h * w)}.
        others: further arguments.
    """
    for mask in masks.values():
        torch._dynamo.mark_dynamic(mask, 1)
    if isinstance(first, Tensor):
        torch._dynamo.mark_dynamic(first, 2)
    return part(first, masks, *others)


def _require_compiler(device: torch.device) -> None:
    """Refuse at the start what would fail minutes later.

    Raises:
        ConfigError: what compiled code is made with is missing.
    """
    way_out = "install it, or set TRAIN.COMPILE False"
    names = [os.environ.get("CC", ""), os.environ.get("CXX", ""), "gcc", "g++", "cc", "clang"]
    if not any(name and shutil.which(name) for name in names):
        raise ConfigError(f"TRAIN.COMPILE needs a C++ compiler (gcc), and there is none here; {way_out}")
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigError(
                f"TRAIN.COMPILE on CUDA needs triton and a GPU of capability 7.0, and finds none; {way_out}"
            )
