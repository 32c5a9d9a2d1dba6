"""The synthetic tokens of `nfold train`, for its peers.

src/train/data/token_loader.cc has the same arithmetic; a test on either side
expects the same numbers.
"""

import dataclasses

MASK = 2**64 - 1
GOLDEN_RATIO = 0x9E3779B97F4A7C15


def _mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def _random_bits(seed, index):
    return _mix((_mix((seed + GOLDEN_RATIO) & MASK) +
                 (index + 1) * GOLDEN_RATIO) & MASK)


def row(seed, number, count, vocab_size):
    """The first `count` tokens of row `number` of all global batches."""
    row_seed = _random_bits(seed, number)
    return [_random_bits(row_seed, i) * vocab_size >> 64
            for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Batches as a trainer's configuration asks for them."""

    seed: int
    vocab_size: int
    length: int  # of a sequence
    micro_batch: int  # sequences of a rank
    num_batches: int  # after which they repeat; 0: never

    @classmethod
    def from_config(cls, config):
        data, engine = config["data"], config["engine"]
        if not data.get("synthetic"):
            raise ValueError("expected data.synthetic true; the peers do not "
                             "read token files")
        if engine.get("gradient_accumulation_steps", 1) != 1:
            raise ValueError("expected gradient_accumulation_steps 1; the "
                             "peers take one batch a step")
        return cls(seed=config["train"]["seed"],
                   vocab_size=config["model"]["vocab_size"],
                   length=data["sequence_length"],
                   micro_batch=engine["train_micro_batch_size_per_gpu"],
                   num_batches=data.get("synthetic_batches", 0))

    def batch(self, step, rank, num_ranks):
        """Rows of length + 1 tokens of one rank; step counts from 0."""
        step = step % self.num_batches if self.num_batches else step
        first = (step * num_ranks + rank) * self.micro_batch
        return [row(self.seed, number, self.length + 1, self.vocab_size)
                for number in range(first, first + self.micro_batch)]
