"""A Kneser-Ney language model that learns while it predicts, its counts in Redis.

Use when: predictions must follow the text of a moment ago: completion of code, commands or
    queries, learned by many writers at once, and small enough to explain.
Not when: you need long fluent text: serve a neural model, and take only `stream_tokens` and
    `read_tokens` from here. For a text that does not change, and no server: KenLM.
Keys: {name}:3:<a>\\xff<b>, a sorted set for each context of two tokens, {name}:2:<b> of one and
    {name}:1: of none: what followed, by count, and the total as a negative score. {name}:counts,
    a hash: the order, and how many n-grams were seen 1 to 4 times. {name}:long, a hash: digest ->
    token above 32 bytes. `prune` bounds them, `delete` removes them. {name}:learning:<id>, a
    string: gone after `learn`, or 10 minutes. {request}:tokens, a stream, and {request}:cancel, a
    string: TTL of 10 minutes.
Guarantees: counts of all orders change in one script, in any order and by any number of writers
    with the same result; a command sent twice after a lost reply counts once. A writer killed in
    `learn` leaves a valid model that knows a part of the text. A reader of a token stream gets
    each token once and in order, or an error that says why not.
Cost: `learn` is a round trip for each 2,000 distinct n-grams, `perplexity` one for about 500
    contexts, `probability` 3, `next_tokens` mostly 3. A model lives in one slot of a cluster.
Needs: Redis 6.2+ or Valkey 7.2+; pip install redis
Run: `python recipes/realtime_language_model.py` learns the Zen of Python and completes it.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import io
import math
import random
import re
import struct
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import redis
import redis.cluster

Client = redis.Redis | redis.cluster.RedisCluster
Context = tuple[bytes, ...]
Batch = tuple[Mapping[Context, int], Mapping[bytes, bytes]]  # n-grams; long tokens by digest

UNKNOWN = "<UNK>"  # any token that was never learned; may be learned itself
START = "<s>"  # stands order - 1 times before a text; only ever a part of contexts
UNK, BEGIN = UNKNOWN.encode(), START.encode()
TOTAL, DIGEST = b"\xff", b"\xfe"  # UTF-8 never uses these bytes: no token looks like them
LONGEST = 32  # bytes; a longer token would cost its length again in each n-gram
BATCH = 500_000  # tokens that are counted locally before they go to the server
SLICE = 2_000  # n-grams in one script (Lua cannot pass more than 8,000 arguments)
READ = 500  # contexts in one round trip


class LanguageModelError(Exception):
    """The model cannot do this; the message says what to do."""


class TokenStreamError(Exception):
    """A token stream broke off. `reason`: cancelled, failed, silent, trimmed or taken."""

    def __init__(self, reason: str, position: int, advice: str) -> None:
        super().__init__(f"{reason} after token {position}: {advice}")
        self.reason, self.position = reason, position


# --8<-- [start:update]
# Increments sent one by one leave the lower orders wrong when a writer dies between two of them,
# and two writers that see the same new n-gram both count a new continuation. So a slice is one
# script, which derives all from the counts that it finds: any order of slices and writers ends
# in the same counts. The number of the slice makes a command that is sent twice harmless.
UPDATE = """
local call, at = redis.call, 0
local function number()  -- the next in ARGV[1], where each takes four bytes
  local a, b, c, d = string.byte(ARGV[1], at + 1, at + 4)
  at = at + 4
  return ((a * 256 + b) * 256 + c) * 256 + d
end
local slice, order, forget, contexts, long = number(), number(), number(), number(), number()
if call('HSETNX', KEYS[1], 'order', order) == 0
    and tonumber(call('HGET', KEYS[1], 'order')) ~= order then return -1 end
if tonumber(call('GET', KEYS[3]) or 0) >= slice then return 0 end
call('SET', KEYS[3], slice, 'EX', 600)
if long > 0 then call('HSET', KEYS[2], unpack(ARGV, 2, 1 + 2 * long)) end
local backoff, changes, word = {}, {}, 1 + 2 * long
for key = 4, #KEYS do backoff[key] = number() end  -- the context without its first token
for key = 4, 3 + contexts do
  changes[key] = {}
  for i = word + 1, word + number() do
    changes[key][ARGV[i]], word = number(), i
  end
end
for n = order, 1, -1 do
  local lower, seen = {}, {0, 0, 0, 0}
  for key, amounts in pairs(changes) do
    local tokens, new, gone, sum = {'\\255'}, {}, {}, 0  -- first the total
    for token in pairs(amounts) do tokens[#tokens + 1] = token end
    local old, below = call('ZMSCORE', KEYS[key], unpack(tokens)), lower[backoff[key]] or {}
    for i = 2, #tokens do
      local token, was = tokens[i], tonumber(old[i] or 0)
      local is = was + amounts[token]
      if n == order and forget > 0 then is = was < forget and 0 or was end
      if is > 0 then
        new[#new + 1] = is
        new[#new + 1] = token
        if was == 0 then below[token] = (below[token] or 0) + 1 end
      elseif was > 0 then
        gone[#gone + 1] = token
        below[token] = (below[token] or 0) - 1
      end
      if seen[was] then seen[was] = seen[was] - 1 end
      if seen[is] then seen[is] = seen[is] + 1 end
      sum = sum + is - was
    end
    if n > 1 and next(below) then lower[backoff[key]] = below end
    old = tonumber(old[1] or 0)
    if sum ~= 0 then call('ZADD', KEYS[key], old - sum, tokens[1], unpack(new)) end
    if #gone > 0 then call('ZREM', KEYS[key], unpack(gone)) end
    if #gone > 0 and n == 1 then call('HDEL', KEYS[2], unpack(gone)) end
    if sum < 0 and call('ZCARD', KEYS[key]) == 1 then call('DEL', KEYS[key]) end
  end
  for i = 1, 4 do  -- what is forgotten still counts: discounts describe the text, not what is kept
    if n < order or forget == 0 then call('HINCRBY', KEYS[1], n .. ':' .. i, seen[i]) end
  end
  changes = lower
end
return 1
"""
# --8<-- [end:update]


class LanguageModel:
    """Interpolated modified Kneser-Ney (Chen and Goodman, 1999), n-grams up to `order`.

    Tokens are str. Any token never learned counts as UNKNOWN: probabilities sum to 1 over the
    learned tokens and UNKNOWN. A text has no end token: learn one of your own to predict it.
    Of a context the last order - 1 tokens count. If there are fewer, nothing is assumed of what
    stood before them: [START] * (order - 1) is the start of a text.
    """

    def __init__(self, r: Client, name: str, order: int = 3) -> None:
        if not name or "{" in name or "}" in name or order < 1:
            raise ValueError("name: one character or more, no braces (hash tag); order: 1 or more")
        self.r, self.name, self.order = _of_bytes(r), name, order

    # --8<-- [start:learn]
    # A command for each token would cost a round trip each. Most n-grams of a batch repeat, so
    # they are counted here first: what travels is each distinct one, with its amount.
    def learn(self, tokens: Iterable[str]) -> int:
        """Learn one text (any iterable of tokens); return how many tokens it had.

        Not atomic as a whole: others may see the first slices while the last are on their way.
        """
        return self._apply(self._grams(iter(tokens)))

    def prune(self, min_count: int) -> int:
        """Forget n-grams of the full order seen fewer than `min_count` times; return how many.

        The lower orders then count only what is left, and a token in none of it is unknown again.
        Raises ValueError unless `min_count` is an integer from 0 to 2**32 - 1.
        """
        if not hasattr(min_count, "__index__") or not 0 <= min_count < 2**32:
            raise ValueError(f"min_count={min_count!r}: wanted is an integer from 0 to 2**32 - 1")
        return self._apply(self._rare(min_count), forget=min_count)

    def delete(self) -> None:
        """Remove the model."""
        for page in self._scan(self.key("")):
            self.r.unlink(*page)

    def _grams(self, tokens: Iterator[str]) -> Iterator[Batch]:
        window = [BEGIN] * (self.order - 1)
        while batch := list(islice(tokens, BATCH)):
            ids = {token: _id(token) for token in set(batch)}
            window += [ids[token] for token in batch]
            grams = Counter(zip(*(window[i:] for i in range(self.order)), strict=False))
            yield grams, {i: _utf8(token) for token, i in ids.items() if i[:1] == DIGEST}
            window = window[len(window) - self.order + 1 :]

    def _rare(self, min_count: int) -> Iterator[Batch]:
        top = self.key(f"{self.order}:")
        for page in self._scan(top):
            contexts = [key[len(top) :].split(TOTAL)[: self.order - 1] for key in page]
            while True:
                pipe = self.r.pipeline(transaction=False)
                for key in page:
                    pipe.zrangebyscore(key, 1, f"({min_count}", start=0, num=READ)
                found = zip(contexts, pipe.execute(), strict=True)
                grams = {(*context, token): 1 for context, rare in found for token in rare}
                if not grams:
                    break
                yield grams, {}

    def _scan(self, start: bytes) -> Iterator[list[bytes]]:
        match = re.sub(rb"([\\*?\[\]])", rb"\\\1", start) + b"*"
        keys = self.r.scan_iter(match=match, count=SLICE)
        while page := list(islice(keys, READ)):
            yield page

    def _apply(self, batches: Iterable[Batch], forget: int = 0) -> int:
        fixed = [self.key("counts"), self.key("long"), self.key(f"learning:{uuid.uuid4().hex}")]
        slices = done = 0
        for grams, long in batches:
            ordered = sorted(grams, key=lambda gram: gram[-2::-1])  # one back-off after the other
            for first in range(0, len(ordered), SLICE):
                followers: dict[Context, list[bytes]] = {}
                for gram in ordered[first : first + SLICE]:
                    followers.setdefault(gram[:-1], []).append(gram[-1])
                index = {context: i for i, context in enumerate(followers, len(fixed) + 1)}
                for start in range(1, self.order):
                    for context in followers:
                        index.setdefault(context[start:], len(fixed) + len(index) + 1)
                tokens = [token for part in followers.values() for token in part]
                texts = [x for t in {*tokens} & long.keys() for x in (t, long[t])]
                slices += 1
                numbers = [slices, self.order, forget, len(followers), len(texts) // 2]
                numbers += [index[c[1:]] if c else 0 for c in index]
                for context, part in followers.items():
                    numbers += [len(part), *(grams[(*context, token)] for token in part)]
                packed = struct.pack(f">{len(numbers)}I", *numbers)
                keys = [*fixed, *map(self.key_of, index)]
                if self.r.eval(UPDATE, len(keys), *keys, packed, *texts, *tokens) < 0:
                    raise LanguageModelError(f"{self.name!r} was made with another order")
            done += sum(grams.values())
        self.r.delete(fixed[2])
        return done

    def key(self, name: str) -> bytes:
        """Return the model's key of this name."""
        return f"{{{self.name}}}:{name}".encode()

    def key_of(self, context: Context) -> bytes:
        """Return the key of a context's followers."""
        return self.key(f"{len(context) + 1}:") + TOTAL.join(context)

    # --8<-- [end:learn]
    # --8<-- [start:predict]
    # A round trip for each token and order makes scoring slow, and counts that change between two
    # reads give probabilities that do not sum to 1. So the contexts of many tokens are read in one
    # transaction (see `Snapshot`), and `next_tokens` reads only the top of long lists.
    def probability(self, token: str, context: Iterable[str] = ()) -> float:
        """Return the probability of `token` after `context`."""
        after, word = self._context(context), self._known([token])[token]
        return Snapshot(self, {each: [word] for each in _suffixes(after)}).probability(after, word)

    def perplexity(self, tokens: Iterable[str]) -> float:
        """Return among how many equally likely tokens the model chooses, on average, in a text."""
        source, surprise, length = iter(tokens), 0.0, 0
        context = (BEGIN,) * (self.order - 1)
        while part := list(islice(source, SLICE)):
            known, events = self._known(part), []
            asked = defaultdict[Context, set[bytes]](set)
            for token in part:
                events.append((context, known[token]))
                for each in _suffixes(context):
                    asked[each].add(known[token])
                context = (*context, known[token])[1:]
            snapshot = Snapshot(self, asked)
            surprise -= sum(math.log(snapshot.probability(*event)) for event in events)
            length += len(part)
        if not length:
            raise LanguageModelError("an empty text has no perplexity: give at least one token")
        return math.exp(surprise / length)

    def next_tokens(self, context: Iterable[str], k: int = 5) -> list[tuple[str, float]]:
        """Return the `k` most probable next tokens with their probabilities, best first.

        Exact, by the threshold algorithm (Fagin et al., 2001): followers of each back-off are read
        from the top until no token that is still unread can be better than the k best.
        """
        after, size = self._context(context), max(20, min(int(k), SLICE))
        found, best = dict[bytes, float](), list[tuple[bytes, float]]()
        for first in count(0, size) if k > 0 else ():
            pipe = self.r.pipeline(transaction=True)
            for each in _suffixes(after):
                key = self.key_of(each)
                pipe.zrange(key, first, first + size - 1, desc=True, withscores=True)
            pages = pipe.execute()
            new = {UNK, *(token for page in pages for token, _ in page)} - found.keys() - {TOTAL}
            snapshot = Snapshot(self, dict.fromkeys(_suffixes(after), new))
            found |= {token: snapshot.probability(after, token) for token in new}
            best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:k]
            ends = [max(page[-1][1], 0.0) if len(page) == size else 0.0 for page in pages]
            limit = snapshot.probability(after, b"", dict(zip(_suffixes(after), ends, strict=True)))
            if not any(ends) or (len(best) == k and best[-1][1] >= limit):
                break
        long = [token for token, _ in best if token[:1] == DIGEST]
        stored: Any = self.r.hmget(self.key("long"), long) if long else ()
        texts = {t: UNK if s is None else s for t, s in zip(long, stored, strict=True)}
        return [(texts.get(t, t).decode("utf-8", "surrogatepass"), p) for t, p in best]

    def sample(self, context: Iterable[str], seed: int = 0, k: int = 50) -> Iterator[str]:
        """Yield tokens without end, each drawn from the `k` most probable (never UNKNOWN)."""
        chance, text = random.Random(int(seed)), list(context)
        while True:
            best = [(token, p) for token, p in self.next_tokens(text, k) if token != UNKNOWN]
            if not best:
                raise LanguageModelError(f"{self.name!r} has learned nothing: learn a text first")
            text = [*text, *chance.choices(*zip(*best, strict=True))][-self.order :]
            yield text[-1]

    def generate(self, context: Iterable[str], n: int, seed: int = 0) -> list[str]:
        """Return `n` tokens that follow `context`: same model and seed, same tokens."""
        return list(islice(self.sample(context, seed), n))

    def _known(self, tokens: Iterable[str]) -> dict[str, bytes]:
        ids = {token: _id(token) for token in tokens}
        names: Any = [*ids.values()]
        scores = self.r.zmscore(self.key_of(()), names) if ids else []
        return {t: UNK if s is None else i for (t, i), s in zip(ids.items(), scores, strict=True)}

    def _context(self, tokens: Iterable[str]) -> Context:
        last = list(tokens)[1 - self.order :] if self.order > 1 else []
        known = self._known(last) | {START: BEGIN}
        return tuple(known[token] for token in last)

    # --8<-- [end:predict]


# --8<-- [start:mixing]
# Kneser-Ney needs, for each context, how many followers were seen once, twice, and more often.
# Stored numbers of that kind could drift from the counts; a sorted set tells them at any moment
# (ZCOUNT). What the discounts take from the counts of an order is what the order below hands out.
class Snapshot:
    """Counts as they were at one moment: of the followers of some contexts, the tokens asked for.

    words: size of the vocabulary with UNKNOWN. discounts: by order, for counts of 0, 1, 2, 3 and
    more. followers: by context the total, the part that goes to the order below, and the counts.
    """

    def __init__(self, model: LanguageModel, asked: Mapping[Context, Iterable[bytes]]) -> None:
        self.words, self.discounts = 1, dict[int, list[float]]()
        self.followers: dict[Context, tuple[float, float, dict[bytes, float]]] = {}
        contexts = iter({(): (), **asked}.items())
        while part := list(islice(contexts, READ)):
            with model.r.pipeline(transaction=True) as pipe:
                pipe.hgetall(model.key("counts"))  # bounded: five fields for each order at most
                for context, tokens in part:
                    key, names = model.key_of(context), list[Any]([TOTAL, UNK, *tokens])
                    pipe.zcard(key)
                    pipe.zcount(key, 1, 1)
                    pipe.zcount(key, 2, 2)
                    pipe.zmscore(key, names)
                seen, *rows = pipe.execute()
            if seen and int(seen[b"order"]) != model.order:
                raise LanguageModelError(f"{model.name!r} has order {int(seen[b'order'])}: say so")
            self.discounts = {n: _discounts(seen, n) for n in range(1, model.order + 1)}
            for i, (context, tokens) in enumerate(part):
                size, once, twice, (total, *scores) = rows[4 * i : 4 * i + 4]
                if total:
                    _, one, two, more = self.discounts[len(context) + 1]
                    reserved = once * one + twice * two + (size - 1 - once - twice) * more
                    pairs = zip([UNK, *tokens], scores, strict=True)
                    counts = {token: score for token, score in pairs if score}
                    self.followers[context] = -total, reserved, counts
                    if not context:
                        self.words = size - 1 + (UNK not in counts)

    def probability(
        self, context: Context, token: bytes, at_most: Mapping[Context, float] | None = None
    ) -> float:
        """Return p(token | context), or what it cannot exceed if its counts are `at_most` these."""
        p = 1 / self.words
        for each in reversed(_suffixes(context)):  # from no context to the whole of it
            if each in self.followers:
                total, reserved, counts = self.followers[each]
                count = counts.get(token, 0.0)
                left = count - self.discounts[len(each) + 1][min(int(count), 3)]
                p = ((at_most[each] if at_most else left) + reserved * p) / total
        return p


def _discounts(seen: Mapping[bytes, bytes], n: int) -> list[float]:
    """Return D1, D2 and D3+ of an order, behind a 0, from how many n-grams were seen 1 to 4 times.

    Too little text gives estimates outside of (0, count): half the count stands in for those.
    """
    n1, n2, n3, n4 = (int(seen.get(b"%d:%d" % (n, i), 0)) for i in (1, 2, 3, 4))
    discounts = [0.0]
    for i, now, more in ((1, n1, n2), (2, n2, n3), (3, n3, n4)):
        discount = i - (i + 1) * n1 / (n1 + 2 * n2) * more / now if n1 and now else 0.0
        discounts.append(discount if 0 < discount < i else i / 2)
    return discounts


def _suffixes(context: Context) -> list[Context]:
    return [context[i:] for i in range(len(context) + 1)]


def _id(token: str) -> bytes:
    data = _utf8(token)
    if len(data) > LONGEST:
        data = DIGEST + hashlib.blake2b(data, digest_size=12).hexdigest().encode()
    return data


def _utf8(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")


# --8<-- [start:shared-client]
# A client that decodes would fail late: at the first reply that is no text, after it has written.
def _of_bytes(r: Client) -> Client:
    """Return `r`; raise TypeError if it decodes replies."""
    if r.get_encoder().decode_responses:
        raise TypeError("give a client without decode_responses=True: values here are bytes")
    return r


# --8<-- [end:shared-client]


# --8<-- [end:mixing]
# --8<-- [start:stream]
# A reply sent as one message comes late, and sent through pub/sub it is lost on a reader that is
# not there. A stream keeps it. The id of an entry is the number of its token, so a reader that
# comes back says how many tokens it has, sees what is missing, and a repeated XADD adds nothing.
def stream_tokens(
    r: Client, request: str, tokens: Iterable[str], *, maxlen: int = 10_000, ttl_s: int = 600
) -> int:
    """Send tokens as they come, until they end or a reader cancels; return how many were sent.

    One round trip a token. If `tokens` raises, readers learn of it and the error goes on. Sending
    the same tokens again, after a crash, goes on where it ended; those that were there before
    count as sent. About `maxlen` tokens are kept. Raises TokenStreamError if the stream holds
    other tokens.
    """
    _of_bytes(r)  # before a token is made
    stream, cancel, sent = f"{{{request}}}:tokens", f"{{{request}}}:cancel", 0

    def send(number: int, field: str, text: str) -> bool:
        this, entry = b"%d-0" % number, dict[Any, Any]({field.encode(): _utf8(text)})
        try:
            with r.pipeline(transaction=True) as pipe:
                pipe.xadd(stream, entry, id=this, maxlen=maxlen, approximate=True)
                pipe.expire(stream, ttl_s)
                pipe.exists(cancel)
                return bool(pipe.execute()[-1])
        except redis.ResponseError as error:
            if "equal or smaller" not in str(error):
                raise
            if r.xrange(stream, this, this, count=1) != [(this, entry)]:
                raise TokenStreamError("taken", number - 1, "choose another request") from error
            return bool(r.exists(cancel))

    def break_off(how: str) -> int:
        xrange: Any = r.xrange
        number = sent + 1
        while page := xrange(stream, b"%d-0" % number, count=READ):  # an earlier run sent more
            number = int(page[-1][0].split(b"-")[0]) + 1
            if b"end" in page[-1][1]:
                return number - 2
        send(number, "end", how)
        return number - 1

    try:
        for sent, token in enumerate(tokens, 1):
            if send(sent, "token", token):
                return break_off("cancelled")
    except TokenStreamError:
        raise
    except Exception:
        with contextlib.suppress(redis.RedisError, TokenStreamError):
            break_off("failed")
        raise
    send(sent + 1, "end", "done")
    return sent


def cancel_tokens(r: Client, request: str, *, ttl_s: int = 600) -> None:
    """Ask the producer to stop; it does so after its next token."""
    _of_bytes(r).set(f"{{{request}}}:cancel", 1, ex=ttl_s)


def read_tokens(r: Client, request: str, after: int = 0, timeout_s: float = 10) -> Iterator[str]:
    """Yield the tokens behind number `after` as they come, until the producer ends.

    Start at any time, before the first token or after the last. A lost connection is taken up
    again within `timeout_s`, the longest wait for a token; 0 takes only what is there. Raises
    TokenStreamError if the stream was cancelled, failed, fell silent, or lost tokens to `maxlen`;
    its `position` says how many tokens came before.
    """
    r, deadline = _of_bytes(r), time.monotonic() + timeout_s
    xrange: Any = r.xrange
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        try:
            stream, since = f"{{{request}}}:tokens", f"{after}-0"
            r.xread({stream: since}, count=1, block=int(min(left, 1.0) * 1000) + 1)  # only to wait
            entries = xrange(stream, f"({since}", count=READ)
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(min(left, 0.05))
            entries = []
        if not left and not entries:
            break
        for this, entry in entries:
            if int(this.split(b"-")[0]) != after + 1:
                raise TokenStreamError("trimmed", after, "read earlier, or stream with more maxlen")
            if how := entry.get(b"end"):
                if how != b"done":
                    raise TokenStreamError(how.decode(), after, "ask again, as another request")
                return
            after += 1
            yield entry[b"token"].decode("utf-8", "surrogatepass")
            deadline = time.monotonic() + timeout_s
    raise TokenStreamError("silent", after, "the producer died, or the TTL is over: ask again")


# --8<-- [end:stream]
# --8<-- [start:usage]
# What was learned a moment ago must change the next prediction, or the model is always late.
def demo(r: redis.Redis) -> None:
    """Learn the Zen of Python, complete it, teach it a new word, stream a text, and forget."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    zen = re.findall(r"[\w']+|[^\w\s]", codecs.decode(this.s, "rot13").lower())
    model = LanguageModel(r, "demo-zen", order=3)
    print(f"learned {model.learn(zen)} tokens, {len(set(zen))} different")
    for context in (["is", "better"], ["if", "the"]):
        best = [f"{token!r} {p:.2f}" for token, p in model.next_tokens(context, k=3)]
        print(f"after {' '.join(context)!r}:", ", ".join(best))
    print(f"sum over all words and unknown: {sum(p for _, p in model.next_tokens([], 999)):.6f}")
    before = model.probability("redis", ["it", "is"])
    model.learn(["what", "is", "fast", "?", "it", "is", "redis", "."])
    grown = model.probability("redis", ["it", "is"]) > 10 * before
    print("after one more line 'it is redis' is more probable:", grown)
    sent = stream_tokens(r, "demo-zen-reply", model.generate([START, START], 12, seed=3))
    print(f"streamed {sent} tokens:", " ".join(read_tokens(r, "demo-zen-reply")))
    print(f"forgot {model.prune(2)} n-grams seen once:", model.generate(["is", "better"], 1))
    model.delete()
    r.unlink("{demo-zen-reply}:tokens")
    print("One line of text changed the next prediction, and the probabilities sum to 1.")


# --8<-- [end:usage]


if __name__ == "__main__":
    import os

    demo(redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")))
