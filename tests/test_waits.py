"""A step waits for nothing of a CUDA device, as far as tensors without data show it on any machine.

They have a device, a shape and a type: whoever asks one for a value, or for a size that hangs on values, gets
an error, and what crosses from one device to another can be seen. tests/test_cuda.py asks the device itself.
"""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lgd.build import build_model, build_sides
from lgd.config.load import load_config
from lgd.data.worst_case import worst_batch
from lgd.distill.schedule import DistillSchedule
from lgd.engine.loop import LoopOptions, TrainState, train
from lgd.engine.progress import Progress
from tests.training import REPOSITORY

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
RECIPES = {
    "retinanet": "retinanet/r50_2x_ms_lgd",
    "fcos": "fcos/r50_2x_ms_lgd",
    "atss": "atss/r50_1x_ss_lgd",
}


class LeavesDeviceError(Exception):
    """Something was copied from or to the host, or made there."""


class OnDevice(TorchDispatchMode):
    """Raise where an operation takes or gives anything that is not on the device, or indexes with a mask."""

    def __init__(self, device):
        super().__init__()
        self.device = device
        self.num_operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if any(x.device != self.device for x in tensors):
            raise LeavesDeviceError(f"{function}: {[x.device for x in tensors]}")
        if "index" in function.__name__ and any(x.dtype == torch.bool for x in tensors[1:]):
            raise DynamicOutputShapeException(function)
        self.num_operations += 1
        return result


def without_data(mode, value):
    """The same with tensors of which only device, shape and type are left."""
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    if not dataclasses.is_dataclass(value):
        return value
    fields = {x.name: getattr(value, x.name) for x in dataclasses.fields(value)}
    return dataclasses.replace(value, **{name: without_data(mode, x) for name, x in fields.items()})


def read(recipe, *settings):
    names = ["MODEL.WEIGHTS", "", "TRAIN.WINOGRAD", "False", *settings]
    cfg = load_config(REPOSITORY / f"configs/{recipe}.yaml", names)
    batch = worst_batch((320, 448), batch_size=2, num_objects=7, num_classes=cfg.num_classes)
    return cfg, batch


@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_losses_in_mixed_precision_stay_on_the_device(recipe, distill):
    cfg, batch = read(recipe)
    # The autograd engine needs a device; so does `torch.autocast`, which turns this on.
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode() as mode:
            with CUDA:
                model = build_model(cfg)
            batch = without_data(mode, batch).to(CUDA)
            with OnDevice(CUDA) as calls:
                losses = model(batch, distill=distill)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert calls.num_operations > 1000
    assert {(x.device, x.dtype) for x in losses.values()} == {(CUDA, torch.float32)}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_two_steps_of_the_loop_ask_for_no_value(recipe):
    cfg, batch = read(recipe)
    schedule = DistillSchedule(pre_nondistill=1, post_nondistill=0, pre_freeze=1, max_iter=10)
    with FakeTensorMode() as mode:
        model = build_model(cfg)
        state = TrainState(
            model, build_sides(cfg, model, CPU), Progress(CUDA)
        )  # on a CPU it looks for NaN at once
        batch = dataclasses.replace(without_data(mode, batch), image_ids=batch.image_ids)

        def draw():
            yield batch
            yield batch

        options = LoopOptions(
            max_iter=10, images_per_step=2, log_period=0, clip_kind="norm", mixed_precision=True
        )
        with pytest.raises(StopIteration):
            train(
                state,
                draw(),
                schedule,
                options,
                device=CPU,
                report=pytest.fail,
                evaluate=pytest.fail,
                save=pytest.fail,
            )
    assert state.step == 2


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.nonzero(), DynamicOutputShapeException),
        (lambda x: x.repeat_interleave((x[:, 0] > 0).long(), dim=0), DynamicOutputShapeException),
        (lambda x: x.index_put_([x > 0], x.new_zeros(1)), DynamicOutputShapeException),
        (lambda x: x.cpu(), LeavesDeviceError),
        (lambda x: x + torch.tensor(1.0, device=x.device), LeavesDeviceError),
        (lambda x: x[torch.tensor([0, 1])], LeavesDeviceError),
    ],
    ids=["item", "mask", "nonzero", "repeats", "masked write", "to host", "from host", "host index"],
)
def test_what_waits_is_found(wait, error):
    with FakeTensorMode():
        x = torch.empty(2, 3, device=CUDA)
        with pytest.raises(error), OnDevice(CUDA):
            wait(x)
