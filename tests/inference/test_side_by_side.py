import threading

import pytest
import torch

from lgd.inference.side_by_side import Parts, side_by_side


def test_one_is_the_caller_itself():
    with side_by_side(1) as run_each:
        assert set(run_each(lambda x: threading.current_thread(), [1, 2])) == {threading.current_thread()}


def test_results_come_in_order_from_threads_that_share_torchs(two_threads):
    meeting = threading.Barrier(2, timeout=30)

    def compute(x):
        meeting.wait()  # passes only where two run at once
        return x, torch.get_num_threads()

    with side_by_side(2) as run_each:
        assert list(run_each(compute, range(4))) == [(x, 1) for x in range(4)]
        assert list(run_each(lambda x: torch.get_num_threads(), [0])) == [2], "a single one gets all"
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [torch.get_num_threads()] == [2]


def test_a_fault_comes_to_the_caller_and_the_rest_is_left(two_threads):
    begun = []

    def compute(x):
        begun.append(x)
        raise KeyError(x)

    with pytest.raises(KeyError), side_by_side(2) as run_each:
        list(run_each(compute, range(1000)))
    assert len(begun) < 1000
    assert torch.get_num_threads() == 2


def pictures(count):
    generator = torch.Generator().manual_seed(0)
    # Two canvases, so that batches are cut and sorted.
    return [
        torch.randint(256, (3, 48 + 64 * (i % 3 == 0), 96), dtype=torch.uint8, generator=generator)
        for i in range(count)
    ]


def test_a_batch_in_parts_finds_what_one_after_the_other_finds(tiny_model, two_threads, monkeypatch):
    given, threads = pictures(7), set()
    run = tiny_model.run

    def look(batch):
        name = threading.current_thread().name.split("_")[0]
        threads.add((name, torch.get_num_threads(), len(batch.images) <= 2))
        return run(batch)

    monkeypatch.setattr(tiny_model, "run", look)
    together = tiny_model.predict(given, 0.0105, batch=4)
    assert threads == {("batches", 1, True)}
    torch.set_num_threads(1)
    apart = tiny_model.predict(given, 0.0105, batch=2)
    assert sum(map(len, together)) > 0
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)


def test_a_single_picture_has_all_threads(tiny_model, two_threads, monkeypatch):
    seen, run = [], tiny_model.run
    monkeypatch.setattr(tiny_model, "run", lambda batch: seen.append(torch.get_num_threads()) or run(batch))
    tiny_model.predict(pictures(1)[0])
    assert seen == [2]


@pytest.mark.parametrize(
    ("parts", "batch", "sizes"),
    [
        (Parts(), 4, {2}),
        (Parts(2), 8, {4}),
        (Parts(3), 8, {3}),
        (Parts(4), 4, {4}),
        (Parts(8), 4, {8}),
        (Parts(1, 1), 8, {1}),
        (Parts(2, 2), 8, {2}),
        (None, 4, {4}),
    ],
)
def test_parts_hold_what_a_file_takes(parts, batch, sizes, tiny_model, two_threads, monkeypatch):
    seen, run = set(), tiny_model.run
    monkeypatch.setattr(tiny_model, "parts", parts)
    monkeypatch.setattr(tiny_model, "run", lambda batch: seen.add(len(batch.images)) or run(batch))
    tiny_model.predict([pictures(2)[1]] * 24, batch=batch)
    assert seen == sizes
