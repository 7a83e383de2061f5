"""The worked example of CONTRIBUTING.md is a head that passes the suite that its test inherits."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

import torch
import yaml
from conftest import ROOT
from suites import CRYSTALS, HeadSuite
from testing import batch_of, tiny_encoder

from datamodules.properties import Property
from foundation.training.spec import HeadSpec
from heads import Head

_TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_HEAD, _TEST = re.findall(r"^```python\n(.*?)^```", _TEXT, re.DOTALL | re.MULTILINE)
_CONFIG = yaml.safe_load(*re.findall(r"^```yaml\n(.*?)^```", _TEXT, re.DOTALL | re.MULTILINE))

_module = ModuleType("heads.bounded")
sys.modules[_module.__name__] = _module
exec(_HEAD, _module.__dict__)
_scope: dict[str, Any] = {**_module.__dict__, "HeadSuite": HeadSuite, "Head": Head, "Property": Property}
exec(_TEST, _scope)
TestBounded = _scope["TestBounded"]


def test_its_configuration_builds_it_and_predictions_stay_in_bounds() -> None:
    given = _CONFIG["head"]
    head = HeadSpec(given["class_path"], given["init_args"], Property("ratio")).build(str(tiny_encoder().irreps_out))
    head.fit_scaler(torch.linspace(0.1, 0.45, len(CRYSTALS)), batch_of(CRYSTALS))
    found = head.predict(20 * torch.randn(len(CRYSTALS)), batch_of(CRYSTALS))
    assert float(found.min()) >= -1.0
    assert float(found.max()) <= 0.5
