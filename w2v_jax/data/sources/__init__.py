"""One file per source: `data.name = "tsv"` means `sources/tsv.py`, which exports `make(data, root)`."""
