"""`data stats`: how much of what is in a data set, and how it is distributed.

Lengths and sizes come from the index of the shards, that is from headers; only text and JSON is read. Everything is
kept as a tally, value -> how often, from which quantiles follow exactly.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmflow.data.corpus import held
from mmflow.data.decode import AUDIO_EXTENSIONS, PICTURE_EXTENSIONS, VIDEO_EXTENSIONS, BadSample, decode, kind_of
from mmflow.data.documents import EXTENSION as DOCUMENT
from mmflow.data.index import ShardIndex, open_shard
from mmflow.data.inspection import present_splits
from mmflow.data.spec import DataSpec
from mmflow.data.walk import Fault, Row, over_shards

LONGEST = 60  # characters; of longer texts only the number of words is counted
LONGER = "(longer text)"
MOST_DIFFERENT = 100_000  # values of one quantity; of more the rarest are put together
OTHERS = "(rarer values)"
BINS = 20
QUANTILES = {"5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95}
BARS = " ▁▂▃▄▅▆▇█"


@dataclass
class Tally:
    """What was counted in some shards.

    Attributes:
        samples, shards, bytes: how many.
        unreadable: members that could not be read; `data check` lists them.
        members: extension -> number of members; their bytes are in `member_bytes`.
        values: quantity such as "image: width" or "info.class" -> value -> how often. Truth values are text here.
        having: quantity -> samples that have a value of it.
    """

    samples: int = 0
    shards: int = 0
    bytes: int = 0
    unreadable: int = 0
    members: Counter[str] = field(default_factory=Counter)
    member_bytes: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[Any]] = field(default_factory=lambda: defaultdict(Counter))
    having: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Count what another one has counted too."""
        for name in ("samples", "shards", "bytes", "unreadable"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("members", "member_bytes", "having"):
            getattr(self, name).update(getattr(other, name))
        for name, counts in other.values.items():
            mine = self.values[name]
            mine.update(counts)
            if len(mine) > MOST_DIFFERENT + 1:
                kept = Counter(dict(mine.most_common(MOST_DIFFERENT)))
                kept[OTHERS] += mine.total() - kept.total()
                self.values[name] = kept

    def count(self, found: list[tuple[str, Any]]) -> None:
        """Count (quantity, value) pairs of one sample; None is no value."""
        found = [(name, value) for name, value in found if value is not None]
        for name, value in found:
            self.values[name][value] += 1
        self.having.update({name for name, _ in found})


def statistics(spec: DataSpec, splits: list[str] | None = None, workers: int | None = None) -> dict[str, Any]:
    """Count a data set, by default all of its splits that have shards.

    Returns {"name", "splits": {split: {"samples", "shards", "bytes", "unreadable", "members": {extension: {"count",
    "bytes"}}, "quantities": {name: summary}}}}, ready for JSON; see `summary`.
    Raises ValueError for a shard that cannot be opened.
    """
    shards = [(split, shard) for split in splits or present_splits(spec) for shard in spec.shards(split)]
    tallies: dict[str, Tally] = defaultdict(Tally)
    for (split, _), found in zip(shards, over_shards(tally_shard, spec, shards, workers, "counting"), strict=True):
        for one in found:
            if isinstance(one, Tally):
                tallies[split].add(one)
            elif isinstance(one, Fault):
                tallies[split].unreadable += 1
    return {"name": spec.name, "splits": {split: _described(tally) for split, tally in tallies.items()}}


def tally_shard(spec: DataSpec, split: str, shard: str, passed_over: Set[int]) -> Iterator[Any]:  # noqa: ARG001
    """A walk through one shard that yields its Tally."""
    index = open_shard(shard, spec.allow_pipe)
    tally = Tally(len(index), 1, index.num_bytes)
    for extension, sizes in index.sizes.items():
        tally.members[extension] = int((sizes >= 0).sum())
        tally.member_bytes[extension] = int(sizes[sizes >= 0].sum())
    fields = {name: held(index, allowed) for name, allowed in spec.fields.items()}
    for name, extensions in fields.items():
        _count_headers(tally, index, name, extensions)
    texts = {name: extensions for name, extensions in fields.items() if {"txt", "json"} & set(map(kind_of, extensions))}
    for row, key in enumerate(index.keys):
        yield Row(row, len(index), key)
        for name, extensions in texts.items() if row not in passed_over else ():
            extension = index.extension(row, extensions)
            try:
                if extension is not None and kind_of(extension) in ("txt", "json"):
                    tally.count(list(_read(name, extension, index.read(row, extension))))
            except BadSample:
                tally.unreadable += 1
    yield tally


def _count_headers(tally: Tally, index: ShardIndex, name: str, extensions: list[str]) -> None:
    """What the index knows of the sounds, pictures and videos of a field."""
    having = np.zeros(len(index), dtype=bool)
    for extension in extensions:
        kind = kind_of(extension)
        if kind in PICTURE_EXTENSIONS:
            columns = {"width": index.widths[extension], "height": index.heights[extension]}
            sizes = np.stack([*columns.values()], axis=1)[columns["width"] > 0]
            different, times = np.unique(sizes, axis=0, return_counts=True)
            found = {f"{w} x {h}": n for (w, h), n in zip(different.tolist(), times.tolist(), strict=True)}
            tally.values[f"{name}: size"].update(found)
        elif kind in AUDIO_EXTENSIONS:
            rates = index.rates[extension]
            columns = {"seconds": np.round(index.frames[extension] / np.maximum(rates, 1), 3), "rate": rates}
        elif kind in VIDEO_EXTENSIONS:
            columns = {"seconds": np.round(index.seconds[extension], 3), "pictures": index.frames[extension]}
        else:
            continue
        there = index.offsets[extension] >= 0
        tally.unreadable += int((there & (next(iter(columns.values())) <= 0)).sum())
        having |= there
        for quantity, column in columns.items():
            values, times = np.unique(column[column > 0], return_counts=True)
            tally.values[f"{name}: {quantity}"].update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    for quantity in tally.values:
        if quantity.startswith(f"{name}: "):
            tally.having[quantity] = int(having.sum())


def _read(name: str, extension: str, data: bytes) -> Iterator[tuple[str, Any]]:
    """(quantity, value) pairs of a text or JSON member. Raises BadSample."""
    value = decode(data, extension)
    if isinstance(value, str):
        yield from _text(name, value)
        yield f"{name}: bytes", len(data)
    elif extension == DOCUMENT:
        parts = [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
        said = " ".join(str(part["text"]) for part in parts if "text" in part)
        yield from _text(name, said)
        for kind in sorted({kind for part in parts for kind in part}):
            yield f"{name}: {kind} parts", sum(kind in part for part in parts)
    elif isinstance(value, dict):
        for key, content in value.items():
            yield from _column(f"{name}.{key}", content)


def _text(name: str, text: str) -> Iterator[tuple[str, Any]]:
    yield f"{name}: words", len(text.split())
    yield f"{name}: characters", len(text)


def _column(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """What is counted of one key of a JSON object: text, numbers, and these within lists and objects."""
    if isinstance(value, bool):
        yield name, str(value).lower()
    elif isinstance(value, int | float):
        yield name, value if math.isfinite(value) else None
    elif isinstance(value, str):
        yield name, value if len(value) <= LONGEST else LONGER
        yield f"{name}: words", len(value.split())
    elif isinstance(value, dict) and depth < 2:
        for key, content in value.items():
            yield from _column(f"{name}.{key}", content, depth + 1)
    elif isinstance(value, list) and depth < 2:
        yield f"{name}: entries", len(value)
        for entry in value:
            if _is_interval(entry):  # of words, phones and events
                yield f"{name}: seconds", round(entry[1] - entry[0], 3)
                yield from _column(name, entry[2], depth + 1)
            elif isinstance(entry, str | int | float | dict):
                yield from _column(name, entry, depth + 1)


def _is_interval(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and all(type(t) in (int, float) for t in entry[:2])


# -- summaries ---------------------------------------------------------------------------------------------------------


def _described(tally: Tally) -> dict[str, Any]:
    members = {e: {"count": n, "bytes": tally.member_bytes[e]} for e, n in sorted(tally.members.items())}
    quantities = {
        name: summary(counts) | {"missing": tally.samples - tally.having[name]}
        for name, counts in sorted(tally.values.items())
        if not _are_names(tally.values, name)
    }
    total = {name: getattr(tally, name) for name in ("samples", "shards", "bytes", "unreadable")}
    return total | {"members": members, "quantities": quantities}


def _are_names(values: Mapping[str, Counter[Any]], name: str) -> bool:
    """Whether these are the words of names that come again and again, such as those of classes."""
    what, _, quantity = name.rpartition(": ")
    names = values.get(what, Counter())
    return quantity == "words" and names.total() > 2 * len(names) and LONGER not in names


def summary(counts: Mapping[Any, int]) -> dict[str, Any]:
    """What a tally, value -> how often, says.

    Returns "count", "different", "most_frequent" (the 50 first as [value, how often]), and where all values are numbers
    "total", "min", the QUANTILES (the least value that so many are not above), "mean", "max" and "histogram" with
    "edges" and "counts" of at most BINS bins from the least value to the 99 % quantile; the last takes what is above.
    """
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))
    found: dict[str, Any] = {
        "count": sum(counts.values()),
        "different": len(counts),
        "most_frequent": [[value, times] for value, times in ordered[:50]],
    }
    if not all(isinstance(value, int | float) for value in counts):
        return found
    values = np.array(sorted(counts), dtype=float)
    times = np.array([counts[value] for value in sorted(counts)])
    upto = np.cumsum(times)

    def quantile(share: float) -> float:
        return float(values[np.searchsorted(upto, share * upto[-1] * (1 - 1e-12))])

    low, top = values[0], quantile(0.99)
    edges = np.linspace(low, top if top > low else low + 1, BINS + 1)
    if all(isinstance(value, int) for value in counts):
        width = math.ceil((top - low + 1) / BINS)  # as many whole numbers in each bin
        edges = low + width * np.arange(math.ceil((top - low + 1) / width) + 1)
    bins, _ = np.histogram(np.minimum(values, top), edges, weights=times)
    total = float(values @ times)
    return found | {
        "total": total,
        "min": float(values[0]),
        **{name: quantile(share) for name, share in QUANTILES.items()},
        "mean": total / int(upto[-1]),
        "max": float(values[-1]),
        "histogram": {"edges": edges.tolist(), "counts": bins.astype(int).tolist()},
    }


# -- on the terminal ---------------------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> Group:
    """What `statistics` returned, to be printed with rich."""
    overview = Table("split", "shards", "samples", "MB", "in them", title=found["name"])
    numbers = Table("quantity", "split", "count", "min", "5 %", "median", "mean", "95 %", "max", "distribution")
    values = Table("quantity", "split", "different", "missing", "most frequent")
    for split, of in found["splits"].items():
        cells = (split, f"{of['shards']:,}", f"{of['samples']:,}", f"{of['bytes'] / 1e6:,.1f}")
        overview.add_row(*cells, "\n".join(_amounts(of)))
    for name in dict.fromkeys(name for of in found["splits"].values() for name in of["quantities"]):
        having = [(split, of) for split, of in found["splits"].items() if name in of["quantities"]]
        summaries = [(split, of, of["quantities"][name]) for split, of in having]
        spread = max(one["different"] if "histogram" in one else 0 for *_, one in summaries) > 12
        for split, of, one in summaries:
            if spread and "histogram" in one:
                shown = [_number(one[key]) for key in ("min", "5 %", "median", "mean", "95 %", "max")]
                numbers.add_row(Text(name), split, f"{one['count']:,}", *shown, _spark(one["histogram"]["counts"]))
            else:
                missing = f"{one['missing'] / of['samples']:.1%}" if one["missing"] else ""
                values.add_row(Text(name), split, f"{one['different']:,}", missing, _frequent(one))
    return Group(*(table for table in (overview, numbers, values) if table.row_count))


def _amounts(of: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing of which there is so much in a split."""
    members = of["members"]
    pictures = sum(n["count"] for e, n in members.items() if kind_of(e) in PICTURE_EXTENSIONS)
    if pictures:
        yield f"{pictures:,} pictures"
    for name, one in of["quantities"].items():
        what, _, quantity = name.rpartition(": ")
        if quantity == "seconds" and "." not in what:
            yield f"{_length(one['total'])} of {what}"
        elif quantity == "words" and "." not in what:
            size = of["quantities"].get(f"{what}: bytes")
            yield f"{one['total']:,.0f} words" + (f" ({size['total']:,.0f} bytes)" if size else "") + f" of {what}"
    if of["unreadable"]:
        yield f"{of['unreadable']:,} unreadable members; see `data check`"


def _length(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
    return f"{seconds / 3600:,.2f} h"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _spark(counts: list[int]) -> str:
    """A histogram in one line; a bin that is not empty is never shown so."""
    most = max(counts)
    return "".join(BARS[math.ceil(count / most * (len(BARS) - 1))] for count in counts)


def _frequent(one: Mapping[str, Any]) -> Text:
    """The most frequent values with bars; where hardly any comes twice two examples."""
    first = one["most_frequent"][:6]
    if one["different"] > 0.5 * one["count"] and one["count"] > 6:
        return Text("such as " + ", ".join(str(value) for value, _ in first[:2]), style="dim")
    most, lines = first[0][1], []
    for value, times in first:
        bar = "█" * max(1, round(12 * times / most))
        lines.append(f"{bar:12} {times:,} ({times / one['count']:.1%})  {value}")
    if one["different"] > len(first):
        lines.append(f"{'':12} and {one['different'] - len(first):,} others")
    return Text("\n".join(lines))
