"""Synthesizing pairs as V-SynFlow does (arXiv 2510.27571, section 3.2 and appendix A.4 to A.6).

    python -m data.uvrd --config configs/uvrd.py --input captions.jsonl --output DIR ...

The paper publishes the proportions of pairs, of profiles and the lengths of captions; every other
number here is a choice of ours. `--config configs/uvrd.py:world` is for the generated world, whose
videos last 4 s and whose language has 150 words.
"""

import dataclasses

from ml_collections import ConfigDict

from gve_jax.media.limits import Limits

# UVRD's pairs by type, in thousands (the paper's table 7).
PAPER = dict(T2T=100, T2I=210, T2V=879, TI2V=89, TV2V=35, I2V=200, V2V=36)


def get_config(form: str = "") -> ConfigDict:
    if form not in ("", "world"):
        raise ValueError(f"configs/uvrd.py has no form {form!r}; known: world")
    config = ConfigDict()
    config.seed = 0  # of every draw: profiles, frames, spans, captions

    # Pairs of each type that a video is asked for, on average: 0.1 asks every tenth video, 2.5 two
    # or three pairs of each. The default gives the paper's proportions, one T2V a video.
    config.pairs = ConfigDict({name: count / PAPER["T2V"] for name, count in PAPER.items()})

    config.text = ConfigDict()
    config.text.require = True  # False: videos without a caption are taken, too
    config.text.least_words = 3  # of a caption
    config.text.most_words = 200
    config.text.most_characters = 2000  # before anything else is looked at
    config.text.most_repeated = 0.4  # share of a caption's words that may be one and the same
    config.text.least_letters = 0.6  # share of its characters that are letters or spaces
    config.text.language = "en"  # or "any"; of captions and of the model's answers

    config.video = ConfigDict()
    config.video.num_frames = 16  # decoded, uniformly: for motion, for the model, for frames
    config.video.max_pixels = 448 * 448  # of a decoded frame
    config.video.most_bytes = 64 * 2**20  # of a file: it is stored in the pairs
    config.video.least_seconds = 1.0
    config.video.most_seconds = 180.0
    config.video.least_motion = 0.003  # mean change between frames, of 0 to 1; below: static

    config.similarity = 0.2  # least cosine of a caption and its video; with --embedder only

    # What a video's five captions dwell on, by the share of videos (the paper's).
    config.profiles = ConfigDict(dict(spatial=0.3, temporal=0.6, other=0.1))
    config.readability = ("plain", "general", "literary")  # one is drawn for each video
    config.education = ("primary school", "high school", "university")  # likewise

    # Words of each caption, least and most (the paper's; keywords count as entries of the list).
    config.lengths = ConfigDict()
    config.lengths.summary = (10, 25)
    config.lengths.spatio_temporal = (80, 200)  # frames have 50 to 200
    config.lengths.abstract = (30, 100)
    config.lengths.keywords = (5, 30)
    config.lengths.partial = (10, 70)
    config.lengths.frame = (50, 200)  # the spatio-temporal caption of a frame
    config.lengths.image_query = (3, 50)  # of a composed query: a frame and a text
    config.lengths.clip_query = (5, 15)  # a clip and a text
    config.lengths.slack = 0.25  # models count badly: share by which an answer may miss a length

    config.frame = ConfigDict()
    config.frame.format = "jpeg"  # or "png"; of stored frames
    config.frame.quality = 90  # of JPEG
    config.frame.latest = 0.25  # a composed query's frame is of this first share of its video

    config.clip = ConfigDict()
    config.clip.least_seconds = 2.0  # the paper's
    config.clip.most_seconds = 10.0  # the paper's
    config.clip.share = 0.5  # of its video, at most
    config.clip.fps = 8.0
    config.clip.max_pixels = 448 * 448  # of a frame
    config.clip.crf = 23  # of H.264

    config.server = ConfigDict()  # what is asked of the model behind --server
    config.server.images = 8  # frames of a video that it is shown
    config.server.temperature = 0.7
    config.server.top_p = 0.9
    config.server.max_tokens = 1024  # of an answer
    config.server.schema = "json_schema"  # how it is asked for JSON: or "json_object", "prompt"
    config.server.tries = 3  # answers asked for until one is valid; then a reject

    config.calls = ConfigDict()  # how it is called: without influence on what it answers
    config.calls.concurrency = 16  # calls at once
    config.calls.seconds = 120.0  # a call may take
    config.calls.attempts = 6  # of a call that fails: no answer, 429, 5xx
    config.calls.backoff = 1.0  # seconds before the second attempt, doubled each time, with jitter
    config.calls.most_backoff = 60.0  # seconds; also of a Retry-After
    config.calls.most_failures = 0.05  # share of failed calls above which the run stops
    config.calls.price_in = 0.0  # of a million tokens; for the sum at the end
    config.calls.price_out = 0.0

    config.run = ConfigDict()
    config.run.part = 32  # videos that are finished, or repeated after a kill, together
    config.run.ahead = 2  # parts worked on at once; their videos and frames are in memory
    config.run.decoders = 2  # decoding processes
    config.run.max_bad_share = 0.05  # unreadable videos above which the run stops

    # What one file may cost: pixels, frames, streams, seconds, bytes (gve_jax/media/limits.py).
    config.limits = ConfigDict(dataclasses.asdict(Limits()))

    if form == "world":
        config.video.max_pixels = config.clip.max_pixels = 112 * 112
        config.video.least_motion = 0.0004  # its things are small
        config.clip.fps = 4.0
        config.frame.format = "png"
        config.lengths.summary = (3, 60)
        config.lengths.spatio_temporal = (8, 120)
        config.lengths.abstract = (4, 40)
        config.lengths.keywords = (2, 30)
        config.lengths.partial = (4, 40)
        config.lengths.frame = (4, 120)
        config.lengths.clip_query = (3, 40)
    return config
