"""What is seen of compilation while a model trains: which steps compile, how long, and what went wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lgd.config.values import ConfigError
from lgd.distill.schedule import Phase
from lgd.structures import Batch

logger = logging.getLogger(__name__)


class CompileWatch:
    """Accompanies the steps of a model that may be compiled.

    Args:
        enabled: whether it is; else nothing is watched.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._seen: set[tuple[torch.Size, Phase]] = set()

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
        key = (batch.images.shape, phase)
        is_new = key not in self._seen
        if is_new:
            logger.info("compiling for %s ...", where)
        self._seen.add(key)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        before, begin = num_graphs(), time.perf_counter()
        with explaining_errors():
            yield
        new, seconds = num_graphs() - before, time.perf_counter() - begin
        if is_new:
            logger.info("compiled %d graph(s) for %s: %.1f s", new, where, seconds)
        elif new:
            logger.warning("compiled %d graph(s) again for %s: %.1f s", new, where, seconds)


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
