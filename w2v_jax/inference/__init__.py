"""Trained runs as functions: open one, encode recordings, recognise speech."""
