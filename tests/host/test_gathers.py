"""Parameters that ZeRO-3 has gathered on CPU are there."""

import os

import torch
import torch.multiprocessing as multiprocessing

LARGE, SMALL = 1 << 22, 2  # the small one is there first, although it is asked for last


def work(rank: int, folder: str) -> None:
    import deepspeed

    from sparsepo_plugin.hosts.openrlhf.program import load_program

    load_program()
    os.environ["LOCAL_RANK"] = str(rank)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    place = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": 2}
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False, **place)
    with deepspeed.zero.Init(config_dict_or_path={"train_batch_size": 2, "zero_optimization": {"stage": 3}}):
        model = torch.nn.ParameterList([torch.ones(LARGE), torch.ones(SMALL)])
    parameters = list(model)
    parameters[0].all_gather(parameters)
    torch.save([parameter.clone() for parameter in parameters], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_are_there_when_the_call_returns(tmp_path):
    """DeepSpeed before 0.19.8 waits for the last one alone."""
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert all(parameter.eq(1).all() for parameter in torch.load(tmp_path / f"{rank}.pt"))
