"""The phases of training on one rank and on two: what is frozen keeps no graph, and the ranks agree."""

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from lgd.distill.schedule import DistillSchedule
from lgd.engine.loop import LoopOptions, Side, TrainState, _wrap, train
from lgd.engine.optim import LRSchedule
from lgd.engine.progress import Progress
from tests.test_ranks import free_port, make_batch, make_model

CPU = torch.device("cpu")
NUM_STEPS = 6
SCHEDULE = DistillSchedule(pre_nondistill=2, post_nondistill=1, pre_freeze=3, max_iter=NUM_STEPS)


def train_on(parts):
    """Train through all phases on these parts of four images, one per micro-batch."""
    model = make_model()
    rate = LRSchedule(0.01, "WarmupMultiStepLR", (NUM_STEPS,), 0.1, 1.0, 0, "constant", NUM_STEPS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    state = TrainState(model, [Side("student", optimizer, rate)], Progress(CPU))
    batches = (make_batch(*parts[number % len(parts)]) for number in range(len(parts) * NUM_STEPS))
    options = LoopOptions(
        max_iter=NUM_STEPS, images_per_step=4, log_period=100, accumulate_steps=len(parts), seed=1
    )
    train(
        state, batches, SCHEDULE, options,
        device=CPU, report=lambda _: None, evaluate=lambda _: None, save=lambda *_: None,
    )  # fmt: skip
    return model.state_dict()


def run_rank(rank, port, path):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(train_on([(rank, rank + 1), (2 + rank, 3 + rank)]), path / f"{rank}.pth")
    dist.destroy_process_group()


def test_two_ranks_accumulate_through_all_phases_as_one_does(tmp_path):
    multiprocessing.spawn(run_rank, (free_port(), tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    alone = train_on([(0, 2), (2, 4)])
    fresh = make_model().state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in alone.items() if "backbone" in name)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-7, atol=1e-9, msg=name)


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
