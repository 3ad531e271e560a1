"""The licence of weights: what their file or their owner says, never a guess.

Source: huggingface.co/docs/hub/repositories-licenses, whose identifiers a card may have.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from vitbase.errors import ConfigError, nearest

_IDENTIFIERS = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research "
    "intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 "
    "openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license "
    "fair-noncommercial-research-license unknown other"
)
_KNOWN = frozenset(_IDENTIFIERS.split())
_IN_FILES = ("license", "modelspec.license", "general.license")
"""Where a safetensors file may tell it."""


@dataclasses.dataclass(frozen=True)
class Licence:
    """A licence.

    Attributes:
      name: as it was said; an identifier of the hub's in its spelling.
      told_by: who says so, in words.
    """

    name: str
    told_by: str

    @property
    def front_matter(self) -> dict[str, str]:
        """What stands before a card: of the hub's identifiers, or another one by its name."""
        if self.name in _KNOWN:
            return {"license": self.name}
        slug = re.sub(r"[^a-z0-9.-]+", "-", self.name.lower()).strip("-.")[:80]
        return {"license": "other", "license_name": slug or "other"}


def find_licence(given: str | None, metadata: Mapping[str, str]) -> Licence | None:
    """Return the licence that somebody gives, or else that of the file; None if nobody tells.

    Raises: ConfigError if what is given is no name of a licence.
    """
    if given is not None:
        name = given.strip()
        if not name or not name.isprintable() or len(name) > 80:
            raise ConfigError("Option 'license' should be a name, such as apache-2.0 or cc-by-4.0.")
        known = name.lower() in _KNOWN
        return Licence(name.lower() if known else name, "whoever published it")
    for key in _IN_FILES:
        name = metadata.get(key, "").strip()
        if name and len(name) <= 200:
            known = name.lower() in _KNOWN
            return Licence(name.lower() if known else name, "the weights' file")
    return None


def spelled_otherwise(licence: Licence) -> str:
    """Return " Did you mean …?" for a name that is no identifier of the hub, but nearly one."""
    return "" if licence.name in _KNOWN else nearest(licence.name.lower(), _KNOWN)
