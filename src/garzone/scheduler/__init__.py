"""Which tokens of which requests are computed next, in which slot, and what is kept of them. Pure."""
