"""Who takes part: nfold's stages, its peers, and what bounds them.

docs/benchmarks.md says why each peer has the settings it has. Where a setting
helps on one machine and hurts on another, a peer takes part with both, and the
better one counts.
"""

import dataclasses
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Small buckets that overlap with backward: DeepSpeed's default of 5e8 elements
# is one bucket for the whole model, reduced after backward.
SMALL_BUCKETS = {"overlap_comm": True, "reduce_bucket_size": 20_000_000,
                 "allgather_bucket_size": 20_000_000}
SMALL_BUCKETS_3 = {"overlap_comm": True, "reduce_bucket_size": 20_000_000,
                   "stage3_prefetch_bucket_size": 5_000_000}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one run needs to know besides the contestant."""

    config: pathlib.Path
    run_dir: pathlib.Path
    num_steps: int
    num_ranks: int
    num_threads: int  # of a rank
    nfold: pathlib.Path
    weights: pathlib.Path | None = None  # None: each its own
    nfold_assignments: tuple = ()


@dataclasses.dataclass(frozen=True)
class Start:
    """One of the processes that a contestant consists of."""

    command: list
    run_dir: pathlib.Path
    num_ranks: int
    num_threads: int  # of a rank
    is_launched: bool  # it starts the ranks; else it is the only one


def _nfold_start(setting, stage, run_dir, num_ranks, num_threads):
    assignments = [f"train.steps={setting.num_steps}",
                   "train.save=false",
                   f"engine.zero_optimization.stage={stage}",
                   *setting.nfold_assignments]
    if setting.weights:
        assignments.append(f"train.weights={setting.weights}")
    sets = [word for a in assignments for word in ("--set", a)]
    return Start([str(setting.nfold), "train", str(setting.config), "--nproc",
                  str(num_ranks), "--run-dir", str(run_dir), *sets],
                 run_dir, num_ranks, num_threads, is_launched=num_ranks > 1)


@dataclasses.dataclass(frozen=True)
class Nfold:
    """nfold at one ZeRO stage."""

    name: str
    stage: int

    is_peer = False

    @property
    def about(self):
        return f"nfold train, zero_optimization.stage {self.stage}"

    def num_shards(self, num_ranks):
        """Into how many parts its parameters are cut."""
        return num_ranks if self.stage == 3 else 1

    def starts(self, setting):
        return [_nfold_start(setting, self.stage, setting.run_dir,
                             setting.num_ranks, setting.num_threads)]


@dataclasses.dataclass(frozen=True)
class Alone:
    """Unsharded training that communicates with nobody: no contestant, but what
    the others are measured by. Each process sees the batch of one rank."""

    name: str
    about: str
    is_copied: bool  # one process for each rank; else one with all the threads

    stage = None
    is_peer = False

    def num_shards(self, num_ranks):
        return 1

    def starts(self, setting):
        if not self.is_copied:
            return [_nfold_start(setting, 0, setting.run_dir, 1,
                                 setting.num_ranks * setting.num_threads)]
        return [_nfold_start(setting, 0, setting.run_dir / str(i), 1,
                             setting.num_threads)
                for i in range(setting.num_ranks)]


def _peer_start(setting, arguments, run_dir, num_ranks):
    command = [sys.executable, "-m", "torch.distributed.run",
               "--standalone", "--nproc-per-node", str(num_ranks),
               str(HERE / "peer.py"), "--config", str(setting.config),
               "--weights", str(setting.weights), "--run-dir", str(run_dir),
               "--steps", str(setting.num_steps), *arguments]
    return Start(command, run_dir, num_ranks, setting.num_threads,
                 is_launched=True)


@dataclasses.dataclass(frozen=True)
class TorchAlone:
    """As Alone with a process for each rank, in torch without nfold."""

    name: str
    about: str

    stage = None
    is_peer = False

    def num_shards(self, num_ranks):
        return 1

    def starts(self, setting):
        return [_peer_start(setting, ("--peer", "alone"),
                            setting.run_dir / str(i), 1)
                for i in range(setting.num_ranks)]


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another implementation, which peer.py runs, beside nfold's `stage`."""

    name: str
    stage: int
    arguments: tuple  # of peer.py

    is_peer = True

    @property
    def about(self):
        return "peer.py " + " ".join(self.arguments)

    def num_shards(self, num_ranks):
        return 1

    def starts(self, setting):
        return [_peer_start(setting, self.arguments, setting.run_dir,
                            setting.num_ranks)]


def _torch(name, stage, *arguments):
    return Peer(name, stage, ("--peer", *arguments))


def _deepspeed(name, stage, zero=None, *arguments):
    zero_arguments = ("--zero", json.dumps(zero)) if zero else ()
    return Peer(name, stage,
                ("--peer", "deepspeed", "--stage", str(stage),
                 "--optimizer", "deepspeed", *zero_arguments, *arguments))


CONTESTANTS = (
    Alone("single", "nfold train, one process with all the threads",
          is_copied=False),
    Alone("limit", "one unsharded nfold train for each rank, at the same time, "
          "without communication", is_copied=True),
    TorchAlone("limit-torch", "the same in plain torch, with its fused AdamW "
               "and its default allocation"),
    Nfold("nfold-0", 0),
    Nfold("nfold-1", 1),
    Nfold("nfold-2", 2),
    Nfold("nfold-3", 3),
    _torch("ddp", 0, "ddp", "--bucket-view"),
    _torch("zero1", 1, "zero1", "--bucket-view"),
    _torch("fsdp2-noreshard", 2, "fsdp2"),
    _torch("fsdp2", 3, "fsdp2", "--reshard"),
    _deepspeed("deepspeed-0", 0),
    _deepspeed("deepspeed-1", 1, SMALL_BUCKETS),
    _deepspeed("deepspeed-1-default", 1),
    _deepspeed("deepspeed-2", 2, SMALL_BUCKETS),
    _deepspeed("deepspeed-2-default", 2),
    _deepspeed("deepspeed-3", 3, SMALL_BUCKETS_3),
    _deepspeed("deepspeed-3-default", 3),
)
# Slower or larger than the same peer above, or no different; measured only
# when named.
ALTERNATIVES = (
    _torch("ddp-default", 0, "ddp", "--optimizer", "plain"),
    _torch("zero1-default", 1, "zero1", "--optimizer", "plain"),
    _deepspeed("deepspeed-2-bound", 2, SMALL_BUCKETS, "--bind"),
    _deepspeed("deepspeed-3-bound", 3, SMALL_BUCKETS_3, "--bind"),
)
