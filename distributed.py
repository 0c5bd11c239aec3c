"""Several processes that train one policy: which of them this is, and what they tell each other.

`torchrun` starts them and tells each its rank; PyTorch's gloo (CPU) or NCCL (CUDA) carries what they say. Every rank
steps its share of the environments and holds the same networks: gradients and statistics are averaged, and whatever is
drawn at random is drawn by all alike, for all environments, of which each takes its share. Where nobody has started
others, there is one rank, and nothing here costs anything.
"""

import atexit
import io
import os
import time
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

PATIENCE = 20.0
"""Seconds that a rank waits for the others before it takes them for dead."""


class RankError(RuntimeError):
    """Another rank ended, cannot be found or does not answer; says which."""


class Ranks:
    """The ranks of a job, of which this process is one; by itself, the only one.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
    """

    rank, size = 0, 1
    group: Any = None

    @classmethod
    def started(cls, device: str) -> "Ranks":
        """Those that torchrun started, who now know each other; on cuda each takes the GPU of its LOCAL_RANK.

        Raises:
            RankError: the others cannot be found, or there are fewer GPUs than ranks.
        """
        ranks = cls()
        ranks.rank, ranks.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if ranks.size > 1 and not dist.is_initialized():
            where = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
            if None in where:
                raise RankError(f"rank {ranks.rank} of {ranks.size} has no MASTER_ADDR and MASTER_PORT; use torchrun")
            backend = "gloo"
            if device.startswith("cuda"):
                backend, gpu = "cpu:gloo,cuda:nccl", int(os.environ.get("LOCAL_RANK", ranks.rank))
                if device != "cuda" or gpu >= torch.cuda.device_count():
                    raise RankError(
                        f"rank {ranks.rank} needs a GPU of its own, number {gpu} of its machine's "
                        f"{torch.cuda.device_count()}; use --device cuda, and no more ranks than GPUs"
                    )
                torch.cuda.set_device(gpu)
            try:
                dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE))
            except (RuntimeError, ValueError) as error:
                raise RankError(
                    f"rank {ranks.rank} finds nobody at {':'.join(map(str, where))}; use torchrun"
                ) from error
            atexit.register(dist.destroy_process_group)
        if ranks.size > 1:
            # By name: a group that is held would outlive its end, and its threads abort the process.
            ranks.group = dist.distributed_c10d._get_default_group().group_name
        return ranks

    def share(self, count: int) -> slice:
        """This rank's share of so many, which the ranks divide."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, the same to the bit on all of them; compiles."""
        if self.size == 1:
            return tensor
        total = collectives.all_reduce(tensor, "sum", self.group)
        return collectives.wait_tensor(total) / self.size

    def join(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks one after the other along the first axis; compiles."""
        if self.size == 1:
            return tensor
        return collectives.wait_tensor(collectives.all_gather_single(tensor, 0, self.group))

    def gather(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all ranks, which have the same shape, side by side along their last axis."""
        if self.size == 1:
            return array
        mine = torch.from_numpy(np.ascontiguousarray(array))
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.cat(parts, dim=-1).numpy()

    def exchange(self, value: Any) -> list[Any]:
        """What each rank has to say, in tensors and plain data, which cannot run code where they arrive."""
        if self.size == 1:
            return [value]
        buffer = io.BytesIO()
        torch.save(value, buffer)
        mine = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        sizes = self.gather(np.array([len(mine)]))
        parts = [torch.empty(int(sizes.max()), dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, torch.nn.functional.pad(mine, (0, int(sizes.max()) - len(mine))))
        return [
            torch.load(io.BytesIO(part[:size].numpy().tobytes()), weights_only=True)
            for part, size in zip(parts, sizes, strict=True)
        ]

    def silent(self) -> list[int]:
        """The ranks that have not come here as well, a moment after something that all were to do has failed."""
        store = dist.distributed_c10d._get_default_store()
        store.set(f"failed/{self.rank}", "")
        time.sleep(2.0)
        return [rank for rank in range(self.size) if not store.check([f"failed/{rank}"])]


ALONE = Ranks()
