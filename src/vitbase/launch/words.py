"""One option among the words of a command, without parsing the others."""

from __future__ import annotations


def find_value(words: list[str], option: str) -> str | None:
    """Return the value given for an option, without parsing the others."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == f"__{option}":
            return value if equals else (words[i + 1] if i + 1 < len(words) else None)
    return None


def drop_value(words: list[str], option: str) -> list[str]:
    """Return the words without an option and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.partition("=")[0].replace("-", "_") == f"__{option}":
            skip = "=" not in word
        else:
            kept.append(word)
    return kept
