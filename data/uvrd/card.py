"""The README.md of a directory of synthesized pairs; its head is what dataset hubs read."""

from data.uvrd.part import STAGES
from data.uvrd.settings import TYPES


def text(name: str, manifest: dict, license: str, command: str) -> str:
    asked, tally, usage = manifest["asked"], manifest["tally"], manifest["usage"]
    rows = []
    for type in TYPES:
        if tally["asked"].get(type):
            rows.append(
                f"| {type}_uvrd | {tally['asked'][type]:,} | {tally['pairs'].get(type, 0):,} |"
            )
    rejects = sorted(tally["rejects"].items(), key=lambda entry: -entry[1])
    prompts = [
        f"| {one['name']} | {one['version']} | {one['digest']} |"
        for one in asked["prompts"].values()
    ]
    parts = [
        f"---\nlicense: {license or 'unknown'}\n---\n",
        f"# {name}\n",
        "Training pairs synthesized from raw videos by V-SynFlow's stages (arXiv 2510.27571, "
        "section 3.2): ArrayRecord through TFDS, one split a type, as `gve_jax.streams.pairs` "
        "reads them. Each pair's history (source, span, prompt, model, sampling, scores) is the "
        "line of its id in `history.jsonl`; what was rejected is in `rejects.jsonl`, what could "
        "not be read in `quarantine.jsonl`; `samples.html` shows some of it.\n",
        f"Texts are the answers of `{asked['model']}` to frames and captions: they may be wrong, "
        "and inherit what that model and the captions got wrong.\n",
        "| source | asked | pairs |",
        "| --- | ---: | ---: |",
        *rows,
        "",
        "| stage | videos |",
        "| --- | ---: |",
        *(f"| {stage} | {tally['funnel'].get(stage, 0):,} |" for stage in STAGES),
        "",
        f"Captions were compared with videos by: {asked['embedder'] or 'nothing'}.",
        f"The model was called {usage['calls']:,} times and answered from the cache "
        f"{usage['cached']:,} times; {usage['prompt_tokens']:,} tokens in, "
        f"{usage['completion_tokens']:,} out; cost {manifest['cost']:.2f}.\n",
        "| prompt | version | digest |",
        "| --- | --- | --- |",
        *prompts,
        "",
        f"Licence, as given by who made them: {license or 'none was given'}. That of the videos is "
        "theirs.\n",
        "Made by:\n",
        f"    {command}\n",
    ]
    if rejects:
        parts += [
            "What was rejected:\n",
            "| stage: reason | count |",
            "| --- | ---: |",
            *(f"| {reason} | {count:,} |" for reason, count in rejects),
        ]
    return "\n".join(parts).rstrip() + "\n"


def lines(manifest: dict) -> list[str]:
    """The sum for a terminal."""
    tally, usage = manifest["tally"], manifest["usage"]
    made = ", ".join(f"{tally['pairs'][t]} {t}" for t in TYPES if tally["pairs"].get(t))
    passed = ", ".join(f"{tally['funnel'].get(stage, 0)} {stage}" for stage in STAGES)
    rejects = sorted(tally["rejects"].items(), key=lambda entry: -entry[1])
    lost = ", ".join(f"{count} {reason!r}" for reason, count in rejects) or "none"
    return [
        f"pairs: {made}",
        f"funnel: {passed}",
        f"rejects: {lost}",
        f"model: {usage['calls']} calls, {usage['cached']} answers of the cache, "
        f"{usage['prompt_tokens']:,} tokens in, {usage['completion_tokens']:,} out, cost "
        f"{manifest['cost']:.2f}",
    ]
