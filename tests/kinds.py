"""Every kind of model whose family the house has: a test over `KINDS` is a test of all of them.

A new family is a file like `wan_kinds.py` and a name in the list below.
"""

from __future__ import annotations

import pytest
from cosmos_kinds import COSMOS
from hunyuan15_kinds import HUNYUAN15
from hunyuan_kinds import HUNYUAN
from kind import Kind
from wan_kinds import WAN

KINDS: tuple[Kind, ...] = (*WAN, *HUNYUAN, *HUNYUAN15, *COSMOS)
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
pictured = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.picture], ids=str)
holding = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.held], ids=str)
telling = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.telling is not None], ids=str)
piped = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.tiny], ids=str)
filed = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.files], ids=str)
