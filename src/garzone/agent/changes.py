"""What an answer comes to: new texts of files, or findings. Values only; reads and writes nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from garzone.agent.edit import fingerprint, same_program
from garzone.core.task import Finding


@dataclass(frozen=True, slots=True)
class FileEdit:
    """One file's text before and after, and the bytes to write. `before` is "" for a file that is new."""

    path: str
    before: str
    after: str
    content: bytes
    is_new: bool = False

    @property
    def changes_nothing(self) -> bool:
        """Whether the file means the same to its language as before."""
        return not self.is_new and same_program(self.path, self.before, self.after)


@dataclass(frozen=True, slots=True)
class Draft:
    """What one answer proposes: edits of files, or (for a review) findings."""

    edits: tuple[FileEdit, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def contents(self) -> dict[str, bytes]:
        """Path -> bytes, as a scene or a commit wants them."""
        return {edit.path: edit.content for edit in self.edits}

    @property
    def key(self) -> str:
        """A text that two drafts share when they propose the same."""
        parts = [f"{edit.path}\0{fingerprint(edit.path, edit.after)}" for edit in self.edits]
        return "\1".join([*parts, *map(repr, self.findings)])

    @property
    def num_changed_lines(self) -> int:
        """Lines added and removed: among several proofs the smallest change is the best."""
        total = 0
        for edit in self.edits:
            before, after = edit.before.splitlines(), edit.after.splitlines()
            for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
                total += 0 if tag == "equal" else (b - a) + (d - c)
        return total
