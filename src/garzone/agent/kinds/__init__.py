"""One file per task kind: what to ask, how to read the answer, what proves it. The loop is in `worker.py`.

A kind opens a task and gives a `Job`: the targets to ask about, the questions, a reading of answers into a `Draft`
(edits of files, also new ones, or findings), and its own proof. A new kind is a subclass of `Job` and a line in
`worker.KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from garzone.agent.changes import Draft, FileEdit
from garzone.agent.context import CodeBase, FailingTest, Target
from garzone.agent.edit import EditMiss, bare_code, code_blocks
from garzone.agent.events import Listener
from garzone.agent.proof import Trial
from garzone.agent.stage import Run, Stage
from garzone.core.chat import Message
from garzone.core.generation import Grammar
from garzone.core.task import Check, Finding, Task, Verdict


@dataclass(frozen=True, slots=True)
class Material:
    """What may be shown to the model besides the target. Fields are cut down until the prompt fits.

    `habits` say how code looks in the repository; larger models are shown them before all else, for they stay the same
    over all tasks. Where edits are asked for, the target itself may be cut to `num_lines` lines (None: all) around
    those of `focus`.
    """

    tests: Sequence[FailingTest] = ()
    output: str = ""
    definitions: Sequence[str] = ()
    conventions: str = ""
    habits: str = ""
    focus: Sequence[int] = ()
    num_lines: int | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """An earlier answer and what came of it: the failing output, or why it could not be applied."""

    answer: str
    output: str = ""
    reason: str = ""


class Style(Enum):
    """How much a first prompt says: all there is; instruction and code; the code alone; or a worked example first.

    Larger models make use of tests and output. The smallest are distracted by them, and repair different bugs from each
    style: SmolLM2-135M 46 of 114 small bugs from the brief one and 25 from the full one; and, of six bugs in six
    samples each, 22 of 36 from the bare one, 16 from the full one. EDITS asks for search-and-replace blocks, and only
    where the whole would not fit: up to 14B, whole answers are better formed (EVIDENCE: 97 % against 72 %). AROUND, for
    a hole, shows what comes after it before it is gone on with what comes before; BARE then shows that alone, and each
    fills holes that the other does not.
    """

    FULL = "full"
    BRIEF = "brief"
    BARE = "bare"
    EDITS = "edits"
    WORKED = "worked"
    AROUND = "around"


# Greedy first: for most models their best single answer. Then wider, because equal answers are wasted; not far beyond
# 0.7, where SmolLM2-135M repaired 4 of 12 after 18 of 24 below it.
TEMPERATURES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# SmolLM2-135M writing from a description, 40 development tasks, right answers: 27 of 440 up to 0.4 and 23 of 699 above.
SMALL_TEMPERATURES = (0.0, 0.0, 0.2, 0.3, 0.3, 0.4, 0.5, 0.6)


Cut = Callable[[str], tuple[str, bool]]
"""What counts of an answer so far, its lead included, and whether more of it would not."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked: a conversation, or (fill in the middle) the text before and after a hole.

    A `prompt` without `suffix` is a text to go on with, as it stands; `lead` is the part of it that belongs to the
    answer, and `cut` shortens an answer that runs on. `grammar` is what the answer is held to. `wanted` ends a repair
    prompt; "" for what the kind says.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    suffix: str | None = None
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    wanted: str = ""
    lead: str = ""
    cut: Cut | None = None

    @property
    def text(self) -> str:
        """All of it, for counting."""
        return "\n".join([*(message.text for message in self.messages), self.prompt or "", self.suffix or ""])


Ask = Callable[[Question, int], Awaitable[str]]
"""Asks the task's model once, greedily, for at most so many tokens."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a kind gets to work with. Paths are relative to the top level.

    `named` are tracked files the task names, `new` those that are not there yet. `check` is the command, given or
    found; None where there is none. `capabilities` and `context_tokens` are the model's, `takes_grammar` is its
    backend's. `notes` end up in the report; a kind may add.
    """

    task: Task
    code: CodeBase
    stage: Stage
    named: tuple[str, ...]
    new: tuple[str, ...]
    check: str | None
    tell: Listener
    ask: Ask
    capabilities: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list[str])
    takes_grammar: bool = False
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """A task that ends before any candidate is asked for, and why."""

    verdict: Verdict
    summary: str
    post_mortem: str | None = None
    checks: tuple[Check, ...] = ()
    findings: tuple[Finding, ...] = ()


class Job(ABC):
    """One task of a kind: what may be asked for, and what becomes of answers.

    `targets` are in the order of likelihood. `before` is the run of the check on the code as it is, where there was
    one. `written_tests` is what the model wrote to judge itself by.
    """

    def __init__(self, setting: Setting, targets: Sequence[Target], before: Run | None = None) -> None:
        self.setting = setting
        self.task = setting.task
        self.targets = list(targets)
        self.before = before
        self.written_tests = ""

    @property
    def check(self) -> str:
        """The command, as reports show it."""
        return self.setting.check or ""

    def material(self, target: Target) -> Material:
        """What may be shown besides the target."""
        return Material()

    def styles(self, small: bool) -> tuple[Style, ...]:
        """How a model is asked, candidate after candidate, over and over."""
        full, brief, bare = Style.FULL, Style.BRIEF, Style.BARE
        return (bare, brief, full, bare) if small else (full, full, brief, full)

    def takes_edits(self, target: Target) -> bool:
        """Whether a target that is too long to be written again may be asked for as edits (Style.EDITS)."""
        return False

    def temperatures(self, small: bool) -> tuple[float, ...]:
        """How wide the candidates of a round are sampled, one after the other."""
        return TEMPERATURES

    @abstractmethod
    def ask(self, target: Target, material: Material, style: Style) -> Question:
        """The first prompt. What stays the same over candidates and rounds comes first."""

    @abstractmethod
    def ask_again(self, first: Question, target: Target, attempt: Attempt) -> Question:
        """The prompt after an answer that was not good: the first one, continued."""

    @abstractmethod
    def read(self, target: Target, answer: str) -> Draft | EditMiss:
        """What the answer proposes."""

    @abstractmethod
    async def prove(self, target: Target, draft: Draft) -> Trial:
        """Run what proves it. Cheap filters have been passed."""

    @abstractmethod
    def summary(self, target: Target, draft: Draft, trial: Trial, branch: str) -> str:
        """What the coordinator reads of a candidate that passed."""

    def expected_text(self, target: Target) -> str:
        """A text about as long as the answer will be."""
        return target.code

    def enough(self, target: Target, answer: str) -> bool:
        """Whether an unfinished answer already holds all that is needed."""
        return bool(bare_code(answer)) or any(block.closed and block.code.strip() for block in code_blocks(answer))

    def opening(self, target: Target) -> str | None:
        """How the code of an answer begins, for models that go on with a text; None where the answer is not code."""
        return None

    def unchanged(self, draft: Draft) -> str | None:
        """What to tell the model when its draft is no change at all."""
        if draft.edits and all(edit.changes_nothing for edit in draft.edits):
            return "Your code is the same as the code before. Change it."
        return None

    async def prefer(self, drafts: Sequence[Draft], times: Sequence[int]) -> tuple[int, str]:
        """Which of several drafts to take that passed with equal doubts, and why, as a sentence for the report.

        Args:
            drafts: what passed, in the order it was tried.
            times: how often the model wrote each of them.
        """
        return 0, ""

    def failed_summary(self, num_candidates: int) -> str:
        """What the coordinator reads when no candidate passed; without the full stop."""
        return f"No candidate of {num_candidates} made `{self.check}` pass"

    def subject(self, target: Target) -> str:
        """The first line of the commit where the task has no instruction."""
        return f"{self.task.kind.value} {target.label}"

    def facts(self) -> Mapping[str, Any]:
        """What was measured besides a candidate's own proof."""
        return {}


class Kind(Protocol):
    """A kind of task."""

    async def __call__(self, setting: Setting) -> Job | Settled:
        """Look at the code as it is, and say what to ask.

        Raises:
            UsageError: something the kind needs is missing, with what to do.
        """
        ...


def edit_of(target: Target, text: str) -> FileEdit | EditMiss:
    """A target's file with a new text, in the file's own encoding."""
    try:
        content = target.source.encode(text)
    except UnicodeEncodeError as error:
        return EditMiss(f"{target.source.encoding} has no character {error.object[error.start]!r}: do not use it.")
    return FileEdit(target.path, target.source.text, text, content, target.is_new)


def drafted(target: Target, text: str) -> Draft | EditMiss:
    """A draft of one file's new text."""
    edit = edit_of(target, text)
    return edit if isinstance(edit, EditMiss) else Draft((edit,))
