"""The commands that use a finished ensemble elsewhere: bundle, predict, evaluate, recalibrate and app."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from dermstack.cli.options import ConfigOption, QuietOption, SetOption, open_for_command
from dermstack.errors import ConfigError

commands = typer.Typer()

BundleOption = Annotated[Path, typer.Option("--bundle", "-b", help="The folder or .zip that `dermstack bundle` made.")]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        help="A folder of images or DICOM files (or TFRecord files, or an HDF5 file). Needed unless the bundle has no "
        "image model.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="Device for the networks: auto, cpu or cuda.")]
UnreadableOption = Annotated[
    str,
    typer.Option(
        help="refuse: stop with an error at unreadable images; drop: leave them out and list them in a csv; "
        "tolerate: use a JPEG with stray bytes after its last pixel, and refuse the others; table: predict them from "
        "the table alone, if the bundle has such a model; the column basis says which rows."
    ),
]
SimilarOption = Annotated[
    bool,
    typer.Option(
        "--similar-names", help="Also accept files whose names differ from the ids in case, Unicode form or suffix."
    ),
]
LinksOption = Annotated[bool, typer.Option("--follow-links", help="Also enter linked folders below --images.")]
SwapOption = Annotated[
    bool,
    typer.Option(
        "--swap-red-blue",
        help="Undo that the images were encoded with red and blue exchanged.",
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict", help="Stop if a file in --images gets no prediction; without it, a warning names the file."
    ),
]
IdColumnOption = Annotated[
    str | None, typer.Option(help="The name of the id column in both files; default: as in training.")
]
TargetColumnOption = Annotated[
    str | None, typer.Option(help="The name of the target column in the labels csv; default: as in training.")
]
LabelledMetadataOption = Annotated[
    Path | None,
    typer.Option(
        help="A csv of the same ids with group, age, sex and site, named as in training; default: the labels csv."
    ),
]
PredictionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--predictions",
        metavar="NAME=FILE",
        help="The predictions of an imported run for these rows, in a file like the test file that was imported; once "
        "for each imported run, or a folder of files with their names.",
    ),
]
JobsOption = Annotated[int, typer.Option(min=1, help="Number of processes that decode images.")]


@commands.command()
def bundle(
    config: ConfigOption,
    target: Annotated[Path, typer.Option("--out", "-o", help="The folder or .zip to write.")],
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing bundle.")] = False,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Also export the networks as ONNX, each checked against torch on training images."),
    ] = False,
    distilled: Annotated[
        str | None,
        typer.Option(
            help="Bundle one image model with `pseudo_labels` alone, as a small net that imitates the blend, with its "
            "own estimate, its cost and its loss of AUC.",
            metavar="NAME",
        ),
    ] = None,
    notebook: Annotated[
        bool,
        typer.Option(
            "--notebook",
            help="Also write a notebook that predicts without network, its list of wheels and dermstack's wheel.",
        ),
    ] = False,
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write the finished ensemble to one folder or zip.

    It holds everything needed to predict on another machine, with a hash of each file, and no row of the data.
    """
    from dermstack.serve.notebook import check_no_notebook, write_notebook
    from dermstack.serve.write_bundle import write_bundle
    from stack.images import caches_in_use
    from stack.level1.image_runs import level1_locked
    from stack.store import locked

    experiment, out = open_for_command(config, overrides, quiet, introduced=False)
    if notebook and not replace:
        check_no_notebook(target)
    with locked(experiment.folder), level1_locked(experiment), caches_in_use(experiment.config):
        made = write_bundle(experiment, target, out, replace=replace, onnx=onnx, only=distilled)
    n_bytes = sum(file["bytes"] for file in made.manifest["files"].values())
    of_images, of_level2 = len(made.image_runs), len(made.manifest["stackers"])
    nets = f"{of_images} image model{'s' * (of_images > 1)}" if made.takes_images else "no image model"
    if imported := len(made.imported_runs):
        nets += f", {imported} imported run{'s' * (imported > 1)} whose predictions must be given"
    out.say(
        f"{target}: {nets}, {of_level2} stacker{'s' * (of_level2 != 1)}, the blend and its calibration in "
        f"{len(made.manifest['files'])} files, {n_bytes / 2**20:,.1f} MiB; id {made.fingerprint}"
    )
    if onnx:
        about, differences = made.manifest["onnx"], made.manifest["onnx"]["differences"].values()
        worst, of_z = (max(one[name] for one in differences) for name in ("logit", "logit_of_z"))
        out.say(
            f"onnx: {len(differences)} networks, opset {about['opset']}; on {about['pictures']} training images logits "
            f"differ from torch's by at most {worst:.1e}, and by {of_z:.1e} for the same z (a frozen z is float16)"
        )
    if notebook:
        for path in write_notebook(made, target, experiment.config.data):
            out.say(f"notebook: {path}")
    out.say(f"next: {made.predict_command(target)}")


@commands.command()
def predict(
    bundle: BundleOption,
    out_csv: Annotated[Path, typer.Option("--out", "-o", help="The csv to write.")],
    images: ImagesOption = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="A csv of the rows to predict, with the column names of training; default: every image. Needed where "
            "the bundle has no image model."
        ),
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Also write a submission csv: id and score, with the column names of training.")
    ] = None,
    sample: Annotated[
        Path | None, typer.Option(help="A sample submission that gives the rows and their order.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for finished parts until all are complete; default: beside the csv.")
    ] = None,
    predictions: PredictionsOption = None,
    on_unreadable: UnreadableOption = "refuse",
    similar_names: SimilarOption = False,
    follow_links: LinksOption = False,
    swap_red_blue: SwapOption = False,
    strict: StrictOption = False,
    device: DeviceOption = "auto",
    n_jobs: JobsOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Predict score and calibrated probability of new images.

    Uses the inference path of training. An interrupted command resumes when it is run again.
    """
    from dermstack.serve.bundle import read_bundle
    from dermstack.serve.imported_runs import given_predictions
    from dermstack.serve.new_rows import PREDICT_NAMES
    from dermstack.serve.predict_files import OutputFiles, predict_to_files
    from stack.console import Out

    opened = read_bundle(bundle)
    predict_to_files(
        opened, images, metadata, Out(quiet=quiet),
        OutputFiles(out_csv, submission=submission, sample=sample, work=work),
        device=device, n_jobs=n_jobs, on_unreadable=on_unreadable, strict=strict, swap_red_blue=swap_red_blue,
        files=replace(PREDICT_NAMES, similar=similar_names, follow_links=follow_links),
        predictions=given_predictions(opened, predictions or []),
    )  # fmt: skip


@commands.command()
def evaluate(
    bundle: BundleOption,
    labels: Annotated[Path, typer.Option(help="A csv with the id and the target (0 or 1) of each image.")],
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for the page, its numbers and the predictions.")
    ],
    images: ImagesOption = None,
    metadata: LabelledMetadataOption = None,
    id_column: IdColumnOption = None,
    target_column: TargetColumnOption = None,
    predictions: PredictionsOption = None,
    replace_earlier: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Overwrite an earlier evaluation in --out; the same one may be made again without this option.",
        ),
    ] = False,
    on_unreadable: UnreadableOption = "refuse",
    similar_names: SimilarOption = False,
    follow_links: LinksOption = False,
    swap_red_blue: SwapOption = False,
    strict: StrictOption = False,
    device: DeviceOption = "auto",
    n_jobs: JobsOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Evaluate the ensemble on new labelled images.

    External validation: compares the performance on these images with the estimate from training.
    """
    from dermstack.serve.bundle import read_bundle
    from dermstack.serve.evaluate import evaluate_to_files, read_labelled_rows
    from dermstack.serve.imported_runs import given_predictions
    from dermstack.serve.new_rows import PREDICT_NAMES, report_rows, tolerant
    from dermstack.serve.predict import drops_unreadable
    from stack.console import Out

    drops_unreadable(on_unreadable)  # refuses other words before any work
    opened = read_bundle(bundle)
    files, out = replace(PREDICT_NAMES, similar=similar_names, follow_links=follow_links), Out(quiet=quiet)
    given = given_predictions(opened, predictions or [])
    rows, targets = read_labelled_rows(
        opened, images, labels, metadata, id_column=id_column, target_column=target_column, files=files,
        swap_red_blue=swap_red_blue, predictions=given,
    )  # fmt: skip
    report_rows(opened, rows, images, metadata or labels, out, files=files, strict=strict)
    rows = tolerant(rows, on_unreadable)
    evaluate_to_files(
        opened, rows, targets, folder, out, device=device, n_jobs=n_jobs, on_unreadable=on_unreadable,
        inputs=[labels, metadata, *(path for paths in given.values() for path in paths)],
        replace_earlier=replace_earlier,
    )  # fmt: skip


@commands.command()
def recalibrate(
    bundle: BundleOption,
    images: Annotated[
        Path | None,
        typer.Option(
            help="The folder of images; not needed where --prevalence gives a number, or the bundle has no image model."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="A csv with the id and the target (0 or 1) of each image, as `evaluate` takes it."),
    ] = None,
    prevalence: Annotated[
        str | None,
        typer.Option(
            help="Without labels: the share of positives among the new images, such as 0.02, or auto to estimate it "
            "from their risks, assuming that images of each class look as in training."
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The folder or .zip of the new bundle; must not exist."),
    ] = None,
    metadata: LabelledMetadataOption = None,
    id_column: IdColumnOption = None,
    target_column: TargetColumnOption = None,
    predictions: PredictionsOption = None,
    on_unreadable: UnreadableOption = "refuse",
    similar_names: SimilarOption = False,
    follow_links: LinksOption = False,
    swap_red_blue: SwapOption = False,
    strict: StrictOption = False,
    device: DeviceOption = "auto",
    n_jobs: JobsOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Recalibrate the risks for other patients, from few labels or a prevalence.

    Writes a new bundle, unless a test finds nothing to change. With --images alone (--metadata where the bundle has no
    image model), prints how many labels are needed and writes nothing.
    """
    from dermstack.serve.bundle import read_bundle
    from dermstack.serve.evaluate import read_labelled_rows
    from dermstack.serve.imported_runs import given_predictions
    from dermstack.serve.new_rows import PREDICT_NAMES, read_new_rows, report_rows, tolerant
    from dermstack.serve.predict import PredictOptions, drops_unreadable
    from dermstack.serve.recalibrate import (
        check_parent,
        read_prevalence,
        recalibrate_to_bundle,
        show_numbers_alone,
    )
    from stack.console import Out

    drops_unreadable(on_unreadable)  # refuses other words before any work
    if labels and prevalence:
        raise ConfigError("--labels and --prevalence: give one of them; labels say more")
    if (labels or prevalence) and target is None:
        raise ConfigError("--out is missing: name the folder or .zip of the new bundle")
    if target_column and not labels:
        raise ConfigError(f"--target-column {target_column} names a column of the labels: give --labels, too")
    number = read_prevalence(prevalence) if prevalence else None
    opened, out = read_bundle(bundle), Out(quiet=quiet)
    if opened.takes_images and images is None:
        if number is None:
            raise ConfigError("--images is missing: name the folder of the images, or give --prevalence as a number")
        if metadata or id_column:
            raise ConfigError("--metadata and --id-column describe images: give --images, too")
    if predictions and number is not None and images is None and metadata is None:
        raise ConfigError("--predictions are those of rows: give --metadata, too, or leave them out")
    check_parent(opened, target)
    rows = targets = None
    if number is None or images is not None or metadata is not None:
        files = replace(PREDICT_NAMES, similar=similar_names, follow_links=follow_links)
        given = given_predictions(opened, predictions or [])
        if labels:
            rows, targets = read_labelled_rows(
                opened, images, labels, metadata, id_column=id_column, target_column=target_column, files=files,
                swap_red_blue=swap_red_blue, purpose="recalibration", predictions=given,
            )  # fmt: skip
        else:
            rows = read_new_rows(
                opened, images, metadata, id_column=id_column, files=files, swap_red_blue=swap_red_blue,
                predictions=given,
            )  # fmt: skip
        report_rows(opened, rows, images, metadata or labels, out, files=files, strict=strict)
        rows = tolerant(rows, on_unreadable)
    options = PredictOptions(device, n_jobs, on_unreadable=on_unreadable)
    if target is None:
        assert rows is not None, "refused above"
        show_numbers_alone(opened, rows, out, options)
        return
    recalibrate_to_bundle(opened, target, out, rows=rows, labels=targets, prevalence=number, options=options)


@commands.command()
def app(
    bundle: BundleOption,
    host: Annotated[
        str, typer.Option(help="The address to listen on; the default is reachable from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes any free port.")] = 8000,
    on_unreadable: Annotated[
        str,
        typer.Option(
            help="refuse: no image is scored if one cannot be read; table: it is predicted from the table alone, and "
            "marked, if the bundle has such a model."
        ),
    ] = "refuse",
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Serve a local web page for one patient's images.

    Shows the risk and a heat map of each image, and which lesion differs most from the others.
    """
    from dermstack.serve.app import HEADERS, is_loopback, listen, make_app
    from dermstack.serve.bundle import read_bundle
    from dermstack.serve.connections import serve
    from dermstack.serve.patient import Ensemble
    from stack.console import Out

    out = Out(quiet=quiet)
    if on_unreadable not in ("refuse", "table"):
        raise ConfigError(f"--on-unreadable {on_unreadable}: choose refuse or table")
    unreadable: Literal["refuse", "table"] = "table" if on_unreadable == "table" else "refuse"
    with listen(host, port) as listener:
        page = make_app(Ensemble(read_bundle(bundle), device=device, on_unreadable=unreadable), host=host)
        if not is_loopback(host):
            out.warn(f"{host} can be reached from other machines, and the page has no login: anyone there can use it")
        url_host = f"[{host}]" if ":" in host else host
        out.say(f"open http://{url_host}:{listener.getsockname()[1]}/ in a browser; stop with Ctrl-C")
        serve(page, listener, headers=HEADERS)
    out.say("stopped; no image was stored")
