"""Passes are functions from a graph to another graph that computes the same; those that change weights take and return the state,
too. No pass changes its arguments or the names of outputs."""

from .fold import fold_affine, fold_batch_norm
from .keys import own_keys
from .linear import linears_as_convs
from .roles import with_roles
from .simplify import common_reads, merge_affines, merge_factors, remove_dead, remove_identities, simplify, split_concats
from .transposed import transposed_as_convs

__all__ = [
    "common_reads",
    "fold_affine",
    "fold_batch_norm",
    "linears_as_convs",
    "merge_affines",
    "merge_factors",
    "own_keys",
    "remove_dead",
    "remove_identities",
    "simplify",
    "split_concats",
    "transposed_as_convs",
    "with_roles",
]
