"""Functions of arrays without parameters: frames, products, attention, masks, losses, log-mel features."""
