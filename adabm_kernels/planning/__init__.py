"""Chooses the exact tile that computes each layer, and holds how long tiles take. Torch is not needed here."""
