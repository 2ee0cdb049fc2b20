import math

import hotcoco.mask
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_api

from lgd.ops import polygons as module
from lgd.ops.polygons import image_area, rasterize_in_boxes, rasterize_on_grid

# pycocotools makes its arrays in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def star(generator, center, radius, num_corners):
    angles = np.sort(generator.uniform(0, 2 * math.pi, num_corners))
    radii = radius * generator.uniform(0.2, 1, num_corners)
    return (center + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]).reshape(-1)


def random_polygon(generator, extent):
    """Stars, self-crossing scribbles, corners on (half) pixels and fifths, repeated corners, far outside."""
    num_corners = int(generator.integers(3, 20))
    kind = generator.integers(6)
    if kind == 0:
        return star(
            generator, generator.uniform(0, extent, 2), extent * generator.uniform(0.1, 1), num_corners
        )
    points = generator.uniform(-0.3 * extent, 1.3 * extent, (num_corners, 2))
    if kind == 1:
        points = points.round()
    elif kind == 2:
        points = (2 * points).round() / 2
    elif kind == 3:
        points = (10 * points).round() / 10
    elif kind == 4:
        points = np.repeat(points[: num_corners // 2 + 1], 2, axis=0)
    else:
        points = points * (1, 5) - (0, 2 * extent)
    return points.reshape(-1)


def random_objects(seed, count, extent):
    generator = np.random.default_rng(seed)
    return [
        [random_polygon(generator, extent) for _ in range(generator.integers(1, 4))] for _ in range(count)
    ]


def pad(objects):
    """Edges (P, E, 4), parts (P, E), number of parts."""
    num_edges = max(sum(len(p) // 2 for p in polygons) for polygons in objects)
    edges = torch.zeros(len(objects), num_edges, 4, dtype=torch.float64)
    parts = torch.zeros(len(objects), num_edges, dtype=torch.int64)
    for k, polygons in enumerate(objects):
        start = 0
        for number, polygon in enumerate(polygons):
            corners = torch.from_numpy(polygon).view(-1, 2)
            end = start + len(corners)
            edges[k, start:end] = torch.cat([corners, corners.roll(-1, 0)], dim=1)
            parts[k, start:end] = number
            start = end
    return edges, parts, max(map(len, objects))


def draw(polygons, height, width):
    rles = mask_api.frPyObjects([p.tolist() for p in polygons], height, width)
    return torch.from_numpy(mask_api.decode(mask_api.merge(rles)).astype(bool))


def draw_in_box(polygons, box, size):
    scale = size / np.maximum(box[2:] - box[:2], 0.1)
    return draw([((p.reshape(-1, 2) - box[:2]) * scale).reshape(-1) for p in polygons], size, size)


@pytest.mark.parametrize(("size", "count"), [(1, 300), (7, 1500), (28, 1500), (100, 300)])
def test_in_boxes_is_pycocotools_to_the_bit(size, count):
    objects = random_objects(size, count, 60.0)
    generator = np.random.default_rng(0)
    corner = generator.uniform(-10, 50, (count, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(0, 60, (count, 2))], axis=1)
    boxes[::3] = boxes[::3].round()
    boxes[::50, 2:] = boxes[::50, :2]
    masks = rasterize_in_boxes(*pad(objects), torch.from_numpy(boxes), size)
    assert masks.shape == (count, size, size)
    for mask, polygons, box in zip(masks, objects, boxes, strict=True):
        assert torch.equal(mask, draw_in_box(polygons, box, size))
    assert 0.1 < masks.double().mean() < 0.9


def test_in_boxes_that_are_the_image_is_hotcoco_to_the_bit():
    objects = random_objects(1, 500, 40.0)
    boxes = torch.tensor([[0.0, 0, 40, 40]]).repeat(500, 1)
    masks = rasterize_in_boxes(*pad(objects), boxes, 40)
    for mask, polygons in zip(masks, objects, strict=True):
        merged = hotcoco.mask.merge(hotcoco.mask.frPyObjects([p.tolist() for p in polygons], 40, 40))
        assert np.array_equal(mask.numpy(), hotcoco.mask.decode(merged).astype(bool))


def test_steps_that_hang_on_the_last_bit():
    """Triangles between whole fifths: every slope and tie of small edges."""
    generator = np.random.default_rng(2)
    objects = [[generator.integers(0, 100, 6) / 5 + 1e-9] for _ in range(4000)]
    boxes = torch.tensor([[0.0, 0, 20, 20]]).repeat(4000, 1)
    masks = rasterize_in_boxes(*pad(objects), boxes, 20)
    for mask, polygons in zip(masks, objects, strict=True):
        assert torch.equal(mask, draw(polygons, 20, 20))


def test_by_hand():
    """A square, and a smaller one in it: united with it as another part, cut out of it as the same part."""
    square = np.array([1.0, 1, 3, 1, 3, 3, 1, 3])
    inner = np.array([2.0, 2, 3, 2, 3, 3, 2, 3])
    edges, parts, _ = pad([[square, inner]] * 2)
    parts[1] = 0
    masks = rasterize_in_boxes(edges, parts, 2, torch.tensor([[0.0, 0, 4, 4]] * 2), 4)
    assert masks[0].int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert masks[1].int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_unused_slots_are_empty():
    edges, parts = torch.zeros(3, 5, 4), torch.zeros(3, 5, dtype=torch.int64)
    assert not rasterize_in_boxes(edges, parts, 1, torch.zeros(3, 4), 7).any()
    assert rasterize_in_boxes(edges[:0], parts[:0], 1, torch.zeros(0, 4), 7).shape == (0, 7, 7)
    assert not rasterize_on_grid(edges[None], parts[None], 1, torch.tensor([[8, 8]]), (32, 32), (8, 8)).any()


def test_single_precision_is_computed_in_double():
    edges, parts, num_parts = pad(random_objects(5, 200, 50.0))
    boxes = torch.rand(200, 4) * 20 + torch.tensor([0, 0, 30, 30])
    exact = rasterize_in_boxes(edges.float().double(), parts, num_parts, boxes.double(), 28)
    assert torch.equal(rasterize_in_boxes(edges.float(), parts, num_parts, boxes, 28), exact)


@pytest.mark.parametrize("grid", [(32, 40), (16, 20), (4, 5), (2, 3), (1, 1), (3, 7), (128, 160)])
def test_on_grid_is_pycocotools_padded_and_resized(grid):
    canvas, sizes = (128, 160), torch.tensor([[128, 160], [101, 133], [77, 160]])
    objects = random_objects(7, 3 * 40, 120.0)
    edges, parts, num_parts = pad(objects)
    masks = rasterize_on_grid(
        edges.unflatten(0, (3, 40)), parts.unflatten(0, (3, 40)), num_parts, sizes, canvas, grid
    )
    assert masks.shape == (3, 40, *grid)
    for k, polygons in enumerate(objects):
        height, width = sizes[k // 40].tolist()
        drawn = F.pad(draw(polygons, height, width), (0, canvas[1] - width, 0, canvas[0] - height))
        expected = F.interpolate(drawn[None, None].double(), size=grid, mode="nearest")[0, 0] > 0
        assert torch.equal(masks.flatten(0, 1)[k], expected)


def test_image_area():
    area = image_area(torch.tensor([[64, 33], [17, 64]]), (64, 64), (4, 2))
    assert area.int().tolist() == [[[1, 1]] * 4, [[1, 1], [1, 1], [0, 0], [0, 0]]]


def test_chunks_change_nothing(monkeypatch):
    edges, parts, num_parts = pad(random_objects(9, 30, 50.0))
    boxes = torch.tensor([[0.0, 0, 50, 50]]).repeat(30, 1)
    sizes = torch.tensor([[50, 60]] * 3)
    batched = edges.unflatten(0, (3, 10)), parts.unflatten(0, (3, 10)), num_parts, sizes, (64, 64), (16, 16)
    in_boxes, on_grid = rasterize_in_boxes(edges, parts, num_parts, boxes, 14), rasterize_on_grid(*batched)
    monkeypatch.setattr(module, "_MAX_ELEMENTS", 1)
    assert torch.equal(rasterize_in_boxes(edges, parts, num_parts, boxes, 14), in_boxes)
    assert torch.equal(rasterize_on_grid(*batched), on_grid)


def test_no_host_sync():
    """Tensors without data: asking one for a value raises."""
    edges, parts = torch.zeros(6, 5, 4, device="meta"), torch.zeros(6, 5, dtype=torch.int64, device="meta")
    boxes, sizes = torch.zeros(6, 4, device="meta"), torch.zeros(2, 2, dtype=torch.int64, device="meta")
    assert rasterize_in_boxes(edges, parts, 2, boxes, 28).shape == (6, 28, 28)
    edges, parts = edges.unflatten(0, (2, 3)), parts.unflatten(0, (2, 3))
    assert rasterize_on_grid(edges, parts, 2, sizes, (64, 64), (8, 8)).shape == (2, 3, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_is_cpu_to_the_bit():
    edges, parts, num_parts = pad(random_objects(11, 900, 60.0))
    boxes = torch.rand(900, 4) * 20 + torch.tensor([0, 0, 30, 30])
    expected = rasterize_in_boxes(edges, parts, num_parts, boxes, 28)
    assert torch.equal(
        rasterize_in_boxes(edges.cuda(), parts.cuda(), num_parts, boxes.cuda(), 28).cpu(), expected
    )
    batched = edges.unflatten(0, (3, 300)), parts.unflatten(0, (3, 300))
    sizes = torch.tensor([[60, 64], [50, 40], [64, 64]])
    expected = rasterize_on_grid(*batched, num_parts, sizes, (64, 64), (13, 16))
    on_gpu = rasterize_on_grid(*(x.cuda() for x in batched), num_parts, sizes.cuda(), (64, 64), (13, 16))
    assert torch.equal(on_gpu.cpu(), expected)
