"""Print an answer while it is written."""

import asyncio
import sys

from garzone import Garzone
from garzone.core.chat import Message, Role


async def main() -> None:
    """Ask once, and show every piece as it comes."""
    async with Garzone() as garzone:
        async for delta in garzone.stream([Message.of(Role.USER, "Say hello.")], temperature=0.1, max_tokens=40):
            sys.stdout.write(delta.text)
            sys.stdout.flush()
    print()


asyncio.run(main())
