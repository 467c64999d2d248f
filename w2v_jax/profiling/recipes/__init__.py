"""From a folder of recordings to a plan of commands: what there is, how fast it runs, which rules then hold.

`look` finds the facts, `speed` times updates, `rules` is the table of choices, `budget` turns facts and choices into
steps with their minutes, and `steps` runs them, one process after the other.
"""
