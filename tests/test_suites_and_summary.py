"""Intervals, suites, and the table that everybody sees."""

from __future__ import annotations

import csv
import io
import math
import re

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ensadv_data.errors import InputError, QuantityError, UnknownNameError
from ensadv_data.evaluation.interval import Rate, tied, wilson_interval
from ensadv_data.evaluation.suites import SUITES, suite_named
from ensadv_data.evaluation.summary import (
    accuracy_rows,
    attack_title,
    count_text,
    csv_text,
    diagnosis_remarks,
    matrix_rows,
    rate_text,
    remarks,
    summary_rows,
)
from ensadv_data.spec import ATTACKS
from ensadv_data.terminal import print_result

# Intervals

Z = 1.959963984540054


@given(st.data())
def test_interval_ends_are_where_the_score_test_is_just_not_rejected(data):
    """Wilson's interval is the set of p with |p̂ − p| ≤ z·√(p(1 − p)/n): its ends solve the equation."""
    n = data.draw(st.integers(1, 100_000))
    errors = data.draw(st.integers(0, n))
    low, high = wilson_interval(errors, n)
    assert 0 <= low <= errors / n <= high <= 1
    for end, trivial in ((low, errors == 0), (high, errors == n)):
        if not trivial:
            distance = abs(errors / n - end)
            assert distance == pytest.approx(Z * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9)


@given(st.data())
def test_interval_is_symmetric_in_right_and_wrong(data):
    n = data.draw(st.integers(1, 10_000))
    errors = data.draw(st.integers(0, n))
    low, high = wilson_interval(errors, n)
    mirrored = wilson_interval(n - errors, n)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_known_intervals():
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775328), abs=1e-7)
    assert wilson_interval(5, 10) == pytest.approx((0.2365931, 0.7634069), abs=1e-7)
    assert wilson_interval(10, 10)[1] == 1
    narrow = wilson_interval(500, 1000)
    assert narrow[1] - narrow[0] < 0.07


@pytest.mark.parametrize(("errors", "n"), [(0, 0), (-1, 5), (6, 5), (1, -3)])
def test_counts_that_are_no_proportion_are_refused(errors, n):
    with pytest.raises(QuantityError, match=f"0 ≤ errors ≤ n with n ≥ 1, got {errors} of {n}"):
        wilson_interval(errors, n)


def test_rate_as_json_and_as_text():
    rate = Rate(90, 200)
    assert rate.value == 0.45
    low, high = rate.interval
    assert rate.to_json() == {"errors": 90, "n": 200, "error": 0.45, "low": low, "high": high}
    assert str(rate) == rate_text(rate.to_json()) == f"45.0 [{100 * low:.1f}, {100 * high:.1f}]"


@given(st.integers(1, 400), st.integers(1, 400), st.data())
def test_ties_are_those_of_the_chi_squared_test(n, m, data):
    """scipy's test of the 2 × 2 table without correction is the square of the score test."""
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    one, two = Rate(a, n), Rate(b, m)
    assert tied(one, two) == tied(two, one)
    if a + b in (0, n + m):
        assert tied(one, two)
    else:
        p = scipy.stats.chi2_contingency([[a, n - a], [b, m - b]], correction=False).pvalue
        assert tied(one, two) == (p >= 0.05) or abs(p - 0.05) < 1e-9


# Suites


def test_suites_are_those_of_the_tables():
    assert list(SUITES) == [
        "single-step",
        "paper",
        "table1",
        "table2",
        "table4",
        "table7",
        "table8",
        "table9",
        "adaptive",
        "c1",
        "nips17",
    ]
    assert suite_named("table8") is suite_named("paper")
    assert suite_named("table7") is suite_named("single-step")
    white, black = suite_named("paper").attacks(epsilon=0.3)
    assert [attack.label for attack in white] == ["fgsm", "r-fgsm"]
    assert [attack.label for attack in black] == ["fgsm", "i-fgsm", "pgd"]
    assert {attack.epsilon for attack in (*white, *black)} == {0.3}
    assert white[1].random_step == 0.05
    assert black[1].iterations == (10, 0.03)
    assert black[2].iterations == (40, 0.01)
    assert black[2].loss_form == "cw"
    white, black = suite_named("single-step").attacks(epsilon=16 / 255)
    assert [attack.name for attack in black] == ["fgsm"]
    assert white[1].random_step == 8 / 255


@pytest.mark.parametrize("name", SUITES)
def test_attacks_of_a_suite_have_labels_of_their_own(name):
    suite = suite_named(name)
    assert suite.about
    white, black = suite.attacks(epsilon=0.3)
    assert white or black
    for attacks in (white, black):
        assert len({attack.label for attack in attacks}) == len(attacks)
        assert {attack.epsilon for attack in attacks} <= {0.3}


def test_halves_are_of_the_suite_s_epsilon():
    for name in ("table2", "table4", "table9"):
        white, black = suite_named(name).attacks(epsilon=16 / 256)
        randomised = [attack for attack in (*white, *black) if attack.name == "r-step-ll"]
        assert {attack.random_step for attack in randomised} == {8 / 256}
    (_, _, two_steps), _ = suite_named("table2").attacks(epsilon=16 / 256)
    assert two_steps.iterations == (2, 8 / 256)
    assert [attack.name for attack in suite_named("table4").attacks(epsilon=0.1)[1]] == [
        "fgsm",
        "step-ll",
        "r-step-ll",
        "i-fgsm",
        "pgd",
    ]
    assert {attack.name for attack in suite_named("nips17").attacks(epsilon=0.1)[1]} == set(ATTACKS)


def test_unknown_suite_lists_those_that_exist():
    with pytest.raises(UnknownNameError, match="unknown suite 'pgd'; known: single-step, paper, table1"):
        suite_named("pgd")


# The table


def rate(errors):
    return Rate(errors, 100).to_json()


RESULT = {
    "targets": {
        "plain": {
            "clean": rate(2),
            "white_box": {"fgsm": rate(90), "r-fgsm": rate(95)},
            "worst_black_box": {"source": "holdout-C", "attack": "i-fgsm", **rate(80)},
            "mean_black_box": 0.5,
        },
        "alone": {
            "clean": rate(3),
            "white_box": {"fgsm": rate(1), "fgsm:loss=ce": rate(4)},
            "worst_black_box": None,
            "mean_black_box": None,
        },
    }
}


def test_table_has_a_row_a_target_and_a_column_a_white_box_attack():
    columns, rows = summary_rows(RESULT)
    assert columns == [
        "target",
        "clean",
        "white-box FGSM",
        "white-box R+FGSM",
        "white-box FGSM (loss=ce)",
        "worst black-box",
        "by",
        "mean black-box",
    ]
    assert all(len(row) == len(columns) for row in rows)
    plain, alone = (dict(zip(columns, row, strict=True)) for row in rows)
    assert plain["target"] == "plain"
    assert plain["clean"].startswith("2.0 [0.6, ")
    assert plain["white-box FGSM (loss=ce)"] == "–"
    assert re.fullmatch(r"80\.0 \[\d\d\.\d, \d\d\.\d\]", plain["worst black-box"])
    assert plain["by"] == "I-FGSM from holdout-C"
    assert plain["mean black-box"] == "50.0"
    assert alone["worst black-box"] == alone["by"] == alone["mean black-box"] == "–"
    assert alone["white-box R+FGSM"] == "–"


def test_empty_result_has_no_rows():
    assert summary_rows({"targets": {}})[1] == []
    assert rate_text(None) == "–"


def test_titles_are_the_field_s():
    assert attack_title("r-step-ll:alpha=0.15") == "R+Step-LL (alpha=0.15)"
    assert attack_title("pgd") == "PGD"
    assert attack_title("mine:steps=3") == "mine (steps=3)"


# Every measurement

FULL = {
    "n": 100,
    "sources": {"s": "0", "t": "1"},
    "targets": {
        "one": {
            "clean": rate(2),
            "white_box": {"fgsm": rate(90), "r-fgsm": rate(95)},
            "black_box": {"s": {"fgsm": rate(30), "pgd": rate(10)}, "t": {"fgsm": rate(40), "pgd": rate(60)}},
            "worst_black_box": {"source": "t", "attack": "pgd", **rate(60)},
            "mean_black_box": 0.35,
            "any_black_box": rate(70),
        },
        "two": {
            "clean": rate(3),
            "white_box": {"fgsm": rate(20)},
            "black_box": {"t": {"fgsm": rate(5), "pgd": rate(5)}},
            "worst_black_box": {"source": "t", "attack": "fgsm", **rate(5)},
            "mean_black_box": 0.05,
            "any_black_box": rate(6),
            "twin": "s",
        },
    },
}


def test_the_matrix_marks_the_strongest_of_each_row_and_its_ties():
    columns, rows = matrix_rows(FULL)
    assert columns == [
        "target",
        "clean",
        "white-box FGSM",
        "white-box R+FGSM",
        "FGSM from s",
        "PGD from s",
        "FGSM from t",
        "PGD from t",
    ]
    assert rows == [
        ["one", "2.0", "90.0*", "95.0*", "30.0", "10.0", "40.0", "60.0*"],
        ["two", "3.0", "20.0*", "–", "–", "–", "5.0*", "5.0*"],
    ]


def test_accuracies_are_those_of_the_competition():
    columns, rows = accuracy_rows(FULL)
    assert columns == ["source", "attack", "one", "two"]
    assert rows == [
        ["", "clean", "0.9800", "0.9700"],
        ["white-box", "fgsm", "0.1000", "0.8000"],
        ["white-box", "r-fgsm", "0.0500", ""],
        ["s", "fgsm", "0.7000", ""],
        ["s", "pgd", "0.9000", ""],
        ["t", "fgsm", "0.6000", "0.9500"],
        ["t", "pgd", "0.4000", "0.9500"],
        ["", "mean over attacks", "0.6500", "0.9500"],
        ["", "worst attack", "0.4000", "0.9500"],
        ["", "worst of each image", "0.3000", "0.9400"],
    ]
    assert list(csv.reader(io.StringIO(csv_text(FULL)))) == [columns, *rows]


def test_remarks_say_what_a_reader_should_know():
    assert remarks(FULL) == ["source s has the weights of target two: its attacks there are white-box"]
    few = {**FULL, "n": 40, "sources": {}, "targets": {}, "suite": "mine.toml"}
    low, high = wilson_interval(20, 40)
    assert remarks(few) == [
        "no source, so nothing was transferred; gradients of its own can flatter a model",
        f"40 images are few: 20 misclassified would be an error of 50% with the 95% interval [{low:.0%}, {high:.0%}]",
    ]
    low, high = wilson_interval(3, 5)
    odd = f"5 images are few: 3 misclassified would be an error of 60% with the 95% interval [{low:.0%}, {high:.0%}]"
    assert remarks({**few, "n": 5})[-1] == odd
    assert remarks(few | {"suite": "table8"}) == remarks(few)
    assert remarks(few | {"suite": "c1"}) == remarks(few)[1:]  # which transfers nothing


def test_the_first_five_answers_are_printed_where_there_are_more_than_ten_classes(capsys):
    """So that nobody has to open the JSON to see them."""
    result = FULL | {"data": "d/test", "epsilon": 0.3}
    print_result(result, matrix=True)
    assert "first five" not in capsys.readouterr().out
    five = {name: row | {"top5": row | {"clean": rate(44)}} for name, row in FULL["targets"].items()}
    print_result(result | {"targets": five}, matrix=True)
    one, _, rest = capsys.readouterr().out.partition("by the first five answers: error in % with 95% interval")
    assert "44.0" not in one
    assert rest.count("44.0") == 4  # two targets, in the summary and in the matrix
    assert "by the first five answers: error in %; * the strongest" in rest


def test_adversaries_that_query_are_in_every_table():
    adaptive = {"surrogate": {**rate(25), "queries": 4800, "queries_per_image": 48.0}}
    one = {**FULL["targets"]["one"], "adaptive": adaptive}
    result = {**FULL, "targets": {**FULL["targets"], "one": one}}
    columns, rows = matrix_rows(result)
    assert columns[4] == "surrogate, by queries"
    assert [row[4] for row in rows] == ["25.0", "–"]
    assert ["queries", "surrogate", "0.7500", ""] in accuracy_rows(result)[1]


def test_a_source_that_is_no_black_box_is_not_compared_with_those_that_are():
    one = {**FULL["targets"]["one"], "kin": ["t"]}
    _, rows = matrix_rows({**FULL, "targets": {"one": one}})
    assert rows[0][4:] == ["30.0*", "10.0", "40.0", "60.0"]


def test_one_model_under_two_names_is_told():
    one = FULL["targets"]["one"]
    assert list(one["black_box"]) == ["s", "t"]
    told = remarks({**FULL, "sources": {"s": "1", "t": "1", "other": "2"}})
    assert told[0] == "sources s and t have the same weights: their attacks count 2 times in means"
    kin = {**FULL, "sources": {"s": "1", "t": "1"}, "targets": {"one": {**one, "kin": ["s", "t"]}}}
    assert not any("count 2 times" in note for note in remarks(kin))  # they are in no mean


@pytest.mark.parametrize(("count", "text"), [(1568.2, "1,568"), (10.4, "10"), (5, "5"), (0.05, "0.05"), (2.4, "2.4")])
def test_few_queries_an_image_are_not_none(count, text):
    assert count_text(count) == text


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_one_attack_that_is_spelled_in_two_ways_is_refused(tmp_path, loss):
    path = tmp_path / "twice.toml"
    path.write_text(f'black_box = ["pgd", "fgsm", "fgsm:loss={loss}", "r-fgsm", "r-fgsm:alpha=0.1"]')
    with pytest.raises(
        InputError, match=f"once, got fgsm and fgsm:loss={loss}, which are the same at epsilon 0.3; drop"
    ):
        suite_named(str(path)).attacks(epsilon=0.3, loss=loss)
    other = "ce" if loss == "margin" else "margin"
    assert len(suite_named(str(path)).attacks(epsilon=0.3, loss=other)[1]) == 5


def test_zero_gradients_are_told():
    row = {**FULL["targets"]["one"], "unmoved": {"fgsm": 7}}
    told = remarks({**FULL, "targets": {"one": row}})
    assert told[0].startswith("FGSM on target one left 7 of 100 images where it began: the gradient is zero there")
    told = remarks({**FULL, "unmoved": {"s": {"step-ll": 9}}})
    assert told[1].startswith("Step-LL on source s left 9 of 100 images where it began: its gradient is zero there")
    found = {"n": 40, "models": {"m": {"masking": {"blind": 3, "iterative": "pgd"}}, "other": {"cone": {}}}}
    (told,) = diagnosis_remarks(found)
    assert told.startswith("the gradient of m is zero on 3 of 40 images, also where pgd ended")
    assert diagnosis_remarks({"n": 40, "models": {"m": {"masking": {"iterative": "pgd"}}}}) == []  # of earlier versions
