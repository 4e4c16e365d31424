import os
import signal
import time

import pytest

from mmflow.data import walk
from mmflow.data.spec import DataSpec
from mmflow.data.walk import Fault, Row, over_shards


def fragile(spec, split, shard, passed_over):
    """A walk of which some rows crash the process, hang or raise."""
    for row, what in enumerate(("well", "crash", "hang", "well")):
        yield Row(row, 4, what)
        if row in passed_over:
            continue
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "hang":
            time.sleep(600)
        yield (shard, row)


def failing(spec, split, shard, passed_over):
    """A walk that raises."""
    yield Row(0, 1, "a")
    raise OSError(28, "no space", shard)


@pytest.mark.slow
def test_a_decoder_that_crashes_or_hangs_costs_its_sample(monkeypatch):
    monkeypatch.setattr(walk, "HANG_S", 1.0)
    spec = DataSpec("toy", "none", "nowhere", {"train": "x.tar"}, {"text": ["txt"]})
    (said,) = over_shards(fragile, spec, [("train", "x.tar")], 1, "")
    assert said == [
        Fault("x.tar", "crash", "the process that decoded it ended with SIGSEGV"),
        Fault("x.tar", "hang", "takes more than 1 s to decode; the process was ended"),
        ("x.tar", 0),
        ("x.tar", 3),
    ]
    with pytest.raises(OSError, match="no space"):
        over_shards(failing, spec, [("train", "x.tar")], 1, "")
