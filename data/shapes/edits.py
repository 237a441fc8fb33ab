"""Edits of still scenes as instructions: "turn the red circle blue", "remove the ring"."""

from dataclasses import replace

import numpy as np

from data.shapes.captions import a, full_name, name
from data.shapes.sampling import sample_things, turn_options
from data.shapes.scene import BACKGROUNDS, PLACES, SIZES, Pairs, Scene, Thing, pick


def sample_still(rng: np.random.Generator, pairs: Pairs) -> Scene:
    """A scene of one to three objects without events."""
    return Scene(sample_things(rng, pairs, pick(rng, (1, 2, 2, 3))), pick(rng, BACKGROUNDS))


def sample_edit(rng: np.random.Generator, scene: Scene, pairs: Pairs) -> tuple[str, Scene]:
    """An instruction, and the edited scene."""
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    free = [c for c in range(9) if c not in {t.cell for t in scene.things}]

    def changed(**fields) -> Scene:
        things = list(scene.things)
        things[index] = replace(thing, **fields)
        return replace(scene, things=tuple(things))

    kind = pick(rng, ("turn", "move", "resize", "ground", "remove", "add"))
    colours = turn_options(thing, scene.things, pairs)
    if kind == "turn" and colours:
        colour = pick(rng, colours)
        return pick(
            rng, (f"turn the {name(thing)} {colour}.", f"make the {name(thing)} {colour}.")
        ), changed(colour=colour)
    if kind == "resize":
        size = next(s for s in SIZES if s != thing.size)
        return f"make the {name(thing)} {size}.", changed(size=size)
    if kind == "ground":
        ground = pick(rng, [b for b in BACKGROUNDS if b != scene.background])
        return f"make the background {ground}.", replace(scene, background=ground)
    if kind == "remove" and len(scene.things) > 1:
        things = scene.things[:index] + scene.things[index + 1 :]
        return f"{pick(rng, ('remove', 'take away'))} the {name(thing)}.", replace(
            scene, things=things
        )
    if kind == "add" and len(scene.things) < 3:
        taken = {(t.colour, t.shape) for t in scene.things}
        new: Thing = sample_things(
            rng, tuple(p for p in pairs if p not in taken), 1, cells=tuple(free)
        )[0]
        text = f"add {a(full_name(new))} in the {new.place}."
        return text, replace(scene, things=(*scene.things, new))
    cell = pick(rng, free)
    return f"move the {name(thing)} to the {PLACES[cell]}.", changed(cell=cell)
