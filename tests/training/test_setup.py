"""Building the training state."""

from typing import get_args

import pytest
import torch
from torch._inductor import config as inductor

from configs import loading
from configs.schema import Task
from networks import PRETRAINING_TASKS
from training.setup import build_state


def test_build_state_refuses_cuda_graphs_of_the_environment():
    """DALI frees its buffers in a thread that waits for the device, which would invalidate a capture."""
    cfg = loading.load_config(None, ["run.compile=yes"])
    refused = pytest.raises(ValueError, match="TORCHINDUCTOR_CUDAGRAPHS=1: DALI frees the buffers")
    with inductor.patch({"triton.cudagraphs": True}), refused:
        build_state(cfg, torch.nn.Linear(2, 2), 1, torch.float32, 1)


def test_every_task_without_classes_has_networks():
    names = get_args(Task.model_fields["name"].annotation)
    assert {name for name in names if Task(name=name).is_pretraining} == set(PRETRAINING_TASKS)
