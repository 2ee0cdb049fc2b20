import pytest
import torch

from lgd.data.errors import ImageError
from lgd.data.prefetch import prefetch
from tests.detectors.small import make_batch

CPU = torch.device("cpu")
CUDA = pytest.param(
    torch.device("cuda"),
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


def batches(count, error=None):
    for k in range(count):
        batch = make_batch([2, k % 3], seed=k)
        yield batch.pin_memory() if torch.cuda.is_available() else batch
    if error:
        raise error


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_all_batches_in_order_on_the_device(device):
    found = list(prefetch(batches(5), device))
    assert len(found) == 5
    for batch, expected in zip(found, batches(5), strict=True):
        assert batch.images.device.type == batch.targets.boxes.device.type == device.type
        assert batch.image_ids.device.type == "cpu"
        assert torch.equal(batch.images.cpu(), expected.images)
        assert torch.equal(batch.targets.boxes.cpu(), expected.targets.boxes)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_an_error_comes_in_the_place_of_its_batch(device):
    fetched = prefetch(batches(2, ImageError("broken")), device)
    assert torch.equal(next(fetched).images.cpu(), make_batch([2, 0], seed=0).images)
    assert torch.equal(next(fetched).images.cpu(), make_batch([2, 1], seed=1).images)
    with pytest.raises(ImageError, match="broken"):
        next(fetched)


def test_nothing_is_read_ahead_on_the_cpu():
    drawn = []
    fetched = prefetch((drawn.append(k) or make_batch([1]) for k in range(3)), CPU)
    next(fetched)
    assert drawn == [0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_batch_is_overwritten_while_it_is_used():
    """Each is read late, when those after it have long been copied and given up."""
    device = torch.device("cuda")
    sums = []
    for batch in prefetch(batches(30), device):
        torch.cuda._sleep(2_000_000)
        sums.append(batch.images.sum(dtype=torch.int64))
        del batch
    assert [each.item() for each in sums] == [each.images.sum().item() for each in batches(30)]
