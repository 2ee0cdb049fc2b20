import hashlib
from urllib.parse import urlsplit

import pytest
from torchvision.models import ResNet50_Weights, Swin_T_Weights

from lgd.weights import sources
from lgd.weights.report import WeightsError
from lgd.weights.sources import cache_folder, cached_path, fetch_weights, resolve_url
from tests.weights.server import Site, serving

CONTENT = b"weights" * 1000


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (
            "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
            "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
        ),
        ("torchvision://resnet50", ResNet50_Weights.DEFAULT.url),
        ("torchvision://resnet50/IMAGENET1K_V1", ResNet50_Weights.IMAGENET1K_V1.url),
        ("torchvision://swin_t", Swin_T_Weights.IMAGENET1K_V1.url),
        ("https://example.org/a.pth#sha256=00", "https://example.org/a.pth#sha256=00"),
    ],
)
def test_addresses(text, url):
    assert resolve_url(text) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvision://resnet5", r"there is resnet101, .*swin_t; did you mean torchvision://resnet50\?"),
        ("torchvision://vgg16", "torchvision://vgg16: there is resnet101, "),
        ("torchvision://swin_v2_t", "torchvision://swin_v2_t: there is "),
        ("torchvision://resnet50/V3", "resnet50 has the weights IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"),
        ("http://example.org/a.pth", "not fetched by http://: .*; give a file, https://"),
        ("s3://bucket/a.pth", "not fetched by s3://; give a file, https://"),
        ("https://example.org/a.pth#md5=00", "after # belongs sha256="),
        ("https://example.org/", "names no file"),
        ("https://example.org/a/../../b.pth", "names no file"),
        ("https://example.org/%2e%2e/b.pth", "names no file"),
        ("nowhere.pth", "nowhere.pth: no such weights file"),
        ("https://[", r"https://\[: not an address: "),
        ("https://example.org:99999/b.pth", "not an address: "),
        ("https://example.org/a%00.pth", "names no file"),
    ],
)
def test_what_cannot_be_fetched(tmp_path, monkeypatch, text, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=message):
        fetch_weights(text)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_desktop_standard_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for configured in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", configured)
        assert cache_folder() == tmp_path / ".cache/lgd/weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x/lgd/weights"
    path = cached_path(urlsplit("https://user:secret@example.org:8443/a/b%20c.pth?download=1/../x"))
    assert path == cache_folder() / "example.org:8443/a/download=1_.._x-b c.pth"


def test_a_local_file_is_itself(tmp_path):
    file = tmp_path / "a.pth"
    file.write_bytes(b"")
    assert fetch_weights(file) == fetch_weights(str(file)) == file


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    site = Site(CONTENT)
    with serving(site) as url:
        monkeypatch.setattr(sources, "_MODEL_ZOO", url)
        yield site


def test_a_download_lies_in_the_cache_and_needs_no_network_again(zoo):
    file = fetch_weights("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    assert file.read_bytes() == CONTENT
    assert file.is_relative_to(cache_folder())
    assert file.parts[-3:] == ("ImageNetPretrained", "MSRA", "R-50.pkl")
    zoo.statuses = [404]
    assert fetch_weights("detectron2://ImageNetPretrained/MSRA/R-50.pkl") == file
    assert len(zoo.asked) == 1


def test_hashes_in_the_name_and_behind_it_are_held(zoo):
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert fetch_weights(f"detectron2://resnet50-{digest[:8]}.pth").exists()
    assert fetch_weights(f"detectron2://a.pth#sha256={digest.upper()}").exists()
    with pytest.raises(WeightsError, match=r"resnet50-01234567\.pth: another file than expected"):
        fetch_weights("detectron2://resnet50-01234567.pth")
    # The file is in the cache, and still has to be what is asked for.
    with pytest.raises(WeightsError, match="another file than expected"):
        fetch_weights(f"detectron2://a.pth#sha256={'0' * 64}")
