"""UVRB's released archives: read without extraction; invalid ones are refused."""

import gzip
import io
import tarfile

import pytest

from data.uvrb.archives import Limits, find_parts, scan
from data.uvrb.files import SEAL, Archived, extract
from gve_jax.errors import UserError
from tests.evals.released import hostile, pack, split
from tests.situations import situation

REG, DIR = tarfile.REGTYPE, tarfile.DIRTYPE


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "original" / "CMRB"
    (root / "jsonl").mkdir(parents=True)
    (root / "videos" / "sub").mkdir(parents=True)
    for number in range(5):
        (root / "videos" / "sub" / f"{number}.mp4").write_bytes(bytes([number]) * 3000 * number)
    (root / "jsonl" / "corpus.jsonl").write_text('{"id": "ü"}\n', encoding="utf-8")
    return root


def contents(parts, name="CMRB", **more):
    found = {}
    scan(parts, name, lambda path, size, blocks: found.update({path: b"".join(blocks)}), **more)
    return found


def on_disk(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != SEAL
    }


@pytest.mark.parametrize("prefix", ["UVRB/", "", "./UVRB/", "./"])
@pytest.mark.parametrize("parts", [1, 7])
def test_reads_parts_as_one_stream(root, tmp_path, parts, prefix):
    pack(root, tmp_path / "data", parts, prefix)
    assert contents(find_parts(tmp_path / "data", "CMRB")) == on_disk(root)


def test_reads_a_single_archive_and_parts_from_one(root, tmp_path):
    paths = pack(root, tmp_path / "data", 2)
    archive = b"".join(path.read_bytes() for path in paths)
    for path, number in zip(reversed(paths), (2, 1), strict=True):
        path.rename(path.with_suffix(f".part{number:02}"))
    assert contents(find_parts(tmp_path / "data", "CMRB")) == on_disk(root)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/CMRB.tar.gz").write_bytes(archive)
    assert contents(find_parts(tmp_path / "one", "CMRB")) == on_disk(root)
    (tmp_path / "data/CMRB.tar.gz").write_bytes(archive)
    with pytest.raises(UserError, match=r"both CMRB.tar.gz and its parts exist"):
        find_parts(tmp_path / "data", "CMRB")


def test_ignores_other_files(root, tmp_path):
    data = tmp_path / "data"
    paths = pack(root, data, 2)
    for other in ("CMRB.tar.gz.part02.incomplete", "CMRB-X.tar.gz.part05", "CMRB.tar.gz.partial"):
        (data / other).write_bytes(b"x")
    assert find_parts(data, "CMRB") == paths
    assert find_parts(data, "DiDeMo") == [] and find_parts(tmp_path / "no", "CMRB") == []


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ([0], r"the archive is damaged in CMRB.tar.gz.part01 after its beginning"),
        ([0, 1], "part 01 is missing before CMRB.tar.gz.part02"),
        ([1], "part 01 is missing before CMRB.tar.gz.part02"),
        ([3], "ends too early, in CMRB.tar.gz.part02 .*last parts are missing"),
    ],
)
@situation(
    "Evaluation",
    "a part of a released archive is missing",
    "refused with the number of the part",
    since="0.1.0",
)
def test_names_missing_parts(root, tmp_path, lost, message):
    paths = pack(root, tmp_path / "data", 4)
    for number in lost:
        paths[number].unlink()
    with pytest.raises(UserError, match=message):
        contents(find_parts(tmp_path / "data", "CMRB"))


def test_refuses_duplicate_parts(root, tmp_path):
    paths = pack(root, tmp_path / "data", 2)
    (tmp_path / "data/CMRB.tar.gz.part1").write_bytes(paths[1].read_bytes())
    with pytest.raises(UserError, match="part01 and CMRB.tar.gz.part1 are the same part"):
        find_parts(tmp_path / "data", "CMRB")


@situation(
    "Evaluation",
    "an archive whose download was interrupted",
    "refused without a partial extraction",
    since="0.1.0",
)
def test_truncated_and_damaged_parts_leave_no_files(root, tmp_path):
    paths = pack(root, tmp_path / "data", 3)
    data = [path.read_bytes() for path in paths]
    flipped = bytearray(data[1])
    flipped[len(flipped) // 2] ^= 0xFF
    for number, wrong, message in (
        (1, data[1][:-9], "damaged|ends too early"),
        (1, bytes(flipped), "damaged|ends too early"),
        (2, data[2][:-1], "ends too early, in CMRB.tar.gz.part02"),
        (2, data[2][:-8] + bytes(8), "damaged in CMRB.tar.gz.part02"),  # the checksum
    ):
        for path, content in zip(paths, data, strict=True):
            path.write_bytes(content)
        paths[number].write_bytes(wrong)
        with pytest.raises(UserError, match=message):
            extract(paths, "CMRB", tmp_path / "cache" / "CMRB")
        assert list((tmp_path / "cache").iterdir()) == []


def test_refuses_garbage_between_members(tmp_path):
    """tarfile takes an unreadable header for the end of the archive."""
    plain = gzip.decompress(hostile(("a", b"1" * 600, REG), ("b", b"2" * 600, REG)))
    second = plain.index(b"b\0\0")
    damaged = plain[:second] + b"\xff" * 512 + plain[second + 512 :]
    paths = split(gzip.compress(damaged), tmp_path, "CMRB")
    with pytest.raises(UserError, match="CMRB: the archive is damaged after a"):
        contents(paths)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../x", b"x", REG)], r"path '../x' leaves its folder"),
        ([("UVRB/CMRB/../../x", b"x", REG)], "leaves its folder"),
        ([("/etc/x", b"x", REG)], "path '/etc/x' leaves its folder"),
        ([("../", b"", DIR)], "leaves its folder"),
        ([("a", b"/etc", tarfile.SYMTYPE)], "contains a link, 'a' to '/etc'"),
        ([("b", b"x", REG), ("a", b"b", tarfile.LNKTYPE)], "contains a link, 'a' to 'b'"),
        ([("a", b"", tarfile.CHRTYPE)], "'a' is neither a file nor a folder"),
        ([("a", b"", tarfile.FIFOTYPE)], "'a' is neither a file nor a folder"),
        ([("a", b"x", REG), ("./a", b"y", REG)], "contains './a' twice"),
        ([("a", b"x", REG), ("a/b", b"y", REG)], "'a/b' is both a file and a folder"),
        ([("a/b", b"y", REG), ("a", b"x", REG)], "'a' is both a file and a folder"),
        ([("a", b"x" * 300, REG)], "a of 300 bytes is above the limit of 200"),
        ([(f"{n}", b"", REG) for n in range(4)], "in 4 files, above the limit"),
        ([("n" * 3_000_000, b"", REG)], "a header of 3,000,014 bytes after"),
    ],
)
@situation(
    "Evaluation",
    "an archive with links, devices or paths outside its folder",
    "refused before anything is written outside",
    since="0.1.0",
)
def test_refuses_hostile_members(tmp_path, members, message):
    paths = split(hostile(*members), tmp_path / "data", "CMRB", 1)
    with pytest.raises(UserError, match=message):
        extract(paths, "CMRB", tmp_path / "cache" / "CMRB", limits=Limits(files=3, file_bytes=200))
    assert list((tmp_path / "cache").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


def test_refuses_decompression_bombs(tmp_path):
    paths = split(hostile(*((f"{n}", bytes(1 << 20), REG) for n in range(9))), tmp_path, "CMRB")
    with pytest.raises(UserError, match="expands to more than .* bytes in"):
        contents(paths, limits=Limits(spare=1 << 20, expansion=2))


def test_refuses_files_that_are_not_gzip(tmp_path):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w"):
        pass
    for data in (b"", b"not an archive", plain.getvalue()):
        paths = split(data, tmp_path, "CMRB", 1)
        with pytest.raises(UserError, match="CMRB: the archive (is damaged|ends too early)"):
            contents(paths)


def test_extraction_is_complete_and_its_media_can_be_removed(root, tmp_path):
    paths = pack(root, tmp_path / "data")
    home, progress = tmp_path / "cache" / "UVRB" / "CMRB", []
    files = Archived("CMRB", paths, home, lambda done, total: progress.append((done, total)))
    assert on_disk(home) == on_disk(root)
    assert progress[-1] == (sum(path.stat().st_size for path in paths),) * 2
    video, frames = home / "videos/sub/3.mp4", home / "videos/sub"
    before = files.digest(video), files.digest(frames)
    assert files.discard() == 3000 * (1 + 2 + 3 + 4)
    left = {"jsonl/corpus.jsonl"}
    assert set(on_disk(home)) == left
    # Digests of removed files are known, also without the archive.
    for parts in (paths, []):
        files = Archived("CMRB", parts, home)
        assert (files.digest(video), files.digest(frames)) == before
        assert files.exists(video) and not files.exists(home / "videos/sub/9.mp4")
        assert files.has_folder(frames) and not files.has_folder(video)
    assert set(on_disk(home)) == left
    with pytest.raises(UserError, match="CMRB: its files were removed, and so was its archive"):
        files.ensure()
    files.fetch([video])  # does nothing without the archive
    assert set(on_disk(home)) == left
    files = Archived("CMRB", paths, home)
    files.fetch([video, home / "videos/sub/1.mp4", home / "jsonl/corpus.jsonl"])
    assert set(on_disk(home)) == left | {"videos/sub/1.mp4", "videos/sub/3.mp4"}
    assert video.read_bytes() == b"\x03" * 9000
    files.fetch([frames])
    assert on_disk(home) == on_disk(root)
    files.discard()
    files.ensure()
    assert on_disk(home) == on_disk(root)
    with pytest.raises(UserError, match="extracted from other parts; delete"):
        Archived("CMRB", paths[:2], home)
