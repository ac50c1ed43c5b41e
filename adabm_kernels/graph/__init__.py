"""A network as data: nodes over named tensors (nodes.py), from which the float, the simulated and the integer network are made."""
