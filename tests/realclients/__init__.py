"""Drives real clients against a running garzone: `make e2e-clients`, and the Python ones in `make test`."""
