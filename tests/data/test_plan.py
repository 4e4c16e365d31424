import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmflow.data.plan import BatchRule, Micro, Plan, Source, once, once_by_shard

quick = settings(max_examples=60, deadline=None)

shard_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)
rules = st.one_of(
    st.builds(BatchRule, size=st.integers(1, 4)),
    st.builds(BatchRule, length=st.floats(3.0, 9.0), max_length=st.sampled_from([1.5, 3.0, float("inf")])),
)


def corpus(sizes: list[list[int]], seed: int) -> tuple[list[Source], np.ndarray]:
    """Sources whose shards have these sizes, every second one as a range, and lengths between 0.1 and 3."""
    count = sum(map(sum, sizes))
    cuts = np.cumsum(list(itertools.chain(*sizes)))[:-1]
    shards = iter(np.split(np.arange(count), cuts))
    pieces = [[next(shards) for _ in source] for source in sizes]
    sources = [Source([range(p[0], p[-1] + 1) if p[0] % 2 else p for p in source]) for source in pieces]
    return sources, np.random.default_rng(seed).uniform(0.1, 3.0, count)


@st.composite
def plans(draw: Any) -> Plan:
    sizes = draw(st.lists(shard_sizes, min_size=1, max_size=3))
    rule, lanes, seed = draw(rules), draw(st.integers(1, 6)), draw(st.integers(0, 9))
    short = lanes * (rule.size or 1) - sum(map(sum, sizes))
    if short > 0:
        sizes[0].append(short)
    sources, lengths = corpus(sizes, seed)
    return Plan(sources, lengths, rule, lanes, seed, window=draw(st.sampled_from([1, 5, 8192])))


@st.composite
def weighted(draw: Any) -> Plan:
    plan = draw(plans())
    weights = [draw(st.one_of(st.none(), st.floats(0.01, 100))) for _ in plan.sources]
    sources = [Source(source.shards, weight) for source, weight in zip(plan.sources, weights, strict=True)]
    return Plan(sources, plan.lengths, plan.rule, plan.lanes, plan.seed, plan.window)


def straightforward(plan: Plan, epoch: int) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """The order of an epoch and all batches of each lane, made whole as the module's description says."""
    counts = np.array([len(source) for source in plan.sources])
    weights = np.array([c if s.weight is None else s.weight for s, c in zip(plan.sources, counts, strict=True)])
    shares = np.rint(counts.sum() * weights / weights.sum()).astype(int).tolist()
    entries = []  # (place in the epoch, source, sample)
    for number, (source, share) in enumerate(zip(plan.sources, shares, strict=True)):
        walk: list[int] = []
        for turn in itertools.count():
            if len(walk) >= (epoch + 1) * share:
                break
            shards = np.random.default_rng([plan.seed, 1, number, turn]).permutation(len(source.shards))
            walk += [int(i) for shard in shards for i in source.shards[shard]]
        own = walk[epoch * share : (epoch + 1) * share]
        entries += [((i + 0.5) / share, number, i, sample) for i, sample in enumerate(own)]
    order = np.array([sample for *_, sample in sorted(entries)])
    lanes = []
    for lane in range(plan.lanes):
        segment = order[lane * len(order) // plan.lanes : (lane + 1) * len(order) // plan.lanes]
        mixed, batches = np.empty(0, dtype=int), []
        for window in range(-(-len(segment) // plan.window)):
            draw = np.random.default_rng([plan.seed, 2, epoch, lane] + [window] * (window > 0))
            shuffled = draw.permutation(segment[window * plan.window : (window + 1) * plan.window])
            mixed = np.concatenate([mixed, shuffled])
            if plan.rule.size is None:
                cut = plan.rule.cut(shuffled, plan.lengths)
                batches += [cut[i] for i in draw.permutation(len(cut))]
        if plan.rule.size is not None:
            batches = [mixed[i : i + plan.rule.size] for i in range(0, len(mixed), plan.rule.size)]
            batches = [batch for batch in batches if len(batch) == plan.rule.size]
        lanes.append(batches)
    return order, lanes


def divisors(lanes: int) -> list[int]:
    return [world for world in range(1, lanes + 1) if lanes % world == 0]


def first(plan: Plan, steps: int, step: int = 0, rank: int = 0, world: int = 1) -> list[Micro]:
    return list(itertools.islice(plan.micro_batches(step, rank, world), steps * plan.lanes // world))


@quick
@given(plans(), st.integers(0, 3))
def test_every_sample_comes_once_in_an_epoch_or_is_in_the_remainder(plan, epoch):
    used = np.concatenate(list(itertools.chain(*plan.epoch(epoch))))
    everything = np.concatenate([used, plan.remainder(epoch)])
    assert sorted(everything.tolist()) == list(range(len(plan.lengths)))


@quick
@given(weighted(), st.integers(0, 3), st.data())
def test_what_is_made_when_needed_is_what_would_be_made_at_once(plan, epoch, data):
    order, lanes = straightforward(plan, epoch)
    assert plan.order(epoch).tolist() == order.tolist()
    assert plan.drawn == len(order)
    steps = min(map(len, lanes))
    assert plan.steps(epoch) == steps
    assert plan.left_over(epoch) == len(order) - sum(len(batch) for lane in lanes for batch in lane[:steps])
    whole = [[batch.tolist() for batch in lane[:steps]] for lane in lanes]
    assert [[batch.tolist() for batch in lane] for lane in plan.epoch(epoch)] == whole
    before = sum(plan.steps(earlier) for earlier in range(epoch))
    i = data.draw(st.integers(0, steps - 1)) if steps else 0
    rest = [(epoch, before + j, lane, tuple(whole[lane][j])) for j in range(i, steps) for lane in range(plan.lanes)]
    alone = Plan(plan.sources, plan.lengths, plan.rule, plan.lanes, plan.seed, plan.window)  # nothing remembered
    micros = itertools.islice(alone.micro_batches(before + i), len(rest))
    assert [(m.epoch, m.step, m.lane, m.ids) for m in micros] == rest


@quick
@given(weighted(), st.integers(1, 4))
def test_any_piece_of_an_order_is_that_piece(plan, epoch):
    order = plan.order(epoch)
    for start in range(0, len(order), 3):
        for end in (start, start + 1, min(start + 7, len(order)), len(order)):
            assert plan._ordered(epoch, start, end).tolist() == order[start:end].tolist()


@quick
@given(st.lists(st.lists(st.floats(0, 5), min_size=6, max_size=6), min_size=1, max_size=5), st.floats(0.5, 20))
def test_batches_are_counted_as_they_are_cut(rows, bound):
    rule, costs = BatchRule(length=bound), np.array(rows)
    cuts = [len(rule.cut(np.arange(6), row)) for row in costs]
    assert rule.count(costs).tolist() == cuts


def hundred_million(rule: BatchRule, lanes: int, weights: tuple[float | None, ...] = (None,)) -> Plan:
    shards = [range(i, i + 10_000) for i in range(0, 100_000_000, 10_000)]
    sources = [Source(shards[i :: len(weights)], weight) for i, weight in enumerate(weights)]
    return Plan(sources, np.broadcast_to(1.0, 100_000_000), rule, lanes)


@pytest.mark.parametrize("weights", [(None,), (1.0, 2.5, 0.1)])
def test_a_run_over_a_hundred_million_samples_goes_on_in_the_middle_of_an_epoch(weights, monkeypatch):
    taken = []
    ordered = Plan._ordered
    monkeypatch.setattr(
        Plan, "_ordered", lambda plan, epoch, a, b: (taken.append(b - a), ordered(plan, epoch, a, b))[1]
    )
    plan = hundred_million(BatchRule(size=32), 8, weights)
    step = plan.steps(0) + plan.steps(1) // 2
    tracemalloc.start()
    micros = first(plan, 3, step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(micro.epoch, micro.step, micro.lane) for micro in micros[7:9]] == [(1, step, 7), (1, step + 1, 0)]
    seen = [number for micro in micros for number in micro.ids]
    assert len(set(seen)) == 3 * 8 * 32
    assert plan.steps(0) == sum(plan.shares) // 8 // 32
    assert plan.left_over(0) == sum(plan.shares) - plan.steps(0) * 8 * 32
    assert taken == [8192] * 8  # one window for each lane
    assert peak < 4e6


def test_a_hundred_million_samples_in_a_hundred_steps_touch_each_of_their_windows_once(monkeypatch):
    asked = []
    window = Plan._window
    monkeypatch.setattr(Plan, "_window", lambda *place: (asked.append(place[1:]), window(*place))[1])
    plan = hundred_million(BatchRule(size=250), 4)
    seen = [number for micro in first(plan, 100, 5000) for number in micro.ids]
    assert len(seen) == len(set(seen)) == 100_000
    assert len(asked) == len(set(asked)) <= 4 * (25_000 // 8192 + 2)


def test_counting_batches_by_length_holds_a_million_samples_at_a_time():
    count = 5_000_000
    lengths = np.tile(np.linspace(1, 16, 8192), count // 8192 + 1)[:count]
    plan = Plan([Source([range(count)])], lengths, BatchRule(length=320.0))
    tracemalloc.start()
    steps = plan.steps(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert steps == (count // 8192) * len(plan.rule.cut(np.arange(8192), lengths)) + len(
        plan.rule.cut(np.arange(count % 8192), lengths)
    )
    assert peak < 2**20 * 8 * 12


@quick
@given(plans(), st.integers(0, 3))
def test_all_lanes_have_the_same_number_of_batches(plan, epoch):
    lanes = plan.epoch(epoch)
    assert len(lanes) == plan.lanes
    assert len(set(map(len, lanes))) == 1
    assert len(lanes[0]) > 0


@quick
@given(plans())
def test_ranks_share_no_sample_and_make_the_same_steps_for_every_world_size(plan):
    steps = min(len(plan.epoch(0)[0]), 6)
    alone = first(plan, steps)
    for world in divisors(plan.lanes):
        ranks = [first(plan, steps, rank=rank, world=world) for rank in range(world)]
        together = sorted(itertools.chain(*ranks), key=lambda micro: (micro.step, micro.lane))
        assert together == alone
        seen = [number for micro in together for number in micro.ids]
        assert len(seen) == len(set(seen))


@quick
@given(plans(), st.data())
def test_resuming_at_a_step_gives_the_tail(plan, data):
    step = data.draw(st.integers(0, 2 * len(plan.epoch(0)[0]) + 1))
    world = data.draw(st.sampled_from(divisors(plan.lanes)))
    rank = data.draw(st.integers(0, world - 1))
    whole = first(plan, step + 3, 0, rank, world)
    assert first(plan, 3, step, rank, world) == whole[step * plan.lanes // world :]
    assert whole[-1].step == step + 2


@quick
@given(st.lists(shard_sizes, min_size=1, max_size=2), st.integers(1, 6))
def test_segments_of_the_lanes_are_equal_within_one_sample(sizes, lanes):
    sizes[0].append(lanes)
    sources, lengths = corpus(sizes, 0)
    plan = Plan(sources, lengths, BatchRule(size=1), lanes)
    assert len(plan.remainder(0)) == len(lengths) % lanes


@quick
@given(plans())
def test_batching_by_count_leaves_less_than_a_batch_and_a_sample_per_lane(plan):
    if plan.rule.size is None:
        return
    assert {len(batch) for lane in plan.epoch(0) for batch in lane} == {plan.rule.size}
    assert len(plan.remainder(0)) < plan.lanes * plan.rule.size


@quick
@given(plans())
def test_a_padded_batch_is_within_the_length_bound_unless_it_is_one_long_sample(plan):
    if plan.rule.length is None:
        return
    for batch in itertools.chain(*plan.epoch(1)):
        longest = min(plan.lengths[batch].max(), plan.rule.max_length)
        assert len(batch) * longest <= plan.rule.length * (1 + 1e-12) or len(batch) == 1


@quick
@given(st.lists(st.floats(0, 5), min_size=1, max_size=40), st.floats(0.5, 20))
def test_cutting_by_length_is_greedy(lengths, bound):
    lengths = np.array(lengths)
    batches = BatchRule(length=bound).cut(np.arange(len(lengths)), lengths)
    ordered = np.argsort(lengths, kind="stable")
    assert np.concatenate(batches).tolist() == ordered.tolist()
    for batch, following in itertools.pairwise(batches):  # the next one would not have fitted
        assert (len(batch) + 1) * lengths[following[0]] > bound * (1 - 1e-12)
        assert len(batch) * lengths[batch[-1]] <= bound * (1 + 1e-12) or len(batch) == 1


def test_similar_lengths_meet_in_a_batch():
    lengths = np.array([1.0, 4.0, 1.0, 2.0, 2.0, 9.0])
    batches = BatchRule(length=4.0).cut(np.arange(6), lengths)
    assert [batch.tolist() for batch in batches] == [[0, 2], [3, 4], [1], [5]]
    cropped = BatchRule(length=8.0, max_length=4.0).cut(np.arange(6), lengths)
    assert [batch.tolist() for batch in cropped] == [[0, 2, 3, 4], [1, 5]]


def test_orders_differ_by_epoch_and_seed_and_are_shuffled():
    sources, lengths = corpus([[50, 50]], 0)
    ten = BatchRule(size=10)
    orders = {tuple(np.concatenate(Plan(sources, lengths, ten, 1, s).epoch(e)[0])) for s in (0, 1) for e in (0, 1)}
    assert len(orders) == 4
    assert tuple(range(100)) not in orders


def test_a_lane_reads_few_shards_at_a_time():
    sources, lengths = corpus([[10] * 8], 0)
    for lane in Plan(sources, lengths, BatchRule(size=10), lanes=4).epoch(0):
        assert len({number // 10 for batch in lane for number in batch.tolist()}) == 2


@quick
@given(st.lists(st.floats(0.1, 5.0), min_size=2, max_size=3), st.integers(0, 2))
def test_a_mixture_has_the_shares_of_its_weights_evenly_woven(weights, epoch):
    sources, lengths = corpus([[30, 20], [40], [10, 10, 10]][: len(weights)], 0)
    sources = [Source(source.shards, weight) for source, weight in zip(sources, weights, strict=True)]
    order = Plan(sources, lengths, BatchRule(size=1)).order(epoch)
    owner = np.repeat(np.arange(len(sources)), [len(source) for source in sources])[order]
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs((owner == number).sum() - share * len(lengths)) <= 0.5
        half = (owner[: len(owner) // 2] == number).sum()
        assert abs(half - share * len(owner) / 2) <= 2


def test_a_source_of_double_weight_is_walked_through_twice_as_often():
    sources, lengths = corpus([[6], [6]], 0)
    plan = Plan([Source(sources[0].shards, 2.0), Source(sources[1].shards, 1.0)], lengths, BatchRule(size=1))
    counts = np.bincount(np.concatenate([plan.order(epoch) for epoch in range(3)]), minlength=12)
    assert counts[:6].tolist() == [4] * 6
    assert counts[6:].tolist() == [2] * 6


@quick
@given(shard_sizes, rules, st.integers(1, 5), st.integers(0, 9))
def test_once_gives_each_sample_once_and_each_rank_as_many_batches(sizes, rule, world, seed):
    _, lengths = corpus([sizes], seed)
    ids = np.arange(len(lengths))[:: 1 + seed % 2]
    ranks = [once(ids, lengths, rule, rank, world) for rank in range(world)]
    assert len(set(map(len, ranks))) == 1
    counted = [micro for rank in ranks for micro in rank if not micro.padding]
    assert sorted(number for micro in counted for number in micro.ids) == ids.tolist()
    assert sorted(counted, key=lambda micro: micro.step) == once(ids, lengths, rule)


def test_once_of_nothing_is_nothing_on_every_rank():
    assert once(np.arange(0), np.zeros(0), BatchRule(size=2), 1, 3) == []


def test_no_batch_of_a_pass_by_shard_spans_two_shards():
    micros = once_by_shard([np.arange(5), np.arange(5, 7)], np.ones(7), BatchRule(size=2))
    assert [micro.ids for micro in micros] == [(0, 1), (2, 3), (4,), (5, 6)]


def test_a_micro_batch_tells_epoch_step_and_lane():
    sources, lengths = corpus([[4]], 0)
    micros = first(Plan(sources, lengths, BatchRule(size=1), lanes=2), steps=3)
    assert [(micro.epoch, micro.step, micro.lane) for micro in micros] == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 2, 0), (1, 2, 1)
    ]  # fmt: skip


def test_lanes_that_the_processes_do_not_divide_are_refused():
    sources, lengths = corpus([[24]], 0)
    plan = Plan(sources, lengths, BatchRule(size=1), lanes=6)
    with pytest.raises(
        ValueError, match=r"lanes=6 is not divisible by 4 processes; use one of \[1, 2, 3, 6\] .*lanes=8"
    ):
        next(plan.micro_batches(0, 0, 4))


def test_too_little_data_is_refused():
    sources, lengths = corpus([[5]], 0)
    with pytest.raises(ValueError, match=r"5 samples do not make one batch for each of lanes=2 with .*size=3.*; lower"):
        Plan(sources, lengths, BatchRule(size=3), lanes=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 0}, "lanes=0 must be at least 1"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"sources": [Source([np.arange(3)], 0.0)]}, r"weights \[0.0\] must all be numbers above 0"),
        ({"sources": [Source([np.arange(3)], float("nan"))]}, r"weights \[nan\] must all be numbers above 0"),
        ({"sources": [Source([np.arange(3)]), Source([])]}, r"a source has no sample; the sources have \[3, 0\]"),
    ],
)
def test_senseless_plans_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Plan(**{"sources": [Source([np.arange(3)])], "lengths": np.ones(3), "rule": BatchRule(size=1)} | changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a batch size or a batch length; got size=None, length=None"),
        ({"size": 2, "length": 4.0}, "give either a batch size or a batch length; got size=2, length=4.0"),
        ({"size": 0}, "batch size 0 must be at least 1"),
        ({"length": -1.0}, "batch length -1.0 must be a number above 0"),
        ({"length": float("inf")}, "batch length inf must be a number above 0"),
        ({"length": 2.0, "max_length": 3.0}, "batch length 2.0 is under the length 3.0 that one sample may have"),
    ],
)
def test_senseless_batch_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchRule(**arguments)
