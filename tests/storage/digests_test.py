from gve_jax.storage.digests import file_sha256, json_sha256


def test_file_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert file_sha256(tmp_path / "abc") == abc


def test_json_sha256_is_stable():
    """Folders of earlier versions hold these values."""
    value = {"b": 1, "a": ["ä", 0.5]}
    assert json_sha256(value)[:16] == "a15da9354b888b3d"
    assert json_sha256(value, sort_keys=True)[:16] == "cca2e7a34c604975"
