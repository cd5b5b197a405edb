"""The command line: `2drcl COMMAND`.  Parses, calls one stage, turns errors into one line and an exit code.

Nothing heavy is imported here: `2drcl --help` answers in half a second.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import __version__
from pipeline.errors import TwoDRCLError, UsageError
from stages.interrupts import INTERRUPTED, end_quickly, exit_code, interrupts
from stages.slurm import as_torchrun

PIPELINE, TOOLS = "Pipeline, in order", "Tools"
EPILOG = (
    "Exit codes: 0 done or up to date; 1 a bug; 2 usage or settings; 3 missing, broken or mismatching input; "
    "4 environment; 5 training diverged; 75 stopped by a signal, run again to continue; 130 interrupted."
)

app = typer.Typer(
    name="2drcl",
    help="Long-tailed detection pre-training (2DRCL), from annotations to tail AP.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

ParamsPath = Annotated[Path | None, typer.Option("--params", help="Settings; default: params.yaml here.")]
Annotations = Annotated[
    Path | None, typer.Option("--annotations", help="COCO or LVIS json; default: data in params.yaml.")
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Image folder of --annotations; default: beside it.")
]
Proposals = Annotated[Path | None, typer.Option("--proposals", help="Folder written by `2drcl proposals`.")]
Engine = Annotated[
    str | None, typer.Option("--engine", help="fast, or official: pycocotools and lvis-api themselves.")
]
Bootstrap = Annotated[
    int | None, typer.Option("--bootstrap", help="Resamples of the images for intervals.json.")
]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="lvis or coco; default: what the json is. proposals: average recall of --proposals.",
    ),
]
Stats = Annotated[Path | None, typer.Option("--stats", help="Folder written by `2drcl stats`.")]
Init = Annotated[Path | None, typer.Option("--init", help="Weights that training starts from.")]
AllowPartial = Annotated[
    list[str] | None,
    typer.Option("--allow-partial", help="A part that --init may lack, e.g. layer4. Repeatable."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of the product; default: artifacts/STAGE/RUN.")
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=0,
        help="GPUs; 0 is the CPU; default: as many as divide the batch.",
        rich_help_panel="Machine",
    ),
]
Procs = Annotated[int, typer.Option("--procs", min=1, help="CPU processes.", rich_help_panel="Machine")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Loader processes per process.", rich_help_panel="Machine"),
]
SaveEvery = Annotated[
    float,
    typer.Option("--save-every", min=0, help="Seconds between checkpoints.", rich_help_panel="Machine"),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every draw; default: params.yaml.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard the product and unfinished work.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, in JSON; do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Run = Annotated[str | None, typer.Option("--run", help="One entry of finetune.runs; default: all.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Long-tailed detection pre-training (2DRCL), from annotations to tail AP."""


def _order(stage: str, out: Path | None, params: Path | None, seed: int | None, **options: Any) -> Any:
    """The options that every stage has, as `stages.common.Order`."""
    from stages.common import Order, default_out, refuse_under_dvc
    from stages.console import listen
    from stages.machine import Machine
    from stages.params import ARTIFACTS, load

    listen()
    refuse_under_dvc(seed=seed)
    loaded = load(params, {} if seed is None else {"seed": seed})
    place = out or (ARTIFACTS / "sample" if stage == "sample" else default_out(stage))
    asked = {
        name: options.pop(name) for name in ("gpus", "procs", "workers", "save_every") if name in options
    }
    machine = Machine(**asked)
    return Order(loaded, place, machine, **options)


@app.command(rich_help_panel=PIPELINE)
def sample(
    params: ParamsPath = None,
    out: Out = None,
    seed: Seed = None,
    no_pixels: Annotated[bool, typer.Option("--no-pixels", help="Write only the json files.")] = False,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Render a small long-tailed data set: images, COCO json, LVIS json."""
    from stages import sample as stage

    stage.run(
        _order("sample", out, params, seed, fresh=fresh, dry_run=dry_run, as_json=json), pixels=not no_pixels
    )


@app.command(rich_help_panel=PIPELINE)
def proposals(
    params: ParamsPath = None,
    annotations: Annotations = None,
    images: Images = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="A detector that an earlier run trained; it is not trained again."),
    ] = None,
    out: Out = None,
    allow_partial: AllowPartial = None,
    gpus: Gpus = None,
    procs: Procs = 1,
    workers: Workers = None,
    save_every: SaveEvery = 120.0,
    seed: Seed = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Annotations (and images) -> class-agnostic boxes of every image, from OLN or another source."""
    from stages.common import refuse_under_dvc, split_of

    refuse_under_dvc(weights=weights)
    order = _order(
        "proposals", out, params, seed,
        gpus=gpus, procs=procs, workers=workers, save_every=save_every,
        fresh=fresh, dry_run=dry_run, as_json=json,
    )  # fmt: skip
    split = split_of(order.params, "train", annotations, images)
    _check(order)
    from stages import proposals as stage

    stage.run(order, split, tuple(allow_partial or ()), weights)


@app.command(rich_help_panel=PIPELINE)
def stats(
    params: ParamsPath = None,
    annotations: Annotations = None,
    proposals: Proposals = None,
    out: Out = None,
    seed: Seed = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Annotations (and proposals) -> category frequencies and repeat factors, with figures."""
    from stages import stats as stage
    from stages.common import default_out, split_of

    order = _order("stats", out, params, seed, fresh=fresh, dry_run=dry_run, as_json=json)
    if proposals is None and annotations is None:
        found = default_out("proposals")
        proposals = found if (found / "manifest.json").exists() else None
    epochs = order.params.section("pretrain").epochs
    stage.run(order, split_of(order.params, "train", annotations, None), proposals, epochs)


@app.command(rich_help_panel=PIPELINE)
def pretrain(
    params: ParamsPath = None,
    annotations: Annotations = None,
    images: Images = None,
    proposals: Proposals = None,
    stats: Stats = None,
    init: Init = None,
    allow_partial: AllowPartial = None,
    show_batch: Annotated[
        Path | None,
        typer.Option("--show-batch", help="Draw the next step: views, masks, reconstruction; train nothing."),
    ] = None,
    out: Out = None,
    gpus: Gpus = None,
    procs: Procs = 1,
    workers: Workers = None,
    save_every: SaveEvery = 120.0,
    seed: Seed = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Images, proposals, stats -> a whole detector pre-trained with 2DRCL."""
    from stages.common import default_out, refuse_under_dvc, split_of

    refuse_under_dvc(init=init, allow_partial=allow_partial)
    order = _order(
        "pretrain", out, params, seed,
        gpus=gpus, procs=procs, workers=workers, save_every=save_every,
        fresh=fresh, dry_run=dry_run, as_json=json,
    )  # fmt: skip
    split = split_of(order.params, "train", annotations, images)
    _check(order)
    from stages import pretrain as stage

    found = (proposals or default_out("proposals"), stats or default_out("stats"))
    stage.run(order, stage.Inputs(split, *found, init, tuple(allow_partial or ())), show_batch)


@app.command(rich_help_panel=PIPELINE)
def finetune(
    method: Annotated[
        str | None, typer.Option("--method", help="A long-tailed method; `2drcl methods` lists them.")
    ] = None,
    run: Run = None,
    params: ParamsPath = None,
    annotations: Annotations = None,
    images: Images = None,
    stats: Stats = None,
    init: Init = None,
    allow_partial: AllowPartial = None,
    out: Out = None,
    gpus: Gpus = None,
    procs: Procs = 1,
    workers: Workers = None,
    save_every: SaveEvery = 120.0,
    seed: Seed = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """A pre-trained detector -> one fine-tuned for the long tail; by default every run of params.yaml."""
    import dataclasses

    from stages.common import default_out, refuse_under_dvc, split_of

    refuse_under_dvc(init=init, method=method, allow_partial=allow_partial)
    order = _order(
        "finetune", out, params, seed,
        gpus=gpus, procs=procs, workers=workers, save_every=save_every,
        fresh=fresh, dry_run=dry_run, as_json=json,
    )  # fmt: skip
    split = split_of(order.params, "train", annotations, images)
    from stages import finetune as stage

    detector = order.params.section("detector").type
    runs = stage.chosen_runs(order.params.section("finetune"), method, run, detector)
    _one_answer(runs, out, json)
    places = {name: out or default_out("finetune", name) for name in runs}
    _check(order)
    parts = tuple(allow_partial or ())
    inputs = stage.Inputs(split, stats or default_out("stats"), default_out("pretrain"), parts)
    for name, entry in runs.items():
        entry = dataclasses.replace(entry, init=str(init)) if init else entry
        stage.run(dataclasses.replace(order, out=places[name]), name, entry, inputs)


@app.command(rich_help_panel=PIPELINE)
def evaluate(
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A detector.pth with its config.py beside it.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Anybody's COCO results file.")
    ] = None,
    run: Run = None,
    params: ParamsPath = None,
    annotations: Annotations = None,
    images: Images = None,
    proposals: Proposals = None,
    stats: Stats = None,
    protocol: Protocol = None,
    engine: Engine = None,
    bootstrap: Bootstrap = None,
    out: Out = None,
    gpus: Gpus = None,
    seed: Seed = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Weights or predictions -> predictions.json and metrics.json; proposals -> metrics.json."""
    import dataclasses

    from stages.common import refuse_under_dvc, split_of

    refuse_under_dvc(protocol=protocol, engine=engine, bootstrap=bootstrap)
    if weights and predictions:
        raise UsageError("--weights and --predictions exclude each other")
    order = _order("evaluate", out, params, seed, gpus=gpus, fresh=fresh, dry_run=dry_run, as_json=json)
    asked = {"protocol": protocol, "engine": engine, "bootstrap": bootstrap}
    order = dataclasses.replace(order, params=_evaluating(order.params, asked))
    if order.params.section("evaluate").protocol == "proposals":
        if weights or predictions or run:
            raise UsageError("protocol proposals looks at proposals, not at a detector", "give --proposals")
        return _evaluate_proposals(order, annotations, proposals, stats, out)
    if proposals:
        raise UsageError("--proposals has no part in this protocol", "add --protocol proposals")
    split = split_of(order.params, "val", annotations, images)
    sources = _sources(order, weights, predictions, run, ("finetune", "detector.pth"))
    _one_answer(sources, out, json)
    order.machine.check()
    from stages import evaluate as stage

    for name, found in sources.items():
        place = dataclasses.replace(order, out=out or _default(stage="evaluate", run=name))
        stage.run(place, split, weights=None if predictions else found, predictions=predictions, stats=stats)


def _evaluating(params: Any, asked: dict[str, Any]) -> Any:
    """The params with those settings of `evaluate` replaced that were given."""
    import dataclasses

    given = {key: value for key, value in asked.items() if value is not None}
    changed = {**dict(params.content.get("evaluate") or {}), **given}
    return dataclasses.replace(params, content={**params.content, "evaluate": changed})


def _evaluate_proposals(
    order: Any, annotations: Path | None, proposals: Path | None, stats: Path | None, out: Path | None
) -> None:
    """Proposals are made for the training split, so that is the default here."""
    import dataclasses

    from stages import evaluate_proposals as stage
    from stages.common import default_out, split_of

    place = dataclasses.replace(order, out=out or default_out("evaluate", "proposals"))
    split = split_of(order.params, "train", annotations, None)
    stage.run(place, split, proposals or default_out("proposals"), stats)


@app.command(rich_help_panel=PIPELINE)
def analyze(
    predictions: Annotated[
        list[Path] | None,
        typer.Option(
            "--predictions", help="Anybody's COCO results file. Repeatable: the others stand beside it."
        ),
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option("--weights", help="A detector.pth, for weight norms and attention maps. Repeatable."),
    ] = None,
    run: Run = None,
    params: ParamsPath = None,
    annotations: Annotations = None,
    images: Images = None,
    stats: Stats = None,
    out: Out = None,
    seed: Seed = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Predictions -> errors.json, error types by group; with weights also norms and attention maps."""
    import dataclasses

    from stages.common import split_of

    order = _order("analyze", out, params, seed, fresh=fresh, dry_run=dry_run, as_json=json)
    split = split_of(order.params, "val", annotations, images)
    first = predictions[0] if predictions else None
    sources = _sources(order, None, first, run, ("evaluate", "predictions.json"))
    _one_answer(sources, out, json)
    if len(sources) > 1 and weights:
        raise UsageError(f"--weights with {len(sources)} runs: {', '.join(sources)}", "choose one with --run")
    from stages import analyze as stage

    for name, found in sources.items():
        place = dataclasses.replace(order, out=out or _default(stage="analyze", run=name))
        if predictions or weights:
            needs_images = images is not None or annotations is None
            material = stage.material_of_files(predictions or [found], weights or [], needs_images, run)
            stage.run(place, split, material, stats)
        else:
            stage.run_of_params(place, split, name, stats)


@app.command(rich_help_panel=PIPELINE)
def report(
    params: ParamsPath = None,
    out: Out = None,
    seed: Seed = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """The artifacts of all runs -> report.html, one page that needs no network."""
    order = _order("report", out, params, seed, fresh=fresh, dry_run=dry_run, as_json=json)
    from stages import report as stage

    stage.run(order)


def _check(order: Any) -> None:
    """Usage before environment: every setting, the folder and the batch, then the machine."""
    order.params.check_all()
    order.machine.check()


def _one_answer(runs: Any, out: Path | None, as_json: bool) -> None:
    """--out and --json are about one run."""
    for option, given in (("--out", out is not None), ("--json", as_json)):
        if given and len(runs) > 1:
            raise UsageError(f"{option} with {len(runs)} runs: {', '.join(runs)}", "choose one with --run")


def _sources(
    order: Any, weights: Path | None, predictions: Path | None, run: str | None, made_by: tuple[str, str]
) -> dict[str, Path]:
    """What to look at, by run name: the file that was named, or the runs' own products."""
    from stages.common import DEFAULT_RUN, default_out

    given = predictions or weights
    if given is not None:
        return {run or DEFAULT_RUN: given}
    runs = [run] if run else list(order.params.section("finetune").runs)
    if not runs:
        raise UsageError(
            "nothing to look at: finetune.runs is empty", "name a file: --weights or --predictions"
        )
    stage, name = made_by
    return {r: default_out(stage, r) / name for r in runs}


def _default(stage: str, run: str) -> Path:
    from stages.common import default_out

    return default_out(stage, run)


@app.command(rich_help_panel=TOOLS)
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this one.")] = None, json: Json = False
) -> None:
    """The long-tailed methods that `finetune --method` knows."""
    from stages import methods as stage

    stage.run(name, json)


@app.command(name="compare", rich_help_panel=TOOLS)
def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders written by `2drcl evaluate`, or two of `2drcl stats`.")
    ],
    json: Json = False,
) -> None:
    """Evaluations in one table, with the images each was trained on; or two stats folders side by side."""
    from stages import compare as stage

    stage.run(runs, json)


@app.command(name="coco-lt", rich_help_panel=TOOLS)
def coco_lt(
    annotations: Annotated[Path, typer.Option("--annotations", help="COCO's instances_train2017.json.")],
    membership: Annotated[
        Path | None,
        typer.Option(
            "--membership", help="SimCal's image ids per class; default: a seeded sample to its counts."
        ),
    ] = None,
    out: Out = None,
    seed: Seed = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """COCO train2017 -> the long-tailed split COCO-LT, checked against its published counts."""
    from stages import coco_lt as stage

    order = _order("coco-lt", out, None, seed, fresh=fresh, dry_run=dry_run, as_json=json)
    stage.run(order, annotations, membership)


@app.command(rich_help_panel=TOOLS)
def export(
    to: Annotated[str, typer.Option("--to", help="mmdet, torchvision, detectron2 or safetensors.")],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="A detector.pth with its config.py; default: the pre-trained one."),
    ] = None,
    out: Out = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """A detector.pth -> weights that another library reads, checked before they are written."""
    from stages import export as stage
    from stages.common import default_out

    order = _order(
        "export", out or default_out("export", to), None, None, fresh=fresh, dry_run=dry_run, as_json=json
    )
    stage.run(order, weights or default_out("pretrain") / "detector.pth", to)


@app.command(name="show-config", rich_help_panel=TOOLS)
def show_config(params: ParamsPath = None, json: Json = False) -> None:
    """Every setting with its value, and why its default is what it is."""
    from stages import show_config as stage
    from stages.params import load

    stage.run(load(params), json)


@app.command(rich_help_panel=TOOLS)
def doctor(json: Json = False) -> None:
    """What works on this machine, and what to do about what does not."""
    from stages import doctor as stage

    raise typer.Exit(stage.run(json))


def main() -> None:
    """Entry of the `2drcl` script: errors become one line, a hint, and their exit code."""
    # Before torch: threads that wait asleep.  Beside any other load, spinning ones train ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.update(as_torchrun(os.environ))
    end_quickly()
    with interrupts() as received:
        try:
            app()
        except SystemExit as ended:
            if ended.code == INTERRUPTED:  # typer's answer to `Interrupt`
                sys.stderr.write(
                    "interrupted: the same command continues from the last checkpoint, if it has one\n"
                )
                sys.exit(exit_code(received))
            raise
        except TwoDRCLError as problem:
            sys.stderr.write(f"error: {problem.message}\n")
            if problem.hint:
                sys.stderr.write(f"hint:  {problem.hint}\n")
            sys.exit(problem.exit_code)


if __name__ == "__main__":
    main()
