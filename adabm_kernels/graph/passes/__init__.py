"""Passes: functions from a graph, and where they change weights its state, to another that computes the same. None changes its
arguments, or the names of outputs."""

from .fold import fold_affine, fold_batch_norm
from .simplify import common_reads, merge_affines, merge_factors, remove_dead, remove_identities, simplify, split_concats

__all__ = [
    "common_reads",
    "fold_affine",
    "fold_batch_norm",
    "merge_affines",
    "merge_factors",
    "remove_dead",
    "remove_identities",
    "simplify",
    "split_concats",
]
