"""From the configuration to objects: the only room that sees both."""

from lgd.build.model import Model, build_model, compile_model, compiles, place_model
from lgd.build.training import (
    build_average,
    build_loop_options,
    build_schedule,
    build_sides,
    build_test_loader,
    build_train_loader,
    load_initial_weights,
    micro_batch_size,
    require_scorable,
)

__all__ = [
    "Model",
    "build_average",
    "build_loop_options",
    "build_model",
    "build_schedule",
    "build_sides",
    "build_test_loader",
    "build_train_loader",
    "compile_model",
    "compiles",
    "load_initial_weights",
    "micro_batch_size",
    "place_model",
    "require_scorable",
]
