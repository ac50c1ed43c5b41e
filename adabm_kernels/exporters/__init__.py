"""Writes networks into files that other programs run."""
