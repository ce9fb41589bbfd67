"""Connects coordinators to garzone: writes, checks, removes and prints their configuration. Runs no tasks."""
