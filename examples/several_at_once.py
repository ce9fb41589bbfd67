"""Ask the policy first, then do what pays, watching the work. Usage: several_at_once.py CHECK REPO=INSTRUCTION..."""

import asyncio
import sys

from garzone import Garzone
from garzone.agent.events import CandidateJudged, Event


def show(event: Event) -> None:
    """Print what became of each candidate."""
    if isinstance(event, CandidateJudged):
        print(f"  candidate {event.number}: {event.outcome}", file=sys.stderr)


async def main() -> None:
    """Delegate every task that is worth it, all at the same time."""
    check, *tasks = sys.argv[1:]
    async with Garzone() as garzone:
        chosen: list[tuple[str, str]] = []
        for task in tasks:
            repo, _, instruction = task.partition("=")
            decision = await garzone.route("fix", instruction, repo=repo, check=check)
            print(f"{repo}: {decision.route.value}, {decision.reason}")
            if decision.route.value == "local":
                chosen.append((repo, instruction))
        work = (garzone.delegate("fix", what, repo=repo, check=check, on_event=show) for repo, what in chosen)
        for report in await asyncio.gather(*work):
            print(f"{report.verdict.value}: {report.branch}")


asyncio.run(main())
