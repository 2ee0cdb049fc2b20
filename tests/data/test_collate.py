import torch

from lgd.data.collate import Layout, collate
from lgd.data.outlines import ImageOutlines
from lgd.data.samples import Sample
from lgd.structures import Batch


def test_collate_by_hand():
    def sample(height: int, width: int, count: int) -> Sample:
        return Sample(
            image=torch.full((3, height, width), 7, dtype=torch.uint8),
            boxes=torch.arange(4.0 * count).view(count, 4),
            labels=torch.full((count,), 2),
            original_size=(height * 2, width * 2),
            image_id=height,
            skipped=("one",) * (count == 2),
        )

    batch = collate([sample(5, 9, 2), sample(8, 3, 0)], layout=Layout(size_divisibility=4))
    assert isinstance(batch, Batch)
    assert batch.images.shape == (2, 3, 8, 12)
    assert batch.images.sum().item() == 7 * 3 * (45 + 24)
    assert batch.sizes.tolist() == [[5, 9], [8, 3]]
    assert batch.original_sizes.tolist() == [[10, 18], [16, 6]]
    assert batch.targets.valid.tolist() == [[True, True], [False, False]]
    assert batch.targets.boxes[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch.targets.labels.tolist() == [[2, 2], [0, 0]]
    assert batch.skipped == ("one",)
    assert batch.targets.outlines is None


def test_collate_pads_outlines():
    def sample(*counts: int) -> Sample:
        total = sum(counts)
        return Sample(
            image=torch.zeros(3, 4, 4, dtype=torch.uint8),
            boxes=torch.zeros(len(counts), 4),
            labels=torch.zeros(len(counts), dtype=torch.int64),
            original_size=(4, 4),
            image_id=1,
            outlines=ImageOutlines(
                torch.arange(1.0, total + 1)[:, None].repeat(1, 4).double(),
                torch.arange(total) % 2,
                torch.tensor(counts, dtype=torch.int64),
            ),
        )

    batch = collate([sample(3, 2), sample(), sample(4)], layout=Layout(size_divisibility=4))
    assert isinstance(batch, Batch)
    outlines = batch.targets.outlines
    assert outlines is not None
    assert outlines.edges[..., 0].tolist() == [
        [[1, 2, 3, 0], [4, 5, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
        [[1, 2, 3, 4], [0, 0, 0, 0]],
    ]
    assert outlines.parts[0].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert outlines.num_parts == 2
