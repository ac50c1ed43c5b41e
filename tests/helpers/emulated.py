"""How the kernels of instruction sets that a processor lacks are compiled so that another one runs them."""

from __future__ import annotations

from pathlib import Path

from needs import processor_has

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cpu" / "isa"

# AVX-VNNI's products have the same meaning as those that AVX512-VNNI has on 256 bits, which this encodes them as.
_VNNI_ON_256_BITS = [
    "-mavx2",
    "-mfma",
    "-mavx512vl",
    "-mavx512vnni",
    "-D__AVXVNNI__",
    "-D_mm256_dpbusd_avx_epi32=_mm256_dpbusd_epi32",
    "-D_mm256_dpwssd_avx_epi32=_mm256_dpwssd_epi32",
]
_VNNI_ON_AVX2 = ["-mavx2", "-mfma", "-D__AVXVNNI__", "-include", f"{ROOT}/tests/cpu/native/vnni_on_avx2.h"]


def avxvnni_flags() -> list[str]:
    """Flags for avxvnni.cpp: AVX512-VNNI's encoding where the processor has that, else the products are made of AVX2's."""
    return _VNNI_ON_256_BITS if processor_has("avx512_vnni", "avx512vl") else _VNNI_ON_AVX2


def replaced(text: str, changes: dict[str, str]) -> str:
    """The text with each of these pieces, which occur in it once, replaced."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def amx_in_c(folder: Path, vectors: str = "scalar") -> tuple[Path, list[str]]:
    """A copy of amx.cpp in `folder`, and the flags that compile it: with the matrix unit in plain C++.

    vectors: the instruction set whose kernels stand for those that the real one takes from AVX512-VNNI.
    """
    text = (KERNELS / "amx.cpp").read_text()
    source = folder / "amx.cpp"
    source.write_text(replaced(text, {'asm volatile("ldtilecfg %0" ::"m"(config));': "amx_in_c::load_config(&config);"}))
    vector_kernels = [] if vectors == "avx512vnni" else [f"-Dkernels_avx512vnni=kernels_{vectors}"]
    return source, [f"-I{ROOT}/tests/cpu/native/amx_in_c", "-D__AMX_TILE__", "-D__AMX_INT8__", *vector_kernels, "-w"]


def choosing_emulated(folder: Path) -> Path:
    """A copy of choose.cpp in `folder` that takes AVX-VNNI and AMX for present where AVX2 is."""
    source = folder / "choose.cpp"
    present = "  if (isa == ADABM_ISA_AVXVNNI || isa == ADABM_ISA_AMX) return on_processor(ADABM_ISA_AVX2);\n"
    head = "static bool on_processor(int isa) {\n"
    changes = {head: head + present, "isa == ADABM_ISA_AMX ? why_amx_refused() : nullptr;": "nullptr;"}
    source.write_text(replaced((KERNELS / "choose.cpp").read_text(), changes))
    return source
