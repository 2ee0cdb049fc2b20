from collections import Counter
from math import floor

import numpy as np
import pytest

from lgd.data.samplers import (
    MicroBatchSampler,
    TrainingSampler,
    aspect_groups,
    evaluation_batches,
    repeat_factors,
    weigh_parts,
)


def make(num_tall: int, num_wide: int, global_batch_size: int, seed: int = 0) -> TrainingSampler:
    """Images 0 to num_tall - 1 are tall, the rest wide."""
    groups = np.array([0] * num_tall + [1] * num_wide)
    return TrainingSampler(np.arange(len(groups)), groups, global_batch_size=global_batch_size, seed=seed)


def slow_batches(num_tall: int, num_wide: int, size: int, seed: int, count: int) -> list[list[int]]:
    """The same sequence with queues that are filled and emptied."""
    total = num_tall + num_wide
    u = int(np.random.default_rng((seed, 2)).integers(total)) / total
    members = [np.arange(num_tall), np.arange(num_tall, total)]
    queues: list[list[int]] = [[], []]
    epochs = [0, 0]
    batches = []
    for k in range(count):
        r = num_wide / total
        group = int(floor((k + 1) * r + u + 1e-9) > floor(k * r + u + 1e-9))
        while len(queues[group]) < size:
            order = np.random.default_rng((seed, group, epochs[group])).permutation(len(members[group]))
            queues[group] += members[group][order].tolist()
            epochs[group] += 1
        batches.append(queues[group][:size])
        queues[group] = queues[group][size:]
    return batches


@pytest.mark.parametrize(("tall", "wide"), [(7, 20), (30, 3), (1, 1), (0, 11), (11, 0), (1, 0), (13, 13)])
@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("seed", [0, 5])
def test_equals_the_slow_sequence_from_any_place(tall, wide, size, seed):
    expected = slow_batches(tall, wide, size, seed, 60)
    sampler = make(tall, wide, size, seed)
    assert [sampler.batch(k).tolist() for k in range(60)] == expected
    fresh = make(tall, wide, size, seed)
    assert [fresh.batch(k).tolist() for k in (59, 3, 31)] == [expected[k] for k in (59, 3, 31)]


def test_batches_are_of_one_group_and_groups_have_their_share():
    sampler = make(30, 90, 8)
    batches = [sampler.batch(k) for k in range(400)]
    groups = [set((batch >= 30).tolist()) for batch in batches]
    assert all(len(group) == 1 for group in groups)
    assert sum(group == {True} for group in groups) == 300


def test_every_image_once_in_each_epoch_of_its_group():
    sampler = make(10, 25, 4)
    seen: dict[bool, list[int]] = {False: [], True: []}
    for k in range(200):
        batch = sampler.batch(k).tolist()
        seen[batch[0] >= 10] += batch
    for images, members in ((seen[False], range(10)), (seen[True], range(10, 35))):
        n = len(members)
        for first in range(0, len(images) - n, n):
            assert sorted(images[first : first + n]) == list(members)
        assert images[:n] != images[n : 2 * n]


def test_long_runs_stay_balanced():
    counts = Counter(image for k in range(5000) for image in make_cached().batch(k).tolist())
    assert max(counts.values()) - min(counts.values()) <= 4


_CACHED = make(17, 40, 3)


def make_cached() -> TrainingSampler:
    return _CACHED


def test_seed_changes_the_order():
    assert make(5, 50, 8, 0).batch(0).tolist() != make(5, 50, 8, 1).batch(0).tolist()


@pytest.mark.parametrize(("num_ranks", "steps"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (8, 1)])
def test_global_batch_does_not_depend_on_ranks_or_accumulation(num_ranks, steps):
    whole = make(7, 20, 8)
    parts = [MicroBatchSampler(make(7, 20, 8), num_ranks, rank, steps, 0) for rank in range(num_ranks)]
    for k in range(12):
        pairs = [pair for s in range(steps) for part in parts for pair in part.micro_batch(k * steps + s)]
        assert [image for image, _ in pairs] == whole.batch(k).tolist()
        assert [position for _, position in pairs] == list(range(8 * k, 8 * k + 8))


def test_starts_anywhere():
    def take(start: int, count: int) -> list[list[tuple[int, int]]]:
        batches = iter(MicroBatchSampler(make(7, 20, 8), 2, 1, 2, start))
        return [next(batches) for _ in range(count)]

    whole = take(0, 40)
    for start in (1, 2, 17, 39):
        assert take(start, 40 - start) == whole[start:]


def test_batch_that_cannot_be_shared():
    with pytest.raises(ValueError, match="a global batch of 8 images cannot be shared by 3 ranks in 1"):
        MicroBatchSampler(make(7, 20, 8), 3, 0, 1, 0)


def test_no_images():
    with pytest.raises(ValueError, match="no images to train on"):
        make(0, 0, 8)


def test_groups():
    groups = aspect_groups(np.array([10, 10, 20]), np.array([20, 10, 10]))
    assert groups.tolist() == [1, 0, 0]


@pytest.mark.parametrize("num_images", [0, 1, 2, 7, 64, 101])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_loses_and_doubles_nothing(num_images, num_ranks, batch_size):
    generator = np.random.default_rng(num_images)
    canvases = generator.choice([320, 352, 640], (num_images, 2))
    ranks = [
        evaluation_batches(canvases, batch_size=batch_size, num_ranks=num_ranks, rank=rank)
        for rank in range(num_ranks)
    ]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(num_images))
    for batch in (batch for batches in ranks for batch in batches):
        assert 1 <= len(batch) <= batch_size
        assert len(np.unique(canvases[batch], axis=0)) == 1
    pixels = [sum(int(canvases[i].prod()) for batch in batches for i in batch) for batches in ranks]
    assert max(pixels) - min(pixels) <= batch_size * 640 * 640


def slow_repeat_factors(classes: list[set[int]], threshold: float) -> list[float]:
    shares = Counter(label for labels in classes for label in labels)
    factor = {label: max(1.0, (threshold / (count / len(classes))) ** 0.5) for label, count in shares.items()}
    return [max((factor[label] for label in labels), default=1.0) for labels in classes]


def test_repeat_factors():
    # Class 0 in all four images with annotations, class 1 in one of five, class 3 twice in one.
    image, labels = np.array([0, 1, 1, 2, 3, 3, 3]), np.array([0, 0, 1, 0, 0, 3, 3])
    factors = repeat_factors(image, labels, num_images=5, threshold=0.8)
    assert factors.tolist() == pytest.approx([1, 2, 1, 2, 1])
    assert repeat_factors(image, labels, num_images=5, threshold=0.0).tolist() == [1] * 5
    assert repeat_factors(image[:0], labels[:0], num_images=2, threshold=0.5).tolist() == [1, 1]


def test_repeat_factors_equal_loops_on_random_data():
    generator = np.random.default_rng(0)
    image = np.sort(generator.integers(0, 50, 200))
    labels = (generator.random(200) ** 3 * 12).astype(np.int64)
    classes = [set(labels[image == i].tolist()) for i in range(50)]
    factors = repeat_factors(image, labels, num_images=50, threshold=0.3)
    assert factors.tolist() == pytest.approx(slow_repeat_factors(classes, 0.3))
    assert factors.max() > 1.5


def make_repeating(seed: int = 0) -> TrainingSampler:
    repeats = np.array([1, 1, 2.5, 1, 1, 4, 1.25, 1, 1])
    groups = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    return TrainingSampler(np.arange(9), groups, global_batch_size=4, seed=seed, repeats=repeats)


def test_repeated_images_come_as_often_as_they_should():
    sampler = make_repeating()
    counts = Counter(image for k in range(6875) for image in sampler.batch(k).tolist())
    # 27500 draws for 13.75 images' worth: 2000 each.
    expected = {i: 2000 * f for i, f in enumerate([1, 1, 2.5, 1, 1, 4, 1.25, 1, 1])}
    assert all(abs(counts[image] - expected[image]) <= 5 for image in range(9))


def test_repeating_equals_queues_that_are_filled_epoch_by_epoch():
    repeats = [1, 2.5, 1, 1.75]
    sampler = TrainingSampler(
        np.arange(4), np.zeros(4, dtype=np.int64), global_batch_size=3, seed=1, repeats=np.array(repeats)
    )
    starts = np.random.default_rng((1, 2, 1)).integers(2**16, size=4) / 2**16
    expected: list[int] = []
    for epoch in range(30):
        times = [
            floor((epoch + 1) * f + v) - floor(epoch * f + v) for f, v in zip(repeats, starts, strict=True)
        ]
        assert all(floor(f) <= n <= floor(f) + 1 for f, n in zip(repeats, times, strict=True))
        images = np.repeat(np.arange(4), times)
        expected += images[np.random.default_rng((1, 0, epoch)).permutation(len(images))].tolist()
    assert [i for k in range(60) for i in sampler.batch(k).tolist()] == expected[:180]


def test_a_place_of_the_repeating_sequence_is_reached_without_those_before():
    sampler = make_repeating(3)
    batches = [sampler.batch(k).tolist() for k in range(300)]
    for k in (299, 0, 137, 42):
        assert make_repeating(3).batch(k).tolist() == batches[k]
    assert [make_repeating(4).batch(k).tolist() for k in range(9)] != batches[:9]


def test_factors_of_one_change_how_often_nothing_comes():
    plain = make(6, 9, 5)
    ones = TrainingSampler(
        np.arange(15), np.array([0] * 6 + [1] * 9), global_batch_size=5, seed=0, repeats=np.ones(15)
    )
    counts = [Counter(i for k in range(300) for i in s.batch(k).tolist()) for s in (plain, ones)]
    assert all(abs(counts[0][i] - counts[1][i]) <= 2 for i in range(15))


# weights of parts


def weighted(sizes, weights, *, wide=(), size=4, seed=0, repeats=None):
    """Parts of these sizes one after the other; `wide` images are of the other group."""
    part = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.isin(np.arange(len(part)), wide).astype(np.int64)
    times = weigh_parts(np.ones(len(part)) if repeats is None else repeats, part, np.array(weights))
    sampler = TrainingSampler(np.arange(len(part)), groups, global_batch_size=size, seed=seed, repeats=times)
    return sampler, part, times


@pytest.mark.parametrize(
    ("sizes", "weights", "wide"),
    [
        ((40, 40), (9, 1), range(0)),
        ((300, 5), (1, 1), range(100, 304)),
        ((10, 200, 30), (0.2, 0.7, 0.1), range(0, 240, 3)),
        ((500, 3), (1, 99), range(0, 503, 2)),
    ],
)
def test_parts_have_their_shares(sizes, weights, wide):
    sampler, part, times = weighted(sizes, weights, wide=wide)
    assert times.sum() == pytest.approx(len(part)), "an epoch has as many images as there are"
    num_batches = 3000
    drawn = np.concatenate([sampler.batch(k) for k in range(num_batches)])
    counts = np.bincount(drawn, minlength=len(part))
    shares = np.bincount(part, weights=counts) / len(drawn)
    assert shares == pytest.approx(np.array(weights) / np.sum(weights), abs=0.01)
    expected = times * len(drawn) / len(part)
    # Within a part all come alike often: no image is luckier than another by more than an epoch's rounding.
    assert np.abs(counts - expected).max() <= 2 + 0.02 * expected.max()


def test_the_stream_with_weights_from_any_place():
    sampler, *_ = weighted((300, 5), (1, 40), wide=range(290, 305), size=3)
    for group in (0, 1):
        stream, epoch = [], 0
        while len(stream) < 2000:
            stream += sampler._make_epoch(group, epoch).tolist()
            epoch += 1
        fresh, *_ = weighted((300, 5), (1, 40), wide=range(290, 305), size=3)
        for start in (1990, 0, 777, 1, 31, 1200):
            assert fresh._stream(group, start, start + 10).tolist() == stream[start : start + 10]


def test_weights_and_ranks_share_the_same_batches():
    sampler, *_ = weighted((30, 10), (1, 3), wide=range(20, 40), size=8)
    whole = [sampler.batch(k).tolist() for k in range(20)]
    for num_ranks, steps in ((1, 1), (2, 2), (4, 1)):
        ranks = [MicroBatchSampler(sampler, num_ranks, rank, steps, 0) for rank in range(num_ranks)]
        for k in range(20):
            micro = [ranks[r].micro_batch(k * steps + s) for s in range(steps) for r in range(num_ranks)]
            assert [image for batch in micro for image, _ in batch] == whole[k]


def test_weights_go_with_rare_classes():
    repeats = np.array([1.0, 1.0, 2.0, 1.0, 3.0])
    _, part, times = weighted((3, 2), (1, 1), repeats=repeats)
    assert times.tolist() == pytest.approx([5 / 8, 5 / 8, 5 / 4, 5 / 8, 15 / 8])
    assert np.bincount(part, weights=times).tolist() == pytest.approx([2.5, 2.5])
