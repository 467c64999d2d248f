"""Indexes that outlive a process: their columns, the files that hold them, and the headers that were read for them."""
