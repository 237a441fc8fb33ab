"""What a trained model must show before its scores mean anything."""

from collections.abc import Mapping

from data.uvrb.tasks import MOTION
from evals.uvrb.scores import ABILITIES

OVER_CHANCE = 10  # AVG-D against chance
OVER_UNTRAINED = 3  # AVG-D against the same model before training


def failures(results: Mapping) -> list[str]:
    """One line for each requirement that `results.json` does not meet; empty when all are met.

    AVG-D is at least 10 times chance and 3 times the untrained model's, each ability beats both,
    and the motion sets beat the same model shown each video's frames in shuffled order: otherwise
    they would not test time. `results` holds all sets, `untrained` and `control`.
    """
    untrained, chance = results["untrained"], results["chance"]
    average = results["averages"]["AVG-D"]
    runs = {
        "the untrained model": untrained,
        "shuffled frames": results.get("controls", {}).get("shuffled", {}),
    }
    found = [
        f"{name} cannot be compared with {other}: {why}"
        for other, run in runs.items()
        for name, why in run.get("paired", {}).get("refused", {}).items()
    ]
    for factor, name, other in (
        (OVER_CHANCE, "chance", chance["averages"]["AVG-D"]),
        (OVER_UNTRAINED, "the untrained model", untrained["averages"]["AVG-D"]),
    ):
        if average < factor * other:
            found.append(f"AVG-D {average:.3f} is below {factor} times {name} ({other:.3f})")
    for ability in ABILITIES:
        score = results["abilities"][ability]
        for name, other in (
            ("chance", chance["abilities"][ability]),
            ("the untrained model", untrained["abilities"][ability]),
        ):
            if score <= other:
                found.append(f"ability {ability} {score:.3f} does not beat {name} ({other:.3f})")
    for name in MOTION:
        score = results["datasets"][name]["score"]
        control = results["control"]["datasets"][name]["score"]
        if score <= control:
            found.append(f"{name} {score:.3f} does not beat shuffled frames ({control:.3f})")
    return found
