import pytest
import torch

from lgd.engine.progress import NonFiniteError, Progress

CPU = torch.device("cpu")


def losses(cls, box):
    return {"loss_cls": torch.tensor(cls), "loss_box_reg": torch.tensor(box)}


def test_averages_start_anew_after_each_period():
    progress = Progress(CPU)
    progress.add(0, losses(1.0, 4.0), [1], 0)
    progress.add(1, losses(3.0, 2.0), [2], 2)
    assert progress.averages() == {"loss_cls": 2.0, "loss_box_reg": 3.0}
    assert progress.skipped_images == 2
    progress.add(2, losses(5.0, 7.0), [3], 0)
    assert progress.averages() == {"loss_cls": 5.0, "loss_box_reg": 7.0}
    assert progress.skipped_images == 2


def test_an_unfinished_period_goes_on_bit_by_bit():
    torch.manual_seed(0)
    values = torch.rand(7, 2).tolist()

    def run(interrupt_at):
        progress = Progress(CPU)
        for step, (cls, box) in enumerate(values):
            progress.add(step, losses(cls, box), [step], 0)
            if step in (2, 4):  # checkpoints, in both runs
                state = progress.state()
                if step == interrupt_at:
                    progress = Progress(CPU)
                    progress.load_state(state)
        return progress.averages()

    assert run(interrupt_at=None) == run(interrupt_at=2) == run(interrupt_at=4)


def test_non_finite_loss_names_loss_step_and_images():
    progress = Progress(CPU)
    progress.add(0, losses(1.0, 1.0), [1], 0)
    with pytest.raises(NonFiniteError, match=r"step 1: loss_box_reg = nan; images \[12, 7\].*BASE_LR"):
        progress.add(1, losses(1.0, float("nan")), [12, 7], 0)


def test_on_a_device_the_bad_step_is_found_at_the_reduction():
    progress = Progress(torch.device("cpu"))
    progress.device = torch.device("meta")  # as on CUDA: nothing is read while adding
    progress.add(0, losses(1.0, 1.0), [1], 0)
    progress.add(1, losses(float("inf"), 1.0), [2], 0)
    progress.add(2, losses(float("nan"), float("nan")), [3], 0)
    progress.device = CPU
    with pytest.raises(NonFiniteError, match=r"step 1: loss_cls = inf; images \[2\]"):
        progress.averages()
