"""garzone: a local coding agent that proves its results.

Importing this package does nothing: no device probe, no directory made, no heavy import. Public names
are resolved on first use.
"""

from __future__ import annotations

__version__ = "0.1.0"
