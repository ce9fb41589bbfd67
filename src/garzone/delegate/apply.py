"""Puts a finished branch into the user's working tree, whole or not at all. Touches no index, commit or other file."""

from __future__ import annotations

from pathlib import Path

from garzone.agent.git import Git, GitFailed


def apply_branch(repo: Path, branch: str) -> str:
    """Apply the one commit of `branch` to the working tree of `repo`.

    Returns:
        "" when it is applied; otherwise why not, and then nothing was changed.
    """
    try:
        git = Git(Path(Git(repo.expanduser()).text("rev-parse", "--show-toplevel")))
        patch = git.run("diff", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", f"{branch}^", branch)
        git.run("apply", "--check", "-", data=patch)
        git.run("apply", "-", data=patch)
    except GitFailed as error:
        return f"it does not apply cleanly to your tree: {error.detail.splitlines()[0] if error.detail else error}"
    return ""
