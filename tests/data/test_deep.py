"""Pictures of more than 8 bits: their values survive, and what is none of grey and RGB is named."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data.deep import as_bytes, find_range
from lgd.data.errors import ImageError
from lgd.data.images import count_deep_values, read_image

CAMERA = (0.0, 4095.0)


def twelve_bits(height=50, width=100):
    return np.linspace(0, 4095, height * width).astype(np.uint16).reshape(height, width)


def colours(height=20, width=30):
    return np.random.default_rng(0).integers(0, 4096, (height, width, 3)).astype(np.uint16)


def png_of(values, filters=(0, 1, 2)):
    """A PNG of (h, w, C) 16-bit values, its rows filtered as the standard has it: none, left, above."""
    height, width, channels = values.shape
    rows = values.astype(">u2").view(np.uint8).reshape(height, -1)
    left = np.pad(rows, ((0, 0), (2 * channels, 0)))[:, : rows.shape[1]]
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    filtered = [rows, rows - left, rows - above]
    kinds = [filters[y % len(filters)] for y in range(height)]
    data = b"".join(bytes([kind]) + filtered[kind][y].tobytes() for y, kind in enumerate(kinds))
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def tiff_of(values, *, order="<", compression=1, extra=None, photometric=2, in_planes=False):
    """A TIFF of (h, w, C) values of 8 or 16 bits in one strip."""
    height, width, channels = values.shape
    bits = 8 * values.dtype.itemsize
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if compression == 8 else data
    tags = {256: width, 257: height, 259: compression, 262: photometric, 277: channels, 278: height}
    tags |= {279: len(data), 284: 2 if in_planes else 1} | ({} if extra is None else {338: extra})
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {258: start, 273: start + 2 * channels}
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 3, channels, value)
        if tag == 258
        else struct.pack(f"{order}HHII", tag, 4, 1, value)
        for tag, value in sorted(tags.items())
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    return head + directory + struct.pack(f"{order}{channels}H", *[bits] * channels) + data


def mapped(values, value_range):
    low, high = value_range
    return np.floor((values.astype(float) - low).clip(0, high - low) * 255 / (high - low) + 0.5)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_a_12_bit_camera_keeps_its_levels(tmp_path, name):
    grey = twelve_bits()
    Image.fromarray(grey).save(tmp_path / name)
    image = read_image(tmp_path / name, CAMERA)
    assert len(image.unique()) == 256
    assert np.array_equal(image[1].numpy(), mapped(grey, CAMERA))
    assert len(read_image(tmp_path / name).unique()) == 17


@pytest.mark.parametrize(
    "write",
    [
        png_of,
        lambda values: png_of(np.concatenate([values, values[..., :1]], axis=-1)),
        tiff_of,
        lambda values: tiff_of(values, order=">"),
        lambda values: tiff_of(values, compression=8),
        lambda values: tiff_of(values, order=">", compression=8),
        lambda values: tiff_of(np.concatenate([values, values[..., :1]], axis=-1), extra=2),
    ],
    ids=["png", "png with alpha", "tiff", "big-endian", "compressed", "big-endian compressed", "tiff alpha"],
)
def test_48_bits_of_colour_keep_their_levels(tmp_path, write):
    values = colours()
    (tmp_path / "a").write_bytes(write(values))
    image = read_image(tmp_path / "a", CAMERA)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), mapped(values, CAMERA))


def test_what_lies_outside_the_range_is_its_end():
    values = np.array([[0, 1000, 1500, 2000, 65535]], dtype=np.uint16)
    assert as_bytes(values, (1000.0, 2000.0)).tolist() == [[0, 0, 128, 255, 255]]


def test_8_bits_know_no_range(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", CAMERA), read_image(tmp_path / "a.png"))


def test_32_bits_need_a_range(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[-5.0, 0.0], [5.0, np.nan]], dtype=np.float32)).save(path)
    for read in (read_image, count_deep_values):
        with pytest.raises(ImageError, match=r"a\.tif: pixels of 32 bits.*INPUT\.RANGE"):
            read(path)
    assert read_image(path, (-5.0, 5.0))[0].tolist() == [[0, 128], [255, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channels", "photometric"), [(4, 2), (5, 2), (5, 1), (13, 1)])
def test_more_channels_are_an_error_that_counts_them(tmp_path, channels, photometric, dtype):
    path = tmp_path / "field.tif"
    path.write_bytes(tiff_of(np.zeros((4, 6, channels), dtype), photometric=photometric, extra=0))
    with pytest.raises(ImageError, match=rf"field\.tif: it has {channels} channels"):
        read_image(path)


def test_alpha_is_no_further_channel(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff_of(values, extra=2))
    assert np.array_equal(read_image(tmp_path / "a.tif").permute(1, 2, 0).numpy(), values[..., :3])


def test_16_bits_in_planes_are_named(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_of(colours(), in_planes=True))
    with pytest.raises(ImageError, match=r"a\.tif: its 16 bits lie in a plane for each channel"):
        read_image(tmp_path / "a.tif", CAMERA)


def test_grey_of_16_bits_with_alpha_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of(colours()[..., :2]))
    with pytest.raises(ImageError, match="16 bits of LA cannot be read"):
        read_image(tmp_path / "a.png", CAMERA)


def test_the_range_of_a_set_leaves_broken_pixels_out():
    counts = np.zeros(65536, dtype=np.int64)
    counts[[700, 3900]] = 500_000
    counts[[0, 65535]] = 9
    assert find_range(counts) == (700.0, 3900.0)
    counts[[0, 65535]] = 11
    assert find_range(counts) == (0.0, 65535.0)


def test_a_set_of_one_value_has_a_range():
    counts = np.zeros(65536, dtype=np.int64)
    counts[65535] = 4
    low, high = find_range(counts)
    assert low < high


def test_values_are_counted(tmp_path):
    Image.fromarray(np.array([[7, 7], [9, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    counts = count_deep_values(tmp_path / "a.png")
    assert np.flatnonzero(counts).tolist() == [7, 9, 65535]
    assert counts[7] == 2
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(tmp_path / "b.png")
    assert count_deep_values(tmp_path / "b.png") is None
