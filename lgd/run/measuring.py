"""What a run evaluates, and by what: the evaluator, and the average of weights beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lgd.build import Model, build_average, build_test_loader
from lgd.build.training import make_picture_cache
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.data.index import AnnotationIndex
from lgd.engine.averaging import WeightAverage
from lgd.engine.checkpoint import Checkpoint
from lgd.inference.test_sets import TestSet, detect_on_test_sets
from lgd.run.best import require_metric
from lgd.run.context import RunContext
from lgd.run.data import RunData
from lgd.run.evaluations import Evaluator, Measures
from lgd.run.resume import average_to_evaluate
from lgd.weights.classes import Classes


def require_best_metric(cfg: Config, tests: Mapping[str, AnnotationIndex]) -> None:
    """See that there will be what chooses the best model of a training, and ends it.

    Raises:
        ConfigError: there will not be.
    """
    first = next(iter(tests.values()), None)
    if cfg.test.patience and (first is None or not first.has_annotations):
        raise ConfigError(
            f"TEST.PATIENCE {cfg.test.patience} needs a first test set with annotations (DATASETS.TEST): "
            f"without them there is no {cfg.test.best_metric} to become better"
        )
    if first is not None:
        require_metric(
            cfg.test.best_metric, first, with_masks=cfg.model.mask_on, cap=cfg.test.detections_per_image
        )


def make_average(
    cfg: Config, model: Model, data: RunData, checkpoint: Checkpoint | None
) -> WeightAverage | None:
    """The moving average of a training, or for an evaluation the checkpoint's."""
    if data.train is not None or checkpoint is None or checkpoint.state.get("ema") is None:
        return build_average(cfg, model) if data.train is not None else None
    return average_to_evaluate(
        model, checkpoint, Classes(data.sets[0].class_names, data.sets[0].category_ids)
    )


def make_evaluator(
    cfg: Config,
    model: Model,
    average: WeightAverage | None,
    tests: Mapping[str, AnnotationIndex],
    context: RunContext,
) -> Evaluator:
    """Build what evaluates the model as it is, and with the average's weights, on every test set.

    Raises:
        ConfigError: the folder for decoded pictures cannot be written to.
    """
    on_cuda = context.device.type == "cuda"
    make_picture_cache(cfg)  # here, since an evaluation alone has no training batches
    test_sets = [
        TestSet(name, index, partial(build_test_loader, cfg, index, pin_memory=on_cuda))
        for name, index in tests.items()
    ]
    detect = partial(
        detect_on_test_sets,
        model,
        test_sets,
        device=context.device,
        with_teacher=cfg.model.distillator.eval_teacher,
        averages=None if average is None else average.tensors,
        with_losses=cfg.test.losses,
        mixed_precision=cfg.solver.amp.enabled,
        num_examples=cfg.test.vis_images,
        shall_abandon=partial(_shall_abandon, context),
    )
    test = cfg.test
    measures = Measures(
        cfg.train.eval_backend,
        test.detections_per_image,
        test.best_metric,
        test.patience,
        test.min_delta,
        cfg.log.figures,
    )
    return Evaluator(detect, context, measures=measures, image_format=cfg.input.format)


def _shall_abandon(context: RunContext) -> bool:
    context.watch.again("evaluating")
    return context.leaving.during_evaluation()
