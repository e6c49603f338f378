"""Every architecture, sharded over two processes (FSDP2), has the gradients and the state of the whole network."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import networks
from tests.helpers.networks import EVERY, random_video, randomize
from training.parallel import distribute, full_tensor, network_state


def make_network(kind: str) -> torch.nn.Module:
    name, settings = EVERY[kind]
    return randomize(networks.build(name, **settings), seed=3)


def compare_sharded_networks(rank: int, port: int, out_dir: str) -> None:
    """Run in each process: write what differs for each kind of network, of which each process sees one clip."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    video, problems = random_video(2, 3, 4, 32, 32), []
    for kind in EVERY:
        whole, sharded = make_network(kind), make_network(kind)
        (whole(video).square().sum() / 2).backward()
        model = distribute(sharded, 2, torch.device("cpu"), shard=True, grad_accum_steps=1)
        model(video[rank : rank + 1]).square().sum().backward()
        for (key, parameter), expected in zip(sharded.named_parameters(), whole.parameters(), strict=True):
            gradient = full_tensor(parameter.grad) if parameter.grad is not None else None
            if gradient is None or not torch.allclose(gradient, expected.grad, rtol=1e-4, atol=1e-4):
                problems.append(f"{kind}: gradient of {key}")
        state = network_state(sharded)
        if rank == 0 and not all(torch.equal(state[key], tensor) for key, tensor in whole.state_dict().items()):
            problems.append(f"{kind}: state")
    Path(out_dir, f"{rank}.txt").write_text("\n".join(problems))
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_networks_have_the_gradients_of_whole_ones(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(compare_sharded_networks, args=(port, str(tmp_path)), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["", ""]
