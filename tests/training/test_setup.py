"""Building the training state."""

import pytest
import torch
from torch._inductor import config as inductor

from configs import loading
from training.setup import build_state


def test_build_state_refuses_cuda_graphs_of_the_environment():
    """DALI frees its buffers in a thread that waits for the device, which would invalidate a capture."""
    cfg = loading.load_config(None, ["run.compile=yes"])
    refused = pytest.raises(ValueError, match="TORCHINDUCTOR_CUDAGRAPHS=1: DALI frees the buffers")
    with inductor.patch({"triton.cudagraphs": True}), refused:
        build_state(cfg, torch.nn.Linear(2, 2), 1, torch.float32, 1)
