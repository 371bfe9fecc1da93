"""A callback for the Trainer of transformers."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spectral.errors import SpectralError, SpectralWarning
from spectral.integrations.watching import Watch


class AliasingTrainerCallback(TrainerCallback):
    """Adds aliasing at a network's downsampling sites to what the Trainer of transformers logs.

    The numbers of the latest measured step stand in every log: in ``state.log_history``, on the screen and
    with whatever ``report_to`` names. In distributed training they are averaged over the processes. Batches
    of evaluation aren't measured.

    Callbacks are asked in their order, and those of ``report_to`` come before one that is passed as
    ``callbacks=[…]``: they then miss the numbers, and a warning says so. `add_to` puts this one first.

    The Trainer tells no callback of an exception: after one, `detach` takes the hooks off the network. A new
    training does so by itself.

    Args:
        example: an image size, or what else `find_sites` takes; not needed with ``sites``.
        options: of `Watch`: ``sites``, ``module``, ``metrics``, ``taps``, ``every``, ``prefix``.

    Raises:
        SpectralError: when training starts, if there is no site that can be measured.

    Example:
        >>> callback = AliasingTrainerCallback(example=224, every=50)  # then callback.add_to(trainer)
    """

    def __init__(self, example: Any = None, **options: Any) -> None:
        self.watch = Watch(example, **options)
        self._first = False

    def add_to(self, trainer: Trainer) -> AliasingTrainerCallback:
        """Put this callback in front of a Trainer's others, so that all of them see its numbers."""
        if not isinstance(trainer, Trainer):
            raise SpectralError(
                f"AliasingTrainerCallback: expected a Trainer of transformers, got {type(trainer).__name__}"
            )
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))
        self._first = True
        return self

    def detach(self) -> None:
        """Take the hooks off the network, after a training that failed."""
        self.watch.detach()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Attach to the network."""
        if not self._first and args.report_to:
            warnings.warn(
                f"AliasingTrainerCallback: {', '.join(args.report_to)} is asked before it and won't get its "
                f"numbers; use AliasingTrainerCallback(…).add_to(trainer)",
                SpectralWarning,
                stacklevel=2,
            )
        self.watch.attach(given["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Measure this step if it is one of those."""
        self.watch.begin(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Take over what was measured."""
        self.watch.end()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Add the numbers to a log of training."""
        logs = given.get("logs") or {}
        if "loss" in logs:
            logs.update(self.watch.values)
            if state.log_history:
                state.log_history[-1].update(self.watch.values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Take the hooks off; say if nothing was measured."""
        self.watch.detach()
        if not self.watch.values:
            warnings.warn(
                "AliasingTrainerCallback: no site ran in a measured step; pass module= or sites=",
                SpectralWarning,
                stacklevel=2,
            )
