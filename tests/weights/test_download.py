import contextlib
import errno
import fcntl
import hashlib
import logging
import socket
import threading

import pytest

from lgd.weights.download import _NoDowngrade, download
from lgd.weights.report import WeightsError
from tests.weights.server import Site, serving

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = {"pause": 0.0, "timeout": 10.0}


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    site = Site(CONTENT)
    with serving(site) as url:
        site.url = url + "weights.pth"
        yield site


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cache" / "weights.pth"


def left_beside(file):
    return sorted(path.name for path in file.parent.iterdir() if path.suffix != ".lock" and path != file)


@pytest.mark.parametrize("sha256", [None, SHA256, SHA256[:8]])
def test_a_file_is_fetched_once(site, file, sha256):
    for _ in range(2):
        download(site.url, file, sha256=sha256, **QUICK)
        assert file.read_bytes() == CONTENT
    assert site.asked == [""]
    assert left_beside(file) == []


def test_broken_connections_are_resumed_where_they_broke(site, file, caplog):
    site.break_after = [100_000, 50_000, None]
    with caplog.at_level(logging.INFO, logger="lgd"):
        download(site.url, file, sha256=SHA256, **QUICK)
    assert file.read_bytes() == CONTENT
    assert site.asked == ["", "bytes=100000-", "bytes=150000-"]
    assert "the connection ended after 100000 of 256000 bytes at 100000 bytes; attempt 2 of 5" in caplog.text
    assert left_beside(file) == []


def test_a_later_run_goes_on_from_what_an_earlier_one_left(site, file):
    site.break_after = [100_000]
    with pytest.raises(
        WeightsError,
        match=r"not fetched in 1 attempt \(the connection ended .*\); 100000 bytes are kept, the next try",
    ):
        download(site.url, file, attempts=1, **QUICK)
    assert not file.exists()
    assert left_beside(file) == ["weights.pth.part", "weights.pth.part.tag"]
    download(site.url, file, **QUICK)
    assert site.asked == ["", "bytes=100000-"]
    assert file.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(site, file):
    site.ranges, site.break_after = False, [100_000]
    download(site.url, file, **QUICK)
    assert site.asked == ["", "bytes=100000-"]
    assert file.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_joined_to_the_old_one(site, file):
    site.break_after = [100_000]
    with pytest.raises(WeightsError):
        download(site.url, file, attempts=1, **QUICK)
    site.content, site.tag = b"x" * 200_000, '"two"'
    download(site.url, file, **QUICK)
    assert file.read_bytes() == b"x" * 200_000


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_a_file_whose_version_has_no_name_is_fetched_anew(site, file, tag):
    site.tag, site.break_after = tag, [100_000]
    download(site.url, file, **QUICK)
    assert site.asked == ["", ""]
    assert file.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(site, file):
    file.parent.mkdir()
    (file.parent / "weights.pth.part").write_bytes(b"x" * 300_000)
    (file.parent / "weights.pth.part.tag").write_text('"one"')
    download(site.url, file, **QUICK)
    assert site.asked == ["bytes=300000-", ""]
    assert file.read_bytes() == CONTENT


def test_another_file_than_expected_is_refused_and_not_kept(site, file):
    with pytest.raises(
        WeightsError, match=rf"another file .* SHA-256 is {SHA256}, not 01234567\.\.\.; nothing"
    ):
        download(site.url, file, sha256="01234567", **QUICK)
    assert not file.exists()
    assert left_beside(file) == []
    assert len(site.asked) == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(site, file, caplog):
    file.parent.mkdir()
    file.write_bytes(CONTENT[:-1])
    download(site.url, file, sha256=SHA256[:8], **QUICK)
    assert file.read_bytes() == CONTENT
    assert "is damaged" in caplog.text


def test_a_file_that_is_there_needs_nothing_to_be_written(site, file):
    (file.parent / "weights.pth.lock").mkdir(parents=True)  # cannot be opened, as in a read-only folder
    file.write_bytes(CONTENT)
    download(site.url, file, sha256=SHA256, **QUICK)
    assert site.asked == []


def test_what_the_server_does_not_have_is_not_asked_for_again(site, file):
    site.statuses = [404]
    with pytest.raises(WeightsError, match=r"weights\.pth: the server answers 404 Not Found$"):
        download(site.url, file, **QUICK)
    assert len(site.asked) == 1


def test_a_busy_server_is_asked_again(site, file):
    site.statuses = [503, 429, 0]
    download(site.url, file, **QUICK)
    assert len(site.asked) == 3
    assert file.read_bytes() == CONTENT


def test_no_network_is_one_clear_line(file):
    with serving(Site(CONTENT)) as url:
        pass  # nobody listens there any more
    with pytest.raises(WeightsError, match=r"not fetched in 2 attempts \(.*refused.*\)$") as caught:
        download(url + "x.pth", file, attempts=2, **QUICK)
    assert "\n" not in str(caught.value)


def test_a_server_that_says_nothing_is_given_up(file, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth"
        with pytest.raises(WeightsError, match=r"not fetched in 1 attempt \(.*timed out"):
            download(url, file, attempts=1, pause=0.0, timeout=0.2)


def test_a_proxy_of_the_environment_is_used(site, file, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", site.url.removesuffix("/weights.pth"))
    download("http://nowhere.invalid/weights.pth", file, **QUICK)
    assert file.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_named(site, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(WeightsError, match=r"cannot write .*cache.*: (File exists|Not a directory)"):
        download(site.url, tmp_path / "cache" / "weights.pth", **QUICK)
    assert site.asked == []


def test_a_full_disk_is_not_taken_for_the_network(site, file, monkeypatch):
    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lgd.weights.download.os.fsync", fail)
    with pytest.raises(WeightsError, match=r"cannot write .*weights\.pth: No space left on device$"):
        download(site.url, file, **QUICK)
    assert len(site.asked) == 1


def test_redirections_are_followed_but_not_out_of_https(site, file):
    other = Site(b"elsewhere")
    with serving(other) as url:
        site.redirect = url + "there"
        download(site.url, file, **QUICK)
    assert file.read_bytes() == b"elsewhere"

    class Request:
        full_url = "https://example.org/a.pth"

    with pytest.raises(WeightsError, match=r"redirected to http://example\.org/b\.pth, which is not https"):
        _NoDowngrade().redirect_request(Request(), None, 302, "", {}, "http://example.org/b.pth")


def test_all_who_want_the_same_file_fetch_it_once(site, file):
    threads = [threading.Thread(target=download, args=(site.url, file), kwargs=QUICK) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert site.asked == [""]
    assert file.read_bytes() == CONTENT


def test_a_waiting_process_says_so_and_takes_the_others_file(site, file, caplog):
    file.parent.mkdir()
    with (file.parent / "weights.pth.lock").open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        said = threading.Event()
        handler = logging.Handler()
        handler.emit = lambda record: said.set() if "waiting for another process" in record.msg else None
        logger = logging.getLogger("lgd.weights.download")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        thread = threading.Thread(target=download, args=(site.url, file), kwargs=QUICK)
        thread.start()
        assert said.wait(30)
        file.write_bytes(b"by the other")
        fcntl.flock(handle, fcntl.LOCK_UN)
        thread.join(30)
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert site.asked == []
    assert file.read_bytes() == b"by the other"


LIMIT = len(CONTENT) - 1


def test_a_file_that_says_it_is_too_large_is_not_begun(site, file):
    expected = (
        f"{site.url}: the file has 0.2 MiB or more, and at most 0.2 MiB are fetched; if it is what you want, "
        "fetch it yourself and set MODEL.WEIGHTS to its path"
    )
    with pytest.raises(WeightsError) as error:
        download(site.url, file, largest=LIMIT, **QUICK)
    assert str(error.value) == expected
    assert left_beside(file) == []
    assert len(site.asked) == 1
    download(site.url, file, largest=len(CONTENT), **QUICK)


def test_a_file_that_does_not_say_how_large_it_is_is_stopped(site, file):
    site.tells_length = False
    with pytest.raises(WeightsError, match=r"the file has 0.2 MiB or more, and at most 0.2 MiB are fetched"):
        download(site.url, file, largest=LIMIT, **QUICK)
    assert left_beside(file) == []
    download(site.url, file, largest=len(CONTENT), **QUICK)
    assert file.read_bytes() == CONTENT


def test_what_is_there_already_counts(site, file):
    site.break_after = [100_000]
    with pytest.raises(WeightsError):
        download(site.url, file, attempts=1, **QUICK)
    with pytest.raises(WeightsError, match=r"the file has 0.2 MiB or more"):
        download(site.url, file, largest=LIMIT, **QUICK)
    assert left_beside(file) == []


@pytest.mark.parametrize("length", ["x", "-5", "9" * 5000, ""])
def test_a_length_that_is_none(site, file, length):
    site.length = length
    with contextlib.suppress(WeightsError):
        download(site.url, file, attempts=1, **QUICK)
    assert left_beside(file) in ([], ["weights.pth.part", "weights.pth.part.tag"])
