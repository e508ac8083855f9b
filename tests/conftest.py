"""Every test starts from the same seed, on one thread."""

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("laws", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("laws")


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)
