"""Says for whom a result holds: what positive means, which groups are held out, and whether sources were held out."""

from __future__ import annotations

from pathlib import Path

from dermstack.report.pseudonyms import pseudonymiser
from stack.experiment import Experiment
from stack.fallback import FOLDER, performance
from stack.sources.estimates import headline_note, stored_leave_source_out
from stack.store import Run, read_run


def group_notes(experiment: Experiment) -> list[str]:
    """Says where groups are lesions or single images, so that a patient may be on both sides of a fold."""
    if not experiment.table.groups_known:
        return [
            "The table names no patients: images of one patient can be in several folds. For new patients the result "
            "can therefore be optimistic, and the intervals are too narrow if patients have several images."
        ]
    column = experiment.config.data.columns.group or ""
    if "lesion" not in column.lower():
        return []
    return [
        f"Groups are lesions (column `{column}`), as the table names no patients: other lesions of a patient can be in "
        "the rows that a model learned from. The result holds for new lesions; for new patients it can be optimistic. "
        "Where this page says patient, it counts lesions."
    ]


_MOST_DIAGNOSES = 4  # named of each class


def positives(experiment: Experiment) -> str:
    """Names the diagnoses of positive and of negative rows, the most frequent first; "" where none is known."""
    train = experiment.table.train
    if "diagnosis" not in train or not train["diagnosis"].notna().any():
        return ""
    said = []
    for word, of in (("Positive", train[experiment.target == 1]), ("Negative", train[experiment.target == 0])):
        counts = of["diagnosis"].value_counts()
        named = [f"{name} ({count:,})" for name, count in counts.iloc[:_MOST_DIAGNOSES].items()]
        if others := int(counts.iloc[_MOST_DIAGNOSES:].sum()):
            named.append(f"others ({others:,})")
        if unknown := int(of["diagnosis"].isna().sum()):
            named.append(f"not known ({unknown:,})")
        said.append(f"{word}: {', '.join(named)}.")
    return " ".join(said)


def sources_file(experiment: Experiment) -> str:
    """Returns the name of the file that names the sources of rows; "" where a column of the table does."""
    path = experiment.config.data.sources
    return "" if path is None else Path(path).name


def source_note(experiment: Experiment, blend: Run) -> str | None:
    """Says for which sources the headline holds, with the estimate where they were held out, if there is one."""
    if experiment.shuffled:
        return None
    if (found := stored_leave_source_out(experiment.folder, blend.meta["fingerprint"])) is not None:
        return f"{headline_note(found)} See the section on other hospitals and cameras."
    if experiment.config.data.has_sources:
        return "This estimate holds for the sources of these images; how the models do in others was not measured."
    return (
        "No source (hospital, camera) is named, so nothing here tells how the models do on images from elsewhere: name "
        "it in `data.columns.source`, or find groups by how images were taken with `dermstack sources`."
    )


_MAX_NAMED = 20  # rows named in a note


def fallback_notes(experiment: Experiment, *, show_ids: bool) -> list[str]:
    """Describes the fallback where it predicts rows of the submission, and names these rows."""
    run, lost = read_run(experiment.folder / FOLDER), experiment.unreadable_test["id"]
    if run is None or lost.empty:
        return []
    display_name = str if show_ids else pseudonymiser(experiment)
    names = ", ".join(display_name(row_id) for row_id in lost[:_MAX_NAMED])
    more = f", … {len(lost):,} in all" if len(lost) > _MAX_NAMED else ""
    return [
        f"{len(lost):,} of {len(experiment.as_read.test):,} test rows have an image that cannot be read. As declared "
        f"(data.on_unreadable_test), they are predicted by the fallback: {performance(run)}. The blend's score does "
        f"not apply to these rows: {names}{more}."
    ]
