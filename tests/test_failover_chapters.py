"""Four recipes work on through a failover of Sentinel or Redis Cluster, and keep their word.

Each topology fails over once, in the middle of all four. First its replicas are cut off, so that
what is written next is acknowledged and yet lost for certain; then its primary is killed (Sentinel)
or stopped (Cluster), and the recipes go on into the outage.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import redis
from redis.crc import key_slot
from river.datasets import Phishing

from recipes import distributed_prediction as dp
from recipes import realtime_training as rt
from recipes import training_data as td
from recipes.high_availability import NotReplicated, confirmed, connect
from recipes.model_params import Corrupt, ParamStore, ParamStoreError, Version, VersionGone
from tests import servers

pytestmark = pytest.mark.real_redis

Client = redis.Redis | redis.RedisCluster
DEADLINE_S = 60.0


# --- A topology that fails over once --------------------------------------------------------------


@dataclass
class Topology:
    """`primary` owns the keys of which `is_here` is true; `replicas` are its own."""

    kind: str
    url: str
    primary: servers.Server
    replicas: list[servers.Server]
    is_here: Callable[[str], bool]

    def connect(self) -> Client:
        """Return a client that follows the failover; the recipes' scripts may be sent twice."""
        return connect(self.url, retry_s=DEADLINE_S, retry_also=("EVAL", "EVALSHA"))

    def names(self, *, here: bool = True) -> Iterator[str]:
        """Yield names of data sets, stores, jobs and models whose keys are all here, or none."""
        for i in itertools.count():
            if {self.is_here(f"name{i}"), self.is_here(f"params:name{i}")} == {here}:
                yield f"name{i}"

    def cut_off(self) -> None:
        """From now on, what the primary acknowledges reaches no replica."""
        for replica in self.replicas:
            replica.freeze()
        with self.primary.client() as client:
            client.client_kill_filter(_type="replica")  # else it would wait in their sockets

    def fail(self) -> None:
        if self.kind == "sentinel":
            self.primary.kill()
        else:
            self.primary.freeze()
        for replica in self.replicas:
            replica.wake()

    def recover(self, unconfirmed: list[Future[None]]) -> None:
        """Wait for the new primary; on Cluster the old one then is the replica that it needs.

        Until that hears of its successor it acknowledges what it will lose. So work that confirms
        nothing has to end before.
        """
        servers.wait_until(
            lambda: any(s.client().info("replication")["role"] == "master" for s in self.replicas),
            timeout_s=DEADLINE_S,
            what="a replica is promoted",
        )
        wait(unconfirmed, DEADLINE_S)
        if self.kind == "cluster":
            self.primary.wake()


@contextlib.contextmanager
def sentinel_topology(kind: str) -> Iterator[Topology]:
    with servers.sentinel(kind, replicas=2) as (primary, replicas, watchers):
        url = f"redis+sentinel://{hosts(watchers)}/main"
        yield Topology("sentinel", url, primary, replicas, lambda name: True)


@contextlib.contextmanager
def cluster_topology(kind: str) -> Iterator[Topology]:
    with servers.cluster(kind, primaries=3, replicas=3) as cluster:
        url = f"redis+cluster://{hosts(cluster.nodes)}"

        def is_here(tag: str) -> bool:  # the second of three, which no client asks by default
            return 16384 // 3 <= key_slot(tag.encode()) < 2 * 16384 // 3

        yield Topology("cluster", url, cluster.primaries[1], cluster.replicas[1:2], is_here)


def hosts(nodes: list[servers.Server]) -> str:
    return ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def is_confirmed(r: Client, tag: str) -> bool:
    """Return if a replica has all that was written so far to the shard of this hash tag.

    What confirms a later write confirms all before it, if it went to the same primary: so look,
    after it, at what you wrote. After a failover in between it speaks for the new one.
    """
    try:
        with confirmed(r, f"{{{tag}}}:mark", timeout_s=0.1) as pipe:
            pipe.set(f"{{{tag}}}:mark", "")
    except NotReplicated:
        return False
    return True


def attempts() -> Iterator[None]:
    """Yield until the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        yield
    raise TimeoutError(f"not within {DEADLINE_S} s")


class Pace:
    """Holds a recipe at a third of its work until the cut, and at two thirds until the fault."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.at_third, self.at_half, self.is_cut, self.has_failed = (
            threading.Event() for _ in range(4)
        )

    def step(self, done: int) -> None:
        if 3 * done >= self.total:
            self.at_third.set()
            self.is_cut.wait(DEADLINE_S)
        if 2 * done >= self.total:
            self.at_half.set()
        if 3 * done >= 2 * self.total:
            self.has_failed.wait(DEADLINE_S)


# --- The work of the four recipes -----------------------------------------------------------------

ROWS = np.arange(3000)
BATCH_ROWS = 50
SAVES = 24
BATCHES = 120
EVENTS = list(Phishing())[:600]
FEW = EVENTS[:40]


def columns(rows: np.ndarray, sign: int = 1) -> dict[str, np.ndarray]:
    return {"row": rows, "x": sign * np.sqrt(rows[:, None] + np.arange(8.0))}


def model(seed: int) -> dict[str, np.ndarray]:
    """About 20 chunks, so that some are on each shard."""
    rng = np.random.default_rng(seed)
    return {f"w{i}": rng.random(50) for i in range(20)}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        x.dtype == b[k].dtype and x.shape == b[k].shape and x.tobytes() == b[k].tobytes()
        for k, x in a.items()
    )


def batches(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.arange(4.0) + i} for i in range(count)]


def seed_of(loaded: dict[str, np.ndarray]) -> int:
    """Return which model it is, from the first tensor to the last; -1: none."""
    return next((seed for seed in range(SAVES + 1) if same(loaded, model(seed))), -1)


def by_alias() -> dict[str, list[Any]]:
    return {"candidate": [], "production": []}


@dataclass
class Ride:
    """What the four did, and what came of it."""

    topology: Topology
    r: Client
    name: str  # of the data set, the store, the job and the model
    gap: str  # the same, for what is written while no replica hears it
    other: str  # one more name
    elsewhere: str  # a name whose keys are on other shards, if there are others
    undisturbed: list[td.Columns] = field(default_factory=list)
    read: list[td.Columns] = field(default_factory=list)
    confirmed_saves: dict[int, int] = field(default_factory=dict)  # version -> seed
    watched: dict[str, list[tuple[int, int]]] = field(default_factory=by_alias)  # version, seed
    loaded: dict[str, list[tuple[int, int]]] = field(default_factory=by_alias)  # seed, its own
    predictions: itertools.count[int] = field(default_factory=itertools.count)
    learned: itertools.count[int] = field(default_factory=itertools.count)
    work: dict[str, Future[None]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    confirmed_in_the_cut: list[bool] = field(default_factory=list)

    def finished(self, *names: str) -> None:
        """Raise what ended the work of these."""
        for name in names:
            self.work[name].result()

    def reads(self, pace: Pace) -> None:
        """training_data: an epoch, with one iterator."""
        dataset = td.Dataset(self.topology.connect(), self.name)
        for batch in dataset.batches(BATCH_ROWS, seed=5, prefetch=1):
            self.read.append(batch)
            pace.step(len(self.read))

    def writes(self, pace: Pace) -> None:
        """training_data: a data set of so many small blocks that its chunks leave in three lots."""

        def blocks() -> Iterator[dict[str, np.ndarray]]:
            for i in range(pace.total):
                pace.step(i)
                yield columns(ROWS[i : i + 1])

        with self.noted("write", td.DataError):
            td.write(self.topology.connect(), self.other, blocks())

    def saves(self, pace: Pace) -> None:
        """model_params: save, confirm, and only then promote."""
        r = self.topology.connect()
        store = ParamStore(r, self.name)

        def is_kept(version: Version) -> bool:
            return is_confirmed(r, f"params:{self.name}") and any(
                (v, v.created) == (version, version.created) for v in store.versions()
            )

        for seed in range(1, SAVES + 1):
            for _ in attempts():
                try:
                    version = store.save(model(seed), metadata={"seed": seed}, alias="candidate")
                except ParamStoreError:  # the failover came in its midst
                    continue
                if is_kept(version):
                    self.confirmed_saves[int(version)] = seed
                    store.promote(version, "production")
                    break
                if pace.is_cut.is_set() and not pace.has_failed.is_set():
                    break
            pace.step(seed)

    def saves_in_two(self, pace: Pace) -> None:
        """model_params: a save whose chunks leave before the fault, and the version after it."""

        class Interrupted(ParamStore):
            def _send(self, chunks: Any) -> int:
                sent = super()._send(chunks)
                pace.step(2)
                return sent

        pace.step(1)
        with self.noted("save", ParamStoreError):
            Interrupted(self.topology.connect(), self.other).save(model(5))

    def watches(self, alias: str) -> None:
        """model_params: load each version that the alias comes to name."""
        store = ParamStore(self.topology.connect(), self.name)
        for version in store.watch(alias, timeout_s=DEADLINE_S):
            seed = version.metadata["seed"]
            try:
                self.loaded[alias].append((seed, seed_of(store.load(version))))
            except VersionGone:
                assert alias == "candidate"  # lost before it was loaded
            except Corrupt:
                self.loaded[alias].append((seed, -1))
            self.watched[alias].append((int(version), seed))
            if seed == SAVES:
                return

    def predicts(self, pace: Pace) -> None:
        """distributed_prediction: a worker."""
        r, consumer = self.topology.connect(), threading.current_thread().name

        def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
            time.sleep(0.002)  # load: a slow model
            pace.step(next(self.predictions))
            return 2 * batch["x"]

        dp.work(r, self.name, predict, consumer=consumer, lease_s=2, max_deliveries=50)

    def submits(self, pace: Pace) -> None:
        """distributed_prediction: a submit that goes on from before the cut to after the fault."""

        def source() -> Iterator[dict[str, np.ndarray]]:
            for i, batch in enumerate(batches(pace.total)):
                pace.step(i)
                yield batch

        with self.noted("submit", dp.BatchesLost):
            dp.submit(self.topology.connect(), self.other, source())

    def learns(self, pace: Pace) -> None:
        """realtime_training: a trainer, and its successor if commits are lost."""
        r = self.topology.connect()
        counter = self.learned

        class Paced(rt.FTRL):
            def learn_one(self, features: rt.Features, label: int) -> float:
                pace.step(next(counter))
                return super().learn_one(features, label)

        stream = f"{{{self.name}}}:events"
        for _ in attempts():
            if pace.has_failed.is_set() and not r.xlen(stream):
                return
            with contextlib.suppress(rt.LostLease):  # the position is not where it left it
                trainer = rt.OnlineTrainer(
                    r, self.name, stream, learner=Paced(), block=20, lease_s=5
                )
                trainer.run(idle_s=0)

    @contextlib.contextmanager
    def noted(self, what: str, expected: type[Exception]) -> Iterator[None]:
        try:
            yield
        except expected as error:
            self.errors[what] = error


@contextlib.contextmanager
def riding(own: Ride) -> Iterator[dict[str, Pace]]:
    """Let all of them work; at the end wait for them, whatever happened."""
    paces = {
        "reads": Pace(len(ROWS) // BATCH_ROWS),
        "writes": Pace(1200),
        "saves": Pace(SAVES),
        "saves_in_two": Pace(3),
        "predicts": Pace(BATCHES),
        "submits": Pace(60),
        "learns": Pace(len(EVENTS)),
    }
    with ThreadPoolExecutor(max_workers=10) as pool:
        try:
            for alias in own.watched:
                own.work[f"watches {alias}"] = pool.submit(own.watches, alias)
            for name, pace in paces.items():
                own.work[name] = pool.submit(getattr(own, name), pace)
            own.work["predicts too"] = pool.submit(own.predicts, paces["predicts"])
            yield paces
        finally:
            for pace in paces.values():
                pace.is_cut.set()
                pace.has_failed.set()


def ride(topology: Topology) -> Ride:
    """Let the four work through the failover of a topology."""
    here, r = topology.names(), topology.connect()
    away = topology.names(here=topology.kind == "sentinel")
    own = Ride(topology, r, next(here), next(here), next(here), next(away))
    td.write(r, own.name, columns(ROWS), chunk_bytes=800)
    td.write(r, own.gap, columns(ROWS), chunk_bytes=800)
    own.undisturbed = list(td.Dataset(r, own.name).batches(BATCH_ROWS, seed=5))
    ParamStore(r, own.gap).save(model(0))
    dp.submit(r, own.name, batches(BATCHES))
    rt.emit(r, f"{{{own.name}}}:events", EVENTS)
    for name in (own.gap, own.other):
        rt.emit(r, f"{{{own.elsewhere}}}:events of {name}", FEW)
    for tag in (own.name, own.elsewhere, f"params:{own.gap}"):
        servers.wait_until(lambda tag=tag: is_confirmed(r, tag), what="a replica has it all")  # type: ignore[misc]

    with riding(own) as paces:

        def have_reached(point: str) -> bool:
            return all(
                getattr(pace, point).is_set() or own.work[name].done()
                for name, pace in paces.items()
            )

        def is_seen() -> bool:
            seeds = [seed for _, seed in own.watched["candidate"]]
            return SAVES // 2 in seeds or own.work["watches candidate"].done()

        servers.wait_until(lambda: have_reached("at_third"), timeout_s=DEADLINE_S, what="a third")
        topology.cut_off()
        write_what_no_replica_hears(own)
        for pace in paces.values():
            pace.is_cut.set()
        servers.wait_until(lambda: have_reached("at_half"), timeout_s=DEADLINE_S, what="a half")
        servers.wait_until(is_seen, timeout_s=DEADLINE_S, what="a version that will be lost")
        topology.fail()
        for pace in paces.values():
            pace.has_failed.set()
        topology.recover([own.work[name] for name in ("writes", "saves_in_two", "submits")])
    return own


def write_what_no_replica_hears(own: Ride) -> None:
    r = own.r
    td.write(r, own.gap, columns(ROWS, -1), chunk_bytes=800)
    ParamStore(r, own.gap).save(model(1))
    ParamStore(r, own.elsewhere).save(model(2))
    dp.submit(r, own.gap, batches(5))
    rt.emit(r, f"{{{own.gap}}}:events", FEW)
    for name, trim in ((own.gap, True), (own.other, False)):
        stream = f"{{{own.elsewhere}}}:events of {name}"
        stats = rt.OnlineTrainer(r, name, stream, trim=trim, lease_s=1).run(idle_s=0)
        assert stats.events == len(FEW)
    own.confirmed_in_the_cut = [is_confirmed(r, own.gap), is_confirmed(r, f"params:{own.gap}")]


TOPOLOGIES = {"sentinel": sentinel_topology, "cluster": cluster_topology}


@pytest.fixture(scope="module", params=TOPOLOGIES)
def ridden(request: pytest.FixtureRequest, server_kind: str) -> Iterator[Ride]:
    """A topology after its failover, and what the four came to."""
    with TOPOLOGIES[request.param](server_kind) as topology:
        yield ride(topology)


# --- What holds -----------------------------------------------------------------------------------


def test_training_data_reads_each_row_once_in_order_through_a_failover(ridden: Ride) -> None:
    ridden.finished("reads")
    rows = np.concatenate([batch["row"] for batch in ridden.read])
    assert np.array_equal(np.sort(rows), ROWS)
    assert len(ridden.read) == len(ridden.undisturbed)
    for batch, expected in zip(ridden.read, ridden.undisturbed, strict=True):
        assert same(batch, expected)
        assert same(batch, columns(batch["row"]))


def test_model_params_keeps_each_confirmed_version_whole(ridden: Ride) -> None:
    ridden.finished("saves")
    store = ParamStore(ridden.r, ridden.name)
    assert list(ridden.confirmed_saves.values())[-1] == SAVES
    for number, seed in ridden.confirmed_saves.items():
        assert seed_of(store.load(number)) == seed
    for version in store.versions():  # also what was saved, and not confirmed, after it
        assert seed_of(store.load(version)) == version.metadata["seed"]
    assert store.resolve("production") == max(ridden.confirmed_saves)


def test_model_params_watch_goes_on_and_what_is_promoted_never_goes_back(ridden: Ride) -> None:
    ridden.finished("watches production", "watches candidate")
    seen = ridden.watched["production"]
    assert seen == sorted(ridden.confirmed_saves.items())
    assert [seed for _, seed in seen] == sorted({seed for _, seed in seen})
    assert all(seed == own for seed, own in ridden.loaded["production"])
    assert ridden.watched["candidate"][-1][1] == SAVES
    halves = sum(own < 0 for _, own in ridden.loaded["candidate"])
    assert halves <= 1  # one, if its number is given again while it is loaded


def test_distributed_prediction_has_one_right_result_a_batch(ridden: Ride) -> None:
    ridden.finished("predicts", "predicts too")
    found = list(dp.results(ridden.r, ridden.name))
    assert [index for index, _ in found] == list(range(BATCHES))
    for (_, result), batch in zip(found, batches(BATCHES), strict=True):
        assert np.array_equal(result, 2 * batch["x"])
    state = dp.progress(ridden.r, ridden.name)
    assert state == dp.Progress(BATCHES, BATCHES, 0, 0, 0, True)
    assert next(ridden.predictions) > BATCHES  # lost answers were predicted again


def test_realtime_training_learns_each_event_once(ridden: Ride) -> None:
    ridden.finished("learns")
    oracle = rt.FTRL()
    for features, label in EVENTS:
        oracle.learn_one(features, int(label))
    assert ridden.r.hgetall(f"{{{ridden.name}}}:state") == oracle.state()
    assert rt.metrics(ridden.r, ridden.name)[-1].events == len(EVENTS)
    assert ridden.r.xlen(f"{{{ridden.name}}}:events") == 0
    assert next(ridden.learned) > len(EVENTS)  # lost commits were learned again


# --- What was acknowledged, and is on no replica, is lost -----------------------------------------


def test_what_no_replica_had_is_not_confirmed(ridden: Ride) -> None:
    assert ridden.confirmed_in_the_cut == [False, False]


def test_training_data_refuses_a_write_whose_chunks_are_lost(ridden: Ride) -> None:
    ridden.finished("writes")
    assert "gone" in str(ridden.errors["write"])
    with pytest.raises(td.DataError, match="no data set"):
        td.Dataset(ridden.r, ridden.other)
    td.write(ridden.r, ridden.other, columns(ROWS))  # the remedy
    assert same(td.Dataset(ridden.r, ridden.other).rows(ROWS), columns(ROWS))


def test_training_data_an_unconfirmed_write_is_undone_as_a_whole(ridden: Ride) -> None:
    """The old rows are back. On Cluster their chunks on other shards are about to expire."""
    r, dataset = ridden.r, td.Dataset(ridden.r, ridden.gap)
    assert same(dataset.rows(ROWS), columns(ROWS))
    expiring = [key for key, _, _ in dataset.manifest.chunks if r.ttl(key) >= 0]
    assert bool(expiring) == (ridden.topology.kind == "cluster")
    again = td.write(r, ridden.gap, columns(ROWS, -1), chunk_bytes=800)  # the remedy
    assert same(td.Dataset(r, ridden.gap).rows(ROWS), columns(ROWS, -1))
    assert not [key for key, _, _ in again.chunks if r.ttl(key) >= 0]


def test_model_params_gives_the_number_of_a_lost_version_again(ridden: Ride) -> None:
    ridden.finished("watches candidate")
    seen = ridden.watched["candidate"]
    assert seen != sorted(seen)  # its watchers go back
    assert len(dict(seen)) < len(set(seen))  # and meet two versions of one number
    store = ParamStore(ridden.r, ridden.gap)
    assert same(store.load("latest"), model(0))
    assert store.save(model(3)) == 2
    assert same(store.load(2), model(3))


def test_model_params_publishes_nothing_of_a_save_that_is_forgotten(ridden: Ride) -> None:
    ridden.finished("saves_in_two")
    assert "nothing is published" in str(ridden.errors["save"])
    store = ParamStore(ridden.r, ridden.other)
    assert store.versions() == []
    assert seed_of(store.load(store.save(model(5)))) == 5


def test_model_params_finds_lost_chunks_of_a_version_that_is_kept(ridden: Ride) -> None:
    """On Cluster a version and its chunks are on many shards; one of them failed over."""
    store = ParamStore(ridden.r, ridden.elsewhere)
    if ridden.topology.kind == "sentinel":
        with pytest.raises(VersionGone):
            store.load("latest")
    else:
        with pytest.raises(Corrupt, match="lost"):
            store.load("latest")
    store.save(model(2))  # the remedy: it sends what is missing
    assert same(store.load("latest"), model(2))


def test_distributed_prediction_submit_notices_that_batches_were_lost(ridden: Ride) -> None:
    """Else the indexes of all later batches would be too low."""
    ridden.finished("submits")
    assert "submit all again" in str(ridden.errors["submit"])
    dp.delete(ridden.r, ridden.other)
    assert dp.submit(ridden.r, ridden.other, batches(60)) == 60


def test_distributed_prediction_loses_an_unconfirmed_submit(ridden: Ride) -> None:
    assert dp.progress(ridden.r, ridden.gap).total == 0
    assert dp.submit(ridden.r, ridden.gap, batches(5)) == 5
    assert dp.progress(ridden.r, ridden.gap).total == 5


def test_realtime_training_loses_unconfirmed_events(ridden: Ride) -> None:
    assert ridden.r.xlen(f"{{{ridden.gap}}}:events") == 0


def test_realtime_training_wants_the_stream_on_the_shard_of_its_model(ridden: Ride) -> None:
    """Else a commit may be lost while the trim behind it is not; trim=False is the other way."""
    r, learned = ridden.r, []
    for name in (ridden.gap, ridden.other):
        rt.OnlineTrainer(r, name, f"{{{ridden.elsewhere}}}:events of {name}").run(idle_s=0)
        learned.append(sum(row.events for row in rt.metrics(r, name)[-1:]))
    lost = ridden.topology.kind == "cluster"
    assert learned == [0 if lost else len(FEW), len(FEW)]
