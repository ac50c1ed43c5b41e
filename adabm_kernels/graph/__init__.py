"""A network as data: nodes over named tensors (nodes.py), which the float, the simulated and the integer network are read from."""
