"""One token of a step. Apart from what computes it, so that who puts steps together needs no tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One token of a step: where it goes, and whether its logits are asked for."""

    slot: int
    position: int
    token_id: int
    wants_logits: bool = False
