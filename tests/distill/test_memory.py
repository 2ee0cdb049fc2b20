"""What a training step keeps for its backward pass."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from lgd.bench.step import make_batch, make_step
from lgd.build import build_model
from lgd.config.load import load_config
from lgd.memory.worst_batch import worst_batch
from tests.training import REPOSITORY


def kept_bytes(*settings):
    """Bytes that the forward pass of RetinaNet R-50 keeps of an image of 320 x 320, weights apart."""
    recipe = REPOSITORY / "configs/retinanet/r50_2x_ms_lgd.yaml"
    model = build_model(load_config(recipe, ["MODEL.WEIGHTS", "", *settings]))
    batch = worst_batch((320, 320), batch_size=1, num_objects=5, num_classes=80)
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(batch, distill=True)
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    assert losses
    return sum(storage.nbytes() for storage in kept.values())


def test_lgd_keeps_little_more_than_the_student():
    student = kept_bytes("MODEL.DISTILLATOR.ENABLED", "False")
    assert student < kept_bytes() <= 1.3 * student
    assert kept_bytes("TRAIN.CHECKPOINT_TEACHER", "True") <= 1.25 * student


def weigh(recipe, enabled):
    """Bytes at the peak of a step of 1,203 classes."""
    device = torch.device("cpu")
    batch = make_batch(2, 256, 320, num_boxes=7, num_classes=1203, device=device)
    settings = ["MODEL.WEIGHTS", "", "NUM_CLASSES", "1203", "MODEL.DISTILLATOR.ENABLED", str(enabled)]
    step = make_step(load_config(REPOSITORY / f"configs/{recipe}.yaml", settings), batch, device)
    return step.weigh()[1]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["retinanet/r50_2x_ms_lgd", "examples/bccd_small"])
def test_of_a_large_vocabulary_a_step_takes_little_more_than_the_students(recipe):
    """Each in a process of its own: what others have freed would be taken again, and not be seen."""
    peaks = []
    for enabled in (False, True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks.append(process.submit(weigh, recipe, enabled).result())
    student, distilled = peaks
    assert student < distilled < 1.5 * student
