"""Captions and videos as sets of facts: the ground truth of the benchmark.

A video satisfies a caption if it shows all facts of the caption: `said(a) <= shown(b)`. A set of
the benchmark is valid if only its own video satisfies each caption. Facts omit what a caption omits
(the phase, the position).
"""

from collections import Counter
from collections.abc import Callable

from data.shapes import captions
from data.shapes.scene import Event, Scene, Thing

Facts = frozenset


def _numbered(words: list) -> Facts:
    """A multiset as a set of (word, number of its occurrence)."""
    return Facts((w, k) for w, n in Counter(words).items() for k in range(n))


def _actions(thing: Thing) -> list[tuple[str, str]]:
    return [(e.action, e.argument) for e in thing.events] or [("still", "")]


def _camera(scene: Scene) -> Facts:
    return Facts() if scene.camera == ("still", "still") else Facts({("camera", scene.camera)})


def short(scene: Scene) -> Facts:
    things = [(captions.name(t), *d) for t in scene.things for d in _actions(t)]
    return Facts(things) | {("ground", scene.background)} | _camera(scene)


def whole(scene: Scene) -> Facts:
    things = [(captions.full_name(t), t.place, *d) for t in scene.things for d in _actions(t)]
    return Facts(things) | {("ground", scene.background), ("camera", scene.camera)}


def spatial(scene: Scene) -> Facts:
    things = [(captions.full_name(t), t.place) for t in scene.things]
    return Facts(things) | {("ground", scene.background)}


def temporal(scene: Scene) -> Facts:
    things = [
        (e.phase, captions.name(t), e.action, e.argument) for t in scene.things for e in t.events
    ]
    return Facts(things) | _camera(scene)


def camera(scene: Scene) -> Facts:
    return Facts(captions.name(t) for t in scene.things) | {
        scene.background,
        ("camera", scene.camera),
    }


def keywords(scene: Scene) -> Facts:
    return _numbered(captions.keyword_list(scene))


def theme(scene: Scene) -> Facts:
    return _numbered(captions.theme_list(scene)) | {("ground", scene.background)}


def event(thing: Thing, action: Event) -> Facts:
    fact = captions.full_name(thing), thing.place, action.action, action.argument
    return Facts({fact})


def events(scene: Scene) -> Facts:
    return Facts().union(*(event(t, e) for t in scene.things for e in t.events))


def one_thing(scene: Scene, thing: Thing) -> Facts:
    """An object in detail as a single fact, so that two objects cannot satisfy it together."""
    events = tuple((e.phase, e.action, e.argument) for e in thing.events)
    return Facts({(captions.full_name(thing), thing.place, events, scene.background)})


def main_object(scene: Scene) -> Facts:
    return one_thing(scene, scene.things[0])


def all_objects(scene: Scene) -> Facts:
    return Facts().union(*(one_thing(scene, t) for t in scene.things))


def detailed(scene: Scene) -> Facts:
    return all_objects(scene) | {("camera", scene.camera), ("count", len(scene.things))}


class Distinct:
    """Admits a scene if it satisfies no caption of an admitted scene, and vice versa.

    Args:
        said, shown: facts of a caption and of a video; `shown` is `said` by default.
    """

    def __init__(
        self, said: Callable[[Scene], Facts], shown: Callable[[Scene], Facts] | None = None
    ):
        self._said, self._shown = said, shown or said
        self._taken: list[tuple[Facts, Facts]] = []

    def admits(self, scene: Scene) -> bool:
        said, shown = self._said(scene), self._shown(scene)
        return not any(
            said <= other_shown or other_said <= shown for other_said, other_shown in self._taken
        )

    def add(self, scene: Scene) -> None:
        self._taken.append((self._said(scene), self._shown(scene)))
