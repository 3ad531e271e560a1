"""Which network of a file: what stands before the names of its tensors, and which of several.

Training scripts put a network into an entry, or an attribute, of something larger; parallelism and
compilation put their own names before and between. All of it is one thing, a prefix, whatever the
format of the file. Names that a dialect knows as they are stay as they are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from vitbase.errors import WeightsError
from vitbase.weights.files.tensors import TensorFile
from vitbase.weights.origins.dialect import Dialect, find_dialect, named, to_ours
from vitbase.weights.origins.registry import DIALECTS

# What torch's parallelism, compilation and checkpointing put into names, at any place.
_WRAPPER = re.compile(
    r"(?<![^.])(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module)\."
)
# Words of prefixes. Averaged weights are the better model, and a student follows its teacher;
# but of MoCo v3 it is the encoder beside the momentum encoder that its authors evaluate.
_AVERAGED = {"ema", "averaged", "swa", "teacher", "target"}
_FOLLOWING = {"student", "online", "momentum"}
_PRETRAINING = re.compile(r"(^|[._/])(teacher|target|student|online|momentum|base_encoder)[._/]")
_ANCHOR = re.compile(rf"((?:.*[./])?)(?:{'|'.join({table.signature[0]: 0 for table in DIALECTS})})")
_MOST_NETWORKS, _DEEPEST = 16, 8
_HOW = "give prefix (--prefix, in a run --weights_prefix)"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A network of a file.

    Attributes:
      file: the file, its tensors those of the network, under their names without the prefix.
      prefix: what stood before them, without torch's own wrappers.
      outside: by the file's name: what stands beside the network and belongs to no other, named
        from where the two part.
      others: the names of what belongs to other networks.
      pretraining: whether it learned without labels, beside another network.
    """

    file: TensorFile
    prefix: str = ""
    outside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    others: tuple[str, ...] = ()
    pretraining: bool = False


def choose_network(file: TensorFile, wanted: str | None = None) -> Chosen:
    """Find the network in a file, and where there are several, the one to take.

    Args:
      wanted: what its names begin with in the file, "" for those without a prefix; None takes the
        average, or the teacher.
    Raises: WeightsError naming the networks, if it is not clear which.
    """
    if wanted is None and _is_one(file):
        return Chosen(file)
    names = _without_wrappers(file)
    prefixes = list(_find_prefixes(names))
    if wanted is not None:
        prefix = _find_wanted(file, prefixes, names, wanted)
    elif not prefixes:
        return Chosen(file)
    else:
        best = min(map(_rank, prefixes))
        first = [prefix for prefix in prefixes if _rank(prefix) == best]
        if len(first) > 1:
            raise WeightsError(
                f"it holds several networks, and nothing tells which to take. To choose, {_HOW}: "
                f"{_quoted(first)}"
            )
        prefix = first[0]
    rivals = tuple(p for p in prefixes if p != prefix and not prefix.startswith(p))
    inside = {
        name.removeprefix(prefix): theirs
        for name, theirs in names.items()
        if name.startswith(prefix) and not name.startswith(rivals)
    }
    entry = _entry(file, next(iter(inside.values())))
    taken, competing = set(inside.values()), tuple(p for p in prefixes if p != prefix)
    others = tuple(
        theirs
        for name, theirs in names.items()
        if theirs not in taken
        and any(
            name.startswith(rival) or _shared(name, rival) > _shared(name, prefix)
            for rival in competing
        )
    )
    taken |= set(others)
    outside = {
        theirs: name[_shared(name, prefix) :]
        for name, theirs in names.items()
        if theirs not in taken and _entry(file, theirs) == entry
    }
    if wanted is not None:
        others, outside = (*others, *outside), {}
    notes = [*file.notes, *_notes(file, inside, entry)]
    if competing:
        notes.append(
            f"of several networks that under '{prefix}'; to take another, {_HOW}: "
            f"{_quoted(competing)}"
        )
    tensors = {name: file.tensors[theirs] for name, theirs in inside.items()}
    chosen = dataclasses.replace(file, tensors=tensors, notes=tuple(notes), entries={})
    return Chosen(chosen, prefix, outside, others, any(map(_PRETRAINING.search, prefixes)))


def _is_one(file: TensorFile) -> bool:
    """Whether a dialect knows every name as it is."""
    dialect = find_dialect(DIALECTS, file.tensors)
    try:
        return dialect is not None and not to_ours(dialect, file.tensors)[2]
    except WeightsError:
        return not any(map(_WRAPPER.search, file.tensors))  # one that lacks something


def _entry(file: TensorFile, name: str) -> str:
    return name[: file.entries.get(name, 0)]


def _without_wrappers(file: TensorFile) -> dict[str, str]:
    """Return the file's names by what they are without torch's wrappers; entries stay."""
    names: dict[str, str] = {}
    for theirs in file.tensors:
        entry = _entry(file, theirs)
        name = entry + _WRAPPER.sub("", theirs[len(entry) :])
        if name in names:
            raise WeightsError(f"tensors '{names[name]}' and '{theirs}' are the same parameter")
        names[name] = theirs
    return names


def _find_prefixes(names: Mapping[str, str]) -> Iterator[str]:
    """Yield what stands before the names of each network, the shortest that leaves a dialect's."""
    whole = find_dialect(DIALECTS, names)
    tried: dict[str, Dialect | None] = {"": whole}
    found: set[str] = set()
    for name in names:
        match = _ANCHOR.fullmatch(name)
        if match is None or (whole and whole.left_out and re.fullmatch(whole.left_out, name)):
            continue  # momentum has the names of the weights, too
        ends = [0, *(part.end() for part in re.finditer(r"[./]", match[1]))]
        for prefix in (name[:end] for end in ends[:_DEEPEST]):
            if len(found) > _MOST_NETWORKS or len(tried) > _MOST_NETWORKS * _DEEPEST:
                raise WeightsError(f"it holds more than {_MOST_NETWORKS} networks")
            if prefix not in tried:
                under = [other[len(prefix) :] for other in names if other.startswith(prefix)]
                tried[prefix] = find_dialect(DIALECTS, under)
            dialect = tried[prefix]
            if dialect and _is_anchor(dialect, name[len(prefix) :]):
                if prefix not in found:
                    found.add(prefix)
                    yield prefix
                break


def _is_anchor(dialect: Dialect, name: str) -> bool:
    return any(re.fullmatch(dialect.signature[0], spelled) for spelled in named(dialect, [name]))


def _find_wanted(
    file: TensorFile, prefixes: list[str], names: Mapping[str, str], wanted: str
) -> str:
    if not wanted and "" in prefixes:
        return ""
    start = wanted if wanted.endswith((".", "/")) else f"{wanted}."
    fitting = [
        prefix
        for prefix in prefixes
        if any(
            start
            in (form[: len(start)] for form in (n, theirs, theirs[file.entries.get(theirs, 0) :]))
            for n, theirs in names.items()
            if n.startswith(prefix)
        )
    ]
    best = [prefix for prefix in fitting if _rank(prefix) == min(map(_rank, fitting))]
    if len(best) == 1:
        return best[0]
    if prefixes == [""]:
        raise WeightsError(f"its one network has no prefix; leave out '{wanted}'")
    there = f"To choose, {_HOW}: {_quoted(best or prefixes)}" if prefixes else "It holds none"
    raise WeightsError(f"no single network in it has names that begin with '{start}'. {there}")


def _rank(prefix: str) -> int:
    words = set(re.split(r"[._/]", prefix))
    return 0 if words & _AVERAGED else 2 if words & _FOLLOWING else 1


def _shared(name: str, prefix: str) -> int:
    """Return how far a name goes along with a prefix, in whole parts."""
    ends = [part.end() for part in re.finditer(r"[./]", prefix)]
    return max((end for end in ends if name.startswith(prefix[:end])), default=0)


def _notes(file: TensorFile, inside: Mapping[str, str], entry: str) -> Iterator[str]:
    if entry:
        yield f"taken from its entry '{entry.rstrip('.')}'"
    starts = (theirs.removesuffix(n) for n, theirs in inside.items() if theirs.endswith(n))
    before = max(starts, key=len, default=entry)  # what only counts has no wrapper before it
    if before != entry:
        yield f"prefix '{before[len(entry) :]}' removed"
    between = {match[0] for t in inside.values() for match in _WRAPPER.finditer(t, len(before))}
    if between:
        yield f"{_quoted(sorted(between))} removed inside names"


def _quoted(prefixes: Iterable[str]) -> str:
    return ", ".join(f"'{prefix}'" for prefix in prefixes)
