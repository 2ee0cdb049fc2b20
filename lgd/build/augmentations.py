"""INPUT.AUGMENTATIONS to what is done to samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lgd.config.schema import Config
from lgd.data.augmentations import ColorJitter, CutOut, LargeScaleJitter, QuarterTurn, VerticalFlip
from lgd.data.mixing import CopyPaste, Mosaic
from lgd.data.samples import Augmentation

_KINDS: Mapping[str, Callable[..., Augmentation]] = {
    "color_jitter": ColorJitter,
    "vertical_flip": VerticalFlip,
    "quarter_turn": QuarterTurn,
    "large_scale_jitter": LargeScaleJitter,
    "copy_paste": CopyPaste,
    "mosaic": Mosaic,
    "cut_out": CutOut,
}


def build_augmentations(cfg: Config) -> list[Augmentation]:
    """Build what is done to training samples after they are resized and mirrored."""
    built = []
    for entry in cfg.input.augmentations:
        values = {key.lower(): value for key, value in entry.items() if key != "NAME"}
        if entry["NAME"] == "color_jitter":
            values["image_format"] = cfg.input.format
        built.append(_KINDS[entry["NAME"]](**values))
    return built
