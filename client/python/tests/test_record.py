"""Calls of ordinary stubs, recorded: a script does the same by a pipeline as it does live, and what
cannot be recorded says so in one line."""

import copy
import json
import os

import grpc
import pytest
from google.protobuf import json_format
from mesh import until
from shop import NAME, Address, Ask, Flag, Shop, ShopStub, Street, User, user

import zex

RUN_S = 60.0


@pytest.fixture(scope="module")
def shop(mesh):
    """The service, and its adapter in the mesh."""
    with Shop() as shop, zex.Client(mesh.in_pipe) as client:
        mesh.start("adapter-shop", "adapter", f"http://127.0.0.1:{shop.port}")
        until(
            lambda: any(NAME in w.services for w in mesh.workers(client).values()), 30, f"no {NAME}"
        )
        yield shop
        mesh.processes.pop("adapter-shop").terminate()


@pytest.fixture
def connected(mesh):
    with zex.connect(mesh.in_pipe, mesh.gateway) as connected:
        yield connected


@pytest.fixture
def nowhere():
    """A mesh that is not there: recording needs none."""
    with zex.connect("tcp://127.0.0.1:1", "127.0.0.1:1") as nowhere:
        yield nowhere


def test_the_ports_of_a_mesh_may_be_said_in_one_number(monkeypatch):
    for name in ("ZEX_IN_PIPE", "ZEX_IN_PIPE_HOST", "ZEX_GATEWAY_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZEX_PORT_BASE", "21000")
    with zex.connect() as mesh:
        assert list(mesh.client._endpoints) == ["tcp://127.0.0.1:21000"]
        assert mesh._gateway == "127.0.0.1:21006"


# ── the same, live and recorded ─────────────────────────────────────────────────────────────


def pass_on(stub):
    stub.Put(stub.Get(Ask(limit=3)))


def pass_on_items(stub):
    for one in stub.List(Ask(limit=20)):
        stub.Put(one)


def every_kind_of_field(stub):
    for one in stub.List(Ask(limit=20)):
        stub.Put(
            User(
                id=one.id,
                name=one.name,
                score=one.score,
                rating=one.rating,
                plan=one.plan,
                address=one.address,
                tags=one.tags,
                friends=one.friends,
                addresses=one.addresses,
                joined=one.joined,
                nick=one.nick,
                picture=one.picture,
                size=one.size,
                labels={"of": one.name, "k": one.labels["k"]},
            )  # fmt: skip
        )


def fields_that_are_set_later(stub):
    got = stub.Get(Ask(limit=5))
    put = User(tags=["first"])
    put.id, put.name, put.address.city = got.id, got.name, got.address.city
    put.tags.append(got.tags[0])
    put.friends.extend([1, got.friends[0], got.friends[1]])
    put.address.street.number = got.address.street.number + 1
    put.addresses.add(city=got.addresses[1].city)
    stub.Put(put)


def texts(stub):
    for one in stub.List(Ask(limit=5)):
        both = one.name + ", " + one.tags[0]
        put = User(
            name=f"{{{{ {both} }}}} of {one.address.city}: {one.id} {{% x %}}{{",
            tags=[one.name.upper(), "é\n\"'\\"],
        )
        put.tags.append("{}/{}".format(one.name.lower(), one.size))
        put.tags.append(
            "-".join([one.tags[0], "z"]) + str(one.id).replace("1", "{") + one.tags[1].strip()
        )
        stub.Put(put)


def sums(stub):
    for one in stub.List(Ask(limit=12)):
        number = one.address.street.number
        put = User(
            id=2 * number + 3 - number % 4,
            score=one.score / 4 - 0.5,
            size=-number // 5,
            rating=one.rating,
        )
        put.friends.extend([number**2, abs(-number), 7 - number, 100 // (number + 1), 7])
        stub.Put(put)


def lists(stub):
    got = stub.Get(Ask(limit=4))
    for address in got.addresses:
        stub.Put(User(address=address, name=address.city, tags=got.tags))
    stub.Put(
        User(
            tags=[address.city for address in got.addresses],
            addresses=[one for one in got.addresses],
        )
    )
    stub.Put(
        User(
            addresses=[got.address, Address(city="own")],
            tags=list(got.tags),
            friends=got.friends[0:1],
        )
    )


def several_calls(stub):
    for name in ("one", "two"):
        first = stub.Get(Ask(limit=6, text=name))
        for tag in first.tags:
            stub.Put(User(name=tag, id=first.id))
            stub.Put(User(name=f"{name} {tag}"))
        stub.Put(User(address=Address(street=Street(name=first.address.street.name))))


def an_empty_request(stub):
    stub.Put(User())
    stub.Put(User(flag=Flag(), more={"a": [1, True, None]}, id=0))


SCRIPTS = [
    pass_on,
    pass_on_items,
    every_kind_of_field,
    fields_that_are_set_later,
    texts,
    sums,
    lists,
]
SCRIPTS += [several_calls, an_empty_request]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_recorded_script_does_what_it_does_live(connected, shop, script):
    stub = ShopStub(connected.channel())
    shop.taken()
    script(stub)
    live = shop.taken()
    with connected.record(script.__name__) as pipeline:
        script(stub)
    assert live and not shop.puts, "nothing is called while it is recorded"
    pipeline.run().wait(RUN_S)
    assert [User.FromString(one) for one in shop.taken()] == [
        User.FromString(one) for one in live
    ], str(pipeline)


# ── what a script says beside its calls ─────────────────────────────────────────────────────


def test_what_is_decided_when_it_runs(connected, shop):
    stub = ShopStub(connected.channel())
    with connected.record("decided") as pipeline:
        limit = pipeline.parameter("limit", 3)
        word = pipeline.parameter("word", type=str)
        got = stub.Get(Ask(limit=limit))
        with pipeline.when((got.id > 5) & (word == "yes") | ~got.admin):
            stub.Put(User(name="when", tags=[pipeline.run_id]))
        with pipeline.when(got.HasField("nick") & (got.plan == 2)):
            stub.Put(User(name="enterprise"))
        with pipeline.concurrence():
            for one in stub.List({"limit": limit}):
                name = pipeline.choose(one.name.endswith("1"), "one", f"not {word}")
                with pipeline.step("first", concurrency=2, retry={"attempts": 2, "backoff": 0.1}):
                    stub.Put(User(name=name, size=pipeline.index), timeout=10)
                stub.Put(
                    {"admin": one.admin, "labels": one.labels, "flag": one.flag, "name": "map"}
                )
        stub.Put(User(size=pipeline.ref("{}|length", got.tags, type=int), name="length"))
    run = pipeline.run(word="yes", limit=4)
    outcome = run.wait(RUN_S)
    assert outcome.state == "succeeded" and f" {run.id} succeeded in " in str(outcome)
    put = sorted(
        (User.FromString(one) for one in shop.taken()),
        key=lambda one: (one.name, one.size, one.admin),
    )
    assert [one.name for one in put] == ["length"] + ["map"] * 4 + ["not yes"] * 3 + ["one", "when"]
    assert put[0].size == 2 and put[-1].tags == [run.id]
    assert [one.admin for one in put[1:5]] == [False, False, True, True]
    assert put[4].labels["k"] == "v3" and put[1].flag.on
    assert sorted(one.size for one in put[5:9]) == [0, 1, 2, 3]
    assert pipeline.validate(word="no")[0] == "shop_get"


def test_a_call_takes_another_back_and_a_failed_run_says_why(connected, shop):
    stub = ShopStub(connected.channel())
    with connected.record("undone", deadline=60) as pipeline:
        got = stub.Put(User(name="done"))
        with pipeline.undo(got):
            stub.Put(User(name=got.name + " undone"))
        stub.Put(User(name="fail"))
    with pytest.raises(zex.RunFailed, match="no such name") as caught:
        pipeline.run().wait(RUN_S)
    assert caught.value.outcome.state == "failed"
    names = [User.FromString(one).name for one in shop.taken()]
    assert sorted(names) == ["done", "done undone", "fail"]


def test_wait_gives_up_at_its_time_and_a_run_can_be_cancelled(connected, shop):
    stub = ShopStub(connected.channel())
    with connected.record("long") as pipeline:
        with pipeline.step(retry={"attempts": 1000, "backoff": 60}):
            stub.Put(User(name="never"), timeout="1h")
        stub.Put({"name": pipeline.ref("1 // 0")})
    definition = copy.deepcopy(pipeline.definition)
    definition["steps"][0]["sequence"][0]["input"]["name"] = "wait"
    definition["steps"][0]["sequence"][1]["on_failure"] = "pause"
    run = connected.pipelines.run(definition)
    until(lambda: run.show().state == 7, RUN_S, "it does not pause")
    with pytest.raises(zex.Error) as caught:
        run.wait(0.3)
    assert caught.value.code == zex.Code.DEADLINE_EXCEEDED
    run.cancel("enough")
    with pytest.raises(zex.RunFailed, match="enough"):
        connected.pipelines.get(run.id).wait(RUN_S)
    shop.taken()


def test_the_scheduler_refuses_what_does_not_fit(connected, shop):
    stub = ShopStub(connected.channel())
    with connected.record("misfit") as pipeline:
        got = stub.Get(Ask())
        stub.Put({"id": got.name, "nmae": 1})
    with pytest.raises(zex.Error, match="did you mean `name`") as caught:
        pipeline.run()
    assert caught.value.code == zex.Code.INVALID_ARGUMENT


def test_a_definition_is_a_file_that_can_be_run(nowhere, tmp_path):
    stub = ShopStub(nowhere.channel())
    with nowhere.record("file") as pipeline:
        for one in stub.List(Ask(limit=3)):
            stub.Put(User(id=one.id))
    pipeline.save(tmp_path / "file.json")
    assert json.loads((tmp_path / "file.json").read_text()) == {
        "name": "file",
        "steps": [
            {
                "sequence": [
                    {"id": "shop_list", "call": "shop.v1.Shop/List", "input": {"limit": 3}},
                    {
                        "id": "shop_put", "call": "shop.v1.Shop/Put", "each": "shop_list",
                        "input": {"id": "{{ item.id }}"},
                    },
                ]
            }
        ],
    }  # fmt: skip


def test_a_stream_is_read_where_its_messages_are_taken(nowhere):
    stub = ShopStub(nowhere.channel())
    with nowhere.record("late") as pipeline:
        stream = stub.List(Ask())
        stub.Put(User(name="between"))
        for one in stream:
            stub.Put(User(id=one.id))
    ids = [step["id"] for step in pipeline.definition["steps"][0]["sequence"]]
    assert ids == ["shop_put", "shop_list", "shop_put_2"]


def test_numbers_of_the_script_are_never_taken_for_marks(nowhere):
    stub = ShopStub(nowhere.channel())
    with nowhere.record("numbers") as pipeline:
        got = stub.Get(Ask())
        for _ in range(200):
            stub.Put(User(id=got.id, size=got.size, score=got.score, rating=got.rating))
    for step in pipeline.definition["steps"][0]["sequence"][1:]:
        assert step["input"] == {
            name: f"{{{{ shop_get.{name} }}}}" for name in ("id", "size", "score", "rating")
        }


# ── what cannot be recorded ─────────────────────────────────────────────────────────────────


def _loop(use):
    def script(stub, pipeline):
        for one in stub.List(Ask()):
            use(stub, one, pipeline)

    return script


def _reply(use):
    return lambda stub, pipeline: use(stub, stub.Get(Ask()), pipeline)


def _break(stub, pipeline):
    for one in stub.List(Ask()):
        stub.Put(one)
        break


def _after_the_loop(stub, pipeline):
    for one in stub.List(Ask()):
        pass
    stub.Put(User(id=one.id))


def _two_loops(stub, pipeline):
    stream = stub.List(Ask())
    for one in stream:
        stub.Put(one)
    for one in stream:
        stub.Put(one)


def _changed_message(stub, got, pipeline):
    put = User(address=got.address)
    put.address.city = "other"
    stub.Put(put)


def _long(stub, got, pipeline):
    name = got.name
    for _ in range(12):
        name = name + name
    stub.Put(User(name=name))


def _one_id(stub, pipeline):
    with pipeline.step("a"):
        stub.Put(User())
        stub.Put(User())


def _of_another(stub, pipeline):
    stub.Put(User(name=stub.other))


REFUSED = {
    "an if": (_reply(lambda s, got, p: s.Put(User()) if got.admin else None), "`shop_get.admin` is known only when"),
    "an if on a text": (_reply(lambda s, got, p: got.name or "x"), "pipeline.choose"),
    "an if on a comparison": (_loop(lambda s, one, p: one.id > 3 and s.Put(one)), r"\(item.id > 3\)"),
    "a while on a message": (_reply(lambda s, got, p: not got), "`shop_get` is known only when"),
    "break": (_break, "the loop over `shop_list` was left by `break`"),
    "next": (lambda s, p: next(s.List(Ask())), "loop over it"),
    "next of a list": (_reply(lambda s, got, p: next(iter(got.tags))), "was left by `break`"),
    "an item behind its loop": (_after_the_loop, "the loop over `shop_list`, which has ended"),
    "a stream as a list": (lambda s, p: s.Put(User(tags=[u.name for u in s.List(Ask())])), "cannot be gathered"),
    "a list of what is made": (_reply(lambda s, got, p: s.Put(User(tags=[t + "x" for t in got.tags]))), "cannot be said"),
    "a list with more": (_reply(lambda s, got, p: s.Put(User(tags=[*got.tags, "x"]))), "which has ended"),
    "a loop in a loop": (_loop(lambda s, one, p: [s.Put(User(name=t)) for t in one.tags]), "in a loop inside of a loop"),
    "a stream in a loop": (_loop(lambda s, one, p: s.List(Ask())), "calls that give one message"),
    "two takers of a stream": (_loop(lambda s, one, p: [s.Put(one), s.Put(one)]), "pipeline.concurrence"),
    "two loops over a stream": (_two_loops, "pipeline.concurrence"),
    "a reply in a loop": (_loop(lambda s, one, p: s.Put(one).id), "`shop_put` is called once for every item"),
    "a reply in a loop, whole": (_loop(lambda s, one, p: s.Put(s.Put(one))), "no later call can read them"),
    "len": (_reply(lambda s, got, p: len(got.tags)), r"use pipeline.ref\('{}|length', value, type=int\)"),
    "len of a text": (_reply(lambda s, got, p: len(got.name)), r"`len\(\)` cannot be recorded"),
    "int": (_reply(lambda s, got, p: int(got.id)), r"`int\(\)` cannot be recorded"),
    "round": (_reply(lambda s, got, p: round(got.score)), r"pipeline.ref\('{}|round', value\)"),
    "float": (_reply(lambda s, got, p: s.Put(User(score=float(got.id) * 2))), "became a plain number"),
    "range": (_reply(lambda s, got, p: range(got.id)), r"became a plain number.* range\(\)"),
    "a range of calls": (_reply(lambda s, got, p: [s.Put(User()) for _ in range(got.id)]), "more than 1000 calls"),
    "a bool in a message": (_reply(lambda s, got, p: s.Put(User(admin=got.admin))), "give the request as a map"),
    "a number as a bool": (_reply(lambda s, got, p: s.Put(User(admin=got.id))), "became a plain number"),
    "a message of bools in a message": (_reply(lambda s, got, p: s.Put(User(flag=got.flag))), "give the request as a map"),
    "a changed reply": (_reply(lambda s, got, p: setattr(got, "name", "x")), "cannot be changed: set `name`"),
    "a changed list": (_reply(lambda s, got, p: got.tags.append("x")), "cannot be asked for `append`"),
    "a changed copy": (_reply(_changed_message), "it is the recorded `shop_get.address` and cannot be changed"),
    "a method of str": (_reply(lambda s, got, p: got.name.split()), r"`.split\(\)` cannot be recorded"),
    "a cut text": (_reply(lambda s, got, p: got.name[:3]), r"`\[…\]` cannot be recorded"),
    "a text changed later": (_reply(lambda s, got, p: s.Put(User(name=f"x{got.name}".upper()))), "change it before"),
    "json in a text": (_reply(lambda s, got, p: s.Put(User(name=json.dumps([got.name])))), "change it before"),
    "a format": (_reply(lambda s, got, p: f"{got.score:.2f}"), "cannot be formatted"),
    "a key": (_reply(lambda s, got, p: {got.name: 1}), "key or an element of a set"),
    "a key of a map": (_reply(lambda s, got, p: s.Put(User(labels={f"x{got.name}": "y"}))), "cannot be the key of a map"),
    "in": (_reply(lambda s, got, p: "x" in got.name), "`in` cannot be recorded"),
    "other types compared": (_reply(lambda s, got, p: got.name == 3), "cannot be compared with a int"),
    "no value of an enum": (_reply(lambda s, got, p: got.plan == 7), "shop.v1.Plan has no value 7; it has FREE"),
    "a field of a timestamp": (_reply(lambda s, got, p: got.joined.seconds), "in a pipeline a Timestamp has the form"),
    "a timestamp of parts": (_reply(lambda s, got, p: s.Put(User(joined={"seconds": got.id}))), "a Timestamp made of"),
    "a copy": (_reply(lambda s, got, p: copy.copy(got)), "cannot be copied or pickled"),
    "when with an item": (_loop(lambda s, one, p: p.when(one.admin)), "asked once for all items"),
    "an expression that is too long": (_reply(_long), "an expression of .* bytes is too long"),
    "another recording": (_of_another, "belongs to another recording"),
    "metadata": (lambda s, p: s.Put(User(), metadata=[("a", "b")]), "metadata and credentials"),
    "a future": (lambda s, p: s.Put.future(User()), "`future` cannot be recorded"),
    "a stream of requests": (lambda s, p: s.Gather(iter([])), "takes a stream of requests"),
    "no message": (lambda s, p: s.Put("x"), "takes a protobuf message, a map of its fields"),
    "nan": (lambda s, p: s.Put(User(score=float("nan"))), "the request.score: nan cannot be recorded"),
    "an option there is not": (lambda s, p: p.step(retries=3).__enter__(), "a step has no option `retries`"),
    "one id for two": (_one_id, "`a` is the id of one call"),
    "nothing": (lambda s, p: None, "nothing was recorded in `refused`"),
    "run inside": (lambda s, p: [s.Put(User()), p.run()], "`refused` is still being recorded"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_recorded_says_so_in_one_line(nowhere, what):
    script, says = REFUSED[what]
    stub = ShopStub(nowhere.channel())
    with nowhere.record("other"):
        stub.other = stub.Get(Ask()).name
    with pytest.raises((zex.RecordingError, ValueError), match=says) as caught:
        with nowhere.record("refused") as pipeline:
            script(stub, pipeline)
    assert "\n" not in str(caught.value)
    # And the next one goes as if nothing had been.
    with nowhere.record("next") as pipeline:
        stub.Put(User(name="x"))
    assert pipeline.definition["steps"] == [
        {"id": "shop_put", "call": "shop.v1.Shop/Put", "input": {"name": "x"}}
    ]


def test_a_field_that_there_is_not(nowhere):
    stub = ShopStub(nowhere.channel())
    with (
        nowhere.record("x"),
        pytest.raises(
            AttributeError, match="shop.v1.User has no field `nmae`; did you mean `name`"
        ),
    ):
        stub.Get(Ask()).nmae  # noqa: B018


def test_no_recorded_value_gets_out(connected, shop):
    stub = ShopStub(connected.channel())
    with connected.record("x"):
        got = stub.Get(Ask())
        name, text = got.name, f"x{got.name}"
        stub.Put(got)
    for call in (
        lambda: stub.Put(User(name=text)),
        lambda: stub.Put(User(name=name)),
        lambda: stub.Put(got),
    ):
        with pytest.raises(zex.RecordingError, match="this call is not recorded"):
            call()
    with pytest.raises(zex.RecordingError, match="the recording `x`, which has ended"):
        User(id=got.id)
    assert not shop.taken()
    assert stub.Put(User(name="y")).name == "y" and len(shop.taken()) == 1


def test_interceptors_of_the_script_see_recorded_calls(nowhere):
    seen = []

    class Log(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
        def intercept_unary_unary(self, go_on, details, request):
            seen.append(details.method)
            return go_on(details, request)

        intercept_unary_stream = intercept_unary_unary

    stub = ShopStub(grpc.intercept_channel(nowhere.channel(), Log()))
    with nowhere.record("seen") as pipeline:
        for one in stub.List(Ask()):
            stub.Put(User(id=one.id))
        reply, call = stub.Put.with_call(User(name="x"))
        assert not isinstance(reply, User)
    assert seen == [f"/{NAME}/List", f"/{NAME}/Put", f"/{NAME}/Put"]
    assert len(pipeline.definition["steps"][0]["sequence"]) == 3


def test_an_error_of_the_script_stays_what_it_is(nowhere):
    stub = ShopStub(nowhere.channel())
    with pytest.raises(ZeroDivisionError):
        with nowhere.record("x"):
            for _one in stub.List(Ask()):
                1 // 0  # noqa: B018


def test_a_user_of_the_shop_has_something_in_every_field():
    assert {field.name for field, _ in user(1).ListFields()} == set(User.DESCRIPTOR.fields_by_name)
    assert json_format.MessageToDict(user(1))["nick"] == "nick1" and os.sep
