"""pipelines.decode.bitstream.bit_reader, av1, frame_table: arithmetic of bits and orders, against naive ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decode.bitstream.av1 import Av1Frame, Av1Sequence, av1_temporal_unit
from pipelines.decode.bitstream.bit_reader import BitReader
from pipelines.decode.frame_table import FrameTable, pack, unpack


def as_bytes(bits: str) -> bytes:
    """Bits as text, padded with zeros to whole bytes."""
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def golomb(number: int) -> str:
    """ue(v), as H.264's table 9-2 has it."""
    suffix = f"{number + 1:b}"
    return "0" * (len(suffix) - 1) + suffix


KINDS = st.one_of(
    st.tuples(st.just("ue"), st.integers(0, 2**20)),
    st.tuples(st.just("se"), st.integers(-999, 999)),
    st.tuples(st.just("u"), st.integers(0, 255)),
)


@given(st.lists(KINDS, max_size=20))
def test_numbers_are_read_as_they_were_written(numbers: list[tuple[str, int]]) -> None:
    written = ""
    for kind, number in numbers:
        mapped = 2 * number - 1 if number > 0 else -2 * number
        written += f"{number:08b}" if kind == "u" else golomb(number if kind == "ue" else mapped)
    bits = BitReader(as_bytes(written))
    for kind, number in numbers:
        got = bits.read(8) if kind == "u" else bits.golomb() if kind == "ue" else bits.signed_golomb()
        assert got == number
    with pytest.raises(ValueError):
        bits.read(8)


@given(st.one_of(st.permutations(range(12)), st.permutations(range(80)), st.just([90, *range(90)])))
def test_the_depth_is_the_most_frames_that_overtake_another(order: list[int]) -> None:
    always = np.ones(len(order), bool)
    table = FrameTable(np.array(order), always, always, always, always, always)
    depth = max(sum(earlier > rank for earlier in order[:at]) for at, rank in enumerate(order))
    assert table.depth == depth or min(table.depth, depth) > 16


@given(st.permutations(range(9)), st.lists(st.integers(0, 31), min_size=9, max_size=9), st.booleans())
def test_a_table_comes_back_from_its_text(order: list[int], flags: list[int], in_ranges: bool) -> None:
    columns = [np.array([flag >> bit & 1 for flag in flags], bool) for bit in range(5)]
    table = FrameTable(np.array(order), *columns, proof="decoded", is_remuxable=in_ranges)
    stored = unpack(pack(table, 9, 12345, in_ranges, (66, 1)))
    assert (stored.num_packets, stored.size, stored.in_ranges, stored.frame_size) == (9, 12345, in_ranges, (66, 1))
    assert stored.table.proof == "decoded" and stored.table.is_remuxable == in_ranges
    assert stored.table.rank.tolist() == order and stored.table.frames.tolist() == table.frames.tolist()
    for name in ("is_random_access", "is_closed", "is_reference", "is_output", "is_displayed"):
        assert getattr(stored.table, name).tolist() == getattr(table, name).tolist()


@pytest.mark.parametrize("has_own_size", [False, True])
def test_av1_with_a_clock_operating_points_and_frame_numbers(has_own_size: bool) -> None:
    delay_bits = 7
    sequence = "000" + "0" + "0"  # profile, still picture, reduced header
    sequence += "1" + f"{1:032b}{25:032b}" + "0"  # a clock, no equal intervals
    sequence += "1" + f"{delay_bits - 1:05b}{1:032b}{9:05b}{11:05b}"  # decoder model: times of 12 bits
    sequence += "1" + f"{1:05b}"  # display delays; two operating points
    for level in (5, 8):
        sequence += f"{0:012b}{level:05b}" + ("1" if level > 7 else "") + "1" + "01" * delay_bits + "1" + "1" + "0101"
    sequence += f"{8:04b}{7:04b}{339:09b}{255:08b}"  # the size
    sequence += "1" + f"{13:04b}{0:03b}"  # frame numbers of 16 bits
    sequence += "000" + "0000" + "1" + "00" + "1" + "0" + "1"  # tools; integer vectors as the sequence says: yes
    sequence += f"{4:03b}"  # order hints of 5 bits
    frame = (
        "0"
        + "00"
        + "1"
        + f"{77:012b}"
        + "0"
        + "1"
        + f"{0xFFFF:016b}"
        + str(int(has_own_size))
        + f"{9:05b}"
        + "0"
        + "1" * 40
    )
    units = [(1, as_bytes(sequence)), (6, as_bytes(frame))]
    packet = b"".join(bytes([kind << 3 | 2, len(data)]) + data for kind, data in units)
    unit = av1_temporal_unit(packet, Av1Sequence(b""))
    assert (unit.is_key, unit.shown) == (True, 1)
    assert unit.problem == ("frames of a size of their own" if has_own_size else "")
    cut = packet[: 2 + 8] + packet[2 + len(units[0][1]) :]
    cut = bytes([cut[0], 8]) + cut[2:]
    assert av1_temporal_unit(cut, Av1Sequence(b"")).problem == "frame headers that cannot be read"


@given(st.integers(0, 200), st.integers(1, 9), st.integers(0, 2**20))
def test_av1_of_which_a_shown_frame_is_missing_is_noticed(first: int, group: int, seed: int) -> None:
    """Groups of a key frame, a hidden frame that is shown last, and frames between."""
    rng = np.random.default_rng(seed)
    sequence = Av1Sequence(b"")
    sequence.fields = sequence.fields._replace(hint_bits=7)
    units: list[list[Av1Frame]] = []
    for start in range(first, first + 40, group + 1):
        units.append([Av1Frame(True, True, hint=start % 128)])
        slot = int(rng.integers(8))
        hidden = [Av1Frame(False, False, hint=(start + group) % 128, refreshed=1 << slot)]
        for place in range(start + 1, start + group):
            units.append([*hidden, Av1Frame(False, True, hint=place % 128, refreshed=0)])
            hidden = []
        units.append([*hidden, Av1Frame(False, True, shows_existing=True, slot=slot)])
    lost = int(rng.integers(1, len(units) - 1))
    assert all([sequence.follow(frame) for unit in units for frame in unit])
    del units[lost]
    sequence.last_shown = None
    found = [sequence.follow(frame) for unit in units for frame in unit]
    is_last_of_group = (lost + 1) % (group + 1) == 0  # the key frame after it may have any place
    assert all(found) == is_last_of_group or lost % (group + 1) == 0
