"""The site of the documentation holds every page, and its links lead somewhere in the repository too."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.training import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "docs"))

import make_site

SETTINGS = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
PAGES = sorted({*(name for name in make_site.SINGLE if name.endswith(".md")), *(
    path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md")
)})  # fmt: skip


def test_every_page_is_in_the_navigation_once():
    def pages_of(entry):
        entries = entry.values() if isinstance(entry, dict) else entry
        return [entry] if isinstance(entry, str) else [page for each in entries for page in pages_of(each)]

    assert sorted(pages_of(SETTINGS["nav"])) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_is_in_the_repository_and_on_the_site(page):
    text = re.sub(r"^```.*?^```", "", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not link.startswith("http"):
            place = link.partition("#")[0] or Path(page).name
            path = ((REPOSITORY / page).parent / place).resolve()
            name = path.relative_to(REPOSITORY).as_posix()
            assert path.is_file(), link
            assert name in make_site.SINGLE or name.startswith("docs/"), f"{link} is not on the site"


def test_nothing_is_fetched_from_elsewhere():
    assert SETTINGS["theme"]["font"] is False
    assert "extra_javascript" not in SETTINGS
    assert all((REPOSITORY / path).is_file() for path in SETTINGS["extra_css"])


def test_a_page_is_run_and_what_it_said_and_drew_stands_behind_it(tmp_path):
    page = (
        "# Page\n\n```python run drawn.png\nfrom PIL import Image\n\n"
        'Image.new("RGB", (2, 2)).save("drawn.png")\nprint("drawn", 6 * 7)\n```\n\n'
        "```python\nnot run\n```\n\n```sh run\nlgd --help  # what there is\n```\n"
    )
    shown = make_site.run_page(page, tmp_path / "page")
    assert (tmp_path / "page/drawn.png").is_file()
    assert "```\n\n```text\ndrawn 42\n```\n\n![drawn.png](page/drawn.png)\n" in shown
    assert (
        "```python\nnot run\n```\n\n```sh\nlgd --help  # what there is\n```\n\n```text\nusage: lgd" in shown
    )


@pytest.mark.parametrize(("line", "says"), [("lgd predict", "ended with 2"), ("rm x", "runs lgd and Python")])
def test_a_step_that_fails_ends_the_build(tmp_path, line, says):
    with pytest.raises(SystemExit, match=says):
        make_site.run_page(f"```sh run\n{line}\n```\n", tmp_path / "page")


def test_the_middle_of_long_output_is_left_out():
    said = "".join(f"{number}\n" for number in range(100))
    lines = make_site.shorten(said).splitlines()
    assert (lines[0], lines[22], lines[-1]) == ("0", "[... 56 lines ...]", "99")
