"""Compile every Triton kernel for GPUs that are not here, and refuse what would be slow there.

    python -m wmfast.kernels.lint [--sm 80 90] [--only nearest_code] [--jobs 2]

Each config of the table becomes machine code with the very ptxas that Triton would call. Four
faults make a kernel slow or impossible without any error, and the lint finds them: registers that
spill to memory, more shared memory than a block may have, products that miss the tensor cores, and
wgmma instructions that ptxas had to serialize. They differ from version to version of Triton:
``make lint-triton`` runs the lint under the pinned one and under the oldest that is supported.
Exit status 1 where a config is refused.

A module with kernels stands in ``MODULES`` and has ``lint_cases() -> Iterator[Case]``.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from wmfast.kernels import launch
from wmfast.kernels.launch import SHARED_BYTES, Config

MODULES: tuple[str, ...] = (
    "wmfast.kernels.film_attention_forward",
    "wmfast.kernels.film_attention_backward",
    "wmfast.kernels.nearest_code_cases",
    "wmfast.kernels.code_sums_triton",
)


class Case(NamedTuple):
    """One kernel in one configuration.

    ``signature`` gives the Triton type of each run-time argument: ``"*bf16"``, ``"i32"``,
    ``"fp32"``; ``"i32:16"`` is an int that is a multiple of 16, as Triton itself would find out.
    Pointers are taken to be aligned to 16 bytes. ``constants`` are the constexpr arguments beside
    those of ``config``.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    config: Config
    sm: int
    tensor_cores: bool  # it has products, and they belong there
    few_rows: bool = False  # tiles too low for wgmma: the older instruction will do


class Report(NamedTuple):
    """What the machine code of a case is like."""

    registers: int
    spills: int  # loads and stores of spilled registers, in instructions
    shared_bytes: int
    mma: int  # tensor-core instructions
    wgmma: int  # those of them that work from shared memory, sm_90 and later
    serialized: bool  # wgmma one after another, each waited for


def compile_case(case: Case) -> Any:
    """Triton's compiled kernel, for a GPU that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: case.config[name] for name in ("num_warps", "num_stages")}
    tiles = {name: value for name, value in case.config.items() if name not in options}
    options |= launch.OPTIONS
    constants = {**case.constants, **tiles}
    names: list[str] = case.kernel.arg_names
    missing = set(names) ^ (set(case.signature) | set(constants))
    if missing:
        raise ValueError(f"{case.name}: arguments {sorted(missing)} do not match the kernel")
    signature = {n: case.signature.get(n, "constexpr").removesuffix(":16") for n in names}
    aligned = [n for n, kind in case.signature.items() if kind[0] == "*" or kind.endswith(":16")]
    source = ASTSource(
        case.kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", case.sm, 32), options=options)


def read_report(compiled: Any, sm: int) -> Report:
    """Read the machine code with the tools that Triton brings along."""
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary, assembly = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        binary.write_bytes(compiled.asm["cubin"])
        assembly.write_text(compiled.asm["ptx"])
        usage = _output(tools / "cuobjdump", "-res-usage", binary)
        machine = _output(tools / "nvdisasm", "-c", binary)
        (target,) = set(re.findall(r"^\.target (\w+)", compiled.asm["ptx"], re.M))
        words = _output(
            get_ptxas(sm).path, "-v", f"--gpu-name={target}", assembly, "-o", "/dev/null"
        )
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None or "EXIT" not in machine:
        raise RuntimeError(f"cuobjdump or nvdisasm gave nothing to read: {usage[:200]!r}")
    return Report(
        registers=int(registers[1]),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", machine)),
        shared_bytes=compiled.metadata.shared,
        mma=len(re.findall(r"\bHG?MMA", machine)),
        wgmma=len(re.findall(r"\bHGMMA", machine)),
        serialized="wgmma" in words and "serializ" in words,
    )


def _output(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def faults(report: Report, case: Case) -> list[str]:
    """Why a case is refused; nothing for a sound one."""
    found = []
    if report.spills:
        found.append(f"{report.spills} loads and stores of spilled registers")
    if report.shared_bytes > SHARED_BYTES[case.sm]:
        limit = SHARED_BYTES[case.sm]
        found.append(f"{report.shared_bytes} bytes of shared memory, allowed are {limit}")
    if case.tensor_cores and not report.mma:
        found.append("its products miss the tensor cores")
    elif case.tensor_cores and case.sm >= 90 and not (report.wgmma or case.few_rows):
        found.append("its products are not made by wgmma")
    if report.serialized:
        found.append("ptxas serialized its wgmma")
    return found


def cases(module: str) -> Iterator[Case]:
    """What a module has registered."""
    yield from importlib.import_module(module).lint_cases()


def _check(module: str, position: int) -> tuple[str, bool]:
    """One line about one case, and whether it is sound. Runs in a process of its own."""
    case = list(cases(module))[position]
    try:
        report = read_report(compile_case(case), case.sm)
    except Exception as error:  # the compiler's own, of many kinds: one line, and on to the next
        words = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return f"REFUSED  {case.name}: {words[:200]}", False
    found = faults(report, case)
    numbers = (
        f"{report.registers:3d} registers {report.shared_bytes:6d} B shared "
        f"{report.mma:3d} {'HGMMA' if report.wgmma else 'HMMA'}"
    )
    if found:
        return f"REFUSED  {case.name}: {'; '.join(found)} ({numbers})", False
    return f"sound    {numbers}  {case.name}", True


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m wmfast.kernels.lint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sm", type=int, nargs="+", default=sorted(SHARED_BYTES))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    import triton

    wanted = [
        (module, position)
        for module in MODULES
        for position, case in enumerate(cases(module))
        if case.sm in options.sm and options.only in case.name
    ]
    if not wanted:
        print(f"lint: no case has sm in {options.sm} and {options.only!r} in its name")
        return 1
    sound = 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(options.jobs, len(wanted)), mp_context=spawn) as pool:
        check = map if options.jobs == 1 else pool.map
        for line, fine in check(_check, *zip(*wanted, strict=True)):
            print(line, flush=True)
            sound += fine
    print(f"triton {triton.__version__}: {sound} of {len(wanted)} cases are sound")
    return int(sound < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
