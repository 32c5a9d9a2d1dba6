"""Who takes part: nfold's stages, and each peer at the best settings found.

The settings were chosen by measuring the alternatives on the medium GPT;
docs/benchmarks.md lists what was tried.
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


@dataclasses.dataclass(frozen=True)
class Contestant:
    """`stage` is the ZeRO stage that it is compared at."""

    name: str
    stage: int
    peer_arguments: tuple = ()  # of peer.py; empty for nfold

    @property
    def is_nfold(self):
        return not self.peer_arguments

    def num_shards(self, num_ranks):
        """Into how many parts its parameters are cut."""
        return num_ranks if self.stage == 3 else 1

    def command(self, setting):
        return (self._nfold_command(setting) if self.is_nfold
                else self._peer_command(setting))

    def _nfold_command(self, setting):
        assignments = [f"train.steps={setting.num_steps}",
                       f"engine.zero_optimization.stage={self.stage}",
                       *setting.nfold_assignments]
        sets = [word for a in assignments for word in ("--set", a)]
        return [str(setting.nfold), "train", str(setting.config), "--nproc",
                str(setting.num_ranks), "--run-dir", str(setting.run_dir),
                *sets]

    def _peer_command(self, setting):
        return [sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", str(setting.num_ranks),
                str(HERE / "peer.py"), "--config", str(setting.config),
                "--run-dir", str(setting.run_dir), "--steps",
                str(setting.num_steps), *self.peer_arguments]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one run needs to know besides the contestant."""

    config: pathlib.Path
    run_dir: pathlib.Path
    num_steps: int
    num_ranks: int
    nfold: pathlib.Path
    nfold_assignments: tuple = ()


def _torch(name, stage, *arguments):
    return Contestant(name, stage, ("--peer", *arguments))


def _deepspeed(name, stage, zero=None):
    zero_arguments = ("--zero", json.dumps(zero)) if zero else ()
    return Contestant(name, stage,
                      ("--peer", "deepspeed", "--stage", str(stage),
                       "--optimizer", "deepspeed", *zero_arguments))


CONTESTANTS = (
    Contestant("nfold-0", 0),
    Contestant("nfold-1", 1),
    Contestant("nfold-2", 2),
    Contestant("nfold-3", 3),
    _torch("ddp", 0, "ddp", "--bucket-view"),
    _torch("zero1", 1, "zero1", "--bucket-view"),
    _torch("fsdp2-noreshard", 2, "fsdp2"),
    _torch("fsdp2", 3, "fsdp2", "--reshard"),
    _deepspeed("deepspeed-0", 0),
    _deepspeed("deepspeed-1", 1, SMALL_BUCKETS),
    _deepspeed("deepspeed-2", 2, SMALL_BUCKETS),
    _deepspeed("deepspeed-3", 3),
)
# Slower or larger than the same peer above; measured only when named.
ALTERNATIVES = (
    _torch("ddp-default", 0, "ddp", "--optimizer", "plain"),
    _torch("zero1-default", 1, "zero1", "--optimizer", "plain"),
    _deepspeed("deepspeed-1-default", 1),
    _deepspeed("deepspeed-2-default", 2),
)
