"""Runs golden problems on the CUDA library without torch: calls with inputs and answers that golden_problems.py made beforehand.

    python benchmarks/gpu/golden_run.py FILES                           # a line of JSON for each, status 1 where one is not equal
    python benchmarks/gpu/golden_run.py FILES --bare                    # for tools that watch memory: no guards, nothing compared
    python benchmarks/gpu/golden_run.py FILE --size 512x512 --repeat 3  # for profilers: its inputs repeated to an image that large

Outputs begin as poison, and lie between bytes that must not change; every element must equal the answer's, floats included.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from card_memory import Card

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from adabm_kernels import native  # noqa: E402


@dataclass
class Golden:
    """One call of an entry of the CUDA library.

    family: the kernel that the call is to test. structs: the name of a class of native.py, and its fields; a pointer is the name of
    an array, and that of packed weights is the name of the weights. inputs, wanted: arrays by name. started: the contents of an
    output before the call, where they are not poison. scratch: bytes of outputs that nobody compares. major: the compute capability
    that the call needs, 0 for any. configs: the kernel of native.KERNELS whose configurations all give this answer, or "" for the
    one that the library chooses.
    """

    family: str
    entry: str
    structs: list[tuple[str, dict[str, Any]]]
    inputs: dict[str, np.ndarray]
    wanted: dict[str, np.ndarray]
    started: dict[str, np.ndarray] = field(default_factory=dict)
    scratch: dict[str, int] = field(default_factory=dict)
    major: int = 0
    configs: str = ""

    def save(self, path: Path) -> None:
        facts = {"family": self.family, "entry": self.entry, "structs": self.structs, "scratch": self.scratch}
        facts |= {"major": self.major, "configs": self.configs}
        groups = {"in": self.inputs, "want": self.wanted, "start": self.started}
        arrays = {f"{group}.{name}": array for group, named in groups.items() for name, array in named.items()}
        np.savez_compressed(path, call=np.array(json.dumps(facts)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Golden:
        with np.load(path) as file:
            facts = json.loads(str(file["call"]))
            groups: dict[str, dict[str, np.ndarray]] = {"in": {}, "want": {}, "start": {}}
            for key in file.files:
                group, _, name = key.partition(".")
                if name:
                    groups[group][name] = file[key]
        return cls(**facts, inputs=groups["in"], wanted=groups["want"], started=groups["start"])

    def enlarged(self, height: int, width: int) -> Golden:
        """The same convolutions on images of another size, which repeat the given ones. It is for a profiler: the right results are
        unknown.

        Packed codes are repeated as if they were not packed, which makes other codes of them. Raises ValueError where there is a
        region.
        """
        if any(fields.get("region") for _, fields in self.structs):
            raise ValueError("enlarged: the call must have no region, got one: its map of depths is of the size it was made for")
        _, fields = self.structs[0]
        old = fields["height"], fields["width"]

        def fitted(array: np.ndarray) -> np.ndarray:
            if array.ndim != 4 or array.shape[1] % old[0] or array.shape[2] % old[1] or array.shape[1] < old[0]:
                return array
            factor = array.shape[1] // old[0]
            if array.shape[1:3] != (old[0] * factor, old[1] * factor):
                return array
            times = (1, -(-height // old[0]), -(-width // old[1]), 1)
            return np.ascontiguousarray(np.tile(array, times)[:, : height * factor, : width * factor])

        images = {"x_q", "residual"}
        return Golden(
            self.family, self.entry, [(kind, fields | {"height": height, "width": width}) for kind, fields in self.structs],
            {name: fitted(array) if name in images else array for name, array in self.inputs.items()},
            {name: fitted(array) for name, array in self.wanted.items()},
            {name: fitted(array) for name, array in self.started.items()}, self.scratch, self.major, self.configs,
        )  # fmt: skip


class Memory(Protocol):
    """The memory in which kernels find their operands: that of a card (card_memory.Card), or that of the host in the tests."""

    index: int

    def reserve(self, count: int) -> int: ...
    def upload(self, array: np.ndarray, writable: bool = False) -> int: ...
    def download(self, pointer: int, like: np.ndarray) -> np.ndarray: ...
    def synchronise(self) -> None: ...


def packed(library: native.Library, weight: np.ndarray, box_filter: int, shuffle: int) -> np.ndarray:
    """Weights int8 [K, R, S, C] or [R, S, K, R, S, C] as the library packs them."""
    weight = np.ascontiguousarray(weight)
    k, r, s, c = weight.shape[-4:]
    sizes = {"out_channels": k, "channels": c, "kernel_h": r, "kernel_w": s, "border_kernels": int(weight.ndim == 6)}
    struct, size = native.Weights(**sizes, weight=weight.ctypes.data), ctypes.c_uint64()
    library.call("adabm_pack_bytes_cuda", struct, box_filter, shuffle, size)
    made = np.empty(size.value, np.uint8)
    library.call("adabm_pack_cuda", struct, box_filter, shuffle, made.ctypes.data)
    return made


def prepare(golden: Golden, library: native.Library, memory: Memory) -> tuple[Callable[[int], None], dict[str, int]]:
    """Returns two values: the call, a function of the number of a configuration, and the addresses of its outputs by name."""
    places = {name: memory.upload(array) for name, array in golden.inputs.items()}
    outputs = {name: memory.reserve(count) for name, count in golden.scratch.items()}
    for name, want in golden.wanted.items():
        start = golden.started.get(name)
        outputs[name] = memory.reserve(want.nbytes) if start is None else memory.upload(start, writable=True)
    places |= outputs

    def value(found: Any, kind: Any = None) -> Any:
        if isinstance(found, dict):
            inner = dict(kind._fields_)
            return kind(**{name: value(one, inner.get(name)) for name, one in found.items()})
        return places[found] if isinstance(found, str) else found

    structs = []
    for kind, fields in golden.structs:
        kinds = dict(getattr(native, kind)._fields_)
        values = {name: value(found, kinds.get(name)) for name, found in fields.items() if name != "packed"}
        if "packed" in fields:
            weights = packed(library, golden.inputs[fields["packed"]], fields.get("box_filter", 0), fields["shuffle"])
            values |= {"packed": memory.upload(weights), "packed_bytes": weights.nbytes}
        structs.append(getattr(native, kind)(**values))

    def call(config: int) -> None:
        if golden.configs:
            structs[0].config = config
        if golden.entry == "adabm_quantize_many_cuda":
            array = (native.QuantizeArgs * len(structs))(*structs)
            library.call(golden.entry, array, len(structs), memory.index, None)
        else:
            library.call(golden.entry, *structs, memory.index, None)
        memory.synchronise()

    return call, outputs


def difference(got: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    """The number of elements that differ, and the first of them; empty where none differs. As in torch.equal, -0 equals 0, and NaN
    equals nothing."""
    unequal = np.argwhere(got != want)
    if not len(unequal):
        return {}
    first = tuple(int(i) for i in unequal[0])
    return {"elements": len(unequal), "of": want.size, "first": first, "got": got[first].item(), "want": want[first].item()}


def configurations(golden: Golden, library: native.Library) -> list[int]:
    if not golden.configs:
        return [0]
    config = native.KernelConfig()
    library.call("adabm_config_cuda", native.KERNELS[golden.configs], 0, config)
    return list(range(1, config.count + 1))


def run(golden: Golden, library: native.Library, memory: Memory) -> dict[str, Any]:
    """Runs one problem. The "result" is "equal", "different" with the differences by output and configuration, or "unsupported"
    with the reason."""
    found: dict[str, Any] = {}
    for config in configurations(golden, library):
        try:
            call, places = prepare(golden, library, memory)
            call(config)
        except native.Unsupported as error:
            return {"result": "unsupported", "reason": str(error)}
        for name, want in golden.wanted.items():
            wrong = difference(memory.download(places[name], want), want)
            if wrong:
                found[f"{name}, configuration {config}" if config else name] = wrong
    return {"result": "different", "outputs": found} if found else {"result": "equal"}


def size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


def answer(path: Path, library: native.Library, card: Card, enlarged: tuple[int, int] | None, repeat: int) -> dict[str, Any]:
    """The line about one problem: its name and family, and "result". On a bare card nothing is compared."""
    golden = Golden.load(path)
    facts: dict[str, Any] = {"golden": path.stem, "family": golden.family}
    if golden.major and golden.major != card.attribute("major"):
        return facts | {"result": "unsupported", "reason": f"needs compute capability {golden.major}.x"}
    start = time.perf_counter()
    if enlarged is None and not card.bare:
        facts |= run(golden, library, card) | {"seconds": round(time.perf_counter() - start, 3)}
        card.free()
        return facts
    if enlarged is not None:
        golden = golden.enlarged(*enlarged)
    try:
        for config in configurations(golden, library) if enlarged is None else [0]:
            call, _ = prepare(golden, library, card)
            for _ in range(repeat):
                call(config)
        card.free()
    except native.Unsupported as error:
        return facts | {"result": "unsupported", "reason": str(error)}
    return facts | {"result": "not compared"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--size", type=size, help="HEIGHTxWIDTH of an image made of repeated ones")
    parser.add_argument("--repeat", type=int, default=1, help="calls, with --size or --bare")
    parser.add_argument("--bare", action="store_true", help="outputs and what lies around them as the driver gives memory")
    args = parser.parse_args()
    library, card = native.library("cuda"), Card(bare=args.bare)
    right = True
    for path in args.files:
        line = answer(path, library, card, args.size, args.repeat)
        right &= line["result"] != "different"
        print(json.dumps(line), flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
