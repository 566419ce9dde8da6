"""A damaged HDF5 file is refused without the memory that it claims to need."""

from __future__ import annotations

import base64
import sys
import zlib
from pathlib import Path

import pytest

from dermstack.errors import ImageError
from image_models.io.hdf5 import open_hdf5

# A file of 1,848 bytes, found by fuzzing, that says its header is 4 GiB long.
LONG_HEADER = zlib.decompress(
    base64.b85decode(
        b"c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvZkoXfAhz6EeMFpW2bU^tlm>_gWkgF>L10%#jBmmQAzyhHK7)HTJ1Rk!A0U$a8%9nuBCzw#x"
        b"B|_;WD9s3^9muqok%1Lr1|y6Qv6+z(A`lK$2cwyRDU=bKP9Z8dz$7b>2JxAgm>40V5ObIrD_BuYAS0{M5ts-2`MWSOFhRY=z@Wg4"
        b"Ujr<|o@X6R#K@q0qn|sp<mL7Ba0vp^JV4CF0ZP#Pej00ml$@uFV@SoE<dlvifph_PHz6LOj2JaGr2{LJ9*HnAc+F(W@#$aa3Np^q"
        b")z4*}Q$iDFdgVaL2h7lPC<;w+xYOl*Htgwg#gGc-&H$POGXPE0OTY"
    )
)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is that of Linux")
def test_a_file_that_claims_a_header_of_gigabytes_takes_no_such_memory(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "a.hdf5"
    path.write_bytes(LONG_HEADER)
    before, limits = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ImageError, match="not a readable HDF5 file"):
        open_hdf5(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "KiB"
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
