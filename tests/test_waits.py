"""What a step asks of a CUDA device, as far as any machine can show it; tests/test_cuda.py asks the device.

Tensors without data have a device, a shape and a type: whoever asks one for a value, or for a size that hangs
on values, gets an error, and what crosses from one device to another can be seen. Where sizes do hang on
values, as in two stages, it can still be seen that every new tensor is told where to lie.
"""

import dataclasses
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lgd.build import build_model, build_sides
from lgd.config.load import load_config
from lgd.distill.schedule import DistillSchedule
from lgd.engine.loop import LoopOptions, TrainState, train
from lgd.engine.progress import Progress
from lgd.inference.detect import detect
from lgd.memory.worst_batch import worst_batch
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


SHALLOW = {
    "r50": "DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64",
    "x101_dcn": "DEPTH 50",
}
"""Fewer of the same layers, by the backbone that a recipe is named after."""


def read(recipe):
    names = ["MODEL.WEIGHTS", "", "TRAIN.WINOGRAD", "False"]
    for backbone, fewer in SHALLOW.items():
        if f"/{backbone}_" in recipe:
            names += f"MODEL.RESNETS.{fewer}".split()
    cfg = load_config(REPOSITORY / f"configs/{recipe}.yaml", names)
    batch = worst_batch((320, 448), batch_size=2, num_objects=7, num_classes=cfg.num_classes)
    return cfg, batch


@pytest.mark.parametrize(
    ("recipe", "distill"),
    [
        *((recipe, distill) for recipe in RECIPES.values() for distill in (False, True)),
        ("retinanet/swin_t_3x_ms_lgd", True),
        ("retinanet/x101_dcn_2x_ms_lgd", True),
    ],
)
def test_losses_in_mixed_precision_stay_on_the_device(recipe, distill, monkeypatch):
    cfg, batch = read(recipe)
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # looks at what it drew
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


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, id=name, marks=pytest.mark.slow if name == "fcos" else [])
        for name, recipe in RECIPES.items()  # FCOS is ATSS but for its assignment
    ],
)
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


FACTORIES = {
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones,
    torch.rand, torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros,
}  # fmt: skip


class Placed(TorchFunctionMode):
    """Collect where the library makes a tensor without saying on which device."""

    def __init__(self):
        super().__init__()
        self.homeless = set()
        self.num_made = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in FACTORIES:
            self.num_made += 1
            caller = sys._getframe(1)
            if kwargs.get("device") is None and caller.f_globals["__name__"].startswith("lgd."):
                self.homeless.add(f"{caller.f_code.co_filename}:{caller.f_lineno}")
        return function(*args, **kwargs)


@pytest.mark.parametrize(
    "recipe",
    [
        "retinanet/r50_1x_ss_lgd",
        "fcos/r50_2x_ms_lgd",
        "atss/r101_dcn_2x_ms_lgd",
        "poto/r50_3x_ms_lgd",
        "mask_rcnn/swin_t_3x_ms_lgd",
        pytest.param("faster_rcnn/r50_crowdhuman_lgd", marks=pytest.mark.slow),
    ],
)
def test_every_tensor_is_made_on_a_device_that_is_named(recipe):
    few = "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.RPN.POST_NMS_TOPK_TEST 9 TEST.DETECTIONS_PER_IMAGE 5"
    few += " MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16"
    few += " MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.SWINT.EMBED_DIM 24 MODEL.FPN.OUT_CHANNELS 32"
    few += " MODEL.ROI_BOX_HEAD.FC_DIM 32"
    cfg = load_config(REPOSITORY / f"configs/{recipe}.yaml", ["MODEL.WEIGHTS", "", *few.split()])
    model = build_model(cfg)
    batch = worst_batch(
        (64, 96), batch_size=2, num_objects=3, num_classes=cfg.num_classes, mask_edges=(12, 2)
    )
    with Placed() as made:
        torch.stack(list(model(batch, distill=True).values())).sum().backward()
        model.eval()
        categories = range(cfg.num_classes)
        with torch.no_grad():
            detect(model.student, [batch], categories, device=CPU, teach=model.teach)
    assert made.num_made > 5
    assert made.homeless == set()
