"""One training shared by several processes, which ``torchrun`` has started.

Each process draws its share of the very batch that one process alone would draw. The
logits of all are brought together, so that each computes the loss of the whole batch,
in which pixels are normalised over all crops; its gradients are those of its own crops.

The first process leads: it alone validates, writes and decides. The others follow.
"""

from __future__ import annotations

import contextlib
import enum
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from napari_attunet.devices import available_devices, choose_device
from napari_attunet.errors import Cancelled, DataError, DeviceError, TrainingError
from napari_attunet.networks import AttentionUNet, Explained

__all__ = ["Team", "joined"]

R = TypeVar("R")

#: A process that is silent for so long is given up.
PATIENCE = timedelta(minutes=5)


class _Word(enum.IntEnum):
    """What the first process says between two steps."""

    STEP = 0
    WAIT = 1
    DONE = 2
    GONE = 3


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Team]:
    """Join the processes that ``torchrun`` has started, and leave them in the end.

    Parameters
    ----------
    device : str
        ``"auto"`` or ``"cuda"`` gives each process of a machine a card of its own;
        or ``"cpu"``. For one process only, as in `Segmenter`.

    Yields
    ------
    Team
        Also where there is one process only.

    Raises
    ------
    DeviceError
        If the processes outnumber the cards, or don't find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(device=device)
        return
    if not dist.is_available():
        raise DeviceError(
            "This PyTorch was built without torch.distributed: start one process only."
        )
    own = _own_device(device)
    backend = "gloo"
    if own != "cpu":
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise DeviceError(
            f"The {size} processes don't find each other: {error} Start them with "
            "torchrun."
        ) from error
    try:
        with warnings.catch_warnings():
            # Two layouts of a 1x1 kernel differ in name only.
            warnings.filterwarnings("ignore", "Grad strides do not match")
            yield Team(rank=dist.get_rank(), size=size, device=own)
    finally:
        dist.destroy_process_group()


def _own_device(device: str) -> str:
    """Return the device of this process among those of its machine."""
    kind = available_devices()[0] if device == "auto" else device
    if kind == "cpu" or (device == "auto" and kind == "mps"):
        return "cpu"
    if kind != "cuda":
        raise DeviceError(
            f"Several processes cannot share {device}: choose cuda, of which each "
            "takes a card of its own, or cpu."
        )
    choose_device(kind)  # says why there is none
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        asked = os.environ.get("LOCAL_WORLD_SIZE", f"at least {rank + 1}")
        raise DeviceError(
            f"This machine has {count} CUDA device(s) for {asked} processes: start "
            f"at most {count}, or choose cpu."
        )
    return f"cuda:{rank}"


class Team:
    """The processes of a training, as one of them sees it; by default it is alone.

    Whatever is said of all of them has to be called in all of them, in one order.

    Parameters
    ----------
    rank : int
        Of this process; the first is 0.
    size : int
        How many there are.
    device : str
        What this process is to run on.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "auto") -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self._in_step = False

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    # --- one batch ----------------------------------------------------------------

    def part(self, count: int) -> range:
        """Return which of so many crops are this process's.

        Raises
        ------
        DataError
            If a process would have none.
        """
        if count < self.size:
            raise DataError(
                f"A batch of {count} crops cannot be divided among {self.size} "
                f"processes: start at most {count}, or set batch_size to {self.size} "
                "or more."
            )
        return range(self.rank, count, self.size)

    def parallel(self, network: AttentionUNet) -> Callable[[Tensor], Explained]:
        """Return what explains a part of a batch with a network that all have alike.

        All begin with the first one's weights, and gradients are averaged. On CUDA
        batches are normalised over all processes. PyTorch cannot do so on the CPU:
        there each normalises its own part, and the running statistics are those of
        the first, so that the losses are only similar to those of one process. Other
        normalisations don't look at the batch.
        """
        if self.size == 1:
            return network.explain
        if next(network.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        shared: Callable[[Tensor], Explained]
        with _talking():
            shared = DistributedDataParallel(_Explaining(network))
        return shared

    def gather(self, own: Tensor, count: int) -> Tensor:
        """Return something of all crops of a batch, in order, from each one's `part`.

        Gradients flow to the own part alone. As they are averaged in the end, a loss
        of the whole batch is to be multiplied with `size` before.
        """
        if self.size == 1:
            return own
        missing = -(-count // self.size) - len(own)
        own = torch.cat((own, own.new_zeros(missing, *own.shape[1:]))).contiguous()
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        with _talking():
            dist.all_gather(everyone, own.detach())
        everyone[self.rank] = own
        return torch.stack(everyone, dim=1).flatten(0, 1)[:count]

    # --- one after the other ------------------------------------------------------

    def of_first(self, make: Callable[[], R]) -> R:
        """Return what the first process makes, in all; if it fails, all do."""
        if self.size == 1:
            return make()
        if self.leads:
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(_tell, lambda: _broadcast([None]))
                made = make()
                on_failure.pop_all()
            _broadcast([(made,)])
            return made
        box: list[tuple[R] | None] = [None]
        _broadcast(box)
        if box[0] is None:
            raise _gone()
        return box[0][0]

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Lead the others within the block; whatever ends it, they hear of it."""
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._give_up)
            yield
            on_failure.pop_all()
        self._say(_Word.DONE)

    def _give_up(self) -> None:
        if not self._in_step:
            _tell(lambda: self._say(_Word.GONE))

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Let the others take a step, while the first takes it within the block.

        Amid a step nobody can be told of a failure: it shows when the process ends.
        """
        self._say(_Word.STEP)
        self._in_step = True
        yield
        self._in_step = False

    def wait(self) -> None:
        """Let the others know that the first is busy, and not dead."""
        self._say(_Word.WAIT)

    def follow(self, step: Callable[[], object]) -> Iterator[None]:
        """Do as the first process says until it is done; yields after each word.

        Raises
        ------
        Cancelled
            If the first process gave up.
        """
        word = torch.zeros(1, dtype=torch.int64)
        while True:
            with _talking():
                dist.broadcast(word, src=0)
            said = _Word(int(word))
            if said is _Word.DONE:
                return
            if said is _Word.GONE:
                raise _gone()
            if said is _Word.STEP:
                step()
            yield

    def _say(self, word: _Word) -> None:
        if self.size > 1:
            with _talking():
                dist.broadcast(torch.tensor([int(word)]), src=0)


class _Explaining(nn.Module):
    """A network whose `forward`, which is all that gets shared, tells everything."""

    def __init__(self, network: AttentionUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Explained:
        return self.network.explain(x)


def _tell(say: Callable[[], object]) -> None:
    """Tell the others, unless they are gone already."""
    with contextlib.suppress(TrainingError):
        say()


def _broadcast(box: list[Any]) -> None:
    with _talking():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))


def _gone() -> Cancelled:
    return Cancelled("The first process has ended the training; it says why.")


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise TrainingError(
            "Another process of the training has ended, or was silent for "
            f"{PATIENCE.seconds // 60} minutes. Start it again to go on from the last "
            "checkpoint."
        ) from error
