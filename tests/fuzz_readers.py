"""Coverage-guided fuzzing of every reader by atheris (libFuzzer): `make fuzz`, or this file for longer on one of them.

    python tests/fuzz_readers.py --seconds 300 dicom npy

Anything but the toolkit's own errors, a call of more than 30 s and more than 3 GiB end it with exit status 1; the input
lies under .fuzz/ then, to be made a seed or a test. It starts from the same small files as `test_fuzz_readers.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

FOUND = Path(__file__).parents[1] / ".fuzz"
MAX_SECONDS, MAX_MEMORY = 30, 3072  # seconds, MiB
# Coverage of these; of the whole of pydicom or NumPy the start would take longer than CI's minute.
GUIDED_BY = [
    "stack",
    "image_models",
    "dermstack.serve",
    "tabular",
    "yaml",
    "zipfile",
    "pydicom.filereader",
    "pydicom.pixels",
    "pydicom.encaps",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of all readers together")
    parser.add_argument("readers", nargs="*", help="default: all")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print(
            "not fuzzed: atheris is not installed (it has wheels for Linux): pip install -c constraints.txt '.[fuzz]'"
        )
        return 0
    with atheris.instrument_imports(include=GUIDED_BY, enable_loader_override=False):
        import fuzz_seeds_data
        import fuzz_seeds_runs
        from fuzzing import reader_accepts

        readers = fuzz_seeds_data.READERS | fuzz_seeds_runs.READERS
        if strange := set(options.readers) - set(readers):
            parser.error(f"no reader {', '.join(sorted(strange))}: choose from {', '.join(readers)}")
        chosen = options.readers or list(readers)
        for name in chosen:  # what a reader imports when it is called is watched too
            with tempfile.TemporaryDirectory() as folder:
                assert reader_accepts(readers[name], readers[name].seeds()[0], Path(folder)), (
                    f"{name} refuses its own seed"
                )
    failed = [name for name in chosen if not _fuzzed(readers[name], name, max(1, round(options.seconds / len(chosen))))]
    for name in failed:
        print(f"{name}: fails, see the trace above and {FOUND}/")
    return 1 if failed else 0


def _fuzzed(reader, name: str, seconds: int) -> bool:
    """In a process of its own, since libFuzzer ends the one that it is called in."""
    print(f"{name}: {seconds} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="dermstack-fuzz-") as folder:
        if (child := os.fork()) == 0:
            _fuzz(reader, name, seconds, Path(folder))
        _, status = os.waitpid(child, 0)
    return status == 0


def _fuzz(reader, name: str, seconds: int, folder: Path) -> None:
    import atheris
    from fuzzing import reader_accepts

    FOUND.mkdir(exist_ok=True)
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, content in enumerate(reader.seeds()):
        (seeds / str(number)).write_bytes(content)
    options = [
        f"-max_total_time={seconds}", f"-timeout={MAX_SECONDS}", f"-rss_limit_mb={MAX_MEMORY}", "-print_final_stats=1",
        f"-artifact_prefix={FOUND}/{name.replace(' ', '_')}-","-verbosity=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(seeds)], lambda content: reader_accepts(reader, content, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
