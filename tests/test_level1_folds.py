from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import small_config

from image_models.cache import ImageCache
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.level1.folds import FoldTask, TrainedFold, trained_tasks
from stack.settings.config import read_config


class Rows(ImageCache):
    """A cache that is only asked where its rows are."""

    def __init__(self) -> None:
        pass

    def rows_for(self, ids: Any) -> np.ndarray:
        return np.arange(len(ids))


def opened(data: Path, folder: Path, **model: object) -> Experiment:
    settings = {"name": "tiny", "backbone": "test_resnet", "pretrained": False, "size": 32} | model
    path = small_config(data, folder, image_models=[settings])
    raw = yaml.safe_load(path.read_text())
    raw["data"]["columns"]["diagnosis"] = "diagnosis"
    path.write_text(yaml.safe_dump(raw))
    return open_experiment(read_config(path), path, Out(quiet=True))


def tasks(experiment: Experiment) -> list[FoldTask]:
    return trained_tasks(experiment, experiment.config.image_models[0], Rows(), {}, Out(quiet=True))


def test_metadata_is_encoded_by_the_folds_training_rows_alone(small_data: Path, tmp_path: Path) -> None:
    experiment = opened(small_data, tmp_path, metadata=["age", "sex"])
    train = experiment.table.train
    made = tasks(experiment)
    means = []
    for task, (_, rows, held) in zip(made, experiment.folds.pairs(), strict=True):
        assert isinstance(task.fit, TrainedFold)
        assert task.fit.encoder is not None
        encoder = json.loads(task.fit.encoder)
        assert encoder["mean"][0] == pytest.approx(train["age"].iloc[rows].mean(), rel=1e-5)
        means.append(encoder["mean"][0])
        assert task.fit.data.metadata is not None
        metadata = {"train": task.fit.data.metadata} | task.fit.metadata
        assert {name: len(values) for name, values in metadata.items()} == {
            "train": len(rows),
            "oof": len(held),
            "test": len(experiment.table.test),
            "anchor": len(task.ids["anchor"]),
        }
    assert len(set(means)) == len(made)


def test_the_epoch_is_chosen_on_whole_groups_of_training_rows(small_data: Path, tmp_path: Path) -> None:
    experiment = opened(small_data, tmp_path, select="best")
    for task, (_, rows, _) in zip(tasks(experiment), experiment.folds.pairs(), strict=True):
        assert isinstance(task.fit, TrainedFold)
        inner_val = task.fit.data.inner_val
        assert inner_val is not None
        groups = experiment.split_group[rows]
        assert 0.1 < inner_val.mean() < 0.5
        assert not set(groups[inner_val]) & set(groups[~inner_val])


def test_a_diagnosis_model_learns_classes_whose_targets_are_the_rows(small_data: Path, tmp_path: Path) -> None:
    experiment = opened(small_data, tmp_path, target="diagnosis", diagnosis={"unknown": "target"})
    for task, (_, rows, _) in zip(tasks(experiment), experiment.folds.pairs(), strict=True):
        assert isinstance(task.fit, TrainedFold)
        allowed, positive = task.fit.data.target, np.array(task.fit.data.positive)
        assert ((allowed & positive).any(axis=1) == experiment.target[rows]).all()
        assert not ((allowed & positive).any(axis=1) & (allowed & ~positive).any(axis=1)).any()
