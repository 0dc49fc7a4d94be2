"""From measured costs to the rows of the CSV files."""

import csv
import platform
import statistics
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import report
import torch
from contestants import Ours
from grid import GRID, GROWTH, Case
from meter import Cost, middle
from shapes import SMALL

SHAPE_COLUMNS = ["pairs", "prompt", "response", "vocab", "packed", "lora"]
RATIO_COLUMNS = [f"{kind}_ratio{end}" for kind in ("time", "user") for end in ("", "_least", "_most")]
COST_COLUMNS = [*RATIO_COLUMNS, "memory_ratio", "seconds", "bytes", "faults", "versions"]
OURS_COLUMNS = ["objective", "mask", "shared", "sparsity", "shared_prefix"]
COLUMNS = ["device", "baseline", *OURS_COLUMNS, *SHAPE_COLUMNS, *COST_COLUMNS]
GROWTH_COLUMNS = ["axis", "value", "contestant", "seconds", "bytes", "faults", "versions"]
PARTS_COLUMNS = ["measurement", "part", "seconds", "share", "bytes", "faults", "versions"]
VOCABULARY, PROFILE = "vocabulary part", "profile"

# What each contestant of a case cost in each turn, or why it cannot run; the vocabulary part and the profile are cases
# too.
Found = dict[object, dict[object, list[Cost] | str]]


def write(results: Path, device: str, fresh: Found, timed: Found) -> None:
    """Write the CSV files from a pass with fresh memory and one with memory kept."""
    rows = [
        row for case in GRID[device] if case in fresh for row in _case_rows(case, device, fresh[case], timed[case])
    ]
    if device == "cpu":
        rows += [row for case in GRID["cuda"] for row in _unmeasured_rows(case, "cuda")]
    _write(results / f"step_cost_{device}.csv", COLUMNS, rows)
    if VOCABULARY in fresh:
        kept = {
            case: {name: _joined(costs, timed[case][name]) for name, costs in fresh[case].items()} for case in fresh
        }
        _write(results / f"growth_{device}.csv", GROWTH_COLUMNS, _growth_rows(kept))
        _write(results / f"parts_{device}.csv", PARTS_COLUMNS, _part_rows(fresh, kept))


def _joined(fresh: list[Cost] | str, timed: list[Cost] | str) -> Cost | str:
    """Medians of the turns, the most faults of them, and the bytes of fresh memory."""
    return fresh if isinstance(fresh, str) else replace(middle(timed), bytes=middle(fresh).bytes)


def _case_rows(case: Case, device: str, fresh: dict, timed: dict) -> list[dict]:
    """One row for each of our losses and each baseline."""
    rows = []
    for ours in case.ours:
        cost = _joined(fresh[ours], timed[ours])
        for baseline in case.baselines:
            cells = {"seconds": round(cost.seconds, 5), "bytes": int(cost.bytes), "versions": versions(device)}
            if isinstance(other := fresh[baseline], str):
                cells["versions"] += f"; {baseline}: {other}"
            else:
                cells |= {"memory_ratio": round(cost.bytes / middle(other).bytes, 4)}
                cells |= _ratios(list(zip(timed[ours], timed[baseline], strict=True)))
            rows.append(_names(case, ours, baseline, device) | cells)
    return rows


def _unmeasured_rows(case: Case, device: str) -> list[dict]:
    unmeasured = {"seconds": report.UNMEASURED, "bytes": report.UNMEASURED, "versions": ""}
    return [_names(case, ours, name, device) | unmeasured for ours in case.ours for name in case.baselines]


def _names(case: Case, ours: Ours, baseline: str, device: str) -> dict:
    """Whose row it is, with nothing measured."""
    sparsepo = ours.objective == "sparsepo"
    return {
        "device": device if case.shape.size == SMALL else f"{device} {case.shape.size.name}",
        "baseline": baseline,
        "objective": ours.objective,
        "mask": ours.mask if sparsepo else "",
        "shared": ours.shared if sparsepo else "",
        "sparsity": ours.sparsity,
        "shared_prefix": ours.shared_prefix,
        **{key: getattr(case.shape, key) for key in SHAPE_COLUMNS},
        **dict.fromkeys(COST_COLUMNS, report.UNMEASURED),
    }


def _ratios(pairs: list[tuple[Cost, Cost]]) -> dict:
    """Our cost to a baseline's: median, least and most of the turns; the most faults of any counted step of the two.

    User time and faults are empty where they are not measured, on a GPU.
    """
    found = {"faults": max((cost.faults for pair in pairs for cost in pair if cost.faults is not None), default="")}
    for kind, key in (("time", "seconds"), ("user", "user")):
        columns = [f"{kind}_ratio{end}" for end in ("", "_least", "_most")]
        costs = [(getattr(ours, key), getattr(other, key)) for ours, other in pairs]
        ratios = [round(ours / other, 4) for ours, other in costs if other is not None]
        cells = (statistics.median(ratios), min(ratios), max(ratios)) if ratios else ("", "", "")
        found |= dict(zip(columns, cells, strict=True))
    return found


def _growth_rows(kept: Found) -> list[dict]:
    """How the cost grows along each axis, ours and OpenRLHF's."""
    return [
        {"axis": axis, "value": value, "contestant": name if isinstance(name, str) else "sparsepo"} | _measured(cost)
        for axis, points in GROWTH.items()
        for value, case in points.items()
        for name, cost in kept[case].items()
    ]


def _part_rows(fresh: Found, kept: Found) -> list[dict]:
    """What a dense step is made of, its vocabulary part in other ways, and what fresh memory costs two steps."""
    profile, vocabulary, first = kept[PROFILE], dict(kept[VOCABULARY]), GRID["cpu"][0]
    whole = sum(cost.seconds for cost in profile.values())
    rows = [_part("profile", part, replace(cost, bytes=None), whole) for part, cost in profile.items()]
    dense, sparse = vocabulary["dense"], vocabulary.pop("80% sparse")
    rows += [
        _part("vocabulary", part, cost, dense.seconds) for part, cost in (("dense", dense), ("80% sparse", sparse))
    ]
    rows += [_part("tried", part, cost, dense.seconds) for part, cost in vocabulary.items()]
    for name, contestant in (("openrlhf_dpo", "openrlhf_dpo"), ("learned", Ours())):
        whole = kept[first][contestant].seconds
        for memory, cost in (("kept", kept[first][contestant]), ("fresh", middle(fresh[first][contestant]))):
            rows.append(_part("allocation", f"`{name}`, memory {memory}", cost, whole))
    return rows


def _part(measurement: str, part: str, cost: Cost, whole: float) -> dict:
    return {"measurement": measurement, "part": part, "share": round(cost.seconds / whole, 4)} | _measured(cost)


def _measured(cost: Cost) -> dict:
    size = "" if cost.bytes is None else int(cost.bytes)
    return {"seconds": round(cost.seconds, 5), "bytes": size, "faults": cost.faults, "versions": versions("cpu")}


@cache
def versions(device: str) -> str:
    """Hardware and versions."""
    packages = ("torch", "transformers", "openrlhf", "trl")
    found = [f"{name} {installed}" for name in packages if (installed := _version(name))]
    if device == "cuda":
        hardware = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        model = models[0] if models else platform.machine()
        hardware = f"{model}, {torch.get_num_threads()} threads"
    return "; ".join([hardware, f"python {platform.python_version()}", *found])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _write(path: Path, columns: list[str], rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
