"""Evaluation mode, and each module's own mode afterwards."""

from __future__ import annotations

from torch import nn


class evaluation_mode:  # noqa: N801 - reads as a statement: `with evaluation_mode(model):`
    """Put a model into evaluation mode and restore every module's own training flag afterwards.

    The flags alone are set: a module's own ``eval`` or ``train`` may do more, such as merge weights, that
    couldn't be undone.

    Example:
        >>> layer = nn.Dropout()
        >>> with evaluation_mode(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """

    def __init__(self, model: object) -> None:
        self.model = model
        self.flags: list[tuple[nn.Module, bool]] = []

    def __enter__(self) -> None:
        if isinstance(self.model, nn.Module):
            self.flags = [(module, module.training) for module in self.model.modules()]
            for module, _ in self.flags:
                module.training = False

    def __exit__(self, *exception: object) -> None:
        for module, training in self.flags:
            module.training = training
