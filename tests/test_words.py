"""Words that depend on numbers and on their neighbours."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from lgd.words import counted, say_type, with_article

PACKAGES = [Path(__file__).parents[1] / name for name in ("lgd", "jobs")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "image"), "1 image"),
        ((0, "image"), "0 images"),
        ((np.int64(1), "box is", "boxes are"), "1 box is"),
        ((np.int64(2), "box is", "boxes are"), "2 boxes are"),
        (("1", "epoch"), "1 epoch"),
        (("1.5", "epoch"), "1.5 epochs"),
    ],
)
def test_counted(arguments, text):
    assert counted(*arguments) == text


@pytest.mark.parametrize("said", ["an int", "a list", "an ndarray", "a NoneType", "an EfficientNet-Lite"])
def test_with_article(said):
    assert with_article(said.split()[1]) == said


@pytest.mark.parametrize(("value", "said"), [(None, "nothing"), ([], "a list"), (1, "an int")])
def test_say_type(value, said):
    assert say_type(value) == said


def test_no_message_leaves_it_to_the_reader():
    for path in (path for folder in PACKAGES for path in folder.rglob("*.py")):
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [text for text in texts if re.search(r"\w\((s|es)\)(\W|$)", text)], path
