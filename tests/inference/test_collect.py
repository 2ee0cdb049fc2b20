"""From tensors to columns."""

import json

import torch
from hotcoco import mask as mask_tools

from lgd.evaluation.masks import paste_masks
from lgd.inference.collect import collect_predictions
from lgd.structures import Batch, Detections, Targets


def make_batch(image_ids, sizes):
    count = len(image_ids)
    labels = torch.zeros((count, 0), dtype=torch.int64)
    return Batch(
        images=torch.zeros((count, 3, 8, 8), dtype=torch.uint8),
        sizes=torch.tensor([[8, 8]] * count),
        original_sizes=torch.tensor(sizes),
        image_ids=torch.tensor(image_ids),
        targets=Targets(torch.zeros(count, 0, 4), labels, labels.bool()),
    )


def nothing(*mask_size):
    masks = torch.zeros(0, *mask_size) if mask_size else None
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), masks)


def test_boxes():
    detections = Detections(
        boxes=torch.tensor([[1.0, 2.0, 4.5, 8.0], [0.0, 0.1, 10.0, 20.0]]),
        scores=torch.tensor([0.75, 0.1]),
        labels=torch.tensor([1, 0]),
    )
    batch = make_batch([42, 7, 9], [[20, 30]] * 3)
    found = collect_predictions([detections, nothing(), detections], batch, [3, 90])
    tenth = float(torch.tensor(0.1))
    assert found.to_results() == [
        result
        for image_id in (42, 9)
        for result in (
            {"image_id": image_id, "category_id": 90, "bbox": [1.0, 2.0, 3.5, 6.0], "score": 0.75},
            {"image_id": image_id, "category_id": 3, "bbox": [0.0, tenth, 10.0, 20 - tenth], "score": tenth},
        )
    ]
    assert found.masks is None


def test_masks_are_pasted_and_encoded():
    masks = torch.rand((3, 28, 28), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[1.5, 2.0, 14.5, 18.0], [0.0, 0.0, 30.0, 20.0], [25.0, 10.0, 30.0, 20.0]])
    detections = Detections(boxes, torch.tensor([0.9, 0.75, 0.5]), torch.tensor([1, 0, 1]), masks)
    batch = make_batch([1, 2, 3], [[20, 30], [5, 5], [20, 31]])
    results = collect_predictions([detections, nothing(28, 28), detections], batch, [3, 90]).to_results()
    for part, size in ((results[:3], (20, 30)), (results[3:], (20, 31))):
        bitmaps = mask_tools.decode([result["segmentation"] for result in part])
        assert torch.equal(torch.from_numpy(bitmaps).permute(2, 0, 1).bool(), paste_masks(masks, boxes, size))
    assert json.loads(json.dumps(results)) == results
    assert collect_predictions([nothing(28, 28)], make_batch([1], [[5, 5]]), [3]).masks is not None
