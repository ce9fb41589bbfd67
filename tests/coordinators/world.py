"""A machine of a person who has garzone, a small model, a project with a bug, and a coordinator of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agent.repositories import git
from tests.coordinators.endpoint import Endpoint

SAMPLES = Path(__file__).parents[2] / "demo" / "samples"
SAMPLE, CODE = "inventory", "inventory.py"
INSTRUCTION = "a test fails: find the wrong line and repair it"
CHECK = "pytest -q"
MODEL = "smollm2:135m"
REPAIR = ("return stock + sold", "return stock - sold")


@dataclass(frozen=True)
class World:
    """Its directories; nothing outside them is written but the cache of models and programs."""

    home: Path
    project: Path
    models: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of every program started here: the person's own, and no proxies or keys of whoever runs the tests."""
        return {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/local/bin:/usr/bin:/bin",
            "TERM": "dumb",
            "GARZONE_HOME": str(self.home / "garzone"),
            "GARZONE_MODEL": MODEL,
            "OLLAMA_MODELS": str(self.models),
        }

    def garzone(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "garzone", *arguments]
        done = subprocess.run(
            command, env=self.environment, cwd=self.project, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def branches(self) -> list[str]:
        return git(self.project, "branch", "--list", "garzone/*", "--format=%(refname:short)").split()

    def branch(self) -> str:
        """The one the worker made."""
        (branch,) = self.branches()
        return branch

    def tests_pass(self) -> bool:
        """Asked of pytest, not of garzone."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return subprocess.run(command, cwd=self.project, capture_output=True, timeout=120, check=False).returncode == 0

    def tests_pass_on(self, branch: str) -> bool:
        git(self.project, "checkout", "-q", branch)
        return self.tests_pass()


def make_world(directory: Path, models: Path) -> World:
    project = directory / "project"
    shutil.copytree(SAMPLES / SAMPLE, project, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    git(project, "init", "-q", "-b", "main")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "As it was")
    (directory / "home").mkdir()
    return World(directory / "home", project, models)


@dataclass(frozen=True)
class Spending:
    """What a run cost the coordinator, in requests and bytes."""

    requests: int
    bytes: int
    later_fresh_bytes: int

    @classmethod
    def of(cls, endpoint: Endpoint) -> Spending:
        messages = endpoint.messages
        return cls(len(messages), sum(len(m.body) for m in messages), sum(m.fresh_bytes for m in messages[1:]))


def results_of(document: dict[str, Any]) -> list[str]:
    """The texts of all tool results in a conversation."""
    blocks = [
        block
        for message in document["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block.get("type") == "tool_result"
    ]
    return [
        content if isinstance(content := block.get("content", ""), str) else "".join(
            part.get("text", "") for part in content
        )
        for block in blocks
    ]  # fmt: skip
