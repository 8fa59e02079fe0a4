"""Near-duplicates: the search equals a comparison of all pairs; prints tell pictures apart and copies not."""

import io
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from stages.corpora.hash_index import HashIndex
from stages.corpora.images import open_image
from stages.corpora.print_table import MOST_BITS, MOST_DIFFERENCE
from stages.corpora.prints import ImagePrint, make_print
from stages.corpora.rows import make_canonical_row
from stages.corpora.spool import RowSpool

HASHES = st.integers(0, 2**64 - 1)


def near_hashes(base: int, flips: list[int]) -> int:
    for bit in flips:
        base ^= 1 << bit
    return base


CLUSTERS = st.lists(
    st.builds(near_hashes, st.sampled_from([0, 2**64 - 1, 0xF0F0]), st.lists(st.integers(0, 63), max_size=9)) | HASHES,
    max_size=25,
    unique=True,
)


@given(CLUSTERS, CLUSTERS, st.integers(0, 12))
def test_the_search_finds_what_a_comparison_of_all_pairs_finds(left: list[int], right: list[int], most: int) -> None:
    index = HashIndex(np.array(right, np.uint64), most)
    found = [
        pair
        for ones, others in index.iter_pairs(np.array(left, np.uint64))
        for pair in zip(ones.tolist(), others.tolist(), strict=True)
    ]
    wanted = [
        (one, other)
        for one, other in product(range(len(left)), range(len(right)))
        if (left[one] ^ right[other]).bit_count() <= most
    ]
    assert sorted(found) == wanted


def test_many_equal_bands_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.corpora.hash_index.MOST_PAIRS", 7)
    hashes = np.arange(40, dtype=np.uint64)
    pairs = [
        pair
        for ones, others in HashIndex(hashes, 1).iter_pairs(hashes)
        for pair in zip(ones.tolist(), others.tolist(), strict=True)
    ]
    assert sorted(pairs) == [(a, b) for a in range(40) for b in range(40) if (a ^ b).bit_count() <= 1]


def draw_photo(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Soft shapes in colour, as photos have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(picture: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def is_near(one: ImagePrint, other: ImagePrint) -> bool:
    pixels = [np.frombuffer(each.thumbnail, np.uint8).astype(float) for each in (one, other)]
    difference = float(np.sqrt(((pixels[0] - pixels[1]) ** 2).mean()))
    return (one.bits ^ other.bits).bit_count() <= MOST_BITS and difference <= MOST_DIFFERENCE


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_of_other_size_quality_and_brightness_is_near_and_another_picture_is_not(seed: int) -> None:
    picture = draw_photo(seed)
    own = make_print(open_image(save(picture, "PNG")))
    copies = [
        save(picture, quality=30),
        save(picture.resize((160, 120)), quality=85),
        save(picture.resize((1024, 768), Image.Resampling.LANCZOS), quality=75),
        save(ImageEnhance.Brightness(picture).enhance(1.03), "PNG"),
    ]
    assert all(is_near(own, make_print(open_image(copy))) for copy in copies)
    others = [make_print(draw_photo(seed + 1000 + n)) for n in range(20)]
    assert not any(is_near(own, other) for other in others)
    flat = [make_print(Image.new("RGB", (30, 20), (seed, grey, 90))) for grey in (10, 60)]
    assert flat[0].bits == flat[1].bits
    assert not is_near(*flat)


def test_the_nearest_held_out_image_is_named_and_those_of_equal_hash_are_told_apart(tmp_path: Path) -> None:
    spool = RowSpool(tmp_path)
    shades = {"test": [10, 100, 180], "validation": [60], "warm_start": [12, 61, 140], "imitation": [101, 240]}
    for split, greys in shades.items():
        for grey in greys:
            picture = Image.new("RGB", (32, 32), (grey, grey, grey))
            row = make_canonical_row(f"{split} {grey}", [save(picture, "PNG")], [], "a", "s", "k")
            spool.assign(spool.put(row, prints=[make_print(picture)]), split)
            spool.own(split, row["image_sha256"])
    assert spool.prints.search(("warm_start", "imitation"), ("validation", "test")) == 3
    found = [(name, other, near.split, near.difference) for near, name, other in spool.prints.iter_near()]
    assert sorted(found) == [
        ("imitation 101", "test 100", "test", 1.0),
        ("warm_start 12", "test 10", "test", 2.0),
        ("warm_start 61", "validation 60", "validation", 1.0),
    ]
    assert [difference for *_, difference in found] == [1.0, 1.0, 2.0]
    assert spool.prints.count_near() == {"test": 2, "validation": 1}
    assert spool.prints.search((), ("validation", "test")) == 0
    assert spool.prints.search(None, ("validation", "test")) == 3


def test_hashes_of_all_sizes_come_back(tmp_path: Path) -> None:
    hashes = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    spool = RowSpool(tmp_path)
    for number, bits in enumerate([*hashes, 0]):
        row = make_canonical_row(f"{number}", [bytes([number])], [], "a", "s", "k")
        spool.assign(spool.put(row, prints=[ImagePrint(bits, bytes([40 * number] * 768))]), "test")
        spool.own("test", row["image_sha256"])
        row = make_canonical_row(f"copy of {number}", [bytes([99, number])], [], "a", "s", "k")
        spool.assign(spool.put(row, prints=[ImagePrint(bits, bytes([40 * number + 1] * 768))]), "imitation")
    assert spool.prints.search(("imitation",), ("test",)) == 6
    pairs = {(name, other) for _, name, other in spool.prints.iter_near()}
    assert pairs == {(f"copy of {number}", f"{number}") for number in range(6)}
