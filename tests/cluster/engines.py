"""What tests on real engines do where the engine is missing."""

import os

import pytest


def require(problem):
    """Skip, naming what is missing; in CI, which installs all of it, fail. "" means nothing is missing."""
    if problem and os.environ.get("CI_ENGINES") == "1":
        pytest.fail(f"CI_ENGINES is 1, but {problem}", pytrace=False)
    if problem:
        pytest.skip(problem)
