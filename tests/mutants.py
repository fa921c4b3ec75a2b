"""What the guarantees of the recipes hang on, taken out one at a time: a test must notice.

`python -m tests.mutants [STEM ...]` copies the tree to a temporary folder, runs there the tests
that are named here (they must pass), then again with one mutant at a time (they must fail), and
prints a table. It exits with 1 if a mutant survives, if a test fails without any, or if a text
to be replaced does not stand in its recipe exactly once. It takes some minutes and is not part
of CI; tests/test_mutants.py, which is, keeps this list from going stale.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.contract import ROOT

LIMIT_S = 120  # of one run; a single test has half of that
SLOW_S = 600  # of the runs without a mutant
SKIPPED = shutil.ignore_patterns(".*", "__pycache__", "site", "*.svg")


class Mutant(NamedTuple):
    """`old`, which stands once in the recipe, becomes `new`: one of `tests` must fail."""

    guarantee: str
    old: str
    new: str
    tests: str  # names, with spaces between them
    server: str = "fake"  # where they run


MUTANTS: dict[str, list[Mutant]] = {
    "training_data": [
        Mutant(
            "of two writers one wins whole",
            "secrets.token_hex(8)",
            '"0" * 16',
            "test_of_two_writers_one_wins_whole test_readers_never_see_a_mix",
        ),
        Mutant(
            "two appends both count",
            "if ARGV[4] ~= '' and current ~= ARGV[4] then return 0 end",
            "",
            "test_two_appends_both_count",
        ),
        Mutant(
            "a damaged chunk is never used",
            "if xxhash.xxh3_64_intdigest(raw) != checksum:",
            "if False:",
            "test_a_damaged_chunk_is_never_used",
        ),
        Mutant(
            "a damaged manifest is never used",
            " or found.to_json() != raw:",
            ":",
            "test_a_hostile_manifest_is_refused",
        ),
        Mutant(
            "chunks that vanish before the flip are noticed",
            "if kept else -1",
            "",
            "test_chunks_that_vanish_before_the_flip_are_noticed",
        ),
        Mutant(
            "a killed writer leaves nothing: the next write sweeps",
            "_sweep(r, name, mine=new.generation)",
            "pass",
            "test_a_killed_writer_changes_nothing_and_leaves_nothing",
            "valkey",
        ),
        Mutant(
            "a killed writer leaves nothing: staged chunks have a TTL",
            '("SET", key, raw, "EX", STAGED_S)',
            '("SET", key, raw)',
            "test_a_killed_writer_changes_nothing_and_leaves_nothing",
            "valkey",
        ),
        Mutant(
            "a reader in mid-epoch finishes on its generation",
            '("EXPIRE", key, RETIRED_S, "LT")',
            '("UNLINK", key)',
            "test_a_reader_in_mid_epoch_finishes_on_its_generation",
        ),
        Mutant(
            "another epoch has another order",
            "order = shuffle, int(seed), int(epoch), rank",
            "order = shuffle, int(seed), 0, rank",
            "test_the_order_is_a_pure_function_of_seed_and_epoch",
        ),
        Mutant(
            "the order depends on the seed alone, not on a random generator",
            "z += np.uint64(xxhash.xxh3_64_intdigest(repr(key).encode()))",
            "z += np.uint64(secrets.randbits(63))",
            "test_the_order_is_a_pure_function_of_seed_and_epoch",
        ),
        Mutant(
            "a resumed epoch does not read what came before",
            "for low in range(row // (lanes * depth) * depth,",
            "for low in range(0,",
            "test_a_resumed_epoch_does_not_read_what_came_before",
        ),
        Mutant(
            "memory only for bytes that arrived",
            "size = min(total, 8 * (at + len(part)))",
            "size = total",
            "test_one_good_chunk_does_not_pay_for_the_claims_of_others",
        ),
        Mutant(
            "no thread is left behind",
            "pool.shutdown(cancel_futures=True)",
            "pass",
            "test_no_thread_is_left_behind",
        ),
    ],
    "tensor_compression": [
        Mutant(
            "a cut or changed blob is refused",
            "seed=zlib.crc32(head)).encode() != checksum:",
            'seed=zlib.crc32(head)).encode() == b"":',
            "test_a_cut_or_changed_blob_is_refused",
        ),
        Mutant(
            "max_bytes is a bound",
            "shape) * dtype.itemsize, *shape, 0)) > max_bytes:",
            "shape) * dtype.itemsize, *shape, 0)) > 1 << 60:",
            "test_max_bytes_is_the_size_of_the_array",
        ),
        Mutant(
            "a zlib bomb is refused before it expands",
            "stream.decompress(payload, limit)",
            "stream.decompress(payload)",
            "test_a_bomb_is_refused_before_it_expands",
        ),
        Mutant(
            "a zstd bomb is refused before it expands",
            "get_frame_parameters(payload).content_size <= limit",
            "get_frame_parameters(payload).content_size",
            "test_a_bomb_is_refused_before_it_expands",
        ),
        Mutant(
            "a short LZ4 block allocates little",
            "min(limit, 255 * len(payload))",
            "limit",
            "test_a_short_lz4_block_allocates_little_whatever_it_declares",
        ),
        Mutant(
            "what blosc2 could do beyond the payload is refused",
            "size if plain and size <= limit",
            "size if size <= limit",
            "test_blosc2_features_that_are_never_written_are_refused",
        ),
        Mutant(
            "hostile dtypes are refused before numpy sees them",
            "if not DTYPE.fullmatch(name):  #",
            "if False:  #",
            "test_hostile_fields_get_a_clear_error",
        ),
        Mutant(
            "lossy codecs refuse NaN, infinity and overflow",
            "if not np.isfinite(largest).all():",
            "if False:",
            "test_lossy_codecs_refuse_what_they_would_spoil",
        ),
        Mutant(
            "int8 is within half a step",
            "np.rint(np.divide(levels",
            "np.floor(np.divide(levels",
            "test_int8_is_within_half_a_step_of_each_channel",
        ),
        Mutant(
            "each channel has its own step",
            "array.reshape(len(array) if array.ndim > 1 else 1, -1)",
            "array.reshape(1, -1)",
            "test_int8_channels_do_not_share_their_range",
        ),
        Mutant(
            "best keeps the error within max_rmse",
            " if report.rmse <= max_rmse]",
            "]",
            "test_best_keeps_the_error_within_max_rmse",
        ),
        Mutant(
            "records of another dictionary are refused",
            "for f in frames} - {(shared.dict_id(), True)}:",
            "for f in frames} - {(f.dict_id, f.has_checksum) for f in frames}:",
            "test_record_bombs_and_strangers_are_refused",
        ),
        Mutant(
            "bombs among records are refused",
            "if sum(frame.content_size for frame in frames) > max_bytes:",
            "if False:",
            "test_record_bombs_and_strangers_are_refused",
        ),
        Mutant(
            "records without a checksum are refused",
            "if {(f.dict_id, f.has_checksum) for f in frames} - {(shared.dict_id(), True)}:",
            "if {f.dict_id for f in frames} - {shared.dict_id()}:",
            "test_record_bombs_and_strangers_are_refused",
        ),
    ],
    "model_params": [
        Mutant(
            "a lost race is a Conflict",
            "if is_stale then",
            "if false then",
            "test_lost_race_is_a_conflict",
        ),
        Mutant(
            "a script that is sent twice publishes once",
            "if state and string.find(state, ' ') then return {'done', state} end",
            "",
            "test_lost_reply_publishes_once",
        ),
        Mutant(
            "PUBLISH refuses chunks that a prune took",
            "if #lost > 1 then return lost end",
            "",
            "test_prune_between_upload_and_publish",
        ),
        Mutant(
            "a chunk's name is never used again",
            "redis.call('HGET', blobs, hash) ~= by",
            "not redis.call('HGET', blobs, hash)",
            "test_chunks_that_another_save_brought_back",
        ),
        Mutant(
            "text of users is never taken for a chunk",
            """'\\\\n"(%x+)%.(%x+)"'""",
            """'"(%x+)%.(%x+)"'""",
            "test_text_that_looks_like_a_chunk_is_text",
        ),
        Mutant(
            "bfloat16 keeps its byte order",
            '">" * (dtype.byteorder == ">") + dtype.name',
            "dtype.name",
            "test_round_trip_to_the_bit",
        ),
        Mutant(
            "a save that took too long is refused",
            "if not state then return {'late'} end",
            "",
            "test_save_that_takes_too_long_is_refused",
        ),
        Mutant(
            "the alias moves with the version",
            "redis.call('HSET', aliases, alias, number)\n"
            "redis.call('XADD', history, 'MAXLEN', length,",
            "redis.call('XADD', history, 'MAXLEN', length,",
            "test_versions_and_metadata",
        ),
        Mutant(
            "damaged chunks are an error",
            "if blob is None or blake3(blob).hexdigest() != chunk[:64]:",
            "if blob is None:",
            "test_damaged_chunks_are_found",
        ),
        Mutant(
            "damaged manifests are an error",
            "if own_number != number or blake3(text).hexdigest().encode() != checksum:",
            "if own_number != number:",
            "test_damaged_manifests_are_found",
        ),
        Mutant(
            "a manifest under another number is an error",
            "if own_number != number or ",
            "if ",
            "test_damaged_manifests_are_found",
        ),
        Mutant(
            "what decode= returns is what was saved",
            "if not is_like or array.shape != tuple(shape):",
            "if False:",
            "test_decoder_of_another_shape_or_dtype_is_corrupt",
        ),
        Mutant(
            "many references to one chunk are bounded",
            "if 0 in lengths or sum(lengths) > MAX_BYTES:",
            "if 0 in lengths:",
            "test_many_references_to_one_chunk_are_bounded",
        ),
        Mutant(
            "only what changed travels",
            "if n != len(chunks[name])]",
            "]",
            "test_only_what_changed_travels",
        ),
        Mutant(
            "prune keeps what has an alias",
            "for _, number in ipairs(redis.call('HVALS', aliases)) do used[number] = true end",
            "",
            "test_prune_keeps_newest_and_named",
        ),
        Mutant(
            "chunks of a killed save go away",
            "if tonumber(begun) < oldest then redis.call('HDEL', saves, states[i])\n      else",
            "",
            "test_killed_save_leaves_nothing",
            "valkey",
        ),
        Mutant(
            "watch sees each move, in order",
            'moves = self._r.xrange(key, b"(" + last, count=1)',
            "moves = self._r.xrevrange(key, count=1)",
            "test_watch_waits_and_misses_nothing_under_load",
        ),
        Mutant(
            "watch rides through lost connections",
            "if left <= 0 or isinstance(error, redis.AuthenticationError):",
            "if True:",
            "test_watch_rides_through_lost_connections",
            "valkey",
        ),
        Mutant(
            "the history of an alias is bounded",
            "redis.call('XADD', history, 'MAXLEN', length, '*', 'version', number)",
            "redis.call('XADD', history, '*', 'version', number)",
            "test_history_is_bounded",
        ),
        Mutant(
            "works on Redis Cluster",
            'f"{{params:{name}}}:{part}"',
            'f"params:{name}:{part}"',
            "test_works_on_a_cluster",
        ),
    ],
    "training_checkpoints": [
        Mutant(
            "a lease that ended at any moment is refused",
            "if redis.call('GET', lease) ~= value then return false end",
            "",
            "test_a_lease_that_ends_at_any_round_trip_is_refused",
        ),
        Mutant(
            "no token below the highest published one is accepted",
            "if tonumber(token) < tonumber(redis.call('HGET', fence, 'published') or 0)"
            " then return false end",
            "",
            "test_a_lower_token_than_the_published_one_is_refused",
        ),
        Mutant(
            "tokens rise",
            "redis.call('HINCRBY', KEYS[2], 'token', 1)",
            "1",
            "test_one_holder_at_a_time",
        ),
        Mutant(
            "a lease that has ended cannot be renewed",
            "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end",
            "",
            "test_an_ended_lease_is_refused_even_if_nobody_came"
            " test_a_lease_that_ends_at_any_round_trip_is_refused",
        ),
        Mutant(
            "a lease ends by the server's clock",
            "ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])",
            "ARGV[1] .. ' ' .. ARGV[2])",
            "test_waiting_for_the_lease",
        ),
        Mutant(
            "only one's own lease is released",
            "redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])",
            "redis.call('DEL', KEYS[1])",
            "test_leaving_the_block_releases_only_ones_own_lease",
        ),
        Mutant(
            "a reply that was lost harms nothing",
            "if redis.call('LPOS', saved, id) then return {} end",
            "",
            "test_a_lost_reply_and_a_second_try_do_no_harm",
        ),
        Mutant(
            "the latest is never half written",
            'if sum(_each(run, id, "STRLEN")) != len(data):',
            "if False:",
            "test_a_chunk_evicted_before_the_publish_is_noticed",
        ),
        Mutant(
            "what is being written expires",
            ", px=STAGING_TTL_MS)",
            ")",
            "test_what_is_being_written_expires",
        ),
        Mutant(
            "what a killed writer left is removed by the next one",
            "self._remove(old)",
            "pass",
            "test_a_writer_killed_at_any_round_trip_leaves_a_whole_checkpoint",
        ),
        Mutant(
            "old checkpoints go away",
            "while redis.call('LLEN', saved) >= tonumber(keep) do",
            "while false do",
            "test_the_newest_remain_and_old_ones_go",
        ),
        Mutant(
            "damage is an error",
            "if xxhash.xxh3_128_hexdigest(data) != checksum:",
            "if False:",
            "test_a_damaged_newest_is_an_error_and_an_older_one_loads",
        ),
        Mutant(
            "bfloat16 keeps its byte order",
            '">" * (array.dtype.byteorder == ">") + array.dtype.name',
            "array.dtype.name",
            "test_the_small_floats_of_ml_dtypes",
        ),
        Mutant(
            "sizes are compared before memory is taken",
            "if there != int(size) or there > MAX_BYTES:",
            "if False:",
            "test_a_hostile_id_is_refused_at_once"
            " test_more_than_the_limit_is_refused_before_it_is_sent",
        ),
        Mutant(
            "a checkpoint removed while being read is read again",
            "if id not in self._ids():  # removed while we read",
            "if False:",
            "test_a_reader_beside_a_writer_sees_whole_checkpoints_only",
        ),
        Mutant(
            "works on Redis Cluster",
            'f"{{checkpoints:{run}}}:{k}"',
            'f"checkpoints:{run}:{k}"',
            "test_on_a_cluster_the_data_spreads_and_the_rest_stays_together",
        ),
    ],
    "distributed_training": [
        Mutant(
            "damaged bytes are refused",
            "*about, xxh3_64_intdigest(data))",
            "*about, 0)",
            "test_one_flipped_bit_is_noticed",
        ),
        Mutant(
            "a message of an old generation is not read",
            '"dt:{{{self.job}:{self.generation}:{number}:{rank}}}"',
            '"dt:{{{self.job}:0:{number}:{rank}}}"',
            "test_a_message_of_an_old_generation_is_not_read",
        ),
        Mutant(
            "a message of another round is not read",
            '"dt:{{{self.job}:{self.generation}:{number}:{rank}}}"',
            '"dt:{{{self.job}:{self.generation}:0:{rank}}}"',
            "test_mean_of_any_size_in_any_number_of_rounds"
            " test_mean_is_numpys_and_equal_to_the_bit",
        ),
        Mutant(
            "sums are added in rank order",
            "for i, part in self._swap(0, [block[cut] for cut in cuts], array):\n"
            "                    np.add(shard if i else 0, part, out=shard)",
            "for i, part in [*self._swap(0, [block[cut] for cut in cuts], array)][::-1]:\n"
            "                    np.add(shard if i < n - 1 else 0, part, out=shard)",
            "test_mean_is_numpys_and_equal_to_the_bit",
        ),
        Mutant(
            "a killed worker stops nobody: its lease ends",
            "redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))",
            "",
            "test_one_script_makes_one_world_of_the_live",
        ),
        Mutant(
            "a server that stops ends no job: who calls first keeps its lease",
            "local last = redis.call(",
            "redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)\nlocal last = redis.call(",
            "test_a_lease_that_ended_counts_until_another_worker_calls",
        ),
        Mutant(
            "who was thought dead comes back as a newcomer",
            "was, new = step, lease.name != stay",
            "was, new = step, not stay",
            "test_who_was_thought_dead_does_not_bring_its_state_back",
        ),
        Mutant(
            "who comes back as the job ends does not start it anew",
            "(verb == 'return' and #others > 0)",
            "verb == 'return'",
            "test_who_comes_back_as_the_job_ends_is_told",
        ),
        Mutant(
            "two who were thought dead agree, if nobody else is left",
            "            generation, members = lease.world(after=generation)",
            "            stay = lease.name\n"
            "            generation, members = lease.world(after=generation)",
            "test_two_who_were_thought_dead_agree_if_nobody_else_is_left",
        ),
        Mutant(
            "nobody leaves while another needs its state",
            "link.furthest(step, vector)  # nobody leaves",
            "pass  # nobody leaves",
            "test_nobody_leaves_while_another_needs_its_state",
        ),
        Mutant(
            "each generation starts from the worker that is furthest ahead",
            "[int(said.argmax())]",
            "[0]",
            "test_who_was_interrupted_takes_the_state_of_who_was_not"
            " test_a_newcomer_joins_in_mid_run",
        ),
        Mutant(
            "NaN is refused before it is sent",
            "if not np.isfinite([flat.min(initial=0), flat.max(initial=0)]).all():",
            "if False:",
            "test_nan_is_refused_before_it_is_sent",
        ),
        Mutant(
            "other shapes are refused by name",
            'f"{self.layout} {like.shape}".encode()',
            'f"{self.layout}".encode()',
            "test_vectors_that_differ_are_refused_by_name",
        ),
        Mutant(
            "timeouts name the missing",
            'f"{silent} sent nothing for',
            'f"somebody sent nothing for',
            "test_timeout_names_the_silent_rank",
        ),
        Mutant(
            "no inbox without a TTL",
            "                pipe.pexpire(inbox, ttl_ms)\n",
            "",
            "test_while_a_job_runs_all_its_keys_have_a_ttl",
        ),
        Mutant(
            "message and TTL are one MULTI",
            "transaction=True) as pipe:  # never without a TTL",
            "transaction=False) as pipe:",
            "test_a_message_that_is_cut_off_does_not_stay",
        ),
        Mutant(
            "inboxes do not stay behind",
            "self._delete(self.round, self.rank)",
            "pass",
            "test_n_workers_end_where_one_process_ends test_mean_is_numpys_and_equal_to_the_bit",
        ),
        Mutant(
            "what compress= holds back is sent later",
            "step, vector, kept = end, vector - mean, after_round",
            "step, vector = end, vector - mean",
            "test_what_compress_holds_back_is_sent_later",
        ),
        Mutant(
            "works on Redis Cluster",
            'f"dt:{{{self.job}}}:{name}"',
            'f"dt:{self.job}:{name}"',
            "test_it_works_on_a_redis_cluster",
        ),
    ],
    "parameter_server": [
        Mutant(
            "each gradient is applied once, also if it is sent twice",
            "(verb == 'push' and clock > done)",
            "(verb == 'push')",
            "test_who_lost_its_lease_cannot_add_an_old_gradient",
        ),
        Mutant(
            "who slept cannot add an old gradient",
            "elseif verb == 'enter' or (held and verb ~= 'look') then",
            "elseif verb ~= 'look' then",
            "test_who_lost_its_lease_cannot_add_an_old_gradient",
        ),
        Mutant(
            "a dead worker holds nobody for longer than its lease",
            "KEYS[1], after, '+inf', 'BYSCORE'",
            "KEYS[1], 0, '+inf', 'BYSCORE'",
            "test_a_dead_worker_holds_nobody_for_longer_than_its_lease",
        ),
        Mutant(
            "a dead worker that was ahead of all who left is waited for",
            "if not live and left and max(left) == max(version.clocks.values()):",
            "if not live and version.clocks:",
            "test_the_only_worker_is_killed_and_comes_again",
        ),
        Mutant(
            "parameters of another shape are refused by name",
            "if version is not None and version.layout != layout:",
            "if False:",
            "test_params_of_another_shape_are_refused_by_name",
        ),
        Mutant(
            "nobody is ahead by more than the bound",
            "< clock - staleness]",
            "< clock - staleness - 3]",
            "test_nobody_is_ahead_by_more_than_the_bound",
        ),
        Mutant(
            "one worker without staleness is plain SGD",
            "if version is not None and not behind:",
            "if version is not None:",
            "test_one_worker_without_staleness_is_plain_sgd",
        ),
        Mutant(
            "a server that is started again goes on where it was",
            "if version is None:\n        version = Version(0",
            "if True:\n        version = Version(0",
            "test_kill_9_of_server_and_worker_loses_and_doubles_nothing",
            "valkey",
        ),
        Mutant(
            "version and position become visible together",
            '"version": json.dumps(asdict(version))',
            '"version": json.dumps(asdict(version) | {"position": "0-0"})',
            "test_kill_9_of_server_and_worker_loses_and_doubles_nothing",
            "valkey",
        ),
        Mutant(
            "version and TTL are one MULTI",
            "r.pipeline(transaction=True)",
            "r.pipeline(transaction=False)",
            "test_a_version_that_is_cut_off_does_not_stay",
        ),
        Mutant(
            "damaged bytes are refused",
            "digest = xxh3_64_intdigest(chunk, seed=",
            'digest = xxh3_64_intdigest(b"", seed=',
            "test_hostile_bytes_are_refused",
        ),
        Mutant(
            "no chunk passes for another",
            ', seed=xxh3_64_intdigest(f"{name}:{i}".encode()))',
            ")",
            "test_vectors_come_back_in_chunks",
        ),
        Mutant(
            "NaN is refused before it is sent",
            "if not np.isfinite([flat.min(initial=0), flat.max(initial=0)]).all():",
            "if False:",
            "test_a_bad_gradient_is_refused_with_the_workers_name",
        ),
        Mutant(
            "all keys have a TTL",
            ", chunk)), px=int(1000 * ttl_s))",
            ", chunk)))",
            "test_all_keys_have_a_ttl",
        ),
        Mutant(
            "nothing is left",
            "for name in (*done, ",
            "for name in (",
            "test_each_gradient_is_applied_once_and_nothing_is_left",
        ),
        Mutant(
            "works on Redis Cluster",
            'f"ps:{{{job}}}:{name}" for name in ("leases",',
            'f"ps:{job}:{name}" for name in ("leases",',
            "test_it_works_on_a_redis_cluster",
        ),
    ],
    "distributed_prediction": [
        Mutant(
            "of two answers the first counts: XACK says so",
            "elseif redis.call('XACK', KEYS[1], 'workers', id) == 1 then",
            "elseif redis.call('XACK', KEYS[1], 'workers', id) then",
            "test_of_two_answers_the_first_counts",
        ),
        Mutant(
            "what is answered is no longer pending: the XACK",
            "elseif redis.call('XACK', KEYS[1], 'workers', id) == 1 then",
            "else",
            "test_of_two_answers_the_first_counts"
            " test_every_batch_has_its_result_and_numbers_go_on",
        ),
        Mutant(
            "taking a batch is a lease: nobody takes it over earlier",
            "'workers', 'IDLE', lease, '-'",
            "'workers', 'IDLE', 0, '-'",
            "test_batches_of_a_lost_worker_go_to_others_after_the_lease test_max_batches_is_kept",
        ),
        Mutant(
            "batches of a lost worker go to others",
            "if late then return",
            "if false then return",
            "test_batches_of_a_lost_worker_go_to_others_after_the_lease",
        ),
        Mutant(
            "a failing batch is tried so often and no more",
            "is_last = tries >= max_deliveries",
            "is_last = False",
            "test_a_failing_batch_is_tried_so_often_then_dead_and_blocks_no_other",
        ),
        Mutant(
            "a batch that kills its workers is not tried for ever",
            "if tries > max_deliveries:",
            "if False:",
            "test_a_batch_that_kills_its_workers_takes_no_other_along",
        ),
        Mutant(
            "a group that is sent twice is added once",
            "if group > tonumber(redis.call('HGET', open, token) or -1) then",
            "if true then",
            "test_a_group_sent_twice_is_added_once",
        ),
        Mutant(
            "batches that a server forgot are noticed",
            "if total < known + len(group):",
            "if False:",
            "test_a_server_that_forgot_batches_is_noticed",
        ),
        Mutant(
            "the backlog has a bound in batches",
            "(left + len(group) > max_backlog or size > MAX_BACKLOG_BYTES)",
            "size > MAX_BACKLOG_BYTES",
            "test_submit_waits_while_too_many_are_unanswered",
        ),
        Mutant(
            "the backlog has a bound in bytes",
            "(left + len(group) > max_backlog or size > MAX_BACKLOG_BYTES)",
            "left + len(group) > max_backlog",
            "test_submit_waits_while_too_many_bytes_are_unanswered",
        ),
        Mutant(
            "a submit that crashed keeps no worker",
            "redis.call('EXPIRE', open, 60)",
            "",
            "test_a_crashed_submit_does_not_keep_the_workers",
        ),
        Mutant(
            "damaged bytes are noticed",
            'blob[:8] != b"PBA1" + zlib.crc32(blob[8:]).to_bytes(4, "big")',
            'blob[:4] != b"PBA1"',
            "test_every_flipped_bit_and_every_cut_is_noticed",
        ),
        Mutant(
            "a reply of large batches has a bound",
            "and size < 4194304 do",
            "do",
            "test_a_reply_of_large_batches_has_a_bound",
        ),
        Mutant(
            "an answer of large results has a bound",
            "if size > MAX_BLOB or (",
            "if (",
            "test_an_answer_of_large_results_has_a_bound",
        ),
        Mutant(
            "slow batches behind fast ones are not run twice",
            "time.monotonic() - begin > lease_s / 2",
            "False",
            "test_slow_batches_behind_fast_ones_are_predicted_once",
        ),
        Mutant(
            "what was not begun counts as not delivered",
            "'RETRYCOUNT', tries, 'JUSTID'",
            "'JUSTID'",
            "test_what_was_not_begun_counts_as_not_delivered",
        ),
        Mutant(
            "what another worker took over is not put back",
            "if redis.pcall('XPENDING', key, 'workers', id, id, 1, me)[1] then",
            "if true then",
            "test_what_was_not_begun_counts_as_not_delivered",
        ),
        Mutant(
            "a job that is not there yet is not finished",
            "(exists and state.finished)",
            "state.finished",
            "test_who_reads_a_job_that_is_not_there_is_told",
        ),
        Mutant(
            "works on Redis Cluster",
            'f"predict:{{{job}}}:{key}"',
            'f"predict:{job}:{key}"',
            "test_on_a_cluster",
        ),
    ],
    "realtime_training": [
        Mutant(
            "a trainer that lost its lease changes nothing",
            "if holder and holder ~= token then return -1 end",
            "",
            "test_the_lease_guards_before_the_other_has_committed",
        ),
        Mutant(
            "a lease that nobody else has is no loss",
            "if holder and holder ~= token",
            "if holder ~= token",
            "test_a_block_that_outlasts_the_lease_is_committed",
        ),
        Mutant(
            "a slow block keeps its lease",
            "if time.monotonic() > self._renew_at:",
            "if False:",
            "test_a_slow_block_renews_the_lease_between_its_events",
        ),
        Mutant(
            "a model learns one stream",
            'if self._reader.stream not in ("", self._stream):',
            "if False:",
            "test_a_model_learns_one_stream",
        ),
        Mutant(
            "nor with a lease that it should not have: the position",
            "if position ~= before and (position ~= after or not holder) then return -1 end",
            "",
            "test_the_position_guards_even_if_the_lease_does_not"
            " test_a_trainer_overtaken_while_it_waited_does_not_wait_on",
        ),
        Mutant(
            "another's commit of the same events is not taken for one's own",
            "(position ~= after or not holder)",
            "position ~= after",
            "test_a_trainer_that_lost_its_lease_can_run_again",
        ),
        Mutant(
            "a commit that is sent twice counts once",
            "if position == after then return",
            "if false then return",
            "test_a_commit_whose_reply_was_lost_counts_once",
        ),
        Mutant(
            "position and weights are one write",
            "'position', after, 'kind'",
            "'kind'",
            "test_each_event_is_learned_once_in_order"
            " test_max_events_is_kept_and_the_next_run_goes_on",
        ),
        Mutant(
            "a killed trainer's lease ends",
            "self._token, nx=True, px=self._lease_ms)",
            "self._token, nx=True)",
            "test_a_trainer_killed_before_its_first_commit_holds_the_lease_no_longer",
        ),
        Mutant(
            "of two trainers one is refused",
            "self._token, nx=True, px=self._lease_ms)",
            "self._token, px=self._lease_ms)",
            "test_of_two_trainers_one_works_and_the_other_is_refused",
        ),
        Mutant(
            "only one's own lease is released",
            "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call(",
            "return redis.call(",
            "test_the_lease_guards_before_the_other_has_committed",
        ),
        Mutant(
            "only learned events are trimmed",
            "{int(sequence) + 1}",
            "{int(sequence) + 99}",
            "test_the_stream_is_trimmed_only_behind_what_was_learned",
        ),
        Mutant(
            "malformed events stop nothing",
            "-1e100 < value < 1e100\n        if not is_number",
            "True\n        if not is_number",
            "test_malformed_events_go_to_the_dead_letters_and_stop_nothing",
        ),
        Mutant(
            "predict refuses what emit refuses",
            "-1e100 < value < 1e100\n        if name.__class__",
            "True\n        if name.__class__",
            "test_predict_takes_what_emit_takes_and_refuses_the_rest",
        ),
        Mutant(
            "large events are refused before they are parsed",
            "if len(text) > MAX_EVENT_BYTES:",
            "if False:",
            "test_malformed_events_go_to_the_dead_letters_and_stop_nothing",
        ),
        Mutant(
            "a reader never sees a mixture: the MULTI",
            "pipe = self._r.pipeline(transaction=True)",
            "pipe = self._r.pipeline(transaction=False)",
            "test_nobody_commits_between_two_reads",
        ),
        Mutant(
            "a damaged state is refused",
            "if slot >> self.bits or not math.isfinite(z) or not 0 <= n < math.inf:",
            "if False:",
            "test_a_damaged_state_is_refused",
        ),
        Mutant(
            "metrics are bounded",
            "redis.call('XADD', metrics, 'MAXLEN', ARGV[8], '*'",
            "redis.call('XADD', metrics, '*'",
            "test_metrics_without_both_labels_have_no_auc_and_are_bounded",
        ),
        Mutant(
            "dead letters are bounded",
            "redis.call('XADD', dead, 'MAXLEN', ARGV[9], '*',",
            "redis.call('XADD', dead, '*',",
            "test_dead_letters_are_bounded",
        ),
        Mutant(
            "works on Redis Cluster",
            'f"{{{model}}}:{part}"',
            'f"{model}:{part}"',
            "test_it_works_on_a_cluster",
        ),
    ],
    "realtime_prediction": [
        Mutant(
            "an older event never replaces a newer one",
            "if d >= 0 and redis.call('SET'",
            "if redis.call('SET'",
            "test_an_older_event_never_replaces_a_newer_one"
            " test_the_newest_event_wins_in_any_order_and_batch",
        ),
        Mutant(
            "the first byte that differs decides",
            "if d == 0 then d = new:byte(b) - old:byte(b) end",
            "d = new:byte(b) - old:byte(b)",
            "test_the_newest_event_wins_in_any_order_and_batch",
        ),
        Mutant(
            "an older schema never replaces a newer one",
            "for b = 13,",
            "for b = 17,",
            "test_a_schema_changes_only_by_a_higher_version",
        ),
        Mutant(
            "a schema changes only by a higher version",
            'if held != mine and held["version"] >= version:',
            "if False:",
            "test_a_schema_changes_only_by_a_higher_version",
        ),
        Mutant(
            "each entity has its own TTL",
            "unpack(px == '0' and {} or {'PX', px})",
            "unpack({})",
            "test_each_entity_has_its_own_ttl",
        ),
        Mutant(
            "milliseconds do not freeze a row",
            "(times < LAST)",
            "(times < np.inf)",
            "test_a_time_that_would_freeze_its_row_is_refused",
        ),
        Mutant(
            "a damaged row is an error",
            " or not {*map(crc32, rows)} <= {RESIDUE}:",
            ":",
            "test_damaged_rows_never_pass",
        ),
        Mutant(
            "a row of another schema is never decoded",
            'return bool((np.frombuffer(b"".join(rows), self.dtype)["head"] == self._head).all())',
            "return True",
            "test_a_schema_changes_only_by_a_higher_version"
            " test_a_hostile_row_is_an_error_that_names_its_id",
        ),
        Mutant(
            "missing is never zero",
            "np.full((1, *s), FILL[d.kind](d), d)",
            "np.zeros((1, *s), d)",
            "test_missing_is_never_silently_zero",
        ),
        Mutant(
            "what does not fit is refused",
            "if given.shape == shape and np.all(same | (cast != cast)):",
            "if given.shape == shape:",
            "test_columns_that_do_not_fit_are_refused",
        ),
        Mutant(
            "1,000 requests become 16 batches",
            "asyncio.timeout_at(self._queue[0][2] + self._wait_s)",
            "asyncio.timeout_at(0)",
            "test_a_batch_waits_until_it_is_full_or_time_is_up",
        ),
        Mutant(
            "a slow model does not break the budget",
            "loop.call_later(self._budget_s,",
            "loop.call_later(60 + self._budget_s,",
            "test_a_slow_model_does_not_break_the_budget",
        ),
        Mutant(
            "a frozen server does not break the budget",
            '{"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}',
            "{}",
            "test_a_frozen_server_does_not_break_the_budget",
            "valkey",
        ),
        Mutant(
            "a server that is down is left alone for a while",
            "if self.failed >= self.failures and now() < self.retry_at:",
            "if False:",
            "test_a_killed_server_is_answered_for_at_once_and_recovers",
            "valkey",
        ),
        Mutant(
            "a server that is back is found again",
            "if self.failed >= self.failures and now() < self.retry_at:",
            "if self.failed >= self.failures:",
            "test_a_killed_server_is_answered_for_at_once_and_recovers",
            "valkey",
        ),
        Mutant(
            "a damaged row hurts nobody else",
            "fresh = [rows[i] if i in errors else row for i, row in enumerate(fresh)]",
            "fresh = rows if errors else fresh",
            "test_a_damaged_row_hurts_nobody_else",
        ),
        Mutant(
            "the cache is bounded",
            "while len(self._known) > self.cached_rows:",
            "while False:",
            "test_the_cache_is_bounded_and_forgets_what_is_deleted",
        ),
        Mutant(
            "a failed reload keeps the model",
            "            except Exception:\n                logging.",
            "            except KeyboardInterrupt:\n                logging.",
            "test_a_failed_reload_keeps_the_model",
        ),
        Mutant(
            "no thread is left",
            "await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)",
            "pass",
            "test_nothing_is_left_behind",
        ),
        Mutant(
            "works on Redis Cluster",
            "if not isinstance(self.r, redis.RedisCluster):",
            "if True:",
            "test_it_works_on_a_cluster",
        ),
    ],
    "realtime_recommendation": [
        Mutant(
            "an event that is sent twice counts once as a neighbour",
            "if not before or visit > before then",
            "if true then",
            "test_an_event_sent_twice_counts_once_as_a_neighbour",
        ),
        Mutant(
            "late events give the same state",
            "local gain = before and rest(visit, before, 2 * slow) or visit",
            "local gain = visit",
            "test_late_events_and_any_order_give_one_state",
        ),
        Mutant(
            "both sides of a pair keep the larger sum",
            "redis.call('ZADD', near, 'GT', unpack(added))",
            "redis.call('ZADD', near, 'LT', unpack(added))",
            "test_similar_trending_and_recommend_are_those_of_numpy",
        ),
        Mutant(
            "what is old weighs less",
            "return whole(a + half_life * log2(1 + 2 ^ ((b - a) / half_life)))",
            "return whole(a + half_life)",
            "test_similar_trending_and_recommend_are_those_of_numpy",
        ),
        Mutant(
            "no time overflows",
            "2 ^ math.min(64, (near[j + 1] + recency) / slow)",
            "2 ^ (near[j + 1] / slow) * 2 ^ (recency / slow)",
            "test_times_far_apart_neither_overflow_nor_vanish",
        ),
        Mutant(
            "what everybody has does not lead",
            "scores[found[i]] = scores[found[i]] * damp",
            "",
            "test_what_everybody_has_is_damped",
        ),
        Mutant(
            "what was seen is left out",
            "seen[history[i]] = exclude_seen",
            "seen[history[i]] = false",
            "test_seen_items_are_left_out_unless_wanted",
        ),
        Mutant(
            "only what was offered is a click",
            "if redis.call('SREM', prefix .. 'offered:' .. user, item) == 1\n      and redis",
            "if redis",
            "test_only_what_was_offered_is_a_click_and_only_once",
        ),
        Mutant(
            "an item shown is counted",
            "redis.call('HINCRBY', shown, ARGV[i], 1)",
            "",
            "test_exploration_learns_from_clicks",
        ),
        Mutant(
            "what was offered to a user is bounded",
            "redis.call('SREM', offered, item)",
            "local kept = item",
            "test_memory_is_bounded_and_temporary",
        ),
        Mutant(
            "the history of a user is bounded",
            "trim(mine, history)",
            "",
            "test_memory_is_bounded_and_temporary",
        ),
        Mutant(
            "the list of new items is bounded",
            "while redis.call('ZCARD', new) > max_new do",
            "while false do",
            "test_memory_is_bounded_and_temporary",
        ),
        Mutant(
            "neighbours are bounded",
            "if redis.call('ZADD', near, 'GT', unpack(added)) > 0 then trim(near, neighbours) end",
            "redis.call('ZADD', near, 'GT', unpack(added))",
            "test_memory_is_bounded_and_temporary",
        ),
        Mutant(
            "users are forgotten",
            "redis.call('EXPIRE', mine, ttl)",
            "",
            "test_memory_is_bounded_and_temporary",
        ),
        Mutant(
            "a server that forgot the scripts is told again",
            "except redis.exceptions.NoScriptError:",
            "except ZeroDivisionError:",
            "test_a_server_that_forgot_the_scripts_is_told_again",
        ),
        Mutant(
            "delete spares other namespaces",
            "match=_prefix(pattern)",
            "match=_prefix(ns)",
            "test_delete_leaves_nothing_of_the_namespace_and_all_of_others",
        ),
        Mutant(
            "works on Redis Cluster",
            'return f"{{{ns}}}:"',
            'return f"{ns}:"',
            "test_it_works_on_a_cluster",
        ),
    ],
    "realtime_language_model": [
        Mutant(
            "a command that is sent twice counts once",
            "if tonumber(call('GET', KEYS[3]) or 0) >= slice then return 0 end",
            "",
            "test_a_command_sent_twice_counts_once",
        ),
        Mutant(
            "what a learner left behind expires",
            "call('SET', KEYS[3], slice, 'EX', 600)",
            "call('SET', KEYS[3], slice)",
            "test_writers_killed_at_random_leave_a_valid_model",
            "valkey",
        ),
        Mutant(
            "readers never mix two states: the MULTI",
            "with model.r.pipeline(transaction=True) as pipe:",
            "with model.r.pipeline(transaction=False) as pipe:",
            "test_nobody_writes_between_two_reads",
        ),
        Mutant(
            "the lower orders count continuations, not tokens",
            "if was == 0 then below[token] = (below[token] or 0) + 1 end",
            "below[token] = (below[token] or 0) + amounts[token]",
            "test_agrees_with_the_paper",
        ),
        Mutant(
            "prune takes continuations back",
            "below[token] = (below[token] or 0) - 1",
            "",
            "test_prune_leaves_the_model_of_the_rest",
        ),
        Mutant(
            "probabilities sum to 1",
            "+ reserved * p) / total",
            "+ p) / total",
            "test_probabilities_sum_to_one",
        ),
        Mutant(
            "three discounts, each from the text",
            "discounts.append(discount if 0 < discount < i else i / 2)",
            "discounts.append(i / 2)",
            "test_agrees_with_the_paper test_real_text_agrees_with_the_paper",
        ),
        Mutant(
            "next_tokens are the most probable",
            "best[-1][1] >= limit",
            "best[-1][1] >= 0",
            "test_next_tokens_are_the_most_probable",
        ),
        Mutant(
            "another order is refused",
            "and tonumber(call('HGET', KEYS[1], 'order')) ~= order then return -1 end",
            "and false then return -1 end",
            "test_refuses_what_it_cannot_do",
        ),
        Mutant(
            "a long token costs no memory in each n-gram",
            "if len(data) > LONGEST:",
            "if False:",
            "test_a_long_token_is_stored_once",
        ),
        Mutant(
            "ids of a stream are token numbers: another producer goes on",
            "id=this, maxlen=maxlen",
            "maxlen=maxlen",
            "test_two_different_answers_do_not_mix",
        ),
        Mutant(
            "a stream has a TTL",
            "pipe.expire(stream, ttl_s)",
            "pipe.exists(stream)",
            "test_a_late_reader_gets_all_tokens test_a_long_stream_is_bounded_and_gaps_are_seen",
        ),
        Mutant(
            "a gap is seen",
            'if int(this.split(b"-")[0]) != after + 1:',
            "if False:",
            "test_a_long_stream_is_bounded_and_gaps_are_seen",
        ),
        Mutant(
            "a dead producer is noticed",
            "left = max(deadline - time.monotonic(), 0.0)",
            "left = 1.0",
            "test_a_reader_does_not_wait_for_ever",
        ),
        Mutant(
            "an answer that is sent again can be cancelled",
            "while page := xrange(stream, ",
            "while page := xrange('none', ",
            "test_an_answer_that_is_sent_again_can_be_cancelled_or_fail",
        ),
        Mutant(
            "a lost connection is taken up again",
            "except (redis.ConnectionError, redis.TimeoutError):\n            time",
            "except ZeroDivisionError:\n            time",
            "test_a_reader_comes_back_after_a_lost_connection",
        ),
        Mutant(
            "works on Redis Cluster",
            'return f"{{{self.name}}}:{name}".encode()',
            'return f"{self.name}:{name}".encode()',
            "test_works_on_a_cluster",
        ),
    ],
    "persistence": [
        Mutant(
            "one changed bit is refused",
            "if digest != _digest(file, size, line) or made.keys",
            "if made.keys",
            "test_one_changed_bit_anywhere_is_refused",
            "valkey",
        ),
        Mutant(
            "a wrong number of keys is refused",
            " or made.keys not in (None, _keys(file)):",
            ":",
            "test_a_wrong_number_of_keys_is_refused",
            "valkey",
        ),
        Mutant(
            "a backup that fails leaves the older one",
            "    target = Path(path)\n    try:",
            "    target = Path(path)\n    target.unlink(missing_ok=True)\n    try:",
            "test_a_server_that_dies_in_the_middle_leaves_the_older_backup",
            "valkey",
        ),
        Mutant(
            "a snapshot that ends too early is no backup",
            'raise ValueError("the server closed the connection in the middle")',
            "break",
            "test_a_snapshot_that_ends_too_early_is_an_error",
        ),
        Mutant(
            "restore overwrites nothing",
            "if log.exists() or snapshot.exists():",
            "if False:",
            "test_restore_overwrites_nothing",
            "valkey",
        ),
        Mutant(
            "restore serves a server without a log, too",
            "os.link(base, snapshot)",
            "pass",
            "test_a_backup_is_restored_into_a_fresh_server_key_by_key",
            "valkey",
        ),
        Mutant(
            "durable_write promises no more than WAITAOF says",
            'level = "fsynced" if here else "written"',
            'level = "fsynced"',
            "test_a_durable_write_says_what_the_server_can_promise",
            "valkey",
        ),
        Mutant(
            "without WAITAOF only safe settings are believed",
            'rest == ["always", "no"]',
            'rest[:1] == ["always"]',
            "test_always_without_waitaof_is_believed_only_with_its_safe_setting",
            "redis",
        ),
        Mutant(
            "on a cluster the node of the key is asked",
            "node.get_redis_connection(node.get_node_from_key(args[0] if key is None else key))",
            "node.get_redis_connection(node.get_nodes()[0])",
            "test_on_a_cluster_the_node_of_the_key_is_asked",
        ),
        Mutant(
            "the audit is bounded",
            "itertools.islice(r.scan_iter(match, 1000), sample)",
            "r.scan_iter(match, count=1000)",
            "test_the_audit_of_many_keys_is_bounded",
            "valkey",
        ),
        Mutant(
            "a server that refuses questions is a finding",
            "except redis.ResponseError as error:  # a managed",
            "except ZeroDivisionError as error:  # a managed",
            "test_a_server_that_refuses_to_tell_is_a_finding_and_no_crash",
            "valkey",
        ),
        Mutant(
            "a value cannot smuggle in a second line",
            ' or re.search(r"[\\r\\n\\0]", value):',
            ":",
            "test_a_value_cannot_smuggle_in_a_second_line",
        ),
        Mutant(
            "apply evicts nothing",
            'left = {"bind", "protected-mode", "maxmemory" if tight else ""}',
            'left = {"bind", "protected-mode"}',
            "test_apply_evicts_nothing_by_a_limit_that_is_too_low",
            "valkey",
        ),
    ],
    "high_availability": [
        Mutant(
            "a lost reply never counts twice",
            "if not safe and (lost or partly):",
            "if False:",
            "test_a_lost_reply_does_not_count_twice",
        ),
        Mutant(
            "what was sent is not taken for what was not",
            "except UNREACHABLE as error:\n            raise OutcomeUnknown(str(error)) from error"
            "\n\n    def read_response",
            "except ZeroDivisionError as error:\n            raise error\n\n    def read_response",
            "test_a_connection_that_breaks_while_sending_is_an_unknown_outcome",
            "valkey",
        ),
        Mutant(
            "SET NX is not repeated",
            'UNLESS = {"SET": {"NX", "XX", "GET", "IFEQ"}, ',
            "UNLESS = {",
            "test_what_is_repeated",
        ),
        Mutant(
            "what is idempotent is repeated",
            "return bool({name, name.split()[0]} & IDEMPOTENT) and",
            "return bool({name} & READS) and",
            "test_a_lost_reply_does_not_count_twice",
        ),
        Mutant(
            "nor in pipelines: the whole stack is judged",
            "        return _repeat(send, [args for args, _ in stack], self, whole)\n\n"
            "    def _execute_once",
            "        return _repeat(send, [], self, whole)\n\n    def _execute_once",
            "test_lost_replies_in_pipelines_and_transactions",
            "valkey",
        ),
        Mutant(
            "too few replicas are an error with their number",
            "if self.acknowledged < self.replicas:",
            "if False:",
            "test_confirmed_says_how_many_have_it",
            "valkey",
        ),
        Mutant(
            "WAIT goes to the key's node",
            "r.get_redis_connection(r.get_node_from_key(key)) if is_cluster",
            "r.get_redis_connection(r.get_default_node()) if is_cluster",
            "test_trap_wait_on_a_cluster_asks_another_node_and_the_remedy",
            "valkey",
        ),
        Mutant(
            "WAIT by itself is never repeated",
            'in ("WAIT", "WAITAOF"):',
            "in ():",
            "test_wait_alone_is_not_repeated",
            "valkey",
        ),
        Mutant(
            "confirmed() wants keys of one slot",
            "if self.r.determine_slot(*args) != self.r.keyslot(self.key):",
            "if False:",
            "test_confirmed_on_a_cluster_wants_keys_of_one_slot",
        ),
        Mutant(
            "a wrong password fails at once",
            " and not isinstance(cause, FOR_GOOD)",
            "",
            "test_a_wrong_password_is_an_error_at_once",
            "valkey",
        ),
        Mutant(
            "READONLY and NOREPLICAS are waited for",
            "refused = isinstance(error, REFUSED + BY_STATE) or text.startswith(REFUSED_TEXT)",
            "refused = False",
            "test_a_primary_that_is_demoted_or_lacks_replicas",
            "valkey",
        ),
        Mutant(
            "what cannot fail over is not rendered",
            "if len(watchers) < 3 or not",
            "if not",
            "test_what_cannot_fail_over_is_not_rendered",
        ),
    ],
    "security": [
        Mutant(
            "each changed bit is refused: HMAC",
            "return rest[32:] if hmac.compare_digest(tag, rest[:32]) else None",
            "return rest[32:] if tag else None",
            "test_every_flipped_bit_and_every_cut_is_refused",
        ),
        Mutant(
            "tags are compared in constant time",
            "hmac.compare_digest(tag, rest[:32])",
            "tag == rest[:32]",
            "test_tags_are_compared_in_constant_time",
        ),
        Mutant(
            "a value under another Redis key is refused",
            'return b"%s%s%s" % (head, len(key).to_bytes(8), key)',
            "return head",
            "test_a_value_moved_to_another_redis_key_is_refused",
        ),
        Mutant(
            "an old version is refused",
            "if found < at_least if at_least is not None else found != version:",
            "if False:",
            "test_an_old_version_played_back_is_refused",
        ),
        Mutant(
            "version and key id are authenticated",
            'return b"%s%s%s" % (head, len(key)',
            'return b"%s%s%s" % (head[:4], len(key)',
            "test_an_old_version_played_back_is_refused"
            " test_every_flipped_bit_and_every_cut_is_refused",
        ),
        Mutant(
            "nonces never repeat",
            "nonce, cipher = secrets.token_bytes(12),",
            "nonce, cipher = bytes(12),",
            "test_nonces_never_repeat_and_nothing_shows_through",
        ),
        Mutant(
            "too large a value is refused before it is read",
            "if not 13 <= len(data) <= MAX_BYTES or",
            "if not 13 <= len(data) or",
            "test_too_large_a_value_is_refused_before_it_is_read",
        ),
        Mutant(
            "a role may do nothing else",
            "clearselectors -@all {CONNECT}",
            "clearselectors +@all {CONNECT}",
            "test_a_role_may_do_nothing_else",
            "valkey",
        ),
        Mutant(
            "each recipe has a selector: who serves a model cannot change it",
            '*(f"({text})" for text in sets if text)',
            "*(text for text in sets if text)",
            "test_who_serves_a_model_cannot_change_it",
            "valkey",
        ),
        Mutant(
            "who predicts the next token cannot change the counts",
            '"%R~{NAME}:* %W~{NAME}:cancel ~{NAME}:tokens ',
            '"~{NAME}:* ',
            "test_who_serves_a_model_cannot_change_it",
            "valkey",
        ),
        Mutant(
            "the monitor sees no value",
            "+xinfo|groups +xinfo|consumers",
            "+xinfo",
            "test_the_monitor_sees_sizes_and_no_value",
            "valkey",
        ),
        Mutant(
            "a namespace cannot widen the rules",
            'if not re.fullmatch(r"[\\w.:/-]+", name, re.ASCII):',
            "if not name:",
            "test_a_namespace_cannot_widen_the_rules",
        ),
        Mutant(
            "no password is written",
            "#{hashlib.sha256(password).hexdigest()} ",
            ">{password.decode()} ",
            "test_no_password_is_rendered_and_unknown_roles_are_refused",
        ),
        Mutant(
            "a user that was changed by hand is found",
            "is_right, words = rights == wanted,",
            "is_right, words = bool(wanted),",
            "test_rendered_users_are_trusted_until_they_drift",
            "valkey",
        ),
        Mutant(
            "no request fails while passwords rotate: two are valid",
            '_set_user(nodes, user, f"#{fresh}")\n    try:',
            '_set_user(nodes, user, "resetpass", f"#{fresh}")\n    try:',
            "test_no_request_fails_while_passwords_rotate",
            "valkey",
        ),
        Mutant(
            "a rotation that fails changes nothing",
            "for node, before in zip(nodes, there, strict=True):",
            "for node, before in ():",
            "test_a_rotation_that_cannot_tell_the_clients_changes_nothing",
            "valkey",
        ),
        Mutant(
            "a rotation that fails leaves the only password",
            'if fresh not in before["passwords"]:',
            "if True:",
            "test_a_rotation_that_cannot_tell_the_clients_changes_nothing",
            "valkey",
        ),
        Mutant(
            "the host name is verified",
            "    context.minimum_version =",
            "    context.check_hostname = False\n    context.minimum_version =",
            "test_a_wrong_host_name_is_refused",
            "valkey",
        ),
        Mutant(
            "a server of another CA is refused",
            "    context.minimum_version =",
            "    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n"
            "    context.minimum_version =",
            "test_a_server_of_another_ca_is_refused",
            "valkey",
        ),
        Mutant(
            "nobody else can read the keys",
            "secret.touch(0o600)",
            "pass",
            "test_nobody_can_read_the_keys",
        ),
    ],
}


def recipe(root: Path, stem: str) -> Path:
    return root / "recipes" / f"{stem}.py"


def mutated(text: str, mutant: Mutant) -> str:
    """The recipe with the mutant; ValueError if its text does not stand there exactly once."""
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"stands there {count} times, not once: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def run(root: Path, stem: str, tests: Iterable[str], server: str, limit_s: float) -> str:
    """Return "passed", "failed NODE - REASON" (the first to fail), or what else pytest did."""
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", f"--servers={server}",
        "-o", f"timeout={limit_s / 2}", "-p", "no:cacheprovider",
        "-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin",
        *(f"tests/recipes/test_{stem}.py::{name}" for name in tests),
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if name != "CI"} | {
        "COLUMNS": "200",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they take longer to load than most of the tests
        # Two versions of a recipe may have one size and one second: bytecode would be mixed up.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for _ in range(2):
        try:
            result = subprocess.run(
                command, cwd=root, env=env, capture_output=True, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            return f"not done in {limit_s} s"
        # An alarm can hit bytecode that has no line, which pytest 9.2 cannot report: once more.
        if result.returncode != pytest.ExitCode.INTERNAL_ERROR:
            break
    if result.returncode == 0:
        return "skipped" if "skipped" in result.stdout else "passed"
    failed = re.search(r"^FAILED \S+?::(.*)$", result.stdout, re.MULTILINE)
    if result.returncode == 1 and failed:
        return f"failed {failed[1]}"
    return f"pytest ended with {result.returncode}: {(result.stdout + result.stderr)[-500:]}"


def healthy(root: Path, stem: str) -> list[str]:
    """Say what is wrong without any mutant."""
    problems, tests = [], defaultdict[str, set[str]](set)
    for mutant in MUTANTS[stem]:
        tests[mutant.server].update(mutant.tests.split())
    for server, names in tests.items():
        if (outcome := run(root, stem, sorted(names), server, SLOW_S)) != "passed":
            problems.append(f"{stem} as it is, on {server}: {outcome}")
    return problems


def attack(root: Path, stem: str) -> tuple[list[str], list[str]]:
    """Try all mutants of a recipe; return rows of the table, and problems."""
    file, rows, problems = recipe(root, stem), list[str](), healthy(root, stem)
    original = file.read_text(encoding="utf-8")
    for mutant in [] if problems else MUTANTS[stem]:
        began = time.monotonic()
        try:
            file.write_text(mutated(original, mutant), encoding="utf-8")
            outcome = run(root, stem, mutant.tests.split(), mutant.server, LIMIT_S)
        except ValueError as error:
            outcome = str(error)
        finally:
            file.write_text(original, encoding="utf-8")
        about = f"{stem}: {mutant.guarantee}"
        print(f"{time.monotonic() - began:5.1f} s  {about}: {outcome}", flush=True)
        caught = re.match(r"failed (\w+)", outcome)
        problems += [] if caught else [f"{about}: {outcome}"]
        rows.append(
            f"| {stem} | {mutant.guarantee} | {f'`{caught[1]}`' if caught else 'nothing'} |"
        )
    return rows, problems


def main(stems: Sequence[str]) -> int:
    start, workers = time.monotonic(), os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:

        def in_a_copy(stem: str) -> tuple[list[str], list[str]]:
            root = Path(folder) / stem
            shutil.copytree(ROOT, root, ignore=SKIPPED)
            return attack(root, stem)

        with ThreadPoolExecutor(workers) as pool:  # the work is done by processes
            done = [*pool.map(in_a_copy, stems or MUTANTS)]
    rows, problems = ([*itertools.chain(*part)] for part in zip(*done, strict=True))
    print("\n| recipe | guarantee that is taken out | caught by |", "|---|---|---|", sep="\n")
    print(*rows, sep="\n")
    print(f"\n{len(rows)} mutants of {len(done)} recipes in {time.monotonic() - start:.0f} s.")
    print("\n".join(["Problems:", *problems]) if problems else "Each was caught.")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
