"""Hostile variants of a bundle by its manifest: settings of networks, other keys, and the files that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile_variant import Change, Content, Variant


def settings_variants() -> Iterator[Variant]:
    def run(name: str, **settings: Any) -> Change:
        def change(_: Path, content: Content) -> None:
            next(entry for entry in content["image_runs"] if entry["name"] == name)["settings"].update(settings)

        return change

    nested: Any = 1
    for _ in range(60):
        nested = [nested]
    made = {
        "1e8 layers": run("tiny", timm_args={"layers": [100_000_000]}),
        "1e8 layers, frozen": run("still", timm_args={"layers": [100_000_000]}),
        "65,536 layers": run("tiny", timm_args={"layers": [65_536, 1, 1, 1]}),
        "900,000 layers": run("tiny", timm_args={"layers": [900_000, 1, 1, 1]}),
        "a float of layers": run("tiny", timm_args={"layers": [1e300]}),
        "nan layers": run("tiny", timm_args={"layers": [float("nan")]}),
        "7 billion parameters": run("tiny", backbone="vit_7b_patch16_dinov3"),
        "7 billion parameters, frozen": run("still", backbone="vit_7b_patch16_dinov3"),
        "a giant": run("tiny", backbone="eva_giant_patch14_224"),
        "a million channels": run("tiny", timm_args={"channels": [900_000, 8, 8, 8]}),
        "65,536 input channels": run("tiny", timm_args={"in_chans": 65_536}),
        "a wide stem": run("tiny", timm_args={"stem_width": 500_000}),
        "an image of 2,048 px in a transformer": run("tiny", backbone="vit_giant_patch14_224", size=2048),
        "deep arguments": run("tiny", timm_args={"layers": nested}),
        "many arguments": run("tiny", timm_args={f"a{n}": n for n in range(5_000)}),
        "a long argument": run("tiny", timm_args={"act_layer": "x" * 100_000}),
        "an unknown layer": run("tiny", timm_args={"act_layer": "no_such_layer"}),
        "an argument of text": run("tiny", timm_args={"layers": "9"}),
        "an unknown argument": run("tiny", timm_args={"nothing": 1}),
        "feature maps": run("tiny", timm_args={"features_only": True}),
        "a file of weights": run("tiny", timm_args={"checkpoint_path": "/etc/passwd"}),
        "a backbone from the hub": run("tiny", backbone="hf-hub:someone/model"),
        "no backbone": run("tiny", backbone="x" * 10_000),
        "another backbone": run("tiny", backbone="resnet18"),
        "a size of 0": run("tiny", size=0),
        "a size of a billion": run("tiny", size=10**9),
        "a batch of 10^15": run("tiny", batch_size=10**15),
        "a hundred thousand seeds": run("tiny", seeds=list(range(100_000))),
        "a negative batch": run("tiny", batch_size=-1),
    }
    for name, change in made.items():
        yield f"settings: {name}", change


_LOW = {
    "aim": "sensitivity", "level": 0.9, "confidence": 0.9, "threshold": 0.2, "groups": 50, "rows": 60, "errors": 2,
    "most": 3, "test": "betting", "needed": None,
}  # fmt: skip
_SHARES = {name: {"value": 0.3, "low": 0.2, "high": 0.4} for name in ("negative", "review", "positive")}
_BAND = {"low": _LOW, "high": None, "confidence": 0.9, "below": 0.2, "above": None, "shares": _SHARES}


_UNITS = {"columns": ["patient_id"], "target": "any", "pooling": "mean"}


def manifest_variants() -> Iterator[Variant]:
    def set_in(*path: str | int, value: Any) -> Change:
        def change(_: Path, content: Content) -> None:
            at: Any = content
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value

        return change

    def raw(change: Callable[[Content], Content | bytes]) -> Change:
        return lambda _, content: content.update(raw=change)

    def named(name: str, n_bytes: int = 0) -> Change:
        entry = {"sha256": "0" * 64, "bytes": n_bytes}
        return raw(lambda content: {**content, "files": {**content["files"], name: entry}})

    def without(name: str) -> Change:
        return lambda folder, _: (folder / name).unlink()

    made = {
        "a name of 300 characters": named("x" * 300),
        "a name of 300 bytes": named("é" * 150),
        "a path of 5,000 characters": named("/".join(["x"] * 2_500)),
        "a name with a null": named("a\0b"),
        "a name that is no text": named("a\ud800b"),
        "a file inside a file": named("costs.json/x"),
        "a folder named as a file": named("blend"),
        "a name outside": named("../x"),
        "10^15 bytes": named("a", 10**15),
        "a hundred levels": raw(lambda content: b'{"a":' * 100_000),
        "a number of 5,000 digits": raw(lambda content: b'{"format": ' + b"9" * 5_000 + b"}"),
        "no object": raw(lambda content: b"[]"),
        "not utf-8": raw(lambda content: b"\xff\xfe{}"),
        "a hundred folds": set_in("folds", value=100),
        "two folds": set_in("folds", value=2),
        "10^9 folds": set_in("folds", value=10**9),
        "a million threads": set_in("threads", value=10**6),
        "no image runs": set_in("image_runs", value=[]),
        "a class less": set_in("image_runs", 0, "positive", value=[True]),
        "10,000 classes": set_in("image_runs", 0, "positive", value=[True] * 10_000),
        "another kind of run": set_in("image_runs", 0, "kind", value="frozen"),
        "another kind of stacker": set_in("stackers", 0, "kind", value="xgboost"),
        "an unknown kind": set_in("stackers", 0, "kind", value="pickle"),
        "a shift of nan": set_in("stackers", 0, "shifts", value=[float("nan")] * 3),
        "no scales": set_in("scales", value={}),
        "a scale of nan": set_in("scales", "tiny", value={"-1": [0.0, float("nan")], "0": [0.0, 1.0]}),
        "a scale of 0": set_in("scales", "tiny", value={"-1": [0.0, 0.0]}),
        "a scale of one number": set_in("scales", "tiny", value={"-1": [0.0]}),
        "a scale of no net": set_in("scales", "tiny", value={"x": [0.0, 1.0]}),
        "a second stage without features": set_in(
            "second_stage", value={"stackers": ["gbdt"], "sees": ["line"], "scales": {}}
        ),
        "a second stage that sees itself": set_in(
            "second_stage", value={"stackers": ["gbdt"], "sees": ["gbdt"], "scales": {}}
        ),
        "an unknown feature": set_in("features", "nothing", value=True),
        "a feature less": set_in("features", "metadata", value=False),
        "another embedding": set_in("embeddings", value={"tiny": "frozen", "still": "aligned"}),
        "no embeddings": set_in("embeddings", value={}),
        "no columns": set_in("columns", value={}),
        "another objective": set_in("objective", value="x"),
        "a long text": set_in("chosen", value="x" * 1_000_000),
        "units of no column": set_in("predict_per", value={"columns": [], "target": "any", "pooling": "mean"}),
        "units of the target": set_in("predict_per", value={**_UNITS, "columns": ["target"]}),
        "an unknown pooling": set_in("predict_per", value={**_UNITS, "pooling": "median"}),
        "a pooling with other columns than the blend": set_in("predict_per", value={**_UNITS, "pooling": "learned"}),
        "a band of words": set_in("review", value="x"),
        "a band without a guarantee": set_in("review", value={**_BAND, "low": {**_LOW, "threshold": None}}),
        "a band beyond its guarantee": set_in("review", value={**_BAND, "below": 0.5}),
        "a band of nan": set_in("review", value={**_BAND, "below": float("nan")}),
        "a band above 1": set_in("review", value={**_BAND, "low": {**_LOW, "threshold": 7.0}, "below": 7.0}),
        "a band upside down": set_in("review", value={**_BAND, "low": {**_LOW, "aim": "ppv"}}),
        "a band that decides positives without a guarantee": set_in("review", value={**_BAND, "above": 0.6}),
        "a band that decides twice": set_in(
            "review",
            value={**_BAND, "high": {**_LOW, "aim": "ppv", "threshold": 0.1}, "above": 0.1},
        ),
        "a band with a share of 7": set_in("review", value={**_BAND, "shares": dict.fromkeys(_SHARES, 7.0)}),
        "a band of 10^99 patients": set_in("review", value={**_BAND, "low": {**_LOW, "groups": 10**99}}),
        "no model": without("stackers/gbdt/fold_0/model.txt"),
        "no weights": without("image_models/tiny/fold_0/weights.safetensors"),
        "no second seed": without("image_models/tiny/fold_1/weights_0.safetensors"),
        "no backbone": without("image_models/still/backbone.safetensors"),
        "no blend": without("blend/blend.json"),
        "no ranks": without("blend/ranks.npy"),
        "no features": without("features/fold_1/features.json"),
        "no alignment": without("alignment/tiny_mean.npy"),
        "no density": without("novelty/fold_0/mean.npy"),
    }  # fmt: skip
    for name, change in made.items():
        yield f"manifest: {name}", change
