"""The ahead-of-time lint: each of its limits refuses a kernel that was made to break it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from linted_kernels import product
from wmfast.kernels import lint
from wmfast.kernels.film_attention_forward import SIZES, STRIDES
from wmfast.kernels.lint import Case, Report, compile_case, faults, read_report

SOUND = Report(registers=128, spills=0, shared_bytes=65536, mma=16, wgmma=16, serialized=False)
CASE = product(90, 64, 32, 64)


@pytest.mark.parametrize("sm", [80, 90])
def test_a_sound_kernel_uses_the_tensor_cores_and_passes(sm: int) -> None:
    case = product(sm, 64, 32, 64)
    report = read_report(compile_case(case), sm)
    assert faults(report, case) == []
    assert report.mma > 0
    assert 16 < report.registers < 255
    assert report.shared_bytes >= 2 * 64 * (64 + 32)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (product(90, 64, 128, 32, warps=1), "spilled registers"),
        (
            product(90, 128, 128, 128, warps=8, stages=5),
            "bytes of shared memory, allowed are 2324",
        ),
        (product(80, 64, 64, 16, kind="*fp32"), "miss the tensor cores"),
    ],
    ids=["spill", "shared", "ieee"],
)
def test_a_kernel_beyond_a_limit_is_refused(case: Case, words: str) -> None:
    assert words in "; ".join(faults(read_report(compile_case(case), case.sm), case))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spills": 1}, "1 loads and stores"),
        ({"shared_bytes": 232_449}, "232449 bytes"),
        ({"mma": 0}, "tensor cores"),
        ({"wgmma": 0}, "wgmma"),
        ({"serialized": True}, "serialized"),
    ],
)
def test_every_limit_alone(change: dict[str, int], words: str) -> None:
    assert faults(SOUND, CASE) == []
    (fault,) = faults(SOUND._replace(**change), CASE)
    assert words in fault
    assert faults(SOUND._replace(mma=0), CASE._replace(tensor_cores=False)) == []
    assert faults(SOUND._replace(wgmma=0), CASE._replace(few_rows=True)) == []


def test_the_command_names_what_it_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lint, "MODULES", ("linted_kernels",))
    assert lint.main(["--jobs", "1"]) == 1
    sound, refused, total = capsys.readouterr().out.splitlines()
    assert sound.startswith("sound")
    assert "HGMMA" in sound
    assert refused.startswith("REFUSED  product 64 x 33 x 64")
    assert "1 of 2 cases are sound" in total
    assert lint.main(["--only", "64 x 32", "--jobs", "1"]) == 0
    assert lint.main(["--sm", "80"]) == 1  # nothing to look at is no success
    assert "no case" in capsys.readouterr().out.splitlines()[-1]


def test_arguments_that_do_not_match_the_kernel_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['steps'\] do not match"):
        compile_case(CASE._replace(signature={"a": "*fp16", "b": "*fp16", "out": "*fp32"}))


def specialized(case: Case, names: Iterable[str]) -> Case:
    """As a launch compiles it where these sizes are 1: Triton makes constants of them."""
    ones = [n for n in names if n in case.signature]
    signature = {n: kind for n, kind in case.signature.items() if n not in ones}
    return case._replace(
        signature=signature, constants={**case.constants, **dict.fromkeys(ones, 1)}
    )


SMALL = {"num_warps": 4, "num_stages": 1}
ONES = {
    "prepare": ("codes", "stride"),
    "scan": ("rows", "stride", "tiles", "tiles_each"),
    "settle": ("rows", "codes", "stride", "code_stride", "splits"),
    "share": ("rows", "codes", "stride"),
    "forward": (*SIZES, *STRIDES),
    "queries": (*SIZES, *STRIDES),
    "keys": (*SIZES, *STRIDES),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kernel", ONES)
def test_sizes_of_one_compile(kernel: str, wide: bool) -> None:
    """The interpreter never sees these: there a size is a tensor, whatever its value."""
    every = (case for module in lint.MODULES for case in lint.cases(module))
    case = next(c for c in every if c.sm == 80 and c.kernel.__name__ == f"{kernel}_kernel")
    change: dict[str, int | bool] = {"D": 16}
    if "WIDE" in case.constants:
        change |= {"WIDE": wide} | ({"D_PAD": 16} if "D_PAD" in case.constants else {})
    else:
        change |= {"BLOCK_D": 16} | ({"BY_FRAME": wide} if "BY_FRAME" in case.constants else {})
    tiles = {k: 16 for k in case.config if k.startswith("BLOCK")}
    case = case._replace(constants={**case.constants, **change}, config={**tiles, **SMALL})
    assert compile_case(specialized(case, ONES[kernel])).asm["cubin"]
