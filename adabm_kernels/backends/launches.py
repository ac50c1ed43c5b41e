"""Whether calls that were made ready are launched as they would be now. Known without Triton, which alone has such a choice."""

from __future__ import annotations

# How often that has changed which decides about launches: a call that was made ready in another generation is made ready again.
generation = 0


def changed() -> None:
    """Begins a new generation."""
    global generation
    generation += 1
