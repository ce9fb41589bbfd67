"""Renders the prompt templates beside it. Decides nothing about what goes into them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """The text of `<template>.j2` with values filled in; a value that is missing is an error, not an empty string."""
    return _environment().get_template(f"{template}.j2").render(**values)


def fenced(code: str, language: str = "") -> str:
    """Code as a Markdown block whose fence is longer than any inside, so that no text can end it early."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("garzone.agent", "prompts"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown for a model, no browser
        keep_trailing_newline=False,
    )
    environment.filters.update(fenced=fenced)  # pyright: ignore[reportUnknownMemberType] - jinja2 leaves it untyped
    return environment
