"""The vocabulary every room shares: frozen dataclasses and protocols, stdlib only, no I/O."""
