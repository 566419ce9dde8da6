import hashlib
import hmac
import stat

import pytest

from dermstack.errors import StoreError
from dermstack.report.pseudonyms import pseudonym_key, pseudonyms

IDS = [f"ISIC_{number:07d}" for number in range(20_000)]


def test_the_same_id_has_the_same_code_and_no_two_ids_share_one():
    codes = pseudonyms(IDS, b"k" * 32)
    assert codes == pseudonyms(IDS, b"k" * 32)
    assert len(set(codes)) == len(IDS)
    assert all(len(code) == 10 and code.isalnum() and code == code.lower() for code in codes)


def test_another_key_gives_other_codes():
    assert not set(pseudonyms(IDS, b"k" * 32)) & set(pseudonyms(IDS, b"l" * 32))


def test_codes_are_no_plain_hash_of_the_id():
    code = pseudonyms(["ISIC_0000001"], b"k" * 32)[0]
    for name in ("md5", "sha1", "sha256", "blake2s", "blake2b"):
        plain = hashlib.new(name, b"ISIC_0000001").hexdigest()
        assert code not in plain
    assert not hmac.compare_digest(code, pseudonyms(["ISIC_0000001"], b"m" * 32)[0])


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path):
    key = pseudonym_key(tmp_path)
    assert len(key) == 32
    assert pseudonym_key(tmp_path) == key
    assert pseudonym_key(tmp_path / "other") != key
    assert stat.S_IMODE((tmp_path / "pseudonym.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pseudonym.key"]


def test_a_file_that_is_no_key_is_refused(tmp_path):
    (tmp_path / "pseudonym.key").write_bytes(b"short")
    with pytest.raises(StoreError, match="5 bytes"):
        pseudonym_key(tmp_path)
