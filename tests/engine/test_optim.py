import math

import pytest
import torch
from torch import nn

from lgd.engine.optim import LRSchedule, build_optimizer, clip_gradients, load_optimizer, set_lr


def schedule(**changes):
    values = {
        "base_lr": 0.01, "kind": "WarmupMultiStepLR", "steps": (60, 80), "gamma": 0.1,
        "warmup_factor": 0.001, "warmup_iters": 10, "warmup_method": "linear", "max_iter": 100,
    }  # fmt: skip
    return LRSchedule(**{**values, **changes})


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1e-5), (5, 0.01 * (0.0005 + 0.5)), (10, 0.01), (59, 0.01), (60, 0.001), (79, 0.001), (80, 0.0001)],
)
def test_multi_step_schedule(step, expected):
    assert schedule().at(step) == pytest.approx(expected, rel=1e-12)


def test_constant_warmup_and_no_warmup():
    assert schedule(warmup_method="constant").at(9) == pytest.approx(1e-5)
    assert schedule(warmup_iters=0).at(0) == 0.01


def test_cosine_schedule():
    cosine = schedule(kind="WarmupCosineLR", warmup_iters=0)
    assert cosine.at(0) == 0.01
    assert cosine.at(50) == pytest.approx(0.005)
    assert cosine.at(25) == pytest.approx(0.005 * (1 + math.cos(math.pi / 4)))
    assert cosine.at(100) == pytest.approx(0.0, abs=1e-12)


def parameters_with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


def test_clip_by_value_limits_each_element_and_reports_the_norm_before():
    parameters = parameters_with_gradients([3.0, -0.5], [-4.0])
    norm = clip_gradients(parameters, kind="value", limit=1.0)
    assert [p.grad.tolist() for p in parameters] == [[1.0, -0.5], [-1.0]]
    assert norm.item() == pytest.approx(math.sqrt(9 + 0.25 + 16))


def test_clip_by_norm_scales_each_parameter_that_is_over():
    parameters = parameters_with_gradients([3.0, 4.0], [0.3, 0.4])
    clip_gradients(parameters, kind="norm", limit=1.0)
    assert parameters[0].grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)
    assert parameters[1].grad.tolist() == pytest.approx([0.3, 0.4])


def test_no_clipping_and_parameters_without_gradient():
    parameters = [*parameters_with_gradients([3.0]), nn.Parameter(torch.zeros(2))]
    assert clip_gradients(parameters, kind="none", limit=1.0).item() == 3.0
    assert parameters[0].grad.tolist() == [3.0]
    assert clip_gradients(parameters[1:], kind="value", limit=1.0).item() == 0.0


def test_optimizers_have_the_documented_settings():
    parameter = nn.Parameter(torch.ones(1))
    sgd = build_optimizer([parameter], kind="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.9, 1e-4)
    adamw = build_optimizer([parameter], kind="ADAMW", lr=0.1, momentum=0.9, weight_decay=0.05)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.9, 0.999)
    set_lr(adamw, 0.5)
    assert adamw.param_groups[0]["lr"] == 0.5


def test_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match=r"'LION'.*SGD, ADAMW"):
        build_optimizer([nn.Parameter(torch.ones(1))], kind="LION", lr=1, momentum=0, weight_decay=0)


@pytest.mark.parametrize("kind", ["SGD", "ADAMW"])
def test_slower_parameters_have_their_factor_in_every_step(kind):
    options = {"kind": kind, "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    fast, slow = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([fast], slower=[slow], **options)
    for lr in (0.2, 0.1):
        set_lr(optimizer, lr, 0.1)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, 0.1 * lr])
    fast.grad, slow.grad = torch.ones(2), torch.ones(3)
    optimizer.step()
    assert (1 - slow[0]).item() == pytest.approx(0.1 * (1 - fast[0]).item(), rel=1e-4)


def test_a_factor_that_was_changed_is_the_one_that_counts_after_resuming():
    def build():
        parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
        options = {"kind": "ADAMW", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
        return build_optimizer(parameters[:1], slower=parameters[1:], **options)

    saved, resumed = build(), build()
    set_lr(saved, 1.0, 0.1)
    resumed.load_state_dict(saved.state_dict())
    set_lr(resumed, 1.0, 0.3)
    assert [group["lr"] for group in resumed.param_groups] == [1.0, 0.3]


@pytest.mark.parametrize("fused", [False, True])
def test_a_state_in_another_memory_layout_goes_on_the_same(fused):
    def train(layout_after_one_step):
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator))
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        settings = {"kind": "ADAMW", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "fused": fused}
        optimizer = build_optimizer([weight], **settings)
        for step in range(3):
            slope = torch.randn(4, 3, 3, 3, generator=generator)
            weight.grad = slope.contiguous(memory_format=torch.channels_last)
            optimizer.step()
            if step == 0:
                state = optimizer.state_dict()
                for name in ("exp_avg", "exp_avg_sq"):
                    state["state"][0][name] = state["state"][0][name].contiguous(
                        memory_format=layout_after_one_step
                    )
                load_optimizer(optimizer, state)
        return weight.detach()

    assert torch.equal(train(torch.contiguous_format), train(torch.channels_last))
