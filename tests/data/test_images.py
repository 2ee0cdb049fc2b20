import json
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data import images
from lgd.data.errors import DataError, ImageError
from lgd.data.images import Jpeg, decode_jpegs, read_image, read_jpeg_or_picture, read_size
from tests.data.nasty import DOTS, GREY, HALF, NASTY, NOTHING, OTHER, PICTURE, names_of
from tests.samples import further

pytestmark = pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")


def picture(height: int = 30, width: int = 40) -> np.ndarray:
    """A smooth picture without symmetry, so that compression changes little and turning changes much."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 255 * (x + 2 * y) / (width + 2 * height)], -1).astype(
        np.uint8
    )


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def difference(image: torch.Tensor, pixels: np.ndarray) -> float:
    """Mean absolute difference, out of 255."""
    assert image.dtype == torch.uint8
    assert image.shape == (3, *pixels.shape[:2])
    return float(np.abs(image.permute(1, 2, 0).numpy().astype(int) - pixels.astype(int)).mean())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp", "a.gif"])
def test_formats(tmp_path, name):
    options = {"quality": 95} if name in ("a.jpg", "a.webp") else {}
    image = read_image(save(tmp_path / name, picture(), **options))
    assert difference(image, picture()) < (8 if name == "a.gif" else 3)


def test_format_is_told_by_the_content(tmp_path):
    path = save(tmp_path / "a.png", picture())
    assert torch.equal(
        read_image(path.rename(tmp_path / "a.jpg")).permute(1, 2, 0), torch.from_numpy(picture())
    )


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, name):
    """The stored picture is what the tag turns into the upright one."""
    turn = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    options = {} if name in ("a.png", "a.tif") else {"quality": 95}
    path = save(tmp_path / name, np.ascontiguousarray(turn(picture())), exif=exif, **options)
    assert difference(read_image(path), picture()) < 3


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{}/></rdf:RDF></x:xmpmeta>'
)


def put_xmp_first(content: bytes, attribute: str = "") -> bytes:
    """A JPEG with a packet of XMP before everything else, as editors write it."""
    packet = b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(attribute).encode()
    return content[:2] + b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet + content[2:]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_behind_or_in_xmp(tmp_path, orientation):
    """The decoders look at the first such segment alone: a picture must not stay turned for that."""
    stored = np.ascontiguousarray(np.rot90(picture(), {1: 0, 3: 2, 6: 1}[orientation]))
    behind, inside = tmp_path / "behind.jpg", tmp_path / "inside.jpg"
    content = save(behind, stored, quality=95, exif=exif(orientation)).read_bytes()
    behind.write_bytes(put_xmp_first(content))
    content = save(inside, stored, quality=95).read_bytes()
    inside.write_bytes(put_xmp_first(content, f' tiff:Orientation="{orientation}"'))
    for path in (behind, inside):
        assert difference(read_image(path), picture()) < 3
        assert read_size(path) == (30, 40)


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = picture()[..., 0]
    for name in ("a.png", "a.tif"):
        image = read_image(save(tmp_path / name, grey))
        assert torch.equal(image, torch.from_numpy(grey).expand(3, -1, -1))


def test_cmyk_is_converted(tmp_path):
    assert difference(read_image(save(tmp_path / "a.jpg", picture(), "CMYK", quality=95)), picture()) < 4


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_alpha_is_dropped_not_composited(tmp_path, name):
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    alpha = np.tile(np.arange(40, dtype=np.uint8) * 6, (30, 1))[..., None]
    path = save(tmp_path / name, np.concatenate([picture(), alpha], axis=-1), **options)
    assert difference(read_image(path), picture()) == 0


def test_bilevel_is_0_and_255(tmp_path):
    path = save(tmp_path / "a.png", picture(), "1")
    assert set(read_image(path).unique().tolist()) == {0, 255}


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_are_scaled(tmp_path, name):
    grey = np.array([[0, 257, 65535], [128, 129, 32896]], dtype=np.uint16)
    image = read_image(save(tmp_path / name, grey))
    assert image.shape == (3, 2, 3)
    assert image[2].tolist() == [[0, 1, 255], [0, 1, 128]]


def test_32_bits_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((4, 4), dtype=np.float32))
    with pytest.raises(ImageError, match="pixels of 32 bits"):
        read_image(path)


def test_first_frame_of_an_animation(tmp_path):
    first, second = Image.fromarray(picture()), Image.fromarray(255 - picture())
    for name in ("a.gif", "a.webp", "a.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert difference(read_image(tmp_path / name), picture()) < 8


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.gif"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.95])
def test_truncated_files_are_errors_that_name_the_file(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    content = save(tmp_path / name, noise).read_bytes()
    path = tmp_path / f"cut {name}"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 20])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_that_lacks_only_its_end(tmp_path, num_bytes, progressive):
    path = save(tmp_path / "a.jpg", picture(200, 300), progressive=progressive)
    path.write_bytes(path.read_bytes()[:-num_bytes])
    with pytest.raises(ImageError, match="incomplete or truncated"):
        read_image(path)


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.jpg: No such file"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="Is a directory"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (read_image, read_jpeg_or_picture, read_size):
        with pytest.raises(ImageError, match=r"pipe\.jpg: a pipe or a device, where a file is needed"):
            read(tmp_path / "pipe.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg: it is empty, or no image of a known format"):
        read_image(tmp_path / "empty.jpg")


def test_decompression_bomb(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", picture())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ImageError, match=r"a\.png: Image size \(1200 pixels\) exceeds limit"):
        read_image(path)


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_never_end_in_another_error(tmp_path, seed):
    generator = np.random.default_rng(seed)
    for name in ("a.jpg", "a.png", "a.gif", "a.webp", "a.tif"):
        content = bytearray(save(tmp_path / name, picture()).read_bytes())
        for place in generator.integers(0, len(content), 8):
            content[place] = generator.integers(256)
        path = tmp_path / f"damaged {name}"
        path.write_bytes(content)
        try:
            assert read_image(path).shape[0] == 3
        except ImageError as error:
            assert str(path) in str(error)  # noqa: PT017 (either outcome is right)


def test_jpeg_that_ends_within_a_segment(tmp_path):
    path = save(tmp_path / "a.jpg", picture())
    path.write_bytes(path.read_bytes()[:-2] + b"\xff\xfe\xff\xff a comment of 65533 bytes, it says")
    with pytest.raises(ImageError, match=r"a\.jpg: Image is incomplete or truncated$"):
        read_image(path)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


JPEGS = {
    "rgb": {},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "progressive": {"progressive": True},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "4:2:0, progressive": {"subsampling": 2, "progressive": True},
    "stored as RGB": {"keep_rgb": True},
    "restart markers": {"restart_marker_blocks": 1},
    "restart markers in grey": {"mode": "L", "restart_marker_rows": 1},
    "several pictures": {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (40, 30))]},
    **{f"orientation {k}": {"exif": exif(k), "subsampling": 2} for k in range(1, 9)},
    "cmyk, turned": {"mode": "CMYK", "exif": exif(6)},
}


def without_torchcodec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Let the rest of the test decode as if torchcodec could not be imported."""
    for module in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    if reason == "absent":
        monkeypatch.setitem(sys.modules, "torchcodec", None)
    else:
        (tmp_path / "torchcodec").mkdir()
        (tmp_path / "torchcodec" / "__init__.py").write_text("raise OSError('Could not load this library')")
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(images, "_decode_jpeg", images._find_decoder())


def outcome(path: Path) -> torch.Tensor | str:
    try:
        return read_image(path)
    except ImageError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
class TestTorchvisionStandsForTorchcodec:
    @pytest.mark.parametrize("reason", ["absent", "built for another torch"])
    def test_where_it_cannot_be_imported(self, tmp_path, monkeypatch, reason):
        path = save(tmp_path / "a.jpg", picture(), quality=95, exif=exif(3))
        expected = read_image(path)
        without_torchcodec(tmp_path, monkeypatch, reason)
        calls = []
        decode = torch.ops.image.decode_jpeg
        monkeypatch.setattr(
            torch.ops.image, "decode_jpeg", lambda *given: calls.append(given) or decode(*given)
        )
        assert torch.equal(read_image(path), expected)
        assert len(calls) == 1

    @pytest.mark.parametrize("size", [(30, 40), (1, 1), (17, 9)])
    @pytest.mark.parametrize("kind", JPEGS)
    def test_with_the_same_pixels(self, tmp_path, monkeypatch, kind, size):
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        path = save(tmp_path / "a.jpg", noise, **JPEGS[kind])
        image = read_image(path)
        without_torchcodec(tmp_path, monkeypatch, "absent")
        other = read_image(path)
        assert torch.equal(image, other)
        assert image.stride() == other.stride()

    @pytest.mark.parametrize(
        "kind", ["rgb", "grey", "cmyk", "progressive", "restart markers", "orientation 6"]
    )
    def test_with_the_same_errors(self, tmp_path, monkeypatch, kind):
        content = save(tmp_path / "a.jpg", picture(), **JPEGS[kind]).read_bytes()
        generator = np.random.default_rng(0)
        paths = [tmp_path / f"{k}.jpg" for k in range(50)]
        for path in paths:
            damaged = bytearray(content)
            for place in generator.integers(0, len(content), 3):
                damaged[place] = generator.integers(256)
            path.write_bytes(damaged[: generator.integers(len(content) // 2, 2 * len(content))])
        ours = [outcome(path) for path in paths]
        without_torchcodec(tmp_path, monkeypatch, "absent")
        for image, other in zip(ours, map(outcome, paths), strict=True):
            assert isinstance(other, str) is isinstance(image, str)
            assert image == other if isinstance(image, str) else torch.equal(image, other)


def test_nothing_warns(tmp_path):
    paths = [save(tmp_path / "a.jpg", picture()), save(tmp_path / "b.jpg", picture(), "CMYK")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_jpegs([read_jpeg_or_picture(paths[0])], torch.device("cpu"))
        for path in paths:
            read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpegs_stay_encoded_and_decode_alike(tmp_path, mode):
    path = save(tmp_path / "a.jpg", picture(), mode, quality=90)
    jpeg = read_jpeg_or_picture(path)
    assert isinstance(jpeg, Jpeg)
    assert (jpeg.height, jpeg.width) == (30, 40)
    (image,) = decode_jpegs([jpeg], torch.device("cpu"))
    assert torch.equal(image, read_image(path))


def test_what_decoders_may_read_differently_is_decoded_at_once(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    paths = [
        save(tmp_path / "a.png", picture()),
        save(tmp_path / "cmyk.jpg", picture(), "CMYK"),
        save(tmp_path / "turned.jpg", picture(), exif=exif),
    ]
    trailing = save(tmp_path / "trailing.jpg", picture())
    trailing.write_bytes(trailing.read_bytes() + b"something")
    for path in [*paths, trailing]:
        assert torch.equal(read_jpeg_or_picture(path).pixels, read_image(path))


def test_decoder_without_nvjpeg_is_refused(tmp_path, monkeypatch):
    """As torchcodec is from an index of packages for CPUs; its words."""

    def decode(*_, **__):
        raise RuntimeError("decode_jpeg: torchcodec was not compiled with nvJPEG support, so JPEG images ...")

    monkeypatch.setattr(images, "_decode_jpeg", decode)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None)
    )
    jpeg = read_jpeg_or_picture(save(tmp_path / "a.jpg", picture()))
    with pytest.raises(DataError, match=r"cannot be decoded on cuda:0.*DECODE_ON_GPU False"):
        decode_jpegs([jpeg], torch.device("cuda:0"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nvjpeg_differs_by_a_few_levels(tmp_path):
    paths = [save(tmp_path / f"{k}.jpg", picture(30 + k, 40), quality=90) for k in range(5)]
    decoded = decode_jpegs([read_jpeg_or_picture(path) for path in paths], torch.device("cuda"))
    for image, path in zip(decoded, paths, strict=True):
        assert image.device.type == "cuda"
        assert (image.cpu().int() - read_image(path).int()).abs().max() <= 8


@pytest.mark.parametrize("data_set", ["made", *further("nasty")], indirect=True)
class TestNasty:
    """Files of all kinds that the world has: what is read is what they show."""

    def test_both_sets_have_the_same_kinds(self, data_set):
        assert {record["file_name"] for record in self.records(data_set)} == set(NASTY)

    @pytest.mark.parametrize("name", names_of(PICTURE, GREY, DOTS, HALF, OTHER))
    def test_readable(self, data_set, name):
        (record,) = (each for each in self.records(data_set) if each["file_name"] == name)
        image = read_image(data_set / "images" / name)
        assert image.dtype == torch.uint8
        assert image.shape == (3, record["height"], record["width"])
        assert read_size(data_set / "images" / name) == image.shape[1:]

    @pytest.mark.parametrize("name", names_of(NOTHING))
    def test_unreadable(self, data_set, name):
        with pytest.raises(ImageError, match=name):
            read_image(data_set / "images" / name)

    @pytest.mark.parametrize("name", names_of(PICTURE))
    def test_same_picture_as_the_plain_one(self, data_set, name):
        assert (self.read(data_set, name) - self.read(data_set, "plain.jpg")).abs().mean() < 6

    @pytest.mark.parametrize("name", names_of(GREY))
    def test_same_grey_picture(self, data_set, name):
        image = self.read(data_set, name)
        assert torch.equal(image[0], image[2])
        assert (image[0] - self.read_grey(data_set)).abs().mean() < 2

    @pytest.mark.parametrize("name", names_of(DOTS))
    def test_dots_are_black_and_white_and_as_bright(self, data_set, name):
        image = self.read(data_set, name)
        assert set(image.unique().tolist()) == {0, 255}
        assert (image[0].mean() - self.read_grey(data_set).mean()).abs() < 2

    @pytest.mark.parametrize("name", names_of(HALF))
    def test_same_picture_at_half_size(self, data_set, name):
        half = torch.nn.functional.avg_pool2d(self.read(data_set, "plain.jpg"), 2)
        assert (self.read(data_set, name) - half).abs().mean() < 6

    @staticmethod
    def records(data_set):
        return json.loads((data_set / "instances.json").read_text())["images"]

    @staticmethod
    def read(data_set, name):
        return read_image(data_set / "images" / name).float()

    @classmethod
    def read_grey(cls, data_set):
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        return (cls.read(data_set, "plain.jpg") * weights).sum(0)


def test_the_limit_of_pixels_holds_where_another_library_has_lifted_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("lgd.data.opened.MAX_DECODED_PIXELS", 99)
    Image.new("L", (10, 10)).save(tmp_path / "large.png")
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=r"large\.png.*10 x 10 pixels are more than the 99"):
            read(tmp_path / "large.png")
