"""Two ranks give the gradients of one rank with the whole batch."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from lgd.build import build_model
from lgd.config.load import load_config
from lgd.engine.loop import _wrap
from lgd.ranks.store import find_free_port
from lgd.structures import Batch, Targets
from tests.forked import call_ranks
from tests.training import REPOSITORY, SMALL


def make_model(**changes):
    settings = {
        **SMALL,
        "NUM_CLASSES": 3,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    cfg = load_config(REPOSITORY / "configs/demo.yaml", [str(x) for pair in settings.items() for x in pair])
    torch.manual_seed(0)
    return build_model(cfg).double()


def imitating(method, **changes):
    """Settings of a method with a pretrained teacher, which has the weights that it was made with."""
    return {"MODEL__DISTILLATOR__METHOD": method, "MODEL__DISTILLATOR__TEACHER__WEIGHTS": "none", **changes}


def make_batch(start, stop):
    """Images `start` to `stop` of four of one size, with different numbers of objects."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 64, 96), generator=generator, dtype=torch.uint8)
    corners = torch.rand((4, 5, 2), generator=generator, dtype=torch.float64) * 30
    boxes = torch.cat([corners, corners + 12 + corners.flip(-1)], dim=-1)
    valid = torch.arange(5) < torch.tensor([5, 1, 3, 2])[:, None]
    whole = (
        images,
        torch.tensor([[64, 96]] * 4),
        torch.tensor([[64, 96]] * 4),
        torch.arange(4),
        Targets(boxes, torch.arange(20).view(4, 5) % 3, valid),
    )
    *tensors, targets = whole
    part = slice(start, stop)
    return Batch(
        *(tensor[part] for tensor in tensors),
        Targets(targets.boxes[part], targets.labels[part], targets.valid[part]),
    )


def gradients_of(model, module, batches):
    for batch in batches:
        losses = module(batch, distill=True)
        (sum(losses.values()) / len(batches)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run_rank(rank, port, changes, path):
    dist.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    torch.set_num_threads(1)
    model = make_model(**changes)
    wrapped = _wrap(model, list(model.student.backbone_parameters()), False, torch.device("cpu"))
    gradients = gradients_of(model, wrapped, [make_batch(2 * rank, 2 * rank + 2)])
    if rank == 0:
        torch.save({"gradients": gradients, "normalizer": normalizer_of(model)}, path)
    dist.destroy_process_group()


def normalizer_of(model):
    """RetinaNet's moving average; the other detectors keep none."""
    return getattr(model.student, "loss_normalizer", None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL__DISTILLATOR__ENABLED": False, "MODEL__RESNETS__NORM": "GN"},
        {"MODEL__META_ARCHITECTURE": "FCOS"},
        imitating("PKD"),
        imitating("LGD+PKD"),
        imitating("CrossKD", MODEL__META_ARCHITECTURE="ATSS"),
        {"MODEL__META_ARCHITECTURE": "GFL"},
        {"MODEL__DISTILLATOR__LABEL_ENCODER__CATEGORY_FORMAT": "embedding"},
    ],
    ids=[
        "LGD",
        "plain student",
        "LGD on FCOS",
        "PKD",
        "LGD and PKD",
        "CrossKD on ATSS",
        "LGD on GFL",
        "LGD with embedded classes",
    ],
)
def test_two_ranks_equal_one(tmp_path, changes):
    path = tmp_path / "two_ranks.pth"
    call_ranks(run_rank, find_free_port(), changes, path)
    two = torch.load(path, weights_only=True)

    model = make_model(**changes)
    one = gradients_of(model, model, [make_batch(0, 4)])
    assert one.keys() == two["gradients"].keys()
    assert two["normalizer"] == normalizer_of(model)
    for name, gradient in one.items():
        difference = (gradient - two["gradients"][name]).norm()
        # the bias before the instance norm has no gradient but rounding
        scale = 1.0 if name == "adapter.4.bias" else gradient.norm()
        assert difference <= 1e-6 * scale + 1e-12, name
