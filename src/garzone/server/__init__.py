"""The HTTP server: routes, the dialects clients speak, and what happens when they hang up."""
