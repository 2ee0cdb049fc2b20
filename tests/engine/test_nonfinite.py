"""Steps whose losses are no numbers: left out by all ranks together, or undone back to a checkpoint."""

import copy
import logging

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lgd.distill.schedule import DistillSchedule
from lgd.engine.averaging import WeightAverage
from lgd.engine.loop import LoopOptions, Side, TrainState, train
from lgd.engine.nonfinite import NonFinitePolicy
from lgd.engine.optim import LRSchedule
from lgd.engine.progress import NonFiniteError, Progress
from lgd.ranks.store import find_free_port
from lgd.structures import Batch
from tests.forked import call_ranks
from tests.test_ranks import make_batch, make_model

CPU = torch.device("cpu")
NUM_STEPS = 6
SKIP = NonFinitePolicy("skip")


class Poisoned(nn.Module):
    """A distiller some of whose steps go wrong, each in its way."""

    def __init__(self, model):
        super().__init__()
        self.whole = model
        self.student = model.student
        self.bad = {}
        self.calls = 0

    def begin_step(self, step):
        self.whole.begin_step(step)

    def forward(self, batch, **how):
        way = self.bad.get(batch.skipped)
        if way == "images":
            batch = Batch(**{**vars(batch), "images": batch.images.double() * float("nan")})
        losses = self.whole(batch, **how)
        if way == "loss":
            losses["loss_cls"] = losses["loss_cls"] * float("inf")
        if way == "gradient":  # whose loss is 0
            losses["loss_cls"] = losses["loss_cls"] + sum(p.sum() for p in self.parameters()).mul(0).sqrt()
        return losses


def make_state():
    """A distiller with batch norm in its backbone, and an average."""
    torch.manual_seed(0)
    model = Poisoned(make_model(MODEL__RESNETS__NORM="BN"))
    rate = LRSchedule(0.01, "WarmupMultiStepLR", (NUM_STEPS,), 0.1, 1.0, 4, "linear", NUM_STEPS)
    side = Side("student", torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), rate)
    average = WeightAverage(model.student, decay=0.9, warmup=2.0)
    return TrainState(model, [side], Progress(CPU), average=average)


def batch_of(step, part):
    """Its step is written where the model of these tests reads it."""
    return Batch(**{**vars(make_batch(*part)), "skipped": (str(step),)})


def go_on(state, bad=(), *, part=(0, 4), until=NUM_STEPS, nonfinite=SKIP, **options):
    """Train on, where steps of `bad` go wrong in that way; returns the records."""
    state.model.bad = {(str(step),): way for step, way in dict(bad).items()}
    records = []
    train(
        state,
        (batch_of(step, part) for step in range(state.step, until)),
        DistillSchedule(pre_nondistill=0, post_nondistill=0, pre_freeze=0, max_iter=NUM_STEPS),
        LoopOptions(max_iter=until, images_per_step=4, log_period=1, **options),
        device=CPU, report=records.append, evaluate=lambda _: None, save=lambda *_: None,
        nonfinite=nonfinite,
    )  # fmt: skip
    return records


def tensors_of(state):
    optimizer = state.sides[0].optimizer.state_dict()["state"]
    return {
        **state.model.state_dict(),
        **{f"momentum {key}": each["momentum_buffer"] for key, each in optimizer.items()},
        **{f"average {name}": each for name, each in state.average.tensors.items()},
        "updates": torch.tensor(state.average.num_updates),
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("way", ["images", "loss", "gradient"])
def test_a_step_that_is_left_out_changes_nothing(way, caplog):
    """Neither weights nor running statistics, the loss's normaliser, momentum or the average."""
    state = make_state()
    records = go_on(state, {2: way})
    without = make_state()
    go_on(without, until=2)
    without.step = 3
    go_on(without)
    assert_equal(tensors_of(state), tensors_of(without))
    assert all(torch.isfinite(each).all() for each in tensors_of(state).values())
    assert [record.skipped_steps for record in records] == [0, 0, 1, 1, 1, 1]
    assert [record.total_loss == record.total_loss for record in records] == [True, True, False, *[True] * 3]
    (line,) = [each for each in caplog.messages if "non-finite" in each]
    assert line.startswith("non-finite loss at step 2: ")
    assert line.endswith("; images [0, 1, 2, 3]; left out, 1 in all")
    assert ("loss_cls = " in line) == (way != "gradient")
    assert ("grad_norm = " in line) == (way == "gradient")


def test_as_before_it_ends_the_run():
    with pytest.raises(NonFiniteError, match=r"non-finite loss at step 2: .*images \[0, 1, 2, 3\]\. Lower"):
        go_on(make_state(), {2: "loss"}, nonfinite=NonFinitePolicy())


def test_too_many_in_a_row():
    """Three are borne; those that others stand between are no row."""
    policy = NonFinitePolicy("skip", limit=3)
    state = make_state()
    go_on(state, dict.fromkeys((0, 1, 2, 4, 5), "loss"), nonfinite=policy)
    assert (state.progress.skipped_steps, state.progress.skipped_in_a_row) == (5, 2)
    with pytest.raises(
        NonFiniteError, match=r"at step 4: loss_cls = inf.*; left out before it: 3 such steps"
    ):
        go_on(make_state(), dict.fromkeys((1, 2, 3, 4), "loss"), nonfinite=policy)


def test_a_row_goes_on_after_a_resume():
    state = make_state()
    go_on(state, dict.fromkeys((1, 2), "loss"), until=3)
    progress = Progress(CPU)
    progress.load_state(state.progress.state())
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (2, 2)


def rolling_back(state, saved, limit=10):
    def go_back():
        if not saved:
            return None
        state.load_weights(saved[-1][1])
        return saved[-1][0]

    return NonFinitePolicy("rollback", limit, go_back)


def test_rolled_back(caplog):
    """The weights are the checkpoint's, and the batches since then are not seen again."""
    state, saved = make_state(), []
    go_on(state, until=2)
    saved.append((2, copy.deepcopy(state.state_dict())))
    go_on(state, {4: "images"}, nonfinite=rolling_back(state, saved))
    without = make_state()
    go_on(without, until=2)
    without.step = 5
    go_on(without)
    assert_equal(tensors_of(state), tensors_of(without))
    assert "back to the weights of step 2, 1 in all" in caplog.text


def test_nothing_to_go_back_to():
    state = make_state()
    go_on(state, {2: "images"}, nonfinite=rolling_back(state, []))
    without = make_state()
    go_on(without, {2: "images"})
    assert_equal(tensors_of(state), tensors_of(without))


def test_too_many_rollbacks_to_one_checkpoint():
    """Others between do not help; a new checkpoint does."""
    bad = dict.fromkeys((1, 3, 5), "loss")
    state = make_state()
    with pytest.raises(NonFiniteError, match="at step 5: "):
        go_on(state, bad, nonfinite=rolling_back(state, [], limit=2))
    state = make_state()
    go_on(state, bad, nonfinite=rolling_back(state, [], limit=2), checkpoint_period=4)


def run_rank(rank, port, path):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("lgd").addHandler(handler)
    state = make_state()
    go_on(state, {2: "loss"} if rank else {}, part=(2 * rank, 2 * rank + 2))
    torch.save({"tensors": tensors_of(state), "lines": lines}, path / f"{rank}.pth")
    dist.destroy_process_group()


def test_all_ranks_leave_it_out_together(tmp_path):
    """Though it went wrong on one of them, whose images are named by both."""
    call_ranks(run_rank, find_free_port(), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    trained = {name for name, _ in make_state().model.named_parameters()}
    for name in trained:
        assert torch.equal(first["tensors"][name], second["tensors"][name]), name
    assert first["tensors"]["updates"] == second["tensors"]["updates"] == NUM_STEPS - 1
    for each in (first, second):
        assert [line for line in each["lines"] if "skipped" not in line] == [
            "non-finite loss at step 2: loss_cls = inf, total_loss = inf; images [2, 3]; left out, 1 in all"
        ]
