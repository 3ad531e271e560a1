"""Tables of Parquet that hold predictions: columns of plain values, facts as JSON, features.

What is read is bounded, whatever a small file claims of itself. It needs the extra `[tables]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.disk import open_regular
from vitbase.errors import ConfigError
from vitbase.files import json_line, parse_json, written_whole

MOST_ROWS = 20_000_000
LONGEST_NAME = 1 << 14
"""Letters of an image's name, or of its labels, that are read."""
_MOST_CELLS = 1 << 31  # numbers of all features
_BATCH = 1 << 14  # rows that are decoded at a time
_META = b"vitbase"
_TEXTS = ("id", "label_name", "prediction_name")


def load_pyarrow(path: Path) -> tuple[Any, Any]:
    """Return pyarrow, and its part for Parquet. Raises: ConfigError if it is not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(
            f"{path} needs pyarrow, which is not installed: pip install 'vitbase[tables]', or "
            f"take .csv."
        ) from None


def write_parquet(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    meta: dict[str, Any],
    features: NDArray[np.float32] | None,
) -> None:
    """Write columns, and features [N, D] as one more, whole or not at all. Raises: OSError."""
    pa, parquet = load_pyarrow(path)
    kinds = dict.fromkeys(_TEXTS, pa.string()) | {"readable": pa.bool_()}
    if meta["several_labels"]:
        kinds["label"] = pa.string()
    arrays = []
    for name, values in columns.items():
        is_number = name in {"p_label", "loss"} or (name[:1] == "p" and name[1:].isdecimal())
        arrays.append(pa.array(values, kinds.get(name, pa.float32() if is_number else pa.int64())))
    names = [*columns]
    if features is not None:
        ends = np.arange(len(features) + 1, dtype=np.int64) * features.shape[1]
        values = pa.array(features.astype(np.float32).ravel())
        arrays.append(pa.LargeListArray.from_arrays(ends, values).cast(pa.list_(pa.float32())))
        names.append("features")
    table = pa.table(arrays, names).replace_schema_metadata({_META: json_line(meta).encode()})
    with written_whole(path) as place:
        parquet.write_table(table, place, compression="zstd", row_group_size=1 << 16)


def read_parquet(
    path: Path, wanted: Sequence[str]
) -> tuple[dict[str, list[Any]], Any, NDArray[np.float32] | None]:
    """Read some columns, the facts, and features [N, D] if there are any.

    Raises: OSError; ValueError saying what is wrong; ConfigError as :func:`load_pyarrow`.
    """
    pa, parquet = load_pyarrow(path)
    cells: dict[str, list[Any]] = {name: [] for name in wanted}
    features: list[NDArray[np.float32]] = []
    with open(path, "rb", opener=open_regular) as raw:
        try:
            # Names stay as they are stored, each once: a small file may claim many of a long one.
            file = parquet.ParquetFile(raw, read_dictionary=["id"])
            if file.metadata.num_rows > MOST_ROWS:
                raise ValueError(f"it has more than {MOST_ROWS:,} images")
            present = file.schema_arrow.names
            missing = [name for name in wanted if name not in present]
            if missing:
                raise ValueError(f"it has no column '{missing[0]}'")
            meta = parse_json((file.schema_arrow.metadata or {}).get(_META, b"{}"))
            chosen = [*wanted, *(["features"] if "features" in present else [])]
            for batch in file.iter_batches(_BATCH, columns=chosen):
                for name in wanted:
                    cells[name] += _values(pa, batch.column(name), name)
                if len(chosen) > len(wanted):
                    features.append(_features(batch.column("features")))
                    if sum(part.size for part in features) > _MOST_CELLS:
                        raise ValueError("its features are too many")
        except (OSError, ValueError):
            raise
        except Exception as error:  # pyarrow's own, of what is no Parquet, or not such columns
            raise ValueError(str(error) or type(error).__name__) from None
    if len({part.shape[1] for part in features}) > 1:
        raise ValueError("its features are of several widths")
    return cells, meta, np.concatenate(features) if features else None


def _values(pa: Any, column: Any, name: str) -> list[Any]:
    kind = column.type
    if name == "id":
        names = column.dictionary if pa.types.is_dictionary(kind) else column
        if not pa.types.is_string(names.type):
            raise ValueError("column 'id' holds no names")
        if any(len(text or "") > LONGEST_NAME for text in names.to_pylist()):
            raise ValueError(f"column 'id' has a name of more than {LONGEST_NAME:,} letters")
        return [text or "" for text in column.to_pylist()]
    if name == "readable":
        if not pa.types.is_boolean(kind) or column.null_count:
            raise ValueError("column 'readable' holds something else than true and false")
    elif name == "label" and pa.types.is_string(kind):
        pass
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"column '{name}' holds no numbers")
    values: list[Any] = column.to_pylist()
    return values


def _features(column: Any) -> NDArray[np.float32]:
    """Return float32 [B, D] of a column of lists, all as long. Raises: ValueError."""
    lengths = np.diff(column.offsets.to_numpy())
    width = int(lengths[0]) if len(lengths) else 0
    if column.null_count or (lengths != width).any():
        raise ValueError("its features are of several widths")
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float32).reshape(len(lengths), width)
