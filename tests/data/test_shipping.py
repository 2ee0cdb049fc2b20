import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, multiprocessing

from lgd.data.collate import Layout, collate
from lgd.data.samples import Sample
from lgd.data.shipping import Buffers, Shipment
from lgd.structures import Batch
from tests.forked import CONTEXT
from tests.training import REPOSITORY

LAYOUTS = [Layout(4), Layout(4, channels_last=True), Layout(4, canvases=((12, 16),), channels_last=True)]


def draw_samples(seed, sizes=((5, 9), (8, 3))):
    generator = torch.Generator().manual_seed(seed)
    return [
        Sample(
            image=torch.randint(1, 256, (3, *size), dtype=torch.uint8, generator=generator),
            boxes=torch.rand(seed % 3, 4, generator=generator),
            labels=torch.randint(0, 9, (seed % 3,), generator=generator),
            original_size=size,
            image_id=10 * seed + place,
        )
        for place, size in enumerate(sizes)
    ]


def assert_same(found, expected):
    assert isinstance(found, Batch)
    pairs = []
    for batch in (found, expected):
        tensors: list[Tensor] = [batch.image_ids]
        batch.map(lambda tensor, tensors=tensors: tensors.append(tensor) or tensor)
        pairs.append(tensors)
    assert all(torch.equal(one, other) for one, other in zip(*pairs, strict=True))
    assert found.skipped == expected.skipped
    assert found.images.stride() == expected.images.stride()


@pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC", "static"])
def test_the_batch_is_what_it_would_be_in_memory_of_its_own(layout):
    buffers = Buffers()
    for seed in range(4):
        shipment = collate(draw_samples(seed), layout=layout, buffers=buffers)
        assert isinstance(shipment, Shipment)
        assert_same(shipment.unload(), collate(draw_samples(seed), layout=layout))
        shipment.buffer.contents.fill_(255)  # what the next batch finds there


def test_a_buffer_is_used_again_when_its_batch_is_copied_and_not_before():
    buffers = Buffers()
    ship = partial(collate, layout=Layout(4), buffers=buffers)
    first, second = ship(draw_samples(1)), ship(draw_samples(2))
    places = [x.buffer.memory.data_ptr() for x in (first, second)]
    assert places[0] != places[1]
    kept = second.unload()
    third = ship(draw_samples(3))
    assert third.buffer.memory.data_ptr() == places[1]
    assert_same(kept, collate(draw_samples(2), layout=Layout(4)))
    assert_same(first.unload(), collate(draw_samples(1), layout=Layout(4)))
    assert_same(third.unload(), collate(draw_samples(3), layout=Layout(4)))


def test_a_larger_batch_takes_the_place_of_a_free_buffer():
    buffers = Buffers()
    for size in ((4, 4), (40, 4), (4, 40), (4, 4)):
        samples = draw_samples(1, [size])
        shipment = collate(samples, layout=Layout(4), buffers=buffers)
        assert_same(shipment.unload(), collate(samples, layout=Layout(4)))
    assert len(buffers._buffers) == 1


def test_pinning_gives_the_buffer_back(monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    shipment = collate(draw_samples(1), layout=Layout(4), buffers=Buffers())
    assert not shipment.buffer.is_free
    assert_same(shipment.pin_memory(), collate(draw_samples(1), layout=Layout(4)))
    assert shipment.buffer.is_free


def send(queue, released):
    buffers = Buffers()
    for seed in range(6):
        queue.put(collate(draw_samples(seed), layout=Layout(4), buffers=buffers))
        if seed % 2:
            released.wait()
            released.clear()
    queue.put(len(buffers._buffers))


@pytest.mark.parametrize("method", ["fork", CONTEXT.get_start_method()])
def test_from_another_process(method):
    """A fork of this one, which inherits its memory, and one that does not."""
    context = multiprocessing.get_context(method)
    queue, released = context.Queue(), context.Event()
    process = context.Process(target=send, args=(queue, released), daemon=True)
    process.start()
    kept = []
    for _ in range(3):
        kept += [queue.get(timeout=60).unload() for _ in range(2)]
        released.set()
    assert queue.get(timeout=60) == 2
    process.join(60)
    for seed, batch in enumerate(kept):
        assert_same(batch, collate(draw_samples(seed), layout=Layout(4)))


ENDING = """
import sys
from pathlib import Path
from lgd.data.catalog import open_dataset
from lgd.data.loader import train_loader
index = open_dataset(f"coco:{sys.argv[1]}:train", Path())
batches = iter(train_loader(index, batch_size=2, world_size=1, rank=0, seed=0, min_sizes=(32,), max_size=64, num_workers=2))
next(batches)
print("leaving")
"""  # noqa: E501


@pytest.mark.parametrize(
    ("ending", "code"), [("", 0), pytest.param("raise KeyError('x')", 1, marks=pytest.mark.slow)]
)
def test_a_program_ends_though_its_batches_are_not_used_up(small_data, ending, code):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ENDING + ending, small_data],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "leaving\n"
    assert done.returncode == code
    assert "worker" not in done.stderr


def test_shapes_come_and_go_without_more_buffers():
    buffers, generator = Buffers(), torch.Generator().manual_seed(0)
    on_the_way: list[Shipment] = []
    for seed in range(40):
        sizes = torch.randint(1, 40, (2, 2), generator=generator).tolist()
        samples = draw_samples(seed, [tuple(size) for size in sizes])
        on_the_way.append(collate(samples, layout=Layout(4), buffers=buffers))
        if len(on_the_way) == 3:
            on_the_way.pop(0).unload()
    assert len(buffers._buffers) == 3
