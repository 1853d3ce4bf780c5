"""The command line: ``wmfast train|eval|dream|report``; ``wmfast-train`` is ``wmfast train``."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import tyro

from wmfast.config import DREAM_TEMPERATURE, Config
from wmfast.errors import UserError

T = TypeVar("T")
_INTERRUPTED = 130  # as a shell reports SIGINT
_USAGE = """usage: wmfast {train,eval,dream,report} ...

  train   learn a game: tokenizer, world model and agent
  eval    score a trained agent in full games, or a world model on frozen held-out steps
  dream   a GIF of a real game beside the world model's dream of it
  report  scores of many runs: seeds, intervals, aggregates, published agents beside

wmfast <command> --help says more."""


@dataclass(frozen=True)
class EvalOptions:
    """Score the agent of a run (--run-dir) in full games, or its world model (--world-model)."""

    run_dir: Path | None = None
    """Folder of the run; its latest checkpoint plays full games, all at once."""
    world_model: Path | None = None
    """Folder of the run whose world model is judged on frozen, held-out steps."""
    tier: Literal["canary", "fast", "gold"] | None = None
    """How many of them: 500, 6000 (unless given), all (--world-model)."""
    gold: Path | None = None
    """`gold_indices.json` of another run with the same tokenizer (--world-model)."""
    episodes: int | None = None
    """Games; 10 unless given (--run-dir)."""
    epsilon: float | None = None
    """Probability of a random action; greedy unless given (--run-dir)."""
    sticky: float | None = None
    """Sticky actions; as the run was trained unless given (--run-dir)."""
    seed: int | None = None
    """Seed of the games; 0 unless given (--run-dir)."""
    json: Path | None = None
    """Write the result here too."""


@dataclass(frozen=True)
class DreamOptions:
    """A GIF of a real game of a run's agent beside the world model's dream of it."""

    run_dir: Path
    """Folder of the run; its latest checkpoint dreams, after its end the kept world model."""
    out: Path | None = None
    """The GIF; `media/dream.gif` of the run unless given."""
    steps: int = 50
    """Dreamed steps; the model gets the real actions."""
    start: int = 150
    """Step of the game at which the dream begins."""
    refresh: int = 0
    """Dreamed steps after which the model gets real frames again; 0: never."""
    temperature: float = DREAM_TEMPERATURE
    """Of the dreamed tokens; 0: the likeliest."""
    top_k: int = 0
    """Sample among the so many likeliest tokens of a cell; 0: among all."""
    seed: int = 0
    """Seed of the game and of the dream."""


@dataclass(frozen=True)
class ReportOptions:
    """Put finished runs together: scores with intervals, aggregates, published agents beside."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders that hold run folders."""
    json: Path | None = None
    """Write everything as JSON here."""
    out: Path | None = None
    """Folder for report.md and the learning curves as PNG."""
    markdown: bool = False
    """Print markdown."""
    policy: str = "greedy"
    """Whose scores: `greedy`, or `epsilon 0.01`."""
    ignore: tuple[str, ...] = ()
    """Settings of config.json (`agent.n_step`) that may differ between runs of one group; of the
    protocol (`max_steps`) too."""


def main(argv: Sequence[str] | None = None) -> None:
    """``wmfast <command> ...``; exits with 0, 2 for bad input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": _train, "eval": _eval, "dream": _dream, "report": _report}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        sys.exit(0 if arguments else 2)
    command = arguments[0]
    if command not in commands:
        _fail(f"unknown command {command!r}: allowed are {', '.join(commands)}")
    _run(commands[command], arguments[1:])


def main_train(argv: Sequence[str] | None = None) -> None:
    """``wmfast-train ...``: `main` with the command ``train``."""
    _run(_train, list(sys.argv[1:] if argv is None else argv))


def parse(kind: type[T], arguments: Sequence[str], prog: str, default: T | None = None) -> T:
    """Arguments as a dataclass.

    Raises:
        UserError: one line in place of tyro's boxes.
    """
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            if default is None:
                return tyro.cli(kind, args=list(arguments), prog=prog)
            return tyro.cli(kind, args=list(arguments), prog=prog, default=default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(stderr.getvalue())) from None


def _train(arguments: list[str]) -> None:
    from wmfast.launch import launch, resolve  # torch takes seconds, --help should not

    def read(default: Config) -> Config:
        return parse(Config, arguments, "wmfast train", default)

    launch(resolve(arguments, read))


def _eval(arguments: list[str]) -> None:
    options = parse(EvalOptions, arguments, "wmfast eval")
    if (options.run_dir is None) == (options.world_model is None):
        raise UserError(
            "wmfast eval needs --run-dir RUN (the agent) or --world-model RUN, not both"
        )
    if options.world_model is not None:
        games = ("episodes", "epsilon", "sticky", "seed")
        _refuse(options, games, "is for games (--run-dir), a world model is judged on frozen steps")
        _eval_world_model(options.world_model, options)
    elif options.run_dir is not None:
        _refuse(
            options, ("tier", "gold"), "is for frozen steps (--world-model), an agent plays games"
        )
        _eval_agent(options.run_dir, options)


def _refuse(options: EvalOptions, names: Sequence[str], why: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None:
            raise UserError(f"--{name} {value}: {why}")


def _eval_agent(run_dir: Path, options: EvalOptions) -> None:
    from wmfast.trained import evaluate_run

    evaluation = evaluate_run(
        run_dir,
        episodes=10 if options.episodes is None else options.episodes,
        epsilon=options.epsilon or 0.0,
        sticky=options.sticky,
        seed=options.seed or 0,
    )
    result = evaluation.as_json()
    _write_json(options.json, result)
    normalised = result["human_normalised"]
    human = "" if normalised is None else f", human-normalised {normalised:.3f}"
    scores = " ".join(f"{score:g}" for score in result["scores"])
    print(f"{result['mean']:.1f} +- {result['std']:.1f} over {len(result['scores'])} games{human}")
    print(f"scores: {scores}")


def _eval_world_model(run_dir: Path, options: EvalOptions) -> None:
    from wmfast.gold import as_text
    from wmfast.trained import evaluate_world_model

    result = evaluate_world_model(run_dir, tier=options.tier or "fast", gold=options.gold)
    _write_json(options.json, result)
    print(as_text(result))


def _write_json(path: Path | None, result: Mapping[str, object]) -> None:
    if path is None:
        return
    from wmfast.disk import one_line_errors, write_atomic

    with one_line_errors("write", path):
        write_atomic(path, json.dumps(result, indent=1).encode())


def _dream(arguments: list[str]) -> None:
    options = parse(DreamOptions, arguments, "wmfast dream")
    from wmfast.trained import dream_of_run

    path = dream_of_run(
        options.run_dir,
        out=options.out,
        steps=options.steps,
        start=options.start,
        refresh=options.refresh,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    print(path)


def _report(arguments: list[str]) -> None:
    options = parse(ReportOptions, arguments, "wmfast report")
    from wmfast.report_files import report_runs

    report_runs(
        options.runs,
        policy=options.policy,
        ignore=options.ignore,
        json_file=options.json,
        out=options.out,
        markdown=options.markdown,
    )


def _run(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    try:
        command(arguments)
    except (UserError, ValueError, OSError, MemoryError) as error:
        _fail(" ".join(str(error).split()) or type(error).__name__)
    except KeyboardInterrupt:
        print("wmfast: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _fail(message: str) -> None:
    print(f"wmfast: {message}", file=sys.stderr)
    sys.exit(2)


def _one_line(boxed: str) -> str:
    """The message of tyro's box: what stands before its help text, without the frame."""
    lines = [re.sub(r"[\u2500-\u257f]", " ", line).strip() for line in boxed.splitlines()]
    message = " ".join(line for line in lines[1:] if line)
    message = re.split(r"Argument helptext:|For full helptext", message)[0]
    return " ".join(message.split())
