"""Files that hold many recordings: the bytes of one of them, by its number. Nothing is decoded here."""
