"""Requirements that the scores of a trained model must meet."""

from collections.abc import Mapping

from data.uvrb.tasks import MOTION
from evals.uvrb.scores import ABILITIES

OVER_CHANCE = 10  # required ratio of AVG-D to chance
OVER_UNTRAINED = 3  # required ratio of AVG-D to the untrained model


def failures(results: Mapping) -> list[str]:
    """One line for each requirement that `results.json` does not meet.

    AVG-D is at least 10 times chance and 3 times the untrained model's, each ability beats both,
    and the motion sets beat the same model with shuffled frames: otherwise they would not test
    time. `results` contains all sets, `untrained` and `control`.
    """
    untrained, chance = results["untrained"], results["chance"]
    average = results["averages"]["AVG-D"]
    runs = {
        "the untrained model": untrained,
        "shuffled frames": results.get("controls", {}).get("shuffled", {}),
    }
    found = [
        f"{name} cannot be compared with {other}: {reason}"
        for other, run in runs.items()
        for name, reason in run.get("paired", {}).get("refused", {}).items()
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
