"""Keyed streams: distinct, repeatable, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import quick

import hf_dr.views.rng as rng_module
from hf_dr.errors import ConfigError
from hf_dr.views.rng import DOMAIN_SCHEDULE, KeyedPermutation, Matching, keyed_rng, keyed_words, view_rng

COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 1000, 1023, 1024, 1025]
words = st.integers(0, 2**64 - 1)

FROZEN_FIRST = (213000021201967259, 4455796210202625458, 2055444239878205049, 10411612076246414556)
FROZEN_LATER = (5229038887165887322, 12916297705796977208, 5998961775191315937, 16222461250110232815)
FROZEN_INTEGERS = [750, 877, 813, 398]
FROZEN_FLOATS = [0.6228129898498876, 0.1354027919827948]
FROZEN_WORDS = [6612919898181497795, 8534864295664477400, 342771873046967456, 1107535704336836546]
FROZEN_PERMUTATION = [0, 7, 8, 5, 6, 2, 4, 3, 9, 1]
FROZEN_MATCHING = [6, 3, 7, 1, 8, 5, 0, 2, 4]
FROZEN_PARTNER = 871241


def head(seed: int, example: int, view: int) -> tuple[int, ...]:
    return tuple(view_rng(seed, example, view).bit_generator.random_raw(4).tolist())


# ------------------------------------------------------------------------------------------------------------- streams


def test_neighbouring_keys_have_distinct_streams() -> None:
    """No key is a sum or mix of its parts: (seed 0, example 1) is not (seed 1, example 0)."""
    keys = [(s, e, v) for s in range(5) for e in range(5) for v in range(5)]
    keys += [(2**64 - 1, 0, 0), (0, 2**64 - 1, 0), (0, 0, 2**64 - 1), (2**32, 0, 0), (0, 2**32, 0), (0, 0, 2**32)]
    streams = {head(*key) for key in keys}
    assert len(streams) == len(keys)
    assert len({word for stream in streams for word in stream}) == 4 * len(keys)


def test_streams_do_not_run_into_their_neighbours() -> None:
    """A long stream of one view shares no word with the beginnings of the next views and examples."""
    long = set(view_rng(0, 0, 0).bit_generator.random_raw(20_000).tolist())
    for key in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
        assert not long & set(view_rng(*key).bit_generator.random_raw(2000).tolist())


def test_purposes_have_distinct_streams() -> None:
    domains = {name: number for name, number in vars(rng_module).items() if name.startswith("DOMAIN_")}
    assert list(domains.values()) == list(range(len(domains))), "they are in the keys of all that was made"
    streams = {keyed_rng(3, domain=d, major=1, minor=2).bit_generator.random_raw(1).item() for d in domains.values()}
    assert len(streams) == len(domains)


@quick
@given(a=st.tuples(words, words, words), b=st.tuples(words, words, words))
def test_streams_are_equal_exactly_for_equal_keys(a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
    assert head(*a) == head(*a)
    assert (head(*a) == head(*b)) == (a == b)


def test_streams_do_not_depend_on_the_order_in_which_they_are_made() -> None:
    keys = [(0, example, view) for example in range(10) for view in range(3)]
    forwards = {key: head(*key) for key in keys}
    np.random.default_rng(0).random(100)  # other generators do not matter either
    backwards = {key: head(*key) for key in reversed(keys)}
    assert forwards == backwards


def test_streams_never_change() -> None:
    """Frozen: another value here makes every published run unrepeatable."""
    assert head(0, 0, 0) == FROZEN_FIRST
    assert head(42, 1_281_166, 399) == FROZEN_LATER
    rng = view_rng(7, 8, 9)
    assert [int(rng.integers(1000)) for _ in range(4)] == FROZEN_INTEGERS
    assert [rng.random() for _ in range(2)] == FROZEN_FLOATS


def test_permutations_and_matchings_never_change() -> None:
    assert KeyedPermutation(10, 0, domain=DOMAIN_SCHEDULE)(np.arange(10)).tolist() == FROZEN_PERMUTATION
    assert [Matching(0, 9, 0, 0).partner(i) for i in range(9)] == FROZEN_MATCHING
    assert Matching(0, 1_281_167, 5, 6).partner(123_456) == FROZEN_PARTNER


# --------------------------------------------------------------------------------------------------------------- words


def test_words_never_change() -> None:
    found = keyed_words(np.array([0, 1, 123_456, 2**40]), 7)
    assert found.dtype == np.int64
    assert found.tolist() == FROZEN_WORDS


def test_words_belong_to_their_index_and_seed_alone() -> None:
    seeds = (1000, 77_777, 2**32, 2**63, 2**64 - 1)
    words = np.stack([keyed_words(np.arange(1000), seed) for seed in seeds])
    assert (words >= 0).all()
    assert len(np.unique(words)) == words.size
    assert keyed_words(np.array([[999]]), 2**32).tolist() == [[words[2, 999]]]
    assert int(keyed_words(np.asarray(3), 77_777)) == words[1, 3]
    for bit in range(63):  # each is as often 0 as 1: 5,000 words, more than four standard errors
        assert abs((words >> bit & 1).mean() - 0.5) < 0.03


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True, None, "0"])
def test_a_seed_is_a_whole_number_of_64_bits(seed: object) -> None:
    for refused in (lambda: keyed_rng(seed, domain=0), lambda: keyed_words(np.arange(2), seed)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"`seed` must be a whole number from 0 to 2\*\*64 - 1, got"):
            refused()


# -------------------------------------------------------------------------------------------------------- permutations


@pytest.mark.parametrize("n", COUNTS)
def test_a_permutation_is_a_bijection_and_knows_its_inverse(n: int) -> None:
    permutation = KeyedPermutation(n, 11, domain=DOMAIN_SCHEDULE, major=2, minor=3)
    images = permutation(np.arange(n))
    assert images.dtype == np.int64
    np.testing.assert_array_equal(np.sort(images), np.arange(n))
    np.testing.assert_array_equal(permutation.inverse(images), np.arange(n))
    np.testing.assert_array_equal(permutation(permutation.inverse(np.arange(n))), np.arange(n))


@quick
@given(n=st.integers(1, 2**40), seed=words, data=st.data())
def test_single_elements_go_there_and_back(n: int, seed: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, n - 1))
    permutation = KeyedPermutation(n, seed, domain=DOMAIN_SCHEDULE)
    there = int(permutation(index))
    assert 0 <= there < n
    assert int(permutation.inverse(there)) == index
    assert permutation(np.array([[index]])).tolist() == [[there]]


def test_permutations_differ_by_every_part_of_the_key() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    seen = {
        tuple(KeyedPermutation(50, seed, domain=domain, major=major, minor=minor)(np.arange(50)).tolist())
        for seed, domain, major, minor in keys
    }
    assert len(seen) == len(keys)


@pytest.mark.parametrize("n", [3, 5, 16])
def test_permutations_send_every_element_everywhere_about_equally_often(n: int) -> None:
    keys = 3000
    counts = np.zeros((n, n), int)
    for key in range(keys):
        counts[np.arange(n), KeyedPermutation(n, key, domain=DOMAIN_SCHEDULE)(np.arange(n))] += 1
    expected = keys / n
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_a_permutation_of_nothing_is_refused() -> None:
    with pytest.raises(AssertionError, match="a permutation needs at least one element, got 0"):
        KeyedPermutation(0, 0, domain=DOMAIN_SCHEDULE)


# ----------------------------------------------------------------------------------------------------------- matchings


@pytest.mark.parametrize("start", [0, 1, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 100, 101])
def test_a_matching_is_symmetric_and_leaves_out_at_most_one(start: int, count: int) -> None:
    for view in range(5):
        matching = Matching(start, start + count, 9, view)
        partners = {example: matching.partner(example) for example in range(start, start + count)}
        assert set(partners.values()) == set(partners)
        assert all(partners[partners[example]] == example for example in partners)
        assert sum(example == partner for example, partner in partners.items()) == count % 2


def test_matchings_differ_by_view_seed_and_block() -> None:
    pairings = {
        tuple(Matching(start, start + 40, seed, view).partner(start + i) - start for i in range(40))
        for start, seed, view in [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (40, 0, 0)]
    }
    assert len(pairings) == 5


def test_every_other_example_is_about_equally_often_the_partner() -> None:
    count, views = 12, 2400
    partners = np.array([[Matching(0, count, 0, view).partner(i) for i in (0, 5, 11)] for view in range(views)])
    expected = views / (count - 1)
    for column, example in enumerate((0, 5, 11)):
        seen = np.bincount(partners[:, column], minlength=count)
        assert seen[example] == 0
        assert abs(np.delete(seen, example) - expected).max() < 5 * np.sqrt(expected)


def test_being_left_out_is_shared_about_equally() -> None:
    left_out = np.zeros(5, int)
    for view in range(1500):
        matching = Matching(0, 5, 0, view)
        left_out[[i for i in range(5) if matching.partner(i) == i]] += 1
    assert left_out.sum() == 1500
    assert abs(left_out - 300).max() < 5 * np.sqrt(300)
