"""Loads bases in a process of its own and says what came of each: the hub's address is read at import.

Each line of the input is a JSON list of base sections, for which one line is printed: a JSON list of
[image size] or messages.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from flow_opd.backbones.loading import load_backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.errors import ConfigError

time.sleep = lambda seconds: None  # the hub's client waits 23 seconds between its five attempts


def outcome(case: dict[str, Any]) -> list[int] | str:
    """Returns what comes of loading a base."""
    try:
        return [load_backbone(BaseModelSettings(**case), ComputeSettings(device="cpu")).image_size]
    except ConfigError as refusal:
        return str(refusal)


for line in sys.stdin:
    print(json.dumps([outcome(case) for case in json.loads(line)]), flush=True)
