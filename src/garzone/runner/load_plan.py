"""How a model is going to be loaded: with which context, how many slots, and what memory that takes. Pure.

Estimates, from what the store says of the file; once it is loaded, the engine says what it really took.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from garzone.config import Settings
from garzone.core.generation import ModelDetails
from garzone.engine.footprint import footprint

MOST_SLOTS: Final = 8  # candidates of one prompt; more slots only take memory
DRAFT_SLOTS: Final = 2  # texts that a draft model remembers; it guesses for one at a time
_SLOTS_SHARE: Final = 0.25  # of the memory may go to slots beyond the first, where nobody said how many


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`memory_bytes` of the device are taken by weights, caches of `num_slots` contexts, and the draft model."""

    num_ctx: int
    num_slots: int
    memory_bytes: int


def context_of(details: ModelDetails, settings: Settings) -> int:
    """The context to load with: the smallest of the setting, what the model was trained for, and what it says."""
    limits = [settings.num_ctx]
    if details.context_tokens:
        limits.append(details.context_tokens)
    limits += [int(value) for value in details.parameters.get("num_ctx", ()) if value.isdigit() and int(value) > 0]
    return min(limits)


def plan_load(
    details: ModelDetails, settings: Settings, *, device_bytes: int = 0, draft: ModelDetails | None = None
) -> LoadPlan:
    """How to load a model on a device of which `device_bytes` can be used; 0 where that is not known."""
    num_ctx = context_of(details, settings)
    needed = footprint(details.model_info, details.size_bytes, settings.kv_cache)
    one, slot_bytes = needed.total_bytes(num_ctx), needed.kv_bytes_per_token * num_ctx
    if draft is not None:
        helper = footprint(draft.model_info, draft.size_bytes, settings.kv_cache)
        one += helper.total_bytes(num_ctx) + (DRAFT_SLOTS - 1) * helper.kv_bytes_per_token * num_ctx
    num_slots = settings.num_parallel
    if not num_slots:
        num_slots = MOST_SLOTS
        if device_bytes and slot_bytes:
            spare = min(device_bytes - one, int(_SLOTS_SHARE * device_bytes))
            num_slots = max(1, min(MOST_SLOTS, 1 + spare // slot_bytes))
    return LoadPlan(num_ctx, num_slots, one + (num_slots - 1) * slot_bytes)
