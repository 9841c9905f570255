"""The ``bnmlp`` command: train, run, status, data, measure, bench."""

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pandas as pd
import torch
import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bnmlp.data.datasets import load_dataset
from bnmlp.data.sources import LOADERS, fetch_command
from bnmlp.diagnosis.inputs import dataset_batch, random_batch
from bnmlp.diagnosis.measure import measure
from bnmlp.machine.storage import StorageError, parse_json, reason
from bnmlp.training.configuration import TrainingRun, complaints
from bnmlp.training.folder import read_metrics, read_run, read_status, run_folders
from bnmlp.training.loop import train as train_run
from bnmlp.training.networks import NETWORKS, find, seeded
from bnmlp.training.sweep import read_runs, train_all

app = typer.Typer(
    help="Train deep batch-normalised networks; runs can be killed and resumed at any moment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long option names on a narrow terminal
)
data = typer.Typer(help="Datasets: list those at hand, fetch others.", no_args_is_help=True)
app.add_typer(data, name="data")

ROOT_HELP = "folder of the datasets, BNMLP_DATA or ~/.cache/bnmlp if omitted"
Root = Annotated[Path | None, typer.Option(help=ROOT_HELP)]


def main() -> None:
    """Entry point of the command."""
    if isinstance(sys.stdout, TextIOWrapper):  # as standard error: names in any script
        sys.stdout.reconfigure(errors="backslashreplace")
    app()


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="JSON with a list of runs", exists=True)],
    directory: Annotated[Path, typer.Argument(help="parent of the runs' folders")],
    jobs: Annotated[int, typer.Option(min=1, help="processes that share this machine")] = 1,
    cluster: Annotated[
        str | None, typer.Option(help="address of a Dask scheduler, as tcp://host:8786")
    ] = None,
    root: Root = None,
) -> None:
    """Train all runs of a file, each in its folder; finished ones are left alone."""
    with _plain_errors():
        runs = read_runs(file)
        if cluster is None:
            train_all(runs, directory, jobs=jobs, root=root, progress=_say)
            return
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError("--cluster needs Dask: pip install 'bnmlp[cluster]'") from error
        with Client(cluster) as client:
            executor = client.get_executor(pure=False)
            train_all(runs, directory, executor=executor, root=root, progress=_say)


@app.command()
def status(
    directory: Annotated[Path, typer.Argument(help="a run's folder, or the parent of many")],
) -> None:
    """How far the runs of a folder are."""
    folders = run_folders(directory)
    if not folders:
        _fail(f"no run in {directory}")
    with _plain_errors(), pd.option_context("display.width", 200, "display.max_columns", None):
        rows = [_status_row(folder) for folder in folders]
        typer.echo(pd.DataFrame(rows).to_string(index=False))


@data.command("list")
def list_data(root: Root = None) -> None:
    """Which datasets load here without a download."""
    for name in LOADERS:
        try:
            found = load_dataset(name, root)
            text = f"{len(found.train_x)} + {len(found.test_x)} samples, {found.source}"
        except FileNotFoundError:
            text = f"missing: {fetch_command(name, root)}"
        except ValueError as error:
            text = f"damaged: {error}"
        typer.echo(f"{name:14} {text}")


@data.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(LOADERS)}")], root: Root = None
) -> None:
    """Fetch a dataset, check it, and say where it is."""
    with _plain_errors():
        found = load_dataset(name, root, download=True)
        typer.echo(f"{found.name}: {len(found.train_x)} + {len(found.test_x)} samples")
        typer.echo(f"from {found.source}, SHA-256 {found.checksum}")


def _train(
    directory: Path | None,
    root: Path | None,
    config: Path | None,
    argument: list[str] | None,
    **fields: Any,
) -> None:
    """Train one run in its folder, or go on with it."""
    with _plain_errors():
        given = {k: v for k, v in fields.items() if v is not None and v != []}
        if config is not None:
            given = _fields(config) | given
        if argument:
            given["options"] = given.get("options", {}) | dict(map(_argument, argument))
        described = TrainingRun(**given)
        folder = directory or Path("runs") / described.name
        progress = None if sys.stderr.isatty() else _say
        table = train_run(described, folder, root=root, progress=progress)
        last = table[table["step"] == table["step"].max()]
        if len(last):
            typer.echo(last.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
        status = read_status(folder)
        for replica, why in enumerate(status["stopped"]):
            if why:
                typer.echo(f"network {replica} stopped: {why}")
        for note in status.get("unmeasured", []):
            typer.echo(f"not measured: {note}")
        typer.echo(f"results in {folder}")


def _argument(text: str) -> tuple[str, object]:
    """Name and value of ``name=value``; the value as JSON if it is, or else as text."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ValueError(f"--argument: expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _fields(config: Path) -> dict[str, Any]:
    content = parse_json(config)
    if not isinstance(content, dict):
        raise ValueError(f'{config}: expected the fields of one run, as {{"depth": 10}}')
    return content


def _options() -> list[inspect.Parameter]:
    """One option for each field of a run; None stands for the field's own default."""
    parameters = [
        _option("directory", Path | None, "folder of the run", "runs/NAME"),
        _option("root", Path | None, ROOT_HELP, False),
        _option("config", Path | None, "JSON of a run; options given here override it", False),
    ]
    for name, field in TrainingRun.model_fields.items():
        if name == "options":
            text = "NAME=VALUE for the function that makes a network of your own"
            parameters.append(_option("argument", list[str] | None, text, False))
            continue
        default = False if field.default in (None, ()) else str(field.default)
        kinds = (
            field,
            *(k.model_fields[name] for k in NETWORKS.values() if name in k.model_fields),
        )
        type_ = _common_type([_plain_type(kind.annotation) for kind in kinds])
        text = f"{field.description}{_elsewhere(name)}"
        parameters.append(_option(name, type_ | None, text, default))
    for name, field in _fields_of_networks().items():
        if name not in TrainingRun.model_fields:
            type_, text = _plain_type(field.annotation) | None, _elsewhere(name).strip(" ;")
            parameters.append(_option(name, type_, text, False))
    return parameters


def _fields_of_networks() -> dict[str, FieldInfo]:
    """Fields of networks other than the book's own, of each name the first."""
    found: dict[str, FieldInfo] = {}
    for kind in NETWORKS.values():
        found = dict(kind.model_fields) | found
    return found


def _elsewhere(name: str) -> str:
    """What a field means for other networks, with its defaults."""
    told: dict[str, list[str]] = {}
    for kind, options in NETWORKS.items():
        if name in options.model_fields:
            field = options.model_fields[name]
            told.setdefault(f"{field.description}, default {field.default}", []).append(kind)
    return "".join(f"; {', '.join(kinds)}: {text}" for text, kinds in told.items())


def _option(name: str, type_: Any, text: str, default: str | bool) -> inspect.Parameter:
    annotated: Any = Annotated  # a type that is known when the module runs
    annotation = annotated[type_, typer.Option(help=text, show_default=default)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _common_type(types: list[Any]) -> Any:
    """The first type, or all choices where types are lists of them."""
    if all(get_origin(type_) is Literal for type_ in types):
        return Literal[tuple(dict.fromkeys(choice for t in types for choice in get_args(t)))]
    return types[0]


def _plain_type(annotation: Any) -> Any:
    """The type without its bounds, which are checked later, and without None."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return list[str] if get_origin(annotation) is tuple else annotation


def _with_options(command: Any) -> Any:
    """A command with the signature of all options, which Typer reads."""
    options = _options()
    command.__signature__ = inspect.Signature(options)
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


app.command("train")(_with_options(_train))


@app.command("measure")
def measure_network(
    network: Annotated[
        str, typer.Argument(help="what makes it, as torchvision.models:resnet50 or mine.py:build")
    ],
    shape: Annotated[
        str | None, typer.Option("--input", help="shape of random inputs, as 32x3x224x224")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help=f"take samples of a dataset: {', '.join(LOADERS)}")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="samples of the dataset")] = 100,
    images: Annotated[bool, typer.Option(help="give the dataset's samples as images")] = False,
    integers: Annotated[
        int | None, typer.Option(min=1, help="random inputs are tokens below this number")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="random labels, scored by cross entropy")
    ] = None,
    argument: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for what makes the network")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write the report as a page")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write it as JSON")] = None,
    level: Annotated[
        Literal["layers", "modules", "additions", "functions"],
        typer.Option(help="which calls have rows"),
    ] = "additions",
    spectra: Annotated[bool, typer.Option(help="measure spectra of activations too")] = False,
    jacobian: Annotated[bool, typer.Option(help="and of Jacobians")] = False,
    evaluation: Annotated[bool, typer.Option(help="measure in evaluation mode")] = False,
    seed: Annotated[int, typer.Option(min=0, help="of weights and random inputs")] = 0,
    root: Root = None,
) -> None:
    """Measure a network: rates with intervals, what is wrong, what helps."""
    with _plain_errors("interrupted; nothing was written"):
        if (shape is None) == (data is None):
            raise ValueError("give --input SHAPE for random inputs, or --data NAME")
        x, y, words = (
            random_batch(str(shape), integers=integers, classes=classes, seed=seed)
            if data is None
            else dataset_batch(data, batch, images=images, root=root)
        )
        options = dict(map(_argument, argument or []))
        factory = find(network)
        try:
            (model,) = seeded(lambda: factory(**options), 1, seed, torch.float32)
        except Exception as error:
            raise ValueError(f"{network} failed: {type(error).__name__}: {error}") from error
        for path in (html, json_):
            if path is not None and not path.parent.is_dir():
                raise ValueError(f"there is no folder {path.parent} to write {path.name} into")
        try:
            report = measure(
                model, x, y, level=level, spectra=spectra, jacobian=jacobian,
                training=not evaluation,
            ).noted(words)  # fmt: skip
        except Exception as error:  # of whatever network was given
            notes = [f"\n  {note}" for note in getattr(error, "__notes__", ())]
            raise ValueError(reason(error) + "".join(notes)) from error
        typer.echo(str(report))
        for path, write in ((html, report.to_html), (json_, report.to_json)):
            if path is not None:
                write(path)
                typer.echo(f"written: {path}")


@app.command("bench")
def bench_here(
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="threads, one by default and as many as cores")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="how often each way is timed")] = 5,
    quick: Annotated[bool, typer.Option(help="twenty layers, to try it")] = False,
    csv: Annotated[Path | None, typer.Option(help="store all times with what was timed")] = None,
) -> None:
    """Time the engine beside plain PyTorch, matrix products alone and, if installed, JAX."""
    from bnmlp.bench import table

    with _plain_errors("interrupted; nothing was written"):
        if csv is not None and not csv.parent.is_dir():
            raise ValueError(f"there is no folder {csv.parent} to write {csv.name} into")
        numbers = threads or sorted({1, len(table.cores())})
        times = table.bench(numbers, rounds=rounds, quick=quick, say=_say)
        typer.echo(table.machine())
        with pd.option_context("display.width", 200, "display.max_rows", None):
            typer.echo(times.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
            typer.echo(table.ratios(times).to_string())
        if csv is not None:
            table.store(times, csv)
            typer.echo(f"written: {csv}")


def _status_row(folder: Path) -> dict[str, object]:
    try:
        run, status, metrics = read_run(folder), read_status(folder), read_metrics(folder)
    except StorageError as error:
        return {"name": folder.name, "state": str(error)}
    row = {"name": run.name, "state": status.get("state", "begun"), "epochs": f"0/{run.epochs}"}
    if status:
        row["epochs"] = f"{status['epoch']:.4g}/{run.epochs}"
        row["minutes"] = round(status["seconds"] / 60, 1)
        row["stopped"] = f"{sum(map(bool, status['stopped']))}/{run.networks}"
    if len(metrics):
        last = metrics[metrics["step"] == metrics["step"].max()].median(numeric_only=True)
        for name in ("train_loss", "train_accuracy", "test_accuracy_batch",
                     "test_accuracy_running", "test_accuracy_recalibrated"):  # fmt: skip
            row[name.replace("accuracy_", "")] = f"{last[name]:.4f}"
    return row


@contextmanager
def _plain_errors(
    stopped: str = "interrupted; the same command goes on from the last checkpoint",
) -> Iterator[None]:
    """What a user can mend is one line on standard error, not a traceback."""
    try:
        yield
    except ValidationError as error:
        for line in complaints(error):
            typer.echo(f"bnmlp: {line}", err=True)
        raise typer.Exit(2) from error
    except (ValueError, OSError) as error:
        _fail(str(error))
    except (RuntimeError, MemoryError) as error:  # a sweep, a missing device, too little memory
        _fail(reason(error))
    except KeyboardInterrupt:
        _fail(stopped)


def _fail(message: str) -> None:
    typer.echo(f"bnmlp: {message}", err=True)
    raise typer.Exit(1)


def _say(line: str) -> None:
    typer.echo(line, err=True)
