"""A callback for Lightning's Trainer."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from spectral.errors import SpectralWarning
from spectral.integrations.watching import Watch


class AliasingCallback(Callback):
    """Logs aliasing at a network's downsampling sites while Lightning trains it.

    Numbers go to every logger of the Trainer, in its own rhythm (``log_every_n_steps``), and can be monitored
    by other callbacks. In distributed training they are averaged over the processes; loggers write on rank
    zero, as always. Batches of validation and test aren't measured.

    Args:
        example: an image size, or what else `find_sites` takes; not needed with ``sites``.
        options: of `Watch`: ``sites``, ``module`` (the path of the network in the LightningModule, where its
            own ``forward`` isn't what trains), ``metrics``, ``taps``, ``every``, ``prefix``.

    Raises:
        SpectralError: when training starts, if there is no site that can be measured.

    Example:
        >>> callback = AliasingCallback(example=32, module="net", every=50)
    """

    def __init__(self, example: Any = None, **options: Any) -> None:
        super().__init__()
        self.watch = Watch(example, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach before a strategy wraps or shards the module."""
        if stage == "fit":
            self.watch.attach(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure this batch if it is one of those."""
        self.watch.begin(batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the latest numbers."""
        self.watch.end()
        pl_module.log_dict(self.watch.values, on_step=True, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say if nothing was measured."""
        if not self.watch.values:
            warnings.warn(
                "AliasingCallback: no site ran in a measured step; pass module= with the path of the network "
                "that training_step calls",
                SpectralWarning,
                stacklevel=2,
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self.watch.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self.watch.detach()
