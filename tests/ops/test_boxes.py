import math

import pytest
import torch

from lgd.ops.boxes import (
    box_area,
    box_iou,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    encode_foreground,
    scale_boxes,
)


def test_area():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 3.0], [1.0, 1.0, 1.0, 5.0]])
    assert box_area(boxes).tolist() == [6.0, 0.0]


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    b = torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert torch.equal(box_iou(a, b), torch.tensor([[1 / 3, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))


def test_iou_broadcasts_a_batch_against_shared_boxes():
    a = torch.tensor([[[0.0, 0.0, 2.0, 2.0]], [[1.0, 0.0, 3.0, 2.0]]])
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
    assert torch.equal(box_iou(a, b), torch.tensor([[[1.0, 1 / 3]], [[1 / 3, 1.0]]]))


def test_encode_by_hand():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[5.0, 5.0, 25.0, 15.0]])
    expected = torch.tensor([[1.0, 0.0, math.log(2.0), math.log(0.5)]])
    assert torch.allclose(encode_deltas(anchor, box), expected)
    weighted = encode_deltas(anchor, box, (10.0, 10.0, 5.0, 5.0))
    assert torch.allclose(weighted, expected * torch.tensor([10.0, 10.0, 5.0, 5.0]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decode_inverts_encode(weights):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 50, 2, 2, generator=generator, dtype=torch.float64) * 100
    boxes = torch.cat([corners[:, :, 0], corners[:, :, 0] + corners[:, :, 1] + 1], dim=-1)
    anchors, targets = boxes[0], boxes[1]
    decoded = decode_deltas(anchors, encode_deltas(anchors, targets, weights), weights)
    assert torch.allclose(decoded, targets, atol=1e-10)


def test_decode_holds_the_scale():
    decoded = decode_deltas(torch.tensor([[0.0, 0.0, 16.0, 16.0]]), torch.tensor([[0.0, 0.0, 50.0, 0.0]]))
    assert torch.allclose(decoded, torch.tensor([[-492.0, 0.0, 508.0, 16.0]]))


def test_clip_by_one_size_and_by_one_each():
    boxes = torch.tensor([[-5.0, -1.0, 30.0, 9.0], [2.0, 12.0, 3.0, 40.0]])
    clipped = clip_boxes(boxes, torch.tensor([10, 20]))
    assert clipped.tolist() == [[0.0, 0.0, 20.0, 9.0], [2.0, 10.0, 3.0, 10.0]]
    each = clip_boxes(boxes, torch.tensor([[10, 20], [30, 5]]))
    assert each.tolist() == [[0.0, 0.0, 20.0, 9.0], [2.0, 12.0, 3.0, 30.0]]


def test_scale_takes_y_before_x():
    scaled = scale_boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([10.0, 100.0]))
    assert scaled.tolist() == [[100.0, 20.0, 300.0, 40.0]]


def test_only_foreground_is_encoded_and_the_rest_may_be_empty():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 20.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 1.0, 1.0]])
    boxes = torch.tensor([[5.0, 5.0, 25.0, 15.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = encode_foreground(anchors, boxes, torch.tensor([True, False, False]), weights)
    assert torch.equal(deltas[:1], encode_deltas(anchors[:1], boxes[:1], weights))
    assert (deltas[1:] == 0).all()
