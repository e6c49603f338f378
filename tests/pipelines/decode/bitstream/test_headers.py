"""bit_reader, av1, frame_table: arithmetic of bits and orders against naive implementations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decode.bitstream.av1 import Av1Decoder, Av1Frame, read_temporal_unit
from pipelines.decode.bitstream.bit_reader import BitReader
from pipelines.decode.frame_table import FrameTable, StoredTable, pack_frame_table, unpack_frame_table
from pipelines.decode.mp4_table import SampleTable


def as_bytes(bits: str) -> bytes:
    """Convert a text of bits to bytes, padded with zeros."""
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))


def golomb(number: int) -> str:
    """Return the bits of ue(v) (H.264, table 9-2)."""
    suffix = f"{number + 1:b}"
    return "0" * (len(suffix) - 1) + suffix


CODED_NUMBERS = st.one_of(
    st.tuples(st.just("ue"), st.integers(0, 2**20)),
    st.tuples(st.just("se"), st.integers(-999, 999)),
    st.tuples(st.just("u"), st.integers(0, 255)),
)


@given(st.lists(CODED_NUMBERS, max_size=20))
def test_bit_reader_reads_written_numbers(numbers: list[tuple[str, int]]) -> None:
    bit_text = ""
    for kind, number in numbers:
        mapped = 2 * number - 1 if number > 0 else -2 * number
        bit_text += f"{number:08b}" if kind == "u" else golomb(number if kind == "ue" else mapped)
    bits = BitReader(as_bytes(bit_text))
    for kind, number in numbers:
        actual = bits.read(8) if kind == "u" else bits.golomb() if kind == "ue" else bits.signed_golomb()
        assert actual == number
    with pytest.raises(ValueError):
        bits.read(8)


@given(st.one_of(st.permutations(range(12)), st.permutations(range(80)), st.just([90, *range(90)])))
def test_reorder_depth_counts_frames_that_overtake(order: list[int]) -> None:
    always = np.ones(len(order), bool)
    table = FrameTable(np.array(order), always, always, always, always, always)
    expected = max(sum(earlier > rank for earlier in order[:index]) for index, rank in enumerate(order))
    assert table.reorder_depth == expected or min(table.reorder_depth, expected) > 16


@given(st.permutations(range(9)), st.lists(st.integers(0, 31), min_size=9, max_size=9), st.booleans())
def test_unpack_frame_table_returns_packed_table(order: list[int], flags: list[int], has_byte_ranges: bool) -> None:
    columns = [np.array([flag >> bit & 1 for flag in flags], bool) for bit in range(5)]
    table = FrameTable(np.array(order), *columns, proof="decoded", is_remuxable=has_byte_ranges)
    expected = StoredTable(
        table=table,
        num_packets=9,
        num_bytes=12345,
        has_byte_ranges=has_byte_ranges,
        frame_size=(66, 1),
        sample_table=SampleTable(1 << 40, 9, 8, 7) if has_byte_ranges else None,
    )
    stored = unpack_frame_table(pack_frame_table(expected))
    assert stored[1:] == expected[1:] == (9, 12345, has_byte_ranges, (66, 1), expected.sample_table)
    assert stored.table.proof == "decoded" and stored.table.is_remuxable == has_byte_ranges
    assert (
        stored.table.rank.tolist() == order and stored.table.packet_of_frame.tolist() == table.packet_of_frame.tolist()
    )
    for name in ("is_random_access", "is_closed", "is_reference", "is_output", "is_displayed"):
        assert getattr(stored.table, name).tolist() == getattr(table, name).tolist()


@pytest.mark.parametrize("has_own_size", [False, True])
def test_read_temporal_unit_skips_optional_fields_and_reports_truncation(has_own_size: bool) -> None:
    delay_bits = 7
    sequence = "000" + "0" + "0"  # profile, still picture, reduced header
    sequence += "1" + f"{1:032b}{25:032b}" + "0"  # timing, no equal picture intervals
    sequence += "1" + f"{delay_bits - 1:05b}{1:032b}{9:05b}{11:05b}"  # decoder model: times of 12 bits
    sequence += "1" + f"{1:05b}"  # display delays; two operating points
    for level in (5, 8):
        sequence += f"{0:012b}{level:05b}" + ("1" if level > 7 else "") + "1" + "01" * delay_bits + "1" + "1" + "0101"
    sequence += f"{8:04b}{7:04b}{339:09b}{255:08b}"  # frame size
    sequence += "1" + f"{13:04b}{0:03b}"  # frame numbers of 16 bits
    sequence += "000" + "0000" + "1" + "00" + "1" + "0" + "1"  # tools; integer motion vectors always
    sequence += f"{4:03b}"  # order hints of 5 bits
    frame = "0" + "00" + "1"  # no existing frame, key frame, shown
    frame += f"{77:012b}" + "0" + "1"  # presentation time, CDF updates, screen content tools
    frame += f"{0xFFFF:016b}" + str(int(has_own_size)) + f"{9:05b}"  # frame number, own size, order hint
    frame += "0" + "1" * 40
    sequence_header = as_bytes(sequence)
    units = [(1, sequence_header), (6, as_bytes(frame))]
    packet = b"".join(bytes([kind << 3 | 2, len(data)]) + data for kind, data in units)
    unit = read_temporal_unit(packet, Av1Decoder(b""))
    assert (unit.is_key, unit.num_shown) == (True, 1)
    assert unit.problem == ("frames of a size of their own" if has_own_size else "")
    truncated = bytes([packet[0], 8]) + packet[2 : 2 + 8] + packet[2 + len(sequence_header) :]
    assert read_temporal_unit(truncated, Av1Decoder(b"")).problem == "frame headers that cannot be read"


@given(st.integers(0, 200), st.integers(1, 9), st.integers(0, 2**20))
def test_av1_decoder_reports_missing_shown_frame(first_hint: int, group_size: int, seed: int) -> None:
    """Groups consist of a key frame, a hidden frame that is shown last, and frames between them."""
    rng = np.random.default_rng(seed)
    decoder = Av1Decoder(b"")
    decoder.fields = decoder.fields._replace(hint_bits=7)
    units: list[list[Av1Frame]] = []
    for start in range(first_hint, first_hint + 40, group_size + 1):
        units.append([Av1Frame(is_key=True, is_shown=True, order_hint=start % 128)])
        slot = int(rng.integers(8))
        hidden_hint = (start + group_size) % 128
        hidden = [Av1Frame(is_key=False, is_shown=False, order_hint=hidden_hint, refreshed_slots=1 << slot)]
        for hint in range(start + 1, start + group_size):
            units.append([*hidden, Av1Frame(is_key=False, is_shown=True, order_hint=hint % 128, refreshed_slots=0)])
            hidden = []
        units.append([*hidden, Av1Frame(is_key=False, is_shown=True, shows_existing=True, shown_slot=slot)])
    lost = int(rng.integers(1, len(units) - 1))
    assert all([decoder.add_frame(frame) for unit in units for frame in unit])
    del units[lost]
    decoder.last_shown_hint = None
    is_next = [decoder.add_frame(frame) for unit in units for frame in unit]
    is_last_of_group = (lost + 1) % (group_size + 1) == 0  # the key frame after it may have any order hint
    assert all(is_next) == is_last_of_group or lost % (group_size + 1) == 0
