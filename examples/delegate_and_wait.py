"""Repair a bug and wait for it. Usage: delegate_and_wait.py REPO INSTRUCTION CHECK."""

import sys

from garzone import delegate_task

repo, instruction, check = sys.argv[1:4]
report = delegate_task("fix", instruction, repo=repo, check=check, candidates=2)
print(f"{report.verdict.value}: {report.summary}")
if report.verdict.value == "proved":
    print(f"take it over with: git merge {report.branch}")
else:
    print(report.post_mortem)
sys.exit(0 if report.verdict.value == "proved" else 1)
