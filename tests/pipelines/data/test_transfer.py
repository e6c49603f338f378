"""Downloads over connections that drop, from servers that ignore ranges, lie about sizes, or change their files."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.transfer import Stopped, Transfer, TransferError, fetch_file, remote_size
from tests.helpers import ROOT
from tests.helpers.file_server import serve_files

CONTENT = random.Random(0).randbytes(50_000)
OTHER = random.Random(1).randbytes(50_000)
FAST = {"pause": 0.0, "timeout": 5.0}


@pytest.fixture(scope="module", autouse=True)
def no_proxy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.fixture(scope="module")
def shared_server():
    with serve_files() as server:
        yield server


@pytest.fixture
def server(shared_server):
    shared_server.files.clear()
    shared_server.requests.clear()
    return shared_server


def fetch(address, target, **options):
    lines = []
    size = fetch_file(address, target, Transfer(log=lines.append, **{**FAST, **options}))
    assert size == target.stat().st_size
    assert [path.name for path in target.parent.iterdir()] == [target.name]  # no part is left
    return lines


def test_complete_file_is_not_asked_for_again(server, tmp_path):
    address = server.add("a", CONTENT)
    assert fetch(address, tmp_path / "a") == []
    assert fetch(address, tmp_path / "a") == []
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.gets() == [""]


def test_empty_file(server, tmp_path):
    fetch(server.add("a", b""), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b""


def test_dropped_connection_is_continued_at_its_last_byte(server, tmp_path):
    address = server.add("a", CONTENT, drops=[20_000, 0, 5_000])
    lines = fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.gets() == ["", "bytes=20000-", "bytes=20000-", "bytes=25000-"]
    assert lines[0] == f"{address}: the connection ended at byte 20000 of 50000; trying again"
    assert lines[1].endswith("; trying again (1 of 5)")


@settings(max_examples=40)
@given(
    drops=st.lists(st.integers(0, 60_000), max_size=6),
    ranges=st.booleans(),
    etag=st.booleans(),
    last_modified=st.sampled_from(["", "Mon, 01 Jan 2024 00:00:00 GMT"]),
    chunked=st.booleans(),
    statuses=st.lists(st.sampled_from([500, 503, 429]), max_size=2),
)
def test_any_sequence_of_drops_ends_in_identical_bytes(tmp_path_factory, shared_server, drops, ranges, **behavior):
    address = shared_server.add("a", CONTENT, drops=drops, ranges=ranges, **behavior)
    target = tmp_path_factory.mktemp("download") / "a"
    fetch(address, target, retries=10)
    assert target.read_bytes() == CONTENT


def test_server_without_ranges_starts_the_file_over(server, tmp_path):
    address = server.add("a", CONTENT, drops=[30_000], ranges=False)
    fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.gets() == ["", "bytes=30000-"]


def test_progress_counts_bytes_that_are_fetched_again_once(server, tmp_path):
    counts = []
    fetch(server.add("a", CONTENT, drops=[30_000], ranges=False), tmp_path / "a", progress=counts.append)
    assert sum(counts) == len(CONTENT)


def test_server_that_ends_at_the_same_byte_every_time_is_given_up(server, tmp_path):
    """Content-Length says more than there is: at the end of what there is, no attempt gets further."""
    address = server.add("a", CONTENT, length=60_000)
    with pytest.raises(TransferError) as caught:
        fetch(address, tmp_path / "a", retries=2)
    assert str(caught.value).startswith(f"{address}: ") and "3 attempts in a row got no further" in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_missing_file_is_refused_at_once(server, tmp_path):
    with pytest.raises(TransferError, match=r"/nothing: HTTP status 404 \(Not Found\)"):
        fetch(f"{server.address}/nothing", tmp_path / "a")
    assert server.gets() == [""]


def test_busy_server_is_asked_again_and_given_up(server, tmp_path):
    fetch(server.add("a", CONTENT, statuses=[503, 500]), tmp_path / "a")
    address = server.add("b", CONTENT, statuses=[503] * 9)
    with pytest.raises(TransferError, match=r"HTTP status 503 .*; 2 attempts in a row"):
        fetch(address, tmp_path / "b", retries=1)


def test_unreachable_server_is_named_with_the_reason(tmp_path):
    with serve_files() as gone:
        address = f"{gone.address}/a"
    with pytest.raises(TransferError, match="Connection refused; 1 attempt got no further"):
        fetch(address, tmp_path / "a", retries=0)


@pytest.mark.parametrize(
    "behavior",
    [
        {},
        {"etag": False, "last_modified": ""},  # nothing but the size tells the two apart, and it does not
        {"honors_if_range": False},
        {"ranges": False},
        {"chunked": True},
    ],
    ids=lambda behavior: ",".join(behavior) or "ETag",
)
def test_file_that_changes_between_requests_is_not_mixed(server, tmp_path, behavior):
    address = server.add("a", CONTENT, drops=[20_000, 20_000], next_content=OTHER, **behavior)
    fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == OTHER


def test_date_alone_tells_versions_apart(server, tmp_path):
    address = server.add("a", CONTENT, drops=[20_000], etag=False)
    with pytest.raises(TransferError):
        fetch(address, tmp_path / "a", retries=-1)
    server.add("a", OTHER, etag=False, honors_if_range=False, last_modified="Tue, 02 Jan 2024 00:00:00 GMT")
    lines = fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == OTHER
    assert "the file has changed on its server; starting over" in lines[0]


def test_shorter_new_version_starts_over(server, tmp_path):
    address = server.add("a", CONTENT, drops=[20_000], next_content=OTHER[:100], honors_if_range=False)
    lines = fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == OTHER[:100]
    assert "the server has no byte 20000; starting over" in lines[1]


def test_part_of_another_address_is_not_continued(server, tmp_path):
    first = server.add("one/a", CONTENT, drops=[20_000], etag=False)
    with pytest.raises(TransferError):
        fetch(first, tmp_path / "a", retries=-1)
    fetch(server.add("two/a", OTHER, etag=False), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == OTHER


def test_answer_that_begins_at_another_byte_is_not_appended(server, tmp_path):
    address = server.add("a", CONTENT, drops=[20_000, 0], shift=10)
    lines = fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert "starting over" in lines[1]


def test_file_whose_length_only_answers_to_ranges_report_is_complete(server, tmp_path):
    """As of a server that streams what it does not have yet, and serves it from a cache later."""
    address = server.add("a", CONTENT, drops=[20_000, 10_000], chunked_from_start=True)
    lines = fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert lines[1] == f"{address}: the connection ended at byte 30000 of 50000; trying again"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"address": 1, "color": "red"}'])
def test_part_of_an_unreadable_version_starts_over(server, tmp_path, text):
    (tmp_path / "a.part").write_bytes(b"x" * 100)
    (tmp_path / "a.part.json").write_text(text)
    fetch(server.add("a", CONTENT), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT and server.gets() == [""]


def test_file_of_unknown_length_is_refused(server, tmp_path):
    address = server.add("a", CONTENT, length=None)
    with pytest.raises(TransferError, match="does not report how long the file is"):
        fetch(address, tmp_path / "a")


def test_address_that_is_not_http_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected an address that begins with http"):
        fetch("file:///etc/hostname", tmp_path / "a")


def test_target_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "a.part").mkdir()
    with pytest.raises(ValueError, match=r"a\.part: cannot be written: .* free\)"):
        fetch(server.add("a", CONTENT), tmp_path / "a")


def test_full_disk_is_named(server, tmp_path):
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"a\.part: cannot be written: No space left on device \(.* free\)") as caught:
        fetch(server.add("a", CONTENT), tmp_path / "a")
    assert not isinstance(caught.value, TransferError)  # which would be tried again


def test_stopped_transfer_keeps_what_has_arrived(server, tmp_path):
    address = server.add("a", CONTENT, delay=0.02)
    stop = threading.Event()
    with pytest.raises(Stopped):
        fetch(address, tmp_path / "a", stop=stop, progress=lambda num_bytes: num_bytes and stop.set())
    assert 0 < (tmp_path / "a.part").stat().st_size < len(CONTENT)
    fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.gets()[1] != ""


def test_killed_process_is_continued(server, tmp_path):
    address = server.add("a", CONTENT, delay=0.05)
    script = "import sys; from pathlib import Path; from pipelines.data.transfer import Transfer, fetch_file\n"
    script += "fetch_file(sys.argv[1], Path(sys.argv[2]), Transfer())"
    process = subprocess.Popen([sys.executable, "-c", script, address, str(tmp_path / "a")], cwd=ROOT)
    part, deadline = tmp_path / "a.part", time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = part.stat().st_size
    assert 0 < held < len(CONTENT)
    assert json.loads((tmp_path / "a.part.json").read_text())["size"] == len(CONTENT)
    fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.gets()[1] == f"bytes={held}-"


def test_process_killed_before_renaming_does_not_fetch_again(server, tmp_path):
    address = server.add("a", CONTENT, drops=[49_999])
    with pytest.raises(TransferError):
        fetch(address, tmp_path / "a", retries=-1)
    with open(tmp_path / "a.part", "ab") as file:
        file.write(CONTENT[-1:])
    fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.gets() == [""]


def test_remote_size(server):
    address = server.add("a", CONTENT)
    assert remote_size(address, Transfer()) == len(CONTENT)
    assert remote_size(f"{server.address}/nothing", Transfer()) is None
    assert remote_size(server.add("b", CONTENT, length=None), Transfer()) is None
