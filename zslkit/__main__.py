"""Command line: ``python -m zslkit train|certify|evaluate|predict|embed|export|data|report``."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Optional

import typer

from zslkit import __version__
from zslkit.config import RunConfig
from zslkit.data import commands as data_commands
from zslkit.report.options import Command, takes_config
from zslkit.zeroshot.models import commands

app = typer.Typer(no_args_is_help=True)
data_app = typer.Typer(help="List, describe and verify data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
report_app = typer.Typer(invoke_without_command=True)
app.add_typer(report_app, name="report")

RunDir = commands.Model
ManifestName = Annotated[str, typer.Argument(help="Name or path of a manifest.")]
# typer reads this form on every Python we support
Text, Number, Folder = Optional[str], Optional[int], Optional[Path]  # noqa: UP045
Texts = Optional[list[str]]  # noqa: UP045
DataRoot = Annotated[Text, typer.Option(help="Folder of the manifest's files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Notebooks = Annotated[Path, typer.Option(help="Folder of notebooks.")]


def say_version(wanted: bool) -> None:
    """Print the version and end, if it is asked for."""
    if wanted:
        typer.echo(f"zslkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=say_version, help="Say which.")
    ] = False,
) -> None:
    """Train, measure and use zero-shot image recognition, headlessly."""


@app.command(cls=Command)
@takes_config
def train(config: RunConfig) -> None:
    """Train a run, then measure it; prints where the results are."""
    from zslkit.evaluation.beside import closed_form_beside
    from zslkit.evaluation.weights import evaluate_weights
    from zslkit.report.results import record
    from zslkit.trainer import train as run_training
    from zslkit.training import dist

    run = run_training(config)
    if run.facts.interrupted:
        typer.echo(f"stopped at step {run.facts.steps}; go on with --resume")
        raise typer.Exit(128 + run.stopped_by)
    if dist.rank() > 0:  # one report is enough
        return
    metrics, preferred = evaluate_weights(run, config)
    metrics |= closed_form_beside(run.model, config)
    typer.echo(preferred.words, err=True)
    extra = vars(run.facts) | {"preferred_weights": preferred.words}
    typer.echo(record(metrics, config, config.output_dir, extra=extra))


@app.command(cls=Command)
@takes_config
def certify(config: RunConfig) -> None:
    """Prove that chunks and processes give the gradients of the whole batch; 1 if not."""
    from zslkit.evaluation.certificate import certify_gradients

    certificate = certify_gradients(config, processes=2)
    typer.echo(certificate)
    raise typer.Exit(0 if certificate.holds else 1)


@app.command(cls=Command)
def evaluate(
    run_dir: RunDir,
    manifest: Annotated[Text, typer.Option(help="Labelled images to name.")] = None,
    split: Annotated[Text, typer.Option(help="Split of that manifest.")] = None,
    data_root: DataRoot = None,
    pairs: Annotated[Text, typer.Option(help="Manifest of pairs for retrieval.")] = None,
    pairs_split: Annotated[Text, typer.Option(help="Split of these.")] = None,
    label_space: Annotated[
        Texts,
        typer.Option(help="Rank these classes: own, own+imagenet1k, FILE ...; may be given again."),
    ] = None,
    templates: Annotated[Texts, typer.Option(help="Set of prompts; may be given again.")] = None,
    label_map: Annotated[Folder, typer.Option(help="JSON of class name to ids.")] = None,
    output_dir: Annotated[Folder, typer.Option(help="Resumable; else RUN_DIR/evaluation.")] = None,
    weights: Annotated[
        Text, typer.Option(help="student or teacher (its moving average); else both, as train.")
    ] = None,
) -> None:
    """Measure a trained run; without options on what it was configured for. Prints JSON.

    With label spaces: in one pass over the images, under each set of prompts, resumable, with
    several processes under torchrun.
    """
    from zslkit.evaluation.evaluator import evaluate as measure
    from zslkit.evaluation.weights import evaluate_weights, model_of
    from zslkit.zeroshot.models.loading import open_run

    run = open_run(run_dir)
    changes = {"zeroshot_manifest": manifest, "zeroshot_split": split}
    changes |= {"manifest": pairs, "test_split": pairs_split}
    # a folder given with one set is that of this set; given alone, the run's data has moved
    changes["zeroshot_data_root"] = data_root if manifest or not pairs else None
    changes["data_root"] = data_root if pairs or not manifest else None
    config = RunConfig.from_parameters(changes, base=run.config)
    if label_space is None:
        if lost := [n for n, v in {"templates": templates, "label-map": label_map,
                                   "output-dir": output_dir}.items() if v]:  # fmt: skip
            raise ValueError(f"--{lost[0]} belongs to --label-space, which is not given")
        one = weights and measure(model_of(run, weights), config)
        typer.echo(json.dumps(one or evaluate_weights(run, config)[0], indent=2))
        return
    from zslkit.evaluation.questions import evaluate_run
    from zslkit.training import dist
    from zslkit.training.device import choose_device
    from zslkit.zeroshot.label_spaces import read_label_map

    folder = output_dir or run.run_dir / "evaluation"
    mapping = read_label_map(label_map)
    dist.start(device := choose_device(config.device))
    named = {name: name for name in templates or ()} or {"run's own": config.prompt_templates}
    model = model_of(run, weights or "student").to(device)
    found = evaluate_run(model, config, label_space, named, folder, mapping=mapping)
    if dist.rank() == 0:
        typer.echo(json.dumps(found, indent=2))
        typer.echo(folder / "evaluation.json", err=True)


commands.add_to(app, Command)  # predict, export


@app.command(cls=Command)
def embed(
    run_dir: RunDir,
    manifest: ManifestName,
    split: Annotated[str, typer.Argument(help="Split of the manifest.")],
    output: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
    data_root: DataRoot = None,
) -> None:
    """Write the unit embeddings of a split's images, and their rows in the split."""
    import torch
    from safetensors.torch import save_file

    from zslkit.data.files import whole
    from zslkit.data.pairs import open_pairs
    from zslkit.evaluation.retrieval import embed_images
    from zslkit.zeroshot.models.loading import open_run

    run = open_run(run_dir)
    config = run.config
    options = config.source if manifest == config.manifest else config.zeroshot_source
    options |= {"data_root": data_root} if data_root else {}
    pairs = open_pairs(manifest, split, **options)
    images, rows = embed_images(run.model, pairs, run.config)
    with whole(output) as temporary:
        save_file({"embeddings": images.contiguous(), "rows": torch.from_numpy(rows)}, temporary)
    typer.echo(f"{output}: {len(rows)} embeddings of {images.shape[1]} dimensions")


@data_app.command("list", cls=Command)
def list_data(data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """Say what each data set at hand is, its size and whether its files are here."""
    from zslkit.data.listing import list_sets

    found = list_sets(data_root)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    _print_rows([
        ["name", "what", "splits", "size", "here"],
        *([one["name"], one["title"], ", ".join(one["splits"]), _size(one["bytes"]), one["here"]]
          for one in found),
    ])  # fmt: skip


@data_app.command("links", cls=Command)
def survey_links(
    ledger: Annotated[Path, typer.Argument(help="Output folder of img2dataset, or a ledger.")],
    listing: Annotated[Folder, typer.Option(help="CSV, TSV or Parquet of url, caption.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which links of a listing survived, and why the others did not."""
    from zslkit.data.ledger import read_ledger, read_listing, summarise_ledger
    from zslkit.report.tables import ESTIMATE, estimate_row, flat

    found = summarise_ledger(read_ledger(ledger), listing and read_listing(listing))
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    reasons = [[words, str(n)] for words, n in found.pop("reasons").items()]
    tables = {"Links": [ESTIMATE, *(estimate_row(*row) for row in flat(found))]}
    _print_tables(tables | ({"Lost": [["reason", "links"], *reasons]} if reasons else {}))


ImageField = Annotated[Text, typer.Option(help="Column of images, if it has no usual name.")]
CaptionField = Annotated[Text, typer.Option(help="Column of captions, the same.")]


@data_app.command("describe", cls=Command)
def describe_data(
    source: Annotated[str, typer.Argument(help="Manifest, table or folder.")],
    data_root: DataRoot = None,
    image_field: ImageField = None,
    caption_field: CaptionField = None,
    split_shares: Annotated[Text, typer.Option(help='JSON such as {"train": 0.9, ...}.')] = None,
    write: Annotated[Folder, typer.Option(help="Write the manifest: FILE.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say how a source is understood: columns, splits, images, captions, what is left out."""
    from zslkit.data.description import describe, write_manifest
    from zslkit.data.manifests import load_manifest

    shares = None if split_shares is None else json.loads(split_shares)
    fields = {"image_field": image_field, "caption_field": caption_field}
    manifest = load_manifest(source, data_root, **fields, split_shares=shares)
    facts = describe(manifest)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(facts["lines"]))
    if write is not None:
        typer.echo(write_manifest(manifest, write), err=as_json)


@data_app.command("verify", cls=Command)
def verify_data(
    name: Annotated[str, typer.Argument(help="Manifest, table or folder.")],
    data_root: DataRoot = None,
    image_field: ImageField = None,
    caption_field: CaptionField = None,
    as_json: AsJson = False,
) -> None:
    """Look at every file, image and caption of a set; exits 1 if anything is wrong with one."""
    from zslkit.data.manifests import load_manifest
    from zslkit.data.verification import look_through, problem_table

    fields = {"image_field": image_field, "caption_field": caption_field}
    manifest = load_manifest(name, data_root, **fields)
    problems, n_images = look_through(manifest)
    table = problem_table(problems)
    if as_json:
        facts = {"name": manifest.name, "images": n_images, "problems": [vars(p) for p in problems]}
        typer.echo(json.dumps(facts | {"counts": dict(row[:2] for row in table)}, indent=2))
    elif problems:
        cells = [[kind, str(count), some] for kind, count, some in table]
        title = f"{manifest.name}: {n_images} images looked at"
        _print_tables({title: [["problem", "how many", "the first"], *cells]})
        if manifest.how_to_obtain and any(problem.kind == "missing" for problem in problems):
            typer.echo(f"How to obtain it: {manifest.how_to_obtain}")
    else:
        n_files = len(manifest.as_found().files)
        typer.echo(f"{manifest.name}: {n_images} images and {n_files} files listed, all sound")
    if problems:
        raise typer.Exit(1)


data_commands.add_to(data_app, Command)  # suspects, decide


@report_app.callback()
def report(
    context: typer.Context,
    notebooks: Notebooks = Path("notebooks"),
    output_dir: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("reports"),
    jobs: Annotated[Number, typer.Option(help="Notebooks at a time.", min=1)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Also run what is unchanged.")] = False,
    minutes: Annotated[float, typer.Option(help="Stop a notebook that takes longer.")] = 60,
    portable: Annotated[
        bool, typer.Option("--portable", help="Equal bits on other makers' processors, slower.")
    ] = False,
    scheduler: Annotated[Text, typer.Option(help="Dask scheduler, tcp://HOST:PORT.")] = None,
) -> None:
    """Run the notebooks headlessly and write a page over their results; or compare results."""
    if context.invoked_subcommand:
        return
    from zslkit.report.runner import build_report

    settings = notebooks / "report.json"  # parameters (sweeps are kept short) and order
    plan = json.loads(settings.read_text()) if settings.is_file() else {}
    paths = sorted(notebooks.glob("[0-9]*.ipynb"))
    options = {"jobs": jobs, "fresh": fresh, "minutes": minutes, "portable": portable}
    options |= {"executor": scheduler}
    index, failed = build_report(paths, output_dir, plan, **options)
    typer.echo(index)
    if failed:
        typer.echo(f"failed: {', '.join(failed)}")
        raise typer.Exit(1)


@report_app.command("diff", cls=Command)
def diff_runs(
    first: Annotated[Path, typer.Argument(help="Folder of a run, or of seed-* folders.")],
    second: Annotated[Path, typer.Argument(help="The same, to compare with.")],
) -> None:
    """Say how settings, origin and metrics of two runs differ, against the spread of seeds."""
    from zslkit.report.comparison import compare, comparison_tables

    compared = compare(first, second)
    for path, seeds in compared["sides"]:
        typer.echo(f"{path}: seed {', '.join(map(str, seeds))}")
    _print_tables(comparison_tables(compared))


@report_app.command("reproduce", cls=Command)
def reproduce_report(
    report: Annotated[Path, typer.Argument(help="Folder of results, or of such folders.")],
    changes: Annotated[Texts, typer.Option("--set", help="NAME=VALUE of a parameter.")] = None,
    output_dir: Annotated[Folder, typer.Option(help="Empty folder; else a temporary one.")] = None,
    notebooks: Notebooks = Path("notebooks"),
    strict: Annotated[bool, typer.Option("--strict", help="Only equal bits count.")] = False,
) -> None:
    """Run the notebooks behind results again and compare: equal, explained or different.

    Exits 0 if every metric is equal to the bit, or differs by no more than its interval and the
    spread over seeds explain where processor, numerics, packages or threads are not the same.
    """
    from zslkit.report.comparison import outcome_tables
    from zslkit.report.reproduction import reproduce

    given = dict(_read_change(text) for text in changes or ())
    folder = output_dir or Path(tempfile.mkdtemp(prefix="zslkit-reproduced-"))
    sound = True
    for found in reproduce(report, folder, notebooks, given):
        off = len(found["differences"]) + strict * len(found["explained"])
        sound = sound and not found["error"] and not off
        verdicts = f"{found['n_equal']} metrics equal to the bit, "
        verdicts += f"{len(found['explained'])} explained, {len(found['differences'])} different"
        typer.echo(f"{found['name']}: {verdicts}")
        if found["error"]:
            typer.echo(f"failed: {found['error']}")
        _print_tables(outcome_tables(found))
        typer.echo(f"new results: {found['folder']}")
    raise typer.Exit(0 if sound else 1)


def _read_change(text: str) -> tuple[str, object]:
    """Read NAME=VALUE; the value may be JSON, such as [0, 1] or null."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--set {text}: give NAME=VALUE")
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(value)
    return name, value


def _print_tables(tables: dict[str, list[list[str]]]) -> None:
    """Print tables by title, their columns aligned."""
    for title, rows in tables.items():
        typer.echo(f"\n{title}")
        _print_rows(rows, "  ")


def _print_rows(rows: list[list[str]], indent: str = "") -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(f"{indent}{'  '.join(cells)}".rstrip())


def _size(n_bytes: int | None) -> str:
    """Word a number of bytes in decimal units."""
    if n_bytes is None:
        return "not stated"
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:,.1f} {unit}"
    return f"{n_bytes} B" if n_bytes else "built in"


def main() -> None:
    """Run the command line; an error that says what to do is printed without a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        typer.echo(f"zslkit: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
