"""Loads bases in a process of its own and prints what came of each: the hub's address is read at import.

Usage: load_from_hub.py CASES, a JSON list of base sections; prints a JSON list of [image size] or messages.
"""

from __future__ import annotations

import json
import sys
import time

from flow_opd.backbones.loading import load_backbone
from flow_opd.config.common import BaseModelSettings, ComputeSettings
from flow_opd.errors import ConfigError

time.sleep = lambda seconds: None  # the hub's client waits 23 seconds between its five attempts

told: list[object] = []
for case in json.loads(sys.argv[1]):
    try:
        backbone = load_backbone(BaseModelSettings(**case), ComputeSettings(device="cpu"))
        told.append([backbone.image_size])
    except ConfigError as refusal:
        told.append(str(refusal))
print(json.dumps(told))
