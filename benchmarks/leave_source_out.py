"""Patient-grouped and leave-source-out estimates side by side, on HAM10000, SIIM-ISIC 2020 and ISIC 2024.

python -m benchmarks.leave_source_out ../shared/data /tmp/sources [isic2024] [siim2020] [ham10000]

None of the data sets at hand names its hospitals. For SIIM-ISIC 2020 the sources are the sizes of the original images
(`dermstack sources --no-pictures`); for ISIC 2024 how the image was lit (`tbp_tile_type`) and with how many digits the
export wrote its measurements, which never differs within a patient; for HAM10000 five clusters of the colour of the
image's frame. SIIM-ISIC 2020 and ISIC 2024 are an experiment twice: with imported networks that had seen the sources
and with models of the table alone, which had not. On HAM10000 the image models are trained again with folds of sources
(`estimate.train_by_source`): a frozen backbone alone, and the nets of the config.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.siim_oof import write_experiment

LONG = 12  # digits: exports wrote 7 or 15
TABLE_ALONE = [{"name": kind, "kind": kind, "runs": []} for kind in ("lightgbm", "logistic")]
BLEND = {"methods": ["rank_mean", "mean", "logistic", "hill_climb"]}


def dermstack(*arguments: str) -> None:
    print("$ dermstack", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "dermstack", *arguments], check=True)


def write_config(path: Path, settings: dict[str, Any], **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**settings, **changes}, sort_keys=False), encoding="utf-8")
    return path


def siim(data: Path, folder: Path) -> None:
    """Two imported networks, and the table alone, with sizes as sources."""
    config, imports = write_experiment(data / "siim2020", folder)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings |= {"blend": BLEND, "n_jobs": 1, "stackers": []}
    write_config(config, settings)
    dermstack("sources", "-c", str(config), "--no-pictures", "--out", str(folder / "sources.csv"))
    settings["data"]["sources"] = "sources.csv"
    write_config(config, settings)
    for arguments in imports:
        dermstack(*arguments)
    dermstack("stack", "-c", str(config), "--no-report")
    table = write_config(folder / "table.yaml", settings, experiment="siim2020-table", stackers=TABLE_ALONE[1:])
    dermstack("stack", "-c", str(table), "--no-report")


def ham10000(data: Path, folder: Path) -> None:
    """A frozen backbone alone, then the nets of configs/ham10000.yaml with level 2, trained by lesion and by source.

    Sources are clusters of the colour of the image's frame. Runs lie in FOLDER/runs; finished ones are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = Path("configs/ham10000.yaml").read_text(encoding="utf-8").replace("${DERMSTACK_DATA:-../data}", str(data))
    settings = yaml.safe_load(text) | {"runs": "runs", "cache": "cache", "n_jobs": 1, "blend": BLEND}
    config = write_config(folder / "ham.yaml", settings)
    if not (folder / "sources.csv").exists():
        dermstack("sources", "-c", str(config), "--clusters", "5", "--out", str(folder / "sources.csv"))
    settings["data"]["sources"] = "sources.csv"
    settings["estimate"] = {"train_by_source": True}
    frozen = [model for model in settings["image_models"] if model.get("frozen")]
    alone = {"image_models": frozen, "stackers": [], "blend": {"methods": ["rank_mean"]}}
    for place in (
        write_config(folder / "frozen.yaml", settings, experiment="ham10000-frozen", **alone),
        write_config(config, settings),
    ):
        dermstack("oof", "-c", str(place))
        dermstack("stack", "-c", str(place))


def isic2024(data: Path, folder: Path) -> None:
    """One imported network with the table, and the table alone, with kinds of export as sources."""
    folder.mkdir(parents=True, exist_ok=True)
    source = data / "isic2024"
    rows = pd.read_csv(source / "train.csv", dtype=str)
    digits = rows["tbp_lv_A"].str.replace(".", "", regex=False).str.len()
    kind = digits.ge(LONG).map({True: "long numbers", False: "short numbers"})
    assert (kind.groupby(rows["patient_id"]).nunique() == 1).all()
    sources = pd.DataFrame({"isic_id": rows["isic_id"], "source": rows["tbp_tile_type"] + ", " + kind})
    sources.to_csv(folder / "sources.csv", index=False)
    settings = yaml.safe_load(
        Path("configs/isic2024.yaml").read_text(encoding="utf-8").replace("${DERMSTACK_DATA:-../data}", str(data))
    )
    settings["data"]["sources"] = str(folder / "sources.csv")
    settings |= {"runs": "runs", "n_jobs": 1, "blend": BLEND}
    settings["stackers"] = [{**stacker, "repeats": 1} for stacker in settings["stackers"]]
    config = write_config(folder / "isic.yaml", settings)
    dermstack(
        "import-oof", "cnn", "-c", str(config), "--replace", "--oof", str(source / "cnn_oof.csv"),
        "--test", str(source / "cnn_test.csv"), "--id-column", "isic_id", "--test-averaged",
    )  # fmt: skip
    dermstack("stack", "-c", str(config))
    table = write_config(folder / "table.yaml", settings, experiment="isic2024-table", stackers=TABLE_ALONE)
    dermstack("stack", "-c", str(table))


if __name__ == "__main__":
    place, made = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    for name, measure in (("isic2024", isic2024), ("siim2020", siim), ("ham10000", ham10000)):
        if name in sys.argv[3:] or not sys.argv[3:]:
            measure(place, made / name)
