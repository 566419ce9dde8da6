"""Whatever a file holds, a reader takes it or refuses it in the toolkit's own words, and what it takes stays small."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz_seeds_data import READERS as DATA
from fuzz_seeds_data import dicom, encoded
from fuzz_seeds_runs import READERS as RUNS
from fuzz_seeds_runs import zipped
from fuzzing import mutated, reader_accepts
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

ROOT = Path(__file__).parents[1]
READERS = DATA | RUNS
# Slow ones, such as pandas on a csv, get fewer; `make fuzz` goes on from there.
EXAMPLES = dict.fromkeys(READERS, 25) | dict.fromkeys(("npy", "example", "manifest", "run", "bundle", "weights"), 60)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_reads_what_it_is_spoiled_from(name: str, tmp_path: Path) -> None:
    """Else the others would show nothing."""
    taken = [reader_accepts(READERS[name], content, tmp_path) for content in READERS[name].seeds()]
    assert taken[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_spoiled_file_is_read_or_refused_in_own_words(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, seeds = tmp_path_factory.mktemp("spoiled"), READERS[name].seeds()

    @settings(max_examples=EXAMPLES[name], derandomize=True, database=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def holds(seed: int) -> None:
        rng = np.random.default_rng(seed)
        reader_accepts(READERS[name], mutated(seeds[int(rng.integers(len(seeds)))], rng, seeds), folder)

    holds()


# ------------------------------------------------------------------------------------------------ made to do harm

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {ha: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
NASTY_YAML = {
    "a billion laughs": LAUGHS + "experiment: *a11\n",
    "a billion laughs, merged": MERGED + "experiment: *a11\n",
    "itself": "experiment: &a [*a]\n",
    "itself, deeper": "experiment: x\ndata: &a {name: *a}\n",
    "deep": "[" * 20_000,
    "a number of 5,000 digits": "experiment: " + "9" * 5_000,
    "no day": "experiment: 2001-99-99",
    "no number": "experiment: !!int ''",
    "no float": "experiment: !!float ''",
    "no time": "experiment: !!timestamp ever",
    "no yes or no": "experiment: !!bool perhaps",
    "an object": "experiment: !!python/object/apply:os.system ['touch {trace}']",
    "a home of nobody": "experiment: x\nruns: ~nobody-of-this-name/x\n",
    "a path with a null": 'experiment: x\nruns: "a\\0b"\n',
    "a path that is no text": 'experiment: x\nruns: "\\ud800"\n',
    "a long word": "experiment: " + "x" * 1_000_000,
    "a long key": "x" * 1_000_000 + ": 1",
    "many keys": "".join(f"k{n}: 1\n" for n in range(3_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", NASTY_YAML)
def test_a_config_made_to_do_harm_is_refused_in_few_words(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    assert not reader_accepts(READERS["config"], NASTY_YAML[name].replace("{trace}", str(trace)).encode(), tmp_path)
    assert not trace.exists()


NASTY_CSV = {
    "nulls": b"image,patient,y\n\0\0,a,1\nb,c,0\n",
    "three million columns": b"," * 3_000_000 + b"\n1\n",
    "three million columns after a quoted line": b'"\n"' + b"," * 3_000_000 + b"\n1\n",
    "three million columns after empty lines": b"\n \n\n" + b"," * 3_000_000 + b"\n1\n",
    "a header without end": b"x" * 2_000_000,
    "a quote without end": b'image,patient,y\n"' + b"a,b\n" * 50_000,
    "empty lines": b"\n" * 200_000,
    "no UTF-8": "image,patient,y\né,b,1".encode("latin-1"),
    "UTF-16": "image,patient,y\na,b,1".encode("utf-16"),
}


@pytest.mark.parametrize(
    "reader", ["table", "new rows", "external rows", "predictions", "sample submission", "duplicates"]
)
def test_a_csv_made_to_do_harm_ends_no_process(reader: str, tmp_path: Path) -> None:
    for content in NASTY_CSV.values():
        reader_accepts(READERS[reader], content, tmp_path)


def test_a_long_cell_and_many_columns_are_still_a_table(tmp_path: Path) -> None:
    columns = ",".join(f"c{n}" for n in range(2_000))
    rows = "".join(f"a{n},p{n},{n % 2},20,f,torso,{n % 2}{',' * 2_000}\n" for n in range(4))
    content = f"image,patient,y,age,sex,site,fold,{columns}\n{rows}".replace("torso", f'"{"x" * 300_000}"', 1)
    assert reader_accepts(READERS["table"], content.encode(), tmp_path)


def png(width: int, height: int) -> bytes:
    """A head that claims these sides, and a megabyte of pixels packed into one kilobyte."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")):
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content))]
    return b"".join(parts)


def resized(content: bytes, marker: bytes, side: int) -> bytes:
    """A JPEG, JPEG-LS (inside DICOM) whose frame claims to be square with this side."""
    at = content.rindex(marker) + 5
    return content[:at] + struct.pack(">HH", side, side) + content[at + 4 :]


def npy(shape: str, kind: str = "'<f2'") -> bytes:
    head = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head


def inside(number: int, content: bytes) -> bytes:
    """A field of Protocol Buffers that holds these bytes."""
    length, left = b"", len(content)
    while left > 127:
        length, left = length + bytes([left & 127 | 128]), left >> 7
    return bytes([number << 3 | 2]) + length + bytes([left]) + content


def one_feature(value: bytes) -> bytes:
    return inside(1, inside(1, inside(1, b"x") + inside(2, value)))


def deflated_behind_a_lie() -> bytes:
    """A deflated data set whose head says that it begins elsewhere, where a harmless one lies."""
    whole = bytearray(dicom(DeflatedExplicitVRLittleEndian, PixelData=bytes(120)))
    at = 132 + 12 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join([packer.compress(bytes(1 << 24)) for _ in range(40)]) + packer.flush()
    whole[140:144] = (at - 144 + len(bomb)).to_bytes(4, "little")
    return bytes(whole[:at]) + bomb + bytes(whole[at:])


def shipped(name: str) -> bytes:
    import pydicom

    return (Path(pydicom.__file__).parent / "data" / "test_files" / name).read_bytes()


def siz(content: bytes, side: int) -> bytes:
    """JPEG 2000."""
    at = content.index(b"\xff\x4f\xff\x51") + 8
    return content[:at] + struct.pack(">8I", side, side, 0, 0, side, side, 0, 0) + content[at + 32 :]


def hdf5_of_zeros() -> bytes:
    import io

    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("a", shape=(1 << 40,), dtype=np.uint8, chunks=(1 << 20,), compression="gzip")
    return buffer.getvalue()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "PNG of 81 million pixels that are not there": ("picture", lambda: png(9_000, 9_000)),
    "PNG of 3,600 million pixels": ("picture", lambda: png(60_000, 60_000)),
    "JPEG": ("picture", lambda: resized(encoded("JPEG"), b"\xff\xc0", 65_000)),
    "JPEG of 12 bits in DICOM": ("dicom", lambda: resized(shipped("JPGExtended.dcm"), b"\xff\xc1", 65_000)),
    "JPEG lossless in DICOM": ("dicom", lambda: resized(shipped("SC_rgb_jpeg_gdcm.dcm"), b"\xff\xc3", 65_000)),
    "JPEG-LS in DICOM": ("dicom", lambda: resized(shipped("MR_small_jpeg_ls_lossless.dcm"), b"\xff\xf7", 65_000)),
    "JPEG 2000 in DICOM": ("dicom", lambda: siz(shipped("MR_small_jp2klossless.dcm"), 60_000)),
    "deflated DICOM": ("dicom", deflated_behind_a_lie),
    "deep DICOM": (
        "dicom",
        lambda: dicom(ExplicitVRLittleEndian, PixelData=bytes(120))[:-132]
        + b"\x40\x00\x60\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5_000,
    ),
    "TFRecord of many integers": ("example", lambda: one_feature(inside(3, inside(1, b"\1" * 1_200_000)))),
    "TFRecord of many empty values": ("example", lambda: one_feature(inside(1, b"\x0a\0" * 1_200_000))),
    "HDF5": ("hdf5", hdf5_of_zeros),
    "npy": ("npy", lambda: npy("(1099511627776,)")),
    "npy, overflowing": ("npy", lambda: npy("(4611686018427387904, 8)")),
    "npy, deep": ("npy", lambda: npy("(" * 3_000 + ")" * 3_000)),
    "npy of a wide type": ("npy", lambda: npy("(1,)", "[('a', '<f2', (1000000000,))]")),
    "zip where an array should be": ("npy", lambda: zipped({"a.npy": npy("(1,)")})),
    "run.json": ("run", lambda: b'{"files": ' + b"[" * 100_000),
}  # fmt: skip
SPARE = 700 << 20  # bytes of address space beside what Python and the libraries take
IN_A_CHILD_EACH = f"""
import os, resource, sys
from pathlib import Path
sys.path.insert(0, "tests")
from fuzz_seeds_data import READERS as DATA
from fuzz_seeds_runs import READERS as RUNS
from fuzzing import reader_accepts
READERS, folder = DATA | RUNS, Path(sys.argv[1])
for reader in {sorted({reader for reader, _ in BOMBS.values()})!r}:
    assert reader_accepts(READERS[reader], READERS[reader].seeds()[0], folder), reader
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
for path in sorted(folder.glob("*.bomb")):
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_AS, (taken + {SPARE},) * 2)
        reader = path.name.split(".")[1]
        os._exit(int(reader_accepts(READERS[reader], path.read_bytes(), folder)))
    print(path.name.split(".")[0], os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is taken")
def test_bombs_are_refused_within_bounded_memory(tmp_path: Path) -> None:
    """Each in a process that can't have more: it would end, or raise something else."""
    for number, (reader, content) in enumerate(BOMBS.values()):
        (tmp_path / f"{number:02}.{reader}.bomb").write_bytes(content())
    made = subprocess.run(
        [sys.executable, "-c", IN_A_CHILD_EACH, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    ended = [int(line.split()[1]) for line in made.stdout.splitlines()]
    assert dict(zip(BOMBS, ended, strict=True)) == dict.fromkeys(BOMBS, 0), made.stderr
