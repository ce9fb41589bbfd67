"""`fix`: the check fails, the model rewrites a function or a file, and the same check passes.

Proved means: the check failed before and passes after, in a fresh copy with nothing else changed, with each failing
test seen to pass and none lost (`evidence.py`), by a change that takes no new powers (`vet.py`).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from garzone.agent.context import Target
from garzone.agent.edit import Edited, EditMiss, code_blocks, replace_file, replace_function
from garzone.agent.kinds import Attempt, Material, Style
from garzone.agent.prompts import fenced, render
from garzone.core.chat import Message, Role
from garzone.core.task import Task

LANGUAGES = {  # as models know them from Markdown
    ".py": "python", ".pyi": "python", ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".jsx": "jsx",
    ".ts": "typescript", ".tsx": "tsx", ".go": "go", ".rs": "rust", ".java": "java", ".c": "c", ".h": "c",
    ".cpp": "cpp", ".sh": "bash", ".rb": "ruby",
}  # fmt: skip

NO_INSTRUCTION = "Repair the code so that the failing check passes."


class Fix:
    """Asks for the whole function where one can be told, else for the whole file."""

    def ask(self, task: Task, target: Target, material: Material, style: Style) -> tuple[Message, ...]:
        """The first prompt."""
        text = render(
            {Style.FULL: "fix", Style.BRIEF: "fix_brief", Style.BARE: "fix_bare"}[style],
            instruction=task.instruction.strip() or NO_INSTRUCTION,
            path=target.path,
            language=_language(target),
            function=target.span.name if target.span else None,
            code=target.shown,
            tests=material.tests,
            output=material.output,
            definitions=material.definitions,
        )
        return (Message.of(Role.USER, text),)

    def ask_again(self, first: tuple[Message, ...], target: Target, attempt: Attempt) -> tuple[Message, ...]:
        """The first prompt, the answer, and what was wrong with it."""
        text = render(
            "repair",
            output=attempt.output,
            reason=attempt.reason,
            function=target.span.name if target.span else None,
        )
        return (*first, Message.of(Role.ASSISTANT, _essence(target, attempt.answer)), Message.of(Role.USER, text))

    def read(self, target: Target, answer: str) -> Edited | EditMiss:
        """The file with the answer in place of the target."""
        if target.span:
            return replace_function(target.source.text, target.span, answer)
        return replace_file(target.source.text, target.path, answer)

    def complete(self, target: Target, answer: str) -> bool:
        """True once a code block is closed that defines the target."""
        name = target.span.name if target.span else None
        return any(
            block.closed and (name is None or re.search(rf"\bdef\s+{re.escape(name)}\b", block.code))
            for block in code_blocks(answer)
        )


def _language(target: Target) -> str:
    return LANGUAGES.get(PurePosixPath(target.path).suffix, "")


def _essence(target: Target, answer: str) -> str:
    """The code of an earlier answer without its prose: what matters when it is shown again."""
    blocks = [block for block in code_blocks(answer) if block.code.strip()]
    return fenced(max(blocks, key=lambda block: len(block.code)).code, _language(target)) if blocks else answer[:2000]
