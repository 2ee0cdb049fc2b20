"""LGD for torchvision's detectors: `distiller = wrap(model)`, `losses = distiller(images, targets)`.

No loss is computed here: torchvision's own forward pass does that, on maps that it is given in the place of
its backbone's.

Legend: B images, C channels, K classes, D slots for detections.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList

from lgd.detectors.detections import to_original_sizes
from lgd.distill.distiller import Adapter, LabelGuidedDistiller
from lgd.distill.label_encoder import format_for
from lgd.distill.teacher import DynamicTeacher
from lgd.distill.torchvision_format import (
    TargetRules,
    TorchvisionTarget,
    check_format,
    check_values,
    from_targets,
    to_targets,
)
from lgd.structures import Batch, Detections, Features, PaddedDetections
from lgd.words import counted, with_article

_PROBE_SIDE = 256
"""Pixels of the blank image that shows a backbone's levels; the coarsest usual stride is 128."""


def wrap(
    model: nn.Module,
    *,
    teacher: DynamicTeacher | None = None,
    use_masks: bool = False,
    weight: float = 1.0,
    image_share: float = 1.0,
) -> TorchvisionDistiller:
    """Put a teacher beside one of torchvision's detectors.

    Args:
        model: RetinaNet, FCOS, Faster or Mask R-CNN as torchvision makes them, with any backbone whose maps
            have one number of channels. It stays as it is: its parameters are the distiller's.
        teacher: another one than the paper's for these channels and classes (more than 200 of them embedded).
        use_masks: whether the teacher reads the targets' "masks" beside the boxes.
        weight: factor of the distillation loss.
        image_share: of a batch's images, the first ones, that the teacher sees, in (0, 1] and rounded up.

    Raises:
        ValueError: another model, one whose levels differ in channels, or a teacher that is not for it; a
            share beyond (0, 1].
    """
    detector = TorchvisionDetector(model)
    if teacher is None:
        teacher = DynamicTeacher(
            channels=detector.channels,
            num_classes=detector.num_classes,
            add_context_box=True,
            category_format=format_for(detector.num_classes),
            use_masks=use_masks,
        )
    elif use_masks != teacher.use_masks:
        raise ValueError(f"use_masks is {use_masks} and that of the teacher given is {teacher.use_masks}")
    made_for = (teacher.instance_projection.in_features, teacher.num_classes)
    if made_for != (detector.channels, detector.num_classes):
        raise ValueError(
            f"the teacher is for {made_for[0]} channels and {counted(made_for[1], 'class', 'classes')}, "
            f"and the model has {detector.channels} channels and "
            f"{counted(detector.num_classes, 'class', 'classes')}"
        )
    first = next(model.parameters())
    teacher.to(first.device, first.dtype)
    adapter = Adapter(detector.channels).to(first.device, first.dtype)
    return TorchvisionDistiller(
        LabelGuidedDistiller(
            student=detector, teacher=teacher, adapter=adapter, weight=weight, image_share=image_share
        )
    )


class TorchvisionDistiller(nn.Module):
    """LGD with the images and targets of torchvision's detectors; see `wrap`.

    Attributes:
        label_guided: the same student, teacher and adapter for a `Batch`, as the engine trains them.
    """

    def __init__(self, label_guided: LabelGuidedDistiller) -> None:
        super().__init__()
        self.label_guided = label_guided
        self._has_seen_images = False

    @property
    def student(self) -> nn.Module:
        """The model that was wrapped, with its own names in its state dict."""
        return cast(nn.Module, self._detector.model)

    @property
    def _detector(self) -> TorchvisionDetector:
        return cast(TorchvisionDetector, self.label_guided.student)

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[TorchvisionTarget],
        *,
        distill: bool = True,
        head_share: float = 1.0,
        weight_factor: float = 1.0,
    ) -> dict[str, Tensor]:
        """Compute the losses of one step, in evaluation mode too.

        Args:
            images: each (3, H, W), floats in [0, 1].
            targets: of each image, as the model takes them; further keys are passed on to it.
            distill: see `LabelGuidedDistiller.forward`, as for all that follows.
            head_share: in [0, 1].
            weight_factor: of the distillation loss.

        Returns:
            Scalars: the model's own losses by torchvision's names, the same on the teacher's maps as
            "<name>.tea", and "loss_distill".

        Raises:
            ValueError: what is wrong with which image.
        """
        rules, reads_masks = self._detector.rules, self.label_guided.teacher.use_masks
        check_format(images, targets, replace(rules, with_masks=rules.with_masks or reads_masks))
        if not self._has_seen_images:  # of the first alone: it costs a wait for the device
            check_values(images)
            self._has_seen_images = True
        batch = self._detector.transform(images, targets, reads_masks)
        losses: dict[str, Tensor] = self.label_guided(
            batch, distill=distill, head_share=head_share, weight_factor=weight_factor
        )
        return losses


@dataclass(frozen=True, kw_only=True)
class TransformedBatch(Batch):
    """A batch as a model's own transform leaves it: resized, normalised, padded.

    Attributes:
        answers: the targets in torchvision's form, masks and all; of a `Batch`, `targets` are the same ones
            as the teacher reads them.
    """

    answers: Sequence[TorchvisionTarget]

    def part(self, part: slice) -> Self:
        """See `Batch.part`."""
        return replace(super().part(part), answers=self.answers[part])


class Seen:
    """Stands for an assignment, which torchvision's models make anew: the batch has been here."""

    def first(self, number: int) -> Seen:
        """See `lgd.detectors.protocol.Assignment`."""
        return self


class TorchvisionDetector(nn.Module):
    """One of torchvision's detectors as a `lgd.detectors.protocol.Detector`.

    A `Batch` of raw pixels is taken as it has been resized; the channels are RGB. It is normalised and padded
    as the model does. Whichever mode the model is in, losses can be computed and objects detected.

    Args:
        model: see `wrap`.

    Attributes:
        rules: what the model takes as targets.
    """

    static_parts = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head_parts, self.rules = _describe(model)
        self.model: Any = model
        self.num_classes = self.rules.num_classes
        self.channels: int = model.backbone.out_channels  # type: ignore[union-attr, assignment]
        self.strides = _find_strides(model)

    def transform(
        self, images: Sequence[Tensor], targets: Sequence[TorchvisionTarget], with_outlines: bool
    ) -> TransformedBatch:
        """Let the model's own transform resize, normalise and pad images and targets.

        Args:
            images: each (3, H, W), floats in [0, 1].
            targets: of each image.
            with_outlines: whether the teacher is to read masks.
        """
        pixels, answers = self.model.transform(images, [dict(target) for target in targets])
        device = pixels.tensors.device
        return TransformedBatch(
            images=pixels.tensors,
            sizes=torch.tensor(pixels.image_sizes, device=device),
            original_sizes=torch.tensor([image.shape[-2:] for image in images], device=device),
            image_ids=torch.arange(len(images)),
            targets=to_targets(answers, self.rules, with_outlines),
            answers=answers,
        )

    def extract_features(self, batch: Batch) -> Features:
        """See `Detector.extract_features`."""
        return _run_backbone(self.model, self._pixels(batch).tensors)

    def compute_losses(
        self, features: Features, batch: Batch, assignment: Seen | None = None
    ) -> tuple[dict[str, Tensor], Seen]:
        """See `Detector.compute_losses`; the losses have torchvision's names.

        The assignment that comes back only says that the batch has been here: the running statistics of a
        head's batch norms, with which it will detect, are those of the student's maps alone.
        """
        heads = [self.get_submodule(part) for part in self.head_parts]
        with nullcontext() if assignment is None else _statistics_kept(heads):
            losses: dict[str, Tensor] = self._continue_from(features, batch, self._answers(batch))
        return losses, Seen()

    @torch.no_grad()
    def decode(self, features: Features, batch: Batch) -> PaddedDetections:
        """See `Detector.decode`; not to be exported: sizes inside torchvision's models depend on values."""
        found = self._continue_from(features, batch)
        heads = getattr(self.model, "roi_heads", self.model)
        padded = _pad_detections(found, heads.detections_per_img, self.rules.first_label)
        return to_original_sizes(padded, batch)

    def detect(self, features: Features, batch: Batch) -> list[Detections]:
        """See `Detector.detect`."""
        return self.decode(features, batch).cut()

    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """See `Detector.backbone_parameters`."""
        backbone = self.model.backbone
        return cast(nn.Module, getattr(backbone, "body", backbone)).parameters()

    def _pixels(self, batch: Batch) -> ImageList:
        """The images as the model's backbone takes them."""
        sizes = [(height, width) for height, width in batch.sizes.tolist()]
        if isinstance(batch, TransformedBatch):
            return ImageList(batch.images, sizes)
        transform, dtype = self.model.transform, next(self.model.parameters()).dtype
        images = [
            transform.normalize(image[:, :height, :width].to(dtype) / 255)
            for image, (height, width) in zip(batch.images, sizes, strict=True)
        ]
        return ImageList(transform.batch_images(images, transform.size_divisible), sizes)

    def _answers(self, batch: Batch) -> Sequence[TorchvisionTarget]:
        """The targets as the model takes them."""
        return batch.answers if isinstance(batch, TransformedBatch) else from_targets(batch, self.rules)

    def _continue_from(
        self, features: Features, batch: Batch, answers: Sequence[TorchvisionTarget] | None = None
    ) -> Any:
        """What the model's forward pass makes of maps: losses where there are answers, else detections.

        The pass is that of shallow copies, whose submodules are the model's own: they stand in either mode
        without a change to the model, and what comes before the heads is given to them.
        """
        training = answers is not None
        pixels = self._pixels(batch)
        twin = _in_mode(self.model, training)
        given = {"transform": _Given((pixels, answers)), "backbone": _Given(OrderedDict(features))}
        deciding = {
            name: _in_mode(module, training)
            for name, module in self.model.named_children()
            if name in ("rpn", "roi_heads")
        }
        twin._modules = {**self.model._modules, **deciding, **given}
        return twin(list(pixels.tensors), answers)


class _Given(nn.Module):
    """Stands in for a part of a model whose result is there."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, *_: Any) -> Any:
        return self.result

    def postprocess(self, found: Any, *_: Any) -> Any:
        """Leave detections on the canvas, masks on their grids."""
        return found


def _in_mode(module: nn.Module, training: bool) -> nn.Module:
    """A shallow copy that alone is in the mode; its parameters and submodules are the module's."""
    twin = copy.copy(module)
    twin.training = training
    return twin


@contextmanager
def _statistics_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let batch norms normalise as ever, but leave their running statistics as they are."""
    norms = [
        norm
        for module in modules
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _describe(model: Any) -> tuple[Sequence[str], TargetRules]:
    """The names of what reads the maps, and what the model takes as targets."""
    if isinstance(model, RetinaNet | FCOS):
        return ("model.head",), TargetRules(model.head.classification_head.num_classes, 0, with_masks=False)
    if not isinstance(model, FasterRCNN):
        raise ValueError(
            f"{type(model).__module__}.{type(model).__qualname__} is none of torchvision's RetinaNet, FCOS, "
            "FasterRCNN and MaskRCNN; any other detector is taught through lgd.detectors.protocol.Detector"
        )
    scores = getattr(model.roi_heads.box_predictor, "cls_score", None)
    if not isinstance(scores, nn.Linear):
        raise ValueError(
            f"roi_heads.box_predictor, {with_article(type(model.roi_heads.box_predictor).__name__)}, has "
            "no linear cls_score to tell the number of classes by; name its last layer so"
        )
    rules = TargetRules(scores.out_features - 1, 1, with_masks=bool(model.roi_heads.has_mask()))
    return ("model.rpn", "model.roi_heads"), rules


def _run_backbone(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    """(B, 3, H, W) -> {level: (B, C, h, w)}."""
    maps = model.backbone(pixels)
    return {"0": maps} if isinstance(maps, Tensor) else dict(maps)


@torch.no_grad()
def _find_strides(model: nn.Module) -> dict[str, int]:
    """The strides of a model's levels, from a blank image in evaluation mode.

    Raises:
        ValueError: the levels differ in channels.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    blank = next(model.parameters()).new_zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE)
    try:
        maps = _run_backbone(model, blank)
    finally:
        for module, mode in modes.items():
            module.training = mode
    channels = {level: x.shape[1] for level, x in maps.items()}
    if set(channels.values()) != {model.backbone.out_channels}:  # type: ignore[union-attr]
        raise ValueError(
            f"the backbone's levels have {channels} channels and its out_channels says "
            f"{model.backbone.out_channels}; LGD takes levels of one number, as a "  # type: ignore[union-attr]
            "FeaturePyramidNetwork makes them"
        )
    return {level: _PROBE_SIDE // x.shape[-1] for level, x in maps.items()}


def _pad_detections(found: Sequence[dict[str, Tensor]], num_slots: int, first_label: int) -> PaddedDetections:
    """Detections of B images, in torchvision's form on the canvas, in D slots of each."""

    def padded(name: str) -> Tensor:
        rows = [image[name] for image in found]
        return torch.stack([torch.cat([x, x.new_zeros(num_slots - len(x), *x.shape[1:])]) for x in rows])

    scores, labels = padded("scores"), padded("labels")
    counts = torch.tensor([len(image["scores"]) for image in found], device=scores.device)
    valid = torch.arange(num_slots, device=scores.device) < counts[:, None]
    return PaddedDetections(
        padded("boxes"),
        scores,
        torch.where(valid, labels - first_label, 0),
        valid,
        padded("masks").squeeze(2) if "masks" in found[0] else None,
    )
