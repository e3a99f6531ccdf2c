"""What tests of compiled loops share."""

import pytest
import torch


@pytest.fixture(params=[1, 2, 3])
def _threads(request):
    """So many threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)
