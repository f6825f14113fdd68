"""The checksum of tfrecord files: CRC-32C (Castagnoli), computed by NumPy for many parts of a record at once."""

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # bits reversed
_LANE = 256
"""Bytes in each of the parts that are computed at the same time."""


def masked_crc32c(data: bytes) -> int:
    """Returns the masked CRC-32C of a record, as tfrecord files store it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C of some bytes (RFC 3720, appendix B.4)."""
    if len(data) < 16 * _LANE:
        table, crc = _table_as_list(), 0xFFFFFFFF
        for byte in data:
            crc = table[(crc ^ byte) & 255] ^ crc >> 8
        return crc ^ 0xFFFFFFFF
    # The checksum without the two inversions is linear, and zeros in front of the data do not change it. Inverting the
    # first four bytes replaces the inversion at the beginning.
    lanes = -(-len(data) // _LANE)
    padded = np.zeros(lanes * _LANE, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    start = len(padded) - len(data)
    padded[start : start + 4] ^= 255
    parts, crc = _advanced(np.zeros(lanes, np.uint32), padded.reshape(lanes, _LANE).T).tolist(), 0
    low, second, third, high = _shifts()
    for part in parts:
        crc = low[crc & 255] ^ second[crc >> 8 & 255] ^ third[crc >> 16 & 255] ^ high[crc >> 24] ^ part
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> np.ndarray:
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(_POLYNOMIAL), crc >> 1).astype(np.uint32)
    return crc


@functools.cache
def _table_as_list() -> list[int]:
    return _table().tolist()


@functools.cache
def _shifts() -> list[list[int]]:
    """Returns what `_LANE` zeros make of each value of each of the four bytes of a checksum, lowest byte first."""
    states = (np.arange(256, dtype=np.uint32)[None] << np.array([[0], [8], [16], [24]], np.uint32)).reshape(-1)
    return _advanced(states, np.zeros((_LANE, 1), np.uint8)).reshape(4, 256).tolist()


def _advanced(crc: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the checksums after one more byte from each of the columns."""
    table = _table()
    for column in columns:
        crc = table[(crc ^ column) & 255] ^ crc >> 8
    return crc
