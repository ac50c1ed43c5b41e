"""Which exact tile computes a layer, and how long tiles take. Torch is not needed here."""
