"""LGD: label-guided self-distillation for object detectors, in plain PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lgd.inference.evaluate import evaluate
    from lgd.run.trained import load

__version__ = "0.1.0"

__all__ = ["__version__", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    """Import what predicts when it is first used: torch takes seconds."""
    if name == "load":
        from lgd.run.trained import load

        return load
    if name == "evaluate":
        from lgd.inference.evaluate import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
