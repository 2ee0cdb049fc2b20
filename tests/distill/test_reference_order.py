import itertools

import pytest
import torch

from lgd.distill.reference_order import ReferenceOrderTeacher
from lgd.distill.teacher import DynamicTeacher
from tests.detectors.small import make_batch, with_masks
from tests.distill.test_teacher import PATTERNS, make_features


@pytest.mark.parametrize("num_objects", [[2, 0, 3], [1], [0, 0]])
@pytest.mark.parametrize(
    ("pattern", "add_context_box", "use_masks"),
    list(itertools.product(PATTERNS, [False, True], [False, True])),
)
def test_the_same_numbers_and_gradients_to_rounding(pattern, add_context_box, use_masks, num_objects):
    settings = {"channels": 8, "num_classes": 3, "num_heads": 2, "interact_pattern": pattern}
    settings |= {"add_context_box": add_context_box, "use_masks": use_masks}
    settings |= {"category_format": "embedding" if num_objects == [1] else "one_hot"}
    torch.manual_seed(0)
    teacher = DynamicTeacher(**settings).double()
    slower = ReferenceOrderTeacher(**settings).double()
    slower.load_state_dict(teacher.state_dict())
    batch, results = with_masks(make_batch(num_objects)), []
    for each in (teacher, slower):
        features = make_features(len(num_objects), requires_grad=True)
        taught = each(features, batch)
        sum((x**3).sum() for x in taught.values()).backward()
        results.append((dict(taught), {level: x.grad for level, x in features.items()}))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-10)
    for (name, p), (_, q) in zip(teacher.named_parameters(), slower.named_parameters(), strict=True):
        gradient = torch.zeros_like(q) if q.grad is None else q.grad
        torch.testing.assert_close(gradient, p.grad, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("detach", [False, True])
def test_detach_appearance_embed(detach):
    torch.manual_seed(0)
    teacher = ReferenceOrderTeacher(channels=8, num_classes=3, num_heads=2, detach_appearance_embed=detach)
    features = make_features(1, requires_grad=True)
    taught = teacher.double()(features, make_batch([2]))
    sum((x**3).sum() for x in taught.values()).backward()
    assert (features["p3"].grad is None) == detach
