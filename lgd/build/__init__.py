"""From the configuration to objects: the only package besides `run.py` and `train.py` that sees both."""

from lgd.build.compile import compile_model, compiles
from lgd.build.model import Model, build_model, place_model
from lgd.build.training import (
    build_loop_options,
    build_schedule,
    build_sides,
    build_test_loader,
    build_train_loader,
    load_initial_weights,
    micro_batch_size,
)
from lgd.build.worst_case import find_batch, tries_worst_shape, try_worst_shape

__all__ = [
    "Model",
    "build_loop_options",
    "build_model",
    "build_schedule",
    "build_sides",
    "build_test_loader",
    "build_train_loader",
    "compile_model",
    "compiles",
    "find_batch",
    "load_initial_weights",
    "micro_batch_size",
    "place_model",
    "tries_worst_shape",
    "try_worst_shape",
]
