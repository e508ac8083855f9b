"""What tests are marked with."""

import pytest


def slow(*values):
    """Values of the parameters of a test with which it is left to make slow-test."""
    return pytest.param(*values, marks=pytest.mark.slow)
