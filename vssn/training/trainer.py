"""Lightning as `vssn fit` uses it: the processes that the run asks for, a bar that counts epochs from 1, no hints."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vssn.errors import TrainingError
from vssn.training.processes import World
from vssn.utils.packages import needing
from vssn.utils.random import undisturbed

with needing("train"):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar
    from pytorch_lightning.plugins.environments import LightningEnvironment
    from pytorch_lightning.plugins.io import TorchCheckpointIO
    from pytorch_lightning.strategies import DDPStrategy
    from pytorch_lightning.utilities import rank_zero_only


class Processes(LightningEnvironment):
    """Those of the world, whatever the variables of a cluster or a launcher say of others (SLURM_*, RANK, ...)."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        return self.world.size > 1

    @property
    def main_address(self) -> str:
        return self.world.address

    @property
    def main_port(self) -> int:
        return self.world.port

    def global_rank(self) -> int:
        return self.world.rank

    def local_rank(self) -> int:
        return self.world.local_rank

    def node_rank(self) -> int:
        return self.world.node

    def world_size(self) -> int:
        return self.world.size

    def set_world_size(self, size: int) -> None:
        """It stands."""

    def set_global_rank(self, rank: int) -> None:
        """It stands."""

    def teardown(self) -> None:
        """Lightning's own takes WORLD_SIZE out of the environment."""


class WholeFiles(TorchCheckpointIO):
    """Writes a run's checkpoints where they are to stand. Lightning's own way leads over a file in the folder of
    temporary ones: that disk may be full where this one is not, and a process that is killed leaves the file there."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if Path(path).parent != self.folder:  # of a callback of the caller's
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # written by PyTorch itself, a full disk would be an error without its name
        torch.save(checkpoint, content)
        Path(path).write_bytes(content.getbuffer())


class SummedGradients(DDPStrategy):
    """The processes of DDP without its wrapper: `vssn.training.processes.sum_gradients` does its part, for batches of
    which a process may have more chunks than another."""

    def configure_ddp(self) -> None:
        """Nothing: all start from the same seed."""


@contextlib.contextmanager
def rank_of(world: World) -> Iterator[None]:
    """Lightning takes the rank that decides who writes logs from RANK and the like, when it is imported."""
    attributes = vars(rank_zero_only)
    before = attributes["rank"]
    attributes["rank"] = world.rank
    try:
        yield
    finally:
        attributes["rank"] = before


@contextlib.contextmanager
def unseeded() -> Iterator[None]:
    """Behind the block neither generators nor variables of the environment tell that Lightning seeded them."""
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {name: os.environ.get(name) for name in names}
    try:
        with undisturbed():
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Lightning's hints and advertisements off the terminal; its errors pass. What fails in the thread that
    writes for TensorBoard is raised where the main thread flushes."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    report = threading.excepthook

    def report_others(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            report(failure)

    threading.excepthook = report_others
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch\.utils\._pytree)")
            yield
    finally:
        threading.excepthook = report
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Patience(EarlyStopping):
    """Of a resumed run as long as it is now: Lightning's own takes that of the checkpoint."""

    @property
    def state_key(self) -> str:
        return f"EarlyStopping{super().state_key.removeprefix(type(self).__qualname__)}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience})


class ProgressBar(TQDMProgressBar):
    """Counts epochs from 1, as the lines below it do, and is gone when an error or Ctrl-C ends the run."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        bar = self.train_progress_bar
        bar.set_description(f"Epoch {trainer.current_epoch + 1}", refresh=False)
        bar.reset(self.total_train_batches)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        items = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in items.items() if name != "v_num"}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        for bar in (self._val_progress_bar, self._train_progress_bar):  # else drawn again when Python ends
            if bar is not None:
                bar.leave = False
                bar.close()


def check_callbacks(callbacks: object) -> None:
    """Raises TypeError unless they are Lightning's, TrainingError where a checkpoint could not hold their state."""
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list of pytorch_lightning.Callback, got {type(callbacks).__name__}")
    for index, callback in enumerate(callbacks):
        if not isinstance(callback, pl.Callback):
            kind = type(callback)
            raise TypeError(
                f"callbacks[{index}] must be a pytorch_lightning.Callback, got {kind.__module__}.{kind.__qualname__}"
            )
        _require_plain(type(callback).__qualname__, callback.state_dict())


def _require_plain(name: str, state: object) -> None:
    content = io.BytesIO()
    try:
        torch.save(state, content)
        torch.load(io.BytesIO(content.getvalue()), weights_only=True)
    except Exception:  # whatever pickling a foreign object leads to
        raise TrainingError(
            f"callbacks: expected tensors and plain types from the state_dict of {name}, as checkpoints hold nothing "
            "else; leave other objects out of it"
        ) from None


class PlainStates(pl.Callback):
    """Keeps a checkpoint readable: what the states of callbacks hold is looked at before it is written."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for name, state in checkpoint.get("callbacks", {}).items():
            _require_plain(name, state)
