"""Runs the check on the code as it is, for kinds that can do without one. Does not judge what it shows."""

from __future__ import annotations

from garzone.agent.events import CheckFinished
from garzone.agent.kinds import Setting
from garzone.agent.proof import check_as_it_is
from garzone.agent.stage import Run
from garzone.core.errors import CheckNotFound


async def run_check_before(setting: Setting) -> Run | None:
    """The run; None without a check, or with one that was found by itself and runs nothing (which is noted).

    Raises:
        CheckNotFound: a check that was given cannot be started or runs no test.
    """
    if setting.check is None:
        return None
    try:
        before = await check_as_it_is(setting.stage, setting.check)
    except CheckNotFound:
        if setting.task.check:
            raise
        setting.notes.append("the check that was found runs no test yet")
        return None
    setting.tell(CheckFinished("before", setting.check, before.result.exit_code, before.result.duration_ms))
    return before
