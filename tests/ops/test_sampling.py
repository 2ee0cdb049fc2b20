import pytest
import torch

from lgd.ops.sampling import sample_balanced


def masks(*rows):
    """Foreground and background from strings of f, b and - (neither)."""
    rows = [list(row) for row in rows]
    return tuple(torch.tensor([[x == kind for x in row] for row in rows]) for kind in "fb")


def draw(foreground, background, **kwargs):
    samples = sample_balanced(foreground, background, **kwargs)
    assert samples.indices.dtype == torch.int64
    assert not (samples.foreground & ~samples.valid).any()
    for image in range(len(foreground)):
        indices = samples.indices[image][samples.valid[image]]
        assert len(indices) == len(indices.unique())
        is_foreground = samples.foreground[image][samples.valid[image]]
        assert torch.equal(foreground[image][indices], is_foreground)
        assert torch.equal(background[image][indices], ~is_foreground)
    return samples


def counts(samples):
    return samples.foreground.sum(1).tolist(), samples.valid.sum(1).tolist()


def test_foreground_is_limited_and_background_fills_the_rest():
    foreground, background = masks("ffffffbbbbbb", "f--bbbbbbbbb", "bbbbbbbbbbbb")
    samples = draw(foreground, background, num_samples=6, positive_fraction=0.5)
    assert samples.indices.shape == (3, 6)
    assert counts(samples) == ([3, 1, 0], [6, 6, 6])
    assert samples.foreground[0].tolist() == [True] * 3 + [False] * 3


def test_foreground_does_not_fill_up_for_missing_background():
    samples = draw(*masks("fffffffb", "--------"), num_samples=6, positive_fraction=0.5)
    assert counts(samples) == ([3, 0], [4, 0])


def test_all_are_taken_where_more_are_asked_for():
    foreground, background = masks("fbb-f", "-bbbb")
    samples = draw(foreground, background, num_samples=1000, positive_fraction=0.5)
    assert samples.indices.shape == (2, 5)
    assert counts(samples) == ([2, 0], [4, 4])


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.3, 2), (1.0, 8)])
def test_fraction_is_rounded_down(fraction, expected):
    samples = draw(*masks("f" * 20 + "b" * 20), num_samples=8, positive_fraction=fraction)
    assert counts(samples) == ([expected], [8])


def test_every_candidate_is_as_likely_as_another():
    torch.manual_seed(0)
    foreground, background = masks("f" * 8 + "-" * 3 + "b" * 16)
    foreground, background = foreground.expand(4000, -1), background.expand(4000, -1)
    samples = sample_balanced(foreground, background, num_samples=8, positive_fraction=0.25)
    drawn = torch.zeros(foreground.shape).scatter(1, samples.indices, samples.valid.float())
    frequency = drawn.mean(0)
    assert torch.allclose(frequency[:8], torch.tensor(2 / 8), atol=0.04)
    assert (frequency[8:11] == 0).all()
    assert torch.allclose(frequency[11:], torch.tensor(6 / 16), atol=0.04)


def test_follows_the_global_seed():
    arguments = {"num_samples": 4, "positive_fraction": 0.5}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(sample_balanced(*masks("f" * 50 + "b" * 50), **arguments).indices)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
