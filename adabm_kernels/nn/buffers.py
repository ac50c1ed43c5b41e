"""Buffers of a compiled network: tensors share memory where they are not needed at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from .steps import ConvStep, DropStep, Place, Program, Slice, Step

Lives = dict[int, tuple[int, int]]  # by the id of a store, the first and the last step that uses it


def bind(steps: Sequence[Step], places: list[Place | None], x: Slice, ys: Sequence[Slice]) -> Program:
    """Makes a program of steps whose references do not yet say where in memory they lie. x, ys: the input and the outputs."""
    lives = _lives(steps)
    _share_buffers(steps, lives)
    ats: dict[tuple[object, ...], int] = {}
    for step in steps:
        for held in (*step.reads(), *step.writes()):
            store = held.store
            memory = (id(store),) if store.fresh else (store.buffer, store.kind, store.width, store.extent)
            held.whole = ats.setdefault((*memory, 0, store.width), len(ats))
            held.at = ats.setdefault((*memory, held.start, held.stop), len(ats))
    x.at = ats.setdefault((id(x.store), 0, x.store.width), len(ats))
    outputs = [y.at for y in ys]
    return Program(_with_drops(steps, lives, outputs), x.at, outputs, len(ats), places)


def _lives(steps: Sequence[Step]) -> Lives:
    lives: Lives = {}
    for i, step in enumerate(steps):
        for held in (*step.reads(), *step.writes()):
            lives[id(held.store)] = lives.get(id(held.store), (i, i))[0], i
    return lives


def _share_buffers(steps: Sequence[Step], lives: Lives) -> None:
    """Gives every store that is not fresh a buffer, and has a sum made in place where its first term is not read later.

    A store takes the smallest free buffer of its kind that holds it, or else the largest, which then grows.
    """
    sizes: dict[str, int] = {}
    free: dict[str, list[str]] = {}
    gone: set[int] = set()  # stores whose buffers are free again, or belong to another store
    for i, step in enumerate(steps):
        for held in step.writes():
            store = held.store
            if store.fresh or store.buffer:
                continue
            if isinstance(step, ConvStep) and held is step.y and step.residual is not None:
                added = step.residual.store
                if _in_place(step.residual, held) and lives[id(added)][1] == i:
                    store.buffer, step.accumulate = added.buffer, True
                    gone.add(id(added))
                    continue
            size = store.values
            unused = sorted(free.setdefault(store.kind, []), key=lambda name: sizes[name])
            fitting = [name for name in unused if sizes[name] >= size] or unused[-1:]
            store.buffer = fitting[0] if fitting else f"{store.kind}{sum(name.startswith(store.kind) for name in sizes)}"
            sizes[store.buffer] = max(size, sizes.get(store.buffer, 0))
            if fitting:
                free[store.kind].remove(store.buffer)
        for held in (*step.reads(), *step.writes()):
            store = held.store
            if not store.fresh and lives[id(store)][1] == i and id(store) not in gone:
                free[store.kind].append(store.buffer)
                gone.add(id(store))
    _make_room(steps)


def _make_room(steps: Sequence[Step]) -> None:
    """Makes each buffer begin with the largest size that it will need. Otherwise the first forward pass would hold outgrown buffers
    too."""
    stores = [held.store for step in steps for held in step.writes() if not held.store.fresh]
    most: dict[tuple[str, str], int] = {}  # by the buffer, and by the tensor that sizes derive from
    for store in stores:
        key = store.buffer, store.extent[0]
        most[key] = max(store.values, most.get(key, 0))
    for store in stores:
        store.most = most[store.buffer, store.extent[0]]


def _in_place(added: Slice, to: Slice) -> bool:
    """Whether a sum can be written to where its first term lies."""
    one, other = added.store, to.store
    alike = (one.kind, one.width, one.extent) == (other.kind, other.width, other.extent)
    return alike and not one.fresh and (added.start, added.stop) == (to.start, to.stop)


def _with_drops(steps: Sequence[Step], lives: Lives, kept: Sequence[int]) -> list[Step]:
    """The steps, each followed by the release of the fresh tensors that nothing reads after it, except those at `kept`."""
    found: list[Step] = []
    gone = set(kept)
    for i, step in enumerate(steps):
        found.append(step)
        last = [held for held in step.reads() if held.store.fresh and lives[id(held.store)][1] == i]
        fresh = {at for held in last for at in (held.at, held.whole)} - gone
        if fresh:
            found.append(DropStep(sorted(fresh)))
            gone |= fresh
    return found
