"""Mixing: the schedule is a pure function, the same for every world size, and batches are what it says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ensadv_data.batches import Batches
from ensadv_data.codec import random_bits, unpack_signs
from ensadv_data.data import ArrayDataset
from ensadv_data.dist import Place
from ensadv_data.errors import AlignmentError, ChunkError, InputError, QuantityError
from ensadv_data.keys import derive_key
from ensadv_data.mixing import Part, Schedule, StepPlan, check_shares, epoch_order, plan_step
from ensadv_data.sources import ONLINE, Source, check_epsilon, static_sources
from ensadv_data.spec import EpsilonSpec
from ensadv_data.store import Entry
from laws import is_bit_equal, is_pure
from test_store import make_images, make_store

pytestmark = pytest.mark.usefixtures("without_fsync")

N, D = 40, 20


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return make_images(N)


@dataclasses.dataclass(frozen=True)
class Made:
    data: ArrayDataset
    source: Source
    values: dict[str, np.ndarray]

    def schedule(self, attack: str, **fields) -> Schedule:
        """All steps from one attack."""
        entries = tuple((store, entry) for store, entry in self.source.entries if entry.attack == attack)
        return Schedule(seed=3, n=N, batch_size=8, sources=(Source("m", entries),), **fields)


@pytest.fixture(scope="module")
def made(tmp_path_factory, data) -> Made:
    path = tmp_path_factory.mktemp("mixing") / "s"
    values = make_store(path, data, ("m/fgsm", "m/r-fgsm", "m/pgd"), draws=3, zeros=True)
    (source,) = static_sources([path], data)
    return Made(data, source, values)


def as_tuple(plan: StepPlan) -> tuple:
    return tuple(getattr(plan, field.name) for field in dataclasses.fields(plan))


# The order


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 9),
    n=st.integers(1, 300),
    block=st.integers(1, 50),
    window=st.integers(0, 8),
)
def test_an_epoch_is_a_permutation_that_takes_the_blocks_of_a_window_together(seed, epoch, n, block, window):
    order = is_pure(epoch_order, seed, epoch, n=n, block=block, window=window)
    assert (np.sort(order) == np.arange(n)).all()
    if not window:
        return
    blocks = -(-n // block)
    start, seen = 0, set()
    while start < n:
        # a window ends where all the rows of its blocks have been taken
        size, members = 0, set()
        for index in order[start:]:
            size += 1
            members.add(int(index) // block)
            if size == sum(min((b + 1) * block, n) - b * block for b in members) and (
                len(members) == window or start + size == n
            ):
                break
        assert len(members) == min(window, blocks - len(seen))
        assert not members & seen
        seen |= members
        start += size
    assert seen == set(range(blocks))


def test_epochs_and_seeds_have_different_orders():
    orders = [
        epoch_order(seed, epoch, n=200, block=16, window=w) for seed in (0, 1) for epoch in (0, 1) for w in (0, 2)
    ]
    assert all((a != b).any() for i, a in enumerate(orders) for b in orders[:i])


# The plan


SOURCES = tuple(Source(name) for name in ("a", "b", "c"))


def test_a_plan_is_a_pure_function_of_epoch_and_step(made):
    schedule = made.schedule("fgsm", epsilon=EpsilonSpec(sigma=0.1, epsilon=0.3))
    plans = {
        (epoch, step): is_pure(lambda e, s: as_tuple(plan_step(schedule, epoch=e, step=s)), epoch, step)
        for epoch in (1, 0)
        for step in reversed(range(schedule.steps))
    }
    for epoch in (0, 1):
        order = np.concatenate([plans[epoch, step][0] for step in range(5)])
        assert (np.sort(order) == np.arange(N)).all()
    assert (plans[0, 0][4] != plans[0, 1][4]).any()
    plan = plan_step(schedule, epoch=0, step=0)
    plan.indices[:] = 0
    assert (plan_step(schedule, epoch=0, step=0).indices == plans[0, 0][0]).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    world=st.integers(1, 8),
    each=st.integers(1, 5),
    epoch=st.integers(0, 5),
    step=st.integers(0, 2),
    window=st.integers(0, 3),
)
def test_the_ranks_have_slices_of_one_plan(made, seed, world, each, epoch, step, window):
    size = world * each
    schedule = Schedule(
        seed=seed,
        n=3 * size + 1,
        batch_size=size,
        sources=(Source(ONLINE), made.source),
        epsilon=EpsilonSpec(sigma=0.1, epsilon=0.3),
        window=window,
        block=4,
    )
    whole = plan_step(schedule, epoch=epoch, step=step)
    ranks = [plan_step(schedule, epoch=epoch, step=step, place=Place(rank, world)) for rank in range(world)]
    assert {plan.attacks for plan in ranks} == {whole.attacks}
    assert {int(source) for plan in ranks for source in plan.sources} == {int(whole.sources[0])}
    for name in ("indices", "sources", "draws", "epsilon"):
        assert is_bit_equal(np.stack([getattr(plan, name) for plan in ranks], axis=1).ravel(), getattr(whole, name))


def test_the_source_is_drawn_once_a_step_and_evenly():
    schedule = Schedule(seed=1, n=2 * 3000, batch_size=2, sources=SOURCES)
    drawn = [plan_step(schedule, epoch=0, step=step).sources for step in range(3000)]
    assert all(one == other for one, other in drawn)
    drawn = [int(one) for one, _ in drawn]
    counts = np.bincount(drawn, minlength=3)
    spread = math.sqrt(3000 * (1 / 3) * (2 / 3))
    assert np.abs(counts - 1000).max() < 4 * spread
    follows = np.bincount([3 * a + b for a, b in itertools.pairwise(drawn)], minlength=9)
    assert np.abs(follows - 2999 / 9).max() < 5 * math.sqrt(2999 / 9)  # no step depends on the one before


def test_each_example_may_have_a_source_of_its_own(made):
    """Drawn evenly and independently, with the draws and the attack of that source; ranks have slices of it."""
    sources = (Source(ONLINE), made.source, Source("other", made.source.entries[1:2]))
    schedule = Schedule(seed=1, n=N, batch_size=40, sources=sources, draws=2, per_example=True)
    plans = [plan_step(schedule, epoch=epoch, step=0) for epoch in range(300)]
    drawn = np.stack([plan.sources for plan in plans])
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=3)).pvalue > 1e-3
    pairs = np.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9)
    assert stats.chisquare(pairs).pvalue > 1e-3  # neighbours know nothing of each other
    draws = np.stack([plan.draws for plan in plans])
    assert draws[drawn == 0].max() == 0  # who computes has one
    assert stats.chisquare(np.bincount(draws[drawn > 0], minlength=2)).pvalue > 1e-3
    attacks = np.array([plan.attacks for plan in plans])
    assert attacks[:, 0].max() == attacks[:, 2].max() == 0
    assert stats.chisquare(np.bincount(attacks[:, 1], minlength=3)).pvalue > 1e-3
    ranks = [plan_step(schedule, epoch=7, step=0, place=Place(rank, 4)) for rank in range(4)]
    assert {plan.attacks for plan in ranks} == {plans[7].attacks}
    for name in ("indices", "draws", "epsilon", "sources"):
        assert is_bit_equal(np.stack([getattr(plan, name) for plan in ranks], axis=1).ravel(), getattr(plans[7], name))


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("per_example", [True, False])
def test_the_parts_of_a_step_are_its_examples_by_source(made, first, per_example):
    """Each image is perturbed as if it were alone."""
    sources = (made.source, Source("other", made.source.entries[1:2]))
    law = EpsilonSpec(sigma=0.2, epsilon=0.3)
    schedule = Schedule(seed=1, n=N, batch_size=10, sources=sources, epsilon=law, per_example=per_example)
    batches, counts = Batches(made.data, schedule), []
    for epoch in range(4):
        plan = plan_step(schedule, epoch=epoch, step=1)
        images, _ = batches.read(plan)
        parts = plan.parts(first)
        counts.append(len(parts))
        assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(range(first, 10))
        for part in parts:
            x_adv = batches.perturb(images[part.rows], part, epoch=epoch)
            for i, mine in zip(part.rows, x_adv, strict=True):
                source, one = int(plan.sources[i]), slice(i, i + 1)
                row = np.array([i])
                alone = Part(row, source, plan.attacks[source], plan.indices[one], plan.draws[one], plan.epsilon[one])
                assert part.source == source
                assert is_bit_equal(mine[None], batches.perturb(images[one], alone, epoch=epoch))
    assert set(counts) == ({2} if per_example else {1})


def test_draws_and_attacks_are_drawn_evenly(made):
    schedule = Schedule(seed=1, n=N, batch_size=40, sources=(made.source,))
    plans = [plan_step(schedule, epoch=epoch, step=0) for epoch in range(200)]
    for values in (np.concatenate([plan.draws for plan in plans]), np.array([plan.attacks[0] for plan in plans])):
        assert stats.chisquare(np.bincount(values, minlength=3)).pvalue > 1e-3


def test_a_plan_without_sources_is_clean():
    plan = plan_step(Schedule(seed=0, n=8, batch_size=4, sources=()), epoch=0, step=1)
    assert (plan.attacks, plan.parts(), plan.draws.tolist()) == ((), [], [0, 0, 0, 0])


def test_epsilon_is_fixed_or_a_truncated_half_normal():
    fixed = plan_step(Schedule(seed=0, n=8, batch_size=4, sources=SOURCES), epoch=0, step=0).epsilon
    assert is_bit_equal(fixed, np.full(4, 0.3, np.float32))
    sigma, most = 0.12, 0.2
    law = EpsilonSpec(sigma=sigma, epsilon=most)
    schedule = Schedule(seed=5, n=20_000, batch_size=5_000, sources=SOURCES, epsilon=law)
    values = np.concatenate([plan_step(schedule, epoch=0, step=step).epsilon for step in range(4)])
    assert values.dtype == np.float32
    assert 0 <= values.min() <= values.max() <= np.float32(most)
    assert stats.kstest(values, stats.truncnorm(0, most / sigma, scale=sigma).cdf).pvalue > 0.01


def test_steps_and_worlds_that_cannot_be_are_refused():
    schedule = Schedule(seed=0, n=11, batch_size=4, sources=())
    for step in (-1, 2):
        with pytest.raises(QuantityError, match=r"expected 0 … 1"):
            plan_step(schedule, epoch=0, step=step)
    with pytest.raises(QuantityError, match="multiple of the world size 3"):
        plan_step(schedule, epoch=0, step=0, place=Place(0, 3))


def test_a_batch_that_cannot_be_shared_is_refused():
    check_shares(64, Place(0, 4), halves=True)
    with pytest.raises(QuantityError, match="expected a multiple of 3 for 3 processes, got 32"):
        check_shares(32, Place(1, 3), halves=False)
    with pytest.raises(QuantityError, match="expected a multiple of 8 for 4 processes that replace half of it, got 36"):
        check_shares(36, Place(0, 4), halves=True)


# Sources


def test_stores_are_sources_by_the_name_of_their_models(tmp_path, data):
    make_store(tmp_path / "one", data, ("b/fgsm", "a/fgsm", "a/pgd"))
    make_store(tmp_path / "two", data, ("a/r-fgsm",))
    alone = static_sources([tmp_path / "one"], data)
    assert [(source.name, len(source.entries), not source.entries) for source in alone] == [
        ("a", 2, False),
        ("b", 1, False),
    ]
    both = static_sources([str(tmp_path / "one"), tmp_path / "two"], data)
    assert [source.name for source in both] == ["one/a", "one/b", "two/a"]
    assert static_sources([], data) == ()


def test_two_stores_of_one_name_stay_apart(tmp_path, data):
    for folder in ("x", "y"):
        make_store(tmp_path / folder / "s", data, ("m/fgsm",))
    names = [source.name for source in static_sources([tmp_path / "x/s", tmp_path / "y/s"], data)]
    assert names == ["s/m", "s/m#2"]
    make_store(tmp_path / "o", data, (f"{ONLINE}/fgsm",))
    assert [source.name for source in static_sources([tmp_path / "o"], data)] == ["online#2"]


def test_stores_for_other_images_are_refused(tmp_path, data):
    make_store(tmp_path / "s", data, ("m/fgsm",))
    with pytest.raises(InputError, match=r"images of shape \(1, 5, 4\), found \(1, 4, 5\)"):
        static_sources([tmp_path / "s"], make_images(N, shape=(1, 5, 4)))
    with pytest.raises(InputError, match="expected directions for 39 images of tiny, found 40") as caught:
        static_sources([tmp_path / "s"], make_images(39))
    assert "--limit" in str(caught.value)
    with pytest.raises(InputError, match="expected a store"):
        static_sources([tmp_path / "absent"], data)


def test_an_image_that_is_not_the_one_perturbed_is_named_the_first_time_it_is_read(made):
    images = made.data.images_NCHW.copy()
    images[[7, 31]] = images[[31, 7]]
    swapped = ArrayDataset(images, made.data.labels_N, name="tiny", split="train", classes=4)
    schedule = made.schedule("fgsm")
    batches = Batches(swapped, schedule)
    steps = [step for step in range(5) if {7, 31} & set(plan_step(schedule, epoch=0, step=step).indices.tolist())]
    for step in range(5):
        plan = plan_step(schedule, epoch=0, step=step)
        if step not in steps:
            batches.read(plan)
            continue
        with pytest.raises(AlignmentError) as caught:
            batches.read(plan)
        index = next(int(i) for i in plan.indices if i in (7, 31))
        assert f"example {index}: " in str(caught.value)
        assert f"{int(made.data.example_digests()[index]):016x}" in str(caught.value)
        assert caught.value.exit_code == 4


def test_images_are_compared_once(made, monkeypatch):
    import ensadv_data.batches as module

    seen: list[int] = []
    digest = module.digest_examples
    monkeypatch.setattr(module, "digest_examples", lambda images: seen.append(len(images)) or digest(images))
    schedule = made.schedule("fgsm")
    batches = Batches(made.data, schedule)
    for epoch in (0, 1):
        for step in range(schedule.steps):
            images, labels = batches.read(plan_step(schedule, epoch=epoch, step=step))
            assert images.shape == (8, 1, 4, 5)
            assert labels.dtype == np.int64
    assert sum(seen) == N
    Batches(made.data, Schedule(seed=0, n=N, batch_size=8, sources=())).read(plan_step(schedule, epoch=0, step=0))
    assert sum(seen) == N  # no store, nothing to compare with


# Perturbed batches


def rows_of(made: Made, key: str, plan: StepPlan) -> tuple[np.ndarray, np.ndarray]:
    x = made.data.images_NCHW[plan.indices].reshape(-1, D) / np.float32(255)
    return x, made.values[key][plan.draws, plan.indices].astype(np.float32)


LAWS = {"fixed": EpsilonSpec(epsilon=0.3), "drawn": EpsilonSpec(sigma=0.2, epsilon=0.3)}  # alpha is 0.1


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("attack", ["fgsm", "r-fgsm", "pgd"])
def test_perturbed_images_are_those_of_the_formula_and_within_epsilon(made, attack, fresh, law):
    schedule = made.schedule(attack, epsilon=LAWS[law])
    batches = Batches(made.data, schedule, fresh=fresh)
    ((_, entry),) = schedule.sources[0].entries
    smaller = 0
    for epoch in (0, 1):
        for step in range(schedule.steps):
            plan = plan_step(schedule, epoch=epoch, step=step)
            images, _ = batches.read(plan)
            (part,) = plan.parts()
            x_adv = batches.perturb(images, part, epoch=epoch)
            assert (x_adv.shape, x_adv.dtype) == (images.shape, np.float32)
            x, values = rows_of(made, entry.key, plan)
            epsilon = plan.epsilon[:, None]
            if attack == "fgsm":
                expected = np.clip(x + epsilon * values, 0, 1)
            elif attack == "pgd":
                epsilon = np.full_like(epsilon, 0.3)  # tied to the radius that it was made with
                expected = np.clip(x + epsilon * values / 127, 0, 1)
            else:
                alpha = np.minimum(np.float32(0.1), epsilon)
                smaller += int((epsilon < 0.1).sum())
                if fresh:
                    seed = derive_key("fresh step", schedule.seed, epoch)
                    bits = random_bits(seed, np.zeros_like(plan.indices), plan.indices, d=D, stream=1)
                else:
                    bits = random_bits(entry.seed, plan.draws, plan.indices, d=D)
                moved = np.clip(x + alpha * unpack_signs(bits, d=D), 0, 1)
                expected = np.clip(moved + (epsilon - alpha) * values, 0, 1)
            assert np.abs(x_adv.reshape(-1, D) - expected).max() < 1e-6
            assert (np.abs(x_adv.reshape(-1, D) - x) <= epsilon + 1e-6).all()
            assert 0 <= x_adv.min() <= x_adv.max() <= 1
            (half,) = plan.parts(5)
            last = batches.perturb(images[5:], half, epoch=epoch)  # the half that is replaced
            assert is_bit_equal(last, x_adv[5:])
    assert (smaller > 0) == (attack == "r-fgsm" and law == "drawn")


def test_a_fresh_step_is_another_in_each_epoch_and_a_stored_one_the_same(made):
    schedule = made.schedule("r-fgsm")
    plan = plan_step(schedule, epoch=0, step=0)
    (part,) = plan.parts()
    for fresh in (True, False):
        batches = Batches(made.data, schedule, fresh=fresh)
        images, _ = batches.read(plan)
        one, two = (batches.perturb(images, part, epoch=epoch) for epoch in (0, 1))
        assert bool((one != two).any()) == fresh


def test_a_chunk_that_is_lost_while_training_is_named(tmp_path, data):
    make_store(tmp_path / "s", data, ("m/fgsm",))
    schedule = Schedule(seed=0, n=N, batch_size=N, sources=static_sources([tmp_path / "s"], data))
    batches = Batches(data, schedule)
    plan = plan_step(schedule, epoch=0, step=0)
    images, _ = batches.read(plan)
    (tmp_path / "s/m/fgsm/direction/c/0/6/0").unlink()
    with pytest.raises(ChunkError, match="c/0/6/0: the chunk is missing"):
        batches.perturb(images, *plan.parts(), epoch=0)


def test_an_epsilon_that_leaves_no_gradient_step_is_refused():
    """At epsilon ≤ alpha an R+ direction would be pure noise, and a delta serves its own epsilon only."""

    def source(**about: object) -> Source:
        fields = {"epsilon": None, "alpha": None, "seed": 0, "source_digest": "", "architecture": "", "loss": "margin"}
        entry = Entry(source="m", attack="a", **{**fields, **about})
        return Source("m", ((SimpleNamespace(place="store"), entry),))

    moved, delta = source(kind="rsign", alpha=0.1), source(kind="delta", epsilon=0.3)
    check_epsilon([source(kind="sign"), moved, delta], EpsilonSpec(epsilon=0.3))
    check_epsilon([moved], EpsilonSpec(epsilon=0.3, sigma=0.1))
    for wrong, law in (
        (moved, EpsilonSpec(epsilon=0.1)),
        (moved, EpsilonSpec(epsilon=0.05, sigma=0.1)),
        (delta, EpsilonSpec(epsilon=0.1)),
        (delta, EpsilonSpec(epsilon=0.3, sigma=0.1)),
    ):
        with pytest.raises(InputError, match="store: m/a: expected"):
            check_epsilon([wrong], law)
