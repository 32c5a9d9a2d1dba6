"""One rank of one peer of nfold: wraps the GPT, trains it, writes metrics.

Started by run.py through torchrun:

    torchrun --nproc-per-node 2 bench/peers/peer.py --peer ddp \
        --config examples/bench-medium.json --weights model.safetensors \
        --steps 11 --run-dir DIR

The weights are nfold's and so are the tokens (tokens.py). Rank 0 writes
DIR/metrics.jsonl with the keys of nfold's own file, so that run.py reads both
alike, and DIR/peer.json with the settings that were really used.
"""

import argparse
import ctypes
import json
import os
import pathlib
import signal
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gpt import Gpt, GptOptions, load_weights
from tokens import Tokens

PEERS = ("alone", "ddp", "zero1", "fsdp2", "deepspeed")
OPTIMIZERS = ("plain", "fused", "deepspeed", "cpu_adam")


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--config", type=pathlib.Path, required=True)
    parser.add_argument("--weights", type=pathlib.Path, required=True,
                        help="a safetensors file that nfold saved")
    parser.add_argument("--run-dir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="fused",
                        help="plain and fused: torch's AdamW; deepspeed and "
                             "cpu_adam: DeepSpeed's own for this device, and "
                             "the one of its CPU offload")
    parser.add_argument("--stage", type=int, default=0, help="of DeepSpeed")
    parser.add_argument("--zero", type=json.loads, default={},
                        help="more keys of DeepSpeed's zero_optimization")
    parser.add_argument("--reshard", action="store_true",
                        help="FSDP2 frees parameters after forward")
    parser.add_argument("--bucket-view", action="store_true",
                        help="DDP's gradients are views of its buckets")
    parser.add_argument("--bind", action="store_true",
                        help="each rank has cores of its own, as DeepSpeed's "
                             "launcher does it with --bind_cores_to_rank")
    return parser.parse_args()


def die_with_parent():
    """A rank must not outlive a torchrun that was killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def bind_cores(num_threads):
    """To the cores of this rank, where every rank can have its own."""
    cores = sorted(os.sched_getaffinity(0))
    first = int(os.environ["LOCAL_RANK"]) * num_threads
    if int(os.environ["LOCAL_WORLD_SIZE"]) * num_threads <= len(cores):
        os.sched_setaffinity(0, cores[first:first + num_threads])


def make_optimizer(arguments, parameters, settings):
    options = dict(lr=settings["lr"], betas=tuple(settings["betas"]),
                   eps=settings["eps"], weight_decay=settings["weight_decay"])
    if arguments.optimizer == "cpu_adam":
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        return DeepSpeedCPUAdam(parameters, adamw_mode=True, **options)
    if arguments.optimizer == "fused":
        options["fused"] = True
    if arguments.peer == "zero1":
        from torch.distributed.optim import ZeroRedundancyOptimizer
        return ZeroRedundancyOptimizer(
            parameters, optimizer_class=torch.optim.AdamW, **options)
    return torch.optim.AdamW(parameters, **options)


def materialise(model, weights):
    """Memory and values for a model that was built on the meta device, so that
    nobody draws random weights only to overwrite them."""
    model.to_empty(device="cpu")
    load_weights(model, weights)
    return model


def wrap_torch(arguments, model, settings):
    """The model alone, or in DDP, ZeroRedundancyOptimizer or FSDP2: step
    function, optimizer and what was asked of the wrapper."""
    if arguments.peer == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        used = {"reshard_after_forward": arguments.reshard}
        for unit in (*model.blocks, model):
            fully_shard(unit, mesh=mesh, **used)
        wrapped = materialise(model, arguments.weights)
        used["units"] = "every block, and the rest"
    elif arguments.peer == "alone":
        used = {}
        wrapped = materialise(model, arguments.weights)
    else:
        used = {"gradient_as_bucket_view": arguments.bucket_view}
        wrapped = DistributedDataParallel(
            materialise(model, arguments.weights), **used)
    optimizer = make_optimizer(arguments, model.parameters(), settings)

    def step(tokens, targets):
        loss = wrapped(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step, optimizer, used


def wrap_deepspeed(arguments, model, settings, micro_batch_size):
    import deepspeed
    config = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # its default is 1.0, torch has none
        "zero_optimization": {"stage": arguments.stage, **arguments.zero},
        "steps_per_print": 10**9,
    }
    client_optimizer = None
    materialise(model, arguments.weights)
    if arguments.optimizer == "deepspeed":
        config["optimizer"] = {"type": "AdamW", "params": settings}
    else:
        client_optimizer = make_optimizer(
            arguments, model.parameters(), settings)
        config["zero_allow_untested_optimizer"] = True
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model, config=config, optimizer=client_optimizer,
        model_parameters=model.parameters())

    def step(tokens, targets):
        loss = engine(tokens, targets)
        engine.backward(loss)
        engine.step()
        return loss

    return step, getattr(optimizer, "optimizer", optimizer), config


def peak_rss_bytes():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("expected VmHWM in /proc/self/status, found none")


def optimizer_text(optimizer, name):
    inner = getattr(optimizer, "optim", None)  # of ZeroRedundancyOptimizer
    kind = type(optimizer)
    return (f"{kind.__module__}.{kind.__qualname__}" +
            (f" of {type(inner).__qualname__}" if inner else "") +
            (" fused" if name == "fused" else ""))


def main():
    arguments = parse_arguments()
    die_with_parent()
    num_threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(num_threads)
    if arguments.bind:
        bind_cores(num_threads)
    arguments.run_dir.mkdir(parents=True, exist_ok=True)
    config = json.loads(arguments.config.read_text())
    data = Tokens.from_config(config)
    settings = config["engine"]["optimizer"]["params"]

    if arguments.peer == "deepspeed":
        import deepspeed
        deepspeed.init_distributed(dist_backend="gloo")
    else:
        dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()

    with torch.device("meta"):
        model = Gpt(GptOptions.from_config(config["model"]))
    num_parameters = sum(p.numel() for p in model.parameters())
    if arguments.peer == "deepspeed":
        step, optimizer, used = wrap_deepspeed(arguments, model, settings,
                                               data.micro_batch)
    else:
        step, optimizer, used = wrap_torch(arguments, model, settings)
    if rank == 0:
        (arguments.run_dir / "peer.json").write_text(json.dumps({
            "num_parameters": num_parameters,
            "optimizer": optimizer_text(optimizer, arguments.optimizer),
            "settings": used,
        }))

    tokens_per_step = data.micro_batch * data.length * world_size
    with open(arguments.run_dir / "metrics.jsonl", "w") as metrics:
        for number in range(1, arguments.steps + 1):
            text = torch.tensor(data.batch(number - 1, rank, world_size))
            tokens = text[:, :-1].contiguous()
            targets = text[:, 1:].contiguous()
            dist.barrier()
            start = time.perf_counter()
            loss = step(tokens, targets).item()
            seconds = time.perf_counter() - start
            mean = torch.tensor([loss], dtype=torch.float64)
            peak = torch.tensor([peak_rss_bytes()])
            dist.all_reduce(mean)
            dist.all_reduce(peak, op=dist.ReduceOp.MAX)
            if rank == 0:
                print(json.dumps({
                    "step": number, "loss": mean.item() / world_size,
                    "step_ms": seconds * 1e3,
                    "tokens": number * tokens_per_step,
                    "tokens_per_second": tokens_per_step / seconds,
                    "memory": {"peak_rss_bytes": peak.item()},
                }), file=metrics, flush=True)
    dist.barrier()
    # Some peers' threads are still there when the interpreter takes itself
    # down, which now and then ends in an abort. That is not what is measured.
    os._exit(0)


if __name__ == "__main__":
    main()
