"""A model as a function: its evaluation mode, its arguments, its class scores, and its inputs moved."""

from spectral.network.calls import (
    Call,
    find_first_convolution,
    find_image_key,
    list_calls,
    list_inputs,
    make_inputs,
    require_clear,
    run_forward,
)
from spectral.network.mode import (
    as_network,
    check_whole,
    evaluation_mode,
    put_into_evaluation,
    undisturbed,
)
from spectral.network.moves import (
    CHANNELS,
    SPATIAL,
    Kinds,
    Move,
    arrange_image,
    guess_kinds,
    guess_layout,
    list_moves,
    map_planes,
    reflect,
    roll_inputs,
    spread_layout,
)
from spectral.network.outputs import Scores, Take, describe_output, find_logits, read_scores
from spectral.network.writes import Writes

__all__ = [
    "CHANNELS",
    "SPATIAL",
    "Call",
    "Kinds",
    "Move",
    "Scores",
    "Take",
    "Writes",
    "arrange_image",
    "as_network",
    "check_whole",
    "describe_output",
    "evaluation_mode",
    "find_first_convolution",
    "find_image_key",
    "find_logits",
    "guess_kinds",
    "guess_layout",
    "list_calls",
    "list_inputs",
    "list_moves",
    "make_inputs",
    "map_planes",
    "put_into_evaluation",
    "read_scores",
    "reflect",
    "require_clear",
    "roll_inputs",
    "run_forward",
    "spread_layout",
    "undisturbed",
]
