"""Scenes: objects ("things") with events, a camera and a background; and their vocabulary.

A scene lasts 4 s and has two phases of 2 s. In each phase an object has at most one event and the
camera at most one movement. Positions are the cells of a 3x3 grid, before an object moves or
leaves, or after it has entered.
"""

import zlib
from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 235),
    "yellow": (245, 225, 40),
    "purple": (150, 40, 190),
    "orange": (250, 135, 20),
    "cyan": (50, 215, 230),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = {"small": 10.0, "large": 17.0}  # radius in pixels
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
BACKGROUNDS = {
    "black": (40, 40, 40),  # lighting may darken it to 0
    "gray": (112, 112, 112),
    "tan": (176, 146, 108),
    "teal": (28, 98, 98),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
CAMERA = ("still", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out")

FRAME = 112  # pixels, both sides
FPS = 4
PHASE_FRAMES = 8
SCENE_FRAMES = 2 * PHASE_FRAMES


def _held_out(colour: str, shape: str) -> bool:
    # Along diagonals, so that each colour and each shape occurs in training and in evaluation.
    return (tuple(COLOURS).index(colour) + SHAPES.index(shape)) % 4 == 0


ALL_PAIRS = tuple((c, s) for c in COLOURS for s in SHAPES)
TRAIN_PAIRS = tuple(p for p in ALL_PAIRS if not _held_out(*p))  # 36
HELD_OUT_PAIRS = tuple(p for p in ALL_PAIRS if _held_out(*p))  # 12, evaluation only

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Event:
    """An event of an object in one phase.

    Attributes:
        action: move, grow, shrink, blink, turn, enter, leave or cross (visible in that phase only).
        argument: a direction (move, cross), a side (enter, leave), a colour (turn) or "".
        phase: 0 or 1.
    """

    action: str
    argument: str
    phase: int


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    size: str
    cell: int  # index into PLACES
    events: tuple[Event, ...] = ()  # at most one per phase, in order

    @property
    def place(self) -> str:
        return PLACES[self.cell]

    def event_in(self, phase: int) -> Event | None:
        return next((e for e in self.events if e.phase == phase), None)


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: str
    camera: tuple[str, str] = ("still", "still")


def make_rng(seed: int, name: str, index: int) -> np.random.Generator:
    """The generator for item `index` of the stream `name`, independent of all other items."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode()), index]))


def pick(rng: np.random.Generator, options):
    """One of `options`; unlike rng.choice it does not convert them to numpy scalars."""
    options = tuple(options)
    return options[int(rng.integers(len(options)))]
