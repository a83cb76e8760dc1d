"""The processor's instruction sets, as far as arithmetic depends on them.

In fp32 two processors differ by roundings. Lower precisions may take other operators altogether (onnxruntime#14932:
another instruction set, other int8 answers), so a version records where it was compared, and a launcher says where the
machine is another one; what it then answers is decided by the probe.
"""

from __future__ import annotations

from pathlib import Path

_ARITHMETIC = {
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
}  # fmt: skip


def cpu_flags(info: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Names of instruction sets that change arithmetic, as Linux names them, sorted; empty where it does not say."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    given = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return sorted(_ARITHMETIC & set(given.split()))


def other_processor(manifest: dict[str, object]) -> str:
    """What to say of a version in a lower precision on another processor than it was compared on; else empty."""
    precision, there = manifest.get("precision", "fp32"), manifest.get("cpu_flags")
    here = cpu_flags()
    if precision == "fp32" or not isinstance(there, list) or not there or not here or there == here:
        return ""
    differing = " ".join(sorted(set(there) ^ set(here)))
    return (
        f"version {manifest.get('version')} of {manifest.get('name')} is in {precision} and was compared on another "
        f"kind of processor ({differing}); check it with `python -m export verify {manifest.get('name')}`"
    )
