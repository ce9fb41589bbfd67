"""Models on disk, in Ollama's own layout: found in place, fetched, listed, removed.

The parts are in the modules of this package: `garzone.store.catalog.Store` is the one others use.
"""
