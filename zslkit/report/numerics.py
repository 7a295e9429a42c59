"""Equal bits on processors of different makers: hold every library to one level of the CPU.

Measured on one AMD processor, on it with torch, oneDNN and MKL limited, and on an Intel Haswell and
an AMD EPYC that QEMU emulates: by default the weights of a toy run differ after two steps in every
one of these places; held as here they are equal to the bit (``benchmarks/numerics.py``).
"""

import os

PORTABLE = {
    "ZSLKIT_NUMERICS": "portable",
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels; every x86-64 maker has AVX2 since 2015
    "MKL_CBWR": "COMPATIBLE",  # the branch that Intel promises to be equal on other makers' CPUs
    "OPENBLAS_CORETYPE": "Haswell",  # NumPy's and SciPy's matrix products
    "NUMBA_CPU_NAME": "haswell",  # UMAP
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2,+popcnt",
}
"""Environment of a process with portable numerics; libraries read it when they are loaded."""

REFERENCE_CAPABILITY = "AVX2"


def hold_numerics() -> bool:
    """Where the environment asks for portable numerics, switch off what it cannot hold.

    oneDNN and NNPACK choose their kernels and block sizes by the processor and its caches, and no
    variable stops that; torch's own kernels and MKL take their place.

    Returns
    -------
    bool
        Whether numerics are portable now.

    Raises
    ------
    ValueError
        If they are asked for where torch was loaded without the variables, or has no AVX2.
    """
    if os.environ.get("ZSLKIT_NUMERICS") != "portable":
        return False
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    lost = [name for name, value in PORTABLE.items() if os.environ.get(name) != value]
    if lost or capability != REFERENCE_CAPABILITY:
        raise ValueError(
            f"ZSLKIT_NUMERICS='portable' needs {', '.join(f'{n}={v}' for n, v in PORTABLE.items())}"
            f" before Python starts, and a processor with AVX2; torch computes with {capability}"
            + (f"; not so: {', '.join(lost)}" if lost else "")
        )
    torch.backends.mkldnn.set_flags(False)
    torch.backends.nnpack.set_flags(False)
    return True
