"""What a training step keeps for its backward pass."""

import torch

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
