"""Weights of the reference, of detectron2 and of torchvision, to and from ours."""

from lgd.weights.convention import check_input_convention
from lgd.weights.export import write_detectron2_model, write_reference_checkpoint, write_student
from lgd.weights.files import LoadedWeights, read_checkpoint_file
from lgd.weights.kind import InputConvention
from lgd.weights.load import load_into, load_weights
from lgd.weights.reference import (
    from_detectron2_model,
    from_reference,
    reference_constants,
    reference_name,
    to_detectron2,
    to_reference,
)
from lgd.weights.report import LoadReport, WeightsError
from lgd.weights.sources import fetch_weights

__all__ = [
    "InputConvention",
    "LoadReport",
    "LoadedWeights",
    "WeightsError",
    "check_input_convention",
    "fetch_weights",
    "from_detectron2_model",
    "from_reference",
    "load_into",
    "load_weights",
    "read_checkpoint_file",
    "reference_constants",
    "reference_name",
    "to_detectron2",
    "to_reference",
    "write_detectron2_model",
    "write_reference_checkpoint",
    "write_student",
]
