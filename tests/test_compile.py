"""Compiled steps give the numbers of eager ones, and few graphs serve many batches.

Here mostly with the compiler's front half (`aot_eager`): graphs, guards, shapes and gradients are the real
ones, and torch's own kernels run them, which need not be built.
"""

import dataclasses
import itertools
import logging
import random
import shutil
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from lgd.bench.machine import count_flops
from lgd.build.model import compile_model, compiles
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.distill.distiller import Adapter, LabelGuidedDistiller
from lgd.distill.schedule import Phase
from lgd.distill.teacher import DynamicTeacher
from lgd.engine.compile import CompileWatch, compile_parts, explaining_errors, num_graphs
from lgd.engine.loop import _wrap
from lgd.layers.fpn import FPN, TopBlockP6P7
from lgd.ranks.store import find_free_port
from tests.detectors.small import DETECTORS, make_batch, make_faster_rcnn, make_retinanet
from tests.forked import call_ranks
from tests.training import REPOSITORY

CANVASES = ((64, 96), (96, 64), (64, 128), (96, 96))
NUM_OBJECTS = (0, 1, 2, 7, 15, 16, 40, 93)
PHASE = Phase(freeze_backbone=False, distill=True)
CPU = torch.device("cpu")


class Stages(nn.Module):
    """A backbone of three convolutions: what a compiler does to it is soon done."""

    channels, strides = {"res3": 8, "res4": 8, "res5": 8}, {"res3": 8, "res4": 16, "res5": 32}

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(width, 8, 3, padding=1) for width in (3, 8, 8))

    def forward(self, x):
        maps = {}
        for name, factor, conv in zip(self.channels, (8, 2, 2), self.stages, strict=True):
            maps[name] = x = F.relu(conv(F.avg_pool2d(x, factor)))
        return maps


def make_distiller(make_detector, dtype=torch.float64, **teacher):
    student = make_detector()
    if make_detector is not make_faster_rcnn:
        student.backbone = Stages()
        top_block = TopBlockP6P7(8, 16, "res5")
        student.neck = FPN(
            in_channels=Stages.channels, in_strides=Stages.strides, out_channels=16, top_block=top_block
        )
    teacher = DynamicTeacher(channels=16, num_classes=3, **{"add_context_box": True, **teacher})
    return LabelGuidedDistiller(
        student=student, teacher=teacher, adapter=Adapter(16), head_once=True
    ).to(dtype)  # fmt: skip


def make_pair(make_detector, backend="aot_eager", **options):
    """The same distiller twice: eager and compiled."""
    eager, compiled = (make_distiller(make_detector, **options) for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    compile_parts(compiled, backend=backend)
    return eager, compiled


def take_step(model, batch, distill=True, **phase):
    """Losses and gradients; random draws are the same every time."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    losses = model(batch, distill=distill, **phase)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def on_canvas(batch):
    """Say that the images' own canvas is a part of the one that they lie on."""
    height, width = batch.images.shape[-2:]
    return dataclasses.replace(batch, canvas=torch.tensor([height - 4, width - 6]))


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos", "atss", "poto", "faster_rcnn"])
def test_losses_and_gradients_are_those_of_eager_code(name):
    eager, compiled = make_pair(DETECTORS[name])
    for num_objects in ([2, 1], [0, 20]):
        batch = on_canvas(make_batch(num_objects))
        expected, found = take_step(eager, batch), take_step(compiled, batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert list(compiled.state_dict()) == list(eager.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_generated_code_gives_the_numbers_of_eager_code(name):
    eager, compiled = make_pair(DETECTORS[name], backend="inductor")
    for num_objects in ([2, 1], [40, 1]):
        batch = make_batch(num_objects)
        expected, found = take_step(eager, batch), take_step(compiled, batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    before = num_graphs()
    for num_objects in ([0, 0], [1, 0], [16, 7], [93, 15]):
        take_step(compiled, make_batch(num_objects))
    assert num_graphs() == before


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("distill", [False, True])
def test_every_phase(frozen, distill):
    eager, compiled = make_pair(make_retinanet, detach_appearance_embed=True)
    for model in (eager, compiled):
        for parameter in model.student.backbone_parameters():
            parameter.requires_grad_(not frozen)
    batch = make_batch([2, 1])
    expected, found = take_step(eager, batch, distill), take_step(compiled, batch, distill)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert any("backbone" in name for name in found[1]) is not frozen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_every_share_of_the_head(name):
    eager, compiled = make_pair(DETECTORS[name])
    batch = make_batch([2, 1])
    for share in (0.0, 0.25, 1.0):
        expected, found = (take_step(model, batch, head_share=share) for model in (eager, compiled))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    before = num_graphs()
    take_step(compiled, batch, head_share=0.5)
    assert num_graphs() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "teacher",
    [
        {"checkpoint": True},
        {"add_context_box": False, "interact_pattern": "labelGuided"},
        {"interact_pattern": "student_fill"},
        {"interact_pattern": "teacher_fill"},
    ],
    ids=str,
)
def test_every_teacher(teacher):
    eager, compiled = make_pair(make_retinanet, **teacher)
    for num_objects in ([1], [40, 1]):
        batch = make_batch(num_objects)
        expected, found = take_step(eager, batch), take_step(compiled, batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def some_steps(num_steps, num_canvases):
    """Canvases, the last of which appear late, and numbers of objects, drawn at random."""
    draw = random.Random(0)
    for step in range(num_steps):
        canvas = draw.choice(CANVASES[: min(2 + step // 10, num_canvases)])
        yield canvas, [draw.choice(NUM_OBJECTS) for _ in range(2)]


def every_step(num_canvases):
    """Every number of objects beside every other on each canvas, in an order drawn at random."""
    pairs = itertools.combinations_with_replacement(NUM_OBJECTS, 2)
    steps = [*itertools.product(CANVASES[:num_canvases], pairs)]
    random.Random(0).shuffle(steps)
    return steps


@pytest.mark.parametrize(
    ("make_steps", "num_canvases", "backend", "dtype"),
    [
        (partial(some_steps, 8), 2, "eager", torch.float64),
        pytest.param(every_step, 4, "aot_eager", torch.float32, marks=pytest.mark.slow),
        # Guards of generated code's own would show on any canvas.
        pytest.param(partial(some_steps, 15), 2, "inductor", torch.float32, marks=pytest.mark.slow),
    ],
    ids=["eager", "aot_eager", "inductor"],
)
def test_a_part_is_compiled_once_for_each_canvas(make_steps, num_canvases, backend, dtype):
    """Whatever the number of objects, one and none among them; in float64 with the numbers of eager code."""
    eager, model = make_pair(make_retinanet, backend, dtype=dtype)
    begin, seen, num_parts = num_graphs(), set(), 5
    for canvas, num_objects in make_steps(num_canvases):
        height, width = canvas
        batch = on_canvas(make_batch(num_objects, height=height, width=width, dtype=dtype))
        eager.load_state_dict(model.state_dict())
        before = num_graphs()
        found = take_step(model, batch)
        assert num_graphs() - before == (0 if canvas in seen else num_parts)
        if dtype is torch.float64:
            torch.testing.assert_close(found, take_step(eager, batch), rtol=1e-9, atol=1e-11)
        seen.add(canvas)
    assert num_graphs() - begin == num_parts * len(seen)
    assert len(seen) == num_canvases


def run_rank(rank, port, path):
    """Save the ranks' averaged gradients of eager and of compiled code."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = []
    for model in make_pair(make_retinanet):
        wrapped = _wrap(model, list(model.student.backbone_parameters()), frozen=False, device=CPU)
        for num_objects in ([2, 1], [1, 3]):
            losses = wrapped(make_batch([num_objects[rank]]), distill=True)
            model.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    torch.save(found, path / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_average_the_gradients_of_compiled_code(tmp_path):
    call_ranks(run_rank, find_free_port(), tmp_path)
    (eager, compiled), others = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(others[1], compiled, rtol=0, atol=0)


def test_evaluation_stays_eager():
    model, batch = make_distiller(make_retinanet), make_batch([1])
    compile_parts(model, backend="aot_eager")
    before = num_graphs()
    with torch.no_grad():
        model.eval()(batch, distill=True)
    assert num_graphs() == before


class Doubler(nn.Module):
    """Something small to compile."""

    static_parts = ("double",)

    def double(self, x):
        return 2 * x

    def forward(self, x):
        return self.double(x).sum()


def test_what_compiles_is_said(caplog):
    model, watch, batch = Doubler(), CompileWatch(True), make_batch([1])
    compile_parts(model, backend="eager")
    caplog.set_level(logging.INFO)
    for size in (2, 2, 3):
        with watch.step(batch, PHASE):
            model(torch.ones(size))
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == "compiling for canvas 64 x 96 ..."
    assert second.startswith("compiled 1 graph for canvas 64 x 96: ")
    assert third.startswith("compiled 1 graph again for canvas 64 x 96: ")
    assert caplog.records[2].levelno == logging.WARNING


@explaining_errors()
def call(model, *sizes):
    for size in sizes:
        model(torch.ones(size))


def test_too_many_canvases_end_the_run():
    model = Doubler()
    compile_parts(model, backend="eager")
    with (
        torch._dynamo.config.patch(recompile_limit=2),
        pytest.raises(ConfigError, match=r"more canvases than are kept .*TRAIN\.STATIC_CANVASES True"),
    ):
        call(model, 2, 3, 4, 5)


class Asker(Doubler):
    """Its part asks for a value."""

    def double(self, x):
        return 2 * x if x.sum().item() > 0 else x


def test_what_cannot_be_compiled_ends_the_run():
    model = Asker()
    compile_parts(model, backend="eager")
    with pytest.raises(ConfigError, match=r"could not be compiled \(.*\); set TRAIN\.COMPILE False"):
        call(model, 3)


def test_arithmetic_is_counted_as_it_is_written():
    linear = nn.Linear(4, 5)
    linear.static_parts = ("forward",)
    compile_parts(linear, backend="eager")
    before = num_graphs()
    assert count_flops(lambda: linear(torch.ones(3, 4))) == 2 * 3 * 4 * 5
    assert num_graphs() == before


def test_where_steps_are_compiled(monkeypatch):
    recipe = REPOSITORY / "configs/retinanet/r50_2x_ms_lgd.yaml"
    asked, automatic = load_config(recipe, ["TRAIN.COMPILE", "True"]), load_config(recipe, [])
    assert compiles(asked, CPU)
    assert not compiles(automatic, CPU)
    assert compiles(automatic, torch.device("cuda"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compile_model(automatic, Doubler(), CPU)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler .*set TRAIN.COMPILE False"):
        compile_model(asked, Doubler(), CPU)
