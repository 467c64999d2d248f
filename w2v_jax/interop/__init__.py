"""Checkpoints of other packages: read, write, and map tensor by tensor."""
