"""Renders scenes to uint8 [T, 112, 112, 3], and encodes frames as mp4 (H.264) or PNG."""

import io

import av
import numpy as np
from PIL import Image

from data.shapes.motion import camera_track, thing_track
from data.shapes.scene import BACKGROUNDS, FPS, FRAME, Scene

# The background is a checkerboard under a light that darkens downwards and changes from cool (left)
# to warm (right), so that a frame shows where the camera looks.
_PERIOD = 28  # world pixels a square
_CONTRAST = 14  # levels between a square and the mean
# Change of the light from the world's centre to the edge of a frame, in levels.
_WARMTH = np.array([26, 0, -26])  # to the right
_SHADE = -26  # down


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to a shape's edge in radii, negative inside; u to the right, v down."""
    if shape == "circle":
        return np.hypot(u, v) - 1
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.76) - 0.24
    u = np.abs(u)
    if shape == "square":
        return np.maximum(u, np.abs(v)) - 0.86
    if shape == "triangle":
        return np.maximum(v - 0.75, (1.75 * u - (v + 1) * 1.0) / 2.016)
    if shape == "cross":
        v = np.abs(v)
        return np.minimum(np.maximum(u - 1, v - 0.3), np.maximum(v - 1, u - 0.3))
    # star: fold the angle from the top into one of ten slices; a straight edge from tip to notch
    angle = np.arctan2(u, -v) % (2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    distance = np.hypot(u, v)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    tip, notch = np.array([1.15, 0.0]), 0.48 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = notch - tip
    return ((along - tip[0]) * -edge[1] + across * edge[0]) / -np.hypot(*edge)


def _paint(
    frames: np.ndarray, shape: str, track: dict[str, np.ndarray], frame_ids: np.ndarray
) -> None:
    """Draws an object, given in screen pixels, into frames [T, H, W, 3], in place."""
    radius = track["radius"][frame_ids]
    half = int(np.ceil(radius.max() * 1.2)) + 1
    corner_x = np.rint(track["x"][frame_ids]).astype(int) - half
    corner_y = np.rint(track["y"][frame_ids]).astype(int) - half
    side = np.arange(2 * half + 1)
    u = (corner_x[:, None] + side - track["x"][frame_ids, None]) / radius[:, None]
    v = (corner_y[:, None] + side - track["y"][frame_ids, None]) / radius[:, None]
    distance = _distance(shape, u[:, None, :].astype(np.float32), v[:, :, None].astype(np.float32))
    # One pixel of antialiasing across the edge.
    cover = np.clip(0.5 - distance * radius[:, None, None].astype(np.float32), 0, 1)[..., None]
    for i, t in enumerate(frame_ids):
        x0, x1 = max(corner_x[i], 0), min(corner_x[i] + len(side), FRAME)
        y0, y1 = max(corner_y[i], 0), min(corner_y[i] + len(side), FRAME)
        if x0 >= x1 or y0 >= y1:
            continue
        patch = frames[t, y0:y1, x0:x1]
        a = cover[i, y0 - corner_y[i] : y1 - corner_y[i], x0 - corner_x[i] : x1 - corner_x[i]]
        patch[:] = (patch * (1 - a) + track["colour"][t] * a + 0.5).astype(np.uint8)


def render(scene: Scene, only: int | None = None) -> np.ndarray:
    """The scene's frames, uint8 [16, 112, 112, 3], or the frame `only`, uint8 [1, 112, 112, 3]."""
    chosen = slice(None) if only is None else slice(only, only + 1)
    camera_x, camera_y, zoom = (track[chosen] for track in camera_track(scene))
    pixels = np.arange(FRAME) + 0.5 - FRAME / 2
    world_x = pixels / zoom[:, None] + camera_x[:, None]  # [T, W]
    world_y = pixels / zoom[:, None] + camera_y[:, None]  # [T, H]
    column, row = (np.floor(w / _PERIOD).astype(np.int64) & 1 for w in (world_x, world_y))
    base = np.array(BACKGROUNDS[scene.background])
    levels = np.stack([base - _CONTRAST, base + _CONTRAST])  # [2, 3]
    warmth = (world_x * 2 / FRAME - 1)[:, None, :, None] * _WARMTH  # [T, 1, W, 3]
    shade = (world_y * 2 / FRAME - 1) * _SHADE  # [T, H]
    # A frame of the checkerboard has only two kinds of rows.
    kinds = np.stack([levels[column], levels[1 - column]], axis=1) + warmth  # [T, 2, W, 3]
    kinds = np.rint(kinds).astype(np.int16).reshape(len(row), 2, -1)
    ground = kinds[np.arange(len(row))[:, None], row] + np.rint(shade).astype(np.int16)[..., None]
    frames = np.clip(ground, 0, 255, out=ground).astype(np.uint8).reshape(-1, FRAME, FRAME, 3)
    for thing in scene.things:
        track = {k: v[chosen] for k, v in thing_track(thing).items()}
        track["x"] = (track["x"] - camera_x) * zoom + FRAME / 2
        track["y"] = (track["y"] - camera_y) * zoom + FRAME / 2
        track["radius"] = track["radius"] * zoom
        seen = np.flatnonzero(track["visible"])
        if len(seen):
            _paint(frames, thing.shape, track, seen)
    return frames


def encode_mp4(frames: np.ndarray, crf: int = 18) -> bytes:
    """H.264 mp4 of uint8 [T, H, W, 3], H and W even, 4 frames/s; deterministic."""
    buffer = io.BytesIO()
    # zerolatency allocates no look-ahead: a quarter faster for short clips, of the same size.
    options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "crf": str(crf),
        "bf": "0",
        "threads": "1",
    }
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_png(frame: np.ndarray) -> bytes:
    """PNG of uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def decode_mp4(data: bytes) -> np.ndarray:
    """All frames of an mp4 of this world, uint8 [T, H, W, 3] (for tests and previews)."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
