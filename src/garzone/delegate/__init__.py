"""Delegating: whether it pays, the walk from a task to its ledger row, and what was saved. Not how the work is done."""
