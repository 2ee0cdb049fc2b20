"""`torch.compile` of those parts of a model in which no size depends on values, and what is seen of it.

A module names them in `static_parts`. Each becomes a graph of its own for every canvas; what lies between
them runs as it is written: matching, sampling, sums over the ranks, and the teacher's labels and attention,
which are small (and whose attention torch 2.14 compiles for one number of rows only).

Legend: B images, S rows of labels per image (objects, and perhaps the context).
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.config.values import ConfigError
from lgd.distill.label_encoder import LabelRows
from lgd.distill.schedule import Phase
from lgd.distill.teacher import DynamicTeacher
from lgd.notices import waiting
from lgd.ranks import process_group
from lgd.ranks.watch import Watch
from lgd.structures import Batch, Features
from lgd.words import counted

logger = logging.getLogger(__name__)

_MAX_GRAPHS = 64
"""Of one part: canvases times phases. One more is an error that names the part."""

_ROWS_MULTIPLE = 16
"""S is padded to a multiple of this: never 1, for which code would be made anew, and matrix products and
attention find rows of aligned length."""


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


def require_compiler(device: torch.device) -> None:
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


class CompileWatch:
    """Accompanies the steps of a model that may be compiled.

    Args:
        enabled: whether it is; else nothing is watched.
        watch: is told that a step may take long.
    """

    def __init__(self, enabled: bool, watch: Watch | None = None) -> None:
        self.enabled = enabled
        self._watch = watch or Watch()
        self._seen: set[tuple[torch.Size, bool, bool, int]] = set()
        self._seconds: float | None = None

    @contextmanager
    def step(self, batch: Batch, phase: Phase) -> Iterator[None]:
        """Watch a forward and backward pass.

        Args:
            batch: its images.
            phase: which determines, with the canvas, what code is needed.

        Raises:
            ConfigError: in place of the compiler's own errors; it says the way out.
        """
        if not self.enabled:
            yield
            return
        height, width = batch.images.shape[-2:]
        where = f"canvas {height} x {width}" + (", backbone frozen" if phase.freeze_backbone else "")
        # Nothing, some or all of the teacher's gradient for the head: one code for every share between.
        head = (phase.head_share > 0) + (phase.head_share == 1)
        key = (batch.images.shape, phase.freeze_backbone, phase.distill, head)
        is_new = key not in self._seen
        if is_new:
            logger.info("compiling for %s ...", where)
            self._watch.again("compiling", may_take_long=True)
        self._seen.add(key)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        before, begin = num_graphs(), time.perf_counter()
        notice = waiting(f"compiling for {where}", self._seconds, shown=is_new and process_group.is_main())
        with notice, explaining_errors():
            yield
        new, seconds = num_graphs() - before, time.perf_counter() - begin
        if is_new:
            self._seconds = seconds
            logger.info("compiled %s for %s: %.1f s", counted(new, "graph"), where, seconds)
        elif new:
            logger.warning("compiled %s again for %s: %.1f s", counted(new, "graph"), where, seconds)


def num_graphs() -> int:
    """Graphs that this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@contextmanager
def explaining_errors() -> Iterator[None]:
    """Turn the compiler's errors into ones that say the way out.

    Raises:
        ConfigError: code could not be compiled, or there was to be more of it than is kept.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise ConfigError(
            f"compiled for more canvases than are kept ({_first_line(error)}); pad the batches to a few "
            "(TRAIN.STATIC_CANVASES True), or set TRAIN.COMPILE False"
        ) from error
    except TorchDynamoException as error:
        raise ConfigError(
            f"the step could not be compiled ({type(error).__name__}: {_first_line(error)}); "
            "set TRAIN.COMPILE False"
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
