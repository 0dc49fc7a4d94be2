"""`sparsepo frontier`, on its CSV, against numbers worked out by hand."""

import csv
import importlib
import json
import math
import sys
from pathlib import Path

import numpy
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sparsepo_plugin import OBJECTIVES, LossConfig, SparsePOError
from sparsepo_plugin.analysis.hull import Frontier
from sparsepo_plugin.analysis.intervals import mean_over_seeds
from sparsepo_plugin.analysis.kl_bins import bin_edges
from sparsepo_plugin.cli import app
from sparsepo_plugin.masks import build_masks

OPTIONS = {"reward": "vader", "prompts": "prompts.jsonl", "reference": None, "seed": 0, "count": 2}


def test_a_frontier_by_hand():
    dots = [(0, 0), (1, 1), (2, 1.2), (1, 0.5), (3, 2), (4, 1.9), (0.5, 0.3)]
    frontier = Frontier.of(dots)
    assert frontier.vertices == [(0, 0), (1, 1), (3, 2)] and frontier.reach == 4
    assert [frontier.at(kl) for kl in (0, 0.5, 2, 3, 10)] == [0, 0.5, 1.5, 2, 2]
    assert frontier.mean(0, 4) == pytest.approx((0.5 + 3 + 2) / 4)
    assert frontier.mean(0.5, 2) == pytest.approx((0.375 + 1.25) / 1.5)


@pytest.mark.parametrize(
    ("dots", "vertices"),
    [
        ([(2, 1)], [(2, 1)]),
        ([(0, 0), (1, 1), (2, 2)], [(0, 0), (2, 2)]),  # on a line
        ([(0, 3), (1, 1), (2, 2)], [(0, 3)]),  # never better than where it starts
        ([(1, 0), (1, 2), (1, 1)], [(1, 2)]),
        ([(1, 2), (3, 2)], [(1, 2)]),
    ],
)
def test_frontiers_of_few_dots(dots, vertices):
    assert Frontier.of(dots).vertices == vertices


def test_left_of_the_first_vertex_nothing_is_known():
    assert math.isnan(Frontier.of([(2, 1), (3, 2)]).at(1.9))


numbers = st.integers(-20, 20).map(float)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12), numbers)
def test_a_frontier_is_the_best_mixture_of_two(dots, kl):
    """Against every pair of points, and every point with less KL."""
    best = [y for x, y in dots if x <= kl]
    for (x1, y1), (x2, y2) in ((one, two) for one in dots for two in dots if one[0] < kl < two[0]):
        best.append(y1 + (y2 - y1) * (kl - x1) / (x2 - x1))
    found = Frontier.of(dots).at(kl)
    assert found == pytest.approx(max(best), abs=1e-9) if any(x <= kl for x, _ in dots) else math.isnan(found)


def test_intervals_over_seeds_are_students():
    """The 97.5 % point of t with two degrees of freedom is 4.302653."""
    assert mean_over_seeds([1.0, 2.0, 4.0]) == pytest.approx(
        {"mean": 7 / 3, "low": 7 / 3 - 4.302653 * (7 / 9) ** 0.5, "high": 7 / 3 + 4.302653 * (7 / 9) ** 0.5}, rel=1e-6
    )
    assert mean_over_seeds([2.0]) == {"mean": 2.0, "low": None, "high": None}


def write_point(sweep, settings, seed, rows, finished=True, options=OPTIONS):
    """A finished point; rows are checkpoint, step, reward and KL of completions."""
    name = "_".join(f"{value}" for value in (*settings.values(), seed))
    run = sweep / name / "run"
    run.mkdir(parents=True)
    (sweep / name / "point.json").write_text(json.dumps({"settings": settings, "seed": seed, "finished": finished}))
    keys = ("checkpoint", "step", "reward", "kl")
    lines = [dict(zip(keys, row, strict=True)) | {"temperature": 1.0, "completion": "x"} for row in rows]
    (run / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [options, *lines]))
    return run


@pytest.fixture
def sweep(tmp_path):
    """Two methods, two β, two seeds; a policy is two completions around its mean."""
    means = {
        ("dpo", 0.1, 0): (4, 0.6), ("dpo", 0.8, 0): (2, 0.4), ("dpo", 0.1, 1): (4, 0.7), ("dpo", 0.8, 1): (2, 0.3),
        ("tdpo", 0.1, 0): (6, 0.9), ("tdpo", 0.8, 0): (2, 0.5), ("tdpo", 0.1, 1): (8, 0.9), ("tdpo", 0.8, 1): (4, 0.5),
    }  # fmt: skip
    for (loss, beta, seed), (kl, reward) in means.items():
        rows = [("", 9, reward + sign * 0.25, kl + sign) for sign in (-1, 1)]
        write_point(tmp_path / "sweep", {"loss": loss, "model.beta": beta}, seed, rows)
    samples = [{"header": 1}, *({"completion": "y", "reward": reward} for reward in (-0.5, 0.5))]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return tmp_path / "sweep"


@pytest.fixture
def frontier(tmp_path):
    """The command."""

    def frontier(*arguments):
        return CliRunner().invoke(app, ["frontier", *map(str, arguments), "-o", str(tmp_path / "out")])

    return frontier


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_points_and_table(sweep, frontier, tmp_path):
    """With the start at (0, 0) the common range ends at 4, which dpo has reached and no further.

    By hand, dpo: (0,0) (2,.4) (4,.6) and (0,0) (4,.7); tdpo: (0,0) (2,.5) (6,.9) and (0,0) (4,.5) (8,.9).
    """
    done = frontier(sweep, "--reference", tmp_path / "samples.jsonl")
    assert done.exit_code == 0, done.output
    names = [
        "frontier.csv",
        "frontier.png",
        "frontier.svg",
        "bins.csv",
        "bins.png",
        "bins.svg",
        "table.csv",
        "table.md",
    ]
    assert done.stdout.split() == [str(tmp_path / "out" / name) for name in names]
    dots = {(row["method"], row["beta"], row["seed"]): row for row in read(tmp_path / "out" / "frontier.csv")}
    assert len(dots) == 8
    assert {key: row["on_frontier"] for key, row in dots.items() if row["on_frontier"] == "0"} == {
        ("dpo", "0.8", "1"): "0"
    }
    row = dots["tdpo", "0.1", "1"]
    assert (float(row["kl"]), float(row["reward"]), row["completions"]) == (8, pytest.approx(0.9), "2")
    table = {
        (row["method"], row["quantity"], float(row["kl_to"])): row for row in read(tmp_path / "out" / "table.csv")
    }
    expected = {
        ("dpo", "area", 4): [(0.4 + 1.0) / 4, 1.4 / 4],
        ("tdpo", "area", 4): [(0.5 + 1.2) / 4, 1.0 / 4],
        ("dpo", "reward", 1): [0.2, 0.175],
        ("dpo", "reward", 4): [0.6, 0.7],
        ("tdpo", "reward", 1): [0.25, 0.125],
        ("tdpo", "reward", 3): [0.6, 0.375],
    }
    for key, values in expected.items():
        assert_interval(table[key], ("mean", "low", "high"), values)
        assert (table[key]["kl_from"], table[key]["seeds"]) == ("0.0" if key[1] == "area" else str(float(key[2])), "2")
    columns = ("difference", "difference_low", "difference_high")
    assert_interval(table["tdpo", "area", 4], columns, [0.425 - 0.35, 0.25 - 0.35])
    assert_interval(table["tdpo", "reward", 1], columns, [0.05, -0.05])
    assert_interval(table["tdpo", "shared area", 4], columns, [0.425 - 0.35, 0.25 - 0.35])
    assert ("dpo", "shared area", 4) not in table
    assert table["tdpo", "reward", 1]["baseline"] == "dpo" and table["dpo", "reward", 1]["difference"] == ""
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| dpo | 0.350 [0.350, 0.350] |" in text and "area, KL 0.00 to 4.00" in text and "less `dpo`" in text
    assert text.splitlines()[-1].endswith(", to 4.00 |")


def test_the_shared_area_goes_as_far_as_two_methods_reach(sweep, frontier, tmp_path):
    """A third method ends at 1 and shortens what all have in common; tdpo and dpo are compared up to 4 as before."""
    for seed in (0, 1):
        write_point(sweep, {"loss": "tight", "model.beta": 0.1}, seed, [("", 9, 0.3, 1.0)])
    assert frontier(sweep, "--reference", tmp_path / "samples.jsonl").exit_code == 0
    rows = read(tmp_path / "out" / "table.csv")
    ends = {(row["method"], row["quantity"]): row["kl_to"] for row in rows if row["quantity"] != "reward"}
    assert ends == {
        **{(method, "area"): "1.0" for method in ("dpo", "tdpo", "tight")},
        ("tdpo", "shared area"): "4.0",
        ("tight", "shared area"): "1.0",
    }
    (shared,) = [row for row in rows if (row["method"], row["quantity"]) == ("tdpo", "shared area")]
    assert float(shared["difference"]) == pytest.approx((0.075 - 0.1) / 2)


def assert_interval(row, columns, values):
    """Of two values: mean ± 12.7062 · half their distance, as t with one degree of freedom has it."""
    half = 12.7062047 * abs(values[0] - values[1]) / 2
    middle = sum(values) / 2
    assert [float(row[column]) for column in columns] == pytest.approx(
        [middle, middle - half, middle + half], abs=1e-6
    )


def test_without_a_reference_the_range_begins_where_all_have_begun(sweep, frontier, tmp_path):
    """At 4: tdpo's second seed begins where dpo's first has ended."""
    done = frontier(sweep)
    assert done.exit_code == 2 and "begins at a KL of 4, where another has ended at 4" in done.stderr
    assert not (tmp_path / "out").exists()


def test_bins(sweep, frontier, tmp_path):
    """16 completions with KL from 1 to 9; all of a method and β together, every one counted once."""
    assert frontier(sweep, "--reference", tmp_path / "samples.jsonl").exit_code == 0
    kls = [1, 3, 1, 3, 3, 5, 3, 5, 1, 3, 3, 5, 5, 7, 7, 9]
    edges = bin_edges(numpy.array(kls, float))
    assert edges[:-1] == pytest.approx(numpy.linspace(0, numpy.percentile(kls, 95), 8)) and edges[-1] == 9
    rows = read(tmp_path / "out" / "bins.csv")
    assert sum(int(row["completions"]) for row in rows) == 16
    own = [row for row in rows if (row["method"], row["beta"]) == ("tdpo", "0.1")]
    # width 7.5 / 7: 5 is in [4.29, 5.36), 7 twice in [6.43, 7.5), 9 in the last
    assert [(row["completions"], float(row["reward"])) for row in own] == [
        ("1", pytest.approx(0.65)), ("2", pytest.approx((1.15 + 0.65) / 2)), ("1", pytest.approx(1.15))
    ]  # fmt: skip
    assert float(own[0]["kl_from"]) == pytest.approx(4 * 7.5 / 7)


def test_checkpoints_are_points_of_their_run(tmp_path, frontier):
    for seed in (0, 1):
        rows = [("global_step5_hf", 5, 0.2, 1.0), ("", 9, 0.4, 3.0)]
        write_point(tmp_path / "one", {"loss": "dpo"}, seed, rows)
    assert frontier(tmp_path / "one").exit_code == 0
    dots = read(tmp_path / "out" / "frontier.csv")
    assert [(row["checkpoint"], row["step"], row["kl"]) for row in dots[:2]] == [
        ("global_step5_hf", "5", "1.0"),
        ("", "9", "3.0"),
    ]
    assert sum(int(row["completions"]) for row in read(tmp_path / "out" / "bins.csv")) == 2, "finished runs alone"


def test_a_loss_with_a_beta_of_its_own_is_one_method(tmp_path, frontier):
    for beta in (1, 8):
        write_point(
            tmp_path / "one", {"variant": "ln", "ln_dpo.beta": beta}, 0, [("", 9, 0.5, beta), ("c", 5, 0.1, 1)]
        )
    assert frontier(tmp_path / "one").exit_code == 0
    dots = read(tmp_path / "out" / "frontier.csv")
    assert {(row["method"], row["beta"]) for row in dots} == {("ln", "1"), ("ln", "8")}


def test_sweeps_of_one_grid_are_told_apart(tmp_path, frontier):
    for name in ("one", "two"):
        write_point(tmp_path / name, {"model.beta": 0.1, "adam.lr": 1}, 0, [("", 9, 0.5, 2.0), ("c", 5, 0.1, 1.0)])
    assert frontier(tmp_path / "one", tmp_path / "two").exit_code == 0
    assert {row["method"] for row in read(tmp_path / "out" / "frontier.csv")} == {"one: adam.lr=1", "two: adam.lr=1"}


def test_points_that_are_not_finished_are_left_out(sweep, frontier, tmp_path):
    write_point(sweep, {"loss": "simpo", "model.beta": 0.1}, 0, [], finished=False)
    done = frontier(sweep, "--reference", tmp_path / "samples.jsonl")
    assert done.exit_code == 0 and "simpo_0.1_0 is left out: its run is not finished" in done.stderr


NAMED = {"loss": "simpo", "model.beta": 0.1}


@pytest.mark.parametrize(
    ("spoil", "flags", "says"),
    [
        (lambda sweep: (sweep / "dpo_0.1_0/run/evaluation.jsonl").unlink(), [], "/*/run --prompts FILE --reward NAME"),
        (lambda sweep: write_point(sweep, NAMED, 0, [("", 1, 0.1, None)]), [], "has no KL, the run has no reference"),
        (lambda sweep: write_point(sweep, NAMED, 0, []), [], "has no completion"),
        (lambda sweep: write_point(sweep, NAMED, 0, [("", 1, 0.1, 1.0)], options={**OPTIONS, "count": 3}), [],
         "was made with count: 3, that of"),
        (lambda sweep: (sweep / "dpo_0.1_0/run/evaluation.jsonl").write_text("{"), [], "evaluate the run again"),
        (lambda sweep: (sweep / "dpo_0.1_0/point.json").write_text("{}"), [], "is not what `sparsepo sweep` writes"),
        (lambda sweep: None, ["--baseline", "ppo"], "--baseline ppo: the methods are dpo, tdpo"),
        (lambda sweep: None, ["--temperature", "0.5"], "--temperature 0.5: completions were drawn at 1"),
        (lambda sweep: None, ["--reference", "absent"], "--reference absent cannot be read"),
    ],
)  # fmt: skip
def test_what_is_refused(spoil, flags, says, sweep, frontier, tmp_path):
    spoil(sweep)
    done = frontier(sweep, *flags)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_sweep(tmp_path, frontier):
    done = frontier(tmp_path)
    assert done.exit_code == 2 and "is no sweep: no folder in it has point.json" in done.stderr


@pytest.fixture
def experiment(monkeypatch):
    """The script of `make frontier`."""
    for name in ("demo", "frontier"):
        monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / name)
    yield importlib.import_module("run")
    for name in ("run", "commands", "ingredients", "language_model", "reviews"):
        sys.modules.pop(name)


def test_methods_by_name(experiment):
    """Names of the two files, and losses whose options all have defaults; with the key of their β."""
    assert [*experiment.read_variants("")] == [*yaml.safe_load((experiment.HERE / "methods.yaml").read_text())]
    assert experiment.read_variants("tdpo v1,ln_dpo,diff") == {
        "tdpo v1": {"loss": "tdpo", "tdpo": {"version": 1}},
        "ln_dpo": {"loss": "ln_dpo"},
        "diff": {"loss": "weighted_dpo", "weighted_dpo": {"mask": "diff"}},
    }
    assert experiment.scale_of("adpo") == {"model.beta": "0.05,0.4,3"}
    assert experiment.scale_of("ln_dpo") == {"ln_dpo.beta": "2.5,20,150"}
    assert experiment.scale_of("sepo") == {}
    with pytest.raises(SparsePOError, match=r"^METHODS: 'ppo' is no method; there are dpo, .*adpo segments, .*simpo"):
        experiment.read_variants("dpo,ppo")
    with pytest.raises(SparsePOError, match=r"^METHODS: weighted_dpo.mask is needed: .*; say what it is in"):
        experiment.read_variants("weighted_dpo")


def test_every_loss_and_every_example_of_a_method_is_a_name(experiment):
    """`weighted_dpo` has as many names as masks have that it is used with."""
    examples = Path(__file__).parents[2] / "examples/openrlhf/methods"
    names = {*OBJECTIVES.names(), *(path.stem for path in examples.glob("*.yaml"))} - {"weighted_dpo"}
    assert {"sepo", "tgdpo", "tis_dpo", "mask_dpo", "cdpo", "wpo"} <= names
    variants = experiment.read_variants(",".join(sorted(names)))
    for name in names & {path.stem for path in examples.glob("*.yaml")}:
        assert variants[name]["loss"] == yaml.safe_load((examples / f"{name}.yaml").read_text())["loss"]


def test_what_a_method_needs_is_made_once(experiment, monkeypatch, tmp_path):
    """TIS-DPO's weights are scores of two models; what was half made is made again."""
    ingredients, made = sys.modules["ingredients"], []

    def command(name, *arguments, **_):
        made.append((name, *map(str, arguments)))
        for flag in ("-o", "--ckpt.output_dir"):
            if flag in arguments:
                arguments[arguments.index(flag) + 1].touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ingredients, "sparsepo", command)
    variants = experiment.read_variants("tis_dpo,tgdpo,dpo")
    assert [experiment.needed(variant) for variant in variants.values()] == [["tis_dpo.jsonl"], ["oracle"], []]
    experiment.OUTPUT.mkdir(parents=True)
    half = experiment.OUTPUT / "part-oracle"
    half.mkdir()
    (half / "model.safetensors").touch()
    path = experiment.prepared("tis_dpo.jsonl")
    assert [words[0] for words in made] == ["train", "train", "score"] and path.exists() and not half.exists()
    assert made[-1][1:4] == ("runs/frontier/oracle", "--reference", "runs/frontier/swapped")
    assert {words[words.index("--data.chosen_key") + 1] for words in made if "--data.chosen_key" in words} == {
        "rejected"
    }
    experiment.prepared("oracle")
    experiment.prepared("tis_dpo.jsonl")
    assert len(made) == 3


@pytest.mark.parametrize("file", ["methods.yaml", "more.yaml"])
def test_every_named_method_is_one(file, experiment):
    for variant in yaml.safe_load((experiment.HERE / file).read_text()).values():
        assert variant.keys() <= {"loss", variant["loss"], "data"}
        build_masks(LossConfig.from_section(variant.get(variant["loss"]), variant["loss"]), 16, 2, seed=0)
