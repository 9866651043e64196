"""What the files of apple/ml-dr hold: a run's configuration, and the views of one image in each other file.

The files are read as data (`hf_dr.generation.ml_dr.plain_pickle`): nothing is executed.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from typing import Any

import numpy as np

from hf_dr.errors import ConfigError, FormatError, did_you_mean
from hf_dr.generation.ml_dr.plain_pickle import read_plain_pickle
from hf_dr.store.json_files import shown
from hf_dr.store.schema import AUG_PREFIX, TEACHER_IDS, TEACHER_LOGPROBS
from hf_dr.teacher.topk import as_stored
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.ops import geometry
from hf_dr.views.ops.base import Op
from hf_dr.views.ops.colour import LEVELLESS, POLICY_OPS, UNSIGNED, RandAugment, rand_augment_magnitude
from hf_dr.views.ops.mixing import CutMix, MixUp

# A file holds some 300 bytes a view; a larger one is none of ml-dr's.
MAX_FILE_BYTES = 1 << 25
MAX_CLASSES = 1 << 20

Columns = dict[str, np.ndarray]


# ml-dr applies its ops in this order, whatever the order in its configuration.
_OPS: dict[str, type[Op] | None] = {
    "uint8": None, "resize": geometry.Resize, "center_crop": geometry.CenterCrop, "random_crop": geometry.RandomCrop,
    "random_resized_crop": geometry.RandomResizedCrop, "random_horizontal_flip": geometry.RandomHorizontalFlip,
    "rand_augment": RandAugment, "to_tensor": None, "random_erase": geometry.RandomErasing, "normalize": None,
    "mixup": MixUp, "cutmix": CutMix,
}  # fmt: skip
_WITHOUT_PARAMS = ("uint8", "center_crop", "to_tensor", "normalize")
_MIXING = ("mixup", "cutmix")
# Settings that change no pixel of a replay: how a parameter was drawn, or a default that is spelt out.
_IMMATERIAL = {
    "mixup": {"div_by"}, "random_erase": {"value", "inplace"}, "normalize": {"mean", "std", "inplace"},
    "resize": {"antialias"}, "random_resized_crop": {"antialias"},
}  # fmt: skip
_ONLY: dict[str, dict[str, Any]] = {
    "random_crop": {"pad_if_needed": False, "padding_mode": "constant"}, "resize": {"max_size": None}
}  # fmt: skip


def expect(ok: bool, where: str, expected: str, found: Any, action: str = "Fetch the files again.") -> None:
    """Raises a FormatError, `where` must `expected`, if it is not `ok`; shows a few parts of what was found."""
    if not ok:
        raise FormatError(f"{where} must {expected}, found {shown(found)}. {action}")


def _numbers(values: Any, kinds: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Turns (nested) lists of plain numbers into an array of a shape; `kinds` are NumPy's: b, i, f."""
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # ragged
        array = np.array(None)
    if array.size == 0 and 0 in shape:
        return np.zeros(shape, kinds[0])
    ok = array.dtype.kind in kinds and array.shape == shape
    expect(ok, where, f"hold {' x '.join(map(str, shape)) or 'one'} numbers", values)
    return array


def read_file(data: bytes, where: str) -> Any:
    """Returns what a file of ml-dr holds: a container of torch.save, or a compressed pickle of joblib.

    Raises:
        FormatError: It is neither, is damaged or too large, or holds anything but plain values.
    """
    try:
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(data)) as container:
                (name,) = (name for name in container.namelist() if name.endswith("/data.pkl"))
                with container.open(name) as file:
                    pickled = file.read(MAX_FILE_BYTES + 1)
        elif data[:1] == b"\x78":
            inflate = zlib.decompressobj()
            pickled = inflate.decompress(data, MAX_FILE_BYTES + 1)
            if len(pickled) <= MAX_FILE_BYTES and not inflate.eof:
                raise EOFError("it breaks off")
        else:
            raise ValueError(f"it begins with {data[:4]!r}")
    except MemoryError:
        raise
    except Exception as error:  # zipfile raises half a dozen types on hostile containers
        raise FormatError(
            f"{where} must be written by torch.save or joblib, but: {type(error).__name__}: {error!s:.200}. Fetch it again."
        ) from error
    if len(pickled) > MAX_FILE_BYTES:
        raise FormatError(f"{where} must hold at most {MAX_FILE_BYTES:,} bytes, found more. Do not trust this file.")
    return read_plain_pickle(pickled, where)


class RunFormat:
    """What the files of one run hold, by the content of its `config.pth.tar`, which messages call `where`.

    Attributes:
        augmentation: ml-dr's ops as ours, in ml-dr's order.
        num_classes: C, where the configuration says so.
        teachers: Names of the ensemble's members, as the configuration has them.

    Raises:
        FormatError: It is no such configuration, or has an op or setting that cannot be replayed.
    """

    def __init__(self, content: Any, where: str) -> None:
        self._where = where
        settings = content.get("reinforce") if isinstance(content, dict) else None
        ops = settings.get("image_augmentation") if isinstance(settings, dict) else None
        if not isinstance(ops, dict) or not all(isinstance(value, dict) for value in ops.values()):
            raise FormatError(f"{where} must have reinforce.image_augmentation, found {shown(content)}. Is it ml-dr's?")
        for name in ops:
            if name not in _OPS:
                raise FormatError(f"{where} has the op `{name}`, which ml-dr does not know.{did_you_mean(name, _OPS)}")
        on = {name: dict(ops[name]) for name in _OPS if name in ops and ops[name].get("enable", True)}
        self.augmentation = Augmentation(
            [op for name, given in on.items() if (op := self._op(name, given)) is not None]
        )
        self.names = [name for name in on if name not in _WITHOUT_PARAMS]
        self._known = {*on, "id2"}
        self.mixes = self.augmentation.mixes
        ops_of_policy = [op for op in self.augmentation.ops if isinstance(op, RandAugment)]
        self._rand_augment = ops_of_policy[0] if ops_of_policy else RandAugment()  # the latter is not asked
        self._levels: dict[tuple[Any, Any], tuple[int, int]] = {}
        self.num_classes: int | None = content.get("num_classes")
        ok = self.num_classes is None or (type(self.num_classes) is int and 0 < self.num_classes <= MAX_CLASSES)
        expect(ok, f"`num_classes` in {where}", f"be from 1 to {MAX_CLASSES:,}", self.num_classes)
        teacher = content.get("teacher")
        named = teacher.get("name") if isinstance(teacher, dict) else None
        self.teachers = named.split(",") if isinstance(named, str) and named else ["unknown"]

    def _op(self, name: str, given: dict[str, Any]) -> Op | None:
        given.pop("enable", None)
        for setting, only in _ONLY.get(name, {}).items():
            value = given.pop(setting, only)
            expect(
                value == only, f"`{setting}` of {name} in {self._where}", f"be {only}", value, "It cannot be replayed."
            )
        given = {key: value for key, value in given.items() if key not in _IMMATERIAL.get(name, ())}
        cls = _OPS[name]
        if cls is None:
            expect(not given, f"{name} in {self._where}", "have no settings", given, "It cannot be replayed.")
            return None
        if name == "random_erase":
            given["value"] = (0, 0, 0)  # whatever is configured, ml-dr writes zeros before normalising
        elif name in _MIXING:
            given.setdefault("p", 1.0)
        if isinstance(given.get("fill"), int):
            given["fill"] = (given["fill"],) * 3
        if isinstance(given.get("padding"), list) and len(given["padding"]) == 1:
            (given["padding"],) = given["padding"]
        try:
            return cls.from_settings(given)
        except ConfigError as error:
            raise FormatError(f"{name} in {self._where} cannot be replayed: {error}") from error

    # ----------------------------------------------------------------------------------------------------- one file

    def num_samples(self, content: Any, number: int, where: str) -> int:
        """Checks the frame of a file and returns its number of views."""
        ok = isinstance(content, tuple) and [type(part) for part in content] == [int, list] and len(content[1]) > 0
        expect(ok, where, "hold a pair (number of the image, views)", content)
        expect(content[0] == number, where, f"be about image {number}, as its name says", content[0])
        return len(content[1])

    def read(self, data: bytes, number: int, where: str, num_views: int, top_k: int, num_classes: int) -> Columns:
        """Reads a file and returns its `columns`; pure, and so is the object: any process may do it."""
        content = read_file(data, where)
        found = self.num_samples(content, number, where)
        expect(found == num_views, where, f"have {num_views} views, as others", found)
        return self.columns(content, top_k, num_classes, where)

    def top_k(self, content: Any, where: str) -> int:
        """Returns the number of classes that the first view's answer keeps."""
        return len(self._answers(content[1][:1], where)[1][0])

    def columns(self, content: Any, top_k: int, num_classes: int, where: str) -> Columns:
        """Returns the columns of a file's V views, (V,) or (V, n): answers, parameters, the partner's number and parameters.

        `num_samples` has checked the frame of `content`, the parsed file.
        """
        samples = content[1]
        probs, ids = self._answers(samples, where)
        columns: Columns = _sorted_answers(probs, ids, top_k, num_classes, where)
        partners, own, other = self._params([sample["params"] for sample in samples], where)
        for name, values in own.items():
            columns |= {AUG_PREFIX + key: value for key, value in self._decoded(name, values, where).items()}
        if not self.mixes:
            return columns
        rows = np.flatnonzero(partners != NO_PARTNER)
        for name, values in other.items():
            for key, value in self._decoded(name, values, where).items():
                stored = np.zeros((len(samples), *value.shape[1:]), value.dtype)
                stored[rows] = value
                columns[f"{AUG_PREFIX}{PARTNER}_{key}"] = stored
        mixed = np.zeros(len(samples), bool)
        if "mixup" in own:
            mixed |= columns[f"{AUG_PREFIX}mixup_lam"] < 1
        if "cutmix" in own:
            mixed |= columns[f"{AUG_PREFIX}cutmix_box"].any(axis=1)
        expect(bool((~mixed | (partners >= 0)).all()), where, "name the partner of each mixed view", "none")
        columns[AUG_PREFIX + PARTNER] = np.where(mixed, partners, NO_PARTNER)
        return columns

    def _answers(self, samples: list[Any], where: str) -> tuple[list[Any], list[Any]]:
        for sample in samples:
            ok = isinstance(sample, dict) and sample.keys() == {"params", "prob"}
            expect(ok, f"each view of {where}", "have `params` and `prob`", sample)
            prob = sample["prob"]
            ok = isinstance(prob, (tuple, list)) and len(prob) == 2 and all(isinstance(p, list) and p for p in prob)
            expect(ok, f"`prob` in {where}", "be a pair of lists", prob)
        return [sample["prob"][0] for sample in samples], [sample["prob"][1] for sample in samples]

    def _params(self, views: list[Any], where: str) -> tuple[np.ndarray, dict[str, list[Any]], dict[str, list[Any]]]:
        """Takes apart the `params` of all views: partners (V,), -1 for none; the images' own; those of the partners.

        The latter hold the views with a partner only, and no mixing: it is the images' own.
        """
        partners: list[Any] = []
        own: dict[str, list[Any]] = {name: [] for name in self.names}
        other: dict[str, list[Any]] = {name: [] for name in self.names if name not in _MIXING}
        length = len(self.names) + self.mixes
        for params in views:
            if isinstance(params, dict):
                unknown = params.keys() - self._known
                expect(not unknown, f"`params` in {where}", f"be of {', '.join(self.names)}", sorted(unknown))
                ok = params.keys() >= set(self.names)
                expect(ok, f"`params` in {where}", f"have {', '.join(self.names)}", params)
                values = [params[name] for name in self.names]
                paired = any(params.get(name) is not None for name in _MIXING)
                partner = params.get("id2") if paired else None
                expect(paired == (partner is not None), f"`params` in {where}", "name the partner, `id2`", params)
                pairs = values  # pairs, whether anything is mixed or not
            else:
                ok = isinstance(params, list) and len(params) == length
                expect(
                    ok, f"`params` in {where}", f"be a dict or a list of {length}, for {', '.join(self.names)}", params
                )
                # The compressed form: the partner first, and pairs only where there is one.
                partner = params[0] if self.mixes else None
                values = params[1:] if self.mixes else params
                pairs = values if partner is not None else [(value,) for value in values]
            partners.append(partner)
            for name, value, pair in zip(self.names, values, pairs, strict=True):
                if name in _MIXING:
                    own[name].append(value)
                    continue
                ok = isinstance(pair, (tuple, list)) and len(pair) >= (1 if partner is None else 2)
                expect(ok and len(pair) <= 2, f"{name} in {where}", "be a pair, the image's and its partner's", pair)
                own[name].append(pair[0])
                if partner is not None:
                    other[name].append(pair[1])
        given = [number for number in partners if number is not None]
        found = _numbers(given, "i", (len(given),), f"the partners in {where}")
        expect(bool((found >= 0).all()), f"the partners in {where}", "be numbers of images", found.tolist())
        numbers = np.full(len(views), NO_PARTNER)
        numbers[[number is not None for number in partners]] = found
        return numbers, own, other

    def _decoded(self, name: str, values: list[Any], where: str) -> Columns:
        """The parameters of one op as our columns, (N,) or (N, n), by the names of `Augmentation.params`."""
        where = f"{name} in {where}"
        count = len(values)
        match name:
            case "resize":
                return {}
            case "random_horizontal_flip":
                return {"flip": _numbers(values, "b", (count,), where)}
            case "random_crop":
                return {"random_crop_offset": _unsigned(_numbers(values, "i", (count, 2), where), where)}
            case "random_resized_crop":
                return {"crop_box": _unsigned(_numbers(values, "i", (count, 4), where), where)}
            case "random_erase":
                boxes = _numbers([(0, 0, 0, 0) if value is None else value for value in values], "i", (count, 4), where)
                boxes = np.where(boxes[:, :1] == -1, 0, boxes)  # where no box fitted
                return {"erasing_box": _unsigned(boxes, where)}
            case "rand_augment":
                pairs = np.array([self._policy(value, where) for value in values], np.int64)
                pairs = pairs.reshape(count, self._rand_augment.num_ops, 2)
                return {"rand_augment_op": pairs[..., 0], "rand_augment_level": pairs[..., 1]}
            case "mixup":
                lams = _numbers([1.0 if value is None else value for value in values], "if", (count,), where)
                expect(bool(((lams >= 0) & (lams <= 1)).all()), where, "be weights from 0 to 1", lams.tolist())
                return {"mixup_lam": np.round(lams * 256) / 256}  # what MixUp can store
            case "cutmix":
                corners = _numbers([_corners(value, where) for value in values], "i", (count, 4), where)
                boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
                boxes = _unsigned(boxes, where)
                return {"cutmix_box": np.where((boxes[:, 2:] == 0).any(axis=1, keepdims=True), 0, boxes)}
        raise AssertionError(name)

    def _policy(self, value: Any, where: str) -> list[tuple[int, int]]:
        """RandAugment's operations of one view as (place in POLICY_OPS, signed level); none at all is Identity."""
        count = self._rand_augment.num_ops
        if value is None:
            return [(0, 0)] * count
        expect(isinstance(value, list) and len(value) == count, where, f"be a list of {count} operations", value)
        levels = []
        for pair in value:
            ok = isinstance(pair, (tuple, list)) and len(pair) == 2 and type(pair[0]) in (int, str)
            expect(ok and type(pair[1]) in (float, int), where, "be pairs of operation and magnitude", pair)
            key = pair[0], pair[1]
            if key not in self._levels:
                self._levels[key] = self._level(*key, where)
            levels.append(self._levels[key])
        return levels

    def _level(self, op: int | str, magnitude: float, where: str) -> tuple[int, int]:
        """Inverts torchvision's table: the level at which it has this magnitude, the configured one first."""
        known = 0 <= op < len(POLICY_OPS) if isinstance(op, int) else op in POLICY_OPS
        expect(known, where, f"use operations of {', '.join(POLICY_OPS)}", op)
        place = op if isinstance(op, int) else POLICY_OPS.index(op)
        name = POLICY_OPS[place]
        policy = self._rand_augment
        size = self.augmentation.size
        signed = name not in UNSIGNED
        # ml-dr used torchvision's first API, in which Solarize's threshold is one of 256 levels of brightness.
        unit = 255 if name == "Solarize" else 1
        for level in (policy.magnitude, *range(policy.num_magnitude_bins)):
            value = unit * rand_augment_magnitude(name, level, policy.num_magnitude_bins, size)
            if math.isclose(abs(magnitude) if signed else magnitude, value, rel_tol=1e-5, abs_tol=1e-5):
                sign = -1 if signed and magnitude < 0 else 1
                return place, 0 if name in LEVELLESS else sign * level
        raise FormatError(
            f"{where} must have a magnitude of torchvision's table for {name} ({policy.num_magnitude_bins} levels), found "
            f"{magnitude}. It cannot be replayed."
        )


def _corners(value: Any, where: str) -> Any:
    """(lam, (r1, c1, r2, c2)) or [lam, r1, c1, r2, c2] without the lam, which is the box's share."""
    if value is None:
        return (0, 0, 0, 0)
    ok = isinstance(value, (tuple, list)) and len(value) in (2, 5)
    expect(ok, where, "be None, or a weight and a box", value)
    return value[1] if len(value) == 2 else value[1:]


def _unsigned(values: np.ndarray, where: str) -> np.ndarray:
    expect(bool(((values >= 0) & (values <= 0xFFFF)).all()), where, "be pixels from 0 to 65,535", values.tolist())
    return values


def _sorted_answers(probs: list[Any], ids: list[Any], top_k: int, num_classes: int, where: str) -> Columns:
    """The answers as columns: checked, and sorted as those of a teacher are."""
    shape = len(probs), top_k
    probs_VK = _numbers(probs, "if", shape, f"the probabilities in {where}").astype(np.float64)
    ids_VK = _numbers(ids, "i", shape, f"the classes in {where}")
    # The sum of float32 softmaxes may be a little above one.
    fits = (probs_VK > 0) & (probs_VK <= 1 + 1e-5)
    expect(bool(fits.all()), f"the probabilities in {where}", "be above 0 and at most 1", probs_VK[~fits][:1].tolist())
    totals = probs_VK.sum(axis=1)
    expect(bool((totals <= 1.001).all()), f"the probabilities in {where}", "add up to at most 1", totals.max())
    classes = (ids_VK >= 0) & (ids_VK < num_classes)
    expect(bool(classes.all()), f"the classes in {where}", f"be below {num_classes}", ids_VK[~classes][:1].tolist())
    distinct = (np.diff(np.sort(ids_VK, axis=1), axis=1) > 0).all()
    expect(bool(distinct), f"the classes in {where}", "be distinct in each view", "equal ones")
    logprobs_VK = np.log(np.minimum(probs_VK, 1)).astype(np.float16)
    ids_VK, logprobs_VK = as_stored(ids_VK, logprobs_VK, num_classes)
    return {TEACHER_IDS: ids_VK, TEACHER_LOGPROBS: logprobs_VK}
