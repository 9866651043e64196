"""Keyed randomness: every (seed, example, view) owns its own stream of a counter-based generator.

No global state, so results do not depend on batch size, workers, processes, order or restarts. Streams only make runs
repeatable; what was drawn is stored, and the stored parameters are the truth. (NumPy promises the bits of Philox for
ever, the streams of `Generator`'s distributions only within a version: that is why its version is in the fingerprint.)
"""

from __future__ import annotations

import numpy as np

from hf_dr.errors import ConfigError

# One domain per purpose: streams of different purposes never overlap, whatever their counters.
DOMAIN_VIEW = 0
DOMAIN_MATCHING = 1
DOMAIN_SCHEDULE = 2
DOMAIN_VERIFY = 3
DOMAIN_ORDER = 4
DOMAIN_CORRUPTION = 5
DOMAIN_MIXING = 6
DOMAIN_SIGNAL = 7
DOMAIN_SPLIT = 8


def keyed_rng(seed: int, *, domain: int, major: int = 0, minor: int = 0) -> np.random.Generator:
    """Returns the generator that belongs to a key; the same key gives the same stream, on every machine.

    Args:
        seed: Seed of the run, 0 <= seed < 2**64.
        domain: One of the `DOMAIN_*` constants.
        major: First half of the counter, e.g. the example, 0 <= major < 2**64.
        minor: Second half of the counter, e.g. the view, 0 <= minor < 2**64.

    Raises:
        ConfigError: The seed is out of range.
    """
    check_seed(seed)
    # The two low words of the 256-bit counter are left to the stream: 2**128 draws before two keys could meet.
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, domain], np.uint64), counter=np.array([0, 0, minor, major], np.uint64))
    )


def check_seed(seed: object) -> None:
    """Refuses what is no key of the randomness, a whole number from 0 to 2**64 - 1, with a ConfigError."""
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise ConfigError(f"`seed` must be a whole number from 0 to 2**64 - 1, got {seed!r:.80}. Choose another.")


def view_rng(seed: int, example: int, view: int) -> np.random.Generator:
    """Returns the generator from which the parameters of one view of one example are drawn."""
    return keyed_rng(seed, domain=DOMAIN_VIEW, major=example, minor=view)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit words with the finaliser of SplitMix64 (Steele et al., OOPSLA 2014); wraps modulo 2**64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_words(index: np.ndarray, seed: int) -> np.ndarray:
    """Returns 63 keyed bits for each index, int64: for choices that many rows make at once, without a generator each."""
    check_seed(seed)
    with np.errstate(over="ignore"):
        return (
            _mix(_mix(np.asarray(index, np.uint64)) ^ _mix(np.asarray([seed], np.uint64))[0]) >> np.uint64(1)
        ).astype(np.int64)


class KeyedPermutation:
    """A pseudo-random permutation of range(n) that answers single elements in O(1) time and memory.

    A balanced Feistel network over the smallest even number of bits that holds n, with cycle walking for the values
    that fall outside. A stored permutation of 1.28 million examples for each of 400 views would take 4 GB.
    """

    ROUNDS = 6

    def __init__(self, n: int, seed: int, *, domain: int, major: int = 0, minor: int = 0) -> None:
        if n < 1:
            raise AssertionError(f"a permutation needs at least one element, got {n}")
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._low = np.uint64((1 << int(self._half)) - 1)
        rng = keyed_rng(seed, domain=domain, major=major, minor=minor)
        self._keys = rng.bit_generator.random_raw(self.ROUNDS)

    def __call__(self, index: np.ndarray | int) -> np.ndarray:
        """Returns where each index goes, int64, same shape."""
        return self._walk(index, self._keys, inverse=False)

    def inverse(self, index: np.ndarray | int) -> np.ndarray:
        """Returns what each index came from: `inverse(self(i)) == i`."""
        return self._walk(index, self._keys[::-1], inverse=True)

    def _walk(self, index: np.ndarray | int, keys: np.ndarray, inverse: bool) -> np.ndarray:
        # The domain of the network holds at most 4 n values, so a walk leaves it after 4 steps on average.
        out = self._feistel(np.asarray(index, np.uint64), keys, inverse)
        outside = out >= self.n
        while outside.any():
            out = np.where(outside, self._feistel(out, keys, inverse), out)
            outside = out >= self.n
        return out.astype(np.int64)

    def _feistel(self, x: np.ndarray, keys: np.ndarray, inverse: bool) -> np.ndarray:
        left, right = x >> self._half, x & self._low
        with np.errstate(over="ignore"):
            for key in keys:
                if inverse:
                    left, right = right ^ (_mix(left ^ key) & self._low), left
                else:
                    left, right = right, left ^ (_mix(right ^ key) & self._low)
        return (left << self._half) | right


class Matching:
    """A keyed random perfect matching of the examples `start <= i < stop`, one for each view number.

    `partner(i)` is symmetric: the partner of i's partner is i. When the count is odd, one example is its own partner.
    """

    def __init__(self, start: int, stop: int, seed: int, view: int) -> None:
        self.start = start
        self._permutation = KeyedPermutation(stop - start, seed, domain=DOMAIN_MATCHING, major=start, minor=view)

    def partner(self, example: int) -> int:
        """Returns the example with which `example` is mixed in this view."""
        return int(self.partners(np.asarray(example)))

    def partners(self, examples: np.ndarray) -> np.ndarray:
        """Returns the partner of each example, int64, same shape."""
        positions = self._permutation(examples - self.start) ^ 1  # positions 2k and 2k + 1 form a pair
        alone = positions >= self._permutation.n
        found = self._permutation.inverse(np.where(alone, 0, positions)) + self.start
        return np.where(alone, examples, found)

    def pairs(self) -> np.ndarray:
        """Returns all examples, int64, partners side by side; an odd one out comes last."""
        return self._permutation.inverse(np.arange(self._permutation.n)) + self.start
