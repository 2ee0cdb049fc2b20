"""A recorded case of the reference as our objects: configuration, model with its weights, batches."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import posixpath
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml

from lgd.build import Model, build_model
from lgd.config.load import load_config
from lgd.config.schema import Config
from lgd.structures import Batch, Outlines, Targets
from lgd.weights import load_weights, reference_constants

HERE = Path(__file__).parent
SIZE_DIVISIBILITY = 32


@dataclass(frozen=True)
class Case:
    """A case file and what lies beside it.

    Attributes:
        record: the file's content.
        recipes: settings of the reference's recipes by name: "released" and "earlier".
        maker: the module that makes weights and images from a seed.
    """

    record: Mapping[str, Any]
    recipes: Mapping[str, Any]
    maker: ModuleType

    @property
    def parameter_names(self) -> list[str]:
        """The reference's parameters, each once."""
        entries = self.record["state_dict"]
        return [e["name"] for e in entries if e["kind"] == "param" and "alias_of" not in e]


def read_case(path: Path) -> Case:
    """Read a case; `weights.py` and `recipes.json` from the folder above it, or else ours."""
    return Case(
        record=json.loads(path.read_text()),
        recipes=json.loads(_beside(path, "recipes.json").read_text()),
        maker=_import_file(_beside(path, "weights.py")),
    )


def make_config(case: Case, changes: Mapping[str, Any] | None = None) -> Config:
    """Settings of the case's recipe and its bases, its overrides, and `changes`, through our loader."""
    settings = _recipe_settings(case.recipes, case.record["config"])
    settings |= {
        "MODEL.META_ARCHITECTURE": case.record["meta_architecture"].removeprefix("Distillator"),
        "MODEL.BACKBONE.REFERENCE_ORDER": True,
        "MODEL.RETINANET.REFERENCE_NORMALIZER": True,
        "MODEL.FCOS.REFERENCE_ORDER": True,
        "MODEL.RPN.REFERENCE_ORDER": True,
        "MODEL.DISTILLATOR.TEACHER.REFERENCE_ORDER": True,
        "TRAIN.HEAD_ONCE": False,
        "TRAIN.COMPILE": False,
        "TRAIN.WINOGRAD": False,
        **case.record["overrides"],
        **(changes or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.yaml"
        path.write_text(yaml.safe_dump(nest(settings)))
        cfg = load_config(path)
    _check_settings(case, cfg)
    return cfg


def make_model(case: Case, cfg: Config, dtype: torch.dtype) -> Model:
    """Build the model in `dtype` and load the case's weights as a checkpoint of the reference."""
    model = build_model(cfg).to(dtype)
    load_case_weights(case, cfg, model)
    return model


def load_case_weights(case: Case, cfg: Config, model: Model) -> None:
    """Make the case's weights, check them against their hash, and load them from a checkpoint file."""
    arrays = case.maker.make_weights(case.record["state_dict"], case.record["weight_opts"])
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    if digest.hexdigest() != case.record["weights_sha256"]:
        raise ValueError(f"{case.record['case']}: the weights made here have another SHA-256 than recorded")
    settings = case.record["settings"]
    constants = reference_constants(pixel_mean=settings["PIXEL_MEAN"], pixel_std=settings["PIXEL_STD"])
    tensors = constants | {name: torch.from_numpy(array) for name, array in arrays.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model_final.pth"
        torch.save({"model": tensors, "iteration": 0}, path)
        load_weights(
            model,
            path,
            stride_in_1x1=cfg.model.resnets.stride_in_1x1,
            pixel_mean=cfg.model.pixel_mean,
            pixel_std=cfg.model.pixel_std,
            image_format=cfg.input.format,
        )


def make_batch(
    case: Case, dtype: torch.dtype, *, num_images: int | None = None, drop_objects_of: Sequence[int] = ()
) -> Batch:
    """Batch the case's images.

    Args:
        case: the case.
        dtype: of images and boxes.
        num_images: only the first so many; None for all.
        drop_objects_of: indices of images whose objects are left out.
    """
    inputs = case.record["inputs"][:num_images]
    sizes = torch.tensor([[entry["height"], entry["width"]] for entry in inputs])
    height, width = (-(-sizes.amax(0) // SIZE_DIVISIBILITY) * SIZE_DIVISIBILITY).tolist()
    images = torch.zeros(len(inputs), 3, height, width, dtype=dtype)
    num_slots = max(len(entry["boxes"]) for entry in inputs)
    boxes = torch.zeros(len(inputs), num_slots, 4, dtype=dtype)
    labels = torch.zeros(len(inputs), num_slots, dtype=torch.int64)
    valid = torch.zeros(len(inputs), num_slots, dtype=torch.bool)
    for index, entry in enumerate(inputs):
        images[index, :, : entry["height"], : entry["width"]] = torch.from_numpy(_make_image(case, entry))
        num_objects = 0 if index in drop_objects_of else len(entry["boxes"])
        boxes[index, :num_objects] = torch.tensor(entry["boxes"], dtype=dtype)[:num_objects]
        labels[index, :num_objects] = torch.tensor(entry["classes"])[:num_objects]
        valid[index, :num_objects] = True
    return Batch(
        images=images,
        sizes=sizes,
        original_sizes=sizes,
        image_ids=torch.arange(len(inputs)),
        targets=Targets(boxes, labels, valid, _make_outlines(inputs, drop_objects_of, num_slots, dtype)),
    )


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flattened settings as sections within sections."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return nested


def _make_outlines(
    inputs: Sequence[Mapping[str, Any]], drop_objects_of: Sequence[int], num_slots: int, dtype: torch.dtype
) -> Outlines | None:
    if "polygons" not in inputs[0]:
        return None
    from lgd.data.outlines import polygons_to_outlines

    polygons = [[] if index in drop_objects_of else entry["polygons"] for index, entry in enumerate(inputs)]
    return polygons_to_outlines(polygons, num_slots, dtype)


def _make_image(case: Case, entry: Mapping[str, Any]) -> np.ndarray:
    image = case.maker.make_image(entry["image_seed"], entry["height"], entry["width"])
    if hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() != entry["image_sha256"]:
        raise ValueError(
            f"{case.record['case']}: image {entry['image_seed']} has another SHA-256 than recorded"
        )
    return image


def _beside(path: Path, name: str) -> Path:
    above = path.resolve().parent.parent / name
    return above if above.exists() else HERE / name


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_case_maker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _recipe_settings(recipes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Flattened settings of a recipe over those of its bases."""
    group = next(group for group in ("released", "earlier") if name in recipes[group])
    settings = dict(recipes[group][name])
    base = settings.pop("_BASE_", None)
    if base is None:
        return settings
    base_name = posixpath.normpath(posixpath.join(posixpath.dirname(name), base))
    return _recipe_settings(recipes, base_name) | settings


def _check_settings(case: Case, cfg: Config) -> None:
    """Hold the settings that the case was recorded with against ours."""
    distillator = cfg.model.distillator
    ours = {
        "ADD_CONTEXT_BOX": distillator.teacher.add_context_box,
        "DETACH_APPEARANCE_EMBED": distillator.teacher.detach_appearance_embed,
        "INTERACT_PATTERN": distillator.teacher.interact_pattern,
        "LOAD_LABELMAP": distillator.label_encoder.load_labelmap,
        "LAMBDA": distillator.lambda_,
        "PIXEL_MEAN": list(cfg.model.pixel_mean),
        "PIXEL_STD": list(cfg.model.pixel_std),
    }
    for key, value in case.record["settings"].items():
        if ours[key] != value:
            raise ValueError(
                f"{case.record['case']}: recorded with {key} {value}, our config has {ours[key]}"
            )
