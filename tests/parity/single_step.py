"""One training step with and without distillation, and the evaluations of a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lgd.build import Model
from lgd.structures import Batch, Detections, Features
from lgd.weights import reference_name
from tests.parity.case import Case, make_batch, make_config, make_model


def run_case(
    case: Case, dtype: torch.dtype, only: tuple[str, ...] = (), changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make our answer to a case.

    Args:
        case: the case.
        dtype: of the whole computation.
        only: the parts to run ("train_flag1", "eval_teacher", ...); empty for all that the case has.
        changes: settings over the case's own.

    Returns:
        The content of RESULT.json.
    """
    name = str(dtype).removeprefix("torch.")
    wanted = [part for part in case.record[name] if part in only or not only]
    cfg = make_config(case, changes)
    model = make_model(case, cfg, dtype)
    result: dict[str, Any] = {"dtype": name}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for part, distill in (("train_flag1", True), ("train_flag0", False)):
        if part in wanted:
            for name, buffer in model.named_buffers():  # all that a step changes while nothing optimizes
                buffer.copy_(buffers[name])
            result[part] = _train(case, model, make_batch(case, dtype), distill=distill)
    return result | _evaluate_parts(case, model, dtype, wanted)


EVALUATIONS: dict[str, dict[str, Any]] = {
    "eval_student": {},
    "eval_teacher": {},
    "eval_single_student": {"num_images": 1},
    "eval_teacher_first_image_without_gt": {"drop_objects_of": (0,)},
}


def _train(case: Case, model: Model, batch: Batch, *, distill: bool) -> dict[str, Any]:
    """Forward and backward once."""
    model.train()
    model.zero_grad(set_to_none=True)
    maps = _record_features(model)
    losses = model(batch, distill=distill)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    norms = {reference_name(n): _norm_of_gradient(p) for n, p in model.named_parameters()}
    normalizer = _normalizer(model)
    return {
        "losses": {name: loss.item() for name, loss in losses.items()},
        "total": total.item(),
        "grad_norms": {name: norms.get(name) for name in case.parameter_names},
        "stats": {side: _describe(features) for side, features in maps.items()},
        "loss_normalizer_after": None if normalizer is None else normalizer.item(),
    }


def _record_features(model: Model) -> dict[str, Features]:
    """Keep the feature maps of the next forward pass of student and teacher."""
    maps: dict[str, Features] = {}
    modules = {"student": model.student.neck, "teacher": model.teacher}

    def keep(side: str) -> None:
        def hook(_module: object, _inputs: object, output: Features) -> None:
            maps[side] = {level: x.detach().clone() for level, x in output.items()}
            handle.remove()

        handle = modules[side].register_forward_hook(hook)

    for side in modules:
        keep(side)
    return maps


def _norm_of_gradient(parameter: Tensor) -> float | None:
    return None if parameter.grad is None else parameter.grad.norm().item()


def _describe(features: Features) -> dict[str, dict[str, Any]]:
    return {
        level: {"l2": x.norm().item(), "strided8": x.flatten()[:: x.numel() // 8][:8].tolist()}
        for level, x in features.items()
    }


def _normalizer(model: Model) -> Tensor | None:
    """RetinaNet's moving average of the number of foreground anchors; other detectors have none."""
    return getattr(model.student, "loss_normalizer", None)


@torch.no_grad()
def _evaluate_parts(case: Case, model: Model, dtype: torch.dtype, wanted: Sequence[str]) -> dict[str, Any]:
    """The evaluations; of the same images the student's features are computed once."""
    model.eval()
    result: dict[str, Any] = {}
    extracted: dict[int, Features] = {}
    for part, settings in EVALUATIONS.items():
        if part in wanted:
            batch = make_batch(case, dtype, **settings)
            num_images = len(batch.images)
            if num_images not in extracted:
                extracted[num_images] = model.student.extract_features(batch)
            features = dict(extracted[num_images])
            result[part] = _detect(model, features, batch, use_teacher=part.startswith("eval_teacher"))
    return result


def _detect(model: Model, features: Features, batch: Batch, *, use_teacher: bool) -> list[dict[str, Any]]:
    if use_teacher:
        features = model.teach(features, batch)
    detections = model.student.detect(features, batch)
    return [_to_record(*image) for image in zip(detections, batch.original_sizes.tolist(), strict=True)]


def _to_record(detections: Detections, size: list[int]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "boxes": detections.boxes.tolist(),
        "scores": detections.scores.tolist(),
        "classes": detections.labels.tolist(),
    }
    if detections.masks is not None:
        from lgd.evaluation.masks import paste_masks

        height, width = size
        pasted = paste_masks(detections.masks, detections.boxes, (height, width))
        record["masks"] = [{"area": int(area)} for area in pasted.sum(dim=(1, 2))]
    return record
