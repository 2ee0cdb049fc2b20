"""Whether a checkpoint holds what a run goes on from: its seal says that it is whole, not what is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lgd.data.deep import is_range_setting
from lgd.engine.checkpoint import Checkpoint, CheckpointError


def require_sound(checkpoint: Checkpoint) -> None:
    """Make sure that every part is there and of its kind, before any is used.

    Raises:
        CheckpointError: some are not: another version wrote it, or somebody changed it.
    """
    saved = checkpoint.state
    wrong = [name for name, is_right in _PARTS.items() if not is_right(saved.get(name))]
    if saved.get("step") != checkpoint.step:
        wrong.append("step")
    if wrong:
        raise CheckpointError(
            f"{checkpoint.path} is not as this version writes checkpoints ({', '.join(wrong)}); go on with "
            f"the version that wrote it, or start anew from MODEL.WEIGHTS {checkpoint.path}"
        )


def _is_table(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(
        type(key) is str and is_right(each) for key, each in value.items()
    )


def _is_list(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(is_right, value))


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) is float or _is_whole(value)


def _has(value: Any, parts: Mapping[str, Callable[[Any], bool]]) -> bool:
    return isinstance(value, Mapping) and all(is_right(value.get(name)) for name, is_right in parts.items())


def _is_optimizer(value: Any) -> bool:
    return _has(value, {"state": lambda each: isinstance(each, Mapping), "param_groups": _are_groups})


def _are_groups(value: Any) -> bool:
    has_parameters = {"params": lambda each: _is_list(each, _is_whole), "lr": _is_number}
    return _is_list(value, lambda group: _has(group, has_parameters))


def _is_progress(value: Any) -> bool:
    parts = {
        "names": lambda each: _is_list(each, _is_text),
        "sums": lambda each: _is_list(each, _is_number),
        "count": _is_count,
        "skipped_images": _is_count,
    }
    later = {
        "skipped_steps": lambda each: each is None or _is_count(each),
        "skipped_in_a_row": lambda each: each is None or _is_count(each),
        "recent_losses": lambda each: each is None or _is_list(each, _is_number),
    }
    return _has(value, parts | later) and len(value["sums"]) in (0, len(value["names"]))


def _is_best(value: Any, count: str = "step") -> bool:
    # One metric, whichever TEST.BEST_METRIC names, and the step (or another count).
    return value == {} or (_is_table(value, _is_number) and len(value) == 2 and _is_whole(value.get(count)))


def _is_average(value: Any) -> bool:
    parts = {
        "tensors": lambda each: _is_table(each, lambda tensor: isinstance(tensor, Tensor)),
        "num_updates": _is_count,
    }
    return value is None or _has(value, parts)


def _are_classes(value: Any, ids: str = "category_ids", names: str = "names") -> bool:
    parts = {names: lambda each: _is_list(each, _is_text), ids: lambda each: _is_list(each, _is_whole)}
    return _has(value, parts) and len(value[names]) == len(value[ids])


def _is_config(value: Any) -> bool:
    # What is used of it; the rest is compared and told. INPUT.RANGE came later than the first versions.
    parts = {"SOLVER.REFERENCE_WORLD_SIZE": _is_count, "SOLVER.IMS_PER_BATCH": _is_count}
    return (
        _is_table(value, lambda each: True)
        and _has(value, parts)
        and is_range_setting(value.get("INPUT.RANGE", "auto"))
    )


def _is_share(value: Any) -> bool:
    names = ("world_size", "accumulate_steps", "asked_steps")
    return value is None or (_is_table(value, _is_count) and all(value.get(name, 0) > 0 for name in names))


def _is_record(value: Any) -> bool:
    parts = {
        "name": _is_text,
        "images": _is_count,
        "objects": _is_count,
        "columns": lambda each: _is_list(each, _is_text),
        "content": lambda each: _is_table(each, _is_text),
    }
    return _has(value, parts) and _are_classes(value, names="class_names")


def _are_records(value: Any) -> bool:
    parts = {use: lambda each: _is_list(each, _is_record) for use in ("train", "test")}
    return value is None or (_has(value, parts) and len(value["train"]) > 0)


_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "model": lambda value: _is_table(value, lambda each: isinstance(each, Tensor)),
    "optimizers": lambda value: _is_table(value, _is_optimizer),
    "progress": _is_progress,
    "best": _is_best,
    "patience": lambda value: value is None or _is_best(value, "evaluations"),
    "ema": _is_average,
    "config": _is_config,
    "classes": _are_classes,
    "seed": _is_count,
    "share": _is_share,
    "data": _are_records,
    "data_changes": lambda value: value is None or _is_list(value, lambda each: isinstance(each, Mapping)),
    "slow_head": lambda value: value is None or _is_table(value, lambda each: isinstance(each, Tensor)),
    "unwritten_metrics": lambda value: value is None or _is_list(value, _is_text),
}
"""What each part must be. Those that may be None were not there before the versions that write them."""
