"""What only a GPU can show; skipped by name where there is none."""

import random

import pytest
import torch

from lgd.build import build_model, build_sides, compile_model
from lgd.config.load import load_config
from lgd.engine.compile import num_graphs
from lgd.memory.worst_batch import worst_batch
from tests.training import REPOSITORY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")
RECIPES = {
    "retinanet": "retinanet/r50_2x_ms_lgd",
    "fcos": "fcos/r50_2x_ms_lgd",
    "atss": "atss/r50_1x_ss_lgd",
}


def make(recipe, compiled=False):
    settings = ["MODEL.WEIGHTS", "", "TRAIN.COMPILE", str(compiled)]
    cfg = load_config(REPOSITORY / f"configs/{recipe}.yaml", settings)
    torch.manual_seed(0)
    model = build_model(cfg).to(CUDA).to(memory_format=torch.channels_last)
    compile_model(cfg, model, CUDA)
    batch = worst_batch((320, 448), batch_size=2, num_objects=7, num_classes=cfg.num_classes).to(CUDA)
    return model, build_sides(cfg, model, CUDA), batch


def losses_of(model, batch, mixed_precision):
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed_precision):
        return model(batch, distill=True)


@pytest.mark.parametrize("mixed_precision", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_twenty_steps_make_no_synchronising_call(recipe, mixed_precision, compiled):
    torch._dynamo.reset()
    model, sides, batch = make(recipe, compiled)

    def take_step():
        torch.stack(list(losses_of(model, batch, mixed_precision).values())).sum().backward()
        for side in sides:
            side.optimizer.step()
            side.optimizer.zero_grad(set_to_none=True)

    take_step()  # makes the optimizers' states and the libraries' handles
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            take_step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_losses_in_bfloat16_are_within_a_hundredth_of_single_precision(recipe):
    model, _, batch = make(recipe)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = []
    for mixed_precision in (False, True):
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        with torch.no_grad():
            losses = losses_of(model, batch, mixed_precision)
        found.append({name: float(loss) for name, loss in losses.items()})
    single, half = found
    assert half == pytest.approx(single, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_compiled_losses_are_those_of_eager_code(recipe):
    torch._dynamo.reset()
    (eager, _, batch), (compiled, _, _) = make(recipe), make(recipe, compiled=True)
    expected, found = (
        {name: float(x) for name, x in losses_of(m, batch, False).items()} for m in (eager, compiled)
    )
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_five_hundred_steps_compile_once_for_each_canvas():
    torch._dynamo.reset()
    model, _, _ = make(RECIPES["retinanet"], compiled=True)
    draw, seen = random.Random(0), set()
    for _ in range(500):
        canvas, num_objects = draw.choice([(320, 448), (448, 320)]), draw.choice([1, 2, 7, 15, 16, 40, 93])
        batch = worst_batch(canvas, batch_size=2, num_objects=num_objects, num_classes=80).to(CUDA)
        before = num_graphs()
        torch.stack(list(losses_of(model, batch, True).values())).sum().backward()
        assert num_graphs() - before == (0 if canvas in seen else 5)
        seen.add(canvas)
