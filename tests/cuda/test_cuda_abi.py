"""The CUDA library's C entries: what bad input and bad machines get. Drivers and devices are pretended (cuda_host/driver.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_int32
from typing import Any

import numpy as np
import pytest
import torch
from cuda_calls import CudaCall, conv2d_call
from cuda_library import driver, host_library, runtime
from problems import ConvProblem, instantiate

from adabm_kernels import native, registry
from adabm_kernels.backends import devices
from adabm_kernels.registry import Choice, ConvShape, Problem, choose

NO_DRIVER, OLD_DRIVER, NO_IMAGE, BAD_LAUNCH, OTHER_ARCHITECTURE = 100, 35, 209, 9, 209


@pytest.fixture(autouse=True)
def built() -> None:
    host_library()


class Call:
    """Valid arguments of every entry, in buffers that stay alive; a test breaks one of them."""

    def __init__(self) -> None:
        self.problem: CudaCall = conv2d_call(instantiate(ConvProblem("abi", 4, 5, 5, 9, bits=(4, 8), residual=True)))
        self.conv2d = self.problem.args
        self.keep: list[np.ndarray] = []
        bits = self.array(np.array([4, 8], np.int32))
        self.quantize = native.QuantizeArgs(
            batch=2,
            height=4,
            width=5,
            channels=5,
            stride_n=100,
            stride_h=25,
            stride_w=5,
            stride_c=1,
            x=self.array(np.ones(200, np.float32)),
            grid=self.array(np.ones((7, 2), np.float32)),
            bits=bits,
            y_q=self.array(np.zeros(2 * 20 * 8, np.uint8)),
        )
        self.depths = native.DepthsArgs(
            batch=2,
            height=4,
            width=5,
            x_q=self.array(np.zeros(2 * 20, np.uint32)),
            tile=4,
            top=1,
            left=2,
            threshold=20,
            deep=16,
            depth=self.array(np.zeros(2 * 2 * 2, np.uint8)),
        )
        self.image_bits = native.ImageBitsArgs(
            batch=2,
            height=4,
            width=5,
            stride_n=60,
            stride_c=20,
            stride_h=5,
            stride_w=1,
            x=self.array(np.ones(120, np.float32)),
            workspace=self.array(np.zeros(2 * native.MEASURE_BYTES // 8)),
            workspace_bytes=2 * native.MEASURE_BYTES,
            layers=1,
            lower=self.array(np.zeros(1, np.float32)),
            upper=self.array(np.ones(1, np.float32)),
            rules=self.array(np.array([4, 1], np.int32)),
            bits=bits,
        )
        self.weights = native.Weights(
            out_channels=9, channels=5, kernel_h=3, kernel_w=3, weight=self.array(np.ones((9, 3, 3, 5), np.int8))
        )
        self.box_filter, self.shuffle = 0, 1

    def array(self, array: np.ndarray) -> int:
        self.keep.append(array)
        return array.ctypes.data


def pack(call: Call) -> None:
    size = ctypes.c_uint64()
    host_library().call("adabm_pack_bytes_cuda", call.weights, call.box_filter, call.shuffle, size)
    packed = np.zeros(size.value, np.uint8)
    host_library().call("adabm_pack_cuda", call.weights, call.box_filter, call.shuffle, packed.ctypes.data)


ENTRIES: dict[str, Callable[..., None]] = {
    "conv2d": lambda call, device=0: host_library().call("adabm_conv2d_cuda", call.conv2d, device, None),
    "quantize": lambda call, device=0: host_library().call("adabm_quantize_cuda", call.quantize, device, None),
    "depths": lambda call, device=0: host_library().call("adabm_depths_cuda", call.depths, device, None),
    "image_bits": lambda call, device=0: host_library().call("adabm_image_bits_cuda", call.image_bits, device, None),
}


def test_many_targets_share_what_they_read() -> None:
    first, second = Call(), Call()
    for args in (first.quantize, second.quantize):
        args.x = first.quantize.x
    array = (native.QuantizeArgs * 2)(first.quantize, second.quantize)
    host_library().call("adabm_quantize_many_cuda", array, 2, 0, None)
    for count in (0, native.MAX_TARGETS + 1):
        with pytest.raises(ValueError, match=f"count must be 1..16, got {count}"):
            host_library().call("adabm_quantize_many_cuda", array, count, 0, None)
    for field, value in (("height", 3), ("stride_c", 2), ("x", second.array(np.ones(200, np.float32)))):
        array = (native.QuantizeArgs * 2)(first.quantize, second.quantize)
        setattr(array[1], field, value)
        with pytest.raises(ValueError, match=r"args\[1\] must have the x, its format, shift, sizes and strides of args\[0\]"):
            host_library().call("adabm_quantize_many_cuda", array, 2, 0, None)
    array = (native.QuantizeArgs * 2)(first.quantize, second.quantize)
    array[1].region.depth, array[1].region.tile = first.quantize.x, 8
    with pytest.raises(ValueError, match=r"args\[1\].region.depth must be null where codes are made on several grids"):
        host_library().call("adabm_quantize_many_cuda", array, 2, 0, None)
    array[1].struct_bytes = 8
    with pytest.raises(ValueError, match=r"args\[1\] must be a struct of [0-9]+ bytes"):
        host_library().call("adabm_quantize_many_cuda", array, 2, 0, None)


# struct, fields to change, what the message says: the argument, and the value where there is one to say.
BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("conv2d", {"struct_bytes": 8}, "args must be a struct of [0-9]+ bytes"),
    ("conv2d", {"batch": 0}, "batch, height and width must be positive, got 0, 4, 5"),
    ("conv2d", {"width": 2**20 + 1}, "height and width must be at most 2.20, got 4 and 1048577"),
    ("conv2d", {"height": 2**20, "width": 2**20, "batch": 1}, r"less than 2\^31 codes and outputs, got 1048576x1048576 with 5"),
    ("conv2d", {"height": 2**16, "width": 2**12, "batch": 1}, r"less than 2\^31 codes and outputs, got 65536x4096 with 5 and 12"),
    ("conv2d", {"batch": 2**18, "height": 2**12, "width": 2**12}, "make at most 2.31-1 tiles, got [0-9]+"),
    *[("conv2d", {name: None}, f"{name}.*must not be null") for name in ("x_q", "x_bits", "alpha", "beta")],
    ("conv2d", {"y": None, "y_q": None, "y_acc": None}, "one of y, y_q, y_acc and y_image must be given"),
    ("conv2d", {"out_grid": None}, "y_q needs out_grid and out_bits"),
    ("conv2d", {"activation": 3}, "activation must be 0..2, got 3"),
    ("conv2d", {"activation": 2, "slope": None}, "PReLU needs slope"),
    ("conv2d", {"shuffle": 17}, "shuffle must be 1..16, got 17"),
    ("conv2d", {"shuffle": 2}, "square divide out_channels 9, got 2"),
    ("conv2d", {"y_pitch": 8}, r"y_pitch must be 0, or out_channels 9..2\^20 without shuffle, got 8 with shuffle 1"),
    ("conv2d", {"out_channels": 0}, "out_channels and channels must be positive, got 0 and 5"),
    ("conv2d", {"kernel_h": 2}, "kernel must be odd and at most 15 a side, got 2x3"),
    ("conv2d", {"border_kernels": 2}, "border_kernels must be 0 or 1, got 2"),
    ("conv2d", {"border_kernels": 1, "kernel_h": 5}, "at least the kernel's 5x3 with border_kernels, got 4x5"),
    ("conv2d", {"packed": None}, "packed must be 16-byte aligned and not null"),
    ("conv2d", {"packed_bytes": 8}, r"packed_bytes must be [0-9]+ or, with 4-bit weights, [0-9]+ for these sizes, got 8"),
    ("conv2d", {"out_channels": 73}, "packed_bytes must be .*: packed was made for others or not by adabm_pack_cuda"),
    ("conv2d", {"packed_codes": 4}, "packed_codes must be 0..3, got 4"),
    ("quantize", {"struct_bytes": 8}, "args must be a struct of [0-9]+ bytes"),
    ("quantize", {"channels": 0}, "batch, height, width and channels must be positive, got 2, 4, 5, 0"),
    ("quantize", {"stride_c": -1}, "stride_c must be 0..2.27-1, got -1"),
    ("quantize", {"y_channels": 2}, "y_channels must be 0 or channels..y_pitch and y_pitch below 2\\^20, got 2"),
    ("quantize", {"packed_codes": 1}, "packed_codes must be 0 or 2, got 1"),
    ("quantize", {"packed_codes": 2, "y_channels": 8}, "y_channels must be 0 with packed codes, got 8"),
    ("quantize", {"y_start": 4}, "y_start must be 0 or, with packed codes, a multiple of 4 .*, got 4 with 8"),
    ("quantize", {"packed_codes": 2, "y_start": 2}, "a multiple of 4 with room for 5 channels .*, got 2 with 8"),
    ("quantize", {"packed_codes": 2, "y_start": 4}, "a multiple of 4 with room for 5 channels .*, got 4 with 8"),
    ("quantize", {"packed_codes": 2, "y_start": 2**31 - 4}, "a multiple of 4 with room for 5 channels .*, got 2147483644 with 8"),
    ("quantize", {"height": 2**15, "width": 2**15, "batch": 1}, r"less than 2\^31 codes, got 32768x32768 with 8 a pixel"),
    *[("quantize", {name: None}, f"{name}.*must not be null") for name in ("x", "grid", "bits", "y_q")],
    ("depths", {"struct_bytes": 8}, "args must be a struct of [0-9]+ bytes"),
    ("depths", {"width": 0}, "batch, height and width must be positive, got 2, 4, 0"),
    ("depths", {"batch": 2**20, "height": 2**12}, "batch times height must fit 31 bits, got 1048576 and 4096"),
    ("depths", {"height": 2**20 + 1}, r"height and width must be at most 2\^20, got 1048577 and 5"),
    ("depths", {"tile": 0}, r"tile must be 1..2\^20, got 0"),
    ("depths", {"tile": 2**20 + 1}, r"tile must be 1..2\^20, got 1048577"),
    ("depths", {"top": 4}, "top and left must be 0..3, got 4 and 2"),
    ("depths", {"left": -1}, "top and left must be 0..3, got 1 and -1"),
    ("depths", {"threshold": -1}, "threshold must be 0..510, got -1"),
    ("depths", {"threshold": 511}, "threshold must be 0..510, got 511"),
    ("depths", {"deep": 0}, "deep must be 1..255, got 0"),
    ("depths", {"deep": 256}, "deep must be 1..255, got 256"),
    *[("depths", {name: None}, "x_q and depth must not be null") for name in ("x_q", "depth")],
    ("depths", {"x_q": 4098}, "x_q must be 4-byte aligned"),
    ("image_bits", {"struct_bytes": 8}, "args must be a struct of [0-9]+ bytes"),
    ("image_bits", {"batch": -1}, "batch, height and width must be positive, got -1, 4, 5"),
    ("image_bits", {"batch": 65536}, "batch must be at most 65535, got 65536"),
    ("image_bits", {"height": 2**16, "width": 2**16}, r"at most 2\^30 pixels, got 65536x65536"),
    ("image_bits", {"x": None}, "x and workspace must not be null"),
    ("image_bits", {"workspace": None}, "x and workspace must not be null"),
    ("image_bits", {"workspace_bytes": 1023}, "workspace_bytes must be at least 1024 for 2 images, got 1023"),
    ("image_bits", {"bits": None}, "one of measure and bits must be given"),
    ("image_bits", {"layers": 0}, "bits needs layers, rules, lower and upper, got 0 layers"),
    ("image_bits", {"rules": None}, "bits needs layers, rules, lower and upper, got 1 layers"),
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_valid_arguments_pass(entry: str) -> None:
    call = Call()
    ENTRIES[entry](call)
    pack(call)


@pytest.mark.parametrize("entry, changes, message", BROKEN)
def test_a_broken_rule_is_named_with_its_value(entry: str, changes: dict[str, Any], message: str) -> None:
    call = Call()
    for field, value in changes.items():
        setattr(getattr(call, entry), field, value)
    with pytest.raises(ValueError, match=message):
        ENTRIES[entry](call)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("box_filter", 2, "box_filter must be 0 or 1, got 2"),
        ("shuffle", 0, "shuffle must be 1..16 and its square divide out_channels 9, got 0"),
        ("shuffle", 2, "shuffle must be 1..16 and its square divide out_channels 9, got 2"),
    ],
)
def test_packing_checks_what_it_is_given(field: str, value: int, message: str) -> None:
    call = Call()
    setattr(call, field, value)
    with pytest.raises(ValueError, match=message):
        pack(call)
    for name, wrong, rule in (("kernel_w", 17, "kernel must be odd"), ("weight", None, "must not be null")):
        call = Call()
        setattr(call.weights, name, wrong)
        with pytest.raises(ValueError, match=rule):
            pack(call)


# ---- machines


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "answers, message",
    [
        ({"count_error": NO_DRIVER}, "no CUDA device can be used: no CUDA-capable device is detected"),
        ({"count_error": OLD_DRIVER}, "no CUDA device can be used: CUDA driver version is insufficient for CUDA runtime version"),
        ({"launch_error": BAD_LAUNCH}, "invalid configuration argument"),
        ({"launch_error": OTHER_ARCHITECTURE}, "no kernel image is available for execution on the device"),
    ],
)
def test_a_machine_that_cannot_run_it_is_a_status_of_that_call(entry: str, answers: dict[str, int], message: str) -> None:
    call = Call()
    with driver(**answers):
        with pytest.raises(RuntimeError, match=message):
            ENTRIES[entry](call)
        assert runtime().sticky_error() == 0  # the caller's next launch does not see it
    ENTRIES[entry](call)


def test_a_launch_names_its_kernel() -> None:
    with driver(launch_error=BAD_LAUNCH), pytest.raises(RuntimeError, match="adabm_conv2d_cuda: conv2d: invalid configuration"):
        ENTRIES["conv2d"](Call())


@pytest.mark.parametrize("entry", ENTRIES)
def test_kernels_go_to_the_stream_of_the_call(entry: str) -> None:
    call = Call()
    for stream in (0x1230, None):
        host_library().call(f"adabm_{entry}_cuda", getattr(call, entry), 0, stream)
        assert runtime().last_stream() == stream


def test_no_device_at_all_is_refused() -> None:
    with driver(devices=0), pytest.raises(ValueError, match="device must be 0..-1, got 0"):
        ENTRIES["conv2d"](Call())


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("device", [-1, 2])
def test_a_device_that_is_not_there_is_refused(entry: str, device: int) -> None:
    with driver(devices=2), pytest.raises(ValueError, match=f"device must be 0..1, got {device}"):
        ENTRIES[entry](Call(), device)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_callers_device_stays_current_whatever_happens(entry: str) -> None:
    call = Call()
    args = getattr(call, entry)
    with driver(devices=3, current=2):
        ENTRIES[entry](call, 2)
        runtime().owner(args.x_q if hasattr(args, "x_q") else args.x, 1)
        with pytest.raises(ValueError, match=r"must be memory of device 0, got memory of device 1"):
            ENTRIES[entry](call, 0)
        assert runtime().current_device() == 2


@pytest.mark.parametrize("field", ["x_q", "packed", "y", "y_q", "residual"])
def test_memory_of_another_device_or_of_the_host_is_refused(field: str) -> None:
    call = Call()
    for owner, got in ((1, "memory of device 1"), (-1, "memory of the host")):
        with driver(devices=2):
            runtime().owner(getattr(call.conv2d, field), owner)
            with pytest.raises(ValueError, match=f"{field} must be .*device 0, got {got}"):
                ENTRIES["conv2d"](call)


@pytest.mark.parametrize("field", ["x_q", "depth"])
def test_depths_of_the_host_are_refused(field: str) -> None:
    call = Call()
    runtime().owner(getattr(call.depths, field), -1)
    with driver(), pytest.raises(ValueError, match=f"{field} must be device memory of device 0, got memory of the host"):
        ENTRIES["depths"](call)


def test_more_shared_memory_than_the_card_has_is_an_error_of_the_call() -> None:
    call = conv2d_call(instantiate(ConvProblem("large", 4, 5, 80, 64, kernel=15, weight_bits=8, bits=(8,))))
    with driver(shared_limit=48 << 10), pytest.raises(RuntimeError, match="conv2d: invalid argument"):
        call.run()
    with driver(shared_limit=99 << 10):  # compute capability 8.6 and 8.9, the least of those the library is built for
        call.run()


def test_a_library_for_other_architectures_says_so() -> None:
    host_library().call("adabm_usable_cuda", 0)
    with driver(image_error=NO_IMAGE, major=7, minor=5):
        message = r"holds no kernels for device 0 of compute capability 7\.5: they are built for 8\.0 and newer"
        with pytest.raises(RuntimeError, match=message):
            host_library().call("adabm_usable_cuda", 0)
    for error, message in ((NO_DRIVER, "no CUDA-capable device"), (OLD_DRIVER, "driver version is insufficient")):
        with driver(count_error=error), pytest.raises(RuntimeError, match=message):
            host_library().call("adabm_usable_cuda", 0)


def test_devices_are_described() -> None:
    count, device = c_int32(), native.Device()
    with driver(devices=2, major=8, minor=9):
        host_library().call("adabm_device_count_cuda", count)
        host_library().call("adabm_device_cuda", 1, device)
    assert (count.value, device.compute_major, device.compute_minor) == (2, 8, 9)


# ---- the choice


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with a card that torch and Triton can use, of the compute capability that the test gives."""

    def pretend(major: int, minor: int, triton: str = "") -> None:
        monkeypatch.delenv("ADABM_BACKEND", raising=False)
        monkeypatch.setattr(native, "why_missing", lambda name: "")
        monkeypatch.setattr(native, "library", lambda name: host_library())
        monkeypatch.setattr(devices, "why_no_gpu", lambda: "")
        monkeypatch.setattr(
            devices, "why_not_triton", lambda device: triton or ("the tensors are on cpu" if device == "cpu" else "")
        )
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        devices._why_no_kernels_on.cache_clear()

    yield pretend
    devices._why_no_kernels_on.cache_clear()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_cuda_comes_first_but_for_shapes_that_triton_is_faster_on(gpu: Callable[..., None], capability: tuple[int, int]) -> None:
    gpu(*capability)
    assert choose(Problem("cuda")) == Choice("cuda", {})
    narrow = Problem("cuda", ConvShape(16, 8, 3, 3))
    choice = choose(narrow)
    assert choice.backend == "triton" and f"compute capability {capability[0]}.{capability[1]}" in choice.rejected["cuda"]
    assert choose(narrow, "cuda") == Choice("cuda")  # asked for, it runs
    gpu(*capability, triton="triton is not installed")
    assert choose(narrow) == Choice("cuda", {})


def test_a_library_that_cannot_run_is_passed_over_and_refused_by_name(gpu: Callable[..., None]) -> None:
    for answers, reason in (
        ({"image_error": NO_IMAGE, "major": 7, "minor": 5}, "holds no kernels for device 0"),
        ({"count_error": OLD_DRIVER}, "driver version is insufficient"),
        ({"count_error": NO_DRIVER}, "no CUDA-capable device is detected"),
    ):
        gpu(8, 0)
        with driver(**answers):
            choice = choose(Problem("cuda"))
            assert choice.backend == "triton" and reason in choice.rejected["cuda"]
            with pytest.raises(RuntimeError, match=f"backend 'cuda' cannot run: .*{reason}"):
                choose(Problem("cuda"), "cuda")


def test_tensors_in_main_memory_are_for_the_cpu(gpu: Callable[..., None]) -> None:
    gpu(8, 0)
    choice = choose(Problem("cpu"))
    assert choice.backend == "cpu" and choice.rejected["cuda"] == "the tensors are on cpu"
    assert registry.backends()["cuda"].available


def test_geometries_that_are_not_plain_are_refused_with_the_reason() -> None:
    call = Call()
    strided = native.Geometry(2, 2, 1, 1, 1, 1, 1, 1, 1)
    call.weights.geometry, call.weights.shuffle, call.conv2d.geometry = strided, 1, strided
    for run in (pack, lambda call: host_library().call("adabm_conv2d_cuda", call.conv2d, 0, None)):
        with pytest.raises(native.Unsupported, match=r"geometry must be plain \(stride_h 0\) on CUDA, got stride_h 2"):
            run(call)
