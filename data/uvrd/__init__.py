"""V-SynFlow (arXiv 2510.27571, section 3.2): raw videos with captions -> training pairs.

    python -m data.uvrd --config configs/uvrd.py --input captions.jsonl --output DIR \
        --server http://127.0.0.1:8000/v1 --model NAME --embedder GVE

source.py reads what is given, text.py rectifies and filters captions, pictures.py decodes and cuts,
similarity.py compares text and video, server.py asks a vision-language model (prompts/ holds what
it is asked), compose.py makes a video's pairs, part.py runs all stages over a part of the videos,
run.py over all parts (beam.py by Apache Beam) and writes the directory, page.py and card.py what
came of it. world.py makes raw videos of the generated world, and responder.py answers for them in a
model's stead. See docs/uvrd.md.
"""
