"""Renders the plans of the miniature UVRB in UVRB's file layout.

UVRB/NAME/jsonl/{queries,instances,corpus}.jsonl, UVRB/NAME/videos/*.mp4, UVRB/NAME/images/*.png.
"""

import json
from collections.abc import Callable
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np

from data.shapes.benchmark import Plan, Query, plan
from data.shapes.pairs import CLIP_CRF
from data.shapes.render import encode_mp4, encode_png, render

# ("video", scenes), ("image", scene, frame) or ("clip", scene, start, stop, coarse)
Job = tuple


def make_medium(job: Job) -> bytes:
    """The mp4 or png of a job."""
    match job:
        case ("video", scenes):
            return encode_mp4(np.concatenate([render(s) for s in scenes]))
        case ("image", scene, frame):
            return encode_png(render(scene, only=frame)[0])
        case ("clip", scene, start, stop, coarse):
            frames = render(scene)[start:stop]
            return encode_mp4(frames, crf=CLIP_CRF) if coarse else encode_mp4(frames)
    raise ValueError(f"unknown job {job[0]}")


def _query_media(query: Query, index: int) -> dict[str, tuple[str, Job]]:
    media = {}
    if query.image is not None:
        media["image"] = (f"images/q{index:04d}.png", ("image", *query.image))
    if query.clip is not None:
        media["video"] = (f"videos/q{index:04d}.mp4", ("clip", *query.clip))
    return media


def layout(name: str, planned: Plan) -> tuple[dict[str, list[dict]], dict[str, Job]]:
    """The three tables of a set, and its media by relative path."""
    tables: dict[str, list[dict]] = {"queries": [], "instances": [], "corpus": []}
    media: dict[str, Job] = {}
    ids = [f"{name}-d{number:04d}" for number in spread(planned)]
    for i, scenes in enumerate(planned.documents):
        path = f"videos/d{i:04d}.mp4"
        media[path] = ("video", scenes)
        tables["corpus"].append({"id": ids[i], "video": path})
    for i, query in enumerate(planned.queries):
        query_media = _query_media(query, i)
        media |= dict(query_media.values())
        paths = {kind: path for kind, (path, _) in query_media.items()}
        qid = f"{name}-q{i:04d}"
        row = {
            "id": qid,
            "text": query.text,
            "image": paths.get("image", ""),
            "video": paths.get("video", ""),
        }
        tables["queries"].append(row)
        tables["instances"].append({"qid": qid, "pos": [ids[query.answer]]})
    return tables, media


def spread(planned: Plan) -> list[int]:
    """Numbers documents so that answers are spread evenly among the others.

    Ties are broken by id: if all answers came first or last, an encoder with equal vectors for all
    documents would score below or above chance.
    """
    answers = {query.answer for query in planned.queries}
    documents = range(len(planned.documents))
    groups = [[i for i in documents if (i in answers) == wanted] for wanted in (True, False)]
    ranks = {i: (k + 0.5) / len(group) for group in groups for k, i in enumerate(group)}
    number = {i: n for n, i in enumerate(sorted(documents, key=ranks.__getitem__))}
    return [number[i] for i in documents]


def write(
    folder: Path,
    seed: int,
    scale: float,
    pool: Pool,
    tick: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, int]]:
    """Writes all sets under `folder`; returns {name: {"queries": n, "corpus": n}}.

    `tick(done, total)` is called as media are rendered. Media shared by sets are rendered once and
    copied to each set, as in UVRB.
    """
    counts: dict[str, dict[str, int]] = {}
    paths: dict[Job, list[Path]] = {}
    for name, planned in plan(seed, scale).items():
        tables, media = layout(name, planned)
        for sub in ("jsonl", *dict.fromkeys(path.split("/")[0] for path in media)):
            (folder / name / sub).mkdir(parents=True)
        for table, rows in tables.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name / "jsonl" / f"{table}.jsonl").write_text(lines)
        for path, job in media.items():
            paths.setdefault(job, []).append(folder / name / path)
        counts[name] = {"queries": len(tables["queries"]), "corpus": len(tables["corpus"])}
    jobs = list(paths)
    for done, (job, data) in enumerate(
        zip(jobs, pool.imap(make_medium, jobs, chunksize=8), strict=True), start=1
    ):
        for path in paths[job]:
            path.write_bytes(data)
        if tick:
            tick(done, len(jobs))
    return counts
