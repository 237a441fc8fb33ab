"""The dataset card (README.md) of synthesized pairs, and a summary for the terminal."""

from data.uvrd.part import STAGES
from data.uvrd.settings import TYPES

_CARD = """---
license: {license}
---

# {name}

Training pairs synthesized from raw videos by V-SynFlow's stages (arXiv 2510.27571, section 3.2): \
ArrayRecord through TFDS, one split per type, read by `gve_jax.streams.pairs`. Each pair's \
history (source, span, prompt, model, sampling, scores) is the line with its id in \
`history.jsonl`; rejects are in `rejects.jsonl`, unreadable videos in `quarantine.jsonl`; \
`samples.html` shows samples.

Texts are the answers of `{model}` to frames and captions. They may be wrong and inherit the \
errors of that model and of the captions.

| source | requested | pairs |
| --- | ---: | ---: |
{types}

| stage | videos |
| --- | ---: |
{stages}

Captions were compared with videos by: {embedder}.
The model was called {usage[calls]:,} times; {usage[cached]:,} answers came from the cache; \
{usage[prompt_tokens]:,} tokens in, {usage[completion_tokens]:,} out; cost {cost:.2f}.

| prompt | version | digest |
| --- | --- | --- |
{prompts}

License given for this dataset: {given_license}. The videos keep their own license.

Made by:

    {command}
"""
_REJECTS = """
Rejects:

| stage: reason | count |
| --- | ---: |
{rejects}
"""


def text(name: str, manifest: dict, license: str, command: str) -> str:
    asked, tally = manifest["asked"], manifest["tally"]
    rows = (
        f"| {type}_uvrd | {count:,} | {tally['pairs'].get(type, 0):,} |"
        for type in TYPES
        if (count := tally["asked"].get(type))
    )
    prompts = asked["prompts"].values()
    prompt_rows = (f"| {p['name']} | {p['version']} | {p['digest']} |" for p in prompts)
    card = _CARD.format(
        license=license or "unknown",
        name=name,
        model=asked["model"],
        types="\n".join(rows),
        stages="\n".join(f"| {s} | {tally['funnel'].get(s, 0):,} |" for s in STAGES),
        embedder=asked["embedder"] or "nothing",
        usage=manifest["usage"],
        cost=manifest["cost"],
        prompts="\n".join(prompt_rows),
        given_license=license or "none",
        command=command,
    )
    if rejects := _by_count(tally["rejects"]):
        card += _REJECTS.format(rejects="\n".join(f"| {why} | {n:,} |" for why, n in rejects))
    return card


def lines(manifest: dict) -> list[str]:
    """The summary for a terminal."""
    tally, usage = manifest["tally"], manifest["usage"]
    pairs = ", ".join(f"{tally['pairs'][t]} {t}" for t in TYPES if tally["pairs"].get(t))
    funnel = ", ".join(f"{tally['funnel'].get(stage, 0)} {stage}" for stage in STAGES)
    rejects = ", ".join(f"{n} {why!r}" for why, n in _by_count(tally["rejects"])) or "none"
    return [
        f"pairs: {pairs}",
        f"funnel: {funnel}",
        f"rejects: {rejects}",
        f"model: {usage['calls']} calls, {usage['cached']} answers from the cache, "
        f"{usage['prompt_tokens']:,} tokens in, {usage['completion_tokens']:,} out, cost "
        f"{manifest['cost']:.2f}",
    ]


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: -entry[1])
