"""Several processes of one training, as torchrun or accelerate starts them, and what they do together.

Without such a launcher there is one process, and nothing here does anything. Collectives are gloo's on the CPU and
NCCL's on CUDA. https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from trueport.runtime.errors import MissingError, UsageError

LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """This process among all of one training."""

    device: torch.device
    rank: int = 0
    """From 0; the first alone writes and prints."""
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes in order, where each of them holds every n-th."""
        if self.count == 1:
            return rows
        total = int(self.add(torch.tensor([len(rows)], device=rows.device)))
        whole = rows.new_zeros((total, *rows.shape[1:]))
        whole[self.rank :: self.count] = rows
        return self.add(whole)

    def spread(self, module: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers."""
        if self.count > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), 0)

    def from_first(self, work: Callable[[], bytes]) -> bytes:
        """What the work answers, which the first process alone does. Raises its error there, UsageError elsewhere."""
        if self.count == 1:
            return work()
        answer: bytes | None = None
        try:
            if self.first:
                answer = work()
        finally:
            size = torch.tensor([-1 if answer is None else len(answer)], device=self.device)
            dist.broadcast(size, 0)
        length = int(size.item())
        if length < 0:
            raise UsageError(f"process {self.rank} has stopped, as the first one did")
        buffer = torch.empty(length, dtype=torch.uint8)
        if answer:
            buffer.copy_(torch.frombuffer(bytearray(answer), dtype=torch.uint8))
        buffer = buffer.to(self.device)
        dist.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """This process among the others for as long as the block lasts. device: auto, cpu or cuda.

    Raises MissingError where CUDA is asked for and is not there, UsageError where the launcher's variables are not
    complete and where another process has gone.
    """
    rank, count = _place()
    chosen = choose_device(device)
    if count == 1:
        yield Processes(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=count)
        yield Processes(chosen, rank, count)
        dist.barrier()
        dist.destroy_process_group()  # only at a good end: NCCL would wait for the dead
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise UsageError(f"process {rank} has stopped: it has lost the others of its training") from error
        raise


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where torch sees it, and of several the one of this process.

    Raises MissingError where CUDA is asked for and is not there.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise MissingError(
            f"train.device is cuda, but this torch ({torch.__version__}, {built}) sees no CUDA device: "
            "install NVIDIA's driver and a CUDA build of torch, or set train.device=cpu"
        )
    if not there or name == "cpu":
        return torch.device("cpu")
    place, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= devices:
        raise MissingError(f"this machine has {devices} CUDA devices, too few for {place + 1} processes: start fewer")
    return torch.device("cuda", place) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def _place() -> tuple[int, int]:
    """Rank and number of processes, from the launcher's variables."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return 0, 1
    found = {name: os.environ.get(name, "") for name in LAUNCHER}
    if lacking := [name for name, value in found.items() if not value]:
        raise UsageError(
            f"WORLD_SIZE is {count}, but {', '.join(lacking)} is not set: start the processes by torchrun, or unset it"
        )
    return int(found["RANK"]), int(count)
