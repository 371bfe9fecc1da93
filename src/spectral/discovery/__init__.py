"""Looks at one forward pass of a model, and finds every place where resolution drops."""

from spectral.discovery.events import Event
from spectral.discovery.record import Beside, record_events, watch_nothing

__all__ = ["Beside", "Event", "record_events", "watch_nothing"]
