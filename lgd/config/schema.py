"""The configuration tree: every setting with its type, its default and one line on what it does.

The tree is made of frozen dataclasses, a section each (those under MODEL are in `model_schema.py` and
`distillator_schema.py`). A YAML key is the attribute in upper case: `SOLVER.MAX_ITER` is
`cfg.solver.max_iter` (`LAMBDA` is `lambda_`, since Python has taken the word). Keys, meanings and
defaults are those of detectron2 v0.3 and of the reference's LGD. Where detectron2's default describes its
C4 models, which are not here, ours is the value of the FPN recipes.

NUM_CLASSES is the one place of the class count, `cfg.num_classes`, for every detector. The reference's
MODEL.RETINANET.NUM_CLASSES, MODEL.FCOS.NUM_CLASSES and MODEL.ROI_HEADS.NUM_CLASSES are other spellings of
it (`ALIASES`): the later of two files or overrides wins, and two different values in one file are an
error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lgd.config.augmentation_schema import read_entry
from lgd.config.model_schema import ModelConfig
from lgd.config.values import (
    FiniteFloat,
    Folder,
    Interval,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ReadBy,
    UnitFloat,
)

ALIASES = {
    "MODEL.RETINANET.NUM_CLASSES": "NUM_CLASSES",
    "MODEL.FCOS.NUM_CLASSES": "NUM_CLASSES",
    "MODEL.ROI_HEADS.NUM_CLASSES": "NUM_CLASSES",
}
"""Keys of the reference that set another key of this tree."""

SIDE_SOLVERS = ("MODEL.DISTILLATOR.STUDENT.SOLVER", "MODEL.DISTILLATOR.TEACHER.SOLVER")
"""The sections that may differ from SOLVER."""


@dataclass(frozen=True)
class CropConfig:
    """INPUT.CROP: random crops of the training images."""

    enabled: Annotated[bool, "Crop the training images before they are resized."] = False
    type: Annotated[
        Literal["relative", "relative_range", "absolute", "absolute_range"],
        "What SIZE means: a fraction of the image, the least fraction, pixels, or a range of pixels.",
    ] = "relative_range"
    size: Annotated[tuple[PositiveFloat, PositiveFloat], "(height, width), or (least, most) in pixels."] = (
        0.9,
        0.9,
    )


@dataclass(frozen=True)
class InputConfig:
    """INPUT: from the file's pixels to the model's."""

    format: Annotated[Literal["BGR", "RGB"], "Order of the channels that the model sees."] = "BGR"
    min_size_train: Annotated[tuple[PositiveInt, ...], "Lengths of the short side in training, pixels."] = (
        800,
    )
    min_size_train_sampling: Annotated[
        Literal["choice", "range"], "Take one of MIN_SIZE_TRAIN, or any length between its two."
    ] = "choice"
    max_size_train: Annotated[PositiveInt, "Longest long side in training, pixels."] = 1333
    min_size_test: Annotated[PositiveInt, "Length of the short side in testing, pixels."] = 800
    max_size_test: Annotated[PositiveInt, "Longest long side in testing, pixels."] = 1333
    random_flip: Annotated[Literal["horizontal", "none"], "Flip half of the training images."] = "horizontal"
    mask_format: Annotated[Literal["polygon", "bitmask"], "How instance masks travel to the model."] = (
        "polygon"
    )
    range: Annotated[
        Literal["auto"] | tuple[FiniteFloat, FiniteFloat],
        "Values of 16-bit (32-bit) pictures that become 0 and 255; auto: measured, or the weights' own.",
    ] = "auto"
    scaled_decoding: Annotated[
        bool, "Decode JPEGs of a megapixel and more at 1/2, 1/4 or 1/8, where they are shown smaller still."
    ] = True
    augmentations: Annotated[
        tuple[Annotated[dict[str, Any], ReadBy(read_entry, "a map (NAME: ..., KEY: value)")], ...],
        "What else is done to training samples, in turn: [{NAME: mosaic, PROBABILITY: 0.5}, ...].",
    ] = ()
    crop: CropConfig = CropConfig()


@dataclass(frozen=True)
class DatasetsConfig:
    """DATASETS: what to train and to test on."""

    root: Annotated[Folder, "Folder of the data sets that are known by name (ROOT/coco/...)."] = "datasets"
    train: Annotated[
        tuple[str, ...],
        "Training sets: coco_2017_train, coco:FOLDER:SPLIT, crowdhuman:..., voc:... or synthetic:... alike.",
    ] = ()
    test: Annotated[tuple[str, ...], "Test sets, written in the same way; each is evaluated by itself."] = ()
    weights: Annotated[
        tuple[PositiveFloat, ...],
        "Shares in which images are drawn from the training sets, a number for each; none: from all alike.",
    ] = ()
    classes: Annotated[
        dict[Name, tuple[Name, ...]] | tuple[Name, ...],
        "Classes by name, in the order of the labels: [a, b], or merged {v: [car, van]}; none: the data's.",
    ] = ()
    other_classes: Annotated[
        Literal["drop", "ignore"],
        "Objects of classes that CLASSES leaves out: as if not there, or regions to ignore in evaluations.",
    ] = "drop"
    crowds: Annotated[
        Literal["crowd", "object"], "What COCO's iscrowd 1 marks: regions to ignore, or objects like others."
    ] = "crowd"


@dataclass(frozen=True)
class DataloaderConfig:
    """DATALOADER: how images reach the model."""

    num_workers: Annotated[
        NonNegativeInt, "Loader processes of each rank; 0 loads in the trainer itself."
    ] = 4
    aspect_ratio_grouping: Annotated[bool, "Batch landscapes with landscapes, portraits with portraits."] = (
        True
    )
    filter_empty_annotations: Annotated[bool, "Leave images without usable boxes out of training."] = True
    sampler_train: Annotated[
        Literal["TrainingSampler", "RepeatFactorTrainingSampler"],
        "Every image alike, or rare classes more often.",
    ] = "TrainingSampler"
    repeat_threshold: Annotated[UnitFloat, "Share of images below which a class is repeated."] = 0.0
    on_bad_image: Annotated[
        Literal["fail", "skip"], "An unreadable image: stop with its name, or count it and go on."
    ] = "fail"
    decode_on_gpu: Annotated[
        bool, "Decode, crop and resize training JPEGs on the model's device in place of the loader processes."
    ] = False
    cache_dir: Annotated[
        Folder, "Where to keep pictures of a megapixel and more as they were decoded; empty: nowhere."
    ] = ""


@dataclass(frozen=True)
class ClipGradientsConfig:
    """SOLVER.CLIP_GRADIENTS: applied parameter by parameter, before each step."""

    enabled: Annotated[bool, "Clip the gradients."] = False
    clip_type: Annotated[Literal["value", "norm"], "Clip each element, or the norm of each parameter."] = (
        "value"
    )
    clip_value: Annotated[PositiveFloat, "Largest element or norm."] = 1.0
    norm_type: Annotated[PositiveFloat, "p of the p-norm where CLIP_TYPE is norm."] = 2.0


@dataclass(frozen=True)
class AmpConfig:
    """SOLVER.AMP: mixed precision."""

    enabled: Annotated[bool, "Train under bfloat16 autocast (no loss scaling needed)."] = False


@dataclass(frozen=True)
class SolverConfig:
    """SOLVER: optimizer and schedule, for student and teacher where these do not have their own."""

    optimizer: Annotated[Literal["SGD", "ADAMW"], "Optimizer."] = "SGD"
    base_lr: Annotated[PositiveFloat, "Learning rate after the warm-up."] = 0.001
    backbone_multiplier: Annotated[
        PositiveFloat, "Factor on the learning rate of the student's backbone (its FPN has the full rate)."
    ] = 1.0
    momentum: Annotated[UnitFloat, "Momentum of SGD."] = 0.9
    weight_decay: Annotated[NonNegativeFloat, "Weight decay, the same for every parameter."] = 0.0001
    ims_per_batch: Annotated[PositiveInt, "Images of one step, over all ranks and accumulation steps."] = 16
    max_iter: Annotated[PositiveInt, "Steps of the whole training."] = 40_000
    lr_scheduler_name: Annotated[
        Literal["WarmupMultiStepLR", "WarmupCosineLR"], "Learning rate over time: in steps, or half a cosine."
    ] = "WarmupMultiStepLR"
    steps: Annotated[tuple[PositiveInt, ...], "Iterations at which the rate is multiplied by GAMMA."] = (
        30_000,
    )
    gamma: Annotated[PositiveFloat, "Factor at each of STEPS."] = 0.1
    warmup_factor: Annotated[UnitFloat, "The rate starts at this share of BASE_LR."] = 0.001
    warmup_iters: Annotated[NonNegativeInt, "Iterations of the warm-up."] = 1000
    warmup_method: Annotated[Literal["linear", "constant"], "Rise through the warm-up, or stay low."] = (
        "linear"
    )
    checkpoint_period: Annotated[PositiveInt, "Iterations between checkpoints."] = 5000
    reference_world_size: Annotated[
        NonNegativeInt,
        "Ranks that batch, rates and schedule are written for; scaled to those at hand. 0: never.",
    ] = 0
    clip_gradients: ClipGradientsConfig = ClipGradientsConfig()
    amp: AmpConfig = AmpConfig()


@dataclass(frozen=True)
class TestConfig:
    """TEST: evaluation."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    eval_period: Annotated[NonNegativeInt, "Iterations between evaluations; 0 evaluates at the end only."] = 0
    detections_per_image: Annotated[PositiveInt, "Detections kept of an image."] = 100
    ims_per_batch: Annotated[PositiveInt, "Images of equal canvas evaluated together, on each rank."] = 8
    vis_images: Annotated[NonNegativeInt, "Validation images drawn to the trackers."] = 8
    best_metric: Annotated[
        str, "Metric of the student on the first test set that chooses model_best.pth: AP, AP50, segm/AP, ..."
    ] = "AP"
    patience: Annotated[
        NonNegativeInt, "Evaluations without a better BEST_METRIC after which the training ends; 0: never."
    ] = 0
    min_delta: Annotated[
        NonNegativeFloat, "By how much BEST_METRIC must be better, in its own unit, to count for PATIENCE."
    ] = 0.0
    losses: Annotated[
        bool, "Student's and teacher's losses on the test sets too: as much as two thirds of the detecting."
    ] = False


@dataclass(frozen=True)
class EmaConfig:
    """TRAIN.EMA: the exponential moving average of the student's weights, evaluated and kept beside them."""

    enabled: Annotated[bool, "Keep the average, evaluate it too, and let the best model be the better."] = (
        False
    )
    decay: Annotated[UnitFloat, "What an iteration leaves of the average, after the warm-up."] = 0.9998
    warmup_iters: Annotated[
        NonNegativeInt, "w of the warm-up: the decay is DECAY * (1 - exp(-n / w)) at iteration n; 0: none."
    ] = 2000


@dataclass(frozen=True)
class TrainConfig:
    """TRAIN: how the training runs; but for EMA and ON_NONFINITE, none of it changes what is learnt."""

    ema: EmaConfig = EmaConfig()
    accumulate_steps: Annotated[PositiveInt, "Forward and backward passes that make up one step."] = 1
    keep_checkpoints: Annotated[PositiveInt, "Newest checkpoints kept beside the best."] = 3
    channels_last: Annotated[bool, "NHWC memory layout: faster convolutions on CUDA."] = True
    fused_optimizer: Annotated[
        Literal["auto"] | bool, "One kernel for all parameters; auto: on CUDA, and AdamW's on a CPU."
    ] = "auto"
    head_once: Annotated[
        bool, "Run a one-stage head once a step, on the student's and the teacher's maps together."
    ] = True
    winograd: Annotated[
        bool, "3x3 convolutions on the CPU in float32 by Winograd's way: faster, other rounding."
    ] = True
    compile: Annotated[
        Literal["auto"] | bool, "Compile the parts of a training step with torch.compile; auto: on CUDA."
    ] = "auto"
    cuda_graphs: Annotated[
        bool, "Replay compiled parts as CUDA graphs, where they hold; not measured yet."
    ] = False
    checkpoint_teacher: Annotated[
        bool, "Compute the teacher's maps again in the backward pass instead of keeping them: less memory."
    ] = False
    try_worst_shape: Annotated[
        Literal["auto"] | bool,
        "Try the largest canvas with the most objects before training; auto: on CUDA.",
    ] = "auto"
    static_canvases: Annotated[
        Literal["auto"] | bool,
        "Pad training batches to one of a few canvases; auto: where training steps are compiled on CUDA.",
    ] = "auto"
    process_group_timeout: Annotated[PositiveInt, "Seconds that a rank waits for the others."] = 600
    accept_changed_data: Annotated[
        bool, "Resume on other data than the run began with, if its classes are the same."
    ] = False
    max_starts_without_progress: Annotated[
        NonNegativeInt,
        "Resumes that come to no new checkpoint before no further one is made; asked to leave: half. 0: any.",
    ] = 5
    stall_timeout: Annotated[
        NonNegativeInt, "Seconds without a step after which the run ends and says where it stands; 0: never."
    ] = 1800
    on_nonfinite: Annotated[
        Literal["abort", "skip", "rollback"],
        "A loss that is no number: end, leave the step out, or go on after it from the last checkpoint.",
    ] = "abort"
    max_nonfinite: Annotated[
        PositiveInt, "Such steps in a row (rollback: since the checkpoint) that are borne; one more ends it."
    ] = 10
    loss_jump: Annotated[
        NonNegativeFloat,
        "Median deviations above the median of recent losses from which a loss is warned of; 0: never.",
    ] = 20.0
    eval_backend: Annotated[Literal["hotcoco", "pycocotools"], "What computes the COCO metrics."] = "hotcoco"


@dataclass(frozen=True)
class LogConfig:
    """LOG: what shows a training while it runs; none of it changes what is learnt."""

    trackers: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...],
        "What gets curves and pictures; all but tensorboard are extras (pip install 'lgd[wandb]').",
    ] = ("tensorboard",)
    project: Annotated[Name, "What trackers keep runs together by: project, or MLflow's experiment."] = "lgd"
    figures: Annotated[
        bool, "Precision over recall and the confusion matrix as pictures after each evaluation."
    ] = False


@dataclass(frozen=True)
class Config:
    """The whole tree."""

    version: Annotated[Literal[2], "Version of the key names (detectron2's)."] = 2
    num_classes: Annotated[
        NonNegativeInt, "Classes of the data, for every detector; 0: as many as it has."
    ] = 80
    model: ModelConfig = field(default_factory=ModelConfig)
    input: InputConfig = InputConfig()
    datasets: DatasetsConfig = DatasetsConfig()
    dataloader: DataloaderConfig = DataloaderConfig()
    solver: SolverConfig = SolverConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    log: LogConfig = LogConfig()
    log_period: Annotated[PositiveInt, "Iterations between log lines."] = 20
    output_dir: Annotated[Folder, "Folder of everything that a run writes."] = "./outputs"
    seed: Annotated[int, Interval(-1, 2**63 - 1), "Seed of every random number; -1 draws one anew."] = -1
    cudnn_benchmark: Annotated[
        bool, "Let cuDNN try its algorithms out on each new shape of training; pays with few canvases."
    ] = False
