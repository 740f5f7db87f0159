"""The tasks that Celery's workers run. Loaded by them and by celery_client.py."""

import os

from celery import Celery

app = Celery("tasks", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])


@app.task
def noop(number):
    return None
