"""Durable round trips: each message is persistent, goes through a durable queue, is confirmed to its
publisher, delivered to its consumer and acknowledged. So many are in flight; as soon as one is both
confirmed and acknowledged the next is published.

rabbitmq.py PORT IN_FLIGHT SIZE WARM_UP_S RUN_S: a line of JSON when the window begins, one when it ends.
"""

import json
import sys
import time

import pika

QUEUE = "steps"
PERSISTENT = pika.BasicProperties(delivery_mode=2)

port, in_flight, size = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
warm_up, run = float(sys.argv[4]), float(sys.argv[5])
body = b"x" * size


class Trips:
    """A publisher and a consumer, a connection each, in one loop."""

    def __init__(self):
        self.confirmed = self.acknowledged = self.published = self.done = 0
        self.begins = self.ends = self.begun = None
        self.publisher = self.consumer = None
        # The tags of what is not confirmed yet.
        self.open = set()
        self.connection = self.connect(self.consuming)
        self.connection.ioloop.start()

    def connect(self, opened, loop=None):
        def on_open(connection):
            connection.channel(on_open_callback=opened)

        def on_error(_connection, error):
            sys.exit(f"no connection: {error}")

        return pika.SelectConnection(
            pika.ConnectionParameters("127.0.0.1", port),
            on_open_callback=on_open,
            on_open_error_callback=on_error,
            custom_ioloop=loop,
        )

    def consuming(self, channel):
        self.consumer = channel
        channel.basic_qos(prefetch_count=in_flight)
        channel.queue_declare(QUEUE, durable=True, callback=self.declared)

    def declared(self, _frame):
        self.consumer.basic_consume(QUEUE, self.delivered)
        self.other = self.connect(self.publishing, self.connection.ioloop)

    def publishing(self, channel):
        self.publisher = channel
        channel.confirm_delivery(self.confirmation)
        self.begins = time.monotonic() + warm_up
        for _ in range(in_flight):
            self.publish()

    def publish(self):
        self.published += 1
        self.open.add(self.published)
        self.publisher.basic_publish("", QUEUE, body, PERSISTENT)

    def delivered(self, channel, method, _properties, _body):
        channel.basic_ack(method.delivery_tag)
        self.acknowledged += 1
        self.go_on()

    def confirmation(self, frame):
        method = frame.method
        if isinstance(method, pika.spec.Basic.Nack):
            sys.exit("a message was refused")
        # With `multiple` the tag stands for all up to it.
        tag, known = method.delivery_tag, len(self.open)
        if method.multiple:
            self.open = {other for other in self.open if other > tag}
        else:
            self.open.discard(tag)
        self.confirmed += known - len(self.open)
        self.go_on()

    def go_on(self):
        both = min(self.confirmed, self.acknowledged)
        while self.done < both:
            self.done += 1
            self.publish()
        now = time.monotonic()
        if self.begun is None:
            if now >= self.begins:
                self.begun, self.before = now, self.done
                self.ends = now + run
                print(json.dumps({"begins": True}), flush=True)
        elif now >= self.ends:
            done, seconds = self.done - self.before, now - self.begun
            print(json.dumps({"done": done, "seconds": seconds}), flush=True)
            sys.exit(0)


Trips()
