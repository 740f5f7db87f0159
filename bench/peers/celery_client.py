"""Keeps so many no-op tasks in flight and counts the results that come back.

celery_client.py IN_FLIGHT WARM_UP_S RUN_S: a line of JSON when the window begins, one when it ends.
"""

import json
import sys
import time
from collections import deque

from tasks import noop

# The longest wait for one result: a worker that is gone must not hang the measurement.
RESULT_S = 30

in_flight, warm_up, run = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
# The first task also waits for the workers.
noop.delay(0).get(timeout=RESULT_S)
flying = deque(noop.delay(number) for number in range(in_flight))
begins = time.monotonic() + warm_up
ends, done, begun = begins + run, 0, None
while True:
    flying.popleft().get(timeout=RESULT_S)
    now = time.monotonic()
    if begun is None:
        if now >= begins:
            begun = now
            print(json.dumps({"begins": True}), flush=True)
    else:
        done += 1
        if now >= ends:
            print(json.dumps({"done": done, "seconds": now - begun}), flush=True)
            break
    flying.append(noop.delay(done))
