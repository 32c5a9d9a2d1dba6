"""Prints the scalars of a folder's event files as JSON, read by tensorboard.

    read_events.py FOLDER
    {"tag": [[step, value, wall_time], ...], ...}
"""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

accumulator = EventAccumulator(sys.argv[1])
accumulator.Reload()
scalars = {
    tag: [[e.step, e.value, e.wall_time] for e in accumulator.Scalars(tag)]
    for tag in accumulator.Tags()["scalars"]
}
scalars["file_version"] = accumulator.file_version
json.dump(scalars, sys.stdout)
