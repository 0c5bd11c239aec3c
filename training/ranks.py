"""Data-parallel training: several processes, the ranks, train one policy.

`torchrun` starts them and assigns the ranks; they communicate by PyTorch's gloo (CPU) or NCCL (CUDA). Every rank steps
its share of the environments and holds the same networks; gradients and statistics are averaged. All ranks draw the
same random numbers, for all environments, and use their slice of them.
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

from environments import UsageError
from utils import SingleProcess

TIMEOUT = 20.0
"""Seconds that a rank waits for the others before it ends the run."""


class RankError(RuntimeError):
    """Another rank has ended, cannot be reached or differs from this one; says which."""


class Ranks(SingleProcess):
    """The processes of a data-parallel job and their collective operations; `Ranks()` is a single process.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    @classmethod
    def started(cls, device: str) -> "Ranks":
        """The ranks that torchrun started, connected; on cuda each uses the GPU of its LOCAL_RANK.

        Raises:
            RankError: the others cannot be reached, or there are fewer GPUs than ranks.
        """
        ranks = cls()
        ranks.rank, ranks.world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if ranks.world_size > 1 and not dist.is_initialized():
            where = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
            if None in where:
                raise RankError(
                    f"rank {ranks.rank} of {ranks.world_size} has no MASTER_ADDR and MASTER_PORT; use torchrun"
                )
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
                dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT))
            except (RuntimeError, ValueError) as error:
                raise RankError(
                    f"rank {ranks.rank} cannot reach the others at {':'.join(map(str, where))}; use torchrun"
                ) from error
            atexit.register(dist.destroy_process_group)
        return ranks

    def divide(self, flag: str, count: int) -> int:
        """The share of each rank; raises a `UsageError` that names the flag if the ranks cannot divide the count."""
        if count % self.world_size:
            raise UsageError(f"{flag} {count} must be a multiple of the {self.world_size} ranks")
        return count // self.world_size

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the ranks, bitwise equal on all of them; can be compiled."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, concatenated along the first axis; can be compiled."""
        if self.world_size == 1:
            return tensor
        gathered = tensor.new_zeros(self.world_size * len(tensor), *tensor.shape[1:])
        gathered[self.local_slice(len(gathered))] = tensor
        dist.all_reduce(gathered)  # PyTorch's own gather does not compile for gloo
        return gathered

    def all_gather_array(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all ranks, of one shape, concatenated along the last axis."""
        if self.world_size == 1:
            return array
        mine = torch.from_numpy(np.ascontiguousarray(array))
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine)
        return torch.cat(parts, dim=-1).numpy()

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all ranks, tensors and plain data; unlike torch.distributed's, it cannot run received code."""
        if self.world_size == 1:
            return [value]
        buffer = io.BytesIO()
        torch.save(value, buffer)
        mine = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        sizes = self.all_gather_array(np.array([len(mine)]))
        parts = [torch.empty(int(sizes.max()), dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(parts, torch.nn.functional.pad(mine, (0, int(sizes.max()) - len(mine))))
        return [
            torch.load(io.BytesIO(part[:size].numpy().tobytes()), weights_only=True)
            for part, size in zip(parts, sizes, strict=True)
        ]

    def missing(self) -> list[int]:
        """After a collective operation has failed: the ranks that do not report the failure too within two seconds."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=2))
        store.set(f"failed/{self.rank}", "")
        time.sleep(2.0)
        return [rank for rank in range(self.world_size) if not store.check([f"failed/{rank}"])]


ALONE = Ranks()
