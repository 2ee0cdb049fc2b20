"""A training step on random images: the same work as in the training loop, without its bookkeeping.

Legend: B images on a canvas H x W, N objects of an image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lgd.bench.machine import count_flops, peak_memory, synchronize
from lgd.build import build_model, build_sides, compile_model, compiles, place_model
from lgd.config.schema import Config
from lgd.detectors.rcnn import RCNN
from lgd.structures import Batch, Outlines, Targets

_CORNERS = 8


def make_batch(
    num_images: int,
    height: int,
    width: int,
    *,
    num_boxes: int,
    num_classes: int,
    device: torch.device,
    with_masks: bool = False,
) -> Batch:
    """Draw random images with random boxes of 1/20 to 1/2 of the canvas.

    Args:
        num_images: B.
        height: H, a multiple of 32.
        width: W, likewise.
        num_boxes: N.
        num_classes: of the labels.
        device: where to put the batch.
        with_masks: whether the objects have masks: octagons in their boxes.
    """
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(num_images, num_boxes, 2, generator=generator) * 0.5
    extents = 0.05 + torch.rand(num_images, num_boxes, 2, generator=generator) * 0.45
    boxes = torch.cat([corners, corners + extents], dim=-1) * torch.tensor([width, height, width, height])
    labels = torch.randint(0, num_classes, (num_images, num_boxes), generator=generator)
    images = torch.randint(0, 256, (num_images, 3, height, width), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[height, width]] * num_images)
    valid = torch.ones_like(labels, dtype=torch.bool)
    targets = Targets(boxes, labels, valid, _octagons(boxes) if with_masks else None)
    return Batch(images, sizes, sizes, torch.arange(num_images), targets).to(device)


def _octagons(boxes: Tensor) -> Outlines:
    angles = torch.arange(_CORNERS) * (2 * torch.pi / _CORNERS)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    centers, extents = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    points = centers[..., None, :] + directions * extents[..., None, :] / 2
    edges = torch.cat([points, points.roll(-1, dims=-2)], dim=-1)
    return Outlines(edges, torch.zeros(edges.shape[:-1], dtype=torch.int64), 1)


@dataclass(frozen=True)
class Step:
    """A model with its optimizers and a batch, and what one training step of it does.

    Attributes:
        model: whatever is trained.
        compute_losses: the forward pass.
        optimizers: of all parameters.
        device: where it runs.
        dtype: bfloat16 for autocast; any other leaves the model as it is.
        compiled: whether parts of the model are compiled.
    """

    model: nn.Module
    compute_losses: Callable[[], dict[str, Tensor]]
    optimizers: Sequence[torch.optim.Optimizer]
    device: torch.device
    dtype: torch.dtype
    compiled: bool = False

    def take(self) -> None:
        """Do forward and backward pass and update: the same numbers every time.

        The weights stay where they are, and what is drawn is drawn again, so that a step with LGD has the
        student's regions, which decide what two stages cost.
        """
        torch.manual_seed(0)
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            total = torch.stack(list(self.compute_losses().values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def time(self) -> float:
        """Take a step; returns its seconds."""
        synchronize(self.device)
        begin = time.perf_counter()
        self.take()
        synchronize(self.device)
        return time.perf_counter() - begin

    def weigh(self) -> tuple[int, int | None]:
        """Take some steps; returns a step's floating-point operations, and the bytes at its peak.

        The bytes are those of this model alone: what lies there between steps, and what a step adds.
        """
        flops = count_flops(self.take)  # the first step also makes the optimizers' states
        if self.compiled:
            self.take()  # to compile it: the compiler's memory is none of the step's
        beyond = peak_memory(self.take, self.device)
        return flops, None if beyond is None else beyond + self.resident_bytes()

    def resident_bytes(self) -> int:
        """Bytes of parameters, buffers and optimizer states: what lies there between two steps."""
        tensors: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        for optimizer in self.optimizers:
            states = optimizer.state.values()
            tensors += [x for state in states for x in state.values() if isinstance(x, Tensor)]
        return sum(x.numel() * x.element_size() for x in tensors)


def propose_anchors(*predictors: nn.Module) -> None:
    """Set a region proposal network's predictors to zero: anchors as they are, whatever the features.

    What two stages cost hangs on the size of the regions, which random weights make another for each model.
    """
    for predictor in predictors:
        for parameter in predictor.parameters():
            nn.init.zeros_(parameter)


def make_step(cfg: Config, batch: Batch, device: torch.device, *, freeze_backbone: bool = False) -> Step:
    """Build the recipe's model and optimizers for `batch`.

    Args:
        cfg: the recipe; its SOLVER.AMP.ENABLED, TRAIN.* and device count, its data and weights don't.
        batch: images on `device`.
        device: where.
        freeze_backbone: as in LGD's first phase.

    Raises:
        ConfigError: a part or an option that there is not.
    """
    torch.manual_seed(0)
    model = place_model(cfg, build_model(cfg), device)
    if isinstance(model.student, RCNN):
        head = model.student.proposal_generator.rpn_head
        propose_anchors(head.objectness_logits, head.anchor_deltas)
    optimizers = [side.optimizer for side in build_sides(cfg, model, device)]
    compile_model(cfg, model, device)
    for parameter in model.student.backbone_parameters():
        parameter.requires_grad_(parameter.requires_grad and not freeze_backbone)
    dtype = torch.bfloat16 if cfg.solver.amp.enabled else torch.float32
    head_share = 0.0 if cfg.model.distillator.head.mode == "fixed" else 1.0
    losses = partial(model, batch, distill=True, head_share=head_share)
    return Step(model, losses, optimizers, device, dtype, compiles(cfg, device))
