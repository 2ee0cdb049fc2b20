"""The moving average of weights against numbers made by hand."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lgd.distill.schedule import DistillSchedule
from lgd.engine.averaging import WeightAverage, weights_by_model
from lgd.engine.loop import LoopOptions, Side, TrainState, train
from lgd.engine.optim import LRSchedule
from lgd.engine.progress import Progress
from lgd.ranks.store import find_free_port
from tests.forked import call_ranks
from tests.test_ranks import make_batch, make_model

CPU = torch.device("cpu")


def make_detector():
    """A weight, a batch norm and a count."""
    detector = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        detector[0].weight.fill_(1.0)
    return detector


def set_to(detector, weight, mean, count):
    with torch.no_grad():
        detector[0].weight.fill_(weight)
        detector[1].running_mean.fill_(mean)
        detector[1].num_batches_tracked.fill_(count)


def test_by_hand():
    """Three steps: weights and running statistics are averaged, the count is taken."""
    detector = make_detector()
    average = WeightAverage(detector, decay=0.8, warmup=2.0)
    weight, mean = 1.0, 0.0
    for step, (new_weight, new_mean) in enumerate([(2.0, 1.0), (4.0, -1.0), (0.5, 3.0)], start=1):
        set_to(detector, new_weight, new_mean, 7 * step)
        average.follow()
        decay = 0.8 * (1 - math.exp(-step / 2))
        weight, mean = decay * weight + (1 - decay) * new_weight, decay * mean + (1 - decay) * new_mean
    assert average.tensors["0.weight"].item() == pytest.approx(weight, rel=1e-6)
    assert average.tensors["1.running_mean"].item() == pytest.approx(mean, rel=1e-6)
    assert average.tensors["1.num_batches_tracked"].item() == 21
    assert average.tensors["1.weight"].item() == 1.0
    assert detector[0].weight.item() == 0.5


def test_goes_on_from_a_checkpoint_to_the_bit():
    values = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).tolist()
    detector = make_detector()
    average = WeightAverage(detector, decay=0.9, warmup=3.0)
    for number, (weight, mean, _) in enumerate(values):
        if number == 3:
            saved = {"num_updates": average.num_updates}
            saved["tensors"] = {name: each.clone() for name, each in average.tensors.items()}
            average = WeightAverage(detector, decay=0.9, warmup=3.0)
            average.load_state_dict(saved)
        set_to(detector, weight, mean, number)
        average.follow()
    detector = make_detector()
    straight = WeightAverage(detector, decay=0.9, warmup=3.0)
    for number, (weight, mean, _) in enumerate(values):
        set_to(detector, weight, mean, number)
        straight.follow()
    assert average.num_updates == straight.num_updates == 6
    assert all(torch.equal(each, straight.tensors[name]) for name, each in average.tensors.items())


def test_a_checkpoint_of_another_model():
    average = WeightAverage(make_detector(), decay=0.9, warmup=0.0)
    saved = average.state_dict()
    with pytest.raises(RuntimeError, match=r"the average of 0\.weight has another shape"):
        average.load_state_dict({**saved, "tensors": saved["tensors"] | {"0.weight": torch.ones(2, 2)}})
    with pytest.raises(KeyError):
        average.load_state_dict({"tensors": {}, "num_updates": 0})


def test_beginning_anew():
    detector = make_detector()
    average = WeightAverage(detector, decay=0.9, warmup=0.0)
    set_to(detector, 5.0, 1.0, 1)
    average.follow()
    average.begin_anew()
    assert average.num_updates == 0
    assert average.tensors["0.weight"].item() == 5.0


def test_the_average_takes_the_students_place_in_a_whole_model():
    whole = {"student.w": torch.zeros(1), "teacher.w": torch.ones(1)}
    assert list(weights_by_model(whole, None)) == ["student"]
    models = weights_by_model(whole, {"w": torch.full((1,), 7.0)})
    assert {name: each["student.w"].item() for name, each in models.items()} == {"student": 0.0, "ema": 7.0}
    assert models["ema"]["teacher.w"].item() == 1.0


def train_on(parts):
    """Four steps on these parts of four images, one per micro-batch; the average of their weights."""
    model = make_model()
    rate = LRSchedule(0.01, "WarmupMultiStepLR", (4,), 0.1, 1.0, 0, "constant", 4)
    side = Side("student", torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), rate)
    average = WeightAverage(model.student, decay=0.9, warmup=2.0)
    train(
        TrainState(model, [side], Progress(CPU), average=average),
        (make_batch(*part) for _ in range(4) for part in parts),
        DistillSchedule(pre_nondistill=0, post_nondistill=0, pre_freeze=0, max_iter=4),
        LoopOptions(max_iter=4, images_per_step=4, log_period=100, accumulate_steps=len(parts)),
        device=CPU, report=lambda _: None, evaluate=lambda _: None, save=lambda *_: None,
    )  # fmt: skip
    return average.tensors


def run_rank(rank, port, path):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(train_on([(2 * rank, 2 * rank + 2)]), path / f"{rank}.pth")
    dist.destroy_process_group()


def test_two_ranks_average_as_one_does(tmp_path):
    call_ranks(run_rank, find_free_port(), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    alone, fresh = train_on([(0, 4)]), make_model().student.state_dict()
    assert any(not torch.equal(x, fresh[name]) for name, x in alone.items())
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-7, atol=1e-9, msg=name)
