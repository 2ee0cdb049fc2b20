"""The code that docs/detectors.md shows is the code that runs."""

import inspect
import re
import textwrap

from lgd.detectors import fcos, points
from tests.training import REPOSITORY


def test_examples_are_the_real_code():
    text = (REPOSITORY / "docs/detectors.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    sources = [inspect.getsource(module) for module in (points, fcos)]
    for block in blocks[1:]:
        indented = textwrap.indent(block, " " * 8).rstrip()
        assert any(indented in source for source in sources), block
    signature = re.sub(r"  #.*", "", blocks[0]).split("\n", 1)[1].rstrip()
    assert signature in sources[0]
