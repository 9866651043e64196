"""The card of a "+" dataset: README.md, generated from provenance, data and findings, next to what people write into it.

A configuration's part of the card follows from that configuration alone, so several people can push theirs in any order;
what is said once for all of them (head, foot) depends on none. `hf_dr.store.readme` does the editing.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features
from datasets.splits import SplitDict, SplitInfo

from hf_dr.errors import ConfigError, FormatError
from hf_dr.files import held, write_whole
from hf_dr.store import readme, schema
from hf_dr.store.card_texts import FOOT_TEXT, HEAD_TEXT
from hf_dr.store.configs import config_names
from hf_dr.store.findings import Statistics, Students, Verification, has_contact_sheet, read_finding, save_finding
from hf_dr.store.provenance import Provenance
from hf_dr.store.readme import Data
from hf_dr.store.schema import LICENSES, PROVENANCE_FILE, is_reserved, is_safe_name
from hf_dr.store.shards import check_shards, read_features, read_marker
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, TOPK
from hf_dr.text import code, counted, format_bytes, inline, is_commit, is_hub_id, markdown_table, percent, shown_text
from hf_dr.views.ops.base import OPS

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
TAGS = ("dataset-reinforcement", "arxiv:2303.08983")


# ------------------------------------------------------------------------------------------------------ configurations


@dataclass(frozen=True)
class CardConfig:
    """What the card says about a configuration; of what was not looked for there is None.

    One that is planned has no `features` yet; of its provenance only what is known before a run is shown.
    """

    provenance: Provenance
    features: Features | None = None
    num_bytes: int = 0
    """Size of its columns in memory, as Arrow."""
    file_bytes: int = 0
    """Size of all shards."""
    statistics: Statistics | None = None
    verification: Verification | None = None
    students: Students | None = None
    has_contact_sheet: bool = False

    @property
    def is_planned(self) -> bool:
        """Whether it was not made yet."""
        return self.features is None


def card_config(config: Path) -> CardConfig:
    """Reads a finished configuration of a local "+" dataset from its folder, with what was found out about it.

    A FormatError if it does not follow the format or is not finished, or a finding is malformed or of another run.
    """
    provenance = Provenance.read(config)
    if provenance.config_name != config.name:
        raise FormatError(
            f"{config} must hold the configuration of its name, found `{provenance.config_name}`. Rename the folder."
        )
    shards = check_shards(config, provenance)
    markers = [read_marker(path) for path in shards]
    return CardConfig(
        provenance=provenance,
        features=read_features(shards[0]),
        num_bytes=sum(marker.num_bytes for marker in markers),
        file_bytes=sum(marker.file_bytes for marker in markers),
        statistics=read_finding(config, provenance.fingerprint, Statistics),
        verification=read_finding(config, provenance.fingerprint, Verification),
        students=read_finding(config, provenance.fingerprint, Students),
        has_contact_sheet=has_contact_sheet(config, provenance.fingerprint),
    )


def _finished_configs(folder: Path) -> dict[str, CardConfig]:
    """Reads the finished configurations; warns of one that cannot be read, which stands in the card as it did."""
    configs = {}
    for name in config_names(folder):
        try:
            if all((folder / name / shard).is_file() for shard in Provenance.read(folder / name).shard_names):
                configs[name] = card_config(folder / name)
        except FormatError as error:
            logger.warning("The card is written without news of `%s`: %s", name, error)
    return configs


def write_card(folder: Path) -> None:
    """Writes the card of a local "+" dataset for its finished configs; what people wrote, and other metadata, stays."""
    path = folder / CARD_FILE
    with held(folder / ".card.lock", "another configuration that is finished at the same time"):
        write_whole(path, update_card(read_card(path), _finished_configs(folder), name=folder.resolve().name))


def keep_finding(config: Path, fingerprint: str, finding: Statistics | Verification | Students) -> None:
    """Keeps what was found out about the run of `fingerprint` next to its shards, and shows it in the card."""
    save_finding(config, fingerprint, finding)
    write_card(config.parent)


def check_card(folder: Path) -> None:
    """Checks before a run that `write_card` can write after it; see `update_card` for what it raises."""
    update_card(read_card(folder / CARD_FILE), {}, name=folder.resolve().name)


def read_card(path: Path) -> str | None:
    """Returns the text of a card, UTF-8; None where there is none."""
    try:
        return path.read_bytes().decode() if path.is_file() else None  # bytes: line ends stay as they are
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} must be UTF-8, but: {error}. Fix it, or move it away.") from error


def update_card(
    existing: str | None, configs: Mapping[str, CardConfig], *, name: str, revision: str | None = None
) -> str:
    """Returns the card's whole text with these configurations; all that is not generated stays as it is.

    Doing it twice changes nothing, and configurations may come one by one in any order. The head and the foot are put only
    into a card that has no generated part yet: who deletes them, with their markers, has no need of them.

    Args:
        existing: The card as it is; None where there is none.
        configs: The configurations, by name. A planned one gives a section without what only a run can tell, and no metadata
            of files.
        name: Hub id of the dataset or its folder's name, as it stands in the code to copy.
        revision: The branch at the Hub, as it stands there too; None for `main`.

    Raises:
        FormatError: The existing card's YAML cannot be edited, or a marker of a generated part is damaged.
        ConfigError: `name` cannot stand in a card.
    """
    if not name.isprintable() or "`" in name or "<!--" in name:
        raise ConfigError(f"a dataset's name must be printable, without ` or <!--, got {name!r}. Rename it.")
    existing = existing or ""
    newline = readme.newline_of(existing)
    opening, metadata, closing, body = readme.split_readme(existing)
    metadata = readme.edit_yaml(metadata, partial(_metadata, configs), _KEYS, newline)
    if not body.strip():
        body = f"{body or newline}# {inline(name.rpartition('/')[2])}{newline}"
    there = readme.part_names(body)
    parts = {key: text for key, text in ((_HEAD, HEAD_TEXT), (_FOOT, FOOT_TEXT)) if key in there or not there}
    parts |= {f"{_CONFIG} {key}": _section(config, name, revision) for key, config in configs.items()}
    return opening + metadata + closing + readme.merge_parts(body, parts, _rank, newline)


def keep_configs(existing: str, names: Collection[str]) -> str:
    """Returns a card without the metadata and the generated parts of all configurations but these."""

    def kept(data: Data) -> Data:
        entries = {key: _entries(data, key) for key in (_INFO, _CONFIGS) if key in data}
        return {
            key: [{"config_name": name, **entry} for name, entry in named.items() if name in names]
            for key, named in entries.items()
            if not named.keys() <= set(names)
        }

    opening, metadata, closing, body = readme.split_readme(existing)
    metadata = readme.edit_yaml(metadata, kept, _KEYS, readme.newline_of(existing))
    gone = [part for part in readme.part_names(body) if part.startswith(f"{_CONFIG} ") and part.split()[1] not in names]
    return opening + metadata + closing + readme.drop_parts(body, gone)


def _metadata_of(card: str | None) -> Data:
    return {} if card is None else readme.read_entries(readme.split_readme(card)[1])[1]


def names_configs(card: str | None) -> bool:
    """Tells whether a card has `configs:`, without which a repository's files are read as one dataset."""
    return bool(_metadata_of(card).get(_CONFIGS))


def has_config_elsewhere(card: str | None, name: str) -> bool:
    """Tells whether a card has a configuration of this name whose data is not in the folder of this name."""
    entry = _entries(_metadata_of(card), _CONFIGS).get(name)
    if entry is None:
        return False
    files = entry.get("data_files")
    listed = files if isinstance(files, list) else [files]
    paths = [file.get("path") if isinstance(file, dict) else file for file in listed]
    return not all(isinstance(path, str) and path.startswith(f"{name}/") for path in paths)


_HEAD, _FOOT, _CONFIG = "head", "foot", "config"


def _rank(part: str) -> tuple[int, str]:
    return {_HEAD: 0, _FOOT: 2}.get(part, 1), part


# ---------------------------------------------------------------------------------------------------------------- YAML

# Generated keys, in the order in which they come into a card that has none of them.
_LICENSE, _TASKS, _SIZES, _SOURCES, _TAGS = "license", "task_categories", "size_categories", "source_datasets", "tags"
_INFO, _CONFIGS = "dataset_info", "configs"
_KEYS = (_LICENSE, _TASKS, _SIZES, _SOURCES, _TAGS, _INFO, _CONFIGS)
GENERATED_KEYS = _KEYS[1:]
"""Those of the metadata that nobody writes by hand: all but the licence."""
# The Hub's list, as in huggingface_hub's DatasetCardData.
_SIZE_CATEGORIES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
)  # fmt: skip


def size_category(num_rows: int) -> str:
    """Returns the Hub's size category of a dataset."""
    return _SIZE_CATEGORIES[min(max(len(str(num_rows)) - 3, 0), len(_SIZE_CATEGORIES) - 1)]


def _metadata(configs: Mapping[str, CardConfig], data: Data) -> Data:
    """Returns the generated keys with their new values, merged with what the card has."""
    bases = [config.provenance.base for config in configs.values()]
    finished = {name: config for name, config in configs.items() if not config.is_planned}
    tags, sources = _texts(data, _TAGS), _texts(data, _SOURCES)
    wanted: Data = {_TAGS: [*tags, *(tag for tag in TAGS if tag not in tags)]}
    if data.get(_TASKS) is None:
        wanted[_TASKS] = ["image-classification"]
    licenses = {shown_text(license, 100) for base in bases if isinstance(license := base.get("license"), str)}
    if data.get(_LICENSE) is None and len(licenses) == 1 and LICENSES not in min(licenses):  # the Hub knows single ones
        wanted[_LICENSE] = licenses.pop()
    ids = {str(base.get("id")) for base in bases if is_hub_id(base.get("id"))}
    if ids - set(sources):
        wanted[_SOURCES] = sorted({*sources, *ids})
    infos, files = _entries(data, _INFO), _entries(data, _CONFIGS)
    if finished:
        infos |= {name: _info(config) for name, config in finished.items()}
        for name, config in finished.items():
            split = config.provenance.split
            files[name] = {**files.get(name, {}), "data_files": [{"split": split, "path": f"{name}/{split}-*"}]}
        listed = [{"config_name": name, **info} for name, info in sorted(infos.items())]
        if len(listed) == 1:  # as `datasets` writes it
            listed = [{key: value for key, value in listed[0].items() if (key, value) != ("config_name", "default")}]
        wanted[_INFO] = listed[0] if len(listed) == 1 else listed
        wanted[_CONFIGS] = [{"config_name": name, **entry} for name, entry in sorted(files.items())]
        wanted[_SIZES] = [size_category(max(map(_num_rows, infos.values())))]
    return wanted


def _texts(data: Data, key: str) -> list[str]:
    value = data.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError(f"`{key}` in the card's YAML must be a list of texts, found {value!r:.80}. Fix it.")
    return value


def _entries(data: Data, key: str) -> dict[str, Data]:
    """Returns the list of configurations under a key, by name and without it."""
    value = data.get(key)
    value = [] if value is None else [value] if isinstance(value, dict) and key == _INFO else value
    found: dict[str, Data] = {}
    unnamed = "default" if key == _INFO else None
    for entry in value if isinstance(value, list) else [value]:
        name = entry.get("config_name", unnamed) if isinstance(entry, dict) and isinstance(value, list) else None
        if not isinstance(name, str) or name in found:
            raise FormatError(
                f"`{key}` in the card's YAML must be a list of configurations, each with another `config_name`, found "
                f"{entry!r:.80}. Fix it."
            )
        found[name] = {field: content for field, content in entry.items() if field != "config_name"}
    return found


def _info(config: CardConfig) -> Data:
    provenance = config.provenance
    split = SplitInfo(provenance.split, config.num_bytes, provenance.num_rows)
    info = DatasetInfo(
        features=config.features,
        splits=SplitDict({provenance.split: split}),
        download_size=config.file_bytes,
        dataset_size=config.num_bytes,
    )
    plain: Data = json.loads(json.dumps(info._to_yaml_dict()))  # lists in place of tuples, as a card gives them back
    return plain


def _num_rows(info: Data) -> int:
    splits = info.get("splits")
    listed = splits if isinstance(splits, list) else []
    counts = [split.get("num_examples") for split in listed if isinstance(split, dict)]
    return sum(count for count in counts if isinstance(count, int))


# ---------------------------------------------------------------------------------------------------------------- text


def is_noncommercial(license: object) -> bool:
    """Whether the name of a licence says that it forbids commercial use: `cc-by-nc-4.0`."""
    words = re.split(r"[^a-z0-9]+", str(license).lower())
    return "nc" in words or "noncommercial" in "".join(words)


def _linked(value: object, kind: str = "") -> str:
    return f"[{value}](https://huggingface.co/{kind}{value})" if is_hub_id(value) else inline(value)


def _section(config: CardConfig, name: str, revision: str | None) -> str:
    """Returns all that the card says about one configuration."""
    title = config.provenance.config_name
    parts = [f"## {title}", _what_it_is(config), _how_to_use(config, name, revision), _settings(config)]
    parts += ["### Teachers", *_teachers(config)]
    if config.statistics is not None:
        parts += ["### Statistics", *_statistics(config, config.statistics)]
    if config.verification is not None:
        parts += ["### Verification", _verification(config.verification)]
    if config.students is not None:
        head, *rows = ([*map(inline, row)] for row in [config.students.head, *config.students.rows])
        parts += ["### Students", markdown_table(head, rows)]
    if config.has_contact_sheet:
        parts += ["### Views", f"![Images, views and answers]({title}/{schema.CONTACT_SHEET_FILE})"]
    if not config.is_planned:
        parts += ["### How it was made", _how_made(config.provenance)]
    return "\n\n".join(parts)


def _what_it_is(config: CardConfig) -> str:
    about = config.provenance
    base = _linked(about.base.get("id") or "a dataset without a name", "datasets/")
    details = [f"{key} {inline(about.base[key])}" for key in ("config", "revision") if about.base.get(key)]
    base += f" ({', '.join(details)})" if details else ""
    rows = "each example" if config.is_planned else f"each of the {about.num_rows:,} examples"
    classes = f" of {about.num_classes:,}" if about.num_classes else ""
    kept = f"the teacher's {about.top_k} most probable{classes} classes"
    if about.signal == SAMPLED:
        kept = f"{about.top_k}{classes} classes, drawn so that the stored answer is the teacher's on average"
    text = f"{counted(about.num_views, 'view')} of {rows} of {base}, split {code(about.base_split)}, each with {kept}."
    if about.signal == IMAGE_TAIL:
        text += " Each example also has the most probable classes of the mean over its views, which shapes the rest."
    if config.is_planned:
        text = f"**Planned; not made yet.** {text}"
    if about.overlay:
        text += (
            "\n\n**Overlay: the images are left out.** It is joined to your own copy of the base dataset, whose licence and "
            "terms hold; an image that is not the one that was reinforced is refused."
        )
    return text


def _how_to_use(config: CardConfig, name: str, revision: str | None) -> str:
    about = config.provenance
    quoted, place = json.dumps(name, ensure_ascii=False), shlex.quote(name)
    at = readme.revision_argument(revision)
    join = ""
    flags = f" --revision {shlex.quote(revision)}" if revision else ""
    if about.overlay:
        base = str(about.base["id"]) if is_hub_id(about.base.get("id")) else "path/to/base"
        join = f', base="{base}"'
        flags += f" --base {base}"
        if is_safe_name(str(about.base.get("config") or "")):
            join += f', base_config="{about.base["config"]}"'
            flags += f" --base_config {about.base['config']}"
    # A teacher can be loaded again by its name if it is a commit on the Hub; a planned run will pin it.
    known = all(
        is_hub_id(member.get("id")) and (config.is_planned or is_commit(member.get("revision")))
        for member in about.teacher["members"]
    )
    teacher = "" if known else " --no_teacher"
    # A newly drawn view, which a training has few of by default, is learned from its label.
    stored_only = "" if about.label_column else " --reinforced_probability 1"
    return f"""```python
from datasets import load_dataset
from hf_dr import load_reinforced

# The columns, without hf_dr:
plus = load_dataset({quoted}, "{about.config_name}", split="{about.split}"{at})
# The views as the teacher saw them, train[i, v]:
train = load_reinforced({quoted}, "{about.config_name}"{join}{at})
```

```
accelerate launch -m hf_dr train --dataset {place} --name {about.config_name}{flags} \\
    --student timm:mobilenetv3_small_100 --epochs 100 --lr 0.001 --batch_size 64{stored_only} --output_dir student
hf-dr verify {place} --name {about.config_name}{flags}{teacher}
```"""


_PARTNERS = {
    "dataset": "any row of the dataset",
    "shard": "rows of the same shard",
    schema.STORED_PARTNERS: "any row of the dataset, with parameters of its own",
}


def _settings(config: CardConfig) -> str:
    about = config.provenance
    ops = [(op, settings) for item in about.augmentation for op, settings in item.items()]
    shown = [code(f"{op}({', '.join(f'{k}={_rounded(v)}' for k, v in settings.items())})") for op, settings in ops]
    classes = f" of {about.num_classes:,}" if about.num_classes else ""
    rows = [
        ("Augmentation", "<br>".join(shown)),
        ("Views of each example, V", f"{about.num_views:,}"),
    ]
    if about.candidates is not None:
        chosen = f"{about.candidates['num']:,} candidates: {schema.KEEP[about.candidates['keep']]}"
        rows.append(("Chosen among", chosen))
    rows.append(("Classes kept of each answer, K", f"{about.top_k:,}{classes}"))
    if about.signal != TOPK:
        rows.append(("Signal", code(about.signal)))
    rows.append(("Seed", str(about.seed)))
    if any(op in OPS and OPS[op].mixes for op, _ in ops):
        rows.append(("Partners in mixing", _PARTNERS.get(about.mixing_scope, inline(about.mixing_scope))))
    if about.base.get("license"):
        rows.append(("Licence of the base dataset", inline(about.base["license"])))
    if not config.is_planned:
        skipped = len(about.skipped_rows)
        without = f" ({skipped:,} of them could not be decoded and have no views)" if skipped else ""
        rows.append(("Rows", f"{about.num_rows:,}{without}"))
        rows.append(("Files", f"{about.num_shards:,}, {format_bytes(config.file_bytes)}"))
    return markdown_table(["", ""], rows)


def _teachers(config: CardConfig) -> list[str]:
    about = config.provenance
    members = about.teacher["members"]
    rows, commercial, unknown = [], [], []
    for member in members:
        at = f" at {code(str(member['revision'])[:12])}" if member.get("revision") else ""
        at += f", without fold {member['left_out']['number']}" if member.get("left_out") else ""
        name, license = member.get("id"), member.get("license")
        if not license:
            unknown.append(inline(name))
        elif is_noncommercial(license):
            commercial.append(f"{inline(name)} ({inline(license)})")
        rows.append([_linked(name) + at, inline(license or "unknown"), *_preprocessing(member.get("preprocessing"))])
    parts = [markdown_table(["teacher", "licence", "input", "mean", "std", "filter"], rows)]
    folds = next((member["left_out"]["of"] for member in members if member.get("left_out")), 1)
    if folds > 1:
        parts.append(
            f"The fold of an image is its `image_hash` modulo {folds}. Teachers without it answered for the image."
        )
    if len(members) > folds:
        parts.append("Their probabilities are averaged.")
    if "temperature" in about.teacher:
        temperature = about.teacher["temperature"]
        parts.append(f"The logarithms of their probabilities were divided by the temperature {temperature:g}.")
    made = about.teacher.get(schema.EXTENDED_FROM)
    if made is not None:
        parts.append(
            f"The first {made['num_members']} stand in the average with their stored top-{about.top_k} answers, "
            "the rest of the mass spread evenly: the others were added later."
        )
    if commercial:
        parts.append(
            f"> **Non-commercial weights.** The weights of {', '.join(commercial)} are licensed for non-commercial use only. "
            "The answers stored here are made with them: whether that licence reaches the answers, and students that learn "
            "from them, is for you to settle before any commercial use."
        )
    if unknown and not config.is_planned:
        parts.append(
            f"> **Unknown licence.** The licence of {', '.join(unknown)} is not known. Find it out before you publish or use "
            "what is made with its answers."
        )
    return parts


def _preprocessing(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return ["its own"] + 3 * [""]
    size = value.get("size")
    shown = " x ".join(map(str, size)) if isinstance(size, (list, tuple)) else str(size)
    return [inline(shown), *(inline(_rounded(value.get(key))) for key in ("mean", "std", "interpolation"))]


def _rounded(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_rounded, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_GROUPS = {
    "classes": (schema.TEACHER_IDS,),
    "log-probabilities": (schema.TEACHER_LOGPROBS,),
    "images' tails": (schema.TAIL_IDS, schema.TAIL_LOGPROBS),
    "row and hashes": (schema.SOURCE_INDEX, schema.IMAGE_HASH, schema.VIEWS_HASH),
}


def _statistics(config: CardConfig, found: Statistics) -> list[str]:
    views = config.provenance.num_rows * config.provenance.num_views
    counts = {
        group: sum(found.columns.get(name, 0) for name in names)
        for group, names in _GROUPS.items()
        if group != "images' tails" or config.provenance.signal == IMAGE_TAIL
    }
    counts["augmentation's parameters"] = sum(
        n for name, n in found.columns.items() if name.startswith(schema.AUG_PREFIX)
    )
    counts["the base's own columns"] = sum(n for name, n in found.columns.items() if not is_reserved(name))
    counts["structure of the files"] = config.file_bytes - sum(counts.values())
    sizes = [(group, f"{count:,}", f"{count / views:.2f}") for group, count in counts.items()]
    lines = found.lines(config.provenance.num_classes, config.provenance.signal)
    return [markdown_table(["teacher's answers", ""], lines), markdown_table(["part", "bytes", "bytes a view"], sizes)]


def _verification(found: Verification) -> str:
    rows = [
        ("Rows replayed", f"{found.num_rows:,} with {counted(found.num_views, 'view')} each"),
        ("Equal bit for bit", "unknown" if found.bit_equal is None else percent(found.bit_equal)),
    ]
    if found.kl_mean is None or found.kl_max is None or found.top1_agreement is None:
        rows.append(("Teacher's answers", "not compared"))
    else:
        rows.append(("KL to the teacher asked again", f"mean {found.kl_mean:.2e}, max {found.kl_max:.2e} nats"))
        rows.append(("Same most probable class", percent(found.top1_agreement)))
    if found.tail_kl_mean is not None:
        rows.append(("KL of the images' tails, mean", f"{found.tail_kl_mean:.2e} nats"))
    return markdown_table(["`hf-dr verify`", "ok" if found.ok else "**not ok**"], rows)


def _how_made(provenance: Provenance) -> str:
    versions = ", ".join(f"{inline(key)} {inline(value)}" for key, value in provenance.library_versions.items())
    teacher = provenance.teacher
    return (
        f"By {inline(provenance.created_with)} with {versions}; the teacher ran in {inline(teacher.get('precision'))} on "
        f"{inline(teacher.get('device_type'))}. {code(f'{provenance.config_name}/{PROVENANCE_FILE}')} has every setting.\n\n"
        f"Fingerprint: `{provenance.fingerprint}`"
    )
