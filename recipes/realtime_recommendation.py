"""Recommend by what users did a second ago, in one round trip and bounded memory.

Use when: what a user does now should change what the next page offers (shops, news, code, music),
    and "who took this also took that" explains it well enough.
Not when: nobody comes twice and every item is new (recommend by content), or a ranking model with
    features decides (use this for its candidates, and realtime_prediction for the rest).
Keys: all share the hash tag {NS}, so a namespace lives in one slot: shard by namespace.
    {NS}:user:USER     zset    the last 200 items, by visit; the last 50 make pairs; TTL 180 days
    {NS}:item:ITEM     zset    up to 100 items of the same users, by strength; TTL 180 days
    {NS}:items         zset    the norm of up to 1,000,000 items, some 100 bytes each
    {NS}:trend         zset    the popularity of up to 10,000 items
    {NS}:new           zset    the newest 100 items: what is explored
    {NS}:shown, :clicked  hash    impressions and clicks of these
    {NS}:offered:USER  set     what of :new was offered to a user and not clicked yet; TTL 1 day
    delete() removes all of them.
Guarantees: an event is one script, all or nothing. Below the bounds the result does not depend on
    the order of events: late ones, and any number of writers at once, give what one writer gives,
    up to rounding (only :new goes by arrival). Neighbours and norms count a user's item once, so
    an event sent twice with its `at` changes only the trend. A failover may lose the newest ones.
Cost: record: 1 round trip and up to 50 pairs; record_many: 1 per 100 events; recommend, similar,
    trending: 1 (2 with `explore`). One more the first time that a server sees a script.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis
Run: python recipes/realtime_recommendation.py recommends modules by the standard library's imports
"""

from __future__ import annotations

import ast
import csv
import hashlib
import itertools
import math
import operator
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

import redis

Client = redis.Redis | redis.cluster.RedisCluster
Number = SupportsFloat
Id = str | SupportsIndex  # 7 and "7" are the same user, or item
DAY = 86_400_000_000  # microseconds
HALF_LIFE, TREND_HALF_LIFE = 30 * DAY, DAY  # of visits as neighbours, of visits in the trend
HISTORY, PAIRED, NEIGHBOURS = 200, 50, 100  # items of a user, of these in pairs; of an item
ITEMS, TREND, NEW = 1_000_000, 10_000, 100  # of a namespace
READ_HISTORY, READ_NEIGHBOURS = 20, 50  # what a recommendation looks at
TTL_S, OFFER_TTL_S = 180 * 86_400, 86_400
DAMPING = 0.3  # of popular candidates: 0 has none, 0.5 is that of the cosine
MAX_WEIGHT, AHEAD_S = 1e6, 86_400  # of an event; by how much clocks may differ
EVENTS_A_SCRIPT = 100  # longer scripts make other clients wait


class BadLine(ValueError):
    """A line of a ratings file is not a rating; the message names file and line."""


# --8<-- [start:decay]
# A decay that runs over all counts is a job that never ends, and one that multiplies what it finds
# depends on the order of events. Forward decay (Cormode et al. 2009) gives an event at time t the
# mass 2 ** (t / half_life) and never touches it again. Such masses overflow any float, so the
# logarithm is stored, as a time: "as strong as one visit at that time". Adding up is order-free.
# Times are whole microseconds: Redis keeps integers in small sorted sets twice as fast as floats.
_DECAY = """
local function whole(x) return math.floor(x + 0.5) end
local function log2(x) return math.log(x) / math.log(2) end
local function sum(a, b, half_life)
  if not a then return whole(b) end
  if a < b then a, b = b, a end
  return whole(a + half_life * log2(1 + 2 ^ ((b - a) / half_life)))
end
local function rest(a, b, half_life)  -- a without b
  return a + half_life * log2(1 - 2 ^ ((b - a) / half_life))
end
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1e6 + time[2]
end
"""


def _time(at: Number | None) -> str:
    if at is None:
        return ""  # the script takes the server's time
    seconds = float(at)
    if not -9e9 < seconds < time.time() + AHEAD_S:
        wanted = "Unix seconds (not milliseconds), at most a day ahead of here, or None for now"
        raise ValueError(f"at={at!r}: wanted are {wanted}")
    return str(round(seconds * 1e6))


# --8<-- [end:decay]


# --8<-- [start:record]
# Read, add and write back from the client, and two writers lose each other's counts; a round trip
# for each pair of items makes an event cost fifty. One script does an event, all or nothing.
# Item i and j are as close as sum over users of m(user, i) * m(user, j), where m is the user's
# strongest visit: a state, not a history, so any order of events and any repetition leads to it.
# Cluster: neighbours' keys are not in KEYS; they share the tag {NS}, so they are in the same slot.
_RECORD = (
    _DECAY
    + """
local items, trend, new, shown, clicked = unpack(KEYS)
local prefix, slow, fast = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local history, paired, neighbours = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local max_items, max_trend, max_new = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local ttl = ARGV[10]

local function trim(key, kept) return redis.call('ZREMRANGEBYRANK', key, 0, -kept - 1) end

local function grow(key, member, mass, half_life, kept)
  local mine = sum(tonumber(redis.call('ZSCORE', key, member)), mass, half_life)
  if redis.call('ZADD', key, mine, member) == 0 then return false end
  trim(key, kept)
  return true
end

local function add_pairs(item, gain, others)
  local near, names, masses, added, count = prefix .. 'item:' .. item, {}, {}, {}, 0
  for i = 1, #others, 2 do
    if others[i] ~= item then
      count = count + 1
      names[count], masses[count] = others[i], (gain + others[i + 1]) / 2
    end
  end
  if count == 0 then return end
  local known = redis.call('ZMSCORE', near, unpack(names))
  for i, name in ipairs(names) do
    local mass = sum(tonumber(known[i]), masses[i], slow)
    added[2 * i - 1], added[2 * i] = mass, name
    local other = prefix .. 'item:' .. name
    -- the pair has the same mass on both sides, or was trimmed on one: GT keeps the larger
    if redis.call('ZADD', other, 'GT', mass, item) == 1 and trim(other, neighbours) == 0 then
      redis.call('EXPIRE', other, ttl)  -- a full list has its TTL, which its own visits renew
    end
  end
  if redis.call('ZADD', near, 'GT', unpack(added)) > 0 then trim(near, neighbours) end
  redis.call('EXPIRE', near, ttl)
end

local now = clock()
for i = 11, #ARGV, 4 do
  local user, item, weight, at = unpack(ARGV, i, i + 3)
  weight, at = log2(tonumber(weight)), tonumber(at) or now
  grow(trend, item, at + fast * weight, fast, max_trend)
  if redis.call('SREM', prefix .. 'offered:' .. user, item) == 1
      and redis.call('ZSCORE', new, item) then
    redis.call('HINCRBY', clicked, item, 1)
  end
  local mine, visit = prefix .. 'user:' .. user, whole(at + 2 * slow * weight)
  local before = tonumber(redis.call('ZSCORE', mine, item))
  if not before or visit > before then
    local gain = before and rest(visit, before, 2 * slow) or visit
    local square = before and rest(visit, before, slow) or visit
    add_pairs(item, gain, redis.call('ZREVRANGE', mine, 0, paired - 1, 'WITHSCORES'))
    redis.call('ZADD', mine, visit, item)
    trim(mine, history)
    redis.call('EXPIRE', mine, ttl)
    if grow(items, item, square, slow, max_items) then
      redis.call('ZADD', new, at, item)
      while redis.call('ZCARD', new) > max_new do
        local old = redis.call('ZPOPMIN', new)[1]
        for _, key in ipairs({shown, clicked}) do redis.call('HDEL', key, old) end
      end
    end
  end
end
"""
)


def record(
    r: Client, ns: str, user: Id, item: Id, *, weight: Number = 1.0, at: Number | None = None
) -> None:
    """Store that `user` took `item` at `at` (Unix seconds; default: the server's time).

    `weight` > 0 says how much it means (a view 1, a purchase 5). The next recommend() knows it.
    Raises ValueError or TypeError, before anything is sent, for what cannot be stored: also for a
    time more than a day ahead of this machine's clock, which would lead the trend until then.
    """
    record_many(r, ns, [(user, item, weight, at)])


def record_many(r: Client, ns: str, events: Iterable[tuple[Any, ...]]) -> int:
    """Store events (user, item[, weight[, at]]), 100 a round trip; return how many.

    Each hundred is one script. What record() refuses, or a row of another form, refuses the whole
    call before anything is sent; if `events` is an iterator, it refuses its hundred and the rest.
    """
    for row in () if isinstance(events, Iterator) else events:
        _event(row)  # not kept: the strings of a long list would take several times its memory
    prefix, count, rows = _prefix(ns), 0, iter(events)
    keys = [prefix + name for name in ("items", "trend", "new", "shown", "clicked")]
    options = [prefix, HALF_LIFE, TREND_HALF_LIFE, HISTORY, PAIRED, NEIGHBOURS, ITEMS, TREND, NEW]
    while block := [_event(row) for row in itertools.islice(rows, EVENTS_A_SCRIPT)]:
        _run(r, _RECORD, keys, [*options, TTL_S, *itertools.chain(*block)])
        count += len(block)
    return count


def _event(row: Any) -> tuple[str, ...]:
    if not isinstance(row, (tuple, list)) or not 2 <= len(row) <= 4:
        raise TypeError(f"{row!r}: wanted is (user, item[, weight[, at]])")
    return _fields(*row)


def _fields(user: Id, item: Id, weight: Number = 1.0, at: Number | None = None) -> tuple[str, ...]:
    if not 0 < float(weight) < math.inf:
        raise ValueError(f"weight={weight!r}: wanted is a finite number above 0")
    if float(weight) > MAX_WEIGHT:
        why = "is this the time? it comes fourth: (user, item, weight, at)"
        raise ValueError(f"weight={weight!r} is above {MAX_WEIGHT:,.0f}: {why}")
    return _id(user), _id(item), repr(float(weight)), _time(at)


def _id(value: Id) -> str:
    if isinstance(value, bool) or not (isinstance(value, str) or hasattr(value, "__index__")):
        raise TypeError(f"{value!r}: a user or an item is a str or an int")
    text = value if isinstance(value, str) else str(operator.index(value))
    if not 0 < len(text.encode()) <= 512:
        raise ValueError(f"{text[:20]!r}: a user or an item has 1 to 512 bytes")
    return text


def _prefix(ns: str) -> str:
    if not isinstance(ns, str) or not ns or set("{}") & set(ns):
        raise ValueError(f"ns={ns!r}: wanted is a str, not empty, without braces")
    return f"{{{ns}}}:"


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


def _run(r: Client, script: str, keys: list[str], args: list[Any]) -> Any:
    r = _of_bytes(r)
    try:
        return r.evalsha(hashlib.sha1(script.encode()).hexdigest(), len(keys), *keys, *args)
    except redis.exceptions.NoScriptError:
        return r.eval(script, len(keys), *keys, *args)


# --8<-- [end:record]


# --8<-- [start:recommend]
# Raw co-visits recommend to everybody what everybody has. The neighbours of a user's last items
# are weighed by P(candidate | item) and by how recent the user's visit is, then divided by a power
# of the candidate's norm (popularity damping). A new user has no items: there the trend counts.
# All exponents are differences of stored times, so that no half-life is too short for a float.
_RECOMMEND = (
    _DECAY
    + """
local mine, items, trend, new, shown, clicked = unpack(KEYS)
local prefix, slow, fast, damping = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local read_history, read_near, k = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local exclude_seen, explore = ARGV[8] == '1', ARGV[9] == '1'

local history = redis.call('ZREVRANGE', mine, 0, -1, 'WITHSCORES')
local seen, scores, found = {}, {}, {}
for i = 1, #history, 2 do seen[history[i]] = exclude_seen end
for i = 1, math.min(#history, 2 * read_history), 2 do
  local norm = tonumber(redis.call('ZSCORE', items, history[i]))
  local recency = norm and (history[i + 1] - history[2]) / 2 - norm
  local near = norm and redis.call('ZREVRANGE', prefix .. 'item:' .. history[i],
                                   0, read_near - 1, 'WITHSCORES') or {}
  for j = 1, #near, 2 do
    local name = near[j]
    if not seen[name] then
      if not scores[name] then scores[name], found[#found + 1] = 0, name end
      scores[name] = scores[name] + 2 ^ math.min(64, (near[j + 1] + recency) / slow)
    end
  end
end

local best, top = 0, redis.call('ZREVRANGE', items, 0, 0, 'WITHSCORES')[2]
for first = 1, #found, 1000 do
  local last = math.min(first + 999, #found)
  local norms = redis.call('ZMSCORE', items, unpack(found, first, last))
  for i = first, last do
    local damp = 2 ^ math.min(500, (top - (norms[i - first + 1] or top)) / slow * damping)
    scores[found[i]] = scores[found[i]] * damp
    best = math.max(best, scores[found[i]])
  end
end

local share = best == 0 and 1 or 1 / (1 + #history / 2) ^ 2  -- of the trend
local reason = {}
for name, score in pairs(scores) do
  scores[name], reason[name] = (1 - share) * score / math.max(best, 1e-300), 'similar'
end
local hot = redis.call('ZREVRANGE', trend, 0, math.max(k, 100) + #history / 2 - 1, 'WITHSCORES')
for i = 1, #hot, 2 do
  local name, part = hot[i], share * 2 ^ ((hot[i + 1] - hot[2]) / fast)
  if not seen[name] then
    local score = scores[name] or 0
    if not scores[name] then found[#found + 1] = name end
    if part >= score then reason[name] = 'trending' end
    scores[name] = score + part
  end
end
-- sums in another order differ in their last digits: that must not decide between equals
for name, score in pairs(scores) do scores[name] = math.floor(score * 1e9 + 0.5) / 1e9 end

table.sort(found, function(a, b)
  return scores[a] > scores[b] or scores[a] == scores[b] and a < b
end)
local reply = {{}, {}}
for i = 1, math.min(k, #found) do
  reply[1][i] = {found[i], string.format('%.17g', scores[found[i]]), reason[found[i]]}
end
if explore then
  for _, name in ipairs(redis.call('ZREVRANGE', new, 0, -1)) do
    if not seen[name] then
      local views, clicks = redis.call('HGET', shown, name), redis.call('HGET', clicked, name)
      reply[2][#reply[2] + 1] = {name, views or '0', clicks or '0'}
    end
  end
end
return reply
"""
)


class Scored(NamedTuple):
    """An item, its score, and where it comes from: "similar", "trending" or "explore"."""

    item: str
    score: float
    reason: str


def recommend(
    r: Client, ns: str, user: Id, k: int = 10, *, exclude_seen: bool = True,
    explore: float = 0.0, seed: int | None = None,
) -> list[Scored]:  # fmt: skip
    """Return up to `k` items for `user`, the best first; scores are between 0 and 1.

    Item to item collaborative filtering (Linden et al. 2003; Davidson et al. 2010). The trend makes
    1 / (1 + n) ** 2 of the score of a user with n items, so all of it for an unknown one. `explore`
    is the share of new items (0 to 1); `seed` makes its choice repeatable.
    """
    if not 0 <= explore <= 1:
        raise ValueError(f"explore={explore!r}: wanted is a share between 0 and 1")
    prefix, name, k = _prefix(ns), _id(user), _count(k)
    names = (f"user:{name}", "items", "trend", "new", "shown", "clicked")
    options = [prefix, HALF_LIFE, TREND_HALF_LIFE, DAMPING, READ_HISTORY, READ_NEIGHBOURS, k]
    args = [*options, int(exclude_seen), int(explore > 0)]
    ranked, arms = _run(r, _RECOMMEND, [prefix + key for key in names], args)
    scored = [Scored(item.decode(), float(score), why.decode()) for item, score, why in ranked]
    return _explore(r, prefix, name, scored, arms, k, explore, random.Random(seed))


def _count(k: SupportsIndex) -> int:
    if not 0 <= operator.index(k) <= 1_000:
        raise ValueError(f"k={k!r}: wanted are 0 to 1,000 items")
    return operator.index(k)


# --8<-- [end:recommend]


# --8<-- [start:explore]
# A new item has no neighbours, so nobody is shown it, so it gets no neighbours. A share of the
# places goes to new items by Thompson sampling (Thompson 1933; Chapelle and Li 2011): each draws
# from Beta(1 + clicks, 1 + impressions - clicks), the highest draws are shown. What is not clicked
# soon draws low; a record() of an item by a user who was offered it is the click.
_OFFERED = """
local offered, shown = unpack(KEYS)
for i = 2, #ARGV do
  redis.call('HINCRBY', shown, ARGV[i], 1)
  redis.call('SADD', offered, ARGV[i])
end
for _, item in ipairs(redis.call('SMEMBERS', offered)) do  -- bounded: by this
  if redis.call('HEXISTS', shown, item) == 0 then redis.call('SREM', offered, item) end  -- not new
end
redis.call('EXPIRE', offered, ARGV[1])
"""


def _explore(
    r: Client, prefix: str, user: str, ranked: list[Scored], arms: list[list[bytes]], k: int,
    share: float, rng: random.Random,
) -> list[Scored]:  # fmt: skip
    """Give a share of the places, the last ones, to new items; count their impressions."""
    places = int(k * share + rng.random()) if share else 0
    kept = ranked[: k - places]
    names = {scored.item for scored in kept}
    draws = []
    for item, shown, clicked in arms:
        draw = rng.betavariate(1 + int(clicked), 1 + max(0, int(shown) - int(clicked)))
        draws.append(Scored(item.decode(), draw, "explore"))
    fresh = sorted((d for d in draws if d.item not in names), key=lambda d: -d.score)[:places]
    if fresh:
        keys = [f"{prefix}offered:{user}", f"{prefix}shown"]
        _run(r, _OFFERED, keys, [OFFER_TTL_S, *(scored.item for scored in fresh)])
    names |= {scored.item for scored in fresh}
    rest = [scored for scored in ranked if scored.item not in names]
    return kept + fresh + rest[: k - len(kept) - len(fresh)]


# --8<-- [end:explore]


# --8<-- [start:lists]
# A page of an item and a front page need no user. Without the division by both norms (the cosine)
# the neighbour of everything would be what everybody has.
_SIMILAR = """
local near = redis.call('ZREVRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local norm, names, found = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1])), {}, {}
if not norm or #near == 0 then return found end
for i = 1, #near, 2 do names[#names + 1] = near[i] end
local norms = redis.call('ZMSCORE', KEYS[2], unpack(names))
for i, name in ipairs(names) do
  local log = norms[i] and (near[2 * i] - (norm + norms[i]) / 2) / ARGV[2]
  if log then found[#found + 1] = {name, string.format('%.17g', 2 ^ log)} end
end
return found
"""
_TRENDING = (
    _DECAY
    + """
local hot, now = redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1, 'WITHSCORES'), clock()
for i = 2, #hot, 2 do hot[i] = string.format('%.17g', 2 ^ ((hot[i] - now) / ARGV[2])) end
return hot
"""
)


def similar(r: Client, ns: str, item: Id, k: int = 10) -> list[Scored]:
    """Return up to `k` items of the same users, by the cosine of their decayed visits (0 to 1)."""
    prefix, name, k = _prefix(ns), _id(item), _count(k)
    found = _run(r, _SIMILAR, [f"{prefix}item:{name}", f"{prefix}items"], [name, HALF_LIFE])
    scored = [Scored(other.decode(), round(float(score), 9), "similar") for other, score in found]
    return sorted(scored, key=lambda s: (-s.score, s.item))[:k]


def trending(r: Client, ns: str, k: int = 10) -> list[Scored]:
    """Return up to `k` items by decayed visits: one of now counts its weight, of a day ago half."""
    prefix, k = _prefix(ns), _count(k)
    hot = _run(r, _TRENDING, [f"{prefix}trend"], [k, TREND_HALF_LIFE]) if k else []
    pairs = zip(hot[::2], hot[1::2], strict=True)
    return [Scored(item.decode(), float(score), "trending") for item, score in pairs]


def delete(r: Client, ns: str) -> int:
    """Remove a namespace; return how many keys there were."""
    pattern = "".join(f"[{c}]" if c in "*?[" else "\\" + c if c in "\\]" else c for c in ns)
    keys, count = _of_bytes(r).scan_iter(match=_prefix(pattern) + "*", count=1_000), 0
    while block := list(itertools.islice(keys, 500)):
        count += int(r.unlink(*block))
    return count


# --8<-- [end:lists]


# --8<-- [start:usage]
# Real events come from a file first. A line that is skipped in silence is a user who gets wrong
# recommendations: so each is checked, and refused by its number.
def load_movielens(path: str | Path) -> Iterator[tuple[str, str, float, float]]:
    """Yield (user, item, weight, at), as record_many takes it, of a folder's ratings.csv or u.data.

    Raises FileNotFoundError, or BadLine with the number of the line that is not a rating.
    """
    files = [Path(path), Path(path) / "ratings.csv", Path(path) / "u.data"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{path} holds neither ratings.csv nor u.data")
    return _ratings(file)


def _ratings(file: Path) -> Iterator[tuple[str, str, float, float]]:
    is_csv = file.suffix == ".csv"
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="," if is_csv else "\t"), 1):
            if not row or (is_csv and number == 1 and row[0] == "userId"):
                continue
            try:
                user, item, rating, seconds = row
                event = _id(int(user)), _id(int(item)), float(rating), float(seconds)
                _event(event)
            except ValueError:
                wanted = "user, item, rating above 0, Unix seconds"
                raise BadLine(f"{file}, line {number}: {row!r} is not: {wanted}") from None
            yield event


def import_lines(folder: Path | None = None, pattern: str = "*.py") -> dict[str, list[str]]:
    """Return module file -> the top-level modules that it imports, sorted, of files in `folder`."""
    root, baskets = folder or Path(ast.__file__).parent, {}
    not_library = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    for file in sorted(root.glob(pattern)):
        if not not_library.isdisjoint(file.relative_to(root).parts):
            continue
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
        modules = {name.split(".")[0] for name in names} - {"__future__"}
        baskets[file.relative_to(root).as_posix()] = sorted(modules)
    return baskets


def demo(r: redis.Redis) -> None:
    """Take the standard library's modules as users, and what they import as items."""
    ns = "demo-imports"
    files = import_lines(pattern="[f-s]*.py").items()
    record_many(r, ns, [(file, name) for file, names in files for name in names])
    close = [scored.item for scored in similar(r, ns, "ssl", 5)]
    print(
        "imported together with ssl:", "socket" in close, "- and not just what all have:", end=" "
    )
    print("sys" not in close)
    print("the trend:", *[scored.item for scored in trending(r, ns, 2)])
    first, *_ = recommend(r, ns, "me")
    print(f"for somebody new: {first.item}, because it is {first.reason}")
    before = [scored.item for scored in recommend(r, ns, "me", 10)]
    record(r, ns, "me", "socket")
    after = {scored.item: scored for scored in recommend(r, ns, "me", 10)}
    print("ssl is offered:", "ssl" in before, "- and after an import of socket:", "ssl" in after)
    print("because it is", after["ssl"].reason, "- socket itself is offered:", "socket" in after)
    delete(r, ns)
    print("One event changed the next recommendation; a new user got the trend.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
