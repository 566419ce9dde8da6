"""Bundles made to do harm whose hashes are right: a generator of some 250 variants of one good bundle.

Each variant changes one thing. A variant is a name and a function that is given the bundle's folder and the content of
its manifest, and changes them; `sealed` writes the manifest anew, so that every hash is right.
"""

from __future__ import annotations

import json
from pathlib import Path

from hostile_files import array_variants, json_variants, weights_variants
from hostile_gbdts import gbdt_variants, richer_models, with_model
from hostile_manifest import manifest_variants, settings_variants
from hostile_variant import Change, Variant

from dermstack.serve.bundle import MANIFEST, write_manifest
from stack.store import with_digest


def sealed(folder: Path, change: Change) -> None:
    """Changes the bundle in ``folder`` and writes a manifest with the right hashes."""
    manifest = json.loads((folder / MANIFEST).read_text())
    content = {key: value for key, value in manifest.items() if key not in {"files", "format", "digest"}}
    change(folder, content)
    raw = content.pop("raw", None)
    write_manifest(folder, content)
    if raw is not None:  # a change of the finished manifest, or its bytes
        written = json.loads((folder / MANIFEST).read_text())
        written.pop("digest")
        made = raw(written)
        (folder / MANIFEST).write_bytes(made if isinstance(made, bytes) else json.dumps(with_digest(made)).encode())


def variants(folder: Path) -> dict[str, list[Variant]]:
    """All variants of the bundle in ``folder``, by group."""
    good = richer_models(folder)
    return {
        **{kind: list(gbdt_variants(kind, model)) for kind, model in good.items()},
        "arrays": list(array_variants(folder)),
        "json": list(json_variants(folder)),
        "weights": list(weights_variants(folder)),
        "settings": list(settings_variants()),
        "manifest": list(manifest_variants()),
    }


def good_variants(folder: Path) -> list[Variant]:
    """Bundles that are as they should be: the one in ``folder``, and with models of each library."""
    good = richer_models(folder)
    return [("as it is", lambda *_: None), *((f"{kind}", with_model(kind, good[kind], good[kind])) for kind in good)]
