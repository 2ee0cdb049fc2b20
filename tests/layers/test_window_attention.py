import numpy as np
import pytest
import torch

from lgd.layers.window_attention import WindowAttention, join_windows, make_shift_mask, split_windows


def slow_attention(attention, windows, masks, num_heads, window_size):
    """Softmax attention window by window, head by head, query by query."""
    state = {name: x.detach().numpy() for name, x in attention.state_dict().items()}
    table = state["relative_position_bias_table"]
    batch, num_windows, length, channels = windows.shape
    depth = channels // num_heads
    out = np.zeros(windows.shape)
    for b, w in np.ndindex(batch, num_windows):
        q, k, v = (
            (windows[b, w] @ state["qkv.weight"].T + state["qkv.bias"]).reshape(length, 3, -1).swapaxes(0, 1)
        )
        for head, i in np.ndindex(num_heads, length):
            part = slice(head * depth, (head + 1) * depth)
            logits = np.zeros(length)
            for j in range(length):
                dy, dx = i // window_size - j // window_size, i % window_size - j % window_size
                row = (dy + window_size - 1) * (2 * window_size - 1) + dx + window_size - 1
                logits[j] = q[i, part] @ k[j, part] / depth**0.5 + table[row, head] + masks[w, i, j]
            weights = np.exp(logits - logits.max())
            out[b, w, i, part] = weights / weights.sum() @ v[:, part]
    return out @ state["proj.weight"].T + state["proj.bias"]


def slow_shift_mask(height, width, window_size):
    """-100 between tokens that the roll brought together, found by rolling the cells' coordinates."""
    shift = window_size // 2
    padded = [-(-size // window_size) * window_size for size in (height, width)]
    rows, columns = np.meshgrid(*map(np.arange, padded), indexing="ij")
    # A rolled cell sits at its old coordinate less the shift, or at the far end if that is negative.
    wrapped = np.stack([rows < shift, columns < shift], -1)
    wrapped = np.roll(wrapped, (-shift, -shift), axis=(0, 1))
    masks = []
    for top in range(0, padded[0], window_size):
        for left in range(0, padded[1], window_size):
            tokens = wrapped[top : top + window_size, left : left + window_size].reshape(-1, 2)
            apart = (tokens[:, None] != tokens[None]).any(-1)
            masks.append(np.where(apart, -100.0, 0.0))
    return np.stack(masks)


def make_attention(channels=6, num_heads=2, window_size=3, **kwargs):
    attention = WindowAttention(channels, num_heads, window_size, **kwargs).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    return attention


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("reference_order", [False, True])
def test_window_by_window(is_shifted, reference_order):
    torch.manual_seed(0)
    attention = make_attention(reference_order=reference_order)
    windows = torch.randn(2, 6, 9, 6, dtype=torch.float64)
    mask = make_shift_mask(torch.empty(2, 5, 9, 6, dtype=torch.float64), 3) if is_shifted else None
    masks = np.zeros((6, 9, 9)) if mask is None else mask.numpy()
    expected = slow_attention(attention, windows.numpy(), masks, num_heads=2, window_size=3)
    assert np.allclose(attention(windows, mask).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("height", "width"), [(14, 21), (1, 1), (7, 8), (13, 20), (3, 30)])
@pytest.mark.parametrize("window_size", [7, 4])
def test_shift_mask(height, width, window_size):
    mask = make_shift_mask(torch.empty(1, height, width, 8, dtype=torch.float64), window_size)
    assert mask.dtype == torch.float64
    assert np.array_equal(mask.numpy(), slow_shift_mask(height, width, window_size))


def test_shift_mask_of_a_single_window_parts_it_into_four():
    mask = make_shift_mask(torch.empty(1, 2, 2, 1), 3)
    groups = [0, 0, 1, 0, 0, 1, 2, 2, 3]
    assert mask.tolist() == [[[0.0 if a == b else -100.0 for b in groups] for a in groups]]


def test_windows_row_by_row():
    x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = split_windows(x, 2)
    assert windows.shape == (2, 6, 4, 1)
    assert windows[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert windows[1, 3, :, 0].tolist() == [36, 37, 42, 43]
    assert torch.equal(join_windows(windows, 4, 6), x)


def test_gradients():
    torch.manual_seed(0)
    attention = make_attention(channels=2, num_heads=1, window_size=2)
    windows = torch.randn(2, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    mask = make_shift_mask(torch.empty(2, 2, 3, 2, dtype=torch.float64), 2)
    assert torch.autograd.gradcheck(lambda *_: attention(windows, mask), (windows, *attention.parameters()))


def test_bfloat16():
    torch.manual_seed(0)
    attention = WindowAttention(16, 2, 3)
    windows = torch.randn(2, 4, 9, 16)
    mask = make_shift_mask(torch.empty(2, 5, 5, 16), 3)
    expected = attention(windows, mask)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = attention(windows, mask)
    whole = attention.bfloat16()(windows.bfloat16(), mask.bfloat16())
    for out in (autocast, whole):
        assert out.dtype == torch.bfloat16
        assert torch.allclose(out.float(), expected, atol=0.02)
