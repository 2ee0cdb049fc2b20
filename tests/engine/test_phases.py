"""The phases of training on one rank and on two: what is frozen keeps no graph, and the ranks agree."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from lgd.distill.schedule import DistillSchedule
from lgd.engine.loop import LoopOptions, Side, TrainState, _wrap, train
from lgd.engine.optim import LRSchedule
from lgd.engine.progress import Progress
from lgd.ranks.store import find_free_port
from tests.forked import call_ranks
from tests.test_ranks import make_batch, make_model

CPU = torch.device("cpu")
NUM_STEPS = 6
SCHEDULE = DistillSchedule(pre_nondistill=2, post_nondistill=1, pre_freeze=3, max_iter=NUM_STEPS)


WAYS = {
    "as in the paper": ({}, {}),
    "head fixed, then shared": ({}, {"head_fixed": 2, "head_ramp": 2}),
    "slow head": ({"MODEL__DISTILLATOR__HEAD__MODE": "averaged", "MODEL__DISTILLATOR__HEAD__DECAY": 0.6}, {}),
    "half of the images": ({"MODEL__DISTILLATOR__IMAGE_SHARE": 0.5}, {}),
    "SSSD": (
        {"MODEL__DISTILLATOR__LOSS": "jensen_shannon"}, {"weight_steps": (4,), "weight_gamma": 2.0}
    ),
}  # fmt: skip
"""Settings and further arguments of the schedule."""


def make_state(way):
    model = make_model(**WAYS[way][0])
    rate = LRSchedule(0.01, "WarmupMultiStepLR", (NUM_STEPS,), 0.1, 1.0, 0, "constant", NUM_STEPS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    return TrainState(model, [Side("student", optimizer, rate)], Progress(CPU))


def train_on(parts, way="as in the paper", *, state=None, steps=NUM_STEPS):
    """Train through all phases on these parts of four images, one per micro-batch."""
    state = state or make_state(way)
    numbers = range(len(parts) * state.step, len(parts) * NUM_STEPS)
    batches = (make_batch(*parts[number % len(parts)]) for number in numbers)
    options = LoopOptions(
        max_iter=steps, images_per_step=4, log_period=100, accumulate_steps=len(parts), seed=1
    )
    train(
        state, batches, replace(SCHEDULE, **WAYS[way][1]), options,
        device=CPU, report=lambda _: None, evaluate=lambda _: None, save=lambda *_: None,
    )  # fmt: skip
    return state


def tensors_of(state):
    """The model's tensors and the slow head's."""
    saved = state.state_dict()
    return {**saved["model"], **{f"slow.{name}": x for name, x in saved.get("slow_head", {}).items()}}


def run_rank(rank, port, way, path):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(tensors_of(train_on([(rank, rank + 1), (2 + rank, 3 + rank)], way)), path / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.parametrize("way", ["as in the paper", "slow head"])
def test_two_ranks_accumulate_through_all_phases_as_one_does(tmp_path, way):
    call_ranks(run_rank, find_free_port(), way, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    alone = tensors_of(train_on([(0, 2), (2, 4)], way))
    fresh = make_model().state_dict()
    trained = [name for name in fresh if not torch.equal(alone[name], fresh[name])]
    assert any("backbone" in name for name in trained)
    assert any(name.startswith("slow.") for name in alone) == (way == "slow head")
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "as in the paper"])
def test_every_way_goes_on_to_the_bit(tmp_path, way):
    whole, parts = train_on([(0, 2)], way), [(0, 2)]
    half = train_on(parts, way, steps=3)
    torch.save({**half.state_dict(), "step": half.step}, tmp_path / "half.pth")
    saved = torch.load(tmp_path / "half.pth", weights_only=True)
    other = make_state(way)
    other.load_state_dict(saved["step"], saved)
    expected, found = tensors_of(whole), tensors_of(train_on(parts, way, state=other))
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    usual = tensors_of(train_on(parts))
    assert any(not torch.equal(value, expected[name]) for name, value in usual.items())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_keeps_nothing_for_the_backward_pass(frozen):
    model = make_model()
    _wrap(model, list(model.student.backbone_parameters()), frozen, CPU)
    batch = make_batch(0, 2)
    kept = []
    images = model.student.normalize(batch, torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        maps = model.student.backbone(images)
    assert bool(kept) is not frozen
    assert all(x.requires_grad is not frozen for x in (maps.values() if isinstance(maps, dict) else maps))
